"""Calling nodes: in this thread, side by side, with a time limit, or awaited; and handing events on while they happen.

Does: drive an `agents.loop.Loop` to its end: synchronously, without an event loop or threads where nothing needs them, or on
asyncio.
Does not: decide what runs next or what a return value means (`agents.loop`).
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from agents import events as ev
from agents.awaited import in_thread
from agents.events import current
from agents.interrupts import Interrupt
from agents.loop import Loop, Task
from agents.route import GraphError
from agents.run import Run

if TYPE_CHECKING:
    import asyncio

_PATIENCE_S = 0.001
_HELPERS = 64
_DONE = object()


def rounds(loop: Loop) -> Iterator[None]:
    """Run to the end in this thread, pausing after each round. Raises what a node failed with for good."""
    while tasks := loop.ready():
        if len(tasks) == 1:
            run_task(loop, tasks[0])
        else:
            share(tasks, lambda task: run_task(loop, task))
        loop.close_round()
        yield


async def arounds(loop: Loop) -> None:
    """Run to the end on asyncio: async nodes are awaited, other nodes run in threads of their own."""
    import asyncio

    while tasks := loop.ready():
        if len(tasks) == 1:
            await arun_task(loop, tasks[0])
        else:
            await asyncio.gather(*(arun_task(loop, task) for task in tasks))
        loop.close_round()


def _nowhere(event: ev.Event) -> None:
    """Where a node that was given up still talks to."""


def finish(loop: Loop, quiet: bool = False) -> Run:
    """Run to the end, on an event loop of its own if a node needs one. `quiet` leaves failures to the events."""
    if loop.plan.only_async:
        import asyncio

        return asyncio.run(afinish(loop, quiet))
    try:
        for _ in rounds(loop):
            pass
    except GraphError as error:
        error.run = left(loop)
        if not quiet or loop.reason is None:
            raise
    finally:
        release(loop)
    return left(loop)


async def afinish(loop: Loop, quiet: bool = False) -> Run:
    """Run to the end on asyncio; without anything to await, the whole run has one thread."""
    if not loop.plan.awaits:
        run: Run = await in_thread(partial(finish, loop, quiet))
        return run
    try:
        await arounds(loop)
    except GraphError as error:
        error.run = left(loop)
        if not quiet or loop.reason is None:
            raise
    finally:
        release(loop)
    return left(loop)


def release(loop: Loop) -> None:
    """Let the loop's thread go; calling it twice is harmless."""
    if loop.store is not None and loop.number:
        number, loop.number = loop.number, 0
        loop.store.release_thread(number)


def left(loop: Loop) -> Run:
    """What there is of a run."""
    waits = next((task.interrupt for task in loop.round if task.interrupt is not None), None)
    return Run(loop.state, loop.trace, loop.reason or "error", loop.detail, loop.thread, loop.taken, waits)


def run_task(loop: Loop, task: Task) -> None:
    """Run one step in this thread, retries and time limit included."""
    node, attempt = task.node, 1
    while True:
        scope, mine = loop.enter(task, attempt)
        token = current.set(scope)
        try:
            if node.timeout_s is None:
                value = node.call(mine)
            else:
                value = within(node.timeout_s, node.call, mine)
                _in_time(scope, node.timeout_s)
            loop.leave(task, mine, value)
            return
        except Interrupt as asked:
            loop.pause(task, asked)
            return
        except Exception as error:
            if isinstance(error, TimeoutError):
                scope.sink = _nowhere
            if not loop.failed(task, error, attempt):
                return
        finally:
            current.reset(token)
        attempt += 1


def _in_time(scope: ev.Scope, timeout_s: float) -> None:
    """A node that saw its time run out and stopped by itself has no answer either."""
    if scope.deadline is not None and time.monotonic() > scope.deadline:
        raise TimeoutError(f"no answer within {timeout_s:g} s")


def within(timeout_s: float, call: Callable[[Any], Any], argument: Any) -> Any:
    """`call(argument)` in a thread of its own, given up after `timeout_s`.

    Python cannot stop the thread; `agents.events.cancelled` tells it that nobody waits any more.
    """
    outcome: list[Any] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.append((context.run(call, argument), None))
        except BaseException as error:
            outcome.append((None, error))

    worker = threading.Thread(target=work, daemon=True, name="agents-node")
    worker.start()
    worker.join(timeout_s)
    if not outcome:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


