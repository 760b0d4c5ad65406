"""What an evaluation found: one Prediction a question, and the Evaluation they amount to.

Does: hold them, add them up with intervals, read and write predictions as JSONL.
Does not: ask a model (`factory.evaluate`) or draw (`factory.report`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from factory.confidence import Calibration, calibrate, wilson
from factory.tasks.task import Confusion, Dialect, Figure, Summary

HEADING = '{"predictions of": '
"""Beginning of the first line of a file that an evaluation is still filling."""


class Prediction(BaseModel):
    """What became of one question. `answer` is canonical, None when the completion did not decode."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str
    question: str
    context_id: str
    reference: str | None
    completion: str
    answer: str | None
    correct: bool
    metrics: dict[str, bool]
    error: str | None = None
    """kind of error; None when correct"""
    detail: str = ""
    """a sentence about an answer that did not decode or a model that failed"""
    confidence: float | None = None
    """exp of the mean log-probability of the completion's tokens, 0-1, or what the task means by it; None when the model gives
    none"""
    counted: bool = True
    """whether it counts towards the score; the others are in the task's own figures alone"""
    measures: dict[str, float] = Field(default_factory=dict)
    """the task's own numbers"""
    truncated: int = 0
    """prompt tokens cut away"""
    cut: bool = False
    """whether the completion hit the token limit"""
    candidate: int = 0
    """which candidate was chosen; 0 is the greedy one"""
    tokens: int = 0
    """completion tokens of the chosen candidate"""
    seconds: float = 0.0
    """time since the prediction before it finished: these add up to the time of the whole evaluation"""


class Evaluation(BaseModel):
    """A score with everything needed to read it; predictions in the order of the examples."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    metric: str
    decoding: str
    constrained: bool
    """whether every answer was decoded under its grammar"""
    dialect: Dialect
    n: int
    score: float
    """share of correct answers, 0-1"""
    low: float
    high: float
    metrics: dict[str, float]
    """name -> share; answers that did not decode count as wrong in each"""
    seconds_per_example: float
    errors_by_kind: dict[str, int]
    truncated: int
    """questions whose prompt was cut"""
    cut: int
    """completions that hit the token limit"""
    apart: int = 0
    """questions beside these that do not count towards the score"""
    figures: dict[str, Figure] = Field(default_factory=dict)
    """the task's own numbers of the whole evaluation"""
    confusions: tuple[Confusion, ...] = ()
    predictions: tuple[Prediction, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the score."""
        return self.low, self.high

    def summary(self) -> dict[str, Any]:
        """Everything but the predictions, ready for JSON."""
        return self.model_dump(mode="json", exclude={"predictions"})


def summarize(
    predictions: Sequence[Prediction],
    model: str,
    metric: str,
    dialect: Dialect,
    decoding: str,
    constrained: bool,
    summary: Summary | None = None,
) -> Evaluation:
    """The evaluation that these predictions (at least one of them counted) amount to; `summary` is the task's own word on them.

    `metric` is the headline's usual name; where the data has no such metric, the one that decided is named instead.
    """
    counted = [p for p in predictions if p.counted]
    n = len(counted)
    correct = sum(p.correct for p in counted)
    low, high = wilson(correct, n)
    metrics: dict[str, float] = {}
    for part in (counted, [p for p in predictions if not p.counted]):
        for name in sorted({name for p in part for name in p.metrics}):
            values = [p.metrics.get(name, False) for p in part if name in p.metrics or (p.answer is None and not p.metrics)]
            metrics[name] = sum(values) / len(values)
    decoded = [p for p in counted if p.answer is not None]
    if metric not in metrics and decoded:
        metric = next((name for name in metrics if all(p.metrics.get(name) == p.correct for p in decoded)), metric)
    return Evaluation(
        model=model,
        metric=metric,
        decoding=decoding,
        constrained=constrained,
        dialect=dialect,
        n=n,
        score=correct / n,
        low=low,
        high=high,
        metrics=metrics,
        seconds_per_example=sum(p.seconds for p in predictions) / len(predictions),
        errors_by_kind=dict(Counter(p.error for p in predictions if p.error is not None).most_common()),
        truncated=sum(p.truncated > 0 for p in predictions),
        cut=sum(p.cut for p in predictions),
        apart=len(predictions) - n,
        figures=summary.figures if summary is not None else {},
        confusions=summary.confusions if summary is not None else (),
        predictions=tuple(predictions),
    )


def calibration(predictions: Iterable[Prediction]) -> Calibration | None:
    """Whether confidence means what it says, over the predictions that have one; None when none has."""
    return calibrate(*sure_of(predictions))


def sure_of(predictions: Iterable[Prediction]) -> tuple[list[float], list[bool]]:
    """(confidences, whether right) of the predictions that have a confidence."""
    known = [(p.confidence, p.correct) for p in predictions if p.confidence is not None]
    return [confidence for confidence, _ in known], [right for _, right in known]


def read_predictions(path: Path) -> list[Prediction]:
    """Predictions of a JSONL file, without the heading and the torn last line that `keep_predictions` may have left.

    [] when the file is absent; raises ValueError, naming the line, for any other line that is no prediction.
    """
    if not path.exists():
        return []
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        if line and not (number == 1 and line.startswith(HEADING)):
            try:
                out.append(Prediction.model_validate_json(line))
            except ValidationError as error:
                raise ValueError(f"{path}, line {number}: not a prediction ({error.errors()[0]['msg']})") from None
    return out


@contextmanager
def keep_predictions(path: Path, of: object = None) -> Iterator[tuple[list[Prediction], Callable[[Prediction], None]]]:
    """(those kept by an interrupted evaluation, what keeps one more): pass them to `evaluate` as `known` and `on_prediction`.

    `of` (JSON) says what is evaluated: predictions of anything else are discarded. Safe after a kill. Raises OSError.
    """
    heading = f"{HEADING}{json.dumps(of, ensure_ascii=False, sort_keys=True)}}}"
    known: list[Prediction] = []
    if path.exists():
        with path.open(encoding="utf-8") as file:
            same = file.readline().rstrip("\n") == heading
        known = read_predictions(path) if same else []
    _write(path, [heading, *(p.model_dump_json() for p in known)])
    with path.open("a", encoding="utf-8") as file:

        def keep(prediction: Prediction) -> None:
            file.write(prediction.model_dump_json() + "\n")
            file.flush()

        yield known, keep


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions as JSONL, whole or not at all."""
    _write(path, (p.model_dump_json() for p in predictions))


def _write(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    temporary.replace(path)
