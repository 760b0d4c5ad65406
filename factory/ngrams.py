"""A model over n-grams of a question, linear or with one hidden layer: made in a minute, right where small language models err.

Does: train one on the labelled questions of a task with a closed set of answers (route), score it, write it as a directory that
`--teacher ensemble:DIR,NGRAMS` takes beside language models.
Does not: count or fit (`ngram_model.py`), or teach alone: it has no tokenizer.

Run: python -m factory.ngrams --task route --dataset clinc150+banking77 --out runs/ngrams

Words, pairs of words and the characters inside them are what linear classifiers of intents are usually given (Larson et al. 2019;
Casanueva et al. 2020). Such a model errs on other questions than a model of tokens does, so that the mean of both is right more
often than the mean of two language models.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from agents.card import BaseEntry, Card, DataEntry, ScoreEntry, program, sha256_of_weights
from factory.confidence import wilson
from factory.events import EventLog
from factory.rows import HeldOut, select_rows, vary
from factory.settings import DataSettings, SettingsError, parse
from factory.tasks.task import DatasetCard, DataSource, Example, HasSummary, OpensPrompts, Task, TaskError

if TYPE_CHECKING:
    from factory.ngram_model import NgramSet

KIND = "penknife-ngrams"
"""`model_type` in config.json."""
Grams = Literal["words", "words+characters"]
ASKED = 256
"""Questions scored at once."""


class NgramSettings(DataSettings):
    """`python -m factory.ngrams`."""

    grams: Grams = "words+characters"
    """what is counted: words and pairs of words, or those and the characters inside words"""
    copies: int = Field(1, ge=1, le=64)
    """how often each question is taken; every copy after the first in another form, where the task has them"""
    hidden: int = Field(0, ge=0, le=4096)
    """units of a hidden layer between what is counted and the answers; 0: none, a linear model"""
    epochs: int = Field(12, ge=1)
    """passes over the questions"""
    out: Path = Path("runs/ngrams")
    """directory to write; it must not be there yet"""


def is_ngrams(directory: Path) -> bool:
    """Whether a directory holds such a model."""
    try:
        said = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("model_type") == KIND


def check_members(members: Iterable[str], task: Task, examples: Sequence[Example]) -> None:
    """`check_learned` for those of an ensemble's directories that hold n-grams. Raises TeacherError."""
    for directory in filter(is_ngrams, map(Path, members)):
        check_learned(directory, task, examples)


def check_learned(directory: Path, task: Task, examples: Sequence[Example]) -> None:
    """That the n-grams of a directory know every prompt and every answer of these examples. Raises TeacherError."""
    from factory.teacher import TeacherError

    said = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    known = {one["opening"]: set(one["completions"]) for one in said["sets"]}
    for name, example in {example.context_id: example for example in reversed(examples)}.items():
        opening = task.opening(example).content if isinstance(task, OpensPrompts) else ""
        wanted = set(_completions(task, example))
        if opening not in known or not wanted <= known[opening]:
            strange = sorted(wanted - known.get(opening, set()))[:1]
            what = f"the answer {strange[0].strip()!r} of {name!r}" if opening in known and strange else f"the set {name!r}"
            raise TeacherError(f"the n-grams of {directory} never learned {what}; make them from the same data: "
                               f"python -m factory.ngrams --task {task.name}")  # fmt: skip


