"""The dry run's numbers follow from settings and sizes by hand-checked arithmetic, and its table says them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from factory.plan import StudentNumbers, make_plan, mean_tokens
from factory.settings import DistillSettings
from factory.teacher import TeacherPlan
from tests.factory.toy import SumTask, sums

REMOTE = TeacherPlan(
    "http://h/v1#m", "http", "m", "", "http://h/v1", in_flight=10, price_in=0.5, price_out=1.5, notes=("a note",)
)
STUDENT = StudentNumbers("tiny (5.8 M)", 5.8, "cpu", 1.5, 12.0)
SIZES = {"train": 1000, "validation": 200, "ask_tokens": (300.0, 20.0), "row_tokens": (80.0, 20.0), "out": Path("runs/x")}


def test_calls_tokens_hours_and_dollars() -> None:
    plan = make_plan(DistillSettings(samples=4, gate=50, epochs=2), REMOTE, STUDENT, **SIZES)
    assert plan.calls == 4050
    assert (plan.prompt_tokens, plan.completion_tokens) == (4050 * 300, 4050 * 20)
    assert plan.dollars == pytest.approx(4050 * (300 * 0.5 + 20 * 1.5) / 1e6)
    assert plan.hours_asking == pytest.approx(4050 * 2 / 10 / 3600)
    assert plan.training_tokens == 100_000
    assert plan.hours_training == pytest.approx(6 * 5.8e6 * 200_000 / 150e9 / 3600)
    text = plan.text()
    for part in ("4,050 (4 for each question, 50 for the gate)", "about 1,215,000 in", "$0.73", "a note",
                 "needs 1.5 GB, has 12.0 GB", "runs/x/", "ledger.sqlite", "1,000 questions"):  # fmt: skip
        assert part in text


def test_what_the_ledger_holds_is_not_asked_again() -> None:
    assert make_plan(DistillSettings(gate=64), REMOTE, STUDENT, already=900, **SIZES).calls == 164


def test_graded_labels_are_not_asked_for_and_copies_are_read() -> None:
    local = TeacherPlan("s", "local", "a+b", "", "a", device="cpu", parameters=0.01, members=("a", "b"))
    plan = make_plan(
        DistillSettings(teacher="ensemble:a,b", method="logits", answers="labels", copies=3), local, STUDENT, **SIZES
    )
    assert (plan.calls, plan.training_tokens) == (64, 300_000)
    assert "64 (the gate's; the data's own answers are taken)" in plan.text() and "  grading" in plan.text()
    assert "a+b (a, b)" in plan.text() and "3,000 rows" in plan.text()


def test_unknown_prices_are_said_and_replaying_is_free() -> None:
    plan = make_plan(DistillSettings(), replace(REMOTE, price_in=None), STUDENT, **SIZES)
    assert plan.dollars is None
    assert "--price-in" in plan.text()
    recorded = make_plan(DistillSettings(samples=8), TeacherPlan("recorded", "recorded", "recorded", "", ""), STUDENT, **SIZES)
    assert (recorded.calls, recorded.dollars, recorded.hours_asking) == (1064, 0.0, 0.0)


def test_minutes_cap_the_training_time() -> None:
    plan = make_plan(DistillSettings(minutes=0.1, epochs=100), REMOTE, replace(STUDENT, parameters=500), **SIZES)
    assert plan.hours_training == pytest.approx(0.1 / 60)


def test_a_larger_teacher_takes_longer_on_the_same_device() -> None:
    small = TeacherPlan("s", "local", "s", "", "s", device="cuda", parameters=7, active=7, need_gb=16, have_gb=80)
    large = replace(small, parameters=47, active=13)
    hours = [make_plan(DistillSettings(), t, STUDENT, **SIZES).hours_asking for t in (small, large)]
    assert hours[1] == pytest.approx(hours[0] * 13 / 7)


def test_mean_tokens_count_bytes_of_a_spread_sample() -> None:
    prompt, completion = mean_tokens(SumTask(), sums(1000), "plain")
    sample = sums(1000)[::15][:64]
    assert prompt == pytest.approx(sum(len(e.question) + 16 for e in sample) / 64 / 4)
    assert completion == pytest.approx(sum(len(e.reference or "") for e in sample) / 64 / 4)
    assert mean_tokens(SumTask(), sums(3, labelled=False), "plain")[1] == 40
    assert mean_tokens(SumTask(), [], "plain") == (0.0, 0.0)
