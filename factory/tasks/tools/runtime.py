"""The tools task at run time: the functions a persona answers about, and its answer as calls that tools can run.

Does: make a `Toolset` of what a persona was given, read an answer as tool calls. Does not: run them (`agents.persona_loop` does).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from agents.chat import ToolCall
from factory.tasks.task import TaskError
from factory.tasks.tools import calls
from factory.tasks.tools.functions import ANYTHING, Function, Toolset
from factory.tasks.tools.own import of_tools, open_functions

KNOWN = ("functions", "today")


def toolset(variables: Mapping[str, Any]) -> Toolset | None:
    """`functions`: a JSON file, MODULE:OBJECT, or a list of `@tool` functions, specs or OpenAI-style dicts; `today`: a date or
    YYYY-MM-DD, the actual day by default. None without functions. Raises TaskError."""
    unknown = next((name for name in variables if name not in KNOWN), None)
    if unknown is not None:
        raise TaskError(
            f"the tools task knows no {unknown!r}; give functions=[…] (or tools=[…] to have the calls run) and, where dates "
            "count from another day, today="
        )
    given = variables.get("functions")
    if given is None:
        return None
    if isinstance(given, Toolset):
        return given
    functions: tuple[Function, ...]
    if isinstance(given, list | tuple):
        functions = of_tools(given, "functions=[…]")
    elif isinstance(given, Mapping) or callable(given):
        functions = of_tools([given], "functions=…")
    else:
        functions = open_functions(str(given))
    return Toolset("functions", functions, _day(variables.get("today")))


def _day(given: Any) -> dt.date:
    if given is None:
        return dt.date.today()
    if isinstance(given, dt.datetime):
        return given.date()
    if isinstance(given, dt.date):
        return given
    try:
        return dt.date.fromisoformat(str(given))
    except ValueError:
        raise TaskError(f"today={given!r} is no date; give a date or YYYY-MM-DD") from None


def tool_calls(answer: str) -> tuple[ToolCall, ...]:
    """The calls of a canonical answer; an argument for which anything will do is left to the function's default."""
    return tuple(
        ToolCall(name=call.name, arguments={name: value for name, value in call.arguments.items() if value != ANYTHING})
        for call in calls.read(answer)
    )
