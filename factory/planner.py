"""Which student to make for a score on a device, before anything is asked or trained: `python -m factory.plan`.

Does: choose the cheapest (size, rows, tokens) whose predicted score reaches the one asked for and that fits the device; add
hours, dollars, speed, and the number of requests from which the student costs less than its teacher.
Does not: measure (`sweep.py`) or fit (`curve.py`); every figure here is a prediction and says from what.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from factory.curve import Curve, Prediction, read_curve
from factory.devices import DEVICE_CLASSES, GB, RUNTIME_MB, DeviceClass
from factory.settings import SettingsError, parse

BITS = {"Q8_0": 8.5, "Q4_0": 5.7}
"""Bits per weight of an exported file; four-bit files keep the head in eight."""
ROWS = (1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 30_000, 40_000, 60_000, 100_000)
TOKENS = (300_000, 500_000, 700_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000)


class PlanSettings(BaseModel):
    """`python -m factory.plan`: what it takes to reach a score."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    task: str = "sql"
    """task to plan for; it needs a measured curve"""
    target: str = "phone"
    """phone, pi, laptop, or the largest file in megabytes"""
    score: float = Field(70.0, gt=0, lt=100)
    """score to reach, in percent"""
    curve: Path | None = None
    """curve.jsonl of your own sweep; default: the one in the package"""
    prompt_tokens: float = Field(300.0, gt=0)
    """tokens of a request to the teacher"""
    answer_tokens: float = Field(40.0, gt=0)
    """tokens of its answer"""
    samples: int = Field(1, ge=1)
    """answers asked for each row"""
    price_in: float | None = Field(None, ge=0)
    """dollars per million prompt tokens of the teacher"""
    price_out: float | None = Field(None, ge=0)
    """dollars per million completion tokens of the teacher"""
    in_flight: int = Field(64, ge=1)
    """requests to the teacher at once"""
    usd_per_hour: float = Field(0.0, ge=0)
    """price of the machine that trains; 0 for your own"""

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("give both --price-in and --price-out (dollars per million tokens), or neither")
        return self


@dataclass(frozen=True)
class Choice:
    """One way to reach the score."""

    shape: str
    parameters: float
    rows: int
    tokens: int
    predicted: Prediction
    training_hours: float
    asking_hours: float
    dollars: float | None
    """teacher calls and machine; None without the teacher's prices"""
    break_even: int | None
    """requests from which the student is cheaper than its teacher; None without prices"""
    outside: tuple[str, ...]
    """what lies outside of the measured range"""


def choose(curve: Curve, settings: PlanSettings) -> Choice | None:
    """The cheapest choice within the measured range; None when none reaches the score on the target."""
    found: list[Choice] = []
    sizes = {point.shape: point.parameters for point in curve.points}
    for shape, parameters in sizes.items():
        if not fits(parameters, settings.target):
            continue
        for rows in ROWS:
            for tokens in TOKENS:
                outside = curve.inside(parameters, rows, tokens)
                predicted = curve.predict(parameters, rows, tokens)
                if not outside and 100 * predicted.score >= settings.score:
                    found.append(_costed(curve, settings, shape, parameters, rows, tokens, predicted))
    return min(found, key=_cost, default=None)


def best(curve: Curve, settings: PlanSettings) -> Choice | None:
    """The highest predicted score within the measured range on this target; None when no measured size fits it."""
    sizes = {p.shape: p.parameters for p in curve.points if fits(p.parameters, settings.target)}
    every = [
        _costed(curve, settings, shape, parameters, rows, tokens, curve.predict(parameters, rows, tokens))
        for shape, parameters in sizes.items()
        for rows in ROWS
        for tokens in TOKENS
        if not curve.inside(parameters, rows, tokens)
    ]
    return max(every, key=lambda choice: choice.predicted.score, default=None)


def _costed(
    curve: Curve, settings: PlanSettings, shape: str, parameters: float, rows: int, tokens: int, predicted: Prediction
) -> Choice:
    each = statistics.median(p.seconds / (p.parameters * p.tokens) for p in curve.points)
    hours = each * parameters * tokens / 3600
    calls = rows * settings.samples
    asking = calls * 2.0 / settings.in_flight / 3600  # two seconds an answer, as `factory.plan` counts endpoints
    call = None
    if settings.price_in is not None and settings.price_out is not None:
        call = (settings.prompt_tokens * settings.price_in + settings.answer_tokens * settings.price_out) / 1e6
    dollars = None if call is None else calls * call + hours * settings.usd_per_hour
    even = None if call is None or dollars is None or call == 0 else round(dollars / call)
    return Choice(shape, parameters, rows, tokens, predicted, hours, asking, dollars, even, ())


