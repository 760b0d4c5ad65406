"""What happened in a run: its events in order, as JSON Lines on disk, summed up per persona, and played again.

Does: write and read traces, add up tokens, milliseconds and escalations, and answer a replayed run's models and tools from the
record (`AgentGraph.replay`), saying where the run first differs.
Does not: export to other tracing systems (`agents.telemetry`) or keep threads (`agents.checkpoint`).
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agents import events as ev
from agents.chat import Reply, ToolCall
from agents.route import GraphError


@dataclass(slots=True)
class PersonaUsage:
    """Sums over one persona's calls; tokens, milliseconds, US dollars (None: no backend said a price)."""

    calls: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0
    tool_calls: int = 0
    tool_ms: float = 0.0
    tool_failures: int = 0
    repairs: dict[str, int] = field(default_factory=dict)
    guards: dict[str, int] = field(default_factory=dict)
    escalations: int = 0
    truncated_prompt_tokens: int = 0
    cost_usd: float | None = None


class Trace:
    """Events of one run, in the order they happened."""

    def __init__(self, events: Iterable[ev.Event] = ()) -> None:
        self.events: list[ev.Event] = list(events)
        self.append = self.events.append

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[ev.Event]:
        return iter(self.events)

    def __getitem__(self, index: int) -> ev.Event:
        return self.events[index]

    def of(self, *kinds: type[ev.Event]) -> list[Any]:
        """The events of these types."""
        return [event for event in self.events if isinstance(event, kinds)]

    def to_jsonl(self) -> str:
        """One line of JSON for each event."""
        return "".join(ev.to_json(event) + "\n" for event in self.events)

    def save(self, path: str | Path) -> None:
        """Write the trace whole or not at all."""
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(self.to_jsonl(), "utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace back. Raises GraphError naming the first line that is none."""
        events = []
        try:
            with Path(path).open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        events.append(ev.from_json(line))
                    except (ValueError, TypeError) as error:
                        reason = str(error).splitlines()[0]
                        raise GraphError(f"line {number} of {str(path)!r} is not an event of a trace: {reason}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise GraphError(f"the trace {str(path)!r} cannot be read: {error}") from None
        return cls(events)

    def usage(self) -> dict[str, PersonaUsage]:
        """Sums per persona, in the order they first spoke."""
        return usage_of(self.events)


def usage_of(events: Iterable[ev.Event]) -> dict[str, PersonaUsage]:
    """Sums per persona over any events."""
    sums: dict[str, PersonaUsage] = {}
    for event in events:
        persona = getattr(event, "persona", None)
        if persona is None or isinstance(event, ev.Token):
            continue
        one = sums.setdefault(persona, PersonaUsage())
        if isinstance(event, ev.ModelCalled):
            one.calls += 1
            one.prompt_tokens += event.usage.prompt_tokens
            one.reused_tokens += event.usage.reused_tokens
            one.completion_tokens += event.usage.completion_tokens
            one.prefill_ms += event.timings.prefill_ms
            one.decode_ms += event.timings.decode_ms
            one.total_ms += event.timings.total_ms
            one.truncated_prompt_tokens += event.truncated_prompt_tokens
            if event.usage.cost_usd is not None:
                one.cost_usd = (one.cost_usd or 0.0) + event.usage.cost_usd
        elif isinstance(event, ev.ToolReturned):
            one.tool_calls += 1
            one.tool_ms += event.ms
            one.tool_failures += not event.ok
        elif isinstance(event, ev.Repaired):
            one.repairs[event.rung] = one.repairs.get(event.rung, 0) + 1
        elif isinstance(event, ev.Guarded):
            key = f"{event.guard}: {event.verdict}"
            one.guards[key] = one.guards.get(key, 0) + 1
        elif isinstance(event, ev.Escalated):
            one.escalations += 1
    return sums


def usage_rows(usage: dict[str, PersonaUsage]) -> list[dict[str, Any]]:
    """The same as plain rows with the persona's name first, for a table or a file."""
    return [{"persona": name, **asdict(one)} for name, one in usage.items()]


class ReplayError(GraphError):
    """A replayed run differs from its record: one sentence that says where."""


class Tape:
    """The record that a replay is answered from and compared with."""

    def __init__(self, events: Iterable[ev.Event]) -> None:
        self._replies: dict[tuple[int, str | None, str], deque[ev.ModelCalled]] = defaultdict(deque)
        self._results: dict[tuple[int, str | None, str], deque[tuple[ToolCall, ev.ToolReturned]]] = defaultdict(deque)
        self._shape: dict[tuple[int, str], list[tuple[str, Any]]] = defaultdict(list)
        asked: dict[tuple[int, str | None, str, str], deque[ToolCall]] = defaultdict(deque)
        for event in events:
            if isinstance(event, ev.ModelCalled):
                self._replies[event.step, event.node, event.persona].append(event)
            elif isinstance(event, ev.ToolCalled):
                asked[event.step, event.node, event.persona, event.call.id].append(event.call)
            elif isinstance(event, ev.ToolReturned):
                calls = asked[event.step, event.node, event.persona, event.call_id]
                call = calls.popleft() if calls else ToolCall(id=event.call_id, name=event.name)
                self._results[event.step, event.node, event.persona].append((call, event))
            if (shape := _shape(event)) is not None:
                self._shape[event.step, event.node or ""].append(shape)
        self._begun = {(*place[:3], call.name): call for place, calls in asked.items() for call in calls}

    def reply(self, scope: ev.Scope, persona: str, prompt_sha256: str) -> Reply | None:
        """The next recorded reply of this persona in this step. Raises ReplayError when the record has none for this prompt."""
        recorded = self._replies[scope.step, scope.node, persona]
        where = f"the replay differs at step {scope.step}, node {scope.node!r}: persona {persona!r}"
        if not recorded:
            raise ReplayError(f"{where} asks its model once more than in the record")
        event = next((one for one in recorded if one.prompt_sha256 in ("", prompt_sha256)), None)
        if event is None:
            known = recorded[0].prompt_sha256
            raise ReplayError(f"{where} sends another prompt (sha256 {prompt_sha256[:12]}, recorded {known[:12]})")
        recorded.remove(event)
        if event.reply is None:
            raise ReplayError(f"{where} has no reply in the record: it was written without replies")
        return event.reply

    def result(self, scope: ev.Scope, persona: str, call: ToolCall) -> str | None:
        """The recorded result of this call; None for one that the record leaves waiting. Raises ReplayError for another call."""
        recorded = self._results[scope.step, scope.node, persona]
        where = f"the replay differs at step {scope.step}, node {scope.node!r}: persona {persona!r} calls {call.name}"
        for i, (known, event) in enumerate(recorded):
            if (known.name, known.arguments) == (call.name, call.arguments):
                del recorded[i]
                return event.result
        begun = self._begun.get((scope.step, scope.node, persona, call.name))
        if begun is not None and begun.arguments == call.arguments:
            return None
        raise ReplayError(f"{where}({call.arguments}), which the record does not")

    def compare(self, events: Iterable[ev.Event]) -> None:
        """Raise ReplayError at the first step where `events` took another way or changed the state otherwise."""
        shape: dict[tuple[int, str], list[tuple[str, Any]]] = defaultdict(list)
        for event in events:
            if (one := _shape(event)) is not None:
                shape[event.step, event.node or ""].append(one)
        for step, node in sorted(self._shape.keys() | shape.keys(), key=lambda place: (place[0] or 1 << 60, place[1])):
            was, now = self._shape.get((step, node), []), shape.get((step, node), [])
            for i in range(max(len(was), len(now))):
                old, new = (side[i] if i < len(side) else None for side in (was, now))
                if old != new:
                    at = f"step {step}, node {node!r}" if step else "the end"
                    raise ReplayError(f"the replay differs at {at}: recorded {_told(old)}, now {_told(new)}")


def _told(shape: tuple[str, Any] | None) -> str:
    return "nothing more" if shape is None else f"{shape[0]} {shape[1]!r:.200}"


def _shape(event: ev.Event) -> tuple[str, Any] | None:
    """What must be the same in a replay: nodes, changes, edges, calls, interrupts; not times or tokens."""
    from pydantic_core import to_jsonable_python

    match event:
        case ev.NodeStarted():
            return "node", event.node
        case ev.NodeEnded():
            return "changes", to_jsonable_python([event.changes, event.added], serialize_unknown=True)
        case ev.EdgeTaken():
            return "edge", (event.source, event.target)
        case ev.ToolCalled():
            return "tool call", (event.persona, event.call.name, event.call.arguments)
        case ev.Interrupted():
            return "interrupt", (event.id, event.prompt)
        case ev.NodeFailed():
            return "failure", event.error
        case ev.RunEnded():
            return "end", event.reason
    return None
