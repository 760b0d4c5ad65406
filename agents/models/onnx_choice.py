"""Choosing one token from logits: masked, greedy or sampled, with the log-probabilities of what might have been.

Does: what `agents.models.decode.Batch.choose` does for a batch in torch, for one row in numpy.
Does not: run a model or know a grammar; the caller brings the bit mask.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def choose(
    logits: NDArray[np.float32],
    bits: NDArray[np.int32] | None,
    temperature: float,
    top_p: float,
    dice: random.Random,
    top: int | None,
) -> tuple[int, float, list[tuple[int, float]]]:
    """(token, its log-probability, the `top` most likely with theirs). logits (V,), bits (>= V/32,) lowest bit first; None: all.

    Log-probabilities (nats) are those of the masked distribution at temperature 1, before top-p; 0.0 with `top` None.
    """
    ids = allowed(bits, len(logits)) if bits is not None else None
    values = logits if ids is None else logits[ids]
    at = int(values.argmax()) if temperature <= 0 else _sample(values, temperature, top_p, dice)
    token = at if ids is None else int(ids[at])
    if top is None:
        return token, 0.0, []
    peak = values.max()
    logprobs = values - (peak + np.log(np.exp(values - peak).sum(dtype=np.float64))).astype(np.float32)
    best: list[tuple[int, float]] = []
    if top:
        count = min(top, len(values))
        places = np.argpartition(-logprobs, count - 1)[:count] if count < len(values) else np.arange(count)
        places = places[np.argsort(-logprobs[places], kind="stable")]
        best = [(int(i) if ids is None else int(ids[i]), float(logprobs[i])) for i in places]
    return token, min(float(logprobs[at]), 0.0), best


def allowed(bits: NDArray[np.int32], size: int) -> NDArray[np.intp] | None:
    """Ids of the set bits below `size`, ascending; None when all are set."""
    if bits[0] == -1 and (bits[: size // 32] == -1).all():
        return None
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), count=size, bitorder="little"))


def _sample(values: NDArray[np.float32], temperature: float, top_p: float, dice: random.Random) -> int:
    """Inverse-CDF sampling over the tokens in descending probability; one stays while the mass before it is below `top_p`."""
    heated = values / np.float32(temperature)
    probs = np.exp(heated - heated.max())
    order = np.argsort(-probs, kind="stable")
    probs = probs[order] / probs.sum()
    if top_p < 1:
        probs = np.where(probs.cumsum() - probs >= top_p, np.float32(0), probs)
    total = probs.cumsum()
    last = int((probs > 0).sum()) - 1
    return int(order[min(int((total <= dice.random() * total[-1]).sum()), last)])
