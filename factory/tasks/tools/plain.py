"""The plain dialect: functions as JSON, answers as a JSON list of calls, for pretrained students and teachers.

Does: write the messages, read what a model wrote. Does not: validate calls against schemas (`score.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from agents.chat import Message
from factory.tasks.task import AnswerError
from factory.tasks.tools import calls
from factory.tasks.tools.calls import Call
from factory.tasks.tools.functions import Toolset
from factory.tasks.tools.view import turns_of, written

SYSTEM = (
    "You decide which of the given functions to call next, so that the user's request is done. Answer with a JSON list of "
    'calls and nothing else: [{"name": …, "arguments": {…}}]. Answer [] when no function fits, when a required argument has not '
    "been said, or when nothing needs to be called now. Give only arguments that the user said or agreed to. Write dates as "
    "YYYY-MM-DD and times as HH:MM; copy other values as they are said; take choices as the schema spells them."
)
_FENCE = re.compile(r"```(?:\w+)?[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_MARK = re.compile(r"</?tool_calls?>")


def messages(toolset: Toolset, question: str) -> tuple[Message, ...]:
    """The prompt: instructions, then functions, today's date where there is one, and the request or conversation."""
    lines = [
        json.dumps(
            {"name": function.name, "description": function.description, "parameters": dict(function.parameters)},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for function in toolset.functions
    ]
    day = f"Today is {toolset.today:%A}, {toolset.today.isoformat()}.\n" if toolset.today is not None else ""
    turns = turns_of(question)
    asked = f"Request: {turns[0].text}" if len(turns) == 1 else f"Conversation:\n{written(turns)}"
    return (
        Message(role="system", content=SYSTEM),
        Message(role="user", content="Functions:\n" + "\n".join(lines) + f"\n{day}{asked}"),
    )


def decode(completion: str) -> tuple[Call, ...]:
    """Calls of a completion: a JSON list, one object, or objects one after another, in a fence or in <tool_call> marks. Raises
    AnswerError("not-parsed")."""
    fenced = _FENCE.search(completion)
    text = _MARK.sub(" ", fenced[1] if fenced else completion)
    text = re.sub(r"^.*?</think>", "", text, flags=re.DOTALL).strip()
    start = next((i for i, char in enumerate(text) if char in "[{"), None)
    if start is None:
        raise AnswerError("not-parsed", f"no JSON list of calls: {completion[:80]!r}")
    rows: list[Any] = []
    decoder = json.JSONDecoder()
    at = start
    while at < len(text) and text[at] in "[{":
        try:
            row, at = decoder.raw_decode(text, at)
        except ValueError as error:
            raise AnswerError("not-parsed", f"not whole JSON ({error}): {completion[:80]!r}") from None
        rows += row if isinstance(row, list) else [row]
        at += len(text[at:]) - len(text[at:].lstrip(" \n\t,;"))
    return calls.read(json.dumps([_unwrapped(row) for row in rows]))


def _unwrapped(row: Any) -> Any:
    """OpenAI's form {"function": {"name", "arguments": text}} and arguments written as text."""
    if isinstance(row, Mapping) and isinstance(row.get("function"), Mapping):
        row = row["function"]
    if isinstance(row, Mapping) and isinstance(row.get("arguments"), str):
        try:
            return {**row, "arguments": json.loads(row["arguments"])}
        except ValueError:
            return row
    return row
