"""Where the route task's examples come from: CLINC150 and BANKING77 (bundled), or a user's own labelled questions.

Does: read the two sets in their published layouts, hold out a part where there is none, describe what was read.
Does not: read a user's files (`own.py`).
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from factory.tasks.route.labels import OUT_OF_SCOPE, LabelSet, from_data, make_set
from factory.tasks.route.prompt import normalized
from factory.tasks.sql.reading import Fingerprint, read_bytes, read_json
from factory.tasks.task import DatasetCard, DataSource, Example, TaskError

BUNDLED = Path(__file__).parents[2] / "data"
DEFAULT = "clinc150"
SPLITS = ("train", "validation", "test")
HELD_OUT = 10
"""Every tenth row of a label (by hash) is for validation where a set has no such part."""

DATASETS: dict[str, str] = {
    "clinc150": "150 intents and out of scope, bundled: 15,100 utterances in split train, 3,100 in validation; CC BY 3.0",
    "banking77": "77 intents of a bank's customers, bundled: 9,000 in split train, 1,003 in validation; CC BY 4.0",
    "clinc150+banking77": "both, each with its own labels: one student learns both sets",
}
"""Data set -> what it is, its size and its licence."""

_ABOUT: dict[str, tuple[str, str]] = {
    "clinc150": ("CC BY 3.0", "CLINC150, Larson et al. 2019 (github.com/clinc/oos-eval)"),
    "banking77": ("CC BY 4.0", "BANKING77, Casanueva et al. 2020, PolyAI (github.com/PolyAI-LDN/task-specific-datasets)"),
}
_CLINC_KEYS = {"train": ("train", "oos_train"), "validation": ("val", "oos_val"), "test": ("test", "oos_test")}
_CLINC_FILES = ("data.json.xz", "data.json", "data_full.json")


@functools.cache
def label_set(name: str) -> LabelSet:
    """The labels of a bundled data set."""
    seen = Fingerprint()
    if name == "clinc150":
        domains = read_json(BUNDLED / name / "domains.json", seen)
        return make_set(name, "clinc", sorted(label for part in domains.values() for label in part), True, name)
    return make_set(name, "banking", sorted(read_json(BUNDLED / name / "categories.json", seen)), True, name)


def load(source: DataSource) -> tuple[list[Example], DatasetCard]:
    """Examples in file order, or the first `limit` after a seeded shuffle; raises TaskError."""
    if source.db is not None or source.table is not None:
        raise TaskError(f"--db {source.db}: the route task asks about no database; give --dataset, or your own --questions")
    seen = Fingerprint()
    skipped: Counter[str] = Counter()
    if source.questions is not None:
        from factory.tasks.route.own import read_own

        if source.dataset is not None:
            raise TaskError(f"--dataset {source.dataset} and --questions {source.questions}: give one of the two")
        examples = read_own(source, seen, skipped)
        name, license, about = source.questions.name.split(".")[0], "yours", source.questions.name
    else:
        if source.labels is not None:
            raise TaskError(f"--labels {source.labels}: needs --questions, the rows they label")
        names = dataset_names(source)
        for one in names:
            check_known(source, one)
        examples = [e for one in names for e in _READERS[one](_directory(source, one), source.split, seen)]
        name, license, about = "+".join(names), *("; ".join(part) for part in zip(*(_ABOUT[one] for one in names)))
    if source.limit is not None and source.limit < len(examples):
        random.Random(source.seed).shuffle(examples)
        examples = examples[: source.limit]
    card = DatasetCard(name=name, split=source.split, license=license, source=about, sha256=seen.sha256, n=len(examples),
                       skipped=dict(skipped))  # fmt: skip
    return examples, card


def dataset_names(source: DataSource) -> list[str]:
    """The data sets of `--dataset a+b`; raises TaskError for one that is unknown."""
    names = list(dict.fromkeys((source.dataset or DEFAULT).split("+")))
    for name in names:
        if name not in _READERS:
            raise TaskError(
                f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}, or give your own rows with --questions"
            )
    return names


def check_known(source: DataSource, name: str) -> None:
    """Raises TaskError when a student's card says that it never learned the labels of this data set."""
    if source.card_data:
        sets = from_data(source.card_data, "the student")
        if label_set(name).answers not in [one.answers for one in sets]:
            raise TaskError(f"--dataset {name}: the student learned other labels ({', '.join(one.id for one in sets)}); "
                            "name its own data set, or give --questions with its labels")  # fmt: skip


def others(source: DataSource) -> list[Example]:
    """The examples of every other split of the same source; splits that are not there are passed over."""
    found: list[Example] = []
    for split in SPLITS:
        if split != source.split:
            with suppress(TaskError):
                found += load(source.model_copy(update={"split": split, "limit": None}))[0]
    return found


