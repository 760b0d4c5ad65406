"""Whole and torn checkpoints, candidates, schedules: files only."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from factory.checkpoints import Candidates, is_complete, mark_complete, newest, prune
from factory.schedule import Schedule, steps_in, write_json


def made(directory: Path, step: int, whole: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    (path / "weights").write_bytes(b"x" * step)
    (path / "deep" / "state").write_bytes(b"y" * 10)
    if whole:
        mark_complete(path)
    return path


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None
    for step in (5, 40, 300):
        made(tmp_path, step)
    made(tmp_path, 1000, whole=False)
    assert newest(tmp_path) == tmp_path / "checkpoint-300"
    (tmp_path / "checkpoint-300" / "deep" / "state").write_bytes(b"y" * 9)
    assert newest(tmp_path) == tmp_path / "checkpoint-40"
    (tmp_path / "checkpoint-40" / "weights").unlink()
    assert newest(tmp_path) == tmp_path / "checkpoint-5"
    (tmp_path / "checkpoint-5" / "complete.json").write_text('{"weights"')
    assert newest(tmp_path) is None and not is_complete(tmp_path)


def test_prune_keeps_two_whole_ones(tmp_path: Path) -> None:
    made(tmp_path, 1)
    made(tmp_path, 2)
    made(tmp_path, 3, whole=False)
    made(tmp_path, 4)
    made(tmp_path, 5, whole=False)
    prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


def test_best_candidate(tmp_path: Path) -> None:
    candidates = Candidates.open(tmp_path)
    for step, score in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.1)):
        (tmp_path / f"step-{step}").mkdir()
        candidates.add(step, score, f"step-{step}")
    best = Candidates.open(tmp_path).best
    assert best is not None and best.step == 3
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-3"]
    (tmp_path / "step-3").rmdir()
    assert Candidates.open(tmp_path).scored == [], "scores of lost files say nothing"


def test_learning_rate_rises_falls_and_ends_at_zero() -> None:
    schedule = Schedule.open(None, 100, 0.1, "linear")
    factors = [schedule.factor(i) for i in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == factors[9] == 1.0
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5) and factors[100] == 0
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    cosine = Schedule.open(None, 100, 0.1, "cosine")
    assert cosine.factor(55) == pytest.approx(0.5) and cosine.factor(100) == 0
    assert Schedule.open(None, 100, 0.1, "constant").factor(99) == 1.0


def test_fits_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    schedule = Schedule.open(path, 1000, 0.05, "linear")
    assert not schedule.resumed
    schedule.fit(15, 200)
    schedule.fit(60, 150)
    again = Schedule.open(path, 1000, 0.05, "linear")
    assert again.resumed and again.total == 150 and again.planned == 1000
    assert [again.factor(i) for i in range(150)] == [schedule.factor(i) for i in range(150)]
    assert schedule.factor(14) == 15 / 50 and schedule.factor(15) < 1.0
    schedule.fit(100, 99_999)
    assert schedule.total == 1000
    schedule.fit(120, 3)
    assert schedule.total == 121
    unfitted = Schedule.open(tmp_path / "early.json", 1000, 0.05, "linear")
    unfitted.save(90.0)  # saved, then killed before the speed was known: the next process fits it
    again = Schedule.open(tmp_path / "early.json", 1000, 0.05, "linear")
    assert not again.resumed and again.spent_s == 90.0
    assert not Schedule.open(path, 900, 0.05, "linear").resumed, "another plan is another schedule"


def test_scorings_are_spread() -> None:
    schedule = Schedule.open(None, 10, 0.1, "linear")
    assert [schedule.due(step, 3) for step in range(11)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    assert steps_in(10.0, 5, 2.0) == 10 and steps_in(-3.0, 5, 2.0) == 6


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
