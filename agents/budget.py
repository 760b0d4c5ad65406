"""What one call of a persona may cost, what it has cost so far, and what a persona has cost in all.

Does: hold the limits, meter one call against them, add up a persona's calls under a lock.
Does not: stop a model in mid-word; the request carries the limits (`timeout_s`, `max_tokens`) and the backend does.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from pydantic import Field

from agents.chat import Frozen, Reply, Usage
from agents.events import time_left_s


class Budget(Frozen):
    """Limits of one call, its tool calls and retries included. None is no limit."""

    ms: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, gt=0)


@dataclass(slots=True)
class Meter:
    """One call against its budget."""

    budget: Budget | None
    started: float = field(default_factory=time.perf_counter)
    prompt: int = 0
    completion: int = 0
    reused: int = 0
    cost: float | None = None
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    tool_ms: float = 0.0

    def add(self, reply: Reply) -> None:
        """Count one reply."""
        usage = reply.usage
        self.prompt += usage.prompt_tokens
        self.completion += usage.completion_tokens
        self.reused += usage.reused_tokens
        self.prefill_ms += reply.timings.prefill_ms
        self.decode_ms += reply.timings.decode_ms
        if usage.cost_usd is not None:
            self.cost = (self.cost or 0.0) + usage.cost_usd

    @property
    def ms(self) -> float:
        """Milliseconds since the call began."""
        return (time.perf_counter() - self.started) * 1e3

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=self.prompt, completion_tokens=self.completion, reused_tokens=self.reused, cost_usd=self.cost)

    def spent(self) -> str | None:
        """What is used up, in words; None while there is some left."""
        if self.budget is None:
            return None
        if self.budget.tokens is not None and self.completion >= self.budget.tokens:
            return f"{self.completion} of {self.budget.tokens} tokens"
        if self.budget.ms is not None and self.ms >= self.budget.ms:
            return f"{self.ms:.0f} of {self.budget.ms:g} ms"
        return None

    def tokens_left(self, wanted: int) -> int:
        """The smaller of `wanted` and what the budget still allows, at least 1."""
        if self.budget is None or self.budget.tokens is None:
            return wanted
        return max(1, min(wanted, self.budget.tokens - self.completion))

    def seconds_left(self) -> float | None:
        """Seconds the next request may take: the budget's and the node's, whichever is less."""
        node = time_left_s()
        own = None
        if self.budget is not None and self.budget.ms is not None:
            own = max(1e-3, (self.budget.ms - self.ms) / 1e3)
        if node is None:
            return own
        return max(1e-3, node if own is None else min(own, node))


class Totals:
    """What a persona has cost since it was made. `counts` holds what happened, by name: "calls", "over-budget", "escalated",
    "guard:verdict", rungs of the repair ladder, "dropped-turns", …"""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.prompt_tokens = self.completion_tokens = self.reused_tokens = 0
        self.prefill_ms = self.decode_ms = self.tool_ms = self.total_ms = 0.0

    def count(self, what: str, n: int = 1) -> None:
        with self._lock:
            self.counts[what] += n

    def add(self, meter: Meter) -> None:
        """Add one finished call."""
        with self._lock:
            self.counts["calls"] += 1
            self.prompt_tokens += meter.prompt
            self.completion_tokens += meter.completion
            self.reused_tokens += meter.reused
            self.prefill_ms += meter.prefill_ms
            self.decode_ms += meter.decode_ms
            self.tool_ms += meter.tool_ms
            self.total_ms += meter.ms

    def __repr__(self) -> str:
        seen = ", ".join(f"{name}={n}" for name, n in self.counts.items())
        return f"Totals({seen}, prompt_tokens={self.prompt_tokens}, completion_tokens={self.completion_tokens})"
