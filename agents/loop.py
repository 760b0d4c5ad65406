"""The one loop that runs a graph: rounds of nodes that are ready, their changes merged, their routes followed, events on the way.

Does: hand each node its own copy of the state, take what it returns, decide on retries, interrupts and the end, let a join wait
for every branch that still comes to it, write one row per finished step, and build itself again from such rows.
Does not: call nodes (`agents.drive`), check a graph (`agents.topology`), open stores (`agents.graph`) or know models.

A step is one run of one node; steps are numbered from 1 within a thread, the same way every time, so that a step id means the
same before and after a kill. Nodes of one round see the state as it was before the round.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from agents import events as ev
from agents.checkpoint import Memory, Row, Store
from agents.events import Scope
from agents.interrupts import Interrupt
from agents.route import END, Goto, GraphError
from agents.state import Changes, Fields
from agents.stored_events import pack
from agents.topology import Node, Plan, Route, near
from agents.trace import Trace

_KEPT = (ev.ModelCalled, ev.ToolCalled, ev.ToolReturned, ev.Repaired, ev.Guarded, ev.Escalated, ev.Warned, ev.NodeFailed)


class NodeError(GraphError):
    """A node failed for good; the node's own exception is the `__cause__`, the run so far is `.run`."""


@dataclass(slots=True)
class Task:
    """One step: a node to run once. `origins` are the forks its branch came from."""

    step: int
    node: Node
    private: dict[str, Any] | None = None
    origins: frozenset[str] = frozenset()
    answers: tuple[Any, ...] = ()
    questions: tuple[Any, ...] = ()
    changes: Changes | None = None
    routes: Sequence[Route] = ()
    base: BaseModel | None = None
    interrupt: ev.Interrupted | None = None
    error: Exception | None = None

    def wait(self, asked: ev.Interrupted) -> None:
        """Wait for a person; what was answered from this question on no longer counts."""
        number = int(asked.id.rpartition(".")[2])
        self.answers, self.questions, self.interrupt = self.answers[:number], self.questions[:number], asked

    def take(self, value: Any) -> None:
        """The answer to what is waited for."""
        assert self.interrupt is not None
        asked = [self.interrupt.prompt, self.interrupt.value]
        self.answers, self.questions, self.interrupt = (*self.answers, value), (*self.questions, asked), None


@dataclass(slots=True)
class Arrival:
    """A node that is to run, and where its branch came from."""

    target: str
    private: dict[str, Any] | None = None
    origins: frozenset[str] = frozenset()


