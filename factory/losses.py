"""Losses of the student as pure tensor functions: label cross-entropy, and divergences from a teacher's stored top-k.

Does: weighted cross-entropy; forward KL, reverse KL and Jensen-Shannon on top-k + one tail bucket; all chunked over positions.
Does not: run models or choose positions. Module of torch code; imported by the trainer only.

The tail: a stored row gives log-probabilities of the teacher's k best tokens. What is left of its probability is one more
bucket, compared with the student's probability of all other tokens, so both sides are distributions over k + 1 outcomes. Merging
outcomes never raises a divergence, so each is a lower bound of the full-vocabulary one, and equal to it at k = V.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAIL_FLOOR = 1e-6
"""Least teacher mass of the tail: float16 storage rounds, and reverse KL against exactly 0 is infinite."""
CHUNK_ELEMENTS = 1 << 24
"""Logits handled at once (64 MB in float32)."""


def weighted_labels(labels: Tensor, prompt_mask: Tensor | None = None, prompt_weight: float = 0.0) -> Tensor:
    """Weights (B, T) float32: 0 where a label is -100, `prompt_weight` where `prompt_mask` is true, else 1.

    Raises ValueError when no label carries weight: truncation ate the completions.
    """
    weights = (labels != -100).float()
    if prompt_mask is not None:
        weights = torch.where(prompt_mask.bool(), weights * prompt_weight, weights)
    if not bool((weights > 0).any()):
        raise ValueError(
            f"no label of {labels.numel()} carries loss (all are -100): the completions were cut off; raise max_length"
        )
    return weights


def completion_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted cross-entropy, in nats.

    logits (N, V) float, targets (N,) int64 (-100 is skipped), weights (N,) float -> (). Divide by the weights' sum for the mean.
    Raises ValueError when every target is -100.
    """
    _check(targets)

    def chunk(part: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return (F.cross_entropy(part.float(), target, ignore_index=-100, reduction="none") * weight).sum()

    return _chunked(chunk, logits, targets, weights)


def topk_forward_kl(logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, labels: Tensor) -> Tensor:
    """Forward KL(teacher || student) on the teacher's stored top-k and tail, in nats per labelled token (Hinton et al. 2015).

    logits (..., V) float, top_ids (..., k) int, top_logprobs (..., k) float, labels (...) int64, -100 where nothing counts -> ().
    Raises ValueError when every label is -100.
    """
    return topk_divergence("forward", logits, top_ids, top_logprobs, labels) / _check(labels)


def topk_reverse_kl(logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, labels: Tensor) -> Tensor:
    """Reverse KL(student || teacher), else as `topk_forward_kl` (Gu et al. 2024)."""
    return topk_divergence("reverse", logits, top_ids, top_logprobs, labels) / _check(labels)


def topk_js(logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, labels: Tensor) -> Tensor:
    """Jensen-Shannon divergence: half of each KL to the mean distribution, else as `topk_forward_kl` (Agarwal et al. 2024)."""
    return topk_divergence("js", logits, top_ids, top_logprobs, labels) / _check(labels)


def topk_divergence(kind: str, logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, labels: Tensor) -> Tensor:
    """Sum over labelled positions of one divergence ("forward", "reverse", "js"), in nats; shapes as `topk_forward_kl`."""
    if kind not in _DIVERGENCES:
        raise ValueError(f"divergence {kind!r}; choose from {', '.join(_DIVERGENCES)}")
    _check(labels)
    formula = _DIVERGENCES[kind]
    size, k = logits.shape[-1], top_ids.shape[-1]
    whole = k == size

    def chunk(part: Tensor, ids: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        student = F.log_softmax(part.float(), dim=-1)
        picked = student.gather(-1, ids.long())
        teacher = teacher.float()
        if not whole:
            rest = student.scatter(-1, ids.long(), float("-inf")).logsumexp(-1, keepdim=True)
            picked = torch.cat([picked, rest], -1)
            mass = (1 - teacher.exp().sum(-1, keepdim=True)).clamp_min(TAIL_FLOOR)
            teacher = torch.cat([teacher, mass.log()], -1)
        return (formula(teacher, picked).sum(-1) * (label != -100)).sum()

    return _chunked(chunk, logits.reshape(-1, size), top_ids.reshape(-1, k), top_logprobs.reshape(-1, k), labels.reshape(-1))


def _forward(teacher: Tensor, student: Tensor) -> Tensor:
    return teacher.exp() * (teacher - student)


def _reverse(teacher: Tensor, student: Tensor) -> Tensor:
    return student.exp() * (student - teacher)


def _js(teacher: Tensor, student: Tensor) -> Tensor:
    middle = torch.logaddexp(teacher, student) - 0.6931471805599453
    return 0.5 * (teacher.exp() * (teacher - middle) + student.exp() * (student - middle))


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"forward": _forward, "reverse": _reverse, "js": _js}


def _check(labels: Tensor) -> Tensor:
    count = (labels != -100).sum()
    if count == 0:
        raise ValueError(f"all {labels.numel()} labels are -100: truncation ate the completions; raise max_length")
    return count


def _chunked(chunk: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """Sum of `chunk(logits part, other parts...)` over runs of positions.

    Each part's gradient is taken at once and kept in the logits' own type, so no second float32 tensor of N x V exists.
    """
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    if logits.shape[0] <= rows:
        return chunk(logits, *others)
    apply: Any = _Chunks.apply
    loss: Tensor = apply(chunk, rows, logits, *others)
    return loss


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunk: Callable[..., Tensor], rows: int, logits: Tensor, *others: Tensor) -> Tensor:
        gradient = torch.empty_like(logits) if logits.requires_grad else None
        total = logits.new_zeros((), dtype=torch.float32)
        for start in range(0, logits.shape[0], rows):
            at = slice(start, start + rows)
            with torch.set_grad_enabled(gradient is not None):
                part = logits[at].detach().requires_grad_(gradient is not None)
                loss = chunk(part, *(other[at] for other in others))
                if gradient is not None:
                    gradient[at] = torch.autograd.grad(loss, part)[0]
            total += loss.detach()
        ctx.save_for_backward(gradient)
        ctx.unused = len(others)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # In place: the gradient belongs to this node alone and a second backward is not allowed through it.
        return (None, None, gradient.mul_(upstream[0]), *([None] * ctx.unused))
