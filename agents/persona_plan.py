"""What one call of a persona asks, and how its answer is read.

Does: hold it, made by `Persona.plan` before any model runs. Does not: ask (`agents.persona_loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from agents import guards as guarding
from agents.budget import Budget
from agents.chat import Adapter, ChatModel, Message, Sampling, TokenLogprob, ToolCall, ToolSpec
from agents.confidence import mean_probability
from agents.constrain import Constraint
from agents.tools import Tool


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call asks and how its answer is read; made by `Persona.plan`."""

    name: str
    model: ChatModel
    static: tuple[Message, ...]
    turns: tuple[Message, ...]
    """earlier turns that fit, then the question"""
    sampling: Sampling
    fixed: int = 0
    """leading messages that are the same as in the last call"""
    constraint: Constraint | None = None
    specs: tuple[ToolSpec, ...] = ()
    tools: Mapping[str, Tool] = field(default_factory=dict)
    native: bool = True
    """the model is told about tools, calls and results in its own way, not in words"""
    routes: tuple[str, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    output: type[BaseModel] | None = None
    schema: dict[str, Any] | None = None
    think: bool = False
    decode: Callable[[str], str] | None = None
    """completion -> answer of an artifact's task; raises ValueError or its own AnswerError"""
    calls: Callable[[str], tuple[ToolCall, ...]] | None = None
    """answer -> calls to run with `tools`, where an artifact's task answers with calls; their results are then the answer"""
    confidence: Callable[[Sequence[TokenLogprob]], float | None] = mean_probability
    """how sure a reply was, by its log-probabilities"""
    reliability: Sequence[tuple[float, float]] = ()
    """points that turn it into a probability"""
    overrule: Callable[[str, Sequence[TokenLogprob]], tuple[str, float] | None] | None = None
    """what an artifact's task may say against an answer, see `agents.artifact.Asked`"""
    verify: Constraint | None = None
    """what an answer must satisfy although the model may not have been held to it"""
    guards: tuple[guarding.Guard, ...] = ()
    budget: Budget | None = None
    max_rounds: int = 8
    approve: Callable[[ToolCall], bool] | None = None
    card_sha256: str | None = None
    model_sha256: str | None = None
    dropped: int = 0
