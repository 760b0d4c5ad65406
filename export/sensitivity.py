"""What rounding each tensor to Q8_0 costs, and the cheapest set to leave in F16 so that a file stays near its source.

Does: estimate every tensor's share of the KLD in one pass over the model forwards and backwards; choose tensors by cost per byte.
Does not: write a file (`export.workshop`) or measure one: the estimate only ranks, the gate's own KLD decides.

    losses = rounding_losses(source, sequences)            # GGUF tensor name -> nats per token
    choose(source.plan, losses, measured=1.8e-4, limit=1e-4)

To second order KLD is the Fisher norm of what rounding does to the logits. With labels y drawn from the model itself, and d the
change of one product's output, mean((d · grad log p(y))²) / 2 is what that change costs (Amari 1998): one backward pass
gives it for all tensors. Rounded are weights and the vectors they are multiplied with, as llama.cpp does for Q8_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export.families import Plan
from export.quant_types import BLOCKS
from export.source import Source

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BLOCK = BLOCKS["Q8_0"][0]
TOKENS, WORK = 16_384, 1.5e12
"""Tokens run at most, and tokens x weights at most: a model of 135 M runs 11,000."""
BATCH_LOGITS = 8_000_000
"""Logits of a batch at most (tokens x vocabulary)."""
LONGEST = 512
"""Tokens of a text used; each text is one sample of every tensor's cost."""
MOST_BYTES = 1.5
"""Times the plain file's bytes a file may have; beyond, the answer is a 16-bit file."""
ROOM = 0.9
"""Share of the limit aimed at: the estimate is a mean over samples."""


def rounding_losses(
    source: Source, sequences: Sequence[np.ndarray], seed: int = 0, advance: Callable[[int], None] | None = None
) -> dict[str, float]:
    """GGUF tensor name -> KLD that rounding it alone to Q8_0 adds, nats per token, over texts of (length,) int64 ids.

    Tensors whose rows are no whole blocks, and vectors, are not among them: they are never rounded. `advance` hears how many
    tokens each batch had.
    """
    import torch

    from agents.models import open_model

    opened: Any = open_model(str(source.path), device="cpu", dtype="float32")
    names = {
        tensor.source.removesuffix(".weight"): tensor.name
        for tensor in source.plan.tensors
        if len(tensor.shape) == 2 and tensor.shape[-1] % BLOCK == 0
    }
    embedding = names.get("model.embed_tokens", "")
    tied = all(tensor.role != "head" for tensor in source.plan.tensors)
    state = torch.random.get_rng_state()
    try:
        model = opened.model.eval().requires_grad_(False)
        torch.manual_seed(seed)
        costs = _Costs(model, names, embedding if tied else "")
        tokens = 0
        for ids in batches(sequences, source.parameters, int(source.config["vocab_size"])):
            tokens += costs.add(torch.from_numpy(ids))
            if advance is not None:
                advance(ids.size)
        costs.close()
    finally:
        torch.random.set_rng_state(state)
        opened.close()
    return {name: total / 2 / tokens for name, total in costs.squares.items()}


