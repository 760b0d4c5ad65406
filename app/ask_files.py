"""The same question to several files: each answers as its card says, its SQL is run read-only, one JSON line a file.

Does: open each artifact in turn, ask it, run what it wrote on the database, go on after a file that fails.
Does not: keep models open (each is closed before the next is opened), or compare the answers (`app.side_by_side`).

    python -m app.ask_files FILE… --question "…" [--db FILE.sqlite] [--table NAME] --out answers.jsonl
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from factory.settings import SettingsError, parse

ROWS = 20
"""Rows of a result that are kept."""
SECONDS = 5.0
"""Longest that one answer's query may run."""


class AskSettings(BaseModel):
    """`python -m app.ask_files FILE…`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    files: tuple[Path, ...] = ()
    """.gguf files, ONNX directories or model directories, each with its card; ADAPTER.gguf@BASE.gguf for an adapter"""
    question: str = ""
    """what each of them is asked"""
    db: Path | None = None
    """SQLite file the question is about (sql)"""
    table: str | None = None
    """its one table that is meant, for models that learned questions about one table"""
    out: Path | None = None
    """file for the answers, one JSON line each; default: printed"""


def ask(file: Path, settings: AskSettings) -> dict[str, Any]:
    """One file's answer: "file", "answer", "confidence", "ms", "columns", "rows", "more"; or "file" and "error", a sentence."""
    from agents import Persona
    from agents.chat import ModelError
    from agents.tools import PersonaError
    from factory.cli import message_for

    file, base = divided(file)
    found: dict[str, Any] = {"file": str(file)}
    context: dict[str, Any] = {"db": str(settings.db)} if settings.db is not None else {}
    if settings.table is not None:
        context["table"] = settings.table
    begun = time.monotonic()
    try:
        if base is not None:
            from agents.models import open_model

            context["model"] = open_model(f"gguf:{base}")
        persona = Persona.from_artifact(file, **context)
        found["load_ms"] = round(1000 * (time.monotonic() - begun))
        with closing(persona.model):
            result = persona(settings.question)
    except Exception as error:
        said = " ".join(str(error).split()) if isinstance(error, PersonaError | ModelError) else message_for(error)
        if said is None:
            raise
        return {**found, "error": said}
    found |= {"answer": result.text, "ms": round(result.ms), "confidence": result.confidence}
    if settings.db is not None:
        found |= run_sql(settings.db, result.text)
    return found


def divided(file: Path) -> tuple[Path, Path | None]:
    """(file, None), or (adapter, the base it is laid on)."""
    adapter, mark, base = str(file).rpartition("@")
    return (Path(adapter), Path(base)) if mark and not file.exists() else (file, None)


def run_sql(db: Path, sql: str) -> dict[str, Any]:
    """ "columns", "rows" (the first ones) and "more" of a statement, or "sql_error", a sentence."""
    import sqlite3

    from agents.sandbox import DatabaseFileError, ExecError, Limits, connect_read_only, read_only_uri, sandbox_over

    try:
        with closing(sandbox_over(connect_read_only(read_only_uri(db)))) as sandbox:
            result = sandbox.run(sql, Limits(seconds=SECONDS, rows=ROWS, first=True))
    except ExecError as error:
        return {"sql_error": error.detail}
    except (DatabaseFileError, sqlite3.Error) as error:
        return {"sql_error": str(error)}
    rows = [[cell.hex() if isinstance(cell, bytes) else cell for cell in row] for row in result.rows]
    return {"columns": list(result.columns), "rows": rows, "more": result.more}


def main(argv: Sequence[str] | None = None) -> None:
    """Ask every file and write its line at once, so that a reader sees the first answer while the second model loads."""
    settings = parse(AskSettings, argv, "python -m app.ask_files", "Ask several files the same question.")
    if not settings.files:
        raise SettingsError("give at least one file to ask; they are .gguf files, ONNX directories or model directories")
    if not settings.question.strip():
        raise SettingsError("--question is empty; give the question to ask")
    if settings.out is None:
        for file in settings.files:
            sys.stdout.write(json.dumps(ask(file, settings), ensure_ascii=False) + "\n")
        return
    with settings.out.open("a", encoding="utf-8") as out:
        for file in settings.files:
            out.write(json.dumps(ask(file, settings), ensure_ascii=False) + "\n")
            out.flush()


if __name__ == "__main__":
    from factory.cli import run_cli

    raise SystemExit(run_cli(main))
