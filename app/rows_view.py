"""What a run kept and what it dropped, with examples, and its ledger page by page; everything is opened read-only.

Does: read the first kept rows, count drops by reason with the answers behind them, search the ledger.
Does not: write, judge, or know a task's questions (a ledger knows an example by its id).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from agents.sandbox import DatabaseFileError, connect_read_only, read_only_uri
from app.run_files import RunError

SHOWN = ("question", "answer", "source", "id")
"""Fields of a kept row that a person reads."""
EXAMPLES = 5
PAGE = 50
SECONDS = 2.0
"""Longest that one look into a ledger may take."""


@dataclass(frozen=True)
class Dropped:
    """One reason for losing rows, with the first of them."""

    stage: str
    reason: str
    n: int
    examples: tuple[dict[str, Any], ...]
    """"id", "answer" (the teacher's text), "detail"; the last two empty where no answer stands behind the drop"""


@dataclass(frozen=True)
class LedgerPage:
    """One page of answers with their verdicts."""

    rows: list[dict[str, Any]]
    total: int
    """answers that match, on all pages"""


def kept_rows(path: Path, n: int = EXAMPLES, skip: int = 0) -> list[dict[str, str]]:
    """`n` rows of train.jsonl after the first `skip`, as a person reads them; torn lines are passed over."""
    out = []
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in islice(file, skip, skip + n):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    out.append({name: str(row[name]) for name in SHOWN if row.get(name) is not None})
    except OSError:
        return []
    return out


def dropped_rows(ledger: Path, examples: int = EXAMPLES) -> list[Dropped]:
    """Drops by stage and reason, most first, each with examples. Raises RunError when the ledger cannot be read."""
    with _opened(ledger) as db:
        counted = db.execute("SELECT stage, reason, count(*) FROM drops GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2").fetchall()
        out = []
        for stage, reason, n in counted:
            rows = db.execute(
                "SELECT d.row_id, coalesce(v.canonical, a.text, ''), coalesce(v.detail, '') FROM drops d "
                "LEFT JOIN verdicts v ON v.example_id = d.row_id LEFT JOIN answers a ON a.key = v.key "
                "WHERE d.stage = ? AND d.reason = ? ORDER BY d.row_id LIMIT ?",
                (stage, reason, examples),
            ).fetchall()
            shown = tuple({"id": id, "answer": answer, "detail": detail} for id, answer, detail in rows)
            out.append(Dropped(stage, reason, n, shown))
        return out


def verdict_reasons(ledger: Path) -> dict[str, int]:
    """Verdict -> answers that have it, most first. Raises RunError."""
    with _opened(ledger) as db:
        return dict(db.execute("SELECT reason, count(*) FROM verdicts GROUP BY 1 ORDER BY 2 DESC, 1").fetchall())


def ledger_page(ledger: Path, *, reason: str | None = None, text: str = "", page: int = 0, size: int = PAGE) -> LedgerPage:
    """Answers with a verdict `reason` (None: all) whose text or example id contains `text`, one page of them. Raises RunError."""
    where, values = ["1"], []
    if reason is not None:
        where.append("v.reason = ?")
        values.append(reason)
    if text:
        where.append("(instr(lower(a.text), lower(?)) OR instr(lower(a.example_id), lower(?)))")
        values += [text, text]
    joined = f"FROM answers a LEFT JOIN verdicts v USING (key) WHERE {' AND '.join(where)}"
    with _opened(ledger) as db:
        total = db.execute(f"SELECT count(*) {joined}", values).fetchone()[0]
        found = db.execute(
            "SELECT coalesce(v.example_id, a.example_id), a.purpose, a.teacher, a.text, v.reason, v.detail, v.canonical, "
            f"a.prompt_tokens, a.completion_tokens, a.cost_usd, a.created {joined} ORDER BY a.created, a.key LIMIT ? OFFSET ?",
            (*values, size, page * size),
        ).fetchall()
    names = (
        "example",
        "purpose",
        "teacher",
        "text",
        "verdict",
        "detail",
        "answer",
        "prompt tokens",
        "completion tokens",
        "dollars",
    )
    rows = [{**dict(zip(names, row)), "asked": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row[-1]))} for row in found]
    return LedgerPage(rows, total)


@contextmanager
def _opened(ledger: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(connect_read_only(read_only_uri(ledger))) as db:
            end = time.monotonic() + SECONDS
            db.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            yield db
    except DatabaseFileError as error:
        raise RunError(str(error)) from None
    except sqlite3.Error as error:
        why = f"took longer than {SECONDS:g} s; narrow the search" if "interrupted" in str(error) else f"cannot be read ({error})"
        raise RunError(f"{ledger.name}: {why}") from None
