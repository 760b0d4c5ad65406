"""Moving average of the trained weights.

Does: keep it, put it into the model for a while, save and load it. Does not: decide when.
Module of torch code; imported by trainers only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

EMA_FILE = "ema.safetensors"


class Average:
    """Exponential moving average of the trained weights, in fp32, `decay` warmed up as (1 + t) / (10 + t)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.mean = {name: p.detach().float().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.mean.values()), [p.detach().float() for p in self.live.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        kept = {name: p.detach().clone() for name, p in self.live.items()}
        with torch.no_grad():
            for name, p in self.live.items():
                p.copy_(self.mean[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.live.items():
                    p.copy_(kept[name])

    def save(self, directory: Path) -> None:
        save_file(self.mean, directory / EMA_FILE)

    def load(self, directory: Path) -> None:
        for name, tensor in load_file(directory / EMA_FILE).items():
            self.mean[name].copy_(tensor)
