"""Let a persona read a SQLite file: its tables, and one SELECT at a time, within limits on time, rows and bytes.

Does: open the file so that no byte of it changes, run model-written SQL in `agents.sandbox`, answer in compact JSON, and say of a
statement that fails why, and what tables and columns there are.
Does not: write, attach other files, or check that a query answers its question.

    tools = SqliteTools("shop.db", rows=50)
    desk = Persona("desk", model, "Answer from the database.", tools=[tools])
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from agents.sandbox import (
    DatabaseFileError,
    ExecError,
    Limits,
    Result,
    Sandbox,
    SandboxClosed,
    connect_read_only,
    quote,
    read_only_uri,
    sandbox_over,
)
from agents.tools import PersonaError, Tool, ToolError, tool

CELL_CHARS = 400
"""Characters of one cell that a model is shown."""
TABLES_SHOWN = 60
State = tuple[object, ...]
WRITERS_MET = 8
"""Times a statement is begun again because the file was closed or written under it."""


class SqliteTools:
    """`query` and `tables` over one file. Its connection is shared between threads, one statement at a time."""

    def __init__(
        self, path: str | Path, *, rows: int = 50, seconds: float = 2.0, result_bytes: int = 64_000, prefix: str = ""
    ) -> None:
        """`rows` and `result_bytes` are what a model is shown of a result, `seconds` what a statement may take; `prefix` goes
        before the tools' names where a persona has several databases. Raises PersonaError when the file is no database."""
        self.path = Path(path)
        self.limits = Limits(seconds=seconds, rows=rows, result_bytes=result_bytes, first=True)
        self._lock = threading.Lock()
        self._open: Sandbox | None = None
        self._seen: State | None = None
        """what the file was when it was opened as one that nobody changes; None when it is opened so that changes are seen"""
        try:
            self._schema_at, self._schema = _state(self.path), _schema(read_only_uri(self.path))
        except DatabaseFileError as error:
            raise PersonaError(str(error)) from None
        except sqlite3.Error as error:
            raise PersonaError(
                f"{self.path}: cannot be read as SQLite ({error}); check it with: sqlite3 FILE 'PRAGMA integrity_check'"
            ) from None
        self._tools = (
            tool(name=f"{prefix}query", max_result_chars=result_bytes)(self._query),
            tool(name=f"{prefix}tables", max_result_chars=result_bytes)(self._tables),
        )

    @property
    def schema(self) -> dict[str, tuple[str, ...]]:
        """Table or view -> its columns with their types, as the file has them now (or had, when it cannot be read any more)."""
        now = _state(self.path)
        if now != self._schema_at:
            with contextlib.suppress(DatabaseFileError, sqlite3.Error):
                self._schema_at, self._schema = now, _schema(read_only_uri(self.path))
        return self._schema

    def tools(self) -> Sequence[Tool]:
        """`query(sql)` and `tables()`."""
        return self._tools

    def run(self, sql: str) -> Result:
        """Rows of one reading statement, at most `rows`. Raises ExecError."""
        seen: State | None = None
        for _ in range(WRITERS_MET):
            try:
                sandbox, seen = self._sandbox()
                result = sandbox.run(sql, self.limits)
            except SandboxClosed:  # another thread came in between
                continue
            except (DatabaseFileError, sqlite3.Error) as error:
                if self._changed(seen):
                    continue
                raise ExecError("does-not-run", f"{self.path.name} cannot be read any more: {error}") from None
            except ExecError:
                if self._changed(seen):
                    continue
                raise
            if not self._changed(seen):
                return result
        raise ExecError("time-out", f"{self.path.name} is being written all the time; ask again")

    def _sandbox(self) -> tuple[Sandbox, State | None]:
        """The open file, opened anew when somebody wrote into one opened as unchanging; and what it was if it is such a one."""
        old = None
        with self._lock:
            if self._open is not None and self._seen is not None and self._seen != _state(self.path):
                old, self._open = self._open, None
            if self._open is None:
                seen = _state(self.path)
                uri = read_only_uri(self.path)
                self._open, self._seen = sandbox_over(connect_read_only(uri)), seen if "immutable=1" in uri else None
            opened = self._open, self._seen
        if old is not None:
            old.close()
        return opened

    def _changed(self, seen: State | None) -> bool:
        """Whether what was just read may be torn: somebody wrote into a file that was opened as unchanging."""
        return seen is not None and seen != _state(self.path)

    def close(self) -> None:
        """Close the connection; the next statement opens another."""
        with self._lock:
            opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def _query(self, sql: str) -> str:
        """Run one read-only SQL statement on the database and get its rows.

        Args:
            sql: one SELECT statement in SQLite's dialect
        """
        try:
            return as_json(self.run(sql))
        except ExecError as error:
            raise ToolError(f"{error.detail}. {self._advice(error)}") from None

    def _tables(self) -> str:
        """The tables of the database with their columns and types."""
        return self.described()

    def described(self) -> str:
        """One line for each table: name(column type, …)."""
        lines = [f"{table}({', '.join(columns)})" for table, columns in list(self.schema.items())[:TABLES_SHOWN]]
        left = len(self.schema) - len(lines)
        return "\n".join(lines) + (f"\nand {left} more tables" if left > 0 else "")

    def _advice(self, error: ExecError) -> str:
        if error.kind == "not-read-only":
            return "Write one SELECT statement."
        if error.kind == "time-out":
            return "Ask for less: a narrower WHERE, or fewer joins."
        if error.kind in ("too-large", "too-many-rows"):
            return "Ask for fewer rows or shorter values."
        return f"The tables are:\n{self.described()}"


def as_json(result: Result) -> str:
    """A result as a model reads it: {"columns": […], "rows": [[…]]}, and "more": true when rows were left out."""
    rows = [[_cell(cell) for cell in row] for row in result.rows]
    body: dict[str, object] = {"columns": list(result.columns), "rows": rows}
    if result.more:
        body["more"] = True
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _cell(cell: object) -> object:
    if isinstance(cell, bytes):
        return f"({len(cell)} bytes)"
    if isinstance(cell, str) and len(cell) > CELL_CHARS:
        return f"{cell[:CELL_CHARS]}… ({len(cell) - CELL_CHARS} more characters)"
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)  # JSON has no number for it
    return cell


def _state(path: Path) -> State:
    """Size and time of change of a file and of its write-ahead log: what a writer cannot help changing."""
    found: list[object] = []
    for file in (path, path.with_name(path.name + "-wal")):
        try:
            state = file.stat()
            found += [state.st_size, state.st_mtime_ns, state.st_ino]
        except OSError:
            found.append(None)
    return tuple(found)


def _schema(uri: str) -> dict[str, tuple[str, ...]]:
    connection = connect_read_only(uri)
    try:
        names = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'view', 'virtual')"
                " AND name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY rowid"
            )
        ]
        found: dict[str, tuple[str, ...]] = {}
        for name in sorted(names):
            try:
                columns = connection.execute(f"PRAGMA table_info({quote(name)})").fetchall()
            except sqlite3.OperationalError:  # a view over what is gone
                continue
            found[name] = tuple(f"{column[1]} {column[2]}".strip() for column in columns)
        return found
    finally:
        connection.close()