def run(settings: NgramSettings, events: EventLog | None = None) -> dict[str, float]:
    """Train, score and write; returns set -> share of the validation questions answered right (those the task counts).

    Raises SettingsError, TaskError before anything costly; SettingsError too where `out` came to be meanwhile.
    """
    from factory.ngram_model import fit
    from factory.tasks import get_task

    task = get_task(settings.task)
    if not isinstance(task, OpensPrompts):
        raise TaskError(
            f"--task {settings.task}: its answers are no closed set; only route's questions can be learned by n-grams"
        )
    if settings.out.exists():
        raise SettingsError(f"--out {settings.out}: is there already; give another directory, or remove it")
    events = events or EventLog()
    source = DataSource(dataset=settings.dataset, data_dir=settings.data_dir, questions=settings.questions,
                        labels=settings.labels, seed=settings.seed)  # fmt: skip
    train, data = task.load(source)
    split = task.validation_split(source)
    validation, held = task.load(source.model_copy(update={"split": split}))
    others = [*validation, *task.others(source)]
    unlabelled = sum(example.reference is None for example in validation)
    validation = [example for example in validation if example.reference is not None]
    kept = select_rows(task, train, None, others, "compact", events)
    rows, lost = list(kept.rows), Counter[str]()
    if settings.copies > 1:
        more, lost = vary(task, train, rows, HeldOut(task, others), "compact", settings.copies, settings.seed)
        rows += more
    if not rows:
        left_out = ", ".join(f"{reason} {n}" for reason, n in data.skipped.items())
        raise TaskError(f"{data.source}: none of {len(train)} questions can be learned from{left_out and f' ({left_out})'}; "
                        "give rows with a label")  # fmt: skip
    examples = {example.context_id: example for example in reversed(train)}
    asked: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        opening = task.opening(examples[row["context_id"]]).content
        asked[row["context_id"]].append((row["prompt"][-1]["content"].removeprefix(opening), row["completion"]))
    sets: dict[str, NgramSet] = {}
    with events.stage("ngrams", total=len(rows), unit="rows") as stage:
        for reason, n in (*lost.items(), *((("no-reference", unlabelled),) if unlabelled else ())):
            stage.drop(reason, n)
        for name in examples.keys() - asked.keys():
            stage.warn(f"the set {name} has no rows to learn from, and no model")
        for name, pairs in asked.items():
            every = dict.fromkeys((*_completions(task, examples[name]), *(said for _, said in pairs)))
            opening = task.opening(examples[name]).content
            sets[name] = fit(opening, pairs, list(every), "characters" in settings.grams, settings.epochs, settings.seed,
                             settings.hidden)  # fmt: skip
            stage.advance(len(pairs))
    right, scores = score(task, sets, validation), {}
    for name, answers in right.items():
        scores[f"{task.name}/{name}"] = _entry(answers, split, task.metric)
        events.emit("metric", stage="ngrams", set=name, score=scores[f"{task.name}/{name}"].score, n=len(answers))
    _write(list(sets.values()), settings.out, task, (data, held), scores)
    return {name: sum(answers) / len(answers) for name, answers in right.items()}


def _write(
    sets: Sequence[NgramSet], out: Path, task: Task, data: Sequence[DatasetCard], scores: Mapping[str, ScoreEntry]
) -> None:
    """The directory, whole or not at all. Raises SettingsError where it came to be meanwhile."""
    from factory.ngram_model import save

    out.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    partial = place / out.name
    try:
        save(sets, partial)
        _card(out.name, partial, task, data, scores).save(partial)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    if out.exists():
        raise SettingsError(f"--out {out}: somebody else wrote it meanwhile; this model is in {partial}")
    partial.rename(out)
    place.rmdir()


def _card(name: str, directory: Path, task: Task, data: Sequence[DatasetCard], scores: Mapping[str, ScoreEntry]) -> Card:
    return Card(
        name=name, task=task.name, task_version=task.version, dialect="compact", constraint="lark",
        prompt_template=f"{task.name}/compact/{task.version}", parser=f"{task.name}/compact", base=BaseEntry(id="ngrams"),
        license="; ".join(sorted({card.license for card in data})), scores=dict(scores), created_by=program(),
        data=tuple(DataEntry(**card.model_dump(exclude={"skipped"})) for card in data),
        weights_sha256=sha256_of_weights(directory),
    )  # fmt: skip


def _completions(task: Task, example: Example) -> tuple[str, ...]:
    """Every answer that may be asked for, whether the rows have it or not."""
    every = getattr(example.context, "completions", None)
    return tuple(every("compact")) if every is not None else ()


def score(task: Task, sets: Mapping[str, NgramSet], validation: Sequence[Example]) -> dict[str, list[bool]]:
    """Set -> whether each validation question was answered right, of those that the task counts."""
    right: dict[str, list[bool]] = defaultdict(list)
    for name, one in sets.items():
        counted = [example for example in validation if example.context_id == name and _counts(task, example)]
        for start in range(0, len(counted), ASKED):
            part = counted[start : start + ASKED]
            texts = [task.messages(example, "compact")[-1].content.removeprefix(one.opening) for example in part]
            for example, best in zip(part, one.log_probabilities(texts).argmax(-1).tolist()):
                right[name].append(task.decode(example, one.completions[best], "compact") == example.reference)
    return right


def _counts(task: Task, example: Example) -> bool:
    return task.counts(example) if isinstance(task, HasSummary) else True


def _entry(answers: Sequence[bool], split: str, metric: str) -> ScoreEntry:
    low, high = wilson(sum(answers), len(answers))
    return ScoreEntry(split=split, n=len(answers), score=sum(answers) / len(answers), low=low, high=high, metric=metric,
                      decoding="the likeliest answer")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    from factory.progress import ProgressView

    settings = parse(NgramSettings, argv, "python -m factory.ngrams", "Train a model over n-grams, to teach beside others.")
    with ProgressView() as view:
        scores = run(settings, EventLog(None, view))
    said = ", ".join(f"{name} {share:.1%}" for name, share in scores.items())
    sys.stdout.write(f"{settings.out}: {said or 'no validation questions'}\n")


if __name__ == "__main__":
    from factory.cli import run_cli

    sys.exit(run_cli(main))
