"""First weights with which a Llama can already look things up: what followed this token the last time it was here?

Does: set the attention of the first two layers so that the model copies by induction before any training.
Does not: touch feed-forward blocks or later layers. Module of torch code; imported by `scratch.py` only.

Small transformers spend most of a short training waiting for induction heads to form (Olsson et al. 2022); a narrow task that
points at columns and values is nothing but look-ups. Layer 0 gets heads that attend one token back (by rotary phase, driven by a
few embedding entries that are the same for every token) and write what they saw into a subspace of their own; layer 1 gets
heads that compare the present token with that subspace, on rotary pairs too slow to turn within a prompt, and copy what they
attend to. Everything stays trainable.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

EMBEDDING_STD = 0.03
CONSTANT = 8
"""Embedding entries that are equal for all tokens; they drive the heads that look by distance."""
CONSTANT_STDS = 2.0
"""Their value, in embedding standard deviations."""
DISTANCES = (1, 1, 2)
"""Tokens back that the first heads of layer 0 look."""
FAST_PAIRS = 8
"""Rotary pairs, fastest first, that tell distances apart."""
DISTANCE_NATS = 6.0
"""Advantage of the right distance over its neighbours before the softmax."""
MATCH_NATS = 14.0
"""Score of a token that equals the present one."""
COPYING = 0.5
"""Share of the heads of layer 1 that match and copy; the others start ordinary, which the rest of the task needs."""
WRITE_BACK, WRITE_COPY = 1.0, 3.0
"""Size of what layer 0 and layer 1 write, in embedding standard deviations."""


@torch.no_grad()
def set_induction_heads(model: Any, random: torch.Generator) -> None:
    """Overwrite embeddings and the attention of layers 0 and 1 of a `LlamaForCausalLM` with tied embeddings.

    Needs at least two layers and as many key as query heads; raises ValueError otherwise. On sequences of random tokens said
    twice, a model of hidden 256 then names the next token of the second time in one of six places (by chance: one of thousands).
    """
    config = model.config
    heads, hidden = config.num_attention_heads, config.hidden_size
    if config.num_hidden_layers < 2 or config.num_key_value_heads != heads:
        raise ValueError(f"induction needs 2 layers and equal head counts; got {config.num_hidden_layers} and "
                         f"{heads} query / {config.num_key_value_heads} key heads")  # fmt: skip
    width = hidden // heads
    speeds = config.rope_parameters["rope_theta"] ** (-torch.arange(0, width // 2) * 2.0 / width)

    table = model.model.embed_tokens.weight
    table.copy_(torch.randn(table.shape, generator=random) * EMBEDDING_STD)
    table[:, :CONSTANT] = CONSTANT_STDS * EMBEDDING_STD
    read, write = _orthogonal(hidden, random), _orthogonal(hidden, random)
    _look_back(model.model.layers[0].self_attn, read, write, speeds, width, hidden, random)
    _match_and_copy(model.model.layers[1].self_attn, read, write, width, heads)


def _look_back(
    attention: Any, read: Tensor, write: Tensor, speeds: Tensor, width: int, hidden: int, random: torch.Generator
) -> None:
    """Heads whose query and key depend on distance alone; their values are the embedding, written to columns of `write`."""
    normed = CONSTANT_STDS / math.sqrt((hidden + CONSTANT * (CONSTANT_STDS**2 - 1)) / hidden)
    gap = float((1 - torch.cos(speeds[:FAST_PAIRS])).sum())
    size = math.sqrt(DISTANCE_NATS * math.sqrt(width) / gap) / (normed * CONSTANT)
    for head, distance in enumerate(DISTANCES[: hidden // width]):
        rows = slice(head * width, (head + 1) * width)
        query, key = torch.zeros(width, hidden), torch.zeros(width, hidden)
        for pair in range(FAST_PAIRS):
            phase = float(speeds[pair]) * distance
            query[pair, :CONSTANT] = size
            key[pair, :CONSTANT] = size * math.cos(phase)
            key[pair + width // 2, :CONSTANT] = size * math.sin(phase)
        attention.q_proj.weight[rows] = query + torch.randn(query.shape, generator=random) * 0.002
        attention.k_proj.weight[rows] = key + torch.randn(key.shape, generator=random) * 0.002
        attention.v_proj.weight[rows] = read[rows]
        attention.o_proj.weight[:, rows] = write[:, rows] * EMBEDDING_STD * WRITE_BACK


def _match_and_copy(attention: Any, read: Tensor, write: Tensor, width: int, heads: int) -> None:
    """Heads that find the place whose predecessor equals the present token, and copy the token standing there."""
    pairs = range(width // 4, width // 2)
    slow = [*pairs, *(pair + width // 2 for pair in pairs)]
    looked = min(2, heads) * width  # what the two heads at distance 1 wrote
    spread = 1 + 0.75 * WRITE_BACK**2  # variance of the residual after layer 0, in embedding variances
    size = math.sqrt(MATCH_NATS * math.sqrt(width) / len(slow) * spread / WRITE_BACK)
    for head in range(max(1, round(COPYING * heads))):
        rows = slice(head * width, (head + 1) * width)
        query, key = torch.zeros(width, read.shape[0]), torch.zeros(width, read.shape[0])
        for i, entry in enumerate(slow):
            source = (head * len(slow) + i) % looked
            query[entry] = read[source] * size
            key[entry] = write[:, source] * size
        attention.q_proj.weight[rows] = query
        attention.k_proj.weight[rows] = key
        attention.v_proj.weight[rows] = read[rows]
        attention.o_proj.weight[:, rows] = read[rows].T * EMBEDDING_STD * WRITE_COPY


def _orthogonal(n: int, random: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=random))
    return torch.as_tensor(q)
