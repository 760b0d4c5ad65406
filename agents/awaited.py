"""Awaiting what blocks: a call in a thread of its own, with the caller's context.

Does not: limit how many threads there are; asyncio's own pool has too few for many models at once, and waiting threads of a pool
can hold each other up.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


async def in_thread(work: Callable[[], Any], name: str = "agents-awaited") -> Any:
    """`work()` in a new thread; what it raises is raised here. A cancelled caller leaves the thread to end by itself."""
    import asyncio

    context, loop = contextvars.copy_context(), asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def body() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = context.run(work), None
        except BaseException as error:
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=body, daemon=True, name=name).start()
    return await future
