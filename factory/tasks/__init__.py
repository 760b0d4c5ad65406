"""The tasks that Penknife can teach, by name.

Does: list them and build one on request. Does not: import a task's modules before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from factory.tasks.task import Task, TaskError


def _sql() -> Task:
    from factory.tasks.sql.task import SqlTask

    return SqlTask()


def _tools() -> Task:
    from factory.tasks.tools.task import ToolsTask

    return ToolsTask()


def _route() -> Task:
    from factory.tasks.route.task import RouteTask

    return RouteTask()


TASKS: dict[str, Callable[[], Task]] = {"sql": _sql, "route": _route, "tools": _tools}


def get_task(name: str) -> Task:
    """The task called `name`; raises TaskError with the names there are."""
    if name not in TASKS:
        raise TaskError(f"unknown task {name!r}; choose from {', '.join(sorted(TASKS))}")
    return TASKS[name]()
