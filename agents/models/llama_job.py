"""One request as the engine sees it: tokens in, tokens and text out.

Does: hold what was asked and what came of it, turn tokens into text as they come, find stop texts, hand on what can no longer
be taken back. Does not: decode, or choose a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agents.chat import StopReason
from agents.constrain import Matcher
from agents.models.llama_batch import Sampler, Top
from agents.models.llama_prefix import Held
from agents.models.llama_weights import Weights

Adapters = tuple[tuple[str, float], ...]
"""Names that `Weights.adapter` gave, and scales"""


@dataclass(eq=False)
class Job:
    """One prompt to be answered; filled in by the engine's thread until `done` is called with it."""

    ids: list[int]
    """the prompt; what is answered is appended"""
    max_tokens: int
    adapters: Adapters = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top: int | None = None
    """alternatives per token; None keeps no log-probabilities"""
    stop: tuple[str, ...] = ()
    static: int = 0
    """first tokens of the prompt that other prompts will begin with too"""
    matcher: Matcher | None = None
    deadline: float | None = None
    """by time.perf_counter"""
    on_text: Callable[[str], None] | None = None
    done: Callable[[Job], None] = lambda job: None

    prompt: int = 0
    reused: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    text: str = ""
    ended: StopReason | None = None
    failure: str | None = None
    bug: BaseException | None = None
    cancelled: bool = False
    times: list[float] = field(default_factory=list)
    """submitted, admitted, first token, end"""

    held: Held | None = field(default=None, repr=False)
    sampler: Sampler | None = field(default=None, repr=False)
    place: int = -1
    shown: int = 0
    """characters of `text` handed on so far"""
    cut: bool = False
    """a stop text came up"""
    decoder: Any = None

    @property
    def left(self) -> int:
        """Tokens that are not in the memory yet."""
        assert self.held is not None
        return len(self.held.ids) - self.held.ready

    def take(self, token: int, weights: Weights) -> None:
        """Append the newest token, decide whether it ends the job, show the text that is decided."""
        self.tokens.append(token)
        self.ids.append(token)
        if token in weights.eos_ids:
            self.ended = "stop"
            return
        if self.decoder is not None:
            before = len(self.text)
            self.text += self.decoder.decode(weights.pieces[token])
            if self.stop and self._stopped(before):
                self.ended = "stop"
                return
        if self.matcher is not None and self.matcher.finished:
            self.ended = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.ended = "length"
        if self.on_text is not None and self.ended is None:
            self._show(self._certain(), weights.strips_space)

    def complete(self, weights: Weights) -> None:
        """The whole text, once no token will follow; what has not been shown of it is."""
        if self.decoder is None:
            kept = self.tokens[:-1] if self.tokens and self.tokens[-1] in weights.eos_ids else self.tokens
            self.text = b"".join(map(weights.pieces.__getitem__, kept)).decode("utf-8", "replace")
        elif not self.cut:
            self.text += self.decoder.decode(b"", True)
        if self.on_text is not None:
            self._show(len(self.text), weights.strips_space)
        if weights.strips_space and self.text[:1] == " ":
            self.text = self.text[1:]

    def _stopped(self, before: int) -> bool:
        """Whether a stop text has come up in what follows the first `before` characters; the text then ends before it."""
        start = max(0, before - max(map(len, self.stop)) + 1)
        found = [at for at in (self.text.find(stop, start) for stop in self.stop) if at >= 0]
        if found:
            self.text, self.cut = self.text[: min(found)], True
        return self.cut

    def _certain(self) -> int:
        """Characters that no stop text which may just be coming up can take back."""
        end = len(self.text)
        for stop in self.stop:
            for size in range(min(len(stop) - 1, len(self.text)), 0, -1):
                if self.text.endswith(stop[:size]):
                    end = min(end, len(self.text) - size)
                    break
        return end

    def _show(self, end: int, strips_space: bool) -> None:
        start = max(self.shown, 1 if strips_space and self.text[:1] == " " else 0)
        if end > start and self.on_text is not None:
            self.on_text(self.text[start:end])
            self.shown = end
