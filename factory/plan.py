"""What a run would ask, train, hold and write, before it does: the table of `--dry-run`. As a command (`python -m factory.plan
--task sql --target phone --score 70`) it asks `planner.py` which student reaches a score.

Does: count calls and tokens, estimate hours and dollars, compare memory needed with memory there. Pure: numbers in, text out.
Does not: look at hardware, data or models; its caller measured them.

The rates below are deliberately modest round figures; an estimate is within a factor of about three, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.settings import DistillSettings
from factory.tasks.task import Dialect, Example, Task
from factory.teacher import TeacherPlan

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of English, SQL and schemas for one token of a teacher's vocabulary."""
ENDPOINT_S = 2.0
"""Seconds an endpoint takes for one short answer."""
ASK_FLOPS = {"cuda": 30e12, "cpu": 50e9}
"""Useful floating-point operations per second while a local teacher answers in batches."""
TRAIN_FLOPS = {"cuda": 100e12, "cpu": 150e9}
"""The same while training in bfloat16 (two CPU cores: a 5.8 M Llama at 4,100 tokens/s)."""


@dataclass(frozen=True)
class StudentNumbers:
    """The student in plain numbers: parameters in millions, sizes in GB (1e9 bytes)."""

    title: str
    parameters: float
    device: str
    need_gb: float
    have_gb: float
    download_gb: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A run in numbers. `hours_*` are estimates; `dollars` None: the endpoint's prices were not given; 0: nothing is paid."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    hours_asking: float
    dollars: float | None
    training_tokens: int
    hours_training: float
    table: tuple[tuple[str, str], ...]
    """(label, value); an empty label continues the line above"""

    def text(self) -> str:
        """The table as lines of text."""
        width = max(len(label) for label, _ in self.table)
        return "".join(f"{label:<{width}}  {value}\n" for label, value in self.table)


