"""The eleven malformed tool calls that nine agent frameworks were tried with, as an OpenAI-compatible server sends them.

Does: hold, for each, the message of the assistant and what must become of it. Does not: run anything.
The tool is `add(a, b)` on integers, where the wrong handling of a text shows ("2" + "3" is "23"), and `lookup(order_id)`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Malformed:
    """`message` replaces the assistant's; `rung` mends it, or is "retry", with `named` in what the model is told."""

    name: str
    message: dict[str, Any]
    rung: str
    named: tuple[str, ...] = ()


def called(arguments: str, name: str = "add") -> dict[str, Any]:
    """An assistant's message with one tool call."""
    return {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}]}


def written(text: str) -> dict[str, Any]:
    return {"content": text}


GOOD = json.dumps({"a": 2, "b": 3})
ELEVEN = (
    Malformed("truncated JSON", called('{"a": 2, "b": 3'), "json-repair"),
    Malformed("trailing comma", called('{"a": 2, "b": 3,}'), "json-repair"),
    Malformed("single quotes", called("{'a': 2, 'b': 3}"), "json-repair"),
    Malformed("numbers as strings", called('{"a": "2", "b": "3"}'), "coerce"),
    Malformed("a word for a number", called('{"a": "two", "b": 3}'), "retry", ("add", "a", '"two"', "an integer")),
    Malformed("missing argument", called('{"a": 2}'), "retry", ("add", "b is missing", "an integer")),
    Malformed("unknown tool", called(GOOD, "addd"), "retry", ("addd", "add, lookup", "Did you mean 'add'")),
    Malformed("call in tags", written(f'<tool_call>{{"name": "add", "arguments": {GOOD}}}</tool_call>'), "text-call"),
    Malformed("call in a fence", written(f'I add.\n```json\n{{"name": "add", "arguments": {GOOD}}}\n```'), "text-call"),
    Malformed(
        "not JSON at all", called("a is two and b is three"), "retry", ("add", "not JSON", "a (an integer), b (an integer)")
    ),
    Malformed("the same call for ever", called(GOOD), "stop-repeat"),
)
