"""Databases: loose equality of WikiSQL tables, schemas of real files, and files that cannot be used."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from factory.tasks.sql import cells
from factory.tasks.sql.database import Database, ExecError, unique_names
from factory.tasks.sql.schema import Column, ForeignKey, Schema, Table
from factory.tasks.task import TaskError

ROWS = [
    ["robinson r - 22", "1,234", "- 5", "12 (3)", None],
    ["götzis , austria", "17", "+ 3", "n / a", "$ 1,000"],
    ["", "2.50", "0", "7", "$ 20"],
]


@pytest.fixture(scope="module")
def table() -> Database:
    return Database.from_rows("w", ["Name", "Size", "Par", "Score", "Prize"], ROWS)


@pytest.mark.parametrize(
    ("where", "n"),
    [
        ("\"Name\" = 'Robinson R-22'", 1), ("\"Name\" = 'ROBINSON  r 22'", 1), ("\"Name\" = 'götzis, Austria'", 1),
        ("\"Name\" = 'robinson'", 0),
        ('"Size" = 1234', 1), ('"Size" = 2.5', 1), ('"Size" > 17', 1), ('"Par" < 0', 1), ('"Par" = 3', 1),
        ("\"Score\" = '12(3)'", 1),
        ("\"Score\" = '7'", 1), ('"Score" < 8', 1), ('"Prize" > 100', 1), ('"Prize" < 100', 1), ("\"Name\" <> 'robinson r22'", 2),
        ("\"Name\" IN ('Robinson R-22', 'x')", 1), ("\"Name\" LIKE 'robinson%'", 1),
    ],
)  # fmt: skip
def test_plain_sql_compares_by_letters_digits_and_numbers(table: Database, where: str, n: int) -> None:
    assert table.execute(f'SELECT count(*) FROM "t" WHERE {where}').rows == ((n,),)


def test_types_are_inferred_and_empty_cells_of_numbers_are_null(table: Database) -> None:
    assert [c.type for _, c in table.schema.columns] == ["text", "number", "number", "text", "number"]
    assert table.execute('SELECT MAX("Prize"), COUNT("Prize"), SUM("Par") FROM t').rows == ((1000.0, 2, -2.0),)
    assert table.schema.single and table.has_rows and table.schema.tables[0].name == "t"
    assert table.values(0) == ("robinson r - 22", "götzis , austria")


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (["A", "A", "a"], ["A", "A (2)", "a (3)"]), (["", "", "Col"], ["Col", "Col (2)", "Col (3)"]),
        (["A", "A (2)", "A"], ["A", "A (2)", "A (3)"]),
        ([" x\n y ", 'q"q'], ["x y", 'q"q']),
    ],
)  # fmt: skip
def test_column_names_are_unique(header: list[str], names: list[str]) -> None:
    assert unique_names(header) == names
    database = Database.from_rows("n", header, [[str(i) for i in range(len(header))]])
    assert database.execute("SELECT * FROM t").columns == tuple(names)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("1,234.5", 1234.5), ("1 , 234", 1234), ("- 5", -5), ("−5", -5), ("+ 3", 3), ("$50,000", 50000),
        (".484", 0.484), ("62 %", 62), ('"110"', 110),
        ("228*", 228), ("1,23", None), ("1 - 2", None), ("5th", None), ("", None), ("-", None), ("1.2.3", None), ("km²", None),
        ("٣", None), ("1e5", None),
    ],
)  # fmt: skip
def test_numbers_written_for_people(text: str, value: float | None) -> None:
    assert cells.number(text) == value


def test_collation_is_a_total_order_that_agrees_with_equality() -> None:
    texts = ["", "-", "–", "a", "A ", "a-b", "ab", "10", "9", "10.0", "1,000", "é", "e", "Юг", "юг", "n/a", "-5", "(5)"]
    for one in texts:
        for two in texts:
            assert cells.collate(one, two) == -cells.collate(two, one)
            assert (cells.collate(one, two) == 0) == (cells.key(one) == cells.key(two))
    assert cells.key("–") == cells.key("-") != cells.key("")
    assert cells.key("Юг") == cells.key("юг")


def test_results_agree_as_multisets_and_in_order(table: Database) -> None:
    def key(sql: str, ordered: bool = False) -> str:
        return table.result_key(table.execute(sql), ordered)

    up, down = 'SELECT "Size" FROM t ORDER BY "Size"', 'SELECT "Size" FROM t ORDER BY "Size" DESC'
    assert key(up) == key(down) and key(up, True) != key(down, True)
    assert key("SELECT 1") == key("SELECT 1.0") == key("SELECT '1'") != key("SELECT 1, 1")
    assert key("SELECT 0.1 + 0.2") == key("SELECT 0.3") != key("SELECT 0.30001")
    assert key("SELECT 1 UNION ALL SELECT 1") != key("SELECT 1")
    assert key("SELECT NULL") != key("SELECT ''") and key("SELECT 'Foo-bar'") == key("SELECT 'foo bar'")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE "order" (id INTEGER PRIMARY KEY, "customer id" INT REFERENCES customer, placed DATE, note, photo BLOB);
        CREATE TABLE customer (cid INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL, size DECIMAL, grown AS (size * 2));
        CREATE TABLE line (a INT, b INT, PRIMARY KEY (a, b),
            FOREIGN KEY (a) REFERENCES "order"(id), FOREIGN KEY (b) REFERENCES gone(x));
        CREATE VIEW big AS SELECT name, size FROM customer WHERE size > 1; CREATE VIEW broken AS SELECT lost FROM nowhere;
        CREATE VIRTUAL TABLE words USING fts5(body);
        INSERT INTO customer VALUES (1, 'Ann', 1.5), (2, 'Bob', NULL); INSERT INTO words VALUES ('a red pen');
        INSERT INTO "order" VALUES (1, 1, '2020-01-01', 3, x'00'), (2, 1, '2020-01-02', 4, NULL);"""
    )
    connection.close()
    return path


