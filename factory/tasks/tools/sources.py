"""Where the tools task's examples come from: named data sets, or a user's own functions and questions.

Does: choose the reader, check the arguments against it, take a seeded part, describe what was read.
Does not: read rows of data sets itself (`sgd.py`, `seal.py`, `snips.py`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from factory.tasks.sql.reading import Fingerprint
from factory.tasks.task import DatasetCard, DataSource, Example, TaskError
from factory.tasks.tools import own, seal, sgd, snips

BUNDLED = Path(__file__).parents[2] / "data" / "seal_tools"
DEFAULT = "seal-tools"
DATASETS: dict[str, str] = {
    "seal-tools": "bundled: 700 questions over 4,076 functions, often several calls; Apache-2.0; splits train, xdev, all",
    "sgd": "Schema-Guided Dialogue: 33,963 service calls in 12,174 dialogues; CC BY-SA 4.0; needs --data-dir; splits train, dev",
    "snips": "13,084 short requests for seven functions; no licence stated; needs --data-dir; splits train, valid",
}
_ABOUT = {
    "seal-tools": ("Apache-2.0", "Seal-Tools, Wu et al. 2024"),
    "sgd": ("CC BY-SA 4.0", "Schema-Guided Dialogue, Rastogi et al. 2020"),
    "snips": ("none stated", "SNIPS, Coucke et al. 2018, in the slot-gated version"),
}
_READERS: dict[str, Callable[[Path, str, Fingerprint], tuple[list[Example], Counter[str]]]] = {
    "seal-tools": seal.read,
    "sgd": sgd.read,
    "snips": snips.read,
}
_SPLITS = {"seal-tools": ("train", "xdev"), "sgd": ("train", "dev", "test"), "snips": ("train", "valid", "test")}


def load(source: DataSource) -> tuple[list[Example], DatasetCard]:
    """Examples in file order, or the first `limit` after a seeded shuffle; raises TaskError.

    Functions without questions give no examples: their questions have yet to be made."""
    seen = Fingerprint()
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    if source.functions is not None or source.questions is not None:
        if source.dataset is not None:
            raise TaskError(f"--dataset {source.dataset} beside --functions or --questions: give one of the two")
        functions = own.open_functions(source.functions, seen) if source.functions is not None else ()
        if source.questions is not None:
            examples, skipped = own.read_questions(source.questions, functions, source.split, seen)
            if not examples and not skipped:
                raise TaskError(
                    f"--questions {source.questions}: has no questions; write one object a line, or leave the option out"
                )
        about = " ".join(str(place) for place in (source.functions, source.questions) if place is not None)
        name, license = Path(about.split()[0].replace(":", ".")).stem, "yours"
    else:
        name = check_dataset(source)
        examples, skipped = _READERS[name](directory(source), source.split, seen)
        license, about = _ABOUT[name]
    if not examples and source.functions is None and source.questions is None:
        raise TaskError(f"--split {source.split} of {name}: every row was skipped ({dict(skipped)}); check {directory(source)}")
    if source.limit is not None and source.limit < len(examples):
        random.Random(source.seed).shuffle(examples)
        examples = examples[: source.limit]
    card = DatasetCard(
        name=name, split=source.split, license=license, source=about, sha256=seen.sha256, n=len(examples), skipped=dict(skipped)
    )
    return examples, card


def check_dataset(source: DataSource) -> str:
    """The name of a known data set whose files are there; raises TaskError."""
    name = DEFAULT if source.dataset is None else source.dataset
    if name not in DATASETS:
        raise TaskError(
            f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}, or give your own --functions and --questions"
        )
    if source.data_dir is None and name != DEFAULT:
        raise TaskError(f"dataset {name!r} is not bundled; give the directory that holds it with --data-dir")
    if not directory(source).is_dir():
        raise TaskError(f"--data-dir {directory(source)}: no such directory; give the one that holds {name}")
    return name


def directory(source: DataSource) -> Path:
    return BUNDLED if source.data_dir is None else source.data_dir


def others(source: DataSource) -> list[Example]:
    """The examples of every other split of the same files that are here."""
    if source.functions is not None or source.questions is not None:
        if source.questions is None:
            return []
        here = {example.id for example in load(source.model_copy(update={"limit": None}))[0]}
        every = load(source.model_copy(update={"split": "all", "limit": None}))[0]
        return [example for example in every if example.id not in here]
    name = check_dataset(source)
    found: list[Example] = []
    for split in _SPLITS[name]:
        if split != source.split:
            with suppress(TaskError):
                found += _READERS[name](directory(source), split, Fingerprint())[0]
    return found


def validation_split(source: DataSource) -> str:
    """The split that models are chosen on."""
    if source.functions is not None or source.questions is not None:
        return "xdev"
    name = check_dataset(source)
    return {"sgd": "dev", "snips": "valid"}.get(name, "xdev")
