"""The decoding loop for transformers models: one left-padded batch, KV-cached, from prompts to tokens.

Does: prefill, choose tokens (greedy or sampled, under masks), keep their log-probabilities, drop finished rows from the cache.
Does not: know messages, text or grammars; its caller brings bit masks and says which rows go on.
This module is torch code throughout and is imported when a transformers model is opened.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

MINIMUM_ROOM = 32
"""Positions a cache layer grows by at the least."""


@dataclass
class Row:
    """One sequence being written: what was asked for, then what came out."""

    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    dice: random.Random = field(default_factory=random.Random)
    top: int | None = None
    """alternatives to keep per token; None keeps no log-probabilities at all"""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values (B, heads, positions, head size) in a buffer with room to spare, so that a step writes one position instead
    of copying all of them; what attention sees is a view."""

    _layer_type = None  # a name here would put this class in place of transformers' own layers everywhere

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._length = 0
        self._keys = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[3]))
        self._values = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[3]))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[-2]
        if end > self._keys.shape[-2]:
            self._keys, self._values = self._grown(self._keys, end), self._grown(self._values, end)
        self._keys[:, :, self._length : end] = key_states
        self._values[:, :, self._length : end] = value_states
        self._length = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def _grown(self, old: Tensor, needed: int) -> Tensor:
        new = old.new_empty((old.shape[0], old.shape[1], needed + max(MINIMUM_ROOM, needed // 4), old.shape[3]))
        new[:, :, : self._length] = old[:, :, : self._length]
        return new

    def keep(self, count: int, sources: Tensor, targets: Tensor) -> None:
        """Move rows `sources` (n,) to `targets` (n,), then keep the first `count`: only what moves is copied."""
        if not self.is_initialized:
            return
        if len(sources):
            self._keys[targets, :, : self._length] = self._keys[sources, :, : self._length]
            self._values[targets, :, : self._length] = self._values[sources, :, : self._length]
        self._keys, self._values = self._keys[:count], self._values[:count]
        self.keys, self.values = self._keys[:, :, : self._length], self._values[:, :, : self._length]


class Batch:
    """Rows decoded together. `step()` writes one token to every live row; `drop` the ones that are over."""

    def __init__(self, model: Any, rows: Sequence[Row], pad_id: int) -> None:
        self.model, self.rows = model, list(rows)
        self.device = model.get_input_embeddings().weight.device
        self.seconds: dict[str, float] = {"forward": 0.0, "choose": 0.0}
        """where time went: forward, choose"""
        length = max(len(row.prompt) for row in self.rows)
        pads = [length - len(row.prompt) for row in self.rows]
        ids = torch.tensor([[pad_id] * pad + row.prompt for pad, row in zip(pads, self.rows)], device=self.device)
        mask = torch.ones((len(self.rows), length), dtype=torch.long)
        for mask_row, pad in zip(mask, pads):
            mask_row[:pad] = 0
        self.mask = mask.to(self.device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.cache, self.roomy = new_cache(model)
        self.inputs = ids
        self.logits: Tensor | None = None
        self._keep_last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(_inner(model).forward).parameters else {}

    @torch.inference_mode()
    def forward(self) -> None:
        """Run the model over what is new; `logits` (B, V) float32 of the next token replace the old."""
        start = time.perf_counter()
        out = self.model(
            input_ids=self.inputs,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            **self._keep_last,
        )
        self.cache = out.past_key_values
        self.logits = out.logits[:, -1].float()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds["forward"] += time.perf_counter() - start

    @torch.inference_mode()
    def choose(self, bits: Tensor | None) -> list[int]:
        """One token per row, its log-probabilities stored. `bits` (B, >= V/32) int32 says which tokens may be chosen; None: all.

        Log-probabilities are those of the masked distribution at temperature 1, before top-p.
        """
        start = time.perf_counter()
        logits = self.logits
        assert logits is not None, "forward() comes before choose()"
        if bits is not None:
            logits = masked(logits, bits.to(self.device))
        chosen = logits.argmax(-1)
        sampled = [i for i, row in enumerate(self.rows) if row.temperature > 0]
        if sampled:
            picks = self._sample(logits, sampled)
            chosen = chosen.index_copy(0, torch.tensor(sampled, device=self.device), picks)
        tokens: list[int] = chosen.tolist()
        wanted = [i for i, row in enumerate(self.rows) if row.top is not None]
        if wanted:
            self._store(logits, chosen, wanted)
        for row, token in zip(self.rows, tokens):
            row.tokens.append(token)
        self.inputs = chosen[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.rows), 1))], dim=1)
        self.positions = self.positions[:, -1:] + 1
        self.seconds["choose"] += time.perf_counter() - start
        return tokens

    def _sample(self, logits: Tensor, rows: list[int]) -> Tensor:
        """Inverse-CDF sampling, one uniform number a row from its own generator, so that neighbours change nothing."""
        picked = [self.rows[i] for i in rows]
        heat = torch.tensor([row.temperature for row in picked], device=self.device)[:, None]
        probs = torch.softmax(logits[rows] / heat, -1)
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        total = probs.cumsum(-1)
        top_p = torch.tensor([row.top_p for row in picked], device=self.device)[:, None]
        # A token stays while the mass before it is below top_p: the most likely one always does.
        probs = probs.masked_fill((total - probs >= top_p) & (top_p < 1), 0.0)
        total = probs.cumsum(-1)
        uniform = torch.tensor([row.dice.random() for row in picked], device=self.device)[:, None] * total[:, -1:]
        last = (probs > 0).sum(-1, keepdim=True) - 1
        at = torch.minimum((total <= uniform).sum(-1, keepdim=True), last)
        picks: Tensor = order.gather(1, at)[:, 0]
        return picks

    def _store(self, logits: Tensor, chosen: Tensor, rows: list[int]) -> None:
        logprobs = torch.log_softmax(logits[rows], -1)
        own: list[float] = logprobs.gather(1, chosen[rows][:, None])[:, 0].tolist()
        most = min(max(self.rows[i].top or 0 for i in rows), logprobs.shape[1])
        values, ids = logprobs.topk(most, -1)
        for i, logprob, row_values, row_ids in zip(rows, own, values.tolist(), ids.tolist()):
            row = self.rows[i]
            row.logprobs.append(logprob)
            row.tops.append([(token, value) for token, value in zip(row_ids, row_values) if value > -torch.inf][: row.top])

    @torch.inference_mode()
    def drop(self, over: Collection[int]) -> list[int]:
        """Go on without the rows at these places. Returns the old place of every row left: the last ones fill the holes."""
        count = len(self.rows) - len(over)
        late = [i for i in range(count, len(self.rows)) if i not in over]
        holes = [i for i in range(count) if i in over]
        order = list(range(count))
        for source, target in zip(late, holes):
            order[target] = source
        if not count or not over:
            return order
        if self.roomy:
            sources, targets = torch.tensor([late, holes], dtype=torch.long, device=self.device)
            for layer in self.roomy:
                layer.keep(count, sources, targets)
        rows = torch.tensor(order, device=self.device)
        if not self.roomy:
            self.cache.batch_select_indices(rows)
        self.rows = [self.rows[i] for i in order]
        self.mask, self.inputs, self.positions = self.mask[rows], self.inputs[rows], self.positions[rows]
        return order


@torch.inference_mode()
def new_cache(model: Any) -> tuple[DynamicCache, list[RoomyLayer]]:
    """A fresh cache for this architecture and its layers; none are listed when some are of another kind (sliding windows)."""
    own = getattr(model, "new_cache", None)  # a model of several (`factory.ensemble`) knows its layers better than one config
    cache: DynamicCache = own() if own is not None else DynamicCache(config=_inner(model).config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return cache, []
    layers = [RoomyLayer() for _ in cache.layers]  # type: ignore[no-untyped-call]
    cache.layers = list(layers)
    return cache, layers


def _inner(model: Any) -> Any:
    """The transformers model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def masked(logits: Tensor, bits: Tensor) -> Tensor:
    """`logits` (B, V) with -inf wherever the bit of a token is 0. `bits` (B, >= V/32) int32, lowest bit first."""
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    allowed = (bits.view(torch.uint8)[..., None] & powers) != 0
    return logits.masked_fill(~allowed.flatten(1)[:, : logits.shape[1]], -torch.inf)
