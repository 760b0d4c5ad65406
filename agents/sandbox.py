"""Run SQL that a model wrote, against a SQLite connection that cannot be written, and within limits.

Does: guard a connection (authorizer that allows reading only, allow-list of functions, SQLite limits), run one statement
with a limit on time, rows and bytes, and name what went wrong. Spilled sorts go to SQLite's temporary files, never to the heap.
Open a user's file so that no byte of it changes.
Does not: know schemas or tasks (`factory.tasks.sql.database`) or personas (`agents.toolbox.sqlite`).
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ErrorKind = Literal["does-not-run", "time-out", "too-many-rows", "not-read-only", "too-large"]
Cell = str | int | float | bytes | None


@dataclass(frozen=True)
class Limits:
    """What one statement may cost: seconds of wall-clock time, rows, and bytes of all cells together. With `first` a result that
    is too long is cut, not refused."""

    seconds: float = 2.0
    rows: int = 10_000
    result_bytes: int = 8 << 20
    first: bool = False


@dataclass(frozen=True)
class Result:
    """Column names as SQLite gives them, and the rows in the order they came; `more` when there were others."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: bool = False


class ExecError(Exception):
    """A statement that gave no result; `kind` says why in one word, `detail` in SQLite's or our sentence."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind: ErrorKind = kind
        self.detail = detail


SQL_LENGTH = 20_000
"""Longest statement, characters; the longest reference query of Spider has under 700."""
VALUE_BYTES = 100_000
"""Longest text or blob that a statement may read or make."""
RESULT_COLUMNS = 128
HEAP_BYTES = 256 << 20
"""SQLite's memory in this whole process. Compiling can grow without bound (a subquery used twice in one used twice in …),
and SQLite before 3.41 does not look at the clock then; memory is what stops it."""
FUNCTION_CALLS = 64
"""Function calls written in one statement, and of those LIKE and GLOB: SQLite looks at the clock only between loop rounds."""
PATTERN_CALLS = 16
CLOCK_STEPS = 100
"""Virtual-machine steps between two looks at the clock."""

_CAPS = {
    sqlite3.SQLITE_LIMIT_LENGTH: VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_COLUMN: RESULT_COLUMNS,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 50_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

_ALLOWED = """
    abs avg ceil ceiling char coalesce concat concat_ws count cume_dist current_date current_time current_timestamp date
    datetime dense_rank exp first_value floor glob group_concat hex ifnull iif instr json_array_length json_extract json_type
    json_valid -> ->> julianday lag last_value lead length like ln log log10 log2 lower ltrim match max min mod nth_value
    ntile nullif octet_length percent_rank pi pow power quote rank replace round row_number rtrim sign sqrt strftime
    string_agg substr substring sum time total trim trunc typeof unicode unixepoch upper"""
FUNCTIONS = frozenset(_ALLOWED.split())
"""Functions a statement may call. Absent on purpose: load_extension, randomblob, zeroblob, random, printf (it writes a width of
two thousand million digits by digit) and whatever is added to a build."""

_FIRST_WORD = re.compile(r"(?>(?>\s|;|--[^\n]*\n|/\*.*?\*/)*)([A-Za-z]*)", re.DOTALL)
_MAGIC = b"SQLite format 3\0"
_READING = ("SELECT", "WITH", "VALUES")


class SandboxClosed(Exception):
    """The connection was closed to make room; open the database again."""


class DatabaseFileError(Exception):
    """A file that cannot be opened as a database: one sentence that begins with its path."""


def read_only_uri(path: Path) -> str:
    """A URI that opens the file read-only; immutable when in WAL mode with nothing pending, so that no -shm file is made.

    Raises DatabaseFileError when it is missing, unreadable, empty or not SQLite."""
    try:
        if path.is_dir():
            raise DatabaseFileError(f"{path}: is a directory; give a SQLite file")
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        raise DatabaseFileError(
            f"{path}: cannot be read ({error.strerror}); give a SQLite file that exists and is readable"
        ) from None
    if not head:
        raise DatabaseFileError(f"{path}: is empty; give a SQLite file with data in it")
    if not head.startswith(_MAGIC):
        raise DatabaseFileError(f"{path}: is not a SQLite file (it starts with {head[:12]!r}); give one")
    wal = path.with_name(path.name + "-wal")
    pending = wal.exists() and wal.stat().st_size > 0
    settled = len(head) > 19 and head[18] == 2 and not pending
    return path.resolve().as_uri() + "?mode=ro" + ("&immutable=1" if settled else "")


def connect_read_only(uri: str) -> sqlite3.Connection:
    """A connection to what `read_only_uri` gave, its schema read. Raises sqlite3.Error for a damaged file."""
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False, cached_statements=0, isolation_level=None)
    connection.text_factory = _decode
    connection.execute("PRAGMA query_only=ON")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return connection


def sandbox_over(connection: sqlite3.Connection) -> Sandbox:
    """The connection's tables and views behind a guard; the connection belongs to the sandbox from now on."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    for name, sql in rows:
        if sql.upper().startswith("CREATE VIRTUAL"):  # declares its columns on first use, which is no reading
            with contextlib.suppress(sqlite3.Error):
                connection.execute(f"SELECT * FROM {quote(name)} LIMIT 0").fetchall()
    return Sandbox(connection, [name for name, _ in rows])


