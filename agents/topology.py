"""A graph as data: its nodes, its edges, what can reach what; checked as a whole before any model is loaded; drawn as Mermaid.

Does: find unknown names, edges from nowhere, unreachable nodes, nodes without a way to END and fields that nobody can write.
Does not: run anything (`agents.loop`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from agents.route import END, GraphError
from agents.state import Fields

_GOING = {"goto", "Goto", "Choice", "choose", "send"}


@dataclass(slots=True, frozen=True)
class Route:
    """Where a finished step goes, with the target's private input and the probabilities of the choice."""

    target: str
    private: dict[str, Any] | None = None
    probabilities: dict[str, float] | None = None


@dataclass(slots=True)
class Node:
    """One node. `call` takes the state; `acall` is the same for `arun`, None when only a thread can run it.

    `goes` are the targets it says it may go to by itself, None when it says nothing; `hints` are node names its code mentions;
    `roams` tells that it may return a goto.
    """

    name: str
    call: Callable[[Any], Any]
    acall: Callable[[Any], Awaitable[Any]] | None = None
    only_async: bool = False
    retries: int = 0
    timeout_s: float | None = None
    goes: tuple[str, ...] | None = None
    roams: bool = False
    hints: frozenset[str] = frozenset()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    shape: str = "function"


@dataclass(slots=True)
class Plan:
    """A checked graph, ready to run. `ways` are all targets a node may have, `joins` the nodes that several may lead to."""

    name: str
    start: str
    nodes: dict[str, Node]
    edges: dict[str, tuple[str, ...]]
    routes: dict[str, list[Route]]
    ways: dict[str, tuple[str, ...]]
    joins: frozenset[str]
    warnings: tuple[str, ...] = ()
    _reached: dict[tuple[str, frozenset[str]], frozenset[str]] = field(default_factory=dict)

    @property
    def only_async(self) -> bool:
        """Whether some node is an async function, so that the run needs an event loop."""
        return any(node.only_async for node in self.nodes.values())

    @property
    def awaits(self) -> bool:
        """Whether some node can be awaited."""
        return any(node.acall is not None for node in self.nodes.values())

    def reach(self, source: str, without: frozenset[str] = frozenset()) -> frozenset[str]:
        """Nodes that can come after `source` (itself only through a cycle), on paths that avoid `without`."""
        key = (source, without)
        if key not in self._reached:
            self._reached[key] = _reach(self.ways, source, without)
        return self._reached[key]


def _reach(ways: dict[str, tuple[str, ...]], source: str, without: frozenset[str] = frozenset()) -> frozenset[str]:
    found: set[str] = set()
    waiting = [source]
    while waiting:
        for target in ways.get(waiting.pop(), ()):
            if target not in found and target not in without:
                found.add(target)
                waiting.append(target)
    return frozenset(found)