def mean_tokens(task: Task, examples: Sequence[Example], dialect: Dialect, most: int = 64) -> tuple[float, float]:
    """(prompt, completion) tokens a row takes on average, by the bytes of evenly spread examples; 40 out when unlabelled.

    Compact prompts are counted alike, which is too high for them.
    """
    picked = examples[:: max(1, len(examples) // most)][:most]
    if not picked:
        return 0.0, 0.0
    prompts = [sum(len(m.content.encode()) for m in task.messages(example, dialect)) + 16 for example in picked]
    answers = [len(example.reference.encode()) for example in picked if example.reference is not None]
    completion = sum(answers) / len(answers) if answers else 40 * BYTES_PER_TOKEN
    return sum(prompts) / len(prompts) / BYTES_PER_TOKEN, completion / BYTES_PER_TOKEN


def make_plan(
    settings: DistillSettings,
    teacher: TeacherPlan,
    student: StudentNumbers,
    *,
    train: int,
    validation: int,
    ask_tokens: tuple[float, float],
    row_tokens: tuple[float, float],
    out: Path,
    already: int = 0,
    predicted: str | None = None,
) -> Plan:
    """Plan a run over `train` and `validation` examples. `ask_tokens` and `row_tokens`: mean (prompt, completion) tokens of one
    teacher call and of one training row (`mean_tokens`); `already`: answers the ledger holds; `predicted`: the score by the
    measured curve."""
    samples = 1 if teacher.replays else settings.samples
    gate = min(settings.gate, validation)
    calls = (0 if settings.answers == "labels" else max(0, train * samples - already)) + gate
    rows = train * settings.copies
    asked, said = round(calls * ask_tokens[0]), round(calls * ask_tokens[1])
    hours = _asking_s(teacher, calls, asked + said) / 3600
    dollars = _dollars(teacher, asked, said)
    tokens = round(rows * sum(row_tokens))
    training_s = 6e6 * student.parameters * tokens * settings.epochs / TRAIN_FLOPS[_device(student.device)]
    if settings.minutes is not None:
        training_s = min(training_s, 60 * settings.minutes)
    grading_s = _asking_s(teacher, 0, tokens) if settings.method == "logits" else 0.0
    timed = f"about {_duration(training_s / 3600)}" + ("" if settings.minutes is None else f" (--minutes {settings.minutes:g})")
    table = [
        ("task", f"{settings.task}: {train:,} questions to learn from, {validation:,} to validate on"),
        ("teacher", _teacher_line(teacher)),
        *(("", note) for note in teacher.notes),
        *([("  memory", f"needs {teacher.need_gb:.1f} GB, has {teacher.have_gb:.1f} GB ({teacher.device}, {teacher.bits} bit)")]
          if teacher.need_gb else []),
        *([("  download", f"{teacher.download_gb:.1f} GB")] if teacher.download_gb else []),
        ("calls", _calls_line(teacher, calls, settings.answers == "labels", samples, gate, already)),
        ("  tokens", "none" if teacher.replays else f"about {asked:,} in, {said:,} out"),
        ("  time", "seconds" if teacher.replays else f"about {_duration(hours)}"),
        ("  cost", _cost_line(teacher, dollars, settings.budget_usd)),
        *([("  grading", f"about {_duration(grading_s / 3600)}, its probabilities of every row")] if grading_s else []),
        ("student", student.title),
        ("  memory", f"needs {student.need_gb:.1f} GB, has {student.have_gb:.1f} GB ({student.device})"),
        *([("  download", f"{student.download_gb:.1f} GB")] if student.download_gb else []),
        *([("  goes on", f"from the adapter {settings.adapter_from}")] if settings.adapter_from is not None else []),
        ("training", f"--method {settings.method}: at most {rows:,} rows, about {tokens:,} tokens, {settings.epochs:g} epochs"),
        ("  time", timed),
        *([("score", f"predicted {predicted}")] if predicted else []),
        ("written", f"{out}/"),
        *(("", line) for line in WRITTEN),
        ("estimates", "times are right within a factor of about three; tokens count 4 bytes each"),
    ]  # fmt: skip
    return Plan(calls, asked, said, hours, dollars, tokens, training_s / 3600, tuple(table))


WRITTEN = (
    "config.toml, events.jsonl         what was asked, what happened",
    "ledger.sqlite                     every teacher answer, verdict and dropped row",
    "train.jsonl                       kept rows",
    "checkpoints/                      trainer state, so that the run can continue",
    "model/ (card.json), report.md     the student, its card, its report",
)


def _asking_s(teacher: TeacherPlan, calls: int, tokens: int) -> float:
    if teacher.replays:
        return 0.0
    if teacher.kind == "http":
        return calls * ENDPOINT_S / teacher.in_flight
    return 2e9 * (teacher.active or teacher.parameters or 7.0) * tokens / ASK_FLOPS[_device(teacher.device)]


def _device(name: str) -> str:
    return "cuda" if name.startswith("cuda") else "cpu"


def _dollars(teacher: TeacherPlan, asked: int, said: int) -> float | None:
    if teacher.kind != "http":
        return 0.0
    if teacher.price_in is None or teacher.price_out is None:
        return None
    return (asked * teacher.price_in + said * teacher.price_out) / 1e6


def _teacher_line(teacher: TeacherPlan) -> str:
    size = f", {teacher.parameters:.3g} B parameters" if teacher.parameters else ""
    place = ", ".join(teacher.members) or teacher.location
    where = f" ({place})" if place and place != teacher.name else ""
    return f"{teacher.name}{where}{size}, licence: {teacher.license}"


def _calls_line(teacher: TeacherPlan, calls: int, given: bool, samples: int, gate: int, already: int) -> str:
    if given:
        return f"{calls:,} (the gate's; the data's own answers are taken)"
    parts = [f"{calls:,}"]
    parts.append("answers looked up" if teacher.replays else f"({samples} for each question, {gate} for the gate)")
    if already:
        parts.append(f"; {already:,} are in the ledger already")
    return " ".join(parts).replace(" ;", ";")


def _cost_line(teacher: TeacherPlan, dollars: float | None, budget: float | None) -> str:
    limit = "" if budget is None else f", stops at ${budget:g}"
    if dollars is None:
        return "unknown: give --price-in and --price-out (dollars per million tokens)"
    if teacher.kind == "http":
        return f"about ${dollars:.2f}{limit}"
    return "nothing is paid"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return "a minute"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"


if __name__ == "__main__":
    import sys

    from factory.cli import run_cli
    from factory.planner import main

    sys.exit(run_cli(main))
