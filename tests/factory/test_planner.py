"""The planner against a curve of known law: it takes the cheapest way that reaches the score, and says what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.cli import run_cli
from factory.curve import fit
from factory.devices import DEVICE_CLASSES
from factory.planner import PlanSettings, best, choose, fits, lines, main
from factory.settings import SettingsError
from tests.factory.test_curve import _grid

CURVE = fit(_grid(0.0))
PRICES = {"price_in": 1.0, "price_out": 2.0}


def test_the_choice_reaches_the_score_and_nothing_cheaper_does() -> None:
    chosen = choose(CURVE, PlanSettings(score=60, **PRICES))
    assert chosen is not None and chosen.predicted.score >= 0.60
    assert chosen.dollars == pytest.approx(chosen.rows * (300 * 1.0 + 40 * 2.0) / 1e6)
    assert chosen.break_even == chosen.rows  # the machine is free, so a row costs what a request would
    for parameters in (1.5, 4.2, 7.0):
        for tokens in (300_000, 700_000, 1_500_000):
            for rows in (3_000, 5_000, 10_000, 20_000, 30_000):
                if rows < chosen.rows:
                    assert CURVE.predict(parameters, rows, tokens).score < 0.60


def test_a_paid_machine_moves_the_point_where_it_pays() -> None:
    chosen = choose(CURVE, PlanSettings(score=60, usd_per_hour=3.0, **PRICES))
    assert chosen is not None and chosen.dollars is not None and chosen.break_even is not None
    call = (300 * 1.0 + 40 * 2.0) / 1e6
    assert chosen.dollars == pytest.approx(chosen.rows * call + 3.0 * chosen.training_hours)
    assert chosen.break_even == pytest.approx(chosen.dollars / call, abs=1)


def test_small_targets_leave_out_large_students() -> None:
    small = choose(CURVE, PlanSettings(score=40, target="2"))
    assert small is not None and small.parameters == 1.5  # 1.6 MB in Q8_0, the next one has 4.5
    assert choose(CURVE, PlanSettings(score=99)) is None
    top = best(CURVE, PlanSettings(score=99))
    assert top is not None and top.parameters == 7.0
    assert best(CURVE, PlanSettings(score=10, target="0.5")) is None


def test_the_table_names_everything_a_person_decides_by() -> None:
    settings = PlanSettings(score=60, **PRICES)
    chosen = choose(CURVE, settings)
    assert chosen is not None
    text = "\n".join(f"{label} {value}" for label, value in lines(CURVE, settings, chosen))
    for said in (f"{chosen.rows:,} rows", "Q8_0", "tokens/s", "in 19 of 20 cases", "pays after", "leaving one out"):
        assert said in text
    assert "unknown: give --price-in" in "\n".join(v for _, v in lines(CURVE, PlanSettings(), chosen.__class__(**{
        **chosen.__dict__, "dollars": None, "break_even": None})))  # fmt: skip


@pytest.mark.parametrize("target", ["watch", "-3", "nan", "inf"])
def test_a_target_that_is_none_lists_the_choices(target: str) -> None:
    with pytest.raises(SettingsError, match=r"phone, pi, laptop"):
        fits(4.0, target)
    assert fits(4.0, "phone") and set(DEVICE_CLASSES) >= {"phone", "pi", "laptop"}


def test_the_command_says_what_it_cannot_do_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = tmp_path / "c.jsonl"
    curve.write_text("\n".join(point.model_dump_json() for point in _grid(0.0)), encoding="utf-8")
    assert run_cli(main, ["--curve", str(curve), "--score", "60"]) == 0
    assert "predicted" in capsys.readouterr().out
    for arguments, said in (
        (["--curve", str(curve), "--score", "99"], "nothing measured reaches it; the best is"),
        (["--task", "chess"], "no measured curve for 'chess'"),
        (["--curve", str(curve), "--price-in", "1"], "give both --price-in and --price-out"),
        (["--curve", str(curve), "--target", "0.1"], "no measured size fits"),
    ):
        assert run_cli(main, arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
