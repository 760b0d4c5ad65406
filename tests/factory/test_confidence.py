"""Intervals and calibration against published and hand-computed values."""

import pytest

from factory.confidence import calibrate, expected_calibration_error, wilson


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
