"""How long training goes on and how fast it learns at each step, fitted to a time budget and remembered on disk.

Does: learning-rate factor per step, steps at which candidates are scored, fitting the number of steps to the minutes left.
Does not: train or look at a model.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Decay = Literal["linear", "cosine", "constant"]


def write_json(path: Path, value: object) -> None:
    """Whole or not at all, also under a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(value, indent=1)
    with tmp.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)


@dataclass(frozen=True)
class Fit:
    """From the step after `at` on, training ends at `total` steps and warms up over `warmup`."""

    at: int
    total: int
    warmup: int


@dataclass
class Schedule:
    """`fits[0]` is the plan by epochs; later ones come from measured speed. Every decision is written to `path` at once, so a
    resumed run has the same learning rates."""

    fits: list[Fit]
    warmup_share: float
    decay: Decay = "linear"
    path: Path | None = None
    spent_s: float = 0.0
    """Seconds used by earlier processes of this run."""
    resumed: bool = field(default=False)
    """Whether an earlier process fitted it to the minutes: that fit stays."""

    @classmethod
    def open(cls, path: Path | None, planned: int, warmup_share: float, decay: Decay) -> Schedule:
        """The stored schedule when there is one for this plan, else a new one of `planned` steps."""
        first = Fit(0, planned, _warmup(planned, warmup_share))
        if path is not None and path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            fits = [Fit(**fit) for fit in stored["fits"]]
            if fits[0].total == planned and stored["decay"] == decay and stored["warmup_share"] == warmup_share:
                return cls(fits, warmup_share, decay, path, stored["spent_s"], len(fits) > 1)
        return cls([first], warmup_share, decay, path)

    @property
    def planned(self) -> int:
        """Steps by epochs, the most there can be."""
        return self.fits[0].total

    @property
    def total(self) -> int:
        return self.fits[-1].total

    def fit(self, at: int, total: int) -> None:
        """End at `total` steps instead (between `at` + 1 and the plan)."""
        total = min(max(total, at + 1), self.planned)
        # A warm-up that is already half over would jump back: it ends where it is.
        warmup = max(min(self.fits[0].warmup, _warmup(total, self.warmup_share)), 1)
        self.fits.append(Fit(at, total, warmup))
        self.save()

    def save(self, spent_s: float | None = None) -> None:
        if spent_s is not None:
            self.spent_s = spent_s
        if self.path is not None:
            fits = [{"at": f.at, "total": f.total, "warmup": f.warmup} for f in self.fits]
            value = {"fits": fits, "decay": self.decay, "warmup_share": self.warmup_share, "spent_s": round(self.spent_s, 1)}
            write_json(self.path, value)

    def factor(self, done: int) -> float:
        """Share of the peak learning rate for the step after `done` steps: linear warm-up, then decay to 0 at the end."""
        fit = next(f for f in reversed(self.fits) if f.at <= done)
        if done < fit.warmup:
            return (done + 1) / fit.warmup
        left = max(0.0, (fit.total - done) / max(1, fit.total - fit.warmup))
        if self.decay == "constant":
            return 1.0
        return left if self.decay == "linear" else 0.5 * (1 - math.cos(math.pi * min(1.0, left)))

    def due(self, done: int, n: int) -> int:
        """How many of `n` evenly spread scorings should be done after `done` steps; the last is at the end."""
        return sum(1 for i in range(1, n + 1) if round(self.total * i / n) <= done)


def _warmup(total: int, share: float) -> int:
    return max(1, math.ceil(total * share))


def steps_in(seconds: float, done: int, seconds_per_step: float) -> int:
    """Steps in all when `seconds` are left after `done` steps."""
    return done + max(1, int(seconds / seconds_per_step))
