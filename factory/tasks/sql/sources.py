"""Where the sql task's examples come from: named data sets, or a user's own database with questions.

Does: choose the reader, check the arguments against it, take a seeded part, describe what was read.
Does not: read rows itself (`wikisql.py`, `spider.py`) or make questions for a database without any (`sampler.py`, `english.py`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from factory.tasks.sql import spider, wikisql
from factory.tasks.sql.database import Database
from factory.tasks.sql.one_table import in_form
from factory.tasks.sql.reading import Fingerprint, question_files
from factory.tasks.task import DatasetCard, DataSource, Example, TaskError

BUNDLED = Path(__file__).parents[2] / "data" / "wikisql"
DEFAULT = "wikisql"

DATASETS: dict[str, str] = {
    "wikisql": "single tables, bundled: 41,459 questions in split train, 1,056 in xdev; BSD-3-Clause, rows MIT and CC BY-SA",
    "spider": "many tables: 7,000 questions, 140 schemas without rows; CC BY-SA 4.0; needs --data-dir; splits train, xdev, all",
    "spider-syn": "spider's questions in other words; MIT on CC BY-SA 4.0; needs --data-dir; splits train, xdev, all",
    "geography": "GeoQuery: 877 questions over one real database; no licence stated; needs --data-dir; splits train, dev, test",
}
"""Data set -> what it is, its size, its licence and what it needs."""

_ABOUT: dict[str, tuple[str, str]] = {
    "wikisql": ("BSD-3-Clause (questions), MIT and CC BY-SA (rows)", "WikiSQL, Salesforce 2017; rows from TabFact and Wikipedia"),
    "spider": ("CC BY-SA 4.0", "Spider, Yale 2018"),
    "spider-syn": ("MIT, on CC BY-SA 4.0", "Spider-Syn, Gan et al. 2021, over Spider, Yale 2018"),
    "geography": ("none stated", "GeoQuery, Zelle and Mooney 1996, in the text2sql-data version"),
}
_Read = tuple[list[Example], "Counter[str]"]
_READERS: dict[str, Callable[[Path, str, Fingerprint], _Read]] = {
    "wikisql": wikisql.read,
    "spider": lambda directory, split, seen: spider.read_spider(directory, split, seen, paraphrase=False),
    "spider-syn": lambda directory, split, seen: spider.read_spider(directory, split, seen, paraphrase=True),
    "geography": spider.read_geography,
}


def load(source: DataSource) -> tuple[list[Example], DatasetCard]:
    """Examples in file order, or the first `limit` after a seeded shuffle; raises TaskError.

    A database without questions gives no examples: its questions have yet to be made (`open_database` gives the database)."""
    seen = Fingerprint()
    if source.db is not None:
        if source.dataset is not None:
            raise TaskError(f"--dataset {source.dataset} and --db {source.db}: give one of the two")
        database = open_database(source)
        seen.add(source.db.read_bytes())
        examples: list[Example] = []
        skipped: Counter[str] = Counter()
        if source.questions is not None:
            examples, skipped = spider.read_db_questions(source.questions, database, database.id, source.split, seen)
            if not examples and not skipped:
                raise TaskError(
                    f"--questions {source.questions}: has no questions; write one object a line, or leave the option out"
                )
        name, license, about = source.db.stem, "yours", source.db.name
    else:
        if source.questions is not None:
            raise TaskError("--questions needs --db, the database they ask about")
        name = check_dataset(source)
        examples, skipped = _READERS[name](directory(source), source.split, seen)
        license, about = _ABOUT[name]
        if not examples:
            raise TaskError(
                f"--split {source.split} of {name}: every row was skipped ({dict(skipped)}); check {directory(source)}"
            )
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
        raise TaskError(f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}, or give your own database with --db")
    if source.data_dir is None and name != DEFAULT:
        raise TaskError(f"dataset {name!r} is not bundled; give the directory that holds it with --data-dir")
    if not directory(source).is_dir():
        raise TaskError(f"--data-dir {directory(source)}: no such directory; give the one that holds {name}")
    return name


def directory(source: DataSource) -> Path:
    """The data directory: the one given, or the bundled one."""
    return BUNDLED if source.data_dir is None else source.data_dir


def open_database(source: DataSource) -> Database:
    """The database of --db, in the form and with the table asked for; raises TaskError."""
    if source.db is None:
        raise TaskError("no database given; use --db FILE.sqlite")
    return in_form(Database.from_file(source.db), source.form or "general", source.table)


def others(source: DataSource) -> list[Example]:
    """The examples of every other split of the same files; splits that are not there or cannot be read are passed over."""
    if source.db is not None:
        if source.questions is None:
            return []
        own = {example.id for example in load(source.model_copy(update={"limit": None}))[0]}
        every = load(source.model_copy(update={"split": "all", "limit": None}))[0]
        return [example for example in every if example.id not in own]
    name = check_dataset(source)
    splits = ("train", "dev", "test") if name == "geography" else (*question_files(directory(source)), "xdev", "dev", "test")
    found: dict[str, Example] = {}
    for split in dict.fromkeys(splits):
        if split != source.split:
            with suppress(TaskError):
                found |= {f"{split}/{e.id}": e for e in _READERS[name](directory(source), split, Fingerprint())[0]}
    return list(found.values())


def validation_split(source: DataSource) -> str:
    """The split that models are chosen on: the data set's own dev file unless it is the one bundled, else the held-out part."""
    if source.db is not None:
        return "xdev"
    name = check_dataset(source)
    if name == "geography":
        return "dev"
    return "dev" if name != "wikisql" and "dev" in question_files(directory(source)) else "xdev"
