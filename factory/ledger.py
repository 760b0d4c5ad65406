"""Every teacher answer with its verdict in one SQLite file: resume, reuse, audit.

Does: store each paid answer once under a key of what was asked, its verdict per example, and every dropped row by reason.
Does not: ask a model (`generate.py`), judge an answer (`factory.tasks`) or pick rows (`rows.py`).

Every write is its own transaction in WAL mode with synchronous=normal: a kill loses only what was not handed over yet.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.chat import Message, Reply, Sampling, Timings, TokenLogprob, Usage

SCHEMA_VERSION = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, teacher TEXT NOT NULL, revision TEXT NOT NULL, purpose TEXT NOT NULL, example_id TEXT NOT NULL,
  seed INTEGER, text TEXT NOT NULL, stop_reason TEXT NOT NULL, logprobs TEXT, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, reused_tokens INTEGER NOT NULL, cost_usd REAL, timings TEXT NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdicts (
  example_id TEXT NOT NULL, key TEXT NOT NULL, ok INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
  canonical TEXT, vote TEXT, PRIMARY KEY (example_id, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drops (
  stage TEXT NOT NULL, row_id TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (stage, row_id, reason)
) WITHOUT ROWID;
"""
_ANSWER = ("key, teacher, revision, purpose, example_id, seed, text, stop_reason, logprobs, prompt_tokens, completion_tokens, "
           "reused_tokens, cost_usd, timings, created")  # fmt: skip


class LedgerError(Exception):
    """A ledger that cannot be opened or written: one sentence with the file and the next step."""


@dataclass(frozen=True)
class Answer:
    """One stored teacher answer. `cost_usd` None: unknown; `created` in epoch seconds; `example_id` asked first."""

    key: str
    teacher: str
    revision: str
    purpose: str
    example_id: str
    seed: int | None
    text: str
    stop_reason: str = "stop"
    logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    created: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What became of one answer for one example; `canonical` None when it did not decode; `vote` is the task's vote key."""

    example_id: str
    key: str
    ok: bool
    reason: str = "ok"
    detail: str = ""
    canonical: str | None = None
    vote: str | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over stored answers. `unpriced` answers came without a cost and count as 0 dollars."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0


def answer_key(
    teacher: str,
    revision: str,
    messages: Sequence[Message],
    sampling: Sampling,
    purpose: str = "answer",
    example_id: str = "",
) -> str:
    """sha256 (hex) of everything an answer depends on, the seed (in `sampling`) included.

    `example_id` only for a teacher that answers by it (`recorded`); empty, equal prompts of two examples share one answer.
    """
    asked = [teacher, revision, purpose, example_id, sampling.model_dump(), [_turn(message) for message in messages]]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _turn(message: Message) -> object:
    if not message.calls and message.call_id is None:
        return [message.role, message.content]
    return message.model_dump()