@dataclass(slots=True)
class Loop:
    """A run on its way. The drivers (`agents.drive`) ask `ready()`, run those tasks and call `close_round()`."""

    plan: Plan
    fields: Fields
    state: BaseModel
    max_steps: int = 50
    thread: str | None = None
    store: Store | None = None
    number: int = 0
    cancelled: Callable[[], bool] | None = None
    tape: ev.Tape | None = None
    listener: ev.Sink | None = None
    started: float = field(default_factory=time.perf_counter)
    trace: Trace = field(default_factory=Trace)
    step: int = 0
    seq: int = 0
    taken: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    round: list[Task] = field(default_factory=list)
    reason: ev.EndReason | None = None
    detail: str = ""
    memos: ev.Memos | None = None
    keep: bool = True
    kept: dict[int, list[ev.Event]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    # --- events

    def now(self) -> float:
        return (time.perf_counter() - self.started) * 1000.0

    def sink(self, event: ev.Event) -> None:
        """Take an event of this run: into the trace, to the listener, and to the store with its step."""
        self.trace.append(event)
        if self.store is not None and self.keep and isinstance(event, _KEPT):
            self.kept.setdefault(event.step, []).append(event)
        if self.listener is not None:
            self.listener(event)

    # --- threads

    def begin(self) -> None:
        """A new run from the state given, at the graph's start."""
        self.write("start", None, b'{"state":' + self._dumped(self.state.__dict__) + b"}", self.step)
        self.arrivals = [Arrival(self.plan.start)]

    def restore(self, rows: Sequence[Row], until: int | None = None) -> int:
        """Be where a thread's rows left off, or after step `until`; returns how many rows were used."""
        used = 0
        for row in rows:
            if until is not None and row.step > until:
                break
            used += 1
            self.seq = row.seq + 1
            if row.kind == "error":
                continue
            body = json.loads(row.data)
            if row.kind == "start":
                values = {name: self.fields.loaded(name, value) for name, value in body["state"].items()}
                missing = (
                    {n: getattr(self.state, n) for n in self.fields.names if n not in values} if self.state is not None else {}
                )
                self.state = self.fields.cls.model_construct(**{**missing, **values})
                self.step, self.round, self.arrivals = row.step, [], [Arrival(self.plan.start)]
                continue
            if not self.round:
                self.open_round()
            task = next((one for one in self.round if one.step == row.step), None)
            if task is None or task.node.name != row.node:
                known = ", ".join(f"{one.step} {one.node.name!r}" for one in self.round) or "none"
                raise GraphError(
                    f"the stored thread ran node {row.node!r} at step {row.step}, where {self.plan.name!r} now has {known}: "
                    f"use the graph that wrote it, or fork before that step"
                )
            if row.kind == "interrupt":
                task.wait(ev.Interrupted(body["id"], body["prompt"], body.get("value"), step=row.step, node=row.node))
            elif row.kind == "answer":
                task.take(body["value"])
            else:
                task.changes = self.fields.restore(body)
                task.routes = [Route(r) if isinstance(r, str) else Route(*r) for r in body["r"]]
                if all(one.changes is not None for one in self.round):
                    self._merge()
        return used

    def answer(self, value: Any) -> None:
        """Answer the first interrupt that waits."""
        task = next(one for one in self.round if one.interrupt is not None)
        event = ev.Resumed(value, len(task.answers), at_ms=self.now(), step=task.step, node=task.node.name, thread=self.thread)
        self.write("answer", task.node.name, self._dumped({"value": value}), task.step)
        task.take(value)
        self.sink(event)

    def _dumped(self, value: Any) -> bytes:
        if self.store is None:
            return b"{}"
        try:
            return to_json(value)
        except Exception as error:
            raise GraphError(f"the state cannot be written to the store: {error}") from None

    def write(self, kind: str, node: str | None, data: bytes, step: int) -> None:
        if self.store is None:
            return
        with self.lock:
            kept = self.kept.pop(step, None)
            self.store.append(self.number, self.seq, kind, step, node, data.decode(), None if kept is None else pack(kept))
            self.seq += 1

    # --- rounds

    def open_round(self) -> None:
        """Turn arrivals into tasks. A join stays behind while another branch can still come to it."""
        arrivals = self.arrivals
        if len(arrivals) > 1:
            held = {id(one) for one in arrivals if self._waits(one, arrivals)}
            if len(held) == len(arrivals):
                held = set()
            self.arrivals = [one for one in arrivals if id(one) in held]
            arrivals = [one for one in arrivals if id(one) not in held]
        else:
            self.arrivals = []
        tasks = []
        for one in arrivals:
            self.step += 1
            tasks.append(Task(self.step, self.plan.nodes[one.target], one.private, one.origins))
        self.round = tasks

    def _waits(self, one: Arrival, arrivals: Sequence[Arrival]) -> bool:
        if one.private is not None or one.target not in self.plan.joins:
            return False
        for other in arrivals:
            if other.target != one.target:
                forks = one.origins & other.origins
                if one.target in self.plan.reach(other.target, forks) and other.target not in self.plan.reach(one.target, forks):
                    return True
        return False

    def ready(self) -> list[Task]:
        """Tasks to run now; empty when the run is over, with the reason set."""
        if self.reason is not None:
            return []
        if not self.round:
            if not self.arrivals:
                self.end("end")
                return []
            self.open_round()
        todo = [task for task in self.round if task.changes is None and task.interrupt is None]
        if not todo:
            self._still_waiting()
            return []
        if self.cancelled is not None and self.cancelled():
            self.end("cancelled")
            return []
        if self.taken + len(todo) > self.max_steps:
            names = ", ".join(repr(task.node.name) for task in todo[:3])
            more = "; resume the thread to go on" if self.store is not None else ""
            self.end("max_steps", f"{self.taken} steps taken, {names} would be more than max_steps={self.max_steps}{more}")
            return []
        self.taken += len(todo)
        return todo

    def _still_waiting(self) -> None:
        for task in self.round:
            if (asked := task.interrupt) is not None and not asked.at_ms:
                task.interrupt = replace(asked, at_ms=self.now(), thread=self.thread)
                self.sink(task.interrupt)
        self.end("interrupted")

    def close_round(self) -> None:
        """After every task was tried: merge and go on, or end the run. Raises the error of a node that failed for good."""
        undone = [task for task in self.round if task.changes is None]
        if not undone:
            try:
                self._merge()
            except GraphError as error:
                self.end("error", str(error))
                raise
            return
        for task in undone:
            if task.error is not None:
                self.end("error", str(task.error))
                raise task.error
        if any(task.interrupt is not None for task in undone):
            self._still_waiting()
        else:
            self.end("cancelled")

    def _merge(self) -> None:
        tasks = self.round
        self.fields.merge(self.state, [(task.node.name, task.changes) for task in tasks if task.changes is not None])
        merged: dict[str, Arrival] = {one.target: one for one in self.arrivals if one.private is None}
        for task in tasks:
            ways = [route for route in task.routes if route.target != END]
            origins = task.origins | {task.node.name} if len(ways) > 1 else task.origins
            for route in ways:
                if route.target not in self.plan.nodes:
                    raise GraphError(f"the stored thread goes to {route.target!r}, which graph {self.plan.name!r} no longer has")
                if route.private is None and route.target in merged:
                    merged[route.target].origins |= origins
                    continue
                arrival = Arrival(route.target, route.private, origins)
                self.arrivals.append(arrival)
                if route.private is None:
                    merged[route.target] = arrival
        self.round = []

    def end(self, reason: ev.EndReason, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        self.sink(ev.RunEnded(reason, detail, at_ms=self.now(), thread=self.thread))

    # --- one step

    def enter(self, task: Task, attempt: int) -> tuple[Scope, BaseModel]:
        """A node begins: its scope and its own copy of the state."""
        node = task.node
        name, thread = node.name, self.thread
        if self.memos is None:
            self.memos = self.store if self.store is not None else Memory()
        scope = Scope(self.sink, self.started, thread, task.step, name, attempt, task.answers, 0, self.memos)
        scope.tape, scope.cancelled, scope.questions = self.tape, self.cancelled, task.questions
        if node.timeout_s is not None:
            scope.deadline = time.monotonic() + node.timeout_s
        self.sink(ev.NodeStarted(attempt, at_ms=self.now(), step=task.step, node=name, thread=thread))
        if task.base is None:
            task.base = self.state if task.private is None else self.fields.overlaid(self.state, task.private)
        return scope, self.fields.copy(task.base)

    def leave(self, task: Task, mine: BaseModel, value: Any) -> None:
        """A node returned: understand, validate and write what it did. Raises GraphError for what it cannot return."""
        if self.cancelled is not None and self.cancelled():
            return
        node, fields = task.node, self.fields
        base = task.base
        assert base is not None
        gotos: Sequence[Goto] | None = None
        if isinstance(value, fields.cls):
            changes = fields.difference(base, value)
        elif type(value) is Changes:
            changes = value
        else:
            changes = fields.difference(base, mine)
            if isinstance(value, Goto):
                gotos = (value,)
            elif isinstance(value, Mapping):
                fields.returned(value, changes)
            elif isinstance(value, list | tuple) and value and all(isinstance(one, Goto) for one in value):
                gotos = value
            elif value is not None:
                raise GraphError(
                    f"node {node.name!r} returned {value!r:.60} ({type(value).__name__}): return a {fields.cls.__name__}, a dict "
                    f"of changes, g.goto(...), a list of gotos, or None"
                )
            for goto in gotos or ():
                if goto.state_update is not None:
                    fields.returned(goto.state_update, changes)
        if changes.assigned or changes.added:
            try:
                fields.validate(base, mine, changes)
            except GraphError as error:
                raise GraphError(f"node {node.name!r}: {error}") from None
        routes = self.plan.routes[node.name] if gotos is None else self._routes(node, gotos)
        if not routes:
            raise GraphError(
                f"node {node.name!r} returned no goto and has no edge: add g.edge({node.name!r}, ...) or return g.goto(...)"
            )
        if self.store is not None:
            ways = [r.target if r.private is None else [r.target, r.private] for r in routes]
            self.write("node", node.name, self._dumped({"s": changes.assigned, "a": changes.added, "r": ways}), task.step)
        sink, thread, name, step = self.sink, self.thread, node.name, task.step
        at = self.now()
        sink(ev.NodeEnded(changes.assigned, changes.added, at_ms=at, step=step, node=name, thread=thread))
        for route in routes:
            sink(ev.EdgeTaken(name, route.target, route.probabilities, at_ms=at, step=step, node=name, thread=thread))
        task.routes, task.changes = routes, changes

    def _routes(self, node: Node, gotos: Sequence[Goto]) -> list[Route]:
        for goto in gotos:
            if goto.target != END and goto.target not in self.plan.nodes:
                raise GraphError(
                    f"node {node.name!r} goes to {goto.target!r}, which is no node; {near(goto.target, list(self.plan.nodes))}"
                )
            if node.goes is not None and goto.target not in node.goes and goto.target not in self.plan.edges[node.name]:
                raise GraphError(f"node {node.name!r} goes to {goto.target!r}, but says goes={list(node.goes)}: name it there")
        return [Route(goto.target, goto.input, goto.probabilities) for goto in gotos]

    def pause(self, task: Task, asked: Interrupt) -> None:
        """A node waits for a person."""
        if self.cancelled is not None and self.cancelled():
            return
        ident = f"{task.step}.{asked.number}"
        self.write(
            "interrupt", task.node.name, self._dumped({"id": ident, "prompt": asked.prompt, "value": asked.value}), task.step
        )
        event = ev.Interrupted(
            ident, asked.prompt, asked.value, at_ms=self.now(), step=task.step, node=task.node.name, thread=self.thread
        )
        task.wait(event)
        self.sink(event)

    def failed(self, task: Task, error: Exception, attempt: int) -> bool:
        """Whether to try the node again. A GraphError says that the graph is wrong, which no retry mends."""
        again = attempt <= task.node.retries and not isinstance(error, GraphError)
        text = f"{type(error).__name__}: {error}" if not isinstance(error, GraphError) else str(error)
        self.sink(ev.NodeFailed(text, attempt, again, at_ms=self.now(), step=task.step, node=task.node.name, thread=self.thread))
        if not again:
            if isinstance(error, GraphError):
                task.error = error
            else:
                tries = f" after {attempt} attempts" if attempt > 1 else ""
                task.error = NodeError(f"node {task.node.name!r} failed at step {task.step}{tries}: {text}")
                task.error.__cause__ = error
            if task.step in self.kept:
                with contextlib.suppress(GraphError):  # the node's own error is what counts
                    self.write("error", task.node.name, b"{}", task.step)
        return again
