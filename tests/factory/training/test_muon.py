"""Muon against torch's own, against a singular value decomposition, and through a checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from factory.muon import Muon, MuonAdamW, orthogonalized, split_weights


def _matrices(seed: int = 0) -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in ((24, 16), (16, 40), (24, 16), (8, 8))]


@pytest.mark.parametrize("shape", [(3, 24, 16), (2, 16, 40), (1, 8, 8)])
def test_steps_point_along_the_orthogonal_factor(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    got = orthogonalized(x, torch.float32)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    found = torch.linalg.svdvals(got)
    assert found.min() > 0.6 and found.max() < 1.25
    # The same singular vectors: in their frame the result is diagonal.
    frame = u.mT @ got @ v.mT
    off = frame - torch.diag_embed(torch.diagonal(frame, dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-3
    assert s.shape[-1] == min(shape[1:])


def test_equals_the_optimizer_of_torch() -> None:
    ours, theirs = _matrices(), _matrices()
    mine = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    random = torch.Generator().manual_seed(2)
    for _ in range(6):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=random)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b, start in zip(ours, theirs, _matrices(), strict=True):
        moved = (b - start).norm()
        assert moved > 0.05
        assert (a - b).norm() < 0.02 * moved  # bfloat16 rounds the two orders of products differently


def test_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(4))], lr=0.1)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(11, 8)
        self.inner = torch.nn.Linear(8, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.relu(self.inner(self.table(x)))))


def _trained(model: _Model, optimizer: MuonAdamW, steps: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randint(0, 11, (32,), generator=random)
        loss = torch.nn.functional.cross_entropy(model(x), (x * 3 + 1) % 11)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_one_optimizer_for_both_kinds_goes_on_from_a_checkpoint() -> None:
    torch.manual_seed(0)
    model = _Model()
    matrices, others = split_weights(model)
    assert [p.shape for p in matrices] == [(8, 8)] and len(others) == 4
    optimizer = MuonAdamW(matrices, others, lr=0.05)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert all(group["lr"] == 0.025 for part in optimizer.parts for group in part.param_groups)
    _trained(model, optimizer, 5, seed=1)

    twin = copy.deepcopy(model)
    again = MuonAdamW(*split_weights(twin), lr=0.05)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _trained(model, optimizer, 5, seed=2)
    _trained(twin, again, 5, seed=2)
    for name, p in twin.named_parameters():
        assert torch.equal(p, dict(model.named_parameters())[name]), name
    schedule.step()
    values: list[Any] = [group["lr"] for group in optimizer.param_groups]
    assert values == [0.025] * len(values)


def test_learns() -> None:
    torch.manual_seed(0)
    model = _Model()
    _trained(model, MuonAdamW(*split_weights(model), lr=0.05), 200, seed=3)
    x = torch.arange(11)
    assert bool((model(x).argmax(-1) == (x * 3 + 1) % 11).all())
