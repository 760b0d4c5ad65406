"""Intervals and calibration against published and hand-computed values."""

import random

import pytest

from agents.confidence import probability
from factory.confidence import (
    area_under_roc,
    calibrate,
    expected_calibration_error,
    reliability_curve,
    threshold_at,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3 (score, no continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_newcombe_table(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_edges():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(7, 7)[1] == 1.0
    assert wilson(0, 7)[0] == 0.0
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_calibration_error_by_hand():
    # Bin [0.9, 1]: confidence mean 0.95, accuracy 0.5, share 2/4 -> 0.225; bin [0.6, 0.7): 0.65 against 1.0, share 2/4 -> 0.175.
    assert expected_calibration_error([0.9, 1.0, 0.62, 0.68], [True, False, True, True]) == pytest.approx(0.4)
    assert expected_calibration_error([], []) == 0.0


def test_thresholds_by_hand():
    found = calibrate([0.2, 0.4, 0.6, 0.8], [False, False, True, True], steps=4)
    assert [(t.threshold, t.kept, t.accuracy) for t in found.thresholds] == [
        (0.2, 1.0, 0.5),
        (0.4, 0.75, pytest.approx(2 / 3)),
        (0.6, 0.5, 1.0),
        (0.8, 0.25, 1.0),
    ]
    assert found.n == 4
    assert calibrate([], []) is None


def test_equal_confidences_give_one_threshold():
    found = calibrate([1.0] * 5, [True, True, False, True, True])
    assert [(t.threshold, t.kept, t.accuracy) for t in found.thresholds] == [(1.0, 1.0, 0.8)]


def test_isotonic_regression_by_hand():
    # Shares 0, 1, 0.5, 1 in rising confidence: the second and third violate the order and pool to 0.75.
    pairs = [(0.1, False), (0.1, False), (0.4, True), (0.4, True), (0.5, True), (0.5, False), (0.9, True), (0.9, True)]
    assert reliability_curve(pairs) == ((0.1, 0.0), (pytest.approx(0.45), 0.75), (0.9, 1.0))
    assert reliability_curve([(1.0, True)] * 30 + [(1.0, False)] * 10) == ((1.0, 0.75),)


def test_straight_lines_between_the_points_and_level_beyond():
    points = ((0.2, 0.1), (0.6, 0.5), (1.0, 0.7))
    for confidence, expected in ((0.0, 0.1), (0.2, 0.1), (0.4, 0.3), (0.6, 0.5), (0.8, 0.6), (1.0, 0.7)):
        assert probability(points, confidence) == pytest.approx(expected)
    assert probability((), 0.37) == 0.37


def test_the_curve_mends_a_confidence_that_says_too_much():
    """Answers right with the square of their confidence: known, so the curve and its error can be checked against it."""
    rng = random.Random(7)
    confidences = [rng.random() for _ in range(4000)]
    correct = [rng.random() < c**2 for c in confidences]
    found = calibrate(confidences, correct)
    assert found.ece > 0.15
    assert found.reliability_ece < 0.03
    for c in (0.2, 0.5, 0.8, 0.95):
        assert probability(found.reliability, c) == pytest.approx(c**2, abs=0.06)


def test_area_under_roc_by_hand():
    assert area_under_roc([0.1, 0.4], [0.4, 0.9]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert area_under_roc([1.0], [0.0]) == 0.0
    with pytest.raises(ValueError, match="both groups"):
        area_under_roc([], [1.0])


def test_a_threshold_lets_no_more_than_its_share_above():
    scores = [0.1, 0.2, 0.2, 0.3, 0.9]
    for share, above in ((0.0, 0), (0.2, 1), (0.39, 1), (0.4, 2), (0.6, 2), (0.8, 4)):
        edge = threshold_at(scores, share)
        assert sum(score > edge for score in scores) == above
        assert above <= share * 5 + 1e-9
