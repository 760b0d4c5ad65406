"""How sure a model was, by its own probabilities: pure functions over a reply's log-probabilities.

Does: length-normalised and whole log-probability, smallest margin, agreement of several samples; the probability and the
threshold that a card's calibration gives.
Does not: ask a model. Log-probabilities are those of the constrained distribution, so what the grammar forced counts as sure.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from agents.chat import TokenLogprob

if TYPE_CHECKING:
    from agents.card import CalibrationEntry

Measure = Literal["mean", "margin", "agreement"]


def mean_probability(logprobs: Sequence[TokenLogprob]) -> float | None:
    """exp of the mean log-probability of the tokens, 0-1 (what an evaluation calibrates); None without any."""
    if not logprobs:
        return None
    return min(1.0, math.exp(sum(token.logprob for token in logprobs) / len(logprobs)))


def whole_probability(logprobs: Sequence[TokenLogprob]) -> float | None:
    """exp of the summed log-probabilities: how likely this very text was, 0-1 (what a choice among labels means by sure)."""
    return min(1.0, math.exp(sum(token.logprob for token in logprobs))) if logprobs else None


def margin(logprobs: Sequence[TokenLogprob]) -> float | None:
    """The smallest lead of a chosen token over the best other one, in probability, 0-1 (a token without a rival leads by all of
    its probability); negative when sampling took a less likely one. None when no token names alternatives."""
    leads = []
    for token in logprobs:
        others = [value for id, text, value in token.top if (id, text) != (token.id, token.token)]
        if token.top:
            leads.append(math.exp(token.logprob) - (math.exp(max(others)) if others else 0.0))
    return min(leads) if leads else None


def agreement(first: Any, others: Sequence[Any]) -> float:
    """Share of all answers, the first included, that equal the first."""
    same = sum(1 for other in others if other == first)
    return (1 + same) / (1 + len(others))


def majority(answers: Sequence[Any]) -> tuple[Any, float]:
    """The commonest answer (the earliest of equals) and its share. Raises ValueError for no answers."""
    if not answers:
        raise ValueError("no answers to choose from")
    keys = [repr(answer) for answer in answers]
    key, n = Counter(keys).most_common(1)[0]
    return answers[keys.index(key)], n / len(answers)


def probability(reliability: Sequence[tuple[float, float]], confidence: float) -> float:
    """The probability that an answer of this confidence is right, by the (confidence, share right) points of a card; the
    confidence itself without any. Beyond the ends the end's share holds."""
    if not reliability:
        return confidence
    xs = [x for x, _ in reliability]
    at = bisect_right(xs, confidence)
    if at == 0:
        return reliability[0][1]
    if at == len(xs):
        return reliability[-1][1]
    (x0, y0), (x1, y1) = reliability[at - 1], reliability[at]
    return y0 + (y1 - y0) * (confidence - x0) / (x1 - x0)


def threshold_for(calibration: Sequence[CalibrationEntry], accuracy: float) -> float | None:
    """The lowest confidence from which kept answers are right at least this often; without one that good, the strictest there
    is; None without a calibration."""
    if not calibration:
        return None
    good = [entry.threshold for entry in calibration if entry.accuracy >= accuracy]
    return min(good) if good else max(entry.threshold for entry in calibration)
