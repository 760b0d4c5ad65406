"""Where the tools task's examples come from: named data sets, or a user's own functions and questions.

Does: choose the reader, check the arguments against it, take a seeded part, describe what was read.
Does not: read rows of data sets itself (`sgd.py`, `seal.py`, `snips.py`, `stiff.py`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from factory.tasks.sql.reading import Fingerprint
from factory.tasks.task import DatasetCard, DataSource, Example, TaskError
from factory.tasks.tools import own, seal, sgd, snips, stiff

BUNDLED = Path(__file__).parents[2] / "data" / "seal_tools"
DEFAULT = "seal-tools"
DATASETS: dict[str, str] = {
    "seal-tools": "bundled: 700 questions over 4,076 functions, often several calls; Apache-2.0; splits train, xdev, all",
    "sgd": "Schema-Guided Dialogue: 33,963 service calls in 12,174 dialogues; CC BY-SA 4.0; needs --data-dir; splits train, dev",
    "snips": "13,084 short requests for seven functions; no licence stated; needs --data-dir; splits train, valid",
    "stiff": "bundled: 12,000 requests made by templates for Seal-Tools' functions; Apache-2.0; splits train, xdev",
    "sgd+snips+seal-tools+stiff": "these, or any of them, as one; --data-dir holds a folder for each; splits train, validation",
}
_ABOUT = {
    "seal-tools": ("Apache-2.0", "Seal-Tools, Wu et al. 2024"),
    "sgd": ("CC BY-SA 4.0", "Schema-Guided Dialogue, Rastogi et al. 2020"),
    "snips": ("none stated", "SNIPS, Coucke et al. 2018, in the slot-gated version"),
    "stiff": ("Apache-2.0", "requests made by templates for the functions of Seal-Tools, Wu et al. 2024"),
}
_READERS: dict[str, Callable[[Path, str, Fingerprint], tuple[list[Example], Counter[str]]]] = {
    "seal-tools": seal.read,
    "sgd": sgd.read,
    "snips": snips.read,
    "stiff": stiff.read,
}
_BUNDLED_SETS = ("seal-tools", "stiff")
_SPLITS = {
    "seal-tools": ("train", "xdev"),
    "sgd": ("train", "dev", "test"),
    "snips": ("train", "valid", "test"),
    "stiff": ("train", "xdev"),
}
_VALIDATION = {"seal-tools": "xdev", "sgd": "dev", "snips": "valid", "stiff": "xdev"}
_FOLDERS = {"seal-tools": ("seal_tools",), "sgd": ("sgd",), "snips": ("snips", "slots_snips"), "stiff": ("seal_tools",)}
"""Where a set lies in the --data-dir of several."""


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
        about = " ".join(Path(place).name for place in (source.functions, source.questions) if place is not None)
        name, license = Path(about.split()[0].replace(":", ".")).stem, "yours"
    else:
        names = check_dataset(source)
        if len(names) > 1 and source.split not in ("train", "validation"):
            raise TaskError(f"--split {source.split}: {source.dataset} has the splits train and validation; for another one "
                            "score its sets one by one")  # fmt: skip
        for name in names:
            found, lost = _READERS[name](directory(source, name), _split_of(name, names, source.split), seen)
            examples += found
            skipped += lost
        name = "+".join(names)
        license, about = ("; ".join(dict.fromkeys(part)) for part in zip(*(_ABOUT[one] for one in names), strict=True))
    if not examples and source.functions is None and source.questions is None:
        raise TaskError(f"--split {source.split} of {name}: every row was skipped ({dict(skipped)}); check --data-dir")
    if source.limit is not None and source.limit < len(examples):
        random.Random(source.seed).shuffle(examples)
        examples = examples[: source.limit]
    card = DatasetCard(
        name=name, split=source.split, license=license, source=about, sha256=seen.sha256, n=len(examples), skipped=dict(skipped)
    )
    return examples, card


def check_dataset(source: DataSource) -> tuple[str, ...]:
    """The known data sets of `--dataset a+b` whose files are there; raises TaskError."""
    names = tuple(dict.fromkeys((DEFAULT if source.dataset is None else source.dataset).split("+")))
    for name in names:
        if name not in _READERS:
            raise TaskError(
                f"unknown dataset {name!r}; choose from {', '.join(_READERS)}, several joined by +, or give your own "
                "--functions and --questions"
            )
        if source.data_dir is None and name not in _BUNDLED_SETS:
            raise TaskError(f"dataset {name!r} is not bundled; give the directory that holds it with --data-dir")
    if source.data_dir is not None and not source.data_dir.is_dir():
        raise TaskError(f"--data-dir {source.data_dir}: no such directory; give the one that holds {source.dataset or DEFAULT}")
    for name in names:
        if not directory(source, name).is_dir():
            raise TaskError(f"--data-dir {source.data_dir}: has no folder {' or '.join(_FOLDERS[name])} for {name}; "
                            "several sets are read from a folder each")  # fmt: skip
    return names


def _split_of(name: str, names: tuple[str, ...], split: str) -> str:
    """The split of one set that is meant by one of all."""
    return _VALIDATION[name] if len(names) > 1 and split == "validation" else split


def directory(source: DataSource, name: str) -> Path:
    """Of one set: --data-dir itself, or its folder there where several are named; what is bundled may be left out."""
    if source.data_dir is None:
        return BUNDLED
    if len(set((source.dataset or DEFAULT).split("+"))) == 1:
        return source.data_dir
    places = [source.data_dir / folder for folder in _FOLDERS[name]]
    there = next((place for place in places if place.is_dir()), None)
    return there or (BUNDLED if name in _BUNDLED_SETS else places[-1])


def others(source: DataSource) -> list[Example]:
    """The examples of every other split of the same files that are here."""
    if source.functions is not None or source.questions is not None:
        if source.questions is None:
            return []
        here = {example.id for example in load(source.model_copy(update={"limit": None}))[0]}
        every = load(source.model_copy(update={"split": "all", "limit": None}))[0]
        return [example for example in every if example.id not in here]
    names = check_dataset(source)
    found: list[Example] = []
    for name in names:
        for split in _SPLITS[name]:
            if split != _split_of(name, names, source.split):
                with suppress(TaskError):
                    found += _READERS[name](directory(source, name), split, Fingerprint())[0]
    return found


def validation_split(source: DataSource) -> str:
    """The split that models are chosen on."""
    if source.functions is not None or source.questions is not None:
        return "xdev"
    names = check_dataset(source)
    return _VALIDATION[names[0]] if len(names) == 1 else "validation"