def _cost(choice: Choice) -> tuple[float, float, float, float]:
    return (choice.dollars or 0.0, choice.training_hours + choice.asking_hours, choice.rows, choice.parameters)


def fits(parameters: float, target: str) -> bool:
    """Whether a Q8_0 file of this many million parameters fits. Raises SettingsError for a target that is none."""
    size = parameters * 1e6 * BITS["Q8_0"] / 8
    device = DEVICE_CLASSES.get(target)
    if device is not None:
        return size + RUNTIME_MB * 1e6 <= device.memory_mb * 1e6
    try:
        limit = float(target.lower().removesuffix("mb")) * 1e6
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise SettingsError(f"--target cannot be {target!r}; give {', '.join(DEVICE_CLASSES)}, or the largest file in megabytes, "
                            "like 20")  # fmt: skip
    return size <= limit


def lines(curve: Curve, settings: PlanSettings, choice: Choice) -> list[tuple[str, str]]:
    """The plan as (label, value) lines."""
    p = choice.predicted
    out = [
        ("task", f"{settings.task}, {settings.score:g} % on a {settings.target}" if settings.target in DEVICE_CLASSES
         else f"{settings.task}, {settings.score:g} % in {settings.target} MB"),
        ("student", f"{choice.shape} ({choice.parameters:.1f} M parameters)"),
        ("  file", ", ".join(f"{name} {choice.parameters * bits / 8:.1f} MB" for name, bits in BITS.items())),
        *([("  speed", speed(DEVICE_CLASSES[settings.target], choice.parameters))] if settings.target in DEVICE_CLASSES else []),
        ("teacher", f"{choice.rows:,} rows, {settings.samples} answer{'s' if settings.samples > 1 else ''} each"),
        ("  time", f"about {_hours(choice.asking_hours)} ({settings.in_flight} in flight)"),
        ("training", f"{choice.tokens:,} tokens, about {_hours(choice.training_hours)} as on the curve's machine"),
        ("score", f"{100 * p.score:.1f} % predicted, {100 * p.low:.1f} to {100 * p.high:.1f} % in 19 of 20 cases"),
        ("cost", "unknown: give --price-in and --price-out (dollars per million tokens)" if choice.dollars is None
         else f"${choice.dollars:.2f} (teacher calls{' and machine' if settings.usd_per_hour else '; the machine is yours'})"),
        *([("  pays after", f"{choice.break_even:,} requests that the teacher need not answer")]
          if choice.break_even is not None else []),
        ("curve", f"{len(curve.points)} students measured; leaving one out, the others predict it within "
                  f"{curve.leave_one_out_error:.1f} points on average"),
    ]  # fmt: skip
    return out


def speed(device: DeviceClass, parameters: float) -> str:
    """Decode tokens/s of a Q8_0 file by memory bandwidth; small files are bound by computing and stay below that."""
    size = parameters * 1e6 * BITS["Q8_0"] / 8
    slow, fast = device.slow_gb_s * GB / size, device.fast_gb_s * GB / size
    return f"at most {slow:,.0f} to {fast:,.0f} tokens/s by memory bandwidth ({device.name}, predicted, Q8_0)"


def predicted_line(task: str, parameters: float, rows: int, tokens: float) -> str | None:
    """What the measured curve says of a planned from-scratch student, for `--dry-run`; None without a curve for the task."""
    try:
        curve = read_curve(task)
    except SettingsError:
        return None
    found, outside = curve.predict(parameters, rows, tokens), curve.inside(parameters, rows, tokens)
    span = f"{100 * found.score:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f} %)"
    said = f"{span}, from {len(curve.points)} measured students"
    return said + (f"; outside of what was measured: {', '.join(outside)}" if outside else "")


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return "a minute"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse(PlanSettings, argv, "python -m factory.plan", "Plan a student for a score on a device.")
    curve = read_curve(settings.task, settings.curve)
    choice = choose(curve, settings)
    if choice is None:
        most = best(curve, settings)
        if most is None:
            raise SettingsError(f"--target {settings.target}: no measured size fits; the smallest is "
                                f"{min(p.parameters for p in curve.points):.1f} M parameters")  # fmt: skip
        raise SettingsError(
            f"--score {settings.score:g}: nothing measured reaches it; the best is {100 * most.predicted.score:.1f} % "
            f"({most.shape}, {most.rows:,} rows, {most.tokens:,} tokens); ask for less, or measure larger students with "
            "python -m factory.sweep"
        )
    shown = lines(curve, settings, choice)
    width = max(len(label) for label, _ in shown)
    sys.stdout.write("".join(f"{label:<{width}}  {value}\n" for label, value in shown))
