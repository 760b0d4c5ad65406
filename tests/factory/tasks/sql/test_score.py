"""Scores, verdicts, votes and kinds of error."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from factory.tasks.sql import score as scoring
from factory.tasks.sql import sources
from factory.tasks.sql.components import parts, same_parts
from factory.tasks.sql.database import Database
from factory.tasks.sql.schema import Column, ForeignKey, Schema, Table
from factory.tasks.sql.score import ERROR_KINDS, normalised, score, verify, vote_key
from factory.tasks.task import DataSource, TaskError

ROWS = [["ann", "red", "3", "10"], ["bob", "blue", "5", "20"], ["cid", "red", "5", "30"]]
GOLD = 'SELECT MAX("Size") FROM "t" WHERE "Color" = \'red\' AND "No." < 30'


@pytest.fixture(scope="module")
def table() -> Database:
    return Database.from_rows("w", ["Name", "Color", "Size", "No."], ROWS)


@pytest.fixture(scope="module")
def header() -> Database:
    return Database.from_values("h", ["Name", "Color", "Size", "No."], [list(c) for c in zip(*ROWS)])


@pytest.fixture
def shop(tmp_path: Path) -> Database:
    connection = sqlite3.connect(tmp_path / "shop.sqlite")
    connection.executescript(
        """CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
        CREATE TABLE sale (id INTEGER PRIMARY KEY, customer_id INT REFERENCES customer(id), amount REAL);
        INSERT INTO customer VALUES (1, 'Ann', 'Rome'), (2, 'Bob', 'Oslo'), (3, 'Cid', 'Rome');
        INSERT INTO sale VALUES (1, 1, 5), (2, 1, 7), (3, 2, 9);"""
    )
    connection.close()
    return Database.from_file(tmp_path / "shop.sqlite")


@pytest.mark.parametrize(
    ("answer", "metrics", "error"),
    [
        (GOLD, (True, True), None), ("select max(size) from t where \"no.\" < 30 and color = 'RED'", (True, True), None),
        ("SELECT MIN(\"Size\") FROM t WHERE Color = 'red' AND \"No.\" < 30", (True, False), None),
        ("SELECT 3", (True, False), None),
        ("SELECT MAX(\"No.\") FROM t WHERE Color = 'red' AND \"No.\" < 30", (False, False), "wrong-column"),
        ("SELECT COUNT(\"Size\") FROM t WHERE Color = 'red' AND \"No.\" < 30", (False, False), "wrong-aggregate"),
        ("SELECT MAX(\"Size\") FROM t WHERE Name = 'bob' AND \"No.\" < 30", (False, False), "wrong-condition-column"),
        ("SELECT MAX(\"Size\") FROM t WHERE Color = 'red' AND \"No.\" > 3", (False, False), "wrong-operator"),
        ("SELECT MAX(\"Size\") FROM t WHERE Color = 'blue' AND \"No.\" < 30", (False, False), "wrong-value"),
        ("SELECT MAX(\"Size\") FROM t WHERE Color = 'red'", (False, False), "missing-condition"),
        ("SELECT MAX(\"Size\") FROM t WHERE Color = 'red' AND \"No.\" < 30 AND Name = 'bob'", (False, False), "extra-condition"),
        ("SELECT \"Size\" FROM t ORDER BY 1", (False, False), "wrong-aggregate"),
        ("SELECT MAX(Weight) FROM t", (False, False), "does-not-run"),
        ("SELECT MAX(\"Size\") FROM t WHERE Color = 'red' OR \"No.\" < 30", (False, False), "wrong-structure"),
        ("", (False, False), "no-answer"), ("DROP TABLE t", (False, False), "not-read-only"),
    ],
)  # fmt: skip
def test_scores_of_a_single_table(table: Database, answer: str, metrics: tuple[bool, bool], error: str | None) -> None:
    found = score(table, answer, GOLD)
    assert found.metrics == {"execution": metrics[0], "logical_form": metrics[1]}
    assert found.correct is metrics[0] and found.error == error
    assert error is None or error in ERROR_KINDS


def test_without_rows_the_form_decides(header: Database) -> None:
    found = score(header, 'SELECT MIN("Size") FROM t WHERE Color = \'red\' AND "No." < 30', GOLD)
    assert found.metrics == {"logical_form": False} and found.error == "wrong-aggregate"
    assert score(header, GOLD, GOLD).correct
    assert score(header, "SELECT MAX(Weight) FROM t", GOLD).error == "does-not-run"
    assert verify(header, GOLD, GOLD).ok and not verify(header, GOLD, GOLD.replace("MAX", "MIN")).ok
    with pytest.raises(TaskError, match="reference"):
        score(header, GOLD, None)


def test_verify_needs_proof(table: Database) -> None:
    assert verify(table, "SELECT \"Size\" FROM t WHERE Name = 'ann'", GOLD).ok
    assert verify(table, GOLD.replace("red", "blue"), GOLD).reason == "wrong-value"
    assert verify(table, "SELECT nothing FROM t", GOLD).reason == "does-not-run"
    assert verify(table, " ", GOLD).reason == "no-answer"
    nobody, none = 'SELECT "Name" FROM "t" WHERE "Color" = \'grey\'', 'SELECT "Color" FROM "t" WHERE "Name" = \'zed\''
    assert score(table, none, nobody).correct, "two empty results are the same result"
    assert verify(table, none, nobody).reason == "wrong-column", "but prove nothing"
    assert verify(table, "SELECT Name FROM t WHERE Color='GREY'", nobody).ok
    count = 'SELECT COUNT("Name") FROM "t" WHERE "Color" = \'grey\''
    assert not verify(table, count.replace("Name", "Size"), count).ok and verify(table, count, count).ok
    assert verify(table, nobody, None).reason == "empty-result" and verify(table, GOLD, None).ok


def test_votes(table: Database, header: Database, shop: Database) -> None:
    same = ['SELECT "Name" FROM t WHERE Size = 3', "SELECT name FROM t WHERE color = 'red' AND \"No.\" < 20", "SELECT 'Ann'"]
    assert len({vote_key(table, sql) for sql in same}) == 1
    assert vote_key(table, "SELECT name FROM t") not in {vote_key(table, same[0]), None}
    assert vote_key(table, "SELECT x FROM t") is None and vote_key(table, "SELECT name FROM t WHERE size = 99") is None
    assert vote_key(header, same[0]) == vote_key(header, "select NAME from T where SIZE = 3.0") != vote_key(header, same[1])
    assert vote_key(header, "SELECT x FROM t") is None
    up, down = "SELECT name FROM customer ORDER BY name", "SELECT name FROM customer ORDER BY name DESC"
    assert vote_key(shop, up) != vote_key(shop, down)


JOIN = "SELECT T1.name, sum(T2.amount) FROM customer AS T1 JOIN sale AS T2 ON T1.id = T2.customer_id "
JOIN += "WHERE T1.city = 'Rome' GROUP BY T1.id"


@pytest.mark.parametrize(
    ("answer", "correct", "exact", "values", "error"),
    [
        (JOIN, True, True, True, None), (JOIN.replace("Rome", "Oslo"), False, True, False, "wrong-value"),
        ("select name, SUM(amount) from sale s join customer c on s.customer_id = c.id where city='Rome' group by s.customer_id",
         True, True, True, None),
        (JOIN.replace("sum(", "max("), False, False, False, "wrong-aggregate"),
        (JOIN.replace("T1.name", "T1.city"), False, False, False, "wrong-column"),
        ("SELECT name FROM customer", False, False, False, "wrong-table"),
        (JOIN.replace("T1.city", "T1.name"), False, False, False, "wrong-condition-column"),
        (JOIN.replace("city =", "city <>"), False, False, False, "wrong-operator"),
        (JOIN.replace("WHERE T1.city = 'Rome' ", ""), False, False, False, "missing-condition"),
        (JOIN.replace("WHERE", "WHERE T2.amount > 6 AND"), False, False, False, "extra-condition"),
        (JOIN + " LIMIT 0", False, False, False, "wrong-structure"),
        (JOIN.replace("name", "nome"), False, False, False, "does-not-run"), (JOIN + " ORDER BY 1", True, False, False, None),
    ],
)  # fmt: skip
def test_scores_of_a_database(shop: Database, answer: str, correct: bool, exact: bool, values: bool, error: str | None) -> None:
    found = score(shop, answer, JOIN)
    assert found.metrics == {"execution": correct, "exact_set": exact, "exact_set_values": values}
    assert (found.correct, found.error) == (correct, error)


def test_order_counts_only_when_the_reference_orders(shop: Database) -> None:
    up, down = "SELECT name FROM customer ORDER BY name", "SELECT name FROM customer ORDER BY name DESC"
    assert not score(shop, down, up).correct and score(shop, down, "SELECT name FROM customer").correct
    inner = "SELECT name FROM (SELECT name FROM customer ORDER BY name)"
    assert score(shop, down, inner).correct


SCHEMA = Schema(
    "s",
    (
        Table("a", (Column("id", "number", primary_key=True), Column("x"), Column("n", "number"))),
        Table("b", (Column("id", "number", primary_key=True), Column("a_id", "number"), Column("y"))),
    ),
    (ForeignKey("b", "a_id", "a", "id"),),
)


@pytest.mark.parametrize(
    ("one", "two", "ignoring", "with_values"),
    [
        ("SELECT x FROM a WHERE n > 3 AND x = 'q'", "select A.X from a where 'Q' = a.x and 3 < n", True, True),
        ("SELECT x FROM a WHERE n > 3", "SELECT x FROM a WHERE n > 4", True, False),
        ("SELECT x FROM a WHERE n > 3", "SELECT x FROM a WHERE n >= 3", False, False),
        ("SELECT T2.id FROM b T1 JOIN a T2 ON T1.a_id = T2.id", "SELECT b.a_id FROM a JOIN b ON a.id = b.a_id", True, True),
        ("SELECT x FROM a ORDER BY n", "SELECT x FROM a ORDER BY n DESC", False, False),
        ("SELECT x, n FROM a", "SELECT n, x FROM a", True, True),
        ("SELECT x FROM a ORDER BY n LIMIT 1", "SELECT x FROM a ORDER BY n LIMIT 2", True, False),
        ("SELECT x FROM a LIMIT 1", "SELECT x FROM a", False, False),
        ("SELECT DISTINCT x FROM a", "SELECT x FROM a", False, False),
        ("SELECT count(x) FROM a", "SELECT count(DISTINCT x) FROM a", False, False),
        ("SELECT x FROM a WHERE n = 1 OR n = 2", "SELECT x FROM a WHERE n = 2 OR n = 1", True, True),
        ("SELECT x FROM a WHERE n=1 OR x='2'", "SELECT x FROM a WHERE n=1 AND x='2'", False, False),
        ("SELECT x FROM a UNION SELECT y FROM b", "SELECT y FROM b UNION SELECT x FROM a", False, False),
        ("SELECT x FROM a UNION SELECT y FROM b", "SELECT x FROM a UNION ALL SELECT y FROM b", False, False),
        ("SELECT x FROM a WHERE id IN (SELECT a_id FROM b WHERE y = 'u')",
         "SELECT x FROM a WHERE id IN (SELECT t.a_id FROM b AS t WHERE t.y = 'v')", True, False),
        ("SELECT x FROM a WHERE id NOT IN (SELECT a_id FROM b)", "SELECT x FROM a WHERE id IN (SELECT a_id FROM b)", False,
         False),
        ("SELECT x, count(*) AS k FROM a GROUP BY x HAVING k > 2 ORDER BY k",
         "SELECT x, count(*) FROM a GROUP BY x HAVING count(*) > 2 ORDER BY count(*)", True, True),
        ("SELECT x FROM a WHERE n BETWEEN 1 AND 2", "SELECT x FROM a WHERE n BETWEEN 1 AND 3", True, False),
        ("SELECT * FROM a", "SELECT x FROM a", False, False),
        ("SELECT count(*) FROM a", "SELECT count(*) FROM b", False, False),
        ("SELECT x FROM a WHERE x LIKE '%q%'", "SELECT x FROM a WHERE x = '%q%'", False, False),
        ("SELECT x FROM (SELECT x, n FROM a WHERE n > 1)", "SELECT s.x FROM (SELECT n, x FROM a WHERE 1 < n) AS s", True, True),
        ("SELECT x FROM a WHERE n > -3", "SELECT x FROM a WHERE n > 3", True, False),
        ('SELECT x FROM a WHERE x = "q"', "SELECT x FROM a WHERE x = 'q'", True, True),
    ],
)  # fmt: skip
def test_exact_set_match(one: str, two: str, ignoring: bool, with_values: bool) -> None:
    assert same_parts(parts(one, SCHEMA, values=False), parts(two, SCHEMA, values=False)) is ignoring
    assert same_parts(parts(one, SCHEMA, values=True), parts(two, SCHEMA, values=True)) is with_values


def test_what_does_not_parse_matches_nothing() -> None:
    for sql in ("", "SELECT", "DROP TABLE a", "SELECT 1; SELECT 2", "hello " * 20):
        assert parts(sql, SCHEMA, values=True) is None
    assert not same_parts(None, None)


def test_normalised_text_is_the_same_in_every_process() -> None:
    sql = "SELECT x FROM a WHERE n = 1 AND x = 'b' AND id IN (SELECT a_id FROM b WHERE y = 'u' AND id > 3) "
    sql += "UNION SELECT y FROM b WHERE id < 3"
    code = (
        "from factory.tasks.sql.database import Database\nfrom factory.tasks.sql.schema import *\n"
        "from factory.tasks.sql.score import normalised\n"
        f"schema = {SCHEMA!r}\nprint(normalised(Database.from_schema(schema), {sql!r}))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed, "PATH": ""}
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert texts == {normalised(Database.from_schema(SCHEMA), sql) + "\n"}


@pytest.mark.parametrize(("name", "split", "least"), [("spider", "xdev", 0.99), ("geography", "train", 0.99)])
def test_references_agree_with_themselves(shared_data: Path, name: str, split: str, least: float) -> None:
    examples, _ = sources.load(DataSource(dataset=name, data_dir=shared_data / name, split=split))
    good = sum(scoring.score(e.context, e.reference or "", e.reference).correct for e in examples)
    assert good / len(examples) >= least