def code_of(function: Any) -> CodeType | None:
    """The code object behind a function, method or callable object; None for what Python has no code of."""
    for one in (
        function,
        getattr(function, "__wrapped__", None),
        getattr(function, "func", None),
        vars(type(function)).get("__call__"),
    ):
        code = getattr(one, "__code__", None) or getattr(getattr(one, "__func__", None), "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None


def spoken(code: CodeType | None) -> tuple[bool, frozenset[str]]:
    """Whether a function may return a goto, and the strings among its constants (some of which are names of nodes)."""
    if code is None:
        return True, frozenset()
    codes = list(_nested(code))
    names = {name for one in codes for name in (*one.co_names, *one.co_freevars)}
    words = {word for one in codes for word in _strings(one.co_consts)} | ({str(END)} if "END" in names else set())
    return bool(names & _GOING), frozenset(words)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _strings(constants: Sequence[Any]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _strings(tuple(constant))


def near(name: str, names: Sequence[str]) -> str:
    """ "; did you mean 'x'?" when a known name is close, else the known names."""
    import difflib

    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"nodes: {', '.join(names) or 'none'}"


def make_plan(name: str, fields: Fields, nodes: dict[str, Node], links: Sequence[tuple[str, str]], starts: Sequence[str]) -> Plan:
    """Check everything that can be known before a run. Raises GraphError with one line for each thing that is wrong."""
    wrong: list[str] = []
    names = list(nodes)
    if not nodes:
        raise GraphError(f"graph {name!r} has no nodes: add one with @g.node(start=True) or g.add(persona, start=True)")
    if not starts:
        wrong.append(f"graph {name!r} has no start: say start=True at one of its nodes ({', '.join(names)})")
    edges: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in links:
        if source not in nodes:
            wrong.append(
                f"edge from nowhere: g.edge({source!r}, {target!r}), but there is no node {source!r}; {near(source, names)}"
            )
        elif target != END and target not in nodes:
            wrong.append(
                f"edge to nowhere: g.edge({source!r}, {target!r}), but there is no node {target!r}; {near(target, names)}"
            )
        elif target not in edges[source]:
            edges[source].append(target)
    ways: dict[str, tuple[str, ...]] = {}
    drawn: dict[str, tuple[str, ...]] = {}
    for node in nodes.values():
        for target in node.goes or ():
            if target != END and target not in nodes:
                wrong.append(f"node {node.name!r} says goes=[{target!r}], but there is no such node; {near(target, names)}")
        if node.goes is not None:
            own: tuple[str, ...] = node.goes
        elif node.roams:
            own = (*names, END)
        else:
            own = ()
        ways[node.name] = tuple(dict.fromkeys((*edges[node.name], *own)))
        hinted = tuple(one for one in (*names, END) if one in node.hints) if node.roams and node.goes is None else own
        drawn[node.name] = tuple(dict.fromkeys((*edges[node.name], *hinted)))
        for what, chosen in (("reads", node.reads), ("writes", node.writes)):
            for one in chosen:
                if one not in fields.names:
                    wrong.append(
                        f"node {node.name!r} {what} {one!r}, no field of {fields.cls.__name__}; fields: {', '.join(fields.names)}"
                    )
        wrong.extend(
            f"node {node.name!r} writes {one!r}, but {fields.cls.__name__}.{one} is frozen: no node can write it"
            for one in node.writes
            if one in fields.unwritable
        )
    if wrong:
        raise GraphError("\n".join(wrong))
    start = starts[0]
    reached = _reach(ways, start) | {start}
    wrong += [
        f"node {one!r} cannot be reached from the start {start!r}: add g.edge(..., {one!r}), or name it in goes=[...] of "
        f"the node that goes there"
        for one in nodes
        if one not in reached
    ]
    for one in nodes:
        if one in reached and not ways[one]:
            wrong.append(f"node {one!r} leads nowhere: add g.edge({one!r}, END), or goes=[...] if it returns where to go")
        elif one in reached and END not in _reach(ways, one):
            wrong.append(
                f"there is no way from node {one!r} to END: add an edge that leaves the circle, such as g.edge({one!r}, END)"
            )
    if wrong:
        raise GraphError("\n".join(wrong))
    found = _reach(drawn, start) | {start}
    warnings = tuple(
        f"nothing names node {one!r} as a target: if a goto with a computed target leads there, say so with goes=[...]"
        for one in nodes
        if one not in found
    )
    count: dict[str, int] = {}
    for targets in ways.values():
        for target in targets:
            count[target] = count.get(target, 0) + 1
    joins = frozenset(one for one, n in count.items() if n > 1 and one != END)
    routes = {one: [Route(target) for target in targets] for one, targets in edges.items()}
    return Plan(name, start, dict(nodes), {k: tuple(v) for k, v in edges.items()}, routes, ways, joins, warnings)


def draw(plan: Plan) -> str:
    """The graph in Mermaid's flowchart language: edges solid, gotos that the code names dashed, gotos to anywhere to a cloud."""
    number = {name: f"n{i}" for i, name in enumerate(plan.nodes)}
    lines = ["flowchart TD", "    begin((start))", f"    begin --> {number[plan.start]}"]
    brackets = {"function": ("[", "]"), "persona": ("([", "])"), "graph": ("[[", "]]")}
    for name, node in plan.nodes.items():
        left, right = brackets[node.shape]
        lines.append(f'    {number[name]}{left}"{_escaped(name)}"{right}')
    number[END] = "finish"
    lines.append("    finish((end))")
    for name, node in plan.nodes.items():
        lines += [f"    {number[name]} --> {number[target]}" for target in plan.edges[name]]
        named = (
            node.goes if node.goes is not None else tuple(one for one in (*plan.nodes, END) if node.roams and one in node.hints)
        )
        lines += [f"    {number[name]} -.-> {number[target]}" for target in named if target not in plan.edges[name]]
        if node.roams and node.goes is None and not named and not plan.edges[name]:
            lines.append(f'    {number[name]} -.-> {number[name]}any{{{{"any node"}}}}')
    return "\n".join(lines) + "\n"


def _escaped(name: str) -> str:
    return name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
