"""The optimizer of from-scratch models: Muon on matrices, AdamW on embeddings and vectors.

Does: orthogonalize the momentum of every inner matrix (Jordan et al. 2024), matrices of one shape together, scaled so that a
learning rate for AdamW fits (Moonshot 2025); hand the other weights to torch's AdamW.
Does not: know schedules. Module of torch code; imported by trainers only.

torch has a Muon too; this one takes the matrices of a shape in one batched product, and computes in float32 where the machine
multiplies no bfloat16 in hardware (torch's would fall to a slow path there). Both give the same steps (tests).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration; steep at zero, so that five rounds bring every singular value near one."""
ROUNDS = 5
RMS = 0.2
"""Root mean square of AdamW's usual update, which the step is scaled to."""


def orthogonalized(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, a, b) -> the nearest matrices with orthonormal rows or columns, roughly: singular values end in 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's look-ahead, orthogonalized; decoupled weight decay. Every parameter must have two dimensions."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(p.dim() != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon takes matrices only; give vectors and embeddings to AdamW")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[tuple[Any, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault((p.shape, p.device), []).append(p)
            for like in shapes.values():
                self._move(like, group)
        return loss

    def _move(self, like: list[Tensor], group: dict[str, Any]) -> None:
        """One step of matrices of one shape."""
        for p in like:
            self.state[p].setdefault("momentum", torch.zeros_like(p))
        grads = [p.grad for p in like if p.grad is not None]
        running = [self.state[p]["momentum"] for p in like]
        torch._foreach_lerp_(running, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, running, group["momentum"])
        steps = orthogonalized(torch.stack(ahead), self._dtype(like[0])).to(like[0].dtype)
        size = group["lr"] * RMS * max(like[0].shape) ** 0.5
        torch._foreach_mul_(like, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(like, list(steps.unbind(0)), alpha=-size)

    def _dtype(self, p: Tensor) -> torch.dtype:
        from factory.train import has_bf16

        return self.dtype if self.dtype is not None else torch.bfloat16 if has_bf16() else torch.float32


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer over both: schedulers, clipping and checkpoints see a single list of parameter groups.

    matrices: weights of linear layers inside the model; others: embeddings, heads and vectors.
    """

    def __init__(
        self,
        matrices: list[Any],
        others: list[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        fused: bool | None = None,
    ) -> None:
        vectors = [p for p in others if p.dim() < 2]
        tables = [p for p in others if p.dim() >= 2]
        groups = [{"params": part, "weight_decay": 0.0} for part in (tables, vectors) if part]
        self.parts: list[torch.optim.Optimizer] = [Muon(matrices, lr, weight_decay=weight_decay)]
        if groups:
            self.parts.append(torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused))
        super().__init__([{"params": [*matrices, *others]}], {"lr": lr})
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._join()


def split_weights(model: Any) -> tuple[list[Any], list[Any]]:
    """(matrices, others) of what is trained: linear layers inside the model, and the rest (embeddings, head, norms, biases)."""
    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() == 2 and id(p) not in ends]
    inner = {id(p) for p in matrices}
    return matrices, [p for p in trained if id(p) not in inner]
