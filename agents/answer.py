"""What a persona gives back: a Result, or a NoAnswer that says why there is none.

Does: define the two. Does not: decide anything; `agents.persona_loop` and `agents.cascade` do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from agents.chat import Message, TokenLogprob, ToolCall, Usage
from agents.tools import PersonaError, ToolResult

Reason = Literal["invalid", "repeating", "over-budget", "rounds", "guard", "unsure", "cancelled"]
"""Why there is no answer; "unsure" only makes a cascade escalate."""


@dataclass(slots=True)
class Result:
    """An answer. `str(result)` is its text; `value` its pydantic instance when one was asked for, else the text."""

    text: str
    output: BaseModel | None = None
    persona: str = ""
    """who answered: in a cascade not always the first"""
    confidence: float | None = None
    """exp of the mean log-probability of the least sure model call, 0-1, or what an artifact's task means by it (route: the
    probability of the label); None when the model gives none"""
    logprobs: tuple[TokenLogprob, ...] = ()
    """of the last model call"""
    usage: Usage = field(default_factory=Usage)
    ms: float = 0.0
    calls: tuple[tuple[ToolCall, ToolResult], ...] = ()
    """tools called, in order"""
    messages: tuple[Message, ...] = ()
    """the turns this call added to the conversation, the question first"""
    goto: str | None = None
    """the route the model chose instead of answering"""
    stopped: Reason | Literal["length"] | None = None
    """set when the text was cut off"""
    dropped_turns: int = 0
    """earlier turns left out (or summarized) because the context was full"""
    thought: str = ""
    escalated: Reason | None = None
    """why a cascade went on to the model that gave this answer"""
    probability: float | None = None
    """that the answer is right: the confidence read off the reliability curve of an artifact's card; None without one"""

    @property
    def value(self) -> Any:
        return self.output if self.output is not None else self.text

    def __str__(self) -> str:
        return self.text


class NoAnswer(PersonaError):
    """A persona was asked and gave no usable answer: one sentence, its `reason`, the last `text`, and what was called before."""

    def __init__(
        self, sentence: str, reason: Reason, text: str = "", calls: tuple[tuple[ToolCall, ToolResult], ...] = (), **more: Any
    ) -> None:
        super().__init__(sentence)
        self.reason: Reason = reason
        self.text = text
        self.calls = calls
        self.messages: tuple[Message, ...] = more.get("messages", ())
        self.confidence: float | None = more.get("confidence")
        self.usage: Usage = more.get("usage", Usage())
