"""Where examples come from: named sets, a user's database, and what is wrong with the arguments."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from factory.tasks.sql import sources
from factory.tasks.sql.database import ExecError
from factory.tasks.sql.sources import load, validation_split
from factory.tasks.sql.spider import single_quoted
from factory.tasks.task import DataSource, TaskError


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE c (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO c VALUES (1, 'Ann'), (2, 'Bob');")
    connection.close()
    return path


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_the_default_is_bundled_and_a_limit_is_seeded() -> None:
    first, card = load(DataSource(split="xdev", limit=20, seed=1))
    again, _ = load(DataSource(split="xdev", limit=20, seed=1))
    other, _ = load(DataSource(split="xdev", limit=20, seed=2))
    assert [e.id for e in first] == [e.id for e in again] != [e.id for e in other]
    assert (card.name, card.split, card.n, card.skipped) == ("wikisql", "xdev", 20, {})
    assert "BSD-3" in card.license and len(card.sha256) == 64


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (DataSource(dataset="wikisq"), "unknown dataset 'wikisq'; choose from wikisql, spider, spider-syn, geography"),
        (DataSource(dataset="spider"), "not bundled; give the directory that holds it with --data-dir"),
        (DataSource(dataset="spider", data_dir=Path("/no/such")), "no such directory"),
        (DataSource(split="test"), "--split test: not in"),
        (DataSource(questions=Path("q.jsonl")), "--questions needs --db"), (DataSource(db=Path("/no/such.db")), "cannot be read"),
        (DataSource(db=Path("x.db"), dataset="spider"), "give one of the two"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(source: DataSource, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_a_database_alone_gives_no_examples_yet(db: Path) -> None:
    examples, card = load(DataSource(db=db))
    assert examples == [] and card.n == 0 and (card.name, card.source) == ("shop", "shop.sqlite")
    assert sources.open_database(DataSource(db=db)).execute("SELECT name FROM c").rows == (("Ann",), ("Bob",))
    with pytest.raises(TaskError, match="no database given"):
        sources.open_database(DataSource())


def test_questions_of_a_user(db: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Who is number {i}?", "sql": f"SELECT name FROM c WHERE id = {i};"} for i in range(200)] + [
        {"question": "Who?"}
    ]
    path = jsonl(tmp_path / "q.jsonl", rows)
    parts = {split: load(DataSource(db=db, questions=path, split=split))[0] for split in ("train", "xdev", "all")}
    ids = {split: {e.id for e in examples} for split, examples in parts.items()}
    assert len(ids["all"]) == 201 and ids["train"] | ids["xdev"] == ids["all"] and not ids["train"] & ids["xdev"]
    assert 5 <= len(ids["xdev"]) <= 40
    assert parts["all"][1].reference == "SELECT name FROM c WHERE id = 1" and parts["all"][-1].reference is None
    marked = jsonl(
        tmp_path / "m.jsonl", [{"question": "a b", "split": "train"}, {"question": "c d", "split": "xdev"}, {"question": "e f"}]
    )
    examples, card = load(DataSource(db=db, questions=marked, split="train"))
    assert [e.question for e in examples] == ["a b", "e f"] and card.skipped == {"split-xdev": 1}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "a"}, "{"], r"q\.jsonl, line 2: not valid JSON"), ([{"query": "SELECT 1"}], "line 1: no 'question'"),
        ([{"question": "a", "sql": 3}], "line 1: 'sql' is 3"), ([""], "has no questions"),
        (["7"], "line 1: '7' is not an object"),
    ],
)  # fmt: skip
def test_malformed_questions(db: Path, tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        load(DataSource(db=db, questions=jsonl(tmp_path / "q.jsonl", rows)))


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ('SELECT  a\nFROM t WHERE b = "x  y"', "SELECT a FROM t WHERE b = 'x  y'"),
        ("SELECT a FROM t WHERE b = 'x \"q\"' ;", "SELECT a FROM t WHERE b = 'x \"q\"'"),
        ('WHERE b = "o\'hara"', "WHERE b = 'o''hara'"), ('WHERE b = "a""b"', "WHERE b = 'a\"b'"),
        ("WHERE b = ''", "WHERE b = ''"),
    ],
)  # fmt: skip
def test_texts_get_single_quotes(given: str, made: str) -> None:
    assert single_quoted(given) == made


def test_spider_holds_out_databases_and_compiles(shared_data: Path) -> None:
    parts = {s: load(DataSource(dataset="spider", data_dir=shared_data / "spider", split=s)) for s in ("train", "xdev", "all")}
    train, xdev, everything = (parts[s][0] for s in ("train", "xdev", "all"))
    assert len(everything) == 7000 == len(train) + len(xdev) and len(xdev) > 300
    assert not {e.context_id for e in train} & {e.context_id for e in xdev}
    assert parts["train"][1].skipped == {"held-out-database": len(xdev)}
    compiled = 0
    for example in everything:
        try:
            example.context.check(example.reference or "")
            compiled += 1
        except ExecError:
            continue
    assert compiled == 6997
    assert not any(e.context.has_rows for e in xdev) and any(e.context.schema.foreign_keys for e in xdev)
    paraphrased, _ = load(DataSource(dataset="spider-syn", data_dir=shared_data / "spider", split="xdev"))
    assert [e.reference for e in paraphrased] == [e.reference for e in xdev]
    assert sum(a.question != b.question for a, b in zip(paraphrased, xdev)) > 100


def test_geography_runs_on_its_database(shared_data: Path) -> None:
    source = DataSource(dataset="geography", data_dir=shared_data / "geography")
    parts = {s: load(source.model_copy(update={"split": s}))[0] for s in ("train", "dev", "test")}
    assert {s: len(e) for s, e in parts.items()} == {"train": 549, "dev": 49, "test": 279}
    failed: set[str] = set()
    for example in (e for part in parts.values() for e in part):
        try:
            example.context.execute(example.reference or "")
        except ExecError:
            failed.add(example.id.rsplit("-", 1)[0])
    assert len(failed) == 2
    with pytest.raises(TaskError, match="choose from dev, test, train"):
        load(source.model_copy(update={"split": "gone"}))


def test_wikisql_dev_links_but_does_not_execute(shared_data: Path) -> None:
    examples, card = load(DataSource(dataset="wikisql", data_dir=shared_data / "wikisql", split="dev"))
    assert card.n == 8421 and card.skipped == {} and not any(e.context.has_rows for e in examples)


def test_validation_splits(shared_data: Path, db: Path) -> None:
    assert validation_split(DataSource()) == validation_split(DataSource(db=db)) == "xdev"
    assert validation_split(DataSource(dataset="spider", data_dir=shared_data / "spider")) == "xdev"
    assert validation_split(DataSource(dataset="geography", data_dir=shared_data / "geography")) == "dev"
