"""Sampled queries run, say something, vary, and are described word for word."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from factory.tasks.sql.database import Database
from factory.tasks.sql.dialect import canonicalise, decode, encode
from factory.tasks.sql.english import describe
from factory.tasks.sql.link import link
from factory.tasks.sql.sampler import MOST_ROWS, sample_queries
from factory.tasks.sql.sketch import Filter, Item, Link, Sketch, write

from .worlds import CONCERTS


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    path, rng = tmp_path_factory.mktemp("db") / "concerts.sqlite", random.Random(0)
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE stadium (id INTEGER PRIMARY KEY, name TEXT, city TEXT, capacity INTEGER);
        CREATE TABLE concert (id INTEGER PRIMARY KEY, title TEXT, stadium_id INTEGER REFERENCES stadium(id), year INTEGER,
            kind TEXT);"""
    )
    cities, kinds = ("Glasgow", "Leeds", "St. John's", "Aix en Provence"), ("rock", "jazz", "folk", "pop")
    for i in range(1, 21):
        connection.execute(
            "INSERT INTO stadium VALUES (?,?,?,?)", (i, f"Park {i * 7}", rng.choice(cities), rng.randint(1, 90) * 1000)
        )
    for i in range(1, 81):
        row = (i, f"Night {i}", rng.randint(1, 16), rng.randint(2001, 2015), rng.choice(kinds))
        connection.execute("INSERT INTO concert VALUES (?,?,?,?,?)", row)
    connection.commit()
    connection.close()
    return Database.from_file(path)


def test_sampled_queries_are_asked_once_and_answered(database: Database) -> None:
    queries = sample_queries(database, 150, seed=1)
    assert len(queries) == 150 == len({query.sql for query in queries})
    counts = Counter(query.template for query in queries)
    assert len(counts) >= 16 and max(counts.values()) <= 3 * 150 / len(counts)
    for query in queries:
        rows = database.execute(query.sql).rows
        assert 0 < len(rows) <= MOST_ROWS and any(cell is not None for row in rows for cell in row)
        assert rows != ((0,),)
        assert canonicalise(database, query.sql) == query.sql
        assert query.english[-1] in ".?" and "  " not in query.english
        assert all(value in query.english for value in query.values), query
    joined = " ".join(query.sql for query in queries)
    for part in (" JOIN ", " GROUP BY ", " HAVING ", " NOT IN (", " UNION ", " BETWEEN ", "COUNT(DISTINCT ", "(SELECT AVG("):
        assert part in joined


def test_students_can_write_what_is_sampled(database: Database) -> None:
    from agents.constrain import accepts
    from factory.tasks.sql.grammar import constraint

    for query in sample_queries(database, 60, seed=2):
        matches = link(database, query.english)
        for dialect in ("plain", "compact"):
            text = encode(database, query.english, matches, query.sql, dialect)
            assert accepts(constraint(database, query.english, matches, dialect), text), query
            assert decode(database, query.english, matches, text, dialect) == query.sql


def test_a_seed_fixes_the_queries(database: Database) -> None:
    assert sample_queries(database, 20, seed=3) == sample_queries(database, 20, seed=3) != sample_queries(database, 20, seed=4)


def test_a_filter_that_keeps_everything_is_not_asked() -> None:
    table = Database.from_rows("x", ["Name", "Team"], [["ann", "reds"], ["bob", "reds"]])
    assert all("\"Team\" = 'reds'" not in query.sql for query in sample_queries(table, 10, seed=0))


def test_a_single_table_gets_wikisql_queries() -> None:
    rows = [["ann", "3", "reds"], ["bob", "4", "blues"], ["cy", "5", "reds"], ["di", "6", "greens"]]
    queries = sample_queries(Database.from_rows("x", ["Player", "No.", "Team"], rows), 20, seed=0)
    assert len(queries) == 20
    assert {query.template for query in queries} == {"filter", "filter-two", "aggregate"}
    assert all(' FROM "t"' in query.sql and '"t".' not in query.sql for query in queries)


def test_a_sketch_is_written_and_described() -> None:
    sketch = Sketch(
        "join", (Item(1),), (0, 2), (Link(0, 8),), (Filter(2, ">", "5000"), Filter(10, "between", "2001", "2003")), distinct=True
    )
    assert write(CONCERTS, sketch) == (
        'SELECT DISTINCT "stadium"."name" FROM "stadium" JOIN "concert" ON "stadium"."id" = "concert"."stadium_id"'
        ' WHERE "stadium"."capacity" > 5000 AND "concert"."year" BETWEEN 2001 AND 2003'
    )
    wordings = {describe(CONCERTS, sketch, seed) for seed in range(30)}
    assert len(wordings) > 10
    for text in wordings:
        assert "different name" in text and "capacity" in text and "5000" in text and "2001 and 2003" in text


def test_geography_gets_joins_without_declared_keys(shared_data: Path) -> None:
    queries = sample_queries(Database.from_file(shared_data / "geography" / "geography-real.sqlite"), 80, seed=0)
    assert len(queries) == 80 and any(" JOIN " in query.sql for query in queries)
