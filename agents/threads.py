"""Threads: runs that are kept in a store, gone on with, looked back at and forked.

Does: open stores once, decide whether a thread begins, goes on or has ended, and show its past.
Does not: run steps (`agents.loop`) or write rows (`agents.checkpoint`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from agents import events as ev
from agents.checkpoint import Row, Store
from agents.drive import release
from agents.loop import Loop
from agents.route import GraphError
from agents.run import Snapshot, moment

MISSING: Final = object()
"""No answer was given; None is an answer."""


class Stores:
    """The stores a graph has opened, and the one it used last."""

    def __init__(self) -> None:
        self._open: dict[str, Store] = {}
        self._last: Store | None = None
        self._lock = threading.Lock()

    def get(self, store: str | Path | Store | None) -> Store:
        """The store of that name; None is the last one, or one in memory when there was none."""
        with self._lock:
            if isinstance(store, Store):
                self._last = store
            elif store is not None or self._last is None:
                key = ":memory:" if store is None or str(store) == ":memory:" else str(Path(store).absolute())
                if key not in self._open:
                    self._open[key] = Store(key)
                self._last = self._open[key]
            return self._last

    def close(self) -> None:
        """Close what was opened here; a Store object that was handed in stays open."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
            self._last = None


def new_name() -> str:
    """A thread name nobody else has."""
    return os.urandom(6).hex()


def rows_of(store: Store, thread: str) -> list[Row]:
    """The thread's rows. Raises GraphError for an unknown one, naming the latest that there are."""
    rows = store.rows(thread)
    if not rows:
        names = store.threads()
        raise GraphError(f"there is no thread {thread!r} in the store; threads: {', '.join(names[-10:]) or 'none'}")
    return rows


def begin_thread(loop: Loop, given: BaseModel | None, thread: str, store: Store, value: Any, again: bool = True) -> None:
    """Make `loop` the thread's next run: new from `given`, or where the last one left off; `value` answers what it waits for.

    `again` False leaves a thread that has ended as it is. Raises GraphError, with the thread let go, for what cannot go on.
    """
    graph = loop.plan.name
    owner = store.graph_of(thread)
    if given is None:
        rows_of(store, thread)
    if owner not in (None, graph):
        raise GraphError(f"thread {thread!r} belongs to graph {owner!r}, not to {graph!r}: use another thread name")
    loop.thread, loop.store, loop.number = thread, store, store.claim_thread(thread, graph)
    try:
        rows = store.rows(thread, latest=True)
        fresh, began = True, None
        if rows:
            loop.restore(rows[:1])
            began = loop.fields.copy(loop.state).__dict__
            loop.restore(rows[1:])
            fresh = not loop.round and not loop.arrivals
        if fresh and rows and not again:
            return
        if fresh:
            if given is None:
                raise GraphError(f"thread {thread!r} has ended at step {loop.step}: give it a new state, or g.fork(...) it")
            loop.state = given
            loop.begin()
        elif given is not None and given.__dict__ != began:
            raise GraphError(
                f"thread {thread!r} has an unfinished run of another state at step {loop.step}: g.resume({thread!r}) goes on "
                f"with it; another thread name begins anew"
            )
        state, at = loop.fields.copy(loop.state).__dict__, None if fresh else loop.step
        loop.sink(ev.RunStarted(graph, state, at, at_ms=loop.now(), thread=thread))
        if value is not MISSING:
            if not any(task.interrupt is not None for task in loop.round):
                raise GraphError(f"thread {thread!r} waits for no answer, but was given {value!r:.40}: leave the value out")
            loop.answer(value)
    except BaseException:
        release(loop)
        raise


def past(loop: Loop, rows: Sequence[Row]) -> list[Snapshot]:
    """The states that the rows lead through."""
    shots = []
    for row in rows:
        loop.restore([row])
        waiting = tuple(task.node.name for task in loop.round if task.changes is None)
        waiting += tuple(arrival.target for arrival in loop.arrivals)
        state = loop.fields.copy(loop.state)
        shots.append(Snapshot(row.step, row.kind, row.node, state, waiting, moment(row.at_ms), row.events))
    return shots


def fork(store: Store, thread: str, step: int, into: str | None) -> str:
    """Copy a thread up to and including `step`; returns the new thread's name."""
    last = max(row.step for row in rows_of(store, thread))
    if not 0 <= step <= last:
        raise GraphError(f"thread {thread!r} has steps 0 to {last}, so it cannot be forked at step {step}")
    name = into if into is not None else f"{thread}-fork-{step}-{os.urandom(3).hex()}"
    store.fork(thread, name, step)
    return name
