"""What two models' answers to the same questions say about the difference of their scores.

Does: the paired difference with its interval and an exact test; plain arithmetic.
Does not: ask a model, or treat the two scores as independent samples, which would make every interval several times too wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from pydantic import BaseModel, ConfigDict

from factory.confidence import Z_95, wilson


class Paired(BaseModel):
    """Two models on one set of questions, the first the source; differences in percentage points, positive when it is better."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n: int
    only_source: int
    """questions only the source answered right"""
    only_file: int
    """questions only the other model answered right"""
    drop: float
    """score of the source minus the other's, points"""
    low: float
    high: float
    """95 % interval of `drop` (Newcombe 1998, method 10, for paired shares)"""
    p: float
    """exact two-sided McNemar test that both are equally good"""


def compare_answers(source: Mapping[str, bool], other: Mapping[str, bool]) -> Paired:
    """Compare answers by question id -> right or wrong. Raises ValueError unless both answered the same, at least one."""
    if not source or source.keys() != other.keys():
        raise ValueError(f"two sets of answers to the same questions are needed, got {len(source)} and {len(other)}")
    both = sum(source[i] and other[i] for i in source)
    only_source = sum(source[i] and not other[i] for i in source)
    only_file = sum(other[i] and not source[i] for i in source)
    low, high = paired_interval(both, only_source, only_file, len(source) - both - only_source - only_file)
    return Paired(
        n=len(source),
        only_source=only_source,
        only_file=only_file,
        drop=100 * (only_source - only_file) / len(source),
        low=100 * low,
        high=100 * high,
        p=mcnemar(only_source, only_file),
    )


def paired_interval(a: int, b: int, c: int, d: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of (b - c) / n, where a of n are right for both, b only for the first, c only for the second, d for none.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    method 10: Wilson intervals squared and added, less what the two have in common.
    """
    n = a + b + c + d
    first, second = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = wilson(a + b, n, z), wilson(a + c, n, z)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    common = float(a * d - b * c)
    if common > 0:
        common = max(common - n / 2, 0.0)
    phi = common / math.sqrt(margins) if margins else 0.0
    below = _distance(first - l1, u2 - second, phi)
    above = _distance(u1 - first, second - l2, phi)
    return first - second - below, first - second + above


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of b against c disagreements when either way is as likely (McNemar 1947, binomial form)."""
    n = b + c
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def _distance(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))
