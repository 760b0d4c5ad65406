"""The analyst: a question becomes SQL, the SQL is read or approved, run read-only, and its answer checked.

Does: build the graph over one database: pick the table (for models that learned one table at a time), write, run, check; say what
is doubtful about an answer in words.
Does not: open models or files (`app.wiring`), or show anything.

    graph = analyst(persona, tools, database, single=True)
    graph.run(AnalystState(question="who discovered Triton?")).state.answer
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from agents import END, AgentGraph
from agents.card import CalibrationEntry
from agents.cascade import Cascade
from agents.interrupts import permission
from agents.persona import Persona
from agents.sandbox import ExecError
from agents.toolbox.sqlite import SqliteTools, as_json
from factory.tasks.sql.database import Database

ROWS = 200
"""Rows of a result that are kept and shown."""
NODES = ("table", "write", "run", "check")


class AnalystState(BaseModel):
    """What the graph knows. `table`: given, or picked from the question. `rows` are as a model would be shown them."""

    question: str
    table: str = ""
    sql: str = ""
    confidence: float | None = None
    columns: list[str] = []
    rows: list[list[Any]] = []
    more: bool = False
    problem: str = ""
    notes: list[str] = []
    answer: str | None = None


def analyst(
    writer: Persona | Cascade,
    tools: SqliteTools,
    database: Database,
    *,
    single: bool,
    approve: bool = False,
    calibration: Sequence[CalibrationEntry] = (),
) -> AgentGraph:
    """The graph. `single`: the writer is asked about one table; `approve`: a person sees each statement before it runs."""
    graph = AgentGraph(AnalystState, name="analyst")
    add_nodes(graph, writer, tools, database, single=single, approve=approve, calibration=calibration, start=True)
    return graph


def add_nodes(
    graph: AgentGraph,
    writer: Persona | Cascade,
    tools: SqliteTools,
    database: Database,
    *,
    single: bool,
    approve: bool,
    calibration: Sequence[CalibrationEntry],
    start: bool,
) -> None:
    """The analyst's four nodes and their edges in a graph over an `AnalystState`, its subclasses included."""

    @graph.node(start=start)
    def table(s: AnalystState) -> dict[str, Any]:
        return {"table": s.table or (likely_table(database, s.question) if single else "")}

    @graph.node
    def write(s: AnalystState) -> dict[str, Any]:
        about = {"table": s.table} if s.table else {}
        said = writer(s.question, **about)
        return {"sql": said.text, "confidence": said.confidence}

    @graph.node(goes=["check", END])
    def run(s: AnalystState) -> object:
        if approve and not permission("Run this statement?", s.sql):
            return graph.goto(END, {"problem": "The statement was not approved, so it did not run."})
        try:
            body = json.loads(as_json(tools.run(s.sql)))
        except ExecError as error:
            return graph.goto(END, {"problem": f"The statement did not run: {error.detail}."})
        return graph.goto("check", {"columns": body["columns"], "rows": body["rows"], "more": body.get("more", False)})

    @graph.node
    def check(s: AnalystState) -> dict[str, Any]:
        return {"answer": in_short(s.rows, s.more), "notes": doubts(s, calibration)}

    graph.edge("table", "write")
    graph.edge("write", "run")
    graph.edge("check", END)


def in_short(rows: Sequence[Sequence[Any]], more: bool = False) -> str:
    """A result in a few words: its one value, or how many rows there are."""
    if not rows:
        return "No row matches."
    if len(rows) == 1 and len(rows[0]) == 1:
        return "no value" if rows[0][0] is None else str(rows[0][0])
    if len(rows) <= 5 and all(len(row) == 1 for row in rows):
        return ", ".join("no value" if row[0] is None else str(row[0]) for row in rows)
    return f"{'The first ' if more else ''}{len(rows)} rows."


def doubts(s: AnalystState, calibration: Sequence[CalibrationEntry]) -> list[str]:
    """What a reader of the answer should know, one sentence each."""
    notes = []
    if not s.rows:
        notes.append("No row matches: the question may spell a value otherwise than the database, or the condition is wrong.")
    elif all(cell is None for row in s.rows for cell in row):
        notes.append("Every value of the result is missing in the database.")
    if s.more:
        notes.append(f"Only the first {len(s.rows)} rows are shown.")
    unused = [text for text in quoted(s.sql) if text.lower() not in s.question.lower()]
    if unused:
        notes.append(f"The statement asks for {unused[0]!r}, which the question does not say in these words.")
    expected = accuracy_at(calibration, s.confidence)
    if expected is not None:
        notes.append(f"Answers as sure as this one were right in {expected:.0%} of the validation questions.")
    elif s.confidence is None:
        notes.append("The model gives no probabilities, so nothing says how sure it is.")
    return notes


def quoted(sql: str) -> list[str]:
    """The text values of a statement."""
    return [text.replace("''", "'") for text in re.findall(r"'((?:[^']|'')*)'", sql)]


def accuracy_at(calibration: Sequence[CalibrationEntry], confidence: float | None) -> float | None:
    """Share of right answers among validation answers at least about as sure; None when nothing was measured."""
    if confidence is None or not calibration:
        return None
    below = [entry for entry in calibration if entry.threshold <= confidence]
    return max(below, key=lambda entry: entry.threshold).accuracy if below else None


def likely_table(database: Database, question: str) -> str:
    """The table that the question speaks of most: by its name, its columns' names, and the values stored in it."""
    from factory.tasks.sql.link import link

    words = _words(question)
    score = {table.name: 3.0 * bool(_words(table.name) & words) for table in database.schema.tables}
    owners = [table.name for table, _ in database.schema.columns]
    for table, column in database.schema.columns:
        named = _words(column.name) & words
        score[table.name] += len(named) / max(1, len(_words(column.name)))
    for match in set(link(database, question)):
        if match.column < len(owners):
            score[owners[match.column]] += 2.0 if not re.fullmatch(r"[\d.,]+", match.span) else 0.5
    return max(score, key=lambda name: score[name])


def _words(text: str) -> set[str]:
    """Words of a name or a question, each without its plural s."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).replace("_", " ").lower()
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in re.findall(r"[^\W\d_]+", spaced)}