def quote(name: str) -> str:
    """An identifier as SQLite reads it."""
    return '"' + name.replace('"', '""') + '"'


class Sandbox:
    """One guarded connection; one statement at a time, callers of other threads wait their turn."""

    def __init__(self, connection: sqlite3.Connection, tables: Iterable[str]) -> None:
        """`connection` belongs to the sandbox from now on; `tables` are the tables and views that may be read."""
        self._connection = connection
        self._lock = threading.Lock()
        self._closed = False
        self._tables = frozenset(name.lower() for name in tables)
        self._deadline = 0.0
        self._calls = self._patterns = 0
        self._trip: tuple[ErrorKind, str] | None = None
        connection.isolation_level = None
        connection.text_factory = _decode
        for pragma in (
            "query_only=ON",
            "trusted_schema=OFF",
            "cell_size_check=ON",
            "temp_store=FILE",
            "cache_size=-4000",
            "mmap_size=0",
            f"hard_heap_limit={HEAP_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute(
            "SELECT count(*) FROM sqlite_master"
        ).fetchall()  # wide tables must be read in before columns are capped
        for limit, value in _CAPS.items():
            connection.setlimit(limit, value)
        for name, arity, function in (
            ("instr", 2, _instr), ("replace", 3, _replace), ("trim", 2, _strip), ("ltrim", 2, _lstrip), ("rtrim", 2, _rstrip),
        ):  # fmt: skip
            connection.create_function(name, arity, self._clocked(function), deterministic=True)
        connection.set_authorizer(self._authorize)
        connection.set_progress_handler(self._late, CLOCK_STEPS)

    def run(self, sql: str, limits: Limits) -> Result:
        """Rows of one SELECT, WITH or VALUES statement; raises ExecError."""
        return self._guarded(sql, limits, lambda cursor, _: self._fetch(cursor, sql, limits))

    def check(self, sql: str, limits: Limits) -> None:
        """Raises ExecError when `run` would refuse the statement or it does not compile; nothing is read."""

        def explain(cursor: sqlite3.Cursor, start: int) -> Result:
            cursor.execute("EXPLAIN " + sql[start:])
            return Result((), ())

        self._guarded(sql, limits, explain)

    def _guarded(self, sql: str, limits: Limits, act: Callable[[sqlite3.Cursor, int], Result]) -> Result:
        """`act` gets a cursor and where the first word starts."""
        if len(sql) > SQL_LENGTH:
            raise ExecError("too-large", f"the statement has {len(sql):,} characters, at most {SQL_LENGTH:,} are run")
        start = _first_word(sql)
        with self._lock:
            if self._closed:
                raise SandboxClosed
            self._deadline = time.monotonic() + limits.seconds
            self._calls = self._patterns = 0
            self._trip = None
            cursor = self._connection.cursor()
            try:
                return act(cursor, start)
            except ExecError:
                raise
            except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError, OverflowError, RecursionError) as error:
                raise ExecError(*self._kind(error, limits)) from None
            finally:
                cursor.close()

    def _fetch(self, cursor: sqlite3.Cursor, sql: str, limits: Limits) -> Result:
        cursor.execute(sql)
        columns = tuple(column[0] for column in cursor.description or ())
        rows: list[tuple[Cell, ...]] = []
        size = 0
        for row in cursor:
            if len(rows) == limits.rows:
                if limits.first:
                    return Result(columns, tuple(rows), more=True)
                raise ExecError("too-many-rows", f"more than {limits.rows:,} rows")
            size += sum(len(cell) if isinstance(cell, str | bytes) else 8 for cell in row)
            if size > limits.result_bytes:
                if limits.first and rows:
                    return Result(columns, tuple(rows), more=True)
                raise ExecError("too-large", f"the result is larger than {limits.result_bytes:,} bytes")
            rows.append(row)
        return Result(columns, tuple(rows))

    def close(self) -> None:
        """Free the connection once its present statement has ended; a later `run` raises SandboxClosed."""
        with self._lock:
            if not self._closed:
                self._closed = True
                # SQLite holds these callbacks, they hold this object: a cycle that nobody collects.
                self._connection.set_authorizer(None)
                self._connection.set_progress_handler(None, 0)
                self._connection.close()

    def _late(self) -> int:
        return time.monotonic() > self._deadline

    def _clocked(self, function: Callable[..., Cell]) -> Callable[..., Cell]:
        """SQLite's own versions of these take time in the product of two lengths, without looking at the clock."""

        def call(*args: Cell) -> Cell:
            if time.monotonic() > self._deadline:
                raise TimeoutError
            try:
                return None if None in args else function(*(arg if isinstance(arg, str) else _text(arg) for arg in args))
            except ValueError as error:
                self._deny("too-large", str(error))
                raise

        return call

    def _authorize(self, action: int, one: str | None, two: str | None, database: str | None, inner: str | None) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            table = (one or "").lower()
            counted = two == "" and not table.startswith(_INTERNAL)  # count(*) reads no column of a common table expression
            if database in ("main", None) and (table in self._tables or counted):
                return sqlite3.SQLITE_OK
            return self._deny("does-not-run", f"no such table to read: {one}")
        if action == sqlite3.SQLITE_FUNCTION:
            name = (two or "").lower()
            self._calls += 1
            self._patterns += name in ("like", "glob")
            if name not in FUNCTIONS:
                return self._deny("does-not-run", f"function not allowed: {two}")
            if self._calls > FUNCTION_CALLS or self._patterns > PATTERN_CALLS:
                return self._deny(
                    "too-large", f"more than {FUNCTION_CALLS} function calls or {PATTERN_CALLS} LIKE/GLOB written out"
                )
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA and (one or "").lower() == "data_version" and two is None:
            return sqlite3.SQLITE_OK  # full-text tables ask for it themselves; a statement cannot start with PRAGMA
        return self._deny("not-read-only", "only reading is allowed")

    def _deny(self, kind: ErrorKind, detail: str) -> int:
        if self._trip is None:
            self._trip = (kind, detail)
        return sqlite3.SQLITE_DENY

    def _kind(self, error: BaseException, limits: Limits) -> tuple[ErrorKind, str]:
        text = str(error)
        if self._trip is not None:
            return self._trip
        if isinstance(error, sqlite3.Warning) or "one statement at a time" in text:
            return "not-read-only", "only one statement is run"
        if (
            "too big" in text
            or isinstance(error, MemoryError)
            or "disk is full" in text
            or "too long" in text
            or "too complex" in text
        ):
            return "too-large", text or "out of memory"
        if time.monotonic() > self._deadline:
            return "time-out", f"not done after {limits.seconds:g} s"
        return "does-not-run", text


