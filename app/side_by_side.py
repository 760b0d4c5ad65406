"""Several files' answers to one question, next to each other: which agree with the first, and where the others differ.

Does: read the lines of `app.ask_files`, compare answers and results with the first file's, write differences as text.
Does not: ask, or draw. Nothing here is markup: what a model wrote stays text.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.artifacts import Artifact

ANSWERS = "answers.jsonl"
QUESTION_LENGTH = 2000
_CLAUSE = re.compile(r"\s+(?=(?:FROM|WHERE|GROUP BY|HAVING|ORDER BY|LIMIT|JOIN|LEFT JOIN|UNION|INTERSECT|EXCEPT|AND|OR)\b)")


@dataclass(frozen=True)
class Answer:
    """One file's answer against the first one's."""

    file: str
    name: str
    """the file's own name"""
    text: str = ""
    ms: int | None = None
    confidence: float | None = None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    more: bool = False
    error: str = ""
    """why there is no answer, or no result"""
    same_text: bool = True
    same_rows: bool = True
    difference: str = ""
    """line by line, as `diff` writes it, "-" the first file's; empty where the texts are the same"""

    @property
    def verdict(self) -> str:
        """How it stands to the first file's answer, in words."""
        if self.error:
            return self.error
        if self.same_text:
            return "the same answer"
        return "another answer with the same result" if self.same_rows and self.columns else "a different answer"


def side_by_side(path: Path) -> list[Answer]:
    """The answers so far, in the order asked; a torn last line is left for the next look."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "file" in row:
            found.append(row)
    return [_against(row, found[0]) for row in found]


def ask_job(files: Sequence[Artifact], question: str, db: Path | None, table: str | None) -> list[str]:
    """The command that asks them; its answers go into the job's own directory."""
    question = question.replace("\0", " ")  # no argument can hold one
    argv = [sys.executable, "-m", "app.ask_files", *map(_argument, files), f"--question={question[:QUESTION_LENGTH]}",
            f"--out={{job}}/{ANSWERS}"]  # fmt: skip
    return argv + ([f"--db={db}"] if db is not None else []) + ([f"--table={table}"] if table else [])


def _argument(one: Artifact) -> str:
    return str(one.path) if one.base is None else f"{one.path}@{one.base.path}"


def table_for(db: Path, question: str, chosen: str) -> str:
    """The table a question is asked about: the chosen one, or, with "", the likeliest by its words. Raises TaskError."""
    from app.analyst import likely_table
    from factory.tasks.sql.database import Database

    return chosen or likely_table(Database.from_file(db), question)


def clauses(sql: str) -> list[str]:
    """A statement with one clause a line, so that a difference is a line."""
    return _CLAUSE.sub("\n", " ".join(sql.split())).split("\n")


def _against(row: dict[str, Any], first: dict[str, Any]) -> Answer:
    ours, theirs = str(row.get("answer", "")), str(first.get("answer", ""))
    same = " ".join(ours.split()) == " ".join(theirs.split())
    comparable = row is not first and "answer" in row and "answer" in first
    difference = ""
    if comparable and not same:
        lines = difflib.ndiff(clauses(theirs), clauses(ours))
        difference = "\n".join(line for line in lines if not line.startswith("?"))
    return Answer(
        file=str(row["file"]),
        name=Path(str(row["file"])).name,
        text=ours,
        ms=row.get("ms"),
        confidence=row.get("confidence"),
        columns=tuple(map(str, row.get("columns", ()))),
        rows=tuple(map(tuple, row.get("rows", ()))),
        more=bool(row.get("more")),
        error=str(row.get("error") or row.get("sql_error") or ""),
        same_text=not comparable or same,
        same_rows=not comparable or _result(row) == _result(first),
        difference=difference,
    )


def _result(row: dict[str, Any]) -> Any:
    """What a query gave, in an order that does not matter."""
    return sorted(json.dumps(cells) for cells in row.get("rows", ())), bool(row.get("more")), row.get("sql_error")
