"""Thumbs up and down as training rows that `factory.finetune --questions` reads.

Does: keep one row for each rated answer, the latest rating of it; check a correction by running it; say how to train on the rows.
Does not: train. A thumbs down without a correction keeps no SQL, so finetune counts the row and leaves it out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

from agents.sandbox import ExecError
from agents.toolbox.sqlite import SqliteTools

Rating = Literal["up", "down"]
_writing = threading.Lock()


class FeedbackError(Exception):
    """A correction that cannot be learned from: one sentence."""


def rows_file(own: Path, database: Path) -> Path:
    """Where the rows about a database are kept, in a browser's own directory."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", database.stem)[:60] or "database"
    return own / f"rows-{stem}-{database.parent.name[:16]}.jsonl"


def rate(
    path: Path, id: str, question: str, sql: str, rating: Rating, *, database: Path, correction: str = "", **about: Any
) -> int:
    """Keep a rating and return how many rows there are. Raises FeedbackError for a correction that does not run."""
    row: dict[str, Any] = {"id": id, "question": question, "rating": rating, "source": "app", **about}
    correction = correction.strip().rstrip(";").strip()
    if rating == "up":
        row["sql"] = sql
    elif correction:
        _runs(database, correction)
        row |= {"sql": correction, "rejected_sql": sql}
    else:
        row["rejected_sql"] = sql
    with _writing:
        rows = [kept for kept in read(path) if kept.get("id") != id]
        _write(path, [*rows, row])
    return len(rows) + 1


def read(path: Path) -> list[dict[str, Any]]:
    """The rows so far; none when there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def rating_of(path: Path, id: str) -> Rating | None:
    """How an answer was rated last."""
    return next((row["rating"] for row in read(path) if row.get("id") == id), None)


def command(path: Path, database: Path) -> str:
    """The command that trains on them."""
    return f"python -m factory.finetune --task sql --db {shlex.quote(str(database))} --questions {shlex.quote(str(path))}"


def _runs(database: Path, sql: str) -> None:
    tools = SqliteTools(database, rows=10)
    try:
        tools.run(sql)
    except ExecError as error:
        raise FeedbackError(f"This correction does not run, so it is not kept: {error.detail}.") from None
    finally:
        tools.close()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    handle, name = tempfile.mkstemp(prefix=".rows-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
