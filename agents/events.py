"""Everything that happens in a run, as typed events; and the scope through which personas and tools reach the run they are in.

Does: define the events that the UI, the trace and the tests read from one stream; write and read them as JSON; let code deep
inside a node `emit` an event, run something at most once per step (`memo`), take a recorded answer instead of asking again
(`replayed`, `replayed_result`) and see whether it is still wanted (`cancelled`, `time_left_s`). Outside a run all of these do
nothing, so that a persona is a plain function too.
Does not: run nodes (`agents.loop`) or keep files (`agents.checkpoint`, `agents.trace`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, Protocol

from agents.chat import Adapter, Message, Reply, Sampling, StopReason, Timings, ToolCall, Usage

EndReason = Literal["end", "interrupted", "max_steps", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every event has. `at_ms` counts from the start of the run; `step` is its node run's, from 1 (0: the run)."""

    kind: ClassVar[str] = ""
    at_ms: float = 0.0
    step: int = 0
    node: str | None = None
    thread: str | None = None


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A run begins, or goes on (`resumed_at` is then the last finished step). `state` is the state's JSON."""

    kind: ClassVar[str] = "run_started"
    graph: str
    state: dict[str, Any] = field(default_factory=dict)
    resumed_at: int | None = None


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """A person's answer to interrupt number `number` of the node in this step."""

    kind: ClassVar[str] = "resumed"
    value: Any = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class NodeStarted(Event):
    """A node begins; `attempt` counts from 1."""

    kind: ClassVar[str] = "node_started"
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Token(Event):
    """A piece of a persona's answer as it is decided; never half a character."""

    kind: ClassVar[str] = "token"
    persona: str
    text: str


@dataclass(frozen=True, slots=True)
class ModelCalled(Event):
    """A model answered. With `reply` the call can be replayed; the hashes say which model, adapters and card it was."""

    kind: ClassVar[str] = "model_called"
    persona: str
    model: str
    adapters: tuple[Adapter, ...] = ()
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    stop_reason: StopReason = "stop"
    confidence: float | None = None
    prompt_sha256: str = ""
    sampling: Sampling | None = None
    constraint_kind: str | None = None
    card_sha256: str | None = None
    model_sha256: str | None = None
    truncated_prompt_tokens: int = 0
    messages: tuple[Message, ...] = ()
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class ToolCalled(Event):
    """A tool is about to be called with validated arguments."""

    kind: ClassVar[str] = "tool_called"
    persona: str
    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolReturned(Event):
    """What the tool said, as the model reads it. `ok` False: it failed, and `result` is the message about it;
    a bug keeps its `traceback`."""

    kind: ClassVar[str] = "tool_returned"
    persona: str
    call_id: str
    name: str
    result: str
    ms: float = 0.0
    ok: bool = True
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Repaired(Event):
    """A malformed call was mended, or sent back, on this rung of the ladder (`agents.repair`)."""

    kind: ClassVar[str] = "repaired"
    persona: str
    rung: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Guarded(Event):
    """A guard did something other than pass."""

    kind: ClassVar[str] = "guarded"
    persona: str
    guard: str
    verdict: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Escalated(Event):
    """A cascade went on to a larger model. The question and both answers make a training row (`agents.harvest`)."""

    kind: ClassVar[str] = "escalated"
    persona: str
    to: str
    reason: str
    confidence: float | None = None
    messages: tuple[Message, ...] = ()
    answer: str = ""
    better: str | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class EdgeTaken(Event):
    """The way from one node to the next; `probabilities` when a model chose it."""

    kind: ClassVar[str] = "edge_taken"
    source: str
    target: str
    probabilities: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Interrupted(Event):
    """A node waits for a person. `id` is "step.number": the n-th interrupt of that step."""

    kind: ClassVar[str] = "interrupted"
    id: str
    prompt: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something the reader of the trace should know: a lost piece, a costly layout, a doubtful outcome."""

    kind: ClassVar[str] = "warned"
    text: str


@dataclass(frozen=True, slots=True)
class NodeFailed(Event):
    """One attempt of a node failed; `retried` says whether another follows."""

    kind: ClassVar[str] = "node_failed"
    error: str
    attempt: int = 1
    retried: bool = False


@dataclass(frozen=True, slots=True)
class NodeEnded(Event):
    """A node is done: the fields it set, and what it added to list, dict and set fields."""

    kind: ClassVar[str] = "node_ended"
    changes: dict[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunEnded(Event):
    """The run stops, and why; `detail` is a sentence where the reason alone does not say it."""

    kind: ClassVar[str] = "run_ended"
    reason: EndReason
    detail: str = ""


KINDS: dict[str, type[Event]] = {
    event.kind: event
    for event in (
        RunStarted, Resumed, NodeStarted, Token, ModelCalled, ToolCalled, ToolReturned, Repaired, Guarded, Escalated,
        EdgeTaken, Interrupted, Warned, NodeFailed, NodeEnded, RunEnded,
    )
}  # fmt: skip


@cache
def adapter_of(kind: str) -> Any:
    """pydantic's adapter for the events of one kind."""
    from pydantic import TypeAdapter

    return TypeAdapter(KINDS[kind])


