"""Files a person uploads: questions (JSONL) and SQLite databases, kept below the app's own directory and read-only.

Does: limit sizes, make names safe, look whether the file is what it should be and say what is wrong with its first bad line, give
a preview. A file with the same bytes is kept once.
Does not: trust a name or a byte of it: databases are opened read-only, and no text of a file is ever markup.

    path = keep(Path("runs/app/uploads"), "my shop.sqlite", data, "database")
    look_at_database(path).tables
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.sandbox import DatabaseFileError, ExecError, connect_read_only, quote, read_only_uri
from factory.tasks.task import TaskError

Kind = Literal["questions", "database"]

MEGABYTES: dict[Kind, int] = {"questions": 20, "database": 200}
"""Largest upload of each kind."""
SUFFIXES: dict[Kind, tuple[str, ...]] = {"questions": (".jsonl",), "database": (".sqlite", ".sqlite3", ".db")}
ALL_BYTES = 2_000_000_000
"""What all uploads together may take."""
NAME_LENGTH = 60
PREVIEW = 5
COLUMNS = 4
"""Fields of a row of any task that a preview shows."""
CHECKED_SQL = 500
"""Queries of a questions file that are tried on its database."""
SECONDS = 1.0
"""Longest that a look into a database takes; what was not seen by then is left out."""


class UploadError(Exception):
    """An upload that is refused: one sentence with what is wrong and what to give instead."""


@dataclass(frozen=True)
class QuestionsPreview:
    """What a questions file holds."""

    n: int
    with_sql: int
    first: tuple[dict[str, str], ...]
    failing: int = 0
    """queries that do not run on the database, of those tried"""
    tried: int = 0
    first_failing: str = ""
    """which one, and why"""


@dataclass(frozen=True)
class TablePreview:
    """One table or view; `rows` None: not counted in time."""

    name: str
    columns: tuple[str, ...]
    rows: int | None


@dataclass(frozen=True)
class DatabasePreview:
    tables: tuple[TablePreview, ...]


def safe_name(name: str, kind: Kind) -> str:
    """A file name of letters, digits, dots and dashes, with the right ending. Raises UploadError for another kind of file."""
    plain = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, _, ending = plain.rpartition(".")
    if f".{ending.lower()}" not in SUFFIXES[kind]:
        raise UploadError(f"{plain[-40:]!r} is not a {kind} file; give one that ends in {' or '.join(SUFFIXES[kind])}")
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:NAME_LENGTH] or kind
    return f"{stem}.{ending.lower()}"


def keep(root: Path, name: str, data: bytes, kind: Kind) -> Path:
    """Store an upload and return its path: ROOT/HASH/NAME, read-only. Raises UploadError when it is too large, empty, of another
    kind, or there is no room."""
    named = safe_name(name, kind)
    most = MEGABYTES[kind]
    if len(data) > most * 1_000_000:
        raise UploadError(
            f"{named} has {len(data) / 1e6:,.0f} MB, more than the {most} MB taken here; give a part of it, or use the commands"
        )
    if not data:
        raise UploadError(f"{named} is empty; choose a file with something in it")
    directory = root / hashlib.sha256(data).hexdigest()[:16]
    path = directory / named
    if path.exists():
        return path
    taken = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) if root.is_dir() else 0
    if taken + len(data) > ALL_BYTES:
        raise UploadError(f"uploads take {taken / 1e9:.1f} GB already; delete some below {root}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o444)
        Path(temporary).replace(path)
    except OSError as error:
        raise UploadError(f"{named} cannot be stored ({error.strerror}); free some space") from None
    return path


def kept(root: Path, kind: Kind) -> list[Path]:
    """Uploads of a kind, the newest first."""
    found = [path for path in root.glob("*/*") if path.suffix in SUFFIXES[kind]]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def look_at_database(path: Path) -> DatabasePreview:
    """Tables, columns and row counts. Raises UploadError when it is no SQLite file, damaged, or has no tables."""
    try:
        with closing(connect_read_only(read_only_uri(path))) as db:
            db.execute("PRAGMA trusted_schema=OFF")
            found = _timed(db, "PRAGMA quick_check(1)", time.monotonic() + SECONDS)
            if found is not None and found != "ok":
                raise UploadError(f"{path.name} is a damaged database ({str(found)[:80]}); give a whole copy of it")
            listed = db.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY rowid").fetchall()
            end = time.monotonic() + SECONDS
            tables = tuple(_table(db, name, kind, end) for name, kind in listed if not name.lower().startswith("sqlite_"))
    except DatabaseFileError as error:
        raise UploadError(str(error).replace(str(path), path.name)) from None
    except sqlite3.Error as error:
        raise UploadError(f"{path.name} cannot be read as SQLite ({error}); give a whole copy of the database") from None
    if not tables:
        raise UploadError(f"{path.name} has no tables; give a database with data in it")
    return DatabasePreview(tables)


def look_at_questions(path: Path, database: Path | None = None) -> QuestionsPreview:
    """What a questions file holds; with a database its queries are tried. Raises UploadError that names the first bad line."""
    from factory.tasks.sql.database import Database
    from factory.tasks.sql.reading import Fingerprint, read_lines
    from factory.tasks.sql.schema import Schema
    from factory.tasks.sql.spider import question_example

    nothing = Database.from_schema(Schema(path.stem, (), ()))
    try:
        rows: list[tuple[int, dict[str, Any]]] = list(read_lines(path, Fingerprint()))
        examples = [question_example(path, n, row, nothing, path.stem, "train") for n, row in rows]
    except TaskError as error:
        raise UploadError(str(error).replace(str(path), path.name)) from None
    if not examples:
        raise UploadError(f'{path.name} has no questions; write one object a line: {{"question": "…", "sql": "…"}}')
    first = tuple({"question": e.question, "sql": e.reference or ""} for e in examples[:PREVIEW])
    queries = [(n, e.reference) for (n, _), e in zip(rows, examples) if e.reference is not None]
    failing, tried, why = _try_queries(database, queries) if database is not None else (0, 0, "")
    return QuestionsPreview(len(examples), len(queries), first, failing, tried, why)


def look_at_rows(path: Path) -> tuple[int, tuple[dict[str, str], ...]]:
    """(rows, the first of them) of a JSONL file of any task. Raises UploadError that names the first line that is no object."""
    from factory.tasks.sql.reading import Fingerprint, read_lines

    try:
        rows = [row for _, row in read_lines(path, Fingerprint())]
    except TaskError as error:
        raise UploadError(str(error).replace(str(path), path.name)) from None
    if not rows:
        raise UploadError(f'{path.name} has no rows; write one object a line, beginning with {{"question": "…"}}')
    names = list(dict.fromkeys(name for row in rows[:PREVIEW] for name in row))[:COLUMNS]
    return len(rows), tuple({name: str(row.get(name, "")) for name in names} for row in rows[:PREVIEW])


def _try_queries(path: Path, queries: list[tuple[int, str]]) -> tuple[int, int, str]:
    """(queries that fail, queries tried in the time there is, the first that fails) over a database."""
    from agents.sandbox import Limits, sandbox_over

    try:
        connection = connect_read_only(read_only_uri(path))
        sandbox = sandbox_over(connection)
    except (DatabaseFileError, sqlite3.Error) as error:
        raise UploadError(f"{path.name} cannot be read as SQLite ({error}); give a whole copy of the database") from None
    failing, tried, why, end = 0, 0, "", time.monotonic() + SECONDS
    with closing(sandbox):
        for n, sql in queries[:CHECKED_SQL]:
            if time.monotonic() > end:
                break
            tried += 1
            try:
                sandbox.check(sql, Limits(seconds=0.2))
            except ExecError as error:
                failing += 1
                why = why or f"line {n}: {error.detail}"
    return failing, tried, why


def _table(db: sqlite3.Connection, name: str, kind: str, end: float) -> TablePreview:
    columns = tuple(row[0] for row in db.execute("SELECT name FROM pragma_table_info(?)", (name,)).fetchall())
    # A view may be a query without end: only tables are counted.
    return TablePreview(name, columns, _timed(db, f"SELECT count(*) FROM {quote(name)}", end) if kind == "table" else None)


def _timed(db: sqlite3.Connection, sql: str, end: float) -> Any:
    """The one value of a statement, None when it was not there by `end`."""
    db.set_progress_handler(lambda: time.monotonic() > end, 1000)
    try:
        return db.execute(sql).fetchone()[0]
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return None
        raise
    finally:
        db.set_progress_handler(None, 0)