class Ledger:
    """One run's ledger. Safe to share between threads; one process writes at a time."""

    def __init__(self, path: Path | str) -> None:
        """Open or create. Raises LedgerError for a newer version, a file that is no ledger, or a place that cannot be written."""
        self.path = Path(path)
        self._lock = threading.RLock()
        self._depth = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10.0)
            with self._said():
                self._prepare()
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be created ({error.strerror}); choose another --out directory") from None
        except sqlite3.OperationalError as error:
            raise LedgerError(f"{self.path}: cannot be opened ({error}); choose another --out directory") from None

    def _prepare(self) -> None:
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            self._db.close()
            raise LedgerError(
                f"{self.path}: ledger version {found} is newer than this program's {SCHEMA_VERSION}; update Penknife, "
                "or choose another --out directory"
            )
        if found == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._db.close()
            raise LedgerError(f"{self.path}: is a SQLite file but not a ledger; choose another --out directory")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=normal")
        if found == 0:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")

    @contextmanager
    def _said(self) -> Iterator[None]:
        """SQLite's complaints as sentences."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            text = str(error)
            if "full" in text or "disk I/O" in text:
                raise LedgerError(f"{self.path}: no space left on the disk; free some and run the same command again") from None
            if "not a database" in text or "malformed" in text:
                raise LedgerError(f"{self.path}: is not a readable ledger ({text}); move it away to start afresh") from None
            if "readonly" in text or "locked" in text:
                raise LedgerError(f"{self.path}: cannot be written ({text}); is another run using this directory?") from None
            raise

    @contextmanager
    def group(self) -> Iterator[None]:
        """Writes inside are one transaction: for answers that cost nothing to ask again. Nests; an exception commits too."""
        with self._lock, self._said():
            if self._depth == 0:
                self._db.execute("BEGIN")
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._db.execute("COMMIT")

    def _write(self, sql: str, values: Sequence[object]) -> None:
        with self._lock, self._said():
            self._db.execute(sql, values)

    def _read(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._said():
            return self._db.execute(sql, values).fetchall()

    # answers

    def record(self, answer: Answer) -> bool:
        """Store one answer; False when its key is already there (the stored one stays)."""
        logprobs = answer.logprobs
        usage = answer.usage
        with self._lock, self._said():
            done = self._db.execute(
                f"INSERT OR IGNORE INTO answers ({_ANSWER}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (answer.key, answer.teacher, answer.revision, answer.purpose, answer.example_id, answer.seed, answer.text,
                 answer.stop_reason, None if logprobs is None else _pack(logprobs), usage.prompt_tokens, usage.completion_tokens,
                 usage.reused_tokens, usage.cost_usd, answer.timings.model_dump_json(), answer.created or time.time()),
            )  # fmt: skip
        return done.rowcount == 1

    def __contains__(self, key: str) -> bool:
        return bool(self._read("SELECT 1 FROM answers WHERE key = ?", (key,)))

    def keys(self, purpose: str | None = None) -> set[str]:
        """Keys of every stored answer (of one purpose)."""
        if purpose is None:
            return {key for (key,) in self._read("SELECT key FROM answers")}
        return {key for (key,) in self._read("SELECT key FROM answers WHERE purpose = ?", (purpose,))}

    def answer(self, key: str) -> Answer | None:
        """The stored answer, or None."""
        rows = self._read(f"SELECT {_ANSWER} FROM answers WHERE key = ?", (key,))
        return _answer(rows[0]) if rows else None

    def answers(self, purpose: str | None = None) -> list[Answer]:
        """Every stored answer (of one purpose), in the order of their keys."""
        where, values = ("", ()) if purpose is None else (" WHERE purpose = ?", (purpose,))
        return [_answer(row) for row in self._read(f"SELECT {_ANSWER} FROM answers{where} ORDER BY key", values)]

    def teachers(self) -> dict[str, str]:
        """Key -> teacher of every stored answer."""
        return dict(self._read("SELECT key, teacher FROM answers"))

    def totals(self) -> Totals:
        """Calls, tokens and dollars of everything stored."""
        row = self._read(
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), "
            "coalesce(sum(cost_usd), 0.0), count(*) - count(cost_usd) FROM answers"
        )[0]
        return Totals(*row)

    # verdicts

    def judge(self, judged: Judged) -> None:
        """Store or replace the verdict of one answer for one example."""
        self._write(
            "INSERT OR REPLACE INTO verdicts (example_id, key, ok, reason, detail, canonical, vote) VALUES (?,?,?,?,?,?,?)",
            (judged.example_id, judged.key, judged.ok, judged.reason, judged.detail, judged.canonical, judged.vote),
        )

    def verdicts(self, teacher: str | None = None, purpose: str = "answer") -> dict[str, list[Judged]]:
        """Example id -> its judged answers (of one teacher and purpose), by seed."""
        where, values = ("", (purpose,)) if teacher is None else (" AND a.teacher = ?", (purpose, teacher))
        rows = self._read(
            "SELECT v.example_id, v.key, v.ok, v.reason, v.detail, v.canonical, v.vote "
            f"FROM verdicts v JOIN answers a USING (key) WHERE a.purpose = ?{where} ORDER BY v.example_id, a.seed, v.key",
            values,
        )
        out: dict[str, list[Judged]] = {}
        for example_id, key, ok, *rest in rows:
            out.setdefault(example_id, []).append(Judged(example_id, key, bool(ok), *rest))
        return out

    def reasons(self, purpose: str = "answer") -> dict[str, int]:
        """Verdict reason -> number of (answer, example) pairs, most first."""
        rows = self._read(
            "SELECT v.reason, count(*) FROM verdicts v JOIN answers a USING (key) WHERE a.purpose = ? "
            "GROUP BY 1 ORDER BY 2 DESC, 1",
            (purpose,),
        )
        return dict(rows)

    # dropped rows

    def drop(self, stage: str, reason: str, row_id: str) -> None:
        """Count one lost row; the same (stage, reason, row) counts once, however often a run is repeated."""
        self._write("INSERT OR IGNORE INTO drops (stage, row_id, reason) VALUES (?,?,?)", (stage, row_id, reason))

    def replace_drops(self, stage: str, drops: Iterable[tuple[str, str]]) -> None:
        """Set a stage's drops to these (reason, row id) pairs, in one transaction: a stage that starts over counts afresh."""
        with self.group():
            self._db.execute("DELETE FROM drops WHERE stage = ?", (stage,))
            self._db.executemany(
                "INSERT OR IGNORE INTO drops (stage, row_id, reason) VALUES (?,?,?)",
                ((stage, row_id, reason) for reason, row_id in drops),
            )

    def drops(self, stage: str | None = None) -> dict[str, dict[str, int]]:
        """Stage -> reason -> rows lost, most first."""
        where, values = ("", ()) if stage is None else (" WHERE stage = ?", (stage,))
        out: dict[str, dict[str, int]] = {}
        sql = f"SELECT stage, reason, count(*) FROM drops{where} GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2"
        for name, reason, n in self._read(sql, values):
            out.setdefault(name, {})[reason] = n
        return out

    def import_answers(self, other: Path) -> int:
        """Copy answers (not verdicts) that another ledger holds under keys not here; returns how many."""
        source = Ledger(other)
        try:
            here = self.keys()
            with self.group():
                return sum(self.record(answer) for answer in source.answers() if answer.key not in here)
        finally:
            source.close()

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def from_reply(
    reply: Reply, key: str, teacher: str, revision: str, purpose: str, seed: int | None, cost_usd: float | None
) -> Answer:
    """A reply as the ledger stores it, under the id of the request that it answers."""
    usage = reply.usage.model_copy(update={"cost_usd": cost_usd})
    return Answer(key, teacher, revision, purpose, reply.id, seed, reply.text, reply.stop_reason, reply.logprobs or None,
                  usage, reply.timings, time.time())  # fmt: skip


def _pack(logprobs: Sequence[TokenLogprob]) -> str:
    return json.dumps([[t.token, t.id, t.logprob, t.top] for t in logprobs], ensure_ascii=False)


def _answer(row: tuple[Any, ...]) -> Answer:
    logprobs, prompt, completion, reused, cost, timings, created = row[8:]
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion, reused_tokens=reused, cost_usd=cost)
    tokens = None if logprobs is None else tuple(_token(*stored) for stored in json.loads(logprobs))
    key, teacher, revision, purpose, example_id, seed, text, stop = row[:8]
    times = Timings.model_validate_json(timings)
    return Answer(key, teacher, revision, purpose, example_id, seed, text, stop, tokens, usage, times, created)


def _token(token: str, token_id: int | None, logprob: float, top: list[list[Any]]) -> TokenLogprob:
    return TokenLogprob(token=token, id=token_id, logprob=logprob, top=tuple((i, text, p) for i, text, p in top))
