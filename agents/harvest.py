"""Escalations of recorded runs as training rows: what the small model could not answer and the larger one could.

Does: read the stores of graphs, let the task prove each answer, drop repeats, write rows for `factory.finetune --questions`.
Does not: train, or keep an answer that nothing can prove unless told to (`--unproven`).

Run: python -m agents.harvest runs.db [more.db …] --out rows.jsonl --db shop.sqlite [--task sql] [--unproven]
Then: python -m factory.finetune --task sql --db shop.sqlite --questions rows.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.artifact import find_task
from agents.card import CardError
from agents.chat import ModelError
from agents.events import Escalated
from agents.route import GraphError
from agents.stored_events import unpack
from agents.tools import PersonaError

Verify = Callable[[str, str], str]
"""(question, answer) -> "ok" or a kebab-case reason."""


@dataclass
class Harvest:
    """`rows` in the order of the runs; `drops` counts the other escalations by reason, so that both add up."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)


def escalations(store: Path) -> Iterator[Escalated]:
    """Every recorded escalation of a store, thread by thread; what a fork copied counts once. Raises GraphError."""
    if not store.is_file():
        raise GraphError(f"{store}: no such store; give the file that g.run(…, store=…) wrote")
    from agents.checkpoint import Store

    opened = Store(store)
    seen: set[tuple[int, bytes | str | None]] = set()
    try:
        for thread in opened.threads():
            for row in opened.rows(thread):
                found = [event for event in unpack(row.events) if isinstance(event, Escalated)]
                if found and (row.at_ms, row.events) not in seen:
                    seen.add((row.at_ms, row.events))
                    yield from found
    finally:
        opened.close()


def harvest(events: Iterator[Escalated], task: str | None, verify: Verify | None) -> Harvest:
    """Rows of the escalations of `task` (None: of personas without one) whose better answer `verify` calls ok."""
    out = Harvest()
    answers: dict[str, str] = {}
    for event in events:
        reason = _row(event, task, verify, answers, out.rows)
        if reason is not None:
            out.drops[reason] += 1
    return out


def _row(
    event: Escalated, task: str | None, verify: Verify | None, answers: dict[str, str], rows: list[dict[str, Any]]
) -> str | None:
    """Add one row, or say why not."""
    if event.task != task:
        return "other-task"
    if event.better is None or not event.better.strip():
        return "no-answer"
    question = next((message.content for message in reversed(event.messages) if message.role == "user"), "")
    if not question.strip():
        return "no-question"
    key = "\0".join(message.content for message in event.messages)
    if key in answers:
        return "duplicate" if answers[key] == event.better else "duplicate-contradicts"
    if verify is not None:
        verdict = verify(question, event.better)
        if verdict != "ok":
            return verdict
    answers[key] = event.better
    row: dict[str, Any] = {"question": question, "answer": event.better, "source": event.to, "reason": event.reason,
                           "escalated_from": event.persona, "small_answer": event.answer}  # fmt: skip
    if task == "sql":
        row["sql"] = event.better
    if task is None:
        row["prompt"] = [message.model_dump(include={"role", "content"}) for message in event.messages]
        row["completion"] = event.better
    rows.append(row)
    return None


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """All rows or none: a temporary file beside `path`, renamed over it. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=".harvest-", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 2, with one line, for what the user must change."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.harvest", description="Escalations of recorded runs as training rows."
    )
    parser.add_argument("stores", nargs="+", type=Path, help="files that g.run(…, store=…) wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSONL to write")
    parser.add_argument("--task", help="task of the escalated persona; default: sql with --db, else personas without a task")
    parser.add_argument("--db", type=Path, help="SQLite file the questions were about (sql)")
    parser.add_argument(
        "--unproven", action="store_true", help="also keep answers of personas without a task: nothing proves them"
    )
    given = parser.parse_args(argv)
    try:
        found = _harvested(given.stores, given.task or ("sql" if given.db is not None else None), given.db, given.unproven)
        if not given.out.parent.is_dir():
            raise PersonaError(f"--out {given.out}: there is no directory {given.out.parent}; make it, or choose another place")
        dropped = ", ".join(f"{reason} {n}" for reason, n in found.drops.most_common()) or "none"
        total = len(found.rows) + sum(found.drops.values())
        if not found.rows:
            raise PersonaError(f"none of {total} escalations makes a row (dropped: {dropped}); nothing was written")
        write_rows(given.out, found.rows)
    except (PersonaError, GraphError, CardError, ModelError, ValueError, OSError) as error:
        sys.stderr.write(f"harvest: error: {' '.join(str(error).split())}\n")
        return 2
    except Exception as error:  # a task's own error for bad input has one sentence too
        if type(error).__name__ != "TaskError":
            raise
        sys.stderr.write(f"harvest: error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(f"{given.out}: {len(found.rows)} rows from {total} escalations (dropped: {dropped})\n")
    return 0


def _harvested(stores: Sequence[Path], task: str | None, db: Path | None, unproven: bool) -> Harvest:
    verify: Verify | None = None
    if task is not None:
        context = {"db": str(db)} if db is not None else {}
        if task == "sql" and db is None:
            raise PersonaError("--task sql needs --db, the database that proves the answers")
        verify = find_task(task, "--task")(task, None, **context).verify
    elif not unproven:
        raise PersonaError(
            "no --task and no --db: nothing proves these answers; give one, or --unproven to keep them as they are"
        )
    return harvest((event for store in stores for event in escalations(store)), task, verify)


if __name__ == "__main__":
    sys.exit(main())
