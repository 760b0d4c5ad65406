"""Losses against torch's own full-vocabulary formulas and naive autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from factory import losses
from factory.losses import (
    completion_loss,
    topk_divergence,
    topk_forward_kl,
    topk_js,
    topk_reverse_kl,
    weighted_labels,
)

FUNCTIONS = {"forward": topk_forward_kl, "reverse": topk_reverse_kl, "js": topk_js}


def made(k: int, size: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(3, 7, size, dtype=torch.float64) * 2
    teacher = (torch.randn(3, 7, size, dtype=torch.float64) * 2).log_softmax(-1)
    best = teacher.topk(k, -1)
    labels = torch.randint(0, size, (3, 7))
    labels[0, :3] = -100
    labels[2, 5:] = -100
    return logits.float().requires_grad_(), teacher, best.indices.int(), best.values.float(), labels


def by_torch(kind: str, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    student = logits.double().log_softmax(-1)[labels != -100]
    teacher = teacher[labels != -100]
    if kind == "forward":
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    if kind == "reverse":
        return F.kl_div(teacher, student, reduction="batchmean", log_target=True)
    middle = ((student.exp() + teacher.exp()) / 2).log()
    return (
        F.kl_div(middle, teacher, reduction="batchmean", log_target=True)
        + F.kl_div(middle, student, reduction="batchmean", log_target=True)
    ) / 2


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_whole_vocabulary_equals_torch(kind: str) -> None:
    logits, teacher, ids, logprobs, labels = made(50)
    loss = FUNCTIONS[kind](logits, ids, logprobs, labels)
    expected = by_torch(kind, logits, teacher, labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (mine,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert mine[0, :3].abs().max() == 0


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_topk_equals_naive_buckets(kind: str) -> None:
    """k + 1 outcomes: the naive formula on probabilities, its autograd, and a bound by the whole divergence."""
    logits, teacher, ids, logprobs, labels = made(6)
    loss = FUNCTIONS[kind](logits, ids, logprobs, labels)
    q = logits.double().softmax(-1).gather(-1, ids.long())
    p = logprobs.double().exp()
    q = torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)[labels != -100]
    p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)[labels != -100]
    m = (p + q) / 2
    formula = {
        "forward": p * (p / q).log(),
        "reverse": q * (q / p).log(),
        "js": (p * (p / m).log() + q * (q / m).log()) / 2,
    }
    expected = formula[kind].sum(-1).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (mine,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert 0 < loss <= by_torch(kind, logits, teacher, labels) + 1e-6


@pytest.mark.parametrize("kind", [*FUNCTIONS, "labels"])
def test_chunks_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, _, ids, logprobs, labels = made(6)

    def run() -> tuple[Tensor, Tensor]:
        if kind == "labels":
            loss = completion_loss(logits.reshape(-1, 50), labels.reshape(-1), torch.linspace(0.1, 1, 21))
        else:
            loss = topk_divergence(kind, logits, ids, logprobs, labels)
        return loss.detach(), torch.autograd.grad(loss * 3, logits)[0]

    whole = run()
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 4 * 50)
    parts = run()
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])


def test_teacher_surer_than_float16() -> None:
    """Rounded log-probabilities that sum to 1 or above leave a finite loss and gradient."""
    logits = torch.zeros(1, 2, 8, requires_grad=True)
    logprobs = torch.tensor([[[0.0, -20.0], [-1e-8, -9.0]]])
    ids = torch.tensor([[[3, 1], [2, 5]]])
    for function in FUNCTIONS.values():
        loss = function(logits, ids, logprobs, torch.tensor([[1, 1]]))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all() and loss > 0


def test_completion_loss_weights() -> None:
    logits = torch.randn(5, 9, requires_grad=True)
    targets = torch.tensor([1, 2, -100, 4, 5])
    weights = torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0])
    each = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    torch.testing.assert_close(completion_loss(logits, targets, weights), (each * weights).sum())


def test_nothing_to_learn_is_an_error() -> None:
    logits, _, ids, logprobs, labels = made(4)
    nothing = torch.full_like(labels, -100)
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match="all 21 labels are -100"):
            function(logits, ids, logprobs, nothing)
    with pytest.raises(ValueError, match="-100"):
        completion_loss(logits.reshape(-1, 50), nothing.reshape(-1), torch.ones(21))
    with pytest.raises(ValueError, match="carries loss"):
        weighted_labels(nothing)
    with pytest.raises(ValueError, match="forward, reverse, js"):
        topk_divergence("kl", logits, ids, logprobs, labels)


def test_weighted_labels() -> None:
    labels = torch.tensor([[5, 6, 7, -100]])
    prompt = torch.tensor([[1, 1, 0, 0]])
    assert weighted_labels(labels, prompt, 0.25).tolist() == [[0.25, 0.25, 1.0, 0.0]]
    assert weighted_labels(labels, prompt).tolist() == [[0.0, 0.0, 1.0, 0.0]]
