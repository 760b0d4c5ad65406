"""The questions an exported file is scored on: those its source was scored on, or those asked for.

Does: find them from the run around a checkpoint, from the card's data, or from options; load them, with what was lost.
Does not: ask a model (`export.probe`).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from agents.card import ANY_TASK
from factory.tasks.task import DataSource, Dialect, Example, Task, TaskError

if TYPE_CHECKING:
    from agents.card import Card
    from export.source import Source


class QuestionSettings(BaseModel):
    """Which questions; shared by every command that scores exported files. All left out: the source's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: str | None = None
    """task to score on; default: the card's"""
    dataset: str | None = None
    """dataset of the task; default: the one the source was scored on"""
    data_dir: Path | None = None
    """directory holding the dataset's files"""
    db: Path | None = None
    """SQLite file that the questions are about (sql)"""
    functions: str | None = None
    """functions that the questions call (tools): FILE.json, or MODULE:OBJECT of @tool functions"""
    questions: Path | None = None
    """JSONL of {"question": …} with "sql" (for --db), "calls" (for --functions) or "label" (route)"""
    split: str | None = None
    """split to score; default: the validation split"""
    limit: int | None = Field(None, ge=1)
    """score the first N after a seeded shuffle; default: all"""


class Questions(BaseModel):
    """A set of questions and how they are asked, complete enough for another process to load the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: str
    source: DataSource
    dialect: Dialect
    max_tokens: int
    only: tuple[str, ...] | None = None
    """ids to keep; None keeps all"""
    origin: str
    """where the choice comes from, in words"""

    def load(self) -> Loaded:
        """Read them. Raises TaskError when they cannot be read or none has a reference answer."""
        from factory.tasks import get_task

        task = get_task(self.task)
        every, data = task.load(self.source)
        kept = [example for example in every if example.reference is not None]
        if self.only is not None:
            wanted = set(self.only)
            kept = [example for example in kept if example.id in wanted]
        if not kept:
            raise TaskError(f"{data.source}, split {data.split!r}: no question has a reference answer to score against; "
                            "give another --split or --questions")  # fmt: skip
        return Loaded(task, kept, data.name, data.split, data.sha256, len(every) - len(kept))


@dataclass(frozen=True)
class Loaded:
    """The questions themselves."""

    task: Task
    examples: list[Example]
    dataset: str
    split: str
    sha256: str
    """over the bytes of the files read"""
    left_out: int
    """questions that cannot or should not be scored"""


def questions_of(source: Source, settings: QuestionSettings) -> tuple[Questions | None, str]:
    """(the questions, a warning or "") for a source; (None, why) when nothing says what it should be scored on.

    In this order: the options, the run the source lies in, the data of its card. Nothing is read but the run's settings.
    Raises TaskError for an unknown task.
    """
    from factory.evaluate import MAX_TOKENS
    from factory.tasks import get_task

    card = source.card
    any_task = card is not None and card.task == ANY_TASK
    named = settings.task or (card.task if card is not None and not any_task else None)
    asked = any(getattr(settings, name) is not None for name in ("dataset", "data_dir", "db", "functions", "questions", "split"))
    if named is None:
        if any_task and asked:
            raise TaskError(f"{source.path}: serves several tasks; say with --task which one it is scored on")
        if any_task:
            return None, "it serves several tasks and no --task was given, so only distributions are compared"
        if asked:
            raise TaskError(f"{source.path}: has no card that says its task; give --task as well")
        return None, "there is no card and no --task was given, so only distributions are compared and no score is measured"
    task = get_task(named)
    if card is not None and card.task not in (task.name, ANY_TASK):
        raise TaskError(f"{source.path}: made for the task {card.task!r}, not {task.name!r}; leave --task out")
    how: dict[str, Any] = {
        "task": task.name,
        "dialect": card.dialect if card is not None else "plain",
        "max_tokens": card.max_tokens if card is not None else MAX_TOKENS,
    }
    learned = card.task_data if card is not None else {}
    run = _run_source(source.run_dir) if source.run_dir is not None else None
    if asked or settings.task is not None:
        named_set, data_dir = settings.dataset, settings.data_dir
        others = (named_set, settings.db, settings.functions, settings.questions)
        if run is not None and all(one is None for one in others):
            named_set, data_dir = run[0].dataset, data_dir or run[0].data_dir  # another split or copy of the run's own data
        where = DataSource(card_data=learned, dataset=named_set, data_dir=data_dir, db=settings.db,
                           functions=settings.functions, questions=settings.questions, limit=settings.limit)  # fmt: skip
        own = settings.db is not None or settings.functions is not None
        split = settings.split or ("all" if own else task.validation_split(where))
        return Questions(source=where.model_copy(update={"split": split}), origin="the options", **how), ""
    if run is not None:
        where, only = run
        split = where.split or task.validation_split(where)
        limit = settings.limit if settings.limit is not None else where.limit
        where = where.model_copy(update={"split": split, "limit": limit, "card_data": learned})
        return Questions(source=where, only=only, origin=f"the run {source.run_dir}", **how), ""
    found = _card_source(card, task) if card is not None else None
    if found is not None:
        return Questions(
            source=found.model_copy(update={"limit": settings.limit, "card_data": learned}), origin="the card's data", **how
        ), ""
    return (
        None,
        "its card names no data that is here, so no score is measured; give --dataset and --data-dir, or --db and --questions",
    )


def _run_source(run_dir: Path) -> tuple[DataSource, tuple[str, ...] | None] | None:
    """The validation questions of a run (split "" is the task's choice), and which of them it scored if not all."""
    from factory.predictions import read_predictions

    try:
        settings = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    made = run_dir / "questions.jsonl"
    questions, only = settings.get("questions"), None
    if (settings.get("db") or settings.get("functions")) and not questions:
        if not made.is_file():
            return None
        questions = str(made)
        try:
            only = tuple(p.id for p in read_predictions(run_dir / "predictions.jsonl")) or None
        except ValueError:
            only = None
    source = DataSource(
        dataset=settings.get("dataset"),
        data_dir=settings.get("data_dir"),
        db=settings.get("db"),
        questions=questions,
        functions=settings.get("functions"),
        labels=settings.get("labels"),
        split=settings.get("validation_split") or "",
        limit=settings.get("final"),
        seed=settings.get("seed", 0),
    )
    return source, only


def _card_source(card: Card, task: Task) -> DataSource | None:
    """The data set the card's student was scored on, if it is one of the task's and needs no directory."""
    scored = card.scores.get("student")
    for entry in reversed(card.data):
        if entry.name in task.datasets and (scored is None or entry.split == scored.split):
            source = DataSource(dataset=entry.name, split=entry.split)
            try:
                task.validation_split(source)
            except TaskError:  # its files are not here
                continue
            return source
    return None
