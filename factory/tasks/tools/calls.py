"""Calls as this task stores and compares them: canonical JSON, `[{"name": …, "arguments": {…}}]`.

Does: write and read them, put values into the types of a schema, say when two calls are the same.
Does not: read what models write otherwise (`compact.py`, `plain.py`).

Two values are the same when they are equal as JSON after typing: numbers as numbers; dates and times after reading them
("March 8th" is 2019-03-08 where today is in 2019); texts by their words and numbers, without case, marks and white space, or
when the data set lists the two as spellings of one value (SGD does: "SF", "San Francisco"). An argument that is left out counts
as its default; one whose default is "dontcare" may say so.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.tasks.sql.spaced import spaced
from factory.tasks.task import AnswerError
from factory.tasks.tools import moments
from factory.tasks.tools.functions import ANYTHING, Argument, Function, Toolset

Variants = Mapping[str, Sequence[str]]
"""`function.argument` -> spellings that the data set takes as one value."""


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def write(calls: Sequence[Call]) -> str:
    """Canonical text: compact JSON, arguments in the order given."""
    rows = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def ordered(toolset: Toolset, found: Sequence[Call]) -> list[Call]:
    """The calls without arguments that say their default, the others in the order of their function's schema."""
    out = []
    for call in found:
        function = toolset.by_name.get(call.name)
        given = full(function, call)
        places = list(function.parameters.get("properties", {})) if function is not None else []
        out.append(
            Call(call.name, dict(sorted(given.items(), key=lambda item: places.index(item[0]) if item[0] in places else 99)))
        )
    return out


def read(answer: str) -> tuple[Call, ...]:
    """Calls of a canonical answer. Raises AnswerError("not-parsed")."""
    try:
        rows = json.loads(answer)
    except ValueError as error:
        raise AnswerError("not-parsed", f"not JSON ({error}): {answer[:80]!r}") from None
    if not isinstance(rows, list):
        raise AnswerError("not-parsed", f"not a list of calls: {answer[:80]!r}")
    return tuple(_call(row) for row in rows)


def _call(row: Any) -> Call:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise AnswerError("not-parsed", f"not a call: {str(row)[:80]!r}")
    arguments = row.get("arguments", row.get("parameters", {}))
    if not isinstance(arguments, dict):
        raise AnswerError("not-parsed", f"the arguments of {row['name']} are {str(arguments)[:80]!r}, not an object")
    return Call(row["name"], arguments)


def typed(argument: Argument, value: Any, today: dt.date | None) -> Any:
    """The value in the argument's own type where it can be read so, else as it is."""
    if value == ANYTHING or value is None:
        return value
    text = value if isinstance(value, str) else None
    if argument.kind in ("integer", "number"):
        if text is not None:
            found = moments.read(text, "number", today)
            try:
                number = float(text.replace(",", "")) if found is None else float(found)
            except ValueError:
                return value
            return int(number) if number.is_integer() else number
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if argument.kind == "boolean" and text is not None:
        return {"true": True, "false": False, "yes": True, "no": False}.get(text.strip().lower(), value)
    if argument.kind in ("date", "time") and text is not None:
        return moments.read(text, argument.kind, today) or text
    if argument.kind == "choice" and text is not None:
        return next((choice for choice in argument.choices if spaced(choice) == spaced(text)), text)
    return value


def same_value(argument: Argument | None, a: Any, b: Any, today: dt.date | None, variants: Sequence[str] = ()) -> bool:
    """Whether two values are one; `variants` are spellings of `b`."""
    if argument is not None:
        a, b = typed(argument, a, today), typed(argument, b, today)
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, str) and isinstance(b, str):
        own = _plain(a)
        return own == _plain(b) or any(own == _plain(other) for other in variants)
    return bool(a == b)


def full(function: Function | None, call: Call) -> dict[str, Any]:
    """The call's arguments without those that say their default."""
    if function is None:
        return dict(call.arguments)
    out = {}
    for name, value in call.arguments.items():
        argument = function.by_name.get(name)
        optional = argument is not None and not argument.required and argument.default is not None
        if argument is None or not optional or not same_value(argument, value, argument.default, None):
            out[name] = value
    return out


def same_call(toolset: Toolset, a: Call, b: Call, variants: Variants | None = None) -> bool:
    """Whether `a` is the call `b`; `variants` are spellings of b's values."""
    if a.name != b.name:
        return False
    function = toolset.by_name.get(b.name)
    left, right = full(function, a), full(function, b)
    if left.keys() != right.keys():
        return False
    own = function.by_name if function is not None else {}
    spellings = variants or {}
    return all(
        same_value(own.get(name), left[name], value, toolset.today, spellings.get(f"{b.name}.{name}", ()))
        for name, value in right.items()
    )


def same_calls(toolset: Toolset, a: Sequence[Call], b: Sequence[Call], variants: Variants | None = None) -> bool:
    """The same calls in any order."""
    if len(a) != len(b):
        return False
    left = list(a)
    for call in b:
        found = next((i for i, other in enumerate(left) if same_call(toolset, other, call, variants)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", spaced(text))) or text.strip()
