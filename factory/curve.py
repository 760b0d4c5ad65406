"""What the measured curve predicts: the score of a student from its parameters, training rows and training tokens.

Does: read points, fit log-odds of the score by the logarithms of the three, predict with an interval, report how far each point
is from the prediction of the others.
Does not: measure points (`sweep.py`) or plan runs (`plan.py`).

Log-odds, because scores bend towards 0 and 1; a squared term for tokens, because a student first learns nothing, then fast, then
slowly. A handful of points carries no more than that, and a small ridge keeps it from following noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from factory.settings import SettingsError

CURVES = Path(__file__).with_name("data") / "curves"
RIDGE = 0.02
LEAST = 8
"""Fewest points a curve is fitted to."""


class Point(BaseModel):
    """One trained and scored student."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: str
    shape: str
    parameters: float
    """millions, embeddings tied"""
    rows: int
    """distinct training rows"""
    tokens: int
    """training tokens read, repeated rows counted again"""
    tokens_asked: int
    score: float
    low: float
    high: float
    n: int
    metric: str
    seconds: float
    """of training"""


@dataclass(frozen=True)
class Prediction:
    """A score, 0-1, with the interval in which 19 of 20 new students should lie (fit and evaluation noise together)."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A fitted curve over `points`; `spread` is the leave-one-out root mean square error in log-odds."""

    points: tuple[Point, ...]
    weights: tuple[float, ...]
    spread: float
    left_out: tuple[float, ...]
    """each point's score as the curve through the others predicts it"""

    def predict(self, parameters: float, rows: float, tokens: float) -> Prediction:
        """For `parameters` in millions, distinct rows and training tokens."""
        odds = _dot(self.weights, _features(parameters, rows, tokens))
        return Prediction(_share(odds), _share(odds - 1.96 * self.spread), _share(odds + 1.96 * self.spread))

    @property
    def leave_one_out_error(self) -> float:
        """Mean absolute error in points of score, each point predicted by the others."""
        return 100 * sum(abs(p.score - s) for p, s in zip(self.points, self.left_out, strict=True)) / len(self.points)

    def inside(self, parameters: float, rows: float, tokens: float) -> list[str]:
        """Which of the three lie outside of what was measured, in words; a prediction there is an extrapolation."""
        out = []
        for name, value, values in (
            ("parameters", parameters, [p.parameters for p in self.points]),
            ("rows", rows, [float(p.rows) for p in self.points]),
            ("tokens", tokens, [float(p.tokens) for p in self.points]),
        ):
            if not 0.99 * min(values) <= value <= 1.01 * max(values):
                out.append(f"{name} {value:,.3g} (measured {min(values):,.3g} to {max(values):,.3g})")
        return out


def read_points(path: Path) -> list[Point]:
    """Points of a curve.jsonl; [] where there is none. Raises SettingsError naming the line."""
    if not path.is_file():
        return []
    points = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            points.append(Point.model_validate(json.loads(line)))
        except (json.JSONDecodeError, ValidationError) as error:
            raise SettingsError(f"{path}, line {number}: not a point of a curve ({str(error).splitlines()[0]})") from None
    return points


def read_curve(task: str, path: Path | None = None) -> Curve:
    """The curve of a task that ships with the package, or of a file. Raises SettingsError."""
    file = path or CURVES / f"{task}.jsonl"
    points = [point for point in read_points(file) if point.task == task]
    if len(points) < LEAST:
        known = ", ".join(sorted(p.stem for p in CURVES.glob("*.jsonl"))) or "none"
        raise SettingsError(f"no measured curve for {task!r} ({file} has {len(points)} points, {LEAST} are needed); there are "
                            f"curves for: {known}; measure one with python -m factory.sweep")  # fmt: skip
    return fit(points)


def fit(points: Sequence[Point]) -> Curve:
    """Fit by ridge regression on log-odds, points weighted by their binomial information."""
    weights = _solve(points)
    left_out = [
        _share(_dot(_solve([*points[:i], *points[i + 1 :]]), _features(p.parameters, p.rows, p.tokens)))
        for i, p in enumerate(points)
    ]
    errors = [_log_odds(p.score, p.n) - _log_odds(s, p.n) for p, s in zip(points, left_out, strict=True)]
    spread = math.sqrt(sum(e * e for e in errors) / len(errors))
    return Curve(tuple(points), tuple(weights), spread, tuple(left_out))


def _features(parameters: float, rows: float, tokens: float) -> list[float]:
    t = math.log(tokens / 1e6)
    return [1.0, math.log(parameters), math.log(rows / 1e4), t, t * t]


def _solve(points: Sequence[Point]) -> list[float]:
    import numpy as np

    x = np.array([_features(p.parameters, p.rows, p.tokens) for p in points])
    y = np.array([_log_odds(p.score, p.n) for p in points])
    w = np.array([p.n * max(p.score * (1 - p.score), 1 / p.n) for p in points])
    w = w / w.mean()
    penalty = RIDGE * len(points) * np.diag([0.0, 1.0, 1.0, 1.0, 1.0])
    return [float(v) for v in np.linalg.solve(x.T @ (w[:, None] * x) + penalty, x.T @ (w * y))]


def _log_odds(score: float, n: int) -> float:
    kept = min(max(score, 0.5 / n), 1 - 0.5 / n)
    return math.log(kept / (1 - kept))


def _share(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