def test_schema_of_a_file(file: Path) -> None:
    schema = Database.from_file(file).schema
    assert [t.name for t in schema.tables] == ["order", "customer", "line", "big", "words"]
    kinds = {(t.name, c.name): c.type for t, c in schema.columns}
    assert kinds["order", "placed"] == "time" and kinds["order", "note"] == "number" and kinds["order", "photo"] == "other"
    assert kinds["customer", "name"] == "text" and kinds["customer", "size"] == "number" and ("customer", "grown") in kinds
    keys = [(t.name, c.name) for t, c in schema.columns if c.primary_key]
    assert keys == [("order", "id"), ("customer", "cid"), ("line", "a"), ("line", "b")]
    assert set(schema.foreign_keys) == {
        ForeignKey("order", "customer id", "customer", "cid"),
        ForeignKey("line", "a", "order", "id"),
    }
    assert not schema.single


def test_a_file_answers_compares_exactly_and_lists_values(file: Path) -> None:
    database = Database.from_file(file)
    assert database.execute(
        'SELECT name FROM customer JOIN "order" ON cid = "customer id" WHERE placed = \'2020-01-01\''
    ).rows == (("Ann",),)
    assert database.execute("SELECT count(*) FROM customer WHERE name = 'ann'").rows == ((0,),)
    assert database.execute("SELECT body FROM words WHERE words MATCH 'red'").rows == (("a red pen",),)
    assert database.execute("SELECT count(*) FROM big").rows == ((1,),)
    names = [c.name for _, c in database.schema.columns]
    assert database.values(names.index("name")) == ("Ann", "Bob") and database.values(names.index("cid")) == ()


def test_check_compiles_without_rows() -> None:
    schema = Schema("s", (Table("a", (Column("x"), Column("y", "number"))), Table("b", (Column("x"),))))
    database = Database.from_schema(schema)
    for sql in (
        "SELECT x FROM a ORDER BY y LIMIT 1;",
        "SELECT x FROM a UNION SELECT x FROM b",
        "WITH c AS (SELECT x FROM a) SELECT * FROM c -- end",
    ):
        database.check(sql)
    for sql in (
        "SELECT z FROM a",
        "SELECT x FROM a, b",
        "SELECT x FROM a) x, (SELECT 1",
        "DELETE FROM a",
        "SELECT 1; SELECT 2",
        "",
    ):
        with pytest.raises(ExecError):
            database.check(sql)
    assert not database.has_rows


def test_wal_database_with_pending_changes_is_read_with_them(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL").fetchall()
    writer.execute("CREATE TABLE t (a)")
    writer.execute("INSERT INTO t VALUES (1)")
    writer.commit()
    assert (tmp_path / "live.sqlite-wal").stat().st_size > 0
    assert Database.from_file(path).execute("SELECT a FROM t").rows == ((1,),)
    writer.close()


def test_unusable_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("hello, this is no database at all")
    (tmp_path / "torn.db").write_bytes(b"SQLite format 3\0" + b"\x01" * 200)
    sqlite3.connect(tmp_path / "bare.db").executescript("PRAGMA user_version = 1").close()
    cases = {
        "gone.db": "No such file",
        "empty.db": "is empty",
        "text.db": "not a SQLite file",
        "torn.db": "SQLite",
        "bare.db": "no tables",
        ".": "directory",
    }
    for name, words in cases.items():
        with pytest.raises(TaskError, match=words) as caught:
            Database.from_file(tmp_path / name)
        assert "--db" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(file: Path) -> None:
    file.chmod(0)
    with pytest.raises(TaskError, match="Permission"):
        Database.from_file(file)
