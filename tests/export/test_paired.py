"""Paired differences against published intervals, a bootstrap and scipy-free brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from export.paired import compare_answers, mcnemar, paired_interval


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # the example of Newcombe 1998, method 10
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((0, 54, 0, 0), 0.9061, 1.0),
    ],
)
def test_a_published_interval_and_those_where_all_agree_or_differ(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    found = paired_interval(*table)
    assert found == pytest.approx((low, high), abs=6e-4)


def test_interval_agrees_with_a_bootstrap() -> None:
    rng = random.Random(0)
    pairs = [(True, True)] * 1000 + [(True, False)] * 30 + [(False, True)] * 18 + [(False, False)] * 452
    source = {str(i): a for i, (a, _) in enumerate(pairs)}
    other = {str(i): b for i, (_, b) in enumerate(pairs)}
    found = compare_answers(source, other)
    assert found.drop == pytest.approx(100 * 12 / 1500) and (found.only_source, found.only_file) == (30, 18)
    steps = [a - b for a, b in pairs]
    means = sorted(100 * sum(rng.choices(steps, k=1500)) / 1500 for _ in range(1000))
    assert found.low == pytest.approx(means[25], abs=0.1) and found.high == pytest.approx(means[975], abs=0.1)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 4), (9, 2)])
def test_mcnemar_counts_all_outcomes(b: int, c: int) -> None:
    n = b + c
    extreme = sum(abs(2 * sum(flips) - n) >= abs(b - c) for flips in itertools.product((0, 1), repeat=n))
    assert mcnemar(b, c) == pytest.approx(extreme / 2**n)


def test_answers_to_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="same questions"):
        compare_answers({"a": True}, {"b": True})
    with pytest.raises(ValueError, match="same questions"):
        compare_answers({}, {})
