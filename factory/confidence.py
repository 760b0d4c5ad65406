"""How far a number can be trusted: intervals of a score, and whether a model's confidence means what it says.

Does: Wilson intervals, calibration (threshold -> kept share, accuracy) and expected calibration error; plain arithmetic.
Does not: call a model or know a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    return Calibration(tuple(thresholds), expected_calibration_error(confidences, correct), len(pairs))