def to_json(event: Event) -> str:
    """One line of JSON with the kind first. Values that JSON does not know become what pydantic makes of them, else repr."""
    from pydantic_core import to_jsonable_python

    body = to_jsonable_python(event, exclude_none=True, serialize_unknown=True)
    return json.dumps({"kind": event.kind, **body}, ensure_ascii=False, separators=(",", ":"))


def from_json(line: str | bytes) -> Event:
    """The event of one line. Raises ValueError naming an unknown kind or a field that does not fit."""
    return event_of(json.loads(line))


def event_of(body: Any) -> Event:
    """The event that this JSON object is; what it leaves out has its default. Raises ValueError as `from_json` does."""
    kind = body.pop("kind", None) if isinstance(body, dict) else None
    if kind not in KINDS:
        raise ValueError(f"unknown event kind {kind!r}; known: {', '.join(KINDS)}")
    event: Event = adapter_of(kind).validate_json(json.dumps(body))
    return event


class Memos(Protocol):
    """Results of side effects by (thread, step, key), kept before the step ends (`agents.checkpoint`)."""

    def once(self, thread: str, step: int, key: str, compute: Callable[[], str]) -> str: ...


class Tape(Protocol):
    """Recorded answers of an earlier run (`agents.trace.Tape`)."""

    def reply(self, scope: Scope, persona: str, prompt_sha256: str) -> Reply | None: ...

    def result(self, scope: Scope, persona: str, call: ToolCall) -> str | None: ...


Sink = Callable[[Event], None]


@dataclass(slots=True)
class Scope:
    """One node run as the code inside it sees it. `deadline` is in time.monotonic seconds; `questions` are the
    [prompt, value] that `answers` were given to."""

    sink: Sink
    started: float
    thread: str | None = None
    step: int = 0
    node: str | None = None
    attempt: int = 1
    answers: tuple[Any, ...] = ()
    asked: int = 0
    memos: Memos | None = None
    uses: dict[str, int] | None = None
    tape: Tape | None = None
    deadline: float | None = None
    cancelled: Callable[[], bool] | None = None
    questions: tuple[Any, ...] = ()

    def wanted_no_more(self) -> bool:
        """Whether the node's time is up or its run was cancelled."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            return True
        return self.cancelled is not None and self.cancelled()


current: ContextVar[Scope | None] = ContextVar("agents.current", default=None)
_set = object.__setattr__


def emit(event: Event) -> None:
    """Hand an event to the run this code is in, with its time, step, node and thread filled in; nothing outside a run."""
    scope = current.get()
    if scope is None:
        return
    _set(event, "at_ms", (time.perf_counter() - scope.started) * 1000.0)
    _set(event, "step", scope.step)
    _set(event, "node", scope.node)
    _set(event, "thread", scope.thread)
    scope.sink(event)


def memo(key: str, compute: Callable[[], str]) -> str:
    """`compute()` at most once per step id and key, its result kept before the step ends; outside a run it just computes.

    The n-th use of the same key within one step is its own entry, so that a tool may be meant twice. When an earlier attempt died
    between the claim and the result, nothing is run again: raises UnknownOutcome, which says so to the model or the caller.
    """
    scope = current.get()
    if scope is None or scope.memos is None:
        return compute()
    uses = scope.uses = scope.uses if scope.uses is not None else {}
    nth = uses[key] = uses.get(key, -1) + 1
    return scope.memos.once(scope.thread or "", scope.step, f"{scope.node}:{key}#{nth}", compute)


class UnknownOutcome(Exception):
    """A side effect was begun and its result never written: it may or may not have happened, and is not run twice."""


def replayed(persona: str, prompt_sha256: str) -> Reply | None:
    """The recorded reply to this prompt when the run is a replay, else None: ask the model.

    Raises GraphError saying where, when the recorded run asked something else here.
    """
    scope = current.get()
    return None if scope is None or scope.tape is None else scope.tape.reply(scope, persona, prompt_sha256)


def replayed_result(persona: str, call: ToolCall) -> str | None:
    """The recorded result of this tool call when the run is a replay; None elsewhere, or when the record has no result of it."""
    scope = current.get()
    return None if scope is None or scope.tape is None else scope.tape.result(scope, persona, call)


def cancelled() -> bool:
    """Whether the node's answer is no longer wanted: the run was cancelled or the node's time is up. Ask between tokens."""
    scope = current.get()
    return scope is not None and scope.wanted_no_more()


def time_left_s() -> float | None:
    """Seconds until the node's time limit, for a request's `timeout_s`; None without one."""
    scope = current.get()
    return None if scope is None or scope.deadline is None else max(0.0, scope.deadline - time.monotonic())