def batches(sequences: Sequence[np.ndarray], parameters: int, vocabulary: int) -> list[np.ndarray]:
    """Texts of one length together, (rows, length) each; cut to LONGEST, as many as the work allows."""
    import numpy as np

    room = max(LONGEST, min(TOKENS, int(WORK / parameters)))
    by_length: dict[int, list[np.ndarray]] = {}
    for sequence in sequences:
        ids = sequence[:LONGEST]
        if room < len(ids):
            break
        room -= len(ids)
        by_length.setdefault(len(ids), []).append(ids)
    out = []
    for length, rows in by_length.items():
        step = max(1, BATCH_LOGITS // (length * vocabulary))
        out += [np.stack(rows[start : start + step]) for start in range(0, len(rows), step)]
    return out


class _Costs:
    """Hooks on a model's embedding and products that sum up (change · gradient)² of every tensor, a text at a time."""

    def __init__(self, model: Any, names: Mapping[str, str], tied: str) -> None:
        import torch

        self.model = model
        self.squares: dict[str, float] = {}
        self._dots: dict[str, Tensor] = {}
        self._hooks = []
        self._rounded: dict[str, Tensor] = {}
        head, looked_up = model.get_output_embeddings(), model.get_input_embeddings()
        for path, module in model.named_modules():
            name = names.get(path.removeprefix("base_model.model."))
            if module is head and tied:
                name = tied
            if module is looked_up:
                self._hooks.append(module.register_forward_hook(self._lookup(name)))
            elif name is not None and isinstance(getattr(module, "weight", None), torch.Tensor):
                self._hooks.append(module.register_forward_hook(self._product(name)))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def add(self, ids: Tensor) -> int:
        """Run texts (rows, length) int64; the number of tokens."""
        import torch

        logits = self.model(input_ids=ids, use_cache=False).logits.float()
        with torch.no_grad():
            untyped: Any = torch.distributions.Categorical(logits=logits)
            drawn = untyped.sample()
        chosen = torch.log_softmax(logits, dim=-1).gather(-1, drawn[..., None]).sum()
        loss: Any = chosen
        loss.backward()
        for name, dots in self._dots.items():
            self.squares[name] = self.squares.get(name, 0.0) + float((dots.double() ** 2).sum())
        self._dots.clear()
        return ids.numel()

    def _record(self, name: str, change: Tensor) -> Callable[[Tensor], None]:
        def hear(gradient: Tensor) -> None:
            dots = (gradient * change).flatten(1).sum(1)
            self._dots[name] = self._dots[name] + dots if name in self._dots else dots

        return hear

    def _lookup(self, name: str | None) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            looked_up: Any = output.detach().requires_grad_()  # the only leaf: weights are frozen
            if name is not None:
                looked_up.register_hook(self._record(name, rounded(output) - output))
            kept: Tensor = looked_up
            return kept

        return hook

    def _product(self, name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            import torch

            with torch.no_grad():
                given = inputs[0].detach()
                weight = _weight(module)
                change = rounded(given) @ rounded(weight).T - given @ weight.T
            hooked: Any = output
            hooked.register_hook(self._record(name, change))

        return hook


def _weight(module: Any) -> Tensor:
    """The matrix a module multiplies with, an adapter of peft's merged in."""
    whole: Tensor = module.weight
    if hasattr(module, "get_delta_weight"):
        for adapter in module.active_adapters:
            whole = whole + module.get_delta_weight(adapter)
    return whole


def rounded(values: Tensor) -> Tensor:
    """`values` (…, columns) as Q8_0 keeps them: 32 to a scale in half precision, 8 bits each."""
    import torch

    blocks = values.reshape(*values.shape[:-1], -1, BLOCK)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    return (torch.round(blocks * inverse) * scale.half().float()).reshape(values.shape)


def choose(plan: Plan, losses: Mapping[str, float], measured: float, limit: float) -> tuple[str, ...] | None:
    """Tensors to leave in F16 so that a Q8_0 file at KLD `measured` comes under `limit`, with as few bytes as can be found.

    Only the shares of `losses` count: they are measured on other texts than the file. None where the file would be more than
    MOST_BYTES times as large.
    """
    extra = {tensor.name: math.prod(tensor.shape) * (2 - 34 / 32) for tensor in plan.tensors if tensor.name in losses}
    whole = sum(losses.values())
    if not whole > 0:
        return None
    needed = whole * (1 - min(1.0, ROOM * limit / measured))
    kept: list[str] = []
    for name in sorted(extra, key=lambda name: -losses[name] / extra[name]):
        if sum(losses[other] for other in kept) >= needed:
            break
        kept.append(name)
    for name in sorted(kept, key=lambda name: -extra[name]):  # what a later, larger tensor made needless
        if sum(losses[other] for other in kept) - losses[name] >= needed:
            kept.remove(name)
    plain = sum(math.prod(tensor.shape) * 34 / 32 for tensor in plan.tensors)
    if sum(losses[name] for name in kept) < needed or plain + sum(extra[name] for name in kept) > MOST_BYTES * plain:
        return None
    return tuple(tensor.name for tensor in plan.tensors if tensor.name in kept)
