"""Conversations: earlier turns in front of a question, and what gives way when they no longer fit.

Does: read the forms a history comes in, count a prompt's tokens before the model is asked, apply the overflow policy.
Does not: cut inside a message, or lose a turn without saying how many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from agents.chat import Message, ToolSpec
from agents.tools import PersonaError

Overflow = Literal["refuse", "drop_oldest", "summarize"]
OVERFLOWS: tuple[str, ...] = ("refuse", "drop_oldest", "summarize")
MARGIN = 256
"""Tokens a chat template may add by itself; no token spells less than one byte, so shorter prompts need no counting."""
SUMMARY = "Summary of the conversation so far: "
SUMMARIZE = (
    "Summarize the conversation below in at most five short sentences. Keep names, numbers and decisions exactly as they are "
    "written."
)


def read(history: Any, owner: str) -> list[Message]:
    """Messages of a history: Messages, or dicts with "role" and "content". Raises PersonaError for anything else."""
    if history is None:
        return []
    out = []
    try:
        for turn in history:
            out.append(turn if isinstance(turn, Message) else Message.model_validate(turn))
    except (TypeError, ValidationError):
        raise PersonaError(
            f"{owner!r} cannot read its history: give a list of Message or of {{'role': …, 'content': …}}, not {history!r:.80}"
        ) from None
    return out


def tokens_of(model: Any, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int | None:
    """Tokens of this prompt as the model's own template writes it; None when it cannot count."""
    count = getattr(model, "prompt_ids", None)
    return len(count(messages, tools)) if count is not None else None


def fit(
    model: Any,
    static: Sequence[Message],
    turns: list[Message],
    tools: Sequence[ToolSpec],
    answer_tokens: int,
    policy: Overflow,
    owner: str,
    summarize: Callable[[Sequence[Message]], str],
) -> tuple[list[Message], int]:
    """(turns that fit beside the static messages and an answer, how many were taken out). The last turn always stays.

    Raises PersonaError with both figures when the policy is "refuse", or when not even the last turn fits.
    """
    context = getattr(model, "context", None)
    if context is None or not hasattr(model, "prompt_ids"):
        return turns, 0
    room = context - answer_tokens
    size = sum(len(message.content.encode()) + 8 for message in (*static, *turns))
    if size + MARGIN <= room and not tools and not any(turn.calls for turn in turns):
        return turns, 0
    found = tokens_of(model, (*static, *turns), tools)
    if found is None or found <= room:
        return turns, 0
    if policy == "refuse" or len(turns) == 1:
        raise PersonaError(
            f"{owner!r}: the prompt has {found} tokens, but {model.name} has room for {room} ({context} less {answer_tokens} "
            "for the answer); shorten it, lower max_tokens, or set overflow='drop_oldest' or 'summarize'"
        )
    at = 0
    while found is not None and found > room and at < len(turns) - 1:
        at = _next_start(turns, at)
        found = tokens_of(model, (*static, *turns[at:]), tools)
    if found is not None and found > room:
        raise PersonaError(
            f"{owner!r}: the last turn alone makes {found} tokens, but {model.name} has room for {room}; shorten it"
        )
    if policy == "drop_oldest":
        return turns[at:], at
    said = summarize(turns[:at])
    while True:
        kept = turns[at:]
        short = [Message(role="user", content=SUMMARY + said), Message(role="assistant", content="Noted."), *kept]
        found = tokens_of(model, (*static, *short), tools)
        if found is None or found <= room:
            return short, at
        if at >= len(turns) - 1:
            return kept, at
        at = _next_start(turns, at)


def _next_start(turns: Sequence[Message], at: int) -> int:
    """Where the next exchange begins: at a user's message, so that no result stands without its call; at most the last turn."""
    for i in range(at + 1, len(turns)):
        if turns[i].role == "user":
            return i
    return len(turns) - 1
