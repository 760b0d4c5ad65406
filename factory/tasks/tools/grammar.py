"""Grammars: every answer over the functions offered for one request, and nothing else.

Does: a Lark grammar of the compact dialect, a JSON schema of the plain one. Does not: compile them (`agents.constrain`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from agents.calling import call_schema
from agents.constrain import Constraint, json_schema, lark
from factory.tasks.sql.spaced import spaced
from factory.tasks.tools.compact import CALL, MAX_CALLS, NONE, RESULTS, SPANS_FOR
from factory.tasks.tools.functions import ANYTHING, Argument, Toolset
from factory.tasks.tools.view import MAX_ARGUMENTS, MAX_FUNCTIONS, View

FEW = 100
"""Numbers of a range that are listed one by one."""
LONGEST_COPY = 120
"""Characters of the longest text copied from the request."""
CLOCK = "^([01][0-9]|2[0-3]):[0-5][0-9]$"
MAX_CHARS = 256
"""Characters of the longest text in a plain call."""


def plain(toolset: Toolset) -> Constraint:
    """A JSON list of at most eight calls, each of an offered function with arguments of its schema."""
    return json_schema(answer_schema(toolset))


def answer_schema(toolset: Toolset) -> dict[str, Any]:
    """The JSON schema of an answer; definitions of a function's schema move to the top, named after it."""
    shared: dict[str, Any] = {}
    items = []
    for i, function in enumerate(toolset.functions):
        own = _clocked(call_schema(function.spec, MAX_CHARS))
        defined = {(word, name): one for word in ("$defs", "definitions") for name, one in own.pop(word, {}).items()}
        moves = {f"#/{word}/{name}": f"#/$defs/f{i}_{name}" for word, name in defined}
        shared |= {f"f{i}_{name}": _moved(one, moves) for (_, name), one in defined.items()}
        items.append(_moved(own, moves))
    calls = items[0] if len(items) == 1 else {"anyOf": items}
    return {"type": "array", "items": calls, "maxItems": MAX_CALLS, **({"$defs": shared} if shared else {})}


def _clocked(schema: Any) -> Any:
    """Times of day are HH:MM here; JSON schema's own format wants seconds and a time zone."""
    if isinstance(schema, list):
        return [_clocked(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "time":
        return {**{k: v for k, v in schema.items() if k not in ("format", "maxLength")}, "pattern": CLOCK}
    return {k: _clocked(v) for k, v in schema.items()}


def _moved(schema: Any, moves: Mapping[str, str]) -> Any:
    """The schema with its references following their definitions."""
    if isinstance(schema, list):
        return [_moved(one, moves) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {k: moves.get(v, v) if k == "$ref" else _moved(v, moves) for k, v in schema.items()}


def compact(view: View) -> Constraint:
    """`<none>`, or calls whose arguments stand in the order of the prompt: required ones always, each with values of its kind.

    A function with a required argument that nothing in the request can be is left out.
    """
    heads: list[str] = []
    lines: list[str] = []
    values = {number: _value(view, argument) for number, argument in enumerate(view.arguments[:MAX_ARGUMENTS])}
    for t, function in enumerate(view.toolset.functions[:MAX_FUNCTIONS]):
        parts: list[str] | None = [json.dumps(f"{CALL}<t{t}>")]
        for argument in function.arguments:
            number = view.argument_number[argument.key]
            anything = ["ANY"] if not argument.required and argument.default == ANYTHING else []
            ways = " | ".join([f"value_{number}"] * bool(values.get(number)) + anything)
            if not ways and argument.required:
                parts = None
                break
            if ways and parts is not None:
                parts.append(f"({json.dumps(f'<c{number}>')} ({ways})){'' if argument.required else '?'}")
        if parts is not None:
            heads.append(f"call_{t}")
            lines.append(f"call_{t}: {' '.join(parts)}")
    if not heads:
        return lark(f"start: {json.dumps(NONE)}\n")
    lines = [f"start: NONE | call{{1,{MAX_CALLS}}}", f"NONE: {json.dumps(NONE)}", f"call: {' | '.join(heads)}", *lines]
    lines += [f"value_{number}: {ways}" for number, ways in values.items() if ways]
    lines += [
        'ANY: "<any>"',
        'BOOLEAN: "<true>" | "<false>"',
        f"RESULT: {_choice(f'<x{i}>' for i in range(RESULTS))}",
        "NUMBER: / (- )?[0-9]{1,9}( \\. [0-9]{1,9})?/",
        "WHOLE: / (- )?[0-9]{1,9}/",
    ]
    if view.copied:
        node = json.dumps({"substring_chunks": list(view.copied)}, ensure_ascii=False)
        lines += [f"COPY: RUN & /(?s: .{{1,{LONGEST_COPY}}})/", f"RUN: %regex {node}"]
    return lark("\n".join(lines) + "\n")


def _value(view: View, argument: Argument) -> str:
    """What may stand after an argument's token, as alternatives; "" when nothing may."""
    if argument.kind == "boolean":
        return "BOOLEAN"
    if argument.kind == "choice":
        return _choice(f"<enum>{spaced(choice) or ' ' + choice}" for choice in argument.choices)
    if argument.kind == "other":
        return ""
    numeric = argument.kind in ("integer", "number")
    spans = [
        f"<v{i}>"
        for i, (span, _) in enumerate(view.values)
        if span.kind in SPANS_FOR[argument.kind] and (not numeric or argument.allows(float(span.value)))
    ]
    ways = [_choice(spans)] if spans else []
    ways += ["RESULT"] * view.toolset.chained
    if numeric:
        ways.append(_written(argument))
    elif argument.kind == "text" and view.copied:
        ways.append("COPY")
    return " | ".join(ways)


def _written(argument: Argument) -> str:
    """Numbers written out: those allowed where they are few, else any of ordinary length."""
    if argument.choices:
        return _choice(spaced(str(choice)) for choice in argument.choices)
    if argument.kind == "integer" and argument.low is not None and argument.high is not None:
        low, high = math.ceil(argument.low), math.floor(argument.high)
        if 0 <= high - low <= FEW:
            return _choice(spaced(str(number)) for number in range(low, high + 1))
    return "WHOLE" if argument.kind == "integer" else "NUMBER"


def _choice(texts: Iterable[str]) -> str:
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
