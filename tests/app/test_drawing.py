"""Pictures, timelines, charts, artifacts, and thirty hostile texts that must stay text."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from app_models import ScriptedShop, artifact, card

from agents import END, AgentGraph
from agents import events as ev
from app import picture, timeline, uploads, view
from app.artifacts import find_artifacts, for_task, three_blades
from app.charts import chartable
from app.talk import Talk
from app.wiring import BUNDLED, Setup

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</code><script>alert(1)</script>", "javascript:alert(1)",
    "[click](javascript:alert(1))", "![x](http://example.org/x.png)", "<iframe src='//example.org'></iframe>",
    "'; DROP TABLE moon; --", '" OR 1=1; DELETE FROM moon; --', "Titan'; ATTACH DATABASE '/tmp/evil.db' AS e; --",
    "UNION SELECT load_extension('x')", "PRAGMA writable_schema=1", "../../../../etc/passwd", "..\\..\\windows\\system32",
    "file:///etc/passwd", "$(touch /tmp/pk-owned)", "`touch /tmp/pk-owned`", "; touch /tmp/pk-owned", "{{7*7}}", "${7*7}",
    "%s%n%x", "{question.__class__}", "\x00\x01\x02", "‮evil", "A" * 2000,
    "$\\href{javascript:alert(1)}{x}$", ":material/delete: :red[x]",
    '"]; n0 -> n1; "', "|a|b|\n|---|---|", "__import__('os').system('touch /tmp/pk-owned')",
]  # fmt: skip


def test_there_are_thirty() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) == 30


@pytest.mark.parametrize("text", HOSTILE, ids=range(30))
def test_a_hostile_question_writes_and_runs_nothing(text: str, runs: Path) -> None:
    (runs / "own").mkdir()
    chosen = artifact(runs)
    before = BUNDLED.read_bytes(), {path for path in runs.parent.rglob("*") if runs not in path.parents}
    talk = Talk(ScriptedShop(lambda request: text), runs / "own")
    turn = talk.ask(text if text.strip("\x00\x01\x02 ") else "x" + text, Setup(chosen, BUNDLED))
    assert turn.wait(20) and turn.status in ("done", "failed")
    assert turn.state["rows"] == [], "what the model wrote here is no reading statement"
    assert BUNDLED.read_bytes() == before[0]
    assert {path for path in runs.parent.rglob("*") if runs not in path.parents} == before[1]
    assert not Path("/tmp/pk-owned").exists() and not Path("/tmp/evil.db").exists()


@pytest.mark.parametrize("text", HOSTILE, ids=range(30))
def test_hostile_text_is_escaped_in_markdown_and_dot(text: str) -> None:
    shown = view.escaped(text)
    assert not re.search(r"(?<!\\)[<>`*_\[\]$:|]", shown) and "\n" not in shown
    picture_of = picture.dot(picture.Shape({text: "function"}, {(picture.BEGIN, text): True}))
    inside = re.sub(r'"(?:[^"\\]|\\.)*"', "", picture_of)
    assert set(re.findall(r"\w+", inside)) <= set(
        "digraph bgcolor rankdir TB nodesep ranksep 0 35 3 node fontname fontsize 12 fontcolor color height 4 margin edge "
        "arrowsize 7 label shape circle doublecircle width 18 style filled fillcolor".split()
    ), inside


@pytest.mark.parametrize("text", HOSTILE, ids=range(30))
def test_a_hostile_upload_name_stays_inside(text: str, tmp_path: Path) -> None:
    root = tmp_path / "uploads"
    path = uploads.keep(root, text + ".sqlite", BUNDLED.read_bytes(), "database")
    assert path.resolve().is_relative_to(root.resolve()) and re.fullmatch(r"[A-Za-z0-9_.-]+", path.name)
    assert {one.name for one in tmp_path.iterdir()} == {"uploads"}


def test_hostile_names_in_a_database_are_answered_as_text(runs: Path) -> None:
    place = runs / "evil.sqlite"
    table, column = '<script>alert("t")</script>', "a'); DROP TABLE x; --"
    with closing(sqlite3.connect(place)) as db:
        q = lambda name: '"' + name.replace('"', '""') + '"'  # noqa: E731
        db.execute(f"CREATE TABLE {q(table)} ({q(column)} TEXT)")
        db.execute(f"INSERT INTO {q(table)} VALUES ('<b>bold</b>')")
        db.commit()
    (runs / "own").mkdir()
    sql = f"SELECT {q(column)} FROM {q(table)}"
    talk = Talk(ScriptedShop(lambda request: sql), runs / "own")
    turn = talk.ask("what is there?", Setup(artifact(runs), place))
    turn.wait(20)
    assert turn.state["rows"] == [["<b>bold</b>"]] and view.tables_of(place) == [table]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty"])
def test_a_damaged_database_is_refused_in_a_sentence(damage: str, tmp_path: Path) -> None:
    whole = BUNDLED.read_bytes()
    data = {"truncated": whole[:5000], "flipped": whole[:4096] + bytes(len(whole) - 4096), "text": b"hello" * 100, "empty": b""}
    with pytest.raises(uploads.UploadError) as refused:
        uploads.look_at_database(uploads.keep(tmp_path, "my.sqlite", data[damage], "database"))
    said = view.sentence(refused.value)
    assert "my.sqlite" in said and "\n" not in said


def _graph() -> AgentGraph:
    from app.analyst import AnalystState

    graph = AgentGraph(AnalystState, name='odd "name"')

    @graph.node(start=True, goes=["b\\c", END])
    def a(s: AnalystState) -> object:
        return graph.goto("b\\c")

    graph.node(None, name="b\\c")(lambda s: {"answer": "x"})
    graph.edge("b\\c", END)
    return graph


def test_a_picture_has_the_graph_and_lights_the_way() -> None:
    graph = _graph()
    shape = picture.shape(graph.mermaid())
    assert set(shape.nodes) == {"a", "b\\c"}
    assert shape.edges == {("begin", "a"): True, ("a", "b\\c"): False, ("a", "finish"): False, ("b\\c", "finish"): True}
    events = list(graph.stream({"question": "x"}))
    assert picture.path_of(events) == ["a", "b\\c"]
    assert picture.taken(events) == {("begin", "a"): 1, ("a", "b\\c"): 1, ("b\\c", "finish"): 1}
    drawn = picture.dot(shape, events, picture.DARK)
    assert drawn.count('penwidth="2.2"') == 3 and drawn.count('style="dashed"') == 1
    assert picture.shape_of_trace(events).nodes.keys() == shape.nodes.keys()


def test_a_timeline_tells_every_kind_of_event() -> None:
    from agents.chat import ToolCall

    call = ToolCall(id="1", name="look", arguments={"a": "<b>"})
    events: list[ev.Event] = [
        ev.RunStarted("g", {}),
        ev.NodeStarted(step=1, node="n", at_ms=1), ev.Token("p", "x"),
        ev.ModelCalled("p", "dir/m.gguf", confidence=0.5), ev.ToolCalled("p", call),
        ev.ToolReturned("p", "1", "look", "found", 3.0),
        ev.Repaired("p", "coerce", "a"),
        ev.Guarded("p", "short", "retry"), ev.Escalated("p", "big", "unsure", 0.2), ev.EdgeTaken("n", "m", {"m": 0.7, "o": 0.3}),
        ev.Interrupted("1.0", "may I?", 1), ev.Resumed(True), ev.Warned("w"), ev.NodeFailed("bad"),
        ev.NodeEnded({"a": 1}, step=1, node="n", at_ms=5), ev.RunEnded("end"),
    ]  # fmt: skip
    assert {type(event) for event in events} == set(ev.KINDS.values())
    rows = timeline.table(events)
    assert len(rows) == len(events) - 2, "tokens and starts are left out"
    told = " ".join(row["what"] + " " + row["detail"] for row in rows)
    for words in (
        "m.gguf",
        "50% sure",
        "look({",
        "coerce",
        "short: retry",
        "p (20% sure) → big",
        "m 70%",
        "may I?",
        "bad",
        "4.0 ms",
    ):
        assert words in told, words
    assert timeline.tool_calls(events)[0] == {
        "persona": "p", "tool": "look", "arguments": {"a": "<b>"}, "id": "1", "result": "found", "ok": True, "ms": 3.0
    }  # fmt: skip
    assert timeline.usage(events)[0]["calls"] == 1


@pytest.mark.parametrize(
    ("columns", "rows", "kind"),
    [
        (["kind", "n"], [["a", 1], ["b", 2]], "bar"),
        (["year", "n"], [[1999, 4], [1990, 2]], "line"),
        (["day", "n"], [["2024-01-02", 4], ["2024-01-01", 2.5]], "line"),
        (["n", "n"], [["a", 1], ["b", 2]], "bar"),
        (["kind", "n"], [["a", 1]], None),
        (["kind", "n"], [["a", 1], ["a", 2]], None),
        (["kind", "other"], [["a", "x"], ["b", "y"]], None),
        (["n"], [[1], [2]], None),
        (["kind", "n"], [[str(i), i] for i in range(101)], None),
        (["kind", "n"], [["a", None], ["b", None]], None),
        (["kind"], [], None),
    ],
)
def test_what_can_be_drawn_is(columns: list[str], rows: list[list[Any]], kind: str | None) -> None:
    chart = chartable(columns, rows)
    assert (chart.kind if chart else None) == kind
    if chart is not None:
        assert sorted(zip(*chart.data.values())) == sorted((row[chart.x], row[chart.y[0]]) for row in rows)
        if kind == "line":
            assert list(chart.data[chart.names[chart.x]]) == sorted(chart.data[chart.names[chart.x]])


def test_artifacts_come_embedded_first_then_the_newest_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("old", "new"):
        artifact(runs, name)
    import os

    os.utime(runs / "old" / "model", (1, 1))
    (runs / "bad" / "model").mkdir(parents=True)
    (runs / "bad" / "model" / "x.gguf").write_bytes(b"nothing")
    found, left_out = find_artifacts(runs, tmp_path / "embedded")
    assert [one.run for one in found] == ["new", "old"] and len(left_out) == 1 and "x.gguf" in left_out[0]
    assert three_blades(found) is None
    both = [*found, artifact(runs, "r", "route"), artifact(runs, "t", "tools")]
    blades = three_blades(both)
    assert blades is not None and [one.run for one in blades] == ["r", "t"]
    assert [one.run for one in for_task(both, "sql")] == ["new", "old"] and card().task == "sql"
