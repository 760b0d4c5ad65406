"""Grammars: every answer over the functions offered for one request, and nothing else.

Does: a Lark grammar of the compact dialect, a JSON schema of the plain one. Does not: compile them (`agents.constrain`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from agents.calling import call_schema
from agents.constrain import Constraint, json_schema, lark
from factory.tasks.sql.spaced import spaced
from factory.tasks.tools.compact import CALL, MAX_CALLS, NONE, RESULTS, SPANS_FOR
from factory.tasks.tools.functions import ANYTHING, Argument, Toolset
from factory.tasks.tools.view import MAX_ARGUMENTS, MAX_FUNCTIONS, View

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
        for word in ("$defs", "definitions"):
            for name, schema in own.pop(word, {}).items():
                shared[f"f{i}_{name}"] = schema
                own = _moved(own, f"#/{word}/{name}", f"#/$defs/f{i}_{name}")
                shared = _moved(shared, f"#/{word}/{name}", f"#/$defs/f{i}_{name}")
        items.append(own)
    schema: dict[str, Any] = {"type": "array", "items": items[0] if len(items) == 1 else {"anyOf": items}, "maxItems": MAX_CALLS}
    return schema | ({"$defs": shared} if shared else {})


def _clocked(schema: Any) -> Any:
    """Times of day are HH:MM here; JSON schema's own format wants seconds and a time zone."""
    if isinstance(schema, list):
        return [_clocked(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "time":
        return {**{k: v for k, v in schema.items() if k not in ("format", "maxLength")}, "pattern": CLOCK}
    return {k: _clocked(v) for k, v in schema.items()}


def _moved(schema: Any, old: str, new: str) -> Any:
    if isinstance(schema, list):
        return [_moved(one, old, new) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {k: new if k == "$ref" and v == old else _moved(v, old, new) for k, v in schema.items()}


def compact(view: View) -> Constraint:
    """`<none>`, or calls whose arguments stand in the order of the prompt: required ones always, each with values of its kind."""
    lines = [f"start: NONE | call{{1,{MAX_CALLS}}}", f"NONE: {json.dumps(NONE)}"]
    heads = []
    used: dict[int, Argument] = {}
    for t, function in enumerate(view.toolset.functions[:MAX_FUNCTIONS]):
        parts = [json.dumps(f"{CALL}<t{t}>")]
        for argument in function.arguments:
            number = view.argument_number[argument.key]
            if number >= MAX_ARGUMENTS or argument.kind == "other":
                continue
            any_value = not argument.required and argument.default == ANYTHING
            used.setdefault(number, argument)
            value = f"({json.dumps(f'<c{number}>')} value_{number})"
            value = f"({json.dumps(f'<c{number}>')} (value_{number} | ANY))" if any_value else value
            parts.append(value if argument.required else f"{value}?")
        lines.append(f"call_{t}: {' '.join(parts)}")
        heads.append(f"call_{t}")
    lines.append(f"call: {' | '.join(heads)}")
    lines += [f"value_{number}: {_value(view, argument)}" for number, argument in used.items()]
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
    if argument.kind == "boolean":
        return "BOOLEAN"
    if argument.kind == "choice":
        return _choice(f"<enum>{spaced(choice) or ' ' + choice}" for choice in argument.choices)
    spans = [f"<v{i}>" for i, (span, _) in enumerate(view.values) if span.kind in SPANS_FOR[argument.kind]]
    if argument.choices:
        allowed = {str(choice) for choice in argument.choices}
        spans = [f"<v{i}>" for i, (span, _) in enumerate(view.values) if span.kind == "number" and span.value in allowed]
        return _choice([*spans, *(spaced(str(choice)) for choice in argument.choices)])
    ways = [_choice(spans)] if spans else []
    ways.append("RESULT")
    if argument.kind in ("integer", "number"):
        ways.append("WHOLE" if argument.kind == "integer" else "NUMBER")
    elif view.copied:
        ways.append("COPY")
    return " | ".join(ways)


def _choice(texts: Iterable[str]) -> str:
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
