"""Events as a person reads them: what happened when, how long it took, what it cost.

Does: turn a run's events into rows for a table, tool calls with arguments and results, sums for each persona.
Does not: draw (`app.picture`) or run anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agents import events as ev
from agents.route import END
from agents.trace import usage_of

LONG = 300


@dataclass(frozen=True)
class Line:
    """One row. `at_ms` since the run began; `ms` what the thing itself took, None where it has no length."""

    at_ms: float
    step: int
    node: str
    what: str
    detail: str
    ms: float | None = None


def lines(events: Sequence[ev.Event]) -> list[Line]:
    """The rows of a run, oldest first; tokens are left out."""
    found = []
    started: dict[tuple[int, str | None], float] = {}
    for event in events:
        told = _told(event)
        if isinstance(event, ev.NodeStarted):
            started[event.step, event.node] = event.at_ms
        if told is None:
            continue
        what, detail, ms = told
        if isinstance(event, ev.NodeEnded):
            ms = event.at_ms - started.get((event.step, event.node), event.at_ms)
        found.append(Line(event.at_ms, event.step, event.node or "", what, detail, ms))
    return found


def table(events: Sequence[ev.Event]) -> list[dict[str, str]]:
    """`lines` for a data frame, three columns that fit beside an answer."""
    return [
        {
            "at ms": f"{line.at_ms:.0f}",
            "what": f"{line.node}: {line.what}" if line.node else line.what,
            "detail": line.detail if line.ms is None else f"{line.ms:.1f} ms. {line.detail}",
        }
        for line in lines(events)
    ]


def model_calls(events: Sequence[ev.Event]) -> list[dict[str, Any]]:
    """One row for each answer of a model: who, with which adapters, tokens, how sure."""
    return [
        {
            "persona": event.persona,
            "model": event.model.rsplit("/", 1)[-1],
            "adapter": ", ".join(one.path.rsplit("/", 1)[-1] for one in event.adapters) or "none",
            "prompt tokens": event.usage.prompt_tokens,
            "reused": event.usage.reused_tokens,
            "written": event.usage.completion_tokens,
            "prefill ms": _rounded(event.timings.prefill_ms),
            "decode ms": _rounded(event.timings.decode_ms),
            "confidence": None if event.confidence is None else round(event.confidence, 3),
            "constraint": event.constraint_kind or "none",
            "ended": event.stop_reason,
        }
        for event in events
        if isinstance(event, ev.ModelCalled)
    ]


def tool_calls(events: Sequence[ev.Event]) -> list[dict[str, Any]]:
    """Each call with its arguments and, once it has returned, its result."""
    calls: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, ev.ToolCalled):
            calls.append(
                {"persona": event.persona, "tool": event.call.name, "arguments": event.call.arguments, "id": event.call.id,
                 "result": None, "ok": None, "ms": None}
            )  # fmt: skip
        elif isinstance(event, ev.ToolReturned):
            for call in calls:
                if call["id"] == event.call_id and call["result"] is None:
                    call.update(result=event.result, ok=event.ok, ms=_rounded(event.ms))
                    break
    return calls


def usage(events: Sequence[ev.Event]) -> list[dict[str, Any]]:
    """Sums for each persona, without columns that are zero for all."""
    rows = [{"persona": name, **asdict(one)} for name, one in usage_of(events).items()]
    kept = [key for key in (rows[0] if rows else {}) if key == "persona" or any(row[key] for row in rows)]
    return [{key: _rounded(row[key]) if isinstance(row[key], float) else row[key] for key in kept} for row in rows]


def _told(event: ev.Event) -> tuple[str, str, float | None] | None:
    """(what, detail, ms) of an event, None for one that is not shown."""
    match event:
        case ev.RunStarted():
            return "run started" if event.resumed_at is None else f"resumed after step {event.resumed_at}", event.graph, None
        case ev.ModelCalled():
            sure = "" if event.confidence is None else f", {event.confidence:.0%} sure"
            used = f"{event.usage.prompt_tokens} prompt tokens ({event.usage.reused_tokens} reused)"
            detail = f"{event.persona} on {event.model.rsplit('/', 1)[-1]}: {used}, {event.usage.completion_tokens} written{sure}"
            return "model answered", detail, event.timings.total_ms
        case ev.ToolCalled():
            return "tool called", _cut(f"{event.call.name}({json.dumps(event.call.arguments, ensure_ascii=False)})"), None
        case ev.ToolReturned():
            return "tool returned" if event.ok else "tool failed", _cut(event.result), event.ms
        case ev.Repaired():
            return f"call mended: {event.rung}", _cut(event.detail), None
        case ev.Guarded():
            return f"guard {event.guard}: {event.verdict}", _cut(event.detail), None
        case ev.Escalated():
            sure = "" if event.confidence is None else f" ({event.confidence:.0%} sure)"
            return "escalated", _cut(f"{event.persona}{sure} → {event.to}: {event.reason}"), None
        case ev.EdgeTaken():
            if not event.probabilities:
                return None  # the picture shows it
            chosen = ", ".join(f"{name} {p:.0%}" for name, p in event.probabilities.items())
            return (
                "way taken",
                f"{event.source} → {'end' if event.target == END else event.target}" + (f" ({chosen})" if chosen else ""),
                None,
            )
        case ev.Interrupted():
            return "waits for you", _cut(f"{event.prompt} {event.value if event.value is not None else ''}"), None
        case ev.Resumed():
            return "answered", _cut(str(event.value)), None
        case ev.Warned():
            return "warning", _cut(event.text), None
        case ev.NodeFailed():
            return "step failed", _cut(event.error), None
        case ev.NodeEnded():
            return "done", "set " + (", ".join([*event.changes, *event.added]) or "nothing"), None
        case ev.RunEnded():
            return f"run ended: {event.reason}", _cut(event.detail), None
    return None


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONG else f"{text[:LONG]}… ({len(text) - LONG} more characters)"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
