"""Personas, cascades and whole graphs as nodes: how they read the state and where their answers go.

Does not: run the graph they are members of (`agents.loop`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_origin

from pydantic import BaseModel, ValidationError

from agents import events as ev
from agents.chat import Reply, ToolCall
from agents.checkpoint import BusyError, Store
from agents.drive import afinish, finish
from agents.interrupts import interrupt
from agents.loop import Loop
from agents.route import Goto, GraphError, Runnable
from agents.run import Run
from agents.state import Changes, Fields
from agents.topology import Node

if TYPE_CHECKING:
    from agents.graph import AgentGraph

_PATIENCE_S = 0.01


def persona_node(
    runnable: Runnable,
    fields: Fields,
    name: str,
    reads: Any,
    writes: Any,
    variables: Sequence[str] | Mapping[str, str],
    history: str | None,
) -> Node:
    """A node that asks a persona. Raises GraphError for reads and writes of the wrong kind; unknown fields are `check`'s."""
    if not isinstance(writes, str):
        raise GraphError(f"g.add({name!r}, ...) needs writes=, the one field its answer goes to, not {writes!r}")
    if reads is None or isinstance(reads, Mapping):
        raise GraphError(f"g.add({name!r}, ...) needs reads=: a field, several fields, or a function of the state, not {reads!r}")
    filled = dict(variables) if isinstance(variables, Mapping) else {one: one for one in variables}
    for variable in getattr(runnable, "variables", ()):
        if variable not in filled:
            raise GraphError(
                f"g.add({name!r}, ...): its prompt needs {variable!r}, which is not set; name the field that fills it, "
                f"variables={{{variable!r}: ...}}"
            )
    read = (reads,) if isinstance(reads, str) else () if callable(reads) else tuple(reads)
    appends = _is_list(fields, writes)

    def text_of(state: Any) -> str:
        if callable(reads):
            return str(reads(state))
        if len(read) == 1:
            return _shown(getattr(state, read[0]))
        return "\n".join(f"{one}: {_shown(getattr(state, one))}" for one in read)

    def asked(state: Any) -> tuple[str, dict[str, Any]]:
        more = {variable: getattr(state, one) for variable, one in filled.items()}
        if history is not None:
            more["history"] = list(getattr(state, history) or ())
        return text_of(state), more

    def answered(state: Any, result: Any, more: Mapping[str, Any]) -> Changes | Goto:
        """What the answer changes: its field, and the conversation by the turns the persona added to it."""
        changes = Changes()
        if history is not None:
            before = getattr(state, history)
            new = _fitting(fields, history, more["history"][len(before or ()) :])
            if history in fields.reducers or isinstance(before, list):
                changes.added[history] = new
            else:
                changes.assigned[history] = [*(before or ()), *new]
        if (goto := getattr(result, "goto", None)) is not None:
            if history is None or history in fields.reducers:
                return Goto(goto, dict(changes.added))
            return Goto(goto, {history: [*(before or ()), *new]})
        value = getattr(result, "value", result)
        if value is result and not isinstance(result, str):
            value = str(result)
        if appends:
            changes.added[writes] = [*changes.added.get(writes, ()), value]
        else:
            changes.assigned[writes] = value
        return changes

    def call(state: Any) -> Changes | Goto:
        text, more = asked(state)
        return answered(state, runnable(text, **more), more)

    arun: Callable[..., Any] | None = getattr(runnable, "arun", None)

    async def acall(state: Any) -> Changes | Goto:
        assert arun is not None
        text, more = asked(state)
        return answered(state, await arun(text, **more), more)

    known = (*read, *filled.values(), *((history,) if history is not None else ()))
    written = (writes,) if history is None else tuple(dict.fromkeys((writes, history)))
    routes = frozenset(getattr(runnable, "routes", ()))
    on_its_own = acall if arun is not None else None
    return Node(name, call, on_its_own, roams=bool(routes), hints=routes, reads=known, writes=written, shape="persona")


def _fitting(fields: Fields, name: str, turns: list[Any]) -> list[Any]:
    """Turns as the field holds them: messages, or dicts where it does not take messages."""
    try:
        fields.adapter(name).validate_python(turns)
    except ValidationError:
        return [turn.model_dump(exclude_defaults=True) if isinstance(turn, BaseModel) else turn for turn in turns]
    return turns


def _is_list(fields: Fields, name: str) -> bool:
    info = fields.cls.model_fields.get(name)
    return info is not None and (info.annotation is list or get_origin(info.annotation) is list)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "\n".join(_shown(one) for one in value)
    return "" if value is None else str(value)


