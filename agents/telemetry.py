"""Runs as OpenTelemetry spans with the gen_ai.* names of its semantic conventions; and joules, where the machine counts them.

Does: one span for a run, for each node run, model call and tool call, with their real times; repairs, guards, escalations, edges
and interrupts as span events. What was said (prompts, arguments, results) is left out unless `contents=True`.
Does not: configure an exporter: the tracer is OpenTelemetry's own, set up by the program. Needs `opentelemetry-api`
(pip install "penknife[agents]").

    telemetry = Telemetry()                             # live, while a graph runs
    for event in telemetry.watch(g.stream(State(question="where is 17?"))): ...
    export(run.trace)                                   # or afterwards

    with Energy() as used:
        desk("where is 17?")
    used.joules                                         # None where the machine does not say
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agents import events as ev

POWERCAP = Path("/sys/class/powercap")


class Energy:
    """Joules that the processor packages used within a `with` block (RAPL; all programs together, memory where it is counted
    apart). `joules` is None where the machine has no counters or they may not be read."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._root = root
        self._before: dict[Path, int] = {}
        self.joules: float | None = None

    def __enter__(self) -> Self:
        self._before = _counters(self._root)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.joules = self.so_far()

    def so_far(self) -> float | None:
        """Joules since the block began."""
        after = _counters(self._root)
        if not self._before or after.keys() != self._before.keys():
            return None
        used = 0
        for domain, at in after.items():
            gone = at - self._before[domain]
            used += gone if gone >= 0 else gone + _number(domain / "max_energy_range_uj", 0)  # the counter began anew
        return used / 1e6


