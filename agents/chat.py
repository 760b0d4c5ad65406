"""The words every part of Penknife uses to talk to a model: Message, Request, Reply, ChatModel.

Does: define plain, frozen data and one narrow protocol that teachers, students, personas and test doubles share.
Does not: import a backend, open a model (`agents.models.open_model`) or decide prompts (`factory.tasks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from agents.constrain import Constraint

Role = Literal["system", "user", "assistant", "tool"]
StopReason = Literal["stop", "length", "tool_calls", "constraint", "timeout", "cancelled", "error"]


class Frozen(BaseModel):
    """Immutable value that refuses unknown fields.

    Its validator is built when the first one is made, not at import. Defaults are made with `model_construct`, which needs none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ToolSpec(Frozen):
    """One callable function as a model sees it; `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class ToolCall(Frozen):
    """One call a model asked for. `raw` keeps the argument text as written when it is not valid JSON."""

    id: str = ""
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    raw: str | None = None


class Message(Frozen):
    """One turn of a conversation. `call_id` names the call that a tool message answers."""

    role: Role
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None


class Sampling(Frozen):
    """How to decode. `temperature` 0 is greedy; `top_logprobs` 0 asks for no alternatives; `seed` None is unseeded."""

    temperature: float = Field(0.0, ge=0.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(256, ge=1)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0)


class Adapter(Frozen):
    """A LoRA file in the backend's own format (GGUF, ONNX or peft directory) and how strongly it is added; 0 is the bare base."""

    path: str
    scale: float = 1.0


class Request(Frozen):
    """One question to a model. `id` is the caller's own name for it and comes back untouched in the reply.

    `adapters` are added to the model's weights for this request alone. `static_messages` says how many leading messages never
    change between requests (a persona's prompt), so that a backend may keep what it worked out for them. After `timeout_s`
    seconds decoding ends with what there is and stop_reason "timeout". A backend that cannot do what is asked answers with an
    error.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling.model_construct()
    constraint: Constraint | None = None
    tools: tuple[ToolSpec, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    static_messages: int = Field(0, ge=0)
    timeout_s: float | None = Field(None, gt=0)
    id: str = ""


class TokenLogprob(Frozen):
    """Log-probability (nats) of one generated token; `top` holds (token id or None, text, logprob), best first."""

    token: str
    id: int | None = None
    logprob: float
    top: tuple[tuple[int | None, str, float], ...] = ()


class Usage(Frozen):
    """Tokens of one reply. `reused_tokens` is the part of the prompt served from a cache; `cost_usd` None is unknown."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = 0
    cost_usd: float | None = None


class Timings(Frozen):
    """Milliseconds; in a batch, prefill and decode are the whole batch's, as its members waited for them."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0


class Reply(Frozen):
    """One answer. An answer that failed for good has `stop_reason` "error" and the sentence in `error`; it never raises late."""

    id: str = ""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage = Usage.model_construct()
    timings: Timings = Timings.model_construct()
    stop_reason: StopReason = "stop"
    model: str = ""
    error: str | None = None
    truncated_prompt_tokens: int = 0


@runtime_checkable
class ChatModel(Protocol):
    """What every model can do, whatever runs it."""

    name: str
    """Spec or id, as shown in traces and reports."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Answer a batch. Yields (index into `requests`, reply) as each finishes, in any order, every index exactly once.

        A request that fails for good yields a Reply with stop_reason "error"; a programming error raises.
        """
        ...

    def close(self) -> None:
        """Free weights and connections; calling it twice is harmless."""
        ...


@runtime_checkable
class StreamingModel(Protocol):
    """A ChatModel that also shows an answer while it is being written."""

    def stream(self, request: Request) -> Iterator[str | Reply]:
        """Pieces of text as they are decided (never half a character), then the whole Reply, always last.

        Closing the iterator early cancels the request.
        """
        ...


def answer(model: ChatModel, requests: Sequence[Request]) -> list[Reply]:
    """Replies in the order of `requests`."""
    replies: dict[int, Reply] = dict(model.generate(requests))
    return [replies[i] for i in range(len(requests))]


class ModelError(Exception):
    """A model cannot be opened or asked as wanted: one sentence with the value, the choices and the next step."""
