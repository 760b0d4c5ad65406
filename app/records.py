"""Runs on record: a browser's finished turns, looked through, replayed, exported.

Does: list what `app.turns` kept, filter it, read a trace back, replay it on the graph it came from, join traces to JSONL, and
show a thread's states step by step.
Does not: ask a model: a replay takes every answer from the record.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.events import Event, RunEnded
from agents.graph import AgentGraph
from agents.route import GraphError
from agents.trace import Trace
from app.artifacts import Artifact
from app.wiring import GraphName, Setup

SHOWN = 500


@dataclass(frozen=True)
class Record:
    """One finished turn. `about` is what it was asked with."""

    path: Path
    question: str
    thread: str
    status: str
    at: float
    about: dict[str, Any]

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.at).strftime("%Y-%m-%d %H:%M:%S")

    @property
    def graph(self) -> str:
        return str(self.about.get("graph", "analyst"))


def records(directory: Path) -> tuple[list[Record], int]:
    """(the latest turns, newest first; how many files could not be read)."""
    found: list[Record] = []
    damaged = 0
    for file in sorted(directory.glob("*.json"), reverse=True)[:SHOWN] if directory.is_dir() else ():
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            found.append(
                Record(file.with_suffix(".jsonl"), str(about["question"]), str(about["thread"]), str(about["status"]),
                       float(about["at"]), about)
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            damaged += 1
    return found, damaged


def filtered(found: Iterable[Record], text: str = "", status: str = "", thread: str = "") -> list[Record]:
    """Those whose question, SQL or model has the text, letter case aside, and whose status and thread are these ("": any)."""
    words = text.lower().split()
    return [
        record
        for record in found
        if (not status or record.status == status)
        and (not thread or record.thread == thread)
        and all(word in f"{record.question} {json.dumps(record.about, ensure_ascii=False)}".lower() for word in words)
    ]


def table(found: Sequence[Record]) -> list[dict[str, str]]:
    """Rows for a data frame."""
    return [
        {"when": record.when, "question": record.question, "status": record.status, "graph": record.graph,
         "model": Path(str(record.about.get("artifact", ""))).name, "database": Path(str(record.about.get("database", ""))).name,
         "thread": record.thread}
        for record in found
    ]  # fmt: skip


def events_of(record: Record) -> list[Event]:
    """The trace of a turn. Raises GraphError when it cannot be read."""
    return list(Trace.load(record.path))


def jsonl(found: Sequence[Record]) -> str:
    """The traces of these turns, one event a line, each turn headed by a line of what it was asked with."""
    lines = []
    for record in found:
        lines.append(json.dumps({"kind": "turn", **record.about}, ensure_ascii=False) + "\n")
        if record.path.is_file():
            lines.append(record.path.read_text(encoding="utf-8"))
    return "".join(lines)


def setup_of(about: dict[str, Any], artifacts: Sequence[Artifact]) -> Setup:
    """What a turn was asked with, found again. Raises GraphError for a file that is gone."""
    by_path = {str(one.path): one for one in artifacts}
    chosen = by_path.get(str(about.get("artifact")))
    database = Path(str(about.get("database", "")))
    if chosen is None:
        raise GraphError(f"its model {about.get('artifact')} is not there any more, so the run cannot be set up again")
    if not database.is_file():
        raise GraphError(f"its database {database.name} is not there any more, so the run cannot be set up again")
    larger, route, tools = (by_path.get(str(about.get(name))) for name in ("larger", "route", "tools"))
    graph: GraphName = "blades" if about.get("graph") == "blades" else "analyst"
    return Setup(chosen, database, str(about.get("table", "")), bool(about.get("approve")), larger, graph, route, tools)


def replay(record: Record, graph: Callable[[], AgentGraph]) -> str:
    """Run a turn again from its record; one sentence on how it went. Raises GraphError (a difference is a ReplayError).

    A turn that waited for a person is replayed up to there: what follows is another run, which begins in the middle."""
    events = events_of(record)
    end = next((at for at, event in enumerate(events, 1) if isinstance(event, RunEnded)), len(events))
    run = graph().replay(Trace(_from_one(events[:end])))
    left = "" if end == len(events) else " What came after your answer is another run and was left out."
    return f"The same again: {run.steps} steps, ended as {run.reason!r}, without asking a model.{left}"


def _from_one(events: Sequence[Event]) -> list[Event]:
    """The events with steps counted from 1: a thread's second question goes on with the numbers of its first."""
    before = min((event.step for event in events if event.step > 0), default=1) - 1
    return [dataclasses.replace(event, step=event.step - before) if event.step > 0 else event for event in events]


def states(graph: AgentGraph, thread: str, store: Any) -> list[dict[str, Any]]:
    """A thread step by step: what ran, and the state after it. Raises GraphError for an unknown thread."""
    return [
        {"step": shot.step, "kind": shot.kind, "node": shot.node or "", "next": ", ".join(shot.next), "at": shot.at,
         "state": shot.state.model_dump(mode="json")}
        for shot in graph.history(thread, store)
    ]  # fmt: skip