def _counters(root: Path) -> dict[Path, int]:
    """Microjoules by domain: packages, and memory where it is a domain of a package. A part of a package is counted within it."""
    found: dict[Path, int] = {}
    for domain in sorted(root.glob("intel-rapl:*")) if root.is_dir() else ():
        try:
            name = (domain / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                found[domain] = int((domain / "energy_uj").read_text())
        except (OSError, ValueError):  # readable by the superuser alone, on most machines
            return {}
    return found


def _number(path: Path, otherwise: int) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return otherwise


class Telemetry:
    """Turns the events of one run into spans as they come."""

    def __init__(self, tracer: Any = None, *, contents: bool = False, started_ns: int | None = None) -> None:
        """`tracer` None takes the program's own tracer provider. `started_ns` is when the run began (Unix nanoseconds) for events
        of the past; None: it begins with the first event. Raises ImportError, one sentence, without opentelemetry."""
        try:
            from opentelemetry import trace
        except ImportError:
            raise ImportError("spans need OpenTelemetry; install it with: pip install 'penknife[agents]'") from None
        self._api = trace
        self._tracer = tracer if tracer is not None else trace.get_tracer("penknife.agents")
        self._contents, self._zero = contents, started_ns
        self._energy = Energy() if started_ns is None else None
        self._run: Any = None
        self._nodes: dict[tuple[int, str | None], Any] = {}
        self._tools: dict[tuple[int, str | None, str], Any] = {}
        self._last = 0

    def watch(self, events: Iterable[ev.Event]) -> Iterator[ev.Event]:
        """The same events, each made a part of the spans on its way."""
        try:
            for event in events:
                self.see(event)
                yield event
        finally:
            self.close()

    def see(self, event: ev.Event) -> None:
        """Take in one event, in the order they happened."""
        if self._zero is None:
            self._zero = time.time_ns() - round(event.at_ms * 1e6)
            if self._energy is not None:
                self._energy.__enter__()
        at = self._zero + round(event.at_ms * 1e6)
        self._last = max(self._last, at)
        key = (event.step, event.node)
        if isinstance(event, ev.RunStarted):
            self._run = self._begin(f"invoke_workflow {event.graph}", None, at, {
                "gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": event.graph,
                "gen_ai.conversation.id": event.thread, "penknife.resumed_at": event.resumed_at,
            })  # fmt: skip
        elif isinstance(event, ev.NodeStarted):
            self._end(self._nodes.pop(key, None), at)
            told = {"penknife.node": event.node, "penknife.step": event.step, "penknife.attempt": event.attempt}
            self._nodes[key] = self._begin(f"node {event.node}", self._run, at, told)
        elif isinstance(event, ev.ModelCalled):
            self._model(event, at, key)
        elif isinstance(event, ev.ToolCalled):
            call = event.call
            self._tools[event.step, event.node, call.id] = self._begin(f"execute_tool {call.name}", self._at(key), at, {
                "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": call.name, "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": call.id, "gen_ai.agent.name": event.persona,
                "gen_ai.tool.call.arguments": _json(call.arguments) if self._contents else None,
            })  # fmt: skip
        elif isinstance(event, ev.ToolReturned):
            span = self._tools.pop((event.step, event.node, event.call_id), None)
            if span is not None:
                if self._contents:
                    span.set_attribute("gen_ai.tool.call.result", event.result)
                self._end(span, at, None if event.ok else "tool_error")
        elif isinstance(event, ev.NodeFailed):
            self._end(self._nodes.pop(key, None), at, "node_error", event.error if self._contents else "")
        elif isinstance(event, ev.NodeEnded):
            self._end(self._nodes.pop(key, None), at)
        elif isinstance(event, ev.RunEnded):
            self._finish(at, event)
        elif not isinstance(event, ev.Token):
            self._note(event, at, key)

    def close(self) -> None:
        """End what is still open; twice is harmless."""
        for span in [*self._tools.values(), *self._nodes.values()]:
            self._end(span, self._last, "abandoned")
        self._tools.clear()
        self._nodes.clear()
        self._end(self._run, self._last, "abandoned")
        self._run = None

    def _finish(self, at: int, event: ev.RunEnded) -> None:
        run, self._run = self._run, None
        for span in self._nodes.values():  # a node that waits for a person has no end of its own
            self._end(span, at)
        self._nodes.clear()
        if run is not None:
            run.set_attribute("penknife.end_reason", event.reason)
            joules = self._energy.so_far() if self._energy is not None else None
            if joules is not None:
                run.set_attribute("penknife.energy.joules", joules)
        self._end(run, at, "error" if event.reason == "error" else None, event.detail if self._contents else "")

    def _model(self, event: ev.ModelCalled, at: int, key: tuple[int, str | None]) -> None:
        sampling, usage = event.sampling, event.usage
        remote = event.model.startswith(("http://", "https://"))
        name = event.model.rpartition("#")[2] or event.model
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai" if remote else "penknife",
            "gen_ai.request.model": name, "gen_ai.response.model": name, "gen_ai.agent.name": event.persona,
            "gen_ai.response.finish_reasons": [event.stop_reason], "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens, "gen_ai.usage.cache_read.input_tokens": usage.reused_tokens,
            "penknife.prefill_ms": event.timings.prefill_ms, "penknife.decode_ms": event.timings.decode_ms,
            "penknife.queue_ms": event.timings.queue_ms, "penknife.confidence": event.confidence,
            "penknife.adapters": [f"{one.path}@{one.scale:g}" for one in event.adapters] or None,
            "penknife.constraint": event.constraint_kind, "penknife.prompt_sha256": event.prompt_sha256 or None,
            "penknife.card_sha256": event.card_sha256, "penknife.model_sha256": event.model_sha256,
            "penknife.truncated_prompt_tokens": event.truncated_prompt_tokens or None,
        }  # fmt: skip
        if sampling is not None:
            attributes |= {
                "gen_ai.request.temperature": sampling.temperature, "gen_ai.request.max_tokens": sampling.max_tokens,
                "gen_ai.request.top_p": sampling.top_p, "gen_ai.request.seed": sampling.seed,
                "gen_ai.request.stop_sequences": list(sampling.stop) or None,
            }  # fmt: skip
        if self._contents:
            said = [_message(message.role, message.content) for message in event.messages]
            attributes["gen_ai.input.messages"] = _json(said)
            if event.reply is not None:
                answer = {**_message("assistant", event.reply.text), "finish_reason": event.stop_reason}
                attributes["gen_ai.output.messages"] = _json([answer])
        kind = self._api.SpanKind.CLIENT if remote else self._api.SpanKind.INTERNAL
        began = at - round(max(0.0, event.timings.total_ms) * 1e6)
        span = self._begin(f"chat {name}", self._at(key), max(began, self._zero or 0), attributes, kind)
        self._end(span, at, event.stop_reason if event.stop_reason in ("error", "timeout") else None)

    def _note(self, event: ev.Event, at: int, key: tuple[int, str | None]) -> None:
        """Everything else is an event of the node's span, or of the run's."""
        span = self._at(key)
        if span is None:
            return
        told: dict[str, Any] = {}
        if isinstance(event, ev.Repaired):
            told = {"gen_ai.agent.name": event.persona, "rung": event.rung, "detail": event.detail if self._contents else None}
        elif isinstance(event, ev.Guarded):
            told = {"gen_ai.agent.name": event.persona, "guard": event.guard, "verdict": event.verdict}
        elif isinstance(event, ev.Escalated):
            told = {"gen_ai.agent.name": event.persona, "to": event.to, "reason": event.reason, "confidence": event.confidence}
        elif isinstance(event, ev.EdgeTaken):
            told = {"source": event.source, "target": event.target, "probabilities": _json(event.probabilities or {})}
            span = self._run if self._run is not None else span
        elif isinstance(event, ev.Interrupted):
            told = {"id": event.id, "prompt": event.prompt if self._contents else None}
        elif isinstance(event, ev.Warned):
            told = {"text": event.text}
        span.add_event(f"penknife.{event.kind}", _known(told), timestamp=at)

    def _at(self, key: tuple[int, str | None]) -> Any:
        """The span of the node an event belongs to; of an inner graph's node that has none, the outer one's."""
        return self._nodes.get(key) or self._nodes.get((key[0], (key[1] or "").partition("/")[0])) or self._run

    def _begin(self, name: str, parent: Any, at: int, attributes: dict[str, Any], kind: Any = None) -> Any:
        context = self._api.set_span_in_context(parent) if parent is not None else None
        kind = kind if kind is not None else self._api.SpanKind.INTERNAL
        return self._tracer.start_span(name, context=context, kind=kind, attributes=_known(attributes), start_time=at)

    def _end(self, span: Any, at: int, error: str | None = None, detail: str = "") -> None:
        if span is None:
            return
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, detail or None))
        span.end(end_time=at)


def export(events: Iterable[ev.Event], tracer: Any = None, *, contents: bool = False, ended_ns: int | None = None) -> int:
    """Spans of a run that is over (`run.trace`, or a trace loaded from a file); returns how many events were read.

    Traces hold times since the run's start; `ended_ns` places its end on the clock (Unix nanoseconds), None takes now."""
    known = list(events)
    if known:
        end = ended_ns if ended_ns is not None else time.time_ns()
        telemetry = Telemetry(tracer, contents=contents, started_ns=end - round(known[-1].at_ms * 1e6))
        for _ in telemetry.watch(known):
            pass
    return len(known)


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