def _first_word(sql: str) -> int:
    """Where it starts; raises ExecError unless it is SELECT, WITH or VALUES."""
    word = _FIRST_WORD.match(sql)
    first = word.group(1).upper() if word else ""
    if first in _OTHER_STATEMENTS:
        raise ExecError("not-read-only", f"only SELECT is run, not {first}")
    if first not in _READING:
        raise ExecError("does-not-run", "not a SELECT statement")
    return word.start(1) if word else 0


_INTERNAL = ("sqlite_", "pragma_", "dbstat")
_WRITING = """
    ALTER ANALYZE ATTACH BEGIN COMMIT CREATE DELETE DETACH DROP END EXPLAIN INSERT PRAGMA REINDEX RELEASE REPLACE ROLLBACK
    SAVEPOINT UPDATE VACUUM"""
_OTHER_STATEMENTS = frozenset(_WRITING.split())


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _text(value: Cell) -> str:
    return _decode(value) if isinstance(value, bytes) else str(value)


def _instr(text: str, part: str) -> Any:
    return text.find(part) + 1


def _replace(text: str, old: str, new: str) -> Any:
    if not old:
        return text
    if len(text) + text.count(old) * (len(new) - len(old)) > VALUE_BYTES:
        raise ValueError("string or blob too big")
    return text.replace(old, new)


def _strip(text: str, chars: str) -> Any:
    return text.strip(chars) if chars else text


def _lstrip(text: str, chars: str) -> Any:
    return text.lstrip(chars) if chars else text


def _rstrip(text: str, chars: str) -> Any:
    return text.rstrip(chars) if chars else text