async def arun_task(loop: Loop, task: Task) -> None:
    """Run one step on asyncio, retries and time limit included."""
    node, attempt = task.node, 1
    while True:
        scope, mine = loop.enter(task, attempt)
        token = current.set(scope)
        try:
            call = node.acall(mine) if node.acall is not None else in_thread(partial(node.call, mine))
            if node.timeout_s is None:
                value = await call
            else:
                value = await _awaited_within(node.timeout_s, call)
                _in_time(scope, node.timeout_s)
            loop.leave(task, mine, value)
            return
        except Interrupt as asked:
            loop.pause(task, asked)
            return
        except Exception as error:
            if isinstance(error, TimeoutError):
                scope.sink = _nowhere
            if not loop.failed(task, error, attempt):
                return
        finally:
            current.reset(token)
        attempt += 1


async def _awaited_within(timeout_s: float, call: Awaitable[Any]) -> Any:
    import asyncio

    began = time.monotonic()
    try:
        return await asyncio.wait_for(call, timeout_s)
    except TimeoutError as error:
        if time.monotonic() - began < timeout_s:
            raise
        raise TimeoutError(f"no answer within {timeout_s:g} s") from error


def share(tasks: Sequence[Task], run: Callable[[Task], None]) -> None:
    """Run tasks in parallel: this thread takes them in turn, and a helper joins for every millisecond it is still at it.

    So a hundred instant nodes cost no threads, and eight slow ones run side by side. An error that `run` lets out is raised here.
    """
    left = deque(tasks)
    done = threading.Event()
    helpers: list[threading.Thread] = []
    errors: list[BaseException] = []
    base = contextvars.copy_context()

    def take() -> None:
        while left and not errors:
            try:
                task = left.popleft()
            except IndexError:
                return
            try:
                run(task)
            except BaseException as error:
                errors.append(error)

    def help_out() -> None:
        if not done.wait(_PATIENCE_S) and left:
            if len(helpers) < _HELPERS:
                call_help()
            take()

    def call_help() -> None:
        helper = threading.Thread(target=base.copy().run, args=(help_out,), daemon=True, name="agents-round")
        helper.start()
        helpers.append(helper)

    call_help()
    take()
    done.set()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]


def live(work: Callable[[ev.Sink], Any], stop: Callable[[], None]) -> Iterator[ev.Event]:
    """Events of `work(sink)` as they happen, from a thread of its own.

    Leaving early calls `stop`; an exception of `work` is raised after the last event.
    """
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    context = contextvars.copy_context()

    def body() -> None:
        try:
            context.run(work, waiting.put)
            waiting.put((_DONE, None))
        except BaseException as error:
            waiting.put((_DONE, error))

    threading.Thread(target=body, daemon=True, name="agents-stream").start()
    finished = False
    try:
        while True:
            item = waiting.get()
            if type(item) is tuple:
                finished = True
                if item[1] is not None:
                    raise item[1]
                return
            yield item
    finally:
        if not finished:
            stop()


async def alive(work: Callable[[ev.Sink], Awaitable[Any]], stop: Callable[[], None]) -> AsyncIterator[ev.Event]:
    """`live` on asyncio: `work` runs as a task beside the reader."""
    import asyncio

    waiting: asyncio.Queue[Any] = asyncio.Queue()
    loop, home = asyncio.get_running_loop(), threading.get_ident()

    def put(item: Any) -> None:
        if threading.get_ident() == home:
            waiting.put_nowait(item)
        else:
            loop.call_soon_threadsafe(waiting.put_nowait, item)

    async def body() -> None:
        try:
            await work(put)
            put((_DONE, None))
        except BaseException as error:
            put((_DONE, error))

    task = asyncio.create_task(body())
    try:
        while type(item := await waiting.get()) is not tuple:
            yield item
        if item[1] is not None:
            raise item[1]
    finally:
        if not task.done():
            stop()
            task.cancel()
