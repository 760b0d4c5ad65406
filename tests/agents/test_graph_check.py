"""A graph is checked as a whole before any model is loaded: one clear sentence for each thing wrong; and drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, Field

from agents import END, AgentGraph, GraphError


class State(BaseModel):
    question: str = ""
    notes: list[str] = []
    fixed: str = Field("", frozen=True)


class Persona:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, text: str, *, history: Any = None, **variables: Any) -> str:
        raise AssertionError("nothing runs before the check")


def graph(*build: Callable[[AgentGraph], Any], edges: Any = (("a", END),)) -> AgentGraph:
    g = AgentGraph(State, name="shop")
    for one in build:
        one(g)
    for source, target in edges:
        g.edge(source, target)
    return g


def a(g: AgentGraph) -> None:
    g.node(start=True, name="a")(lambda s: None)


def b(g: AgentGraph) -> None:
    g.node(name="b")(lambda s: None)


WRONG: dict[str, tuple[Callable[[], AgentGraph], str]] = {
    "nothing": (lambda: graph(edges=()), "graph 'shop' has no nodes"),
    "no start": (lambda: graph(b, edges=[("b", END)]), r"has no start: say start=True at one of its nodes \(b\)"),
    "edge from nowhere": (
        lambda: graph(a, edges=[("aa", END), ("a", END)]),
        "edge from nowhere: .*no node 'aa'; did you mean 'a'?",
    ),
    "edge to nowhere": (lambda: graph(a, edges=[("a", "zebra")]), "edge to nowhere: .*no node 'zebra'; nodes: a"),
    "unreachable": (lambda: graph(a, b, edges=[("a", END), ("b", END)]), "node 'b' cannot be reached from the start 'a'"),
    "leads nowhere": (lambda: graph(a, edges=()), "node 'a' leads nowhere: add g.edge"),
    "no way to END": (lambda: graph(a, b, edges=[("a", "b"), ("b", "a")]), "no way from node 'a' to END"),
    "unknown field read": (
        lambda: graph(lambda g: g.add(Persona("a"), reads="ask", writes="notes", start=True)),
        "node 'a' reads 'ask', no field of State; fields: question, notes, fixed",
    ),
    "unknown field written": (
        lambda: graph(lambda g: g.add(Persona("a"), reads="question", writes="note", start=True)),
        "node 'a' writes 'note', no field of State",
    ),
    "frozen field written": (
        lambda: graph(lambda g: g.add(Persona("a"), reads="question", writes="fixed", start=True)),
        "node 'a' writes 'fixed', but State.fixed is frozen",
    ),
    "goes nowhere": (
        lambda: graph(lambda g: g.node(start=True, name="a", goes=["b"])(lambda s: None)),
        r"node 'a' says goes=\['b'\], but there is no such node",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_by_check_and_before_a_run(case: str) -> None:
    build, said = WRONG[case]
    with pytest.raises(GraphError, match=said) as error:
        build().check()
    assert "\n" not in str(error.value) or case == "no way to END"
    with pytest.raises(GraphError, match=said):
        build().run(State())


def test_wrong_declarations_are_refused_where_they_stand() -> None:
    g = graph(a)
    with pytest.raises(GraphError, match="two nodes called 'a'"):
        a(g)
    with pytest.raises(GraphError, match="two starts, 'a' and 'c'"):
        g.node(start=True, name="c")(lambda s: None)
    with pytest.raises(GraphError, match="nothing comes after END"):
        g.edge(END, "a")
    with pytest.raises(GraphError, match="cannot be called"):
        g.node(name=str(END))(lambda s: None)
    with pytest.raises(GraphError, match="timeout_s=0"):
        g.node(name="t", timeout_s=0)(lambda s: None)
    with pytest.raises(GraphError, match="needs writes="):
        g.add(Persona("p"), reads="question")
    with pytest.raises(GraphError, match="needs reads="):
        g.add(Persona("p"), writes="notes")
    with pytest.raises(GraphError, match="takes a persona, a cascade or a graph"):
        g.add(42, reads="question", writes="notes", name="p")
    with pytest.raises(GraphError, match="names no node"):
        g.edge(42, END)
    with pytest.raises(GraphError, match="pydantic model class"):
        AgentGraph(dict)  # type: ignore[arg-type]
    assert g.check() == []


def test_a_node_that_may_go_anywhere_reaches_all_and_doubt_is_a_warning() -> None:
    g = AgentGraph(State)

    @g.node(start=True)
    def route(s: State) -> Any:
        return g.goto("b") if s.question else g.goto(END)

    g.node(name="b")(lambda s: None)
    g.node(name="c")(lambda s: None)
    g.edge("b", END)
    g.edge("c", END)
    assert g.check() == [
        "nothing names node 'c' as a target: if a goto with a computed target leads there, say so with goes=[...]"
    ]
    run = g.run(State())
    assert [event.kind for event in run.trace][:2] == ["run_started", "warned"]


def test_a_goto_outside_goes_is_refused_when_it_happens() -> None:
    g = AgentGraph(State)

    @g.node(start=True, goes=[END])
    def route(s: State) -> Any:
        return g.goto("b")

    b(g)
    g.edge(route, "b")
    g.edge("b", "c")
    g.node(name="c")(lambda s: g.goto("b"))
    g.edge("c", END)
    assert g.run(State(), max_steps=6).reason == "max_steps"

    h = AgentGraph(State)
    h.node(start=True, name="x", goes=["y"])(lambda s: h.goto(END))
    h.node(name="y")(lambda s: None)
    h.edge("y", END)
    with pytest.raises(GraphError, match=r"node 'x' goes to END, but says goes=\['y'\]"):
        h.run(State())


def test_mermaid_draws_edges_solid_and_gotos_dashed() -> None:
    g = AgentGraph(State)
    desk = Persona('desk "1"')

    @g.node(start=True)
    def route(s: State) -> Any:
        return g.goto("review") if s.question else g.goto(END)

    @g.node
    def review(s: State) -> None: ...

    g.add(desk, reads="question", writes="notes")
    g.edge("review", desk)
    g.edge(desk, END)
    assert g.mermaid() == (
        "flowchart TD\n"
        "    begin((start))\n"
        "    begin --> n0\n"
        '    n0["route"]\n'
        '    n1["review"]\n'
        '    n2(["desk &quot;1&quot;"])\n'
        "    finish((end))\n"
        "    n0 -.-> n1\n"
        "    n0 -.-> finish\n"
        "    n1 --> n2\n"
        "    n2 --> finish\n"
    )
