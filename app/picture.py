"""A graph as a picture in the DOT language, with the way a run took lit up.

Does: read a graph's own Mermaid text, or a trace alone, and colour nodes and edges by what has happened.
Does not: render (the browser does) or know Streamlit. Names are quoted, so that no name is markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from agents import events as ev
from agents.route import END as LAST

BEGIN, END = "begin", "finish"
_NODE = re.compile(r'\s*(n\d+)(\(\[|\[\[|\[)"(.*)"(?:\]\)|\]\]|\])$')
_EDGE = re.compile(r"\s*(\w+) (-->|-\.->) (\w+)")


@dataclass(frozen=True)
class Shape:
    """`nodes` name -> "function", "persona" or "graph"; `edges` (source, target) -> whether it is always taken."""

    nodes: dict[str, str]
    edges: dict[tuple[str, str], bool]


@dataclass(frozen=True)
class Colors:
    """Of one theme."""

    text: str
    line: str
    lit: str
    lit_text: str
    failed: str
    waiting: str


LIGHT = Colors("#1f2328", "#8a857c", "#a3322b", "#ffffff", "#7a1f1a", "#8a6100")
DARK = Colors("#e8e6e1", "#8b919a", "#f0776b", "#16181c", "#ffb4ab", "#f2c14e")


def shape(mermaid: str) -> Shape:
    """Nodes and edges of what `AgentGraph.mermaid` wrote."""
    names = {"begin": BEGIN, "finish": END}
    nodes: dict[str, str] = {}
    edges: dict[tuple[str, str], bool] = {}
    kinds = {"[": "function", "([": "persona", "[[": "graph"}
    for line in mermaid.splitlines():
        if found := _NODE.match(line):
            names[found[1]] = html.unescape(found[3])
            nodes[names[found[1]]] = kinds[found[2]]
    for line in mermaid.splitlines():
        found = _EDGE.match(line)
        if found and found[1] in names and found[3] in names:
            edges[names[found[1]], names[found[3]]] = found[2] == "-->"
    return Shape(nodes, edges)


def shape_of_trace(events: Sequence[ev.Event]) -> Shape:
    """What can be known of a graph from a run alone."""
    nodes = {event.node: "function" for event in events if isinstance(event, ev.NodeStarted) and event.node}
    return Shape(nodes, dict.fromkeys(taken(events), True))


def taken(events: Sequence[ev.Event]) -> dict[tuple[str, str], int]:
    """How often each edge was taken, the way in included."""
    counts: dict[tuple[str, str], int] = {}
    first = next((event.node for event in events if isinstance(event, ev.NodeStarted) and event.node), None)
    if first is not None:
        counts[BEGIN, first] = 1
    for event in events:
        if isinstance(event, ev.EdgeTaken):
            edge = event.source, END if event.target == LAST else event.target
            counts[edge] = counts.get(edge, 0) + 1
    return counts


def dot(graph: Shape, events: Sequence[ev.Event] = (), colors: Colors = LIGHT) -> str:
    """The picture: filled nodes have run, a thick border runs now, dashed edges are choices, lit ones were taken."""
    visited = {event.node for event in events if isinstance(event, ev.NodeEnded)}
    failed = {event.node for event in events if isinstance(event, ev.NodeFailed) and not event.retried}
    waiting = _waiting(events)
    begun = {event.node for event in events if isinstance(event, ev.NodeStarted)}
    running = begun - visited - failed - waiting
    ways = taken(events)
    nodes = list(dict.fromkeys([*graph.nodes, *(name for name in begun if name)]))
    out = [
        "digraph {",
        'bgcolor="transparent"; rankdir=TB; nodesep=0.35; ranksep=0.3;',
        f'node [fontname="sans-serif", fontsize=12, fontcolor={_q(colors.text)}, color={_q(colors.line)}, height=0.4, '
        "margin=0.12];",
        f"edge [color={_q(colors.line)}, arrowsize=0.7];",
    ]
    out += [f'{_q(end)} [label="", shape={kind}, width=0.18, height=0.18, style=filled, fillcolor={_q(colors.line)}];'
            for end, kind in ((BEGIN, "circle"), (END, "doublecircle"))]  # fmt: skip
    for name in nodes:
        look = {"label": name, "shape": "box", "style": "rounded"}
        if graph.nodes.get(name) == "persona":
            look["shape"] = "ellipse"
        if name in visited:
            look |= {"style": "rounded,filled", "fillcolor": colors.lit, "color": colors.lit, "fontcolor": colors.lit_text}
        if name in failed:
            look |= {"style": "rounded,filled", "fillcolor": colors.failed, "color": colors.failed, "fontcolor": colors.lit_text}
        if name in waiting:
            look |= {"color": colors.waiting, "penwidth": "3"}
        elif name in running:
            look |= {"color": colors.lit, "penwidth": "3"}
        out.append(f"{_q('n:' + name)} [{', '.join(f'{key}={_q(value)}' for key, value in look.items())}];")
    for (source, target), always in {**dict.fromkeys(ways, True), **graph.edges}.items():
        look = {} if always else {"style": "dashed"}
        if (source, target) in ways:
            look |= {"color": colors.lit, "penwidth": "2.2", "style": "solid"}
            if ways[source, target] > 1:
                look |= {"label": f"{ways[source, target]}×", "fontcolor": colors.text, "fontsize": "10"}
        out.append(f"{_end(source)} -> {_end(target)} [{', '.join(f'{key}={_q(value)}' for key, value in look.items())}];")
    return "\n".join([*out, "}"])


def path_of(events: Sequence[ev.Event]) -> list[str]:
    """The nodes that ran, in order: the same in words."""
    return [event.node for event in events if isinstance(event, ev.NodeEnded) and event.node]


def _waiting(events: Sequence[ev.Event]) -> set[str | None]:
    waits: set[str | None] = set()
    for event in events:
        if isinstance(event, ev.Interrupted):
            waits.add(event.node)
        elif isinstance(event, ev.NodeEnded):
            waits.discard(event.node)
    return waits


def _end(name: str) -> str:
    return _q(name) if name in (BEGIN, END) else _q("n:" + name)


def _q(text: str) -> str:
    """A quoted DOT string; a label's backslashes and line breaks are text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ").replace("\r", " ")
    return f'"{escaped}"'
