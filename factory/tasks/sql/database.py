"""A database that questions are asked about: its schema, maybe its rows, and a safe way to run SQL on it.

Does: open a SQLite file read-only, or build one in memory from a WikiSQL table or a bare schema; run model-written SQL through
`agents.sandbox`; say when two result cells are equal. Connections open on first use and the least used are closed.
Does not: read data sets (`wikisql.py`, `sources.py`), compare queries (`score.py`) or link questions (`link.py`).
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from agents.sandbox import Cell, ExecError, Limits, Result, Sandbox, SandboxClosed, quote, sandbox_over
from factory.tasks.sql import cells
from factory.tasks.sql.schema import Column, Schema, Table

__all__ = ["Cell", "Database", "ExecError", "Limits", "Result", "quote"]

T = TypeVar("T")
LIMITS = Limits()
TABLE = "t"
"""Name of a WikiSQL table in SQL."""


class Database:
    """A schema with rows or without; cheap until used, safe to share between threads.

    `id` names it (table id, file stem); `has_rows` False means that results say nothing, only that a statement compiles;
    `loose` True means that text equals text by letters and digits alone (WikiSQL), False as SQLite compares.
    """

    def __init__(
        self,
        id: str,
        schema: Callable[[], Schema],
        connect: Callable[[Schema], sqlite3.Connection],
        *,
        has_rows: bool,
        loose: bool = False,
        values: Callable[[int], tuple[str, ...]] | None = None,
        beyond: Callable[[int, Sequence[str]], tuple[str, ...]] | None = None,
    ) -> None:
        self.id = id
        self.has_rows = has_rows
        self.loose = loose
        self._schema = schema
        self._connect = connect
        self._values = values
        self._beyond = beyond
        self._kept_values: dict[int, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    @cached_property
    def schema(self) -> Schema:
        return self._schema()

    @classmethod
    def from_file(cls, path: Path) -> Database:
        """A SQLite file, read-only; raises TaskError when it cannot be used."""
        from factory.tasks.sql.sqlite_file import open_file

        return open_file(path)

    @classmethod
    def from_rows(cls, id: str, header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> Database:
        """A WikiSQL table with rows: its schema is `single`, its column types are inferred, its values compare loosely."""

        def schema() -> Schema:
            columns = zip(*rows, strict=True) if rows else ((),) * len(header)
            return table_schema(id, header, [tuple(dict.fromkeys(c for c in column if c)) for column in columns])

        return cls(id, schema, lambda made: _fill(made, rows), has_rows=bool(rows), loose=True)

    @classmethod
    def from_values(cls, id: str, header: Sequence[str], values: Sequence[Sequence[str]] | None = None) -> Database:
        """A WikiSQL table of which only the distinct values per column are known, or only the header."""
        known = values if values is not None else ((),) * len(header)
        return cls(
            id,
            lambda: table_schema(id, header, [tuple(v for v in column if v) for column in known]),
            lambda made: _fill(made, ()),
            has_rows=False,
            loose=True,
        )

    @classmethod
    def from_schema(cls, schema: Schema) -> Database:
        """A schema without rows: statements compile against empty tables."""
        return cls(schema.name, lambda: schema, _empty, has_rows=False)

    def values(self, column: int) -> tuple[str, ...]:
        """Distinct stored values, as text, of the column with this global index; of large files the first thousands."""
        if self._values is None:
            return self.schema.columns[column][1].values
        with self._lock:
            if column not in self._kept_values:
                self._kept_values[column] = self._values(column)
            return self._kept_values[column]

    def beyond(self, column: int, texts: Sequence[str]) -> tuple[str, ...]:
        """Which of these texts or numbers a column stores, as stored, where `values` does not hold all that it has; else ()."""
        return self._beyond(column, texts) if self._beyond is not None else ()

    def connection(self) -> sqlite3.Connection:
        """A new connection, read-only over a file, without the guard that model-written SQL needs; the caller closes it."""
        return self._connect(self.schema)

    def execute(self, sql: str, limits: Limits = LIMITS) -> Result:
        """Run one reading statement. Raises ExecError: does-not-run, time-out, too-many-rows, not-read-only or too-large."""
        return self._in_sandbox(lambda sandbox: sandbox.run(sql, limits))

    def check(self, sql: str) -> None:
        """Raise ExecError when the statement does not compile or is not allowed; rows are not needed and not read."""
        self._in_sandbox(lambda sandbox: sandbox.check(sql, LIMITS))

    def cell_key(self, cell: Cell) -> Hashable:
        """Two result cells are equal when their keys are: numbers to nine digits, text loosely or exactly (see `loose`)."""
        if isinstance(cell, str):
            if not self.loose:
                return cell
            kind, value, text = cells.key(cell)
            return text if kind else _rounded(value)
        return _rounded(float(cell)) if isinstance(cell, int | float) else cell

    def result_key(self, result: Result, ordered: bool) -> str:
        """A hash under which results agree: the multiset of rows, or their sequence when `ordered`."""
        rows = [repr([self.cell_key(cell) for cell in row]) for row in result.rows]
        text = "\n".join(rows if ordered else sorted(rows))
        return hashlib.sha256(f"{len(result.columns)}\n{text}".encode("utf-8", "replace")).hexdigest()

    def _in_sandbox(self, act: Callable[[Sandbox], T]) -> T:
        while True:
            try:
                return act(_OPEN.get(self))
            except SandboxClosed:  # by another thread, between its being found and used
                continue

    def open_sandbox(self) -> Sandbox:
        """A new guarded connection; `execute` keeps and reuses them."""
        return sandbox_over(self._connect(self.schema))

    def __repr__(self) -> str:
        return f"Database({self.id!r})"


class _OpenSandboxes:
    """The most recently used connections; those pushed out are closed when their present statement ends."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, tuple[Database, Sandbox]] = OrderedDict()

    def get(self, database: Database) -> Sandbox:
        with self._lock:
            found = self._open.get(id(database))
            if found is not None:
                self._open.move_to_end(id(database))
                return found[1]
        made = database.open_sandbox()
        with self._lock:
            kept = self._open.setdefault(id(database), (database, made))
            pushed_out = [self._open.popitem(last=False)[1][1] for _ in range(len(self._open) - self._limit)]
        for sandbox in pushed_out:
            sandbox.close()
        if kept[1] is not made:
            made.close()
        return kept[1]


