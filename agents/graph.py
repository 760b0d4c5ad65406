"""AgentGraph: a state, nodes that change it, edges between them; run, paused, resumed, forked and replayed.

    g = AgentGraph(State, name="shop")

    @g.node(start=True)
    def route(s: State):
        return triage.choose(s.question, {"desk": desk, "sql": sql})

    g.add(desk, reads="question", writes="notes")
    g.edge(desk, END)
    run = g.run(State(question="where is 17?"), thread="u1", store="runs.db")

Does: collect nodes and edges, check them as a whole before any model is loaded, and start the loop (`agents.loop`) in four ways:
`run`, `arun`, `stream`, `astream`.
Does not: answer anything itself.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ValidationError

from agents import events as ev
from agents.checkpoint import Store
from agents.drive import afinish, alive, finish, live, release, rounds
from agents.loop import Loop
from agents.member import graph_node, persona_node
from agents.route import END, Goto, GraphError, Runnable, name_of
from agents.run import Run, Snapshot
from agents.state import Fields, fields_of, said
from agents.threads import MISSING, Stores, begin_thread, fork, new_name, past, rows_of
from agents.topology import Node, Plan, code_of, draw, make_plan, spoken
from agents.trace import Tape, Trace

F = TypeVar("F", bound=Callable[..., Any])
Reads = str | Sequence[str] | Callable[[Any], Any] | Mapping[str, str]


class AgentGraph:
    """A graph over one state class. Building it loads nothing; `check` runs before every first run."""

    def __init__(self, state: type[BaseModel], name: str = "graph") -> None:
        if not (isinstance(state, type) and issubclass(state, BaseModel)):
            raise GraphError(f"AgentGraph wants a pydantic model class as its state, not {state!r}")
        self.name = name
        self.state = state
        self.fields: Fields = fields_of(state)
        self._nodes: dict[str, Node] = {}
        self._links: list[tuple[str, str]] = []
        self._starts: list[str] = []
        self._plan: Plan | None = None
        self._stores = Stores()

    # --- building

    @overload
    def node(self, function: F, /) -> F: ...

    @overload
    def node(
        self,
        function: None = None,
        /,
        *,
        start: bool = False,
        name: str | None = None,
        retries: int = 0,
        timeout_s: float | None = None,
        goes: Iterable[Any] | None = None,
    ) -> Callable[[F], F]: ...

    def node(
        self,
        function: Any = None,
        /,
        *,
        start: bool = False,
        name: str | None = None,
        retries: int = 0,
        timeout_s: float | None = None,
        goes: Iterable[Any] | None = None,
    ) -> Any:
        """Make a function of the state a node, under its own name.

        It returns the new state, a dict of changes, `g.goto(...)`, a Choice, several gotos, or None; what it changed in its own
        copy counts in every case. A failed try is repeated `retries` times; `timeout_s` bounds each. `goes` names the targets it
        may go to by itself, for `check` and `mermaid`. Raises GraphError for a second node of that name or a second start.
        """

        def add(fn: Any) -> Any:
            is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
            roams, words = spoken(code_of(fn))
            called = name if name is not None else name_of(fn)
            node = Node(called, fn, acall=fn if is_async else None, only_async=is_async, roams=roams, hints=words)
            self._add(node, start, retries, timeout_s, goes)
            return fn

        return add if function is None else add(function)

    def add(
        self,
        runnable: Any,
        reads: Reads | None = None,
        writes: str | Mapping[str, str] | None = None,
        *,
        variables: Sequence[str] | Mapping[str, str] = (),
        history: str | None = None,
        start: bool = False,
        name: str | None = None,
        retries: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        """Make a persona, a cascade or another graph a node.

        A persona reads a field, several (joined as lines "field: value"), or what a function makes of the state; it writes a list
        field by appending to it, another by setting it. `variables` fill its prompt template: field names, or variable -> field.
        `history` names a field with the conversation so far. A graph reads and writes the fields both states have, or with
        mappings: reads={inner field: outer field}, writes={outer field: inner field}. Its interrupts become this graph's.
        """
        place = name if name is not None else name_of(runnable)
        if isinstance(runnable, AgentGraph):
            node = graph_node(runnable, self.fields, place, reads, writes)
        elif isinstance(runnable, Runnable):
            node = persona_node(runnable, self.fields, place, reads, writes, variables, history)
        else:
            raise GraphError(
                f"g.add takes a persona, a cascade or a graph, not {runnable!r:.60}; for a function there is @g.node"
            )
        self._add(node, start, retries, timeout_s, None)

    def _add(self, node: Node, start: bool, retries: int, timeout_s: float | None, goes: Iterable[Any] | None) -> None:
        if node.name == END or not node.name:
            raise GraphError(f"a node cannot be called {node.name!r}")
        if node.name in self._nodes:
            raise GraphError(f"graph {self.name!r} has two nodes called {node.name!r}: give one of them name=...")
        if start and self._starts:
            raise GraphError(f"graph {self.name!r} has two starts, {self._starts[0]!r} and {node.name!r}: keep one start=True")
        if retries < 0 or (timeout_s is not None and timeout_s <= 0):
            raise GraphError(f"node {node.name!r}: retries={retries} must be 0 or more and timeout_s={timeout_s} more than 0")
        node.retries, node.timeout_s = retries, timeout_s
        node.goes = None if goes is None else tuple(name_of(one) for one in goes)
        self._nodes[node.name] = node
        if start:
            self._starts.append(node.name)
        self._plan = None

    def edge(self, source: Any, target: Any) -> None:
        """After `source` comes `target` (names, functions, personas, END). Several edges from one node run in parallel."""
        ends = name_of(source), name_of(target)
        if ends[0] == END:
            raise GraphError(f"nothing comes after END: g.edge(END, {ends[1]!r})")
        self._links.append(ends)
        self._plan = None

    @staticmethod
    def goto(target: Any, state_update: Mapping[str, Any] | None = None) -> Goto:
        """To return from a node: go there instead of along its edges, with changes if given."""
        return Goto(target, state_update)

    @staticmethod
    def send(target: Any, **inputs: Any) -> Goto:
        """To return from a node, alone or in a list: run `target` with these fields as its own input, seen by nobody else."""
        return Goto(target, input=inputs)

    def check(self) -> list[str]:
        """Raise GraphError with one line for each thing wrong with the graph; return what is only doubtful."""
        if self._plan is None:
            self._plan = make_plan(self.name, self.fields, self._nodes, self._links, self._starts)
        return list(self._plan.warnings)

    def mermaid(self) -> str:
        """The checked graph as a Mermaid flowchart."""
        return draw(self._checked())

    def _checked(self) -> Plan:
        self.check()
        assert self._plan is not None
        return self._plan

    @property
    def only_async(self) -> bool:
        """Whether some node is an async function, so that the run needs an event loop."""
        return any(node.only_async for node in self._nodes.values())

    # --- running

    def run(
        self,
        state: Any = None,
        thread: str | None = None,
        store: str | Path | Store | None = None,
        max_steps: int = 50,
        *,
        value: Any = MISSING,
        cancel: threading.Event | None = None,
    ) -> Run:
        """Run to the end, the next interrupt, or `max_steps` steps.

        state: an instance of the state class or a dict; None goes on with the thread. With a `thread` or a `store` every step is
        kept (without a store: in memory, until the graph is closed). A thread whose run was cut off goes on when it is given the
        same state again. value: answers the interrupt that waits. cancel: set it from elsewhere to stop at the next step. Raises
        GraphError (`.run` holds what there is).
        """
        if self.only_async:
            import asyncio

            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return asyncio.run(self.arun(state, thread, store, max_steps, value=value, cancel=cancel))
            raise GraphError(f"graph {self.name!r} has async nodes and an event loop is running here: use `await g.arun(...)`")
        loop = self._begin(state, thread, store, max_steps, value, cancel)
        return finish(loop)

    async def arun(
        self,
        state: Any = None,
        thread: str | None = None,
        store: str | Path | Store | None = None,
        max_steps: int = 50,
        *,
        value: Any = MISSING,
        cancel: threading.Event | None = None,
    ) -> Run:
        """`run` for asyncio: async nodes and personas are awaited, other nodes run in threads of their own."""
        stop = cancel if cancel is not None else threading.Event()
        loop = self._begin(state, thread, store, max_steps, value, stop)
        try:
            return await afinish(loop)
        except BaseException:
            stop.set()
            raise

    def stream(
        self,
        state: Any = None,
        thread: str | None = None,
        store: str | Path | Store | None = None,
        max_steps: int = 50,
        *,
        value: Any = MISSING,
        cancel: threading.Event | None = None,
        live_tokens: bool = True,
    ) -> Iterator[ev.Event]:
        """`run`, event by event. A failure is an event (NodeFailed, RunEnded) and is not raised.

        The nodes run in one thread beside the reader, so that tokens come as they are decided; with live_tokens=False they run in
        the reader's own thread and the events of a step come together at its end. Leaving the loop early cancels the run.
        """
        stop = cancel if cancel is not None else threading.Event()
        loop = self._begin(state, thread, store, max_steps, value, stop)
        if live_tokens or self.only_async:

            def work(sink: ev.Sink) -> None:
                for event in loop.trace:
                    sink(event)
                loop.listener = sink
                finish(loop, quiet=True)

            yield from live(work, stop.set)
            return
        buffer: list[ev.Event] = list(loop.trace)
        loop.listener = buffer.append
        try:
            for _ in rounds(loop):
                yield from buffer
                buffer.clear()
        except GraphError:
            if loop.reason is None:
                raise
        finally:
            release(loop)
        yield from buffer

    async def astream(
        self,
        state: Any = None,
        thread: str | None = None,
        store: str | Path | Store | None = None,
        max_steps: int = 50,
        *,
        value: Any = MISSING,
        cancel: threading.Event | None = None,
    ) -> AsyncIterator[ev.Event]:
        """`stream` for asyncio."""
        stop = cancel if cancel is not None else threading.Event()
        loop = self._begin(state, thread, store, max_steps, value, stop)

        async def work(sink: ev.Sink) -> None:
            for event in loop.trace:
                sink(event)
            loop.listener = sink
            await afinish(loop, quiet=True)

        async for event in alive(work, stop.set):
            yield event

    def resume(
        self,
        thread: str,
        value: Any = MISSING,
        *,
        store: str | Path | Store | None = None,
        max_steps: int = 50,
        cancel: threading.Event | None = None,
    ) -> Run:
        """Go on with a thread: answer the interrupt that waits, or pick up after a kill, an error or too few steps."""
        return self.run(None, thread, store, max_steps, value=value, cancel=cancel)

    def replay(self, trace: Trace | str | Path) -> Run:
        """Run again from a trace with the recorded replies and tool results instead of models and tools.

        Raises ReplayError at the first step that differs.
        """
        events = list(Trace.load(trace) if isinstance(trace, str | Path) else trace)
        first = events[0] if events else None
        if not isinstance(first, ev.RunStarted) or first.resumed_at is not None:
            raise GraphError("a replay wants the trace of a run from its start: this one begins in the middle of a thread")
        loop = Loop(self._checked(), self.fields, self._state_of(first.state), max_steps=1 << 30)
        tape = Tape(events)
        loop.tape = tape
        loop.begin()
        loop.sink(ev.RunStarted(self.name, first.state))
        try:
            run = finish(loop)
        except GraphError as error:
            if error.run is None or "the replay differs" in str(error):
                raise
            run = error.run
        tape.compare(run.trace)
        return run

    # --- threads

    def history(self, thread: str, store: str | Path | Store | None = None) -> list[Snapshot]:
        """The thread after each of its rows, oldest first. Without `store`, in the one this graph used last."""
        loop = Loop(self._checked(), self.fields, self.fields.cls.model_construct())
        return past(loop, rows_of(self._stores.get(store), thread))

    def fork(self, thread: str, step: int, into: str | None = None, store: str | Path | Store | None = None) -> str:
        """A new thread that shares the first `step` steps with this one; returns its name, for `resume` or `run`."""
        return fork(self._stores.get(store), thread, step, into)

    def close(self) -> None:
        """Close the stores this graph opened; calling it twice is harmless."""
        self._stores.close()

    def _state_of(self, state: Any) -> BaseModel:
        cls = self.state
        if isinstance(state, cls):
            self.fields.verify(state)
            return self.fields.copy(state)
        if not isinstance(state, Mapping):
            raise GraphError(f"graph {self.name!r} runs over {cls.__name__}, not {type(state).__name__}: {state!r:.60}")
        try:
            return cls.model_validate(state)
        except ValidationError as error:
            raise GraphError(f"the state does not fit {cls.__name__}: {said(error)}") from None

    def _begin(
        self,
        state: Any,
        thread: str | None,
        store: str | Path | Store | None,
        max_steps: int,
        value: Any,
        cancel: threading.Event | None,
    ) -> Loop:
        plan = self._checked()
        if max_steps < 1:
            raise GraphError(f"max_steps={max_steps} leaves nothing to run: give 1 or more")
        given = None if state is None else self._state_of(state)
        loop = Loop(plan, self.fields, given if given is not None else self.state.model_construct(), max_steps=max_steps)
        loop.cancelled = None if cancel is None else cancel.is_set
        if thread is None and store is None:
            if given is None:
                raise GraphError(f"graph {self.name!r} was given neither a state to run over nor a thread to go on with")
            loop.begin()
            loop.sink(ev.RunStarted(self.name, self.fields.copy(loop.state).__dict__, at_ms=loop.now()))
        else:
            begin_thread(loop, given, thread if thread is not None else new_name(), self._stores.get(store), value)
        for warning in plan.warnings:
            loop.sink(ev.Warned(warning, at_ms=loop.now(), thread=loop.thread))
        return loop

    def enter(self, values: Mapping[str, Any] | None, thread: str, store: Store | None, answer: tuple[Any] | None) -> Loop:
        """A loop within another graph's step. A thread that has ended stays ended, so that the step can be repeated."""
        value = MISSING if answer is None else answer[0]
        if store is None:
            return self._begin(values, None, None, 1 << 30, value, None)
        loop = Loop(self._checked(), self.fields, self.state.model_construct(), max_steps=1 << 30)
        begin_thread(loop, None if values is None else self._state_of(values), thread, store, value, again=False)
        return loop