def graph_node(inner: AgentGraph, outer: Fields, name: str, reads: Any, writes: Any) -> Node:
    """A node that runs another graph over a state made from this one."""
    common = {one: one for one in inner.fields.names if one in outer.names}
    into, back = _mapping(reads, common), _mapping(writes, common)
    for what, chosen in (("reads", list(into)), ("writes", list(back.values()))):
        for one in chosen:
            if one not in inner.fields.names:
                known = ", ".join(inner.fields.names)
                raise GraphError(
                    f"g.add({name!r}, {what}=...) names {one!r}, no field of {inner.state.__name__}; fields: {known}"
                )

    def first(state: Any) -> Visit:
        return Visit(inner, {mine: getattr(state, theirs) for mine, theirs in into.items()})

    def changed(state: Any, run: Run) -> Any:
        return state.model_copy(update={theirs: getattr(run.state, mine) for theirs, mine in back.items()})

    def call(state: Any) -> Any:
        visit = first(state)
        loop: Loop | None = visit.begin()
        while loop is not None:
            run = finish(loop)
            loop = visit.after(run)
        return changed(state, run)

    async def acall(state: Any) -> Any:
        visit = first(state)
        loop: Loop | None = visit.begin()
        while loop is not None:
            run = await afinish(loop)
            loop = visit.after(run)
        return changed(state, run)

    node = Node(name, call, acall if inner.only_async else None, inner.only_async, reads=tuple(into.values()), shape="graph")
    node.writes = tuple(back)
    return node


def _mapping(given: Any, common: dict[str, str]) -> dict[str, str]:
    if given is None:
        return common
    if isinstance(given, Mapping):
        return dict(given)
    return {one: one for one in ([given] if isinstance(given, str) else given)}


@dataclass(slots=True)
class Visit:
    """One run of an inner graph within a step of the outer one: a thread of its own in the same store, its events passed on."""

    inner: AgentGraph
    values: dict[str, Any]

    def begin(self) -> Loop:
        """The inner run from its start, or where an earlier attempt of this step left it."""
        return self._loop(self.values, None)

    def after(self, run: Run) -> Loop | None:
        """None when the inner run is through; else the loop that goes on with a person's answer. Raises what ends the step."""
        if (asked := run.interrupted) is not None:
            return self._loop(None, (interrupt(asked.prompt, asked.value),))
        if run.reason not in ("end", "cancelled"):
            raise GraphError(f"graph {self.inner.name!r} within another stopped with {run.reason}: {run.detail}")
        return None

    def _entered(self, outer: ev.Scope, values: Any, thread: str, store: Store | None, answer: tuple[Any] | None) -> Loop:
        """The inner loop. An earlier attempt of this step that was given up may still be in a node: it stops after it."""
        while True:
            try:
                return self.inner.enter(values, thread, store, answer)
            except BusyError:
                if outer.attempt == 1:
                    raise
                if outer.wanted_no_more():
                    raise TimeoutError(f"the earlier attempt of graph {self.inner.name!r} is still running") from None
                time.sleep(_PATIENCE_S)

    def _loop(self, values: dict[str, Any] | None, answer: tuple[Any] | None) -> Loop:
        outer = ev.current.get()
        assert outer is not None
        thread = f"{outer.thread or ''}/{outer.node}@{outer.step}"
        store = outer.memos if isinstance(outer.memos, Store) else None
        if store is not None and answer is None:
            outer.asked = sum(row.kind == "answer" for row in store.rows(thread))
        loop = self._entered(outer, values, thread, store, answer)
        loop.thread, loop.memos, loop.keep = thread, outer.memos, False
        loop.cancelled = outer.wanted_no_more
        loop.tape = None if outer.tape is None else InnerTape(outer, outer.tape)

        def forward(event: ev.Event) -> None:
            if event.node is not None and not isinstance(event, ev.Interrupted | ev.Resumed):
                at = (time.perf_counter() - outer.started) * 1000.0
                node = f"{outer.node}/{event.node}"
                outer.sink(replace(event, at_ms=at, step=outer.step, node=node, thread=outer.thread))

        loop.listener = forward
        return loop


@dataclass(slots=True, frozen=True)
class InnerTape:
    """The outer run's record as an inner graph's nodes ask for it."""

    outer: ev.Scope
    tape: ev.Tape

    def _place(self, scope: ev.Scope) -> ev.Scope:
        return replace(scope, step=self.outer.step, node=f"{self.outer.node}/{scope.node}")

    def reply(self, scope: ev.Scope, persona: str, prompt_sha256: str) -> Reply | None:
        return self.tape.reply(self._place(scope), persona, prompt_sha256)

    def result(self, scope: ev.Scope, persona: str, call: ToolCall) -> str | None:
        return self.tape.result(self._place(scope), persona, call)
