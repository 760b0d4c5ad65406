"""What an evaluation of a router says: accuracy in scope, what it lets through from outside, whether its confidence holds.

Does: compute the figures and the most frequent confusions from predictions. Does not: ask a model or scale confidences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agents.confidence import probability
from factory.confidence import area_under_roc, expected_calibration_error, threshold_at, wilson
from factory.tasks.route.labels import OUT_OF_SCOPE
from factory.tasks.route.weigh import DOUBT, OUTSIDE
from factory.tasks.task import Confusion, Figure, Reliability, Summary

if TYPE_CHECKING:
    from factory.predictions import Prediction

FALSE_ALARMS = 0.05
"""Share of utterances in scope that may be taken for out of scope where the recall is read."""
RECALL = "out-of-scope recall at 5 % false alarms"
AUROC = "out-of-scope AUROC"
ERROR = "calibration error"
RAW_ERROR = "calibration error before the card's curve"
_READ = (
    (OUTSIDE, RECALL, AUROC, "p(out of scope) against p(the likeliest label)"),
    (DOUBT, f"{RECALL}, by doubt alone", f"{AUROC}, by doubt alone", "1 - p(the likeliest label)"),
)
NO_ANSWER = "(no label)"
SHARES = (0.01, 0.02, 0.05, 0.1)
"""False alarms that a persona may be told to accept."""
SHOWN = 20
"""Confusions kept."""


def thresholds(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Share of false alarms -> what the measure "outside" must exceed, for shares of at least one utterance; {} unless both
    kinds were measured."""
    inside = [p.measures[OUTSIDE] for p in predictions if p.counted and OUTSIDE in p.measures]
    if not inside or not any(OUTSIDE in p.measures for p in predictions if not p.counted):
        return {}
    return {f"{share:g}": threshold_at(inside, share) for share in SHARES if share * len(inside) >= 1}


def summarize(predictions: Sequence[Prediction], reliability: Reliability = ()) -> Summary:
    """Figures (those that the data allows) and the pairs of labels most often taken for each other."""
    figures: dict[str, Figure] = {}
    inside = [p for p in predictions if p.counted]
    outside = [p for p in predictions if not p.counted]
    if outside:
        caught = sum(p.correct for p in outside)
        low, high = wilson(caught, len(outside))
        figures["out-of-scope recall"] = Figure(
            value=caught / len(outside), low=low, high=high, n=len(outside), about="answered out_of_scope, no threshold"
        )
        alarms = sum(p.answer == OUT_OF_SCOPE for p in inside)
        low, high = wilson(alarms, len(inside))
        figures["false alarms"] = Figure(
            value=alarms / len(inside), low=low, high=high, n=len(inside), about="in scope, answered out_of_scope"
        )
    for measure, recall, area, about in _READ:
        scores = [p.measures[measure] for p in inside if measure in p.measures]
        others = [p.measures[measure] for p in outside if measure in p.measures]
        if scores and others:
            edge = threshold_at(scores, FALSE_ALARMS)
            caught = sum(score > edge for score in others)
            low, high = wilson(caught, len(others))
            figures[recall] = Figure(value=caught / len(others), low=low, high=high, n=len(others),
                                     about=f"{about} above {edge:.3g}, a threshold set on the same ones")  # fmt: skip
            figures[area] = Figure(value=area_under_roc(scores, others), n=len(scores) + len(others), about=f"of {about}")
    sure = [(p.confidence, p.correct) for p in predictions if p.confidence is not None]
    if sure:
        right_or_wrong = [good for _, good in sure]
        raw = expected_calibration_error([c for c, _ in sure], right_or_wrong)
        figures[RAW_ERROR] = Figure(value=raw, n=len(sure), about="of the label's own probability, in 10 bins; 0 is perfect")
        if reliability:
            error = expected_calibration_error([probability(reliability, c) for c, _ in sure], right_or_wrong)
            figures[ERROR] = Figure(value=error, n=len(sure), about="of the probability that the card makes of it")
    wrong = Counter((p.reference or "", p.answer if p.answer is not None else NO_ANSWER) for p in predictions if not p.correct)
    pairs = tuple(
        Confusion(expected=a, answer=b, n=n) for (a, b), n in sorted(wrong.items(), key=lambda x: (-x[1], x[0]))[:SHOWN]
    )
    return Summary(figures=figures, confusions=pairs)