_OPEN = _OpenSandboxes(limit=32)


def unique_names(header: Sequence[str]) -> list[str]:
    """Column names that differ ignoring case: "Col", "Col (2)"; an empty one becomes "Col"; white space is collapsed."""
    names: list[str] = []
    taken = {" ".join(name.split()).lower() for name in header}
    used: set[str] = set()
    for given in header:
        plain = name = " ".join(given.replace("\0", "").split()) or "Col"
        n = 1
        while name.lower() in used or (n > 1 and name.lower() in taken):
            n += 1
            name = f"{plain} ({n})"
        used.add(name.lower())
        names.append(name)
    return names


def table_schema(id: str, header: Sequence[str], values: Sequence[tuple[str, ...]]) -> Schema:
    """The schema of one WikiSQL table: all its distinct values are the columns' values."""
    columns = tuple(
        Column(name=name, type=cells.column_type(column), values=column)
        for name, column in zip(unique_names(header), values, strict=True)
    )
    return Schema(name=id, tables=(Table(name=TABLE, columns=columns),), single=True)


def _memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False, cached_statements=0, isolation_level=None)


def _fill(schema: Schema, rows: Sequence[Sequence[str | None]]) -> sqlite3.Connection:
    """One table in memory: numbers as REAL, everything else as text that compares by letters and digits."""
    columns = schema.tables[0].columns
    connection = _memory()
    connection.create_collation(cells.COLLATION, cells.collate)
    kinds = ["REAL" if column.type == "number" else f"TEXT COLLATE {cells.COLLATION}" for column in columns]
    declared = ", ".join(f"{quote(column.name)} {kind}" for column, kind in zip(columns, kinds))
    connection.execute(f"CREATE TABLE {quote(schema.tables[0].name)} ({declared})")
    numeric = [column.type == "number" for column in columns]
    connection.executemany(
        f"INSERT INTO {quote(schema.tables[0].name)} VALUES ({','.join('?' * len(columns))})",
        ([cells.number(c or "") if real else c for c, real in zip(row, numeric)] for row in rows),
    )
    return connection


def _empty(schema: Schema) -> sqlite3.Connection:
    connection = _memory()
    for table in schema.tables:
        columns = ", ".join(f"{quote(c.name)} {'REAL' if c.type == 'number' else 'TEXT'}" for c in table.columns)
        connection.execute(f"CREATE TABLE {quote(table.name)} ({columns})")
    return connection


def _rounded(value: float) -> float:
    """Nine significant digits: sums in another order are still the same result."""
    return float(f"{value:.9g}") + 0.0
