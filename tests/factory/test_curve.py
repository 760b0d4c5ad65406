"""The curve against scores that follow a known law, and its files."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from factory.curve import Point, fit, read_curve, read_points
from factory.settings import SettingsError


def _law(parameters: float, rows: float, tokens: float) -> float:
    t = math.log(tokens / 1e6)
    return 1 / (1 + math.exp(-(0.4 + 0.3 * math.log(parameters) + 0.25 * math.log(rows / 1e4) + 0.8 * t - 0.15 * t * t)))


def _point(parameters: float, rows: int, tokens: int, score: float) -> Point:
    return Point(task="sql", shape=f"s{parameters}", parameters=parameters, rows=rows, tokens=tokens, tokens_asked=tokens,
                 score=score, low=score, high=score, n=600, metric="execution", seconds=1.0)  # fmt: skip


def _grid(noise: float) -> list[Point]:
    rng = random.Random(3)
    return [
        _point(p, r, t, min(0.999, max(0.001, _law(p, r, t) + rng.gauss(0, noise))))
        for p in (1.5, 4.2, 7.0)
        for r in (3000, 10_000, 40_000)
        for t in (300_000, 700_000, 1_500_000)
    ]


def test_finds_a_law_of_its_own_form() -> None:
    curve = fit(_grid(0.0))
    found = curve.predict(3.0, 20_000, 1_000_000)
    assert found.score == pytest.approx(_law(3.0, 20_000, 1_000_000), abs=0.02)
    assert curve.leave_one_out_error < 2.0
    assert curve.inside(3.0, 20_000, 1_000_000) == []
    assert curve.inside(30.0, 20_000, 1_000_000) == ["parameters 30 (measured 1.5 to 7)"]


def test_the_interval_covers_new_points_about_nineteen_times_in_twenty() -> None:
    curve = fit(_grid(0.02))
    rng = random.Random(11)
    covered = 0
    for _ in range(400):
        p, r, t = rng.uniform(1.6, 6.9), rng.uniform(3100, 39_000), rng.uniform(310_000, 1_450_000)
        found = curve.predict(p, r, t)
        covered += found.low <= _law(p, r, t) + rng.gauss(0, 0.02) <= found.high
    assert 0.88 <= covered / 400 <= 1.0
    assert found.high - found.low < 0.25


def test_leaving_one_out_shows_a_point_that_does_not_fit() -> None:
    points = _grid(0.0)
    points[5] = points[5].model_copy(update={"score": 0.05})
    curve = fit(points)
    errors = [abs(p.score - s) for p, s in zip(curve.points, curve.left_out, strict=True)]
    assert errors[5] == max(errors) > 0.3


def test_files_are_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "sql.jsonl"
    assert read_points(path) == []
    path.write_text("\n".join(point.model_dump_json() for point in _grid(0.0)) + "\n", encoding="utf-8")
    assert len(read_curve("sql", path).points) == 27
    with pytest.raises(SettingsError, match=r"no measured curve for 'route'.*8 are needed"):
        read_curve("route", path)
    path.write_text('{"task": "sql"}\n', encoding="utf-8")
    with pytest.raises(SettingsError, match="line 1: not a point"):
        read_points(path)