def _directory(source: DataSource, name: str) -> Path:
    """Where a data set lies: in --data-dir itself, in its folder of that name, or bundled."""
    if source.data_dir is None:
        return BUNDLED / name
    if not source.data_dir.is_dir():
        raise TaskError(f"--data-dir {source.data_dir}: no such directory; give the one that holds {name}")
    inner = source.data_dir / name
    return inner if inner.is_dir() else source.data_dir


def _read_clinc(directory: Path, split: str, seen: Fingerprint) -> list[Example]:
    path = next((directory / name for name in _CLINC_FILES if (directory / name).exists()), None)
    if path is None:
        raise TaskError(f"{directory}: holds no {' or '.join(_CLINC_FILES)}; give the directory of clinc150 with --data-dir")
    seen.add(path.read_bytes())
    data = _parsed(path)
    wanted = [key for name in (SPLITS if split == "all" else (split,)) for key in _CLINC_KEYS.get(name, ())]
    if not any(key in data for key in wanted):
        there = [name for name, keys in _CLINC_KEYS.items() if any(key in data for key in keys)]
        raise TaskError(f"--split {split}: {path} has no such part; choose from {', '.join([*there, 'all'])}")
    labels = label_set("clinc150")
    out = []
    for key in wanted:
        for i, row in enumerate(data.get(key, ())):
            if not (isinstance(row, list) and len(row) == 2 and all(isinstance(x, str) and x.strip() for x in row)):
                raise TaskError(f'{path}, "{key}", row {i + 1}: {str(row)[:60]!r} is not [utterance, intent]')
            label = OUT_OF_SCOPE if row[1] == "oos" else row[1]
            if label not in labels.answers:
                raise TaskError(f'{path}, "{key}", row {i + 1}: {label!r} is no intent of CLINC150{labels.near(label)}')
            out.append(Example(f"clinc-{key}-{i}", row[0], labels, labels.id, label, split))
    return out


@functools.lru_cache(maxsize=2)
def _parsed(path: Path) -> dict[str, list[list[str]]]:
    data = read_json(path, Fingerprint())
    if not isinstance(data, dict):
        raise TaskError(f"{path}: not CLINC150's layout; expected an object with train, val, oos_train, oos_val")
    return data


def _read_banking(directory: Path, split: str, seen: Fingerprint) -> list[Example]:
    labels = label_set("banking77")
    files = {name: directory / file for name in ("train", "test") for file in (f"{name}.csv", f"{name}.csv.xz")
             if (directory / file).exists()}  # fmt: skip
    there = [*(("train", "validation") if "train" in files else ()), *(("test",) if "test" in files else ())]
    wanted = there if split == "all" else [split]
    if not there or not set(wanted) <= set(there):
        raise TaskError(f"--split {split}: {directory} has no such part of banking77 (train.csv[.xz], test.csv[.xz]); "
                        f"choose from {', '.join([*there, 'all']) if there else 'another --data-dir'}")  # fmt: skip
    out: list[Example] = []
    for file in dict.fromkeys("test" if name == "test" else "train" for name in wanted):
        rows = _rows(files[file], labels, seen)
        held = held_out([text for text, _ in rows], [label for _, label in rows]) if file == "train" else set()
        for i, (text, label) in enumerate(rows):
            part = file if file == "test" else "validation" if i in held else "train"
            if part in wanted:
                out.append(Example(f"banking-{file}-{i}", text, labels, labels.id, label, split))
    return out


def _rows(path: Path, labels: LabelSet, seen: Fingerprint) -> list[tuple[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(path, seen).decode("utf-8"), newline=""))
    except UnicodeDecodeError:
        raise TaskError(f"{path}: is not UTF-8 text; expected banking77's own file") from None
    if not {"text", "category"} <= set(reader.fieldnames or ()):
        raise TaskError(f"{path}, line 1: columns are {', '.join(reader.fieldnames or ()) or 'none'}; expected text,category")
    out = []
    for row in reader:
        text, label = " ".join((row["text"] or "").split()), row["category"]
        if not text or label not in labels.labels:
            raise TaskError(f"{path}, line {reader.line_num}: {label!r} is no intent of BANKING77, or the text is empty"
                            f"{labels.near(str(label))}")  # fmt: skip
        out.append((text, label))
    return out


def held_out(texts: Sequence[str], labels: Sequence[str]) -> set[int]:
    """Numbers of the rows for validation: of every label the tenth with the smallest hash of its text, at least one where the
    label has three rows. The same rows whatever their order; equal texts go the same way."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        groups[label].append(i)
    digests = [hashlib.sha256(normalized(text).encode("utf-8", "replace")).hexdigest() for text in texts]
    out: set[int] = set()
    for rows in groups.values():
        if len(rows) >= 3:
            n = max(1, round(len(rows) / HELD_OUT))
            edge = sorted(digests[i] for i in rows)[n - 1]
            out |= {i for i in rows if digests[i] <= edge}
    return out


_READERS: dict[str, Callable[[Path, str, Fingerprint], list[Example]]] = {"clinc150": _read_clinc, "banking77": _read_banking}
