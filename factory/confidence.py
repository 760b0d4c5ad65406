"""How far a number can be trusted: intervals of a score, and whether a model's confidence means what it says.

Does: Wilson intervals, calibration (threshold -> kept share, accuracy), expected calibration error, how well a score tells two
groups apart; plain arithmetic.
Does not: call a model or know a task.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from agents.confidence import probability

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


def wilson(correct: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share, both ends in 0-1 (Wilson 1927); (0, 1) when n is 0.

    Raises ValueError unless 0 <= correct <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must lie in 0..n, got {correct} of {n}")
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, z * z
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the formula is exact; rounding must not leave 1e-17 where 0 is meant.
    return (0.0 if correct == 0 else center - half), (1.0 if correct == n else center + half)


POINTS = 20
"""Most points of a reliability curve."""
FEWEST = 20
"""Answers below which a reliability curve would say more than is known, and none is made."""


@dataclass(frozen=True)
class Threshold:
    """Keeping only answers with confidence >= `threshold` keeps the share `kept` of them, `accuracy` of which are right."""

    threshold: float
    kept: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """`thresholds` from keeping all to keeping the surest; `ece` is the expected calibration error over `n` answers."""

    thresholds: tuple[Threshold, ...]
    ece: float
    n: int
    reliability: tuple[tuple[float, float], ...] = ()
    """rising (confidence, share right) points, see `reliability_curve`; none from fewer than `FEWEST` answers"""
    reliability_ece: float | None = None
    """expected calibration error of the probabilities they give, each answer's from points fitted to the other half"""


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 10) -> float:
    """Mean |accuracy - mean confidence| over equal-width bins, weighted by their share (Guo et al. 2017). 0-1; 0 when empty."""
    groups: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in zip(confidences, correct, strict=True):
        groups.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, right))
    gaps = (abs(sum(right for _, right in group) - sum(confidence for confidence, _ in group)) for group in groups.values())
    return sum(gaps) / len(confidences) if confidences else 0.0


def calibrate(confidences: Sequence[float], correct: Sequence[bool], steps: int = 10) -> Calibration | None:
    """Thresholds at the quantiles 0, 1/steps, … of the confidences, ties merged; None without any answer."""
    if not confidences:
        return None
    pairs = sorted(zip(confidences, correct, strict=True))
    thresholds: list[Threshold] = []
    for step in range(steps):
        value = pairs[step * len(pairs) // steps][0]
        if thresholds and thresholds[-1].threshold == value:
            continue
        kept = [right for confidence, right in pairs if confidence >= value]
        thresholds.append(Threshold(value, len(kept) / len(pairs), sum(kept) / len(kept)))
    if len(pairs) < FEWEST:
        return Calibration(tuple(thresholds), expected_calibration_error(confidences, correct), len(pairs))
    halves = [(pairs[0::2], pairs[1::2]), (pairs[1::2], pairs[0::2])]
    judged = [(probability(reliability_curve(fit), c), right) for fit, held in halves for c, right in held]
    return Calibration(
        tuple(thresholds), expected_calibration_error(confidences, correct), len(pairs), reliability_curve(pairs),
        expected_calibration_error([p for p, _ in judged], [right for _, right in judged]),
    )  # fmt: skip


def reliability_curve(pairs: Sequence[tuple[float, bool]]) -> tuple[tuple[float, float], ...]:
    """Isotonic regression of right or wrong on confidence (pool adjacent violators, Zadrozny and Elkan 2002): one point for each
    level, at its mean confidence. The answers are pooled into at most `POINTS` groups first, so that the ends are no single
    answers; equal confidences stay together.
    """
    ordered = sorted(pairs)
    size = max(1, -(-len(ordered) // POINTS))
    groups: list[list[tuple[float, bool]]] = []
    for pair in ordered:
        if groups and (len(groups[-1]) < size or groups[-1][-1][0] == pair[0]):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    levels: list[tuple[float, float, int]] = []
    for group in groups:
        level = (sum(c for c, _ in group), float(sum(right for _, right in group)), len(group))
        while levels and levels[-1][1] / levels[-1][2] >= level[1] / level[2]:
            before = levels.pop()
            level = (before[0] + level[0], before[1] + level[1], before[2] + level[2])
        levels.append(level)
    points = {c / n: right / n for c, right, n in levels}
    return tuple(sorted(points.items()))


def area_under_roc(negative: Sequence[float], positive: Sequence[float]) -> float:
    """How often a positive scores above a negative, equal scores counting half (Mann and Whitney 1947); 0.5 tells nothing.

    Raises ValueError when either side is empty."""
    if not negative or not positive:
        raise ValueError("both groups need a score")
    ordered = sorted(negative)
    above = sum(bisect_left(ordered, score) + bisect_right(ordered, score) for score in positive)
    return above / (2 * len(negative) * len(positive))


def threshold_at(negative: Sequence[float], share: float) -> float:
    """The lowest of their scores that at most `share` (0 to below 1) of the negatives lie above. Raises ValueError for none."""
    if not negative:
        raise ValueError("no scores to set a threshold on")
    return sorted(negative, reverse=True)[math.floor(share * len(negative) + 1e-9)]
