"""Open a user's SQLite file without changing a byte of it, and read its schema.

Does: check the file, connect with mode=ro (and immutable where nothing is pending), read tables, views, keys, types and values.
Does not: run model-written SQL; that goes through `agents.sandbox`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agents.sandbox import DatabaseFileError, connect_read_only, read_only_uri
from factory.tasks.sql.database import Database, quote
from factory.tasks.sql.schema import Column, ColumnType, ForeignKey, Schema, Table
from factory.tasks.task import TaskError

SAMPLES = 20
"""Sample values kept in the schema for each column."""
LINKED_VALUES = 5_000
"""Most distinct values of a column that questions are linked to, among the first SCANNED_ROWS rows."""
SCANNED_ROWS = 200_000
VALUE_LENGTH = 80
"""Longer texts are neither sampled nor linked."""


def open_file(path: Path) -> Database:
    """A `Database` over a file; its schema and samples are read now. Raises TaskError when it is missing, empty, unreadable,
    not SQLite, damaged, or without tables."""
    uri = _uri(path)
    try:
        with closing(connect_read_only(uri)) as connection:
            schema = read_schema(connection, path.stem)
    except sqlite3.Error as error:
        raise TaskError(
            f"--db {path}: cannot be read as SQLite ({error}); check it with: sqlite3 FILE 'PRAGMA integrity_check'"
        ) from None
    if not schema.columns:
        raise TaskError(f"--db {path}: has no tables; give a database with data in it")

    def values(column: int) -> tuple[str, ...]:
        table, wanted = schema.columns[column]
        if wanted.type in ("other", "number"):
            return ()
        with closing(connect_read_only(uri)) as connection:
            return distinct(connection, table.name, wanted.name, LINKED_VALUES)

    return Database(path.stem, lambda: schema, lambda _: connect_read_only(uri), has_rows=True, values=values)


def read_schema(connection: sqlite3.Connection, name: str) -> Schema:
    """Tables and views in the order they were made, without SQLite's own and the shadows of virtual tables."""
    rows = connection.execute(
        "SELECT name, type FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'view', 'virtual')"
    ).fetchall()
    order = {n: i for i, (n,) in enumerate(connection.execute("SELECT name FROM sqlite_master ORDER BY rowid"))}
    names = sorted((n for n, _ in rows if not n.lower().startswith("sqlite_")), key=lambda n: order.get(n, len(order)))
    tables = tuple(table for table in (_table(connection, n) for n in names) if table is not None)
    keys = tuple(key for table in tables for key in _foreign_keys(connection, table.name, tables))
    return Schema(name=name, tables=tables, foreign_keys=keys)


def declared_type(declared: str) -> ColumnType | None:
    """The type a declaration names, by SQLite's own rules and the usual words for time; None when it says nothing."""
    word = declared.upper()
    if any(part in word for part in ("DATE", "TIME", "YEAR")):
        return "time"
    if any(part in word for part in ("CHAR", "CLOB", "TEXT", "STRING")):
        return "text"
    if "BLOB" in word:
        return "other"
    if any(part in word for part in ("INT", "REAL", "FLOA", "DOUB", "NUM", "DEC", "BOOL", "SERIAL", "MONEY")):
        return "number"
    return None


def _table(connection: sqlite3.Connection, name: str) -> Table | None:
    """None for a view or virtual table that does not work any more."""
    columns = []
    try:
        for _, column, declared, _, _, key, hidden in connection.execute(f"PRAGMA table_xinfo({quote(name)})").fetchall():
            if hidden != 1:
                values = distinct(connection, name, column, SAMPLES)
                kind = declared_type(declared or "") or stored_type(connection, name, column)
                columns.append(Column(column, kind, declared or "", bool(key), values))
    except sqlite3.OperationalError:
        return None
    return Table(name, tuple(columns)) if columns else None


def distinct(connection: sqlite3.Connection, table: str, column: str, limit: int) -> tuple[str, ...]:
    """The first distinct values, as text; at most two seconds are spent on a column."""
    column = quote(column)
    sql = (
        f"SELECT DISTINCT {column} FROM (SELECT {column} FROM {quote(table)} LIMIT {SCANNED_ROWS}) "
        f"WHERE typeof({column}) NOT IN ('null', 'blob') AND length({column}) BETWEEN 1 AND {VALUE_LENGTH} LIMIT {limit}"
    )
    values: dict[str, None] = {}
    with _clock(connection):
        try:
            for (value,) in connection.execute(sql):
                values[str(value)] = None
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
    return tuple(values)


@contextmanager
def _clock(connection: sqlite3.Connection) -> Iterator[None]:
    """Interrupt what runs inside after about two seconds (a view may be a query without end)."""
    end = time.monotonic() + 2.0
    connection.set_progress_handler(lambda: time.monotonic() > end, 1000)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)


def stored_type(connection: sqlite3.Connection, table: str, column: str) -> ColumnType:
    column = quote(column)
    with _clock(connection):
        rows = connection.execute(
            f"SELECT DISTINCT typeof({column}) FROM (SELECT {column} FROM {quote(table)} LIMIT 1000)"
        ).fetchall()
    kinds = {kind for (kind,) in rows} - {"null"}
    if kinds and kinds <= {"integer", "real"}:
        return "number"
    return "other" if kinds == {"blob"} else "text"


def _foreign_keys(connection: sqlite3.Connection, table: str, tables: tuple[Table, ...]) -> Iterator[ForeignKey]:
    """Declared keys whose two ends exist; a key that names no column means the other table's primary key."""
    known = {t.name.lower(): t for t in tables}
    for _, seq, other, column, target, *_ in connection.execute(f"PRAGMA foreign_key_list({quote(table)})").fetchall():
        there = known.get(other.lower())
        if there is None:
            continue
        primary = [c.name for c in there.columns if c.primary_key]
        found = target if target is not None else (primary[seq] if seq < len(primary) else None)
        for end in there.columns:
            if found is not None and end.name.lower() == found.lower():
                yield ForeignKey(table, column, there.name, end.name)


def _uri(path: Path) -> str:
    try:
        return read_only_uri(path)
    except DatabaseFileError as error:
        raise TaskError(f"--db {error}") from None
