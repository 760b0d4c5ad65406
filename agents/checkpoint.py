"""Threads on disk: one SQLite file of what each step changed, from which a run goes on after a pause, a restart or a kill.

Does: append one row per finished step (changes, where it went, the events worth keeping), read a thread back, fork it, keep the
results of side effects before their step ends, and let one writer at a time have a thread.
Does not: copy whole states, or know graphs: `agents.loop` turns rows into a state again.

Schema 2: a row's id is its thread's number << 32 | its place in the thread; its events are packed. Schema 1 had them as JSON
lines and is read and gone on with; a file written by a newer schema is refused.
WAL with synchronous=normal: a killed process loses nothing that was committed; a power cut may lose the last steps, never the
file. Beside the file lie its journal (`-wal`, about a MB, gone when the file is closed) and `-threads` (locks).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agents import lease
from agents.events import UnknownOutcome
from agents.interrupts import Interrupt
from agents.route import GraphError

SCHEMA = 2
_APPLICATION = 0x506E6B66
_TABLES = """
CREATE TABLE threads (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, graph TEXT NOT NULL, parent TEXT);
CREATE TABLE rows (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, step INTEGER NOT NULL, node TEXT,
                   at_ms INTEGER NOT NULL, data TEXT NOT NULL, events TEXT);
CREATE TABLE memos (thread INTEGER NOT NULL, step INTEGER NOT NULL, key TEXT NOT NULL, result TEXT,
                    PRIMARY KEY (thread, step, key)) WITHOUT ROWID;
"""
_PAGE_BYTES = 2048
"""Every commit writes whole pages to the journal: small ones suit steps of a few hundred bytes, larger ones rows of 20 KB."""
_JOURNAL_PAGES = 512
"""After so many they are written back; that costs a few milliseconds of waiting for the disk."""
_APPEND = "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)"


class StoreError(GraphError):
    """A store cannot be opened or used as wanted: one sentence."""


class BusyError(StoreError):
    """Somebody else is running the thread."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a thread. `kind`: "start" (data: the whole state), "node" (changes, routes), "interrupt", "answer",
    "error" (a step that failed for good, for its events: the thread stands before it).

    `at_ms` is Unix time in milliseconds; `data` is JSON; `events` are packed (`agents.stored_events`) or None.
    """

    seq: int
    kind: str
    step: int
    node: str | None
    at_ms: int
    data: str
    events: bytes | str | None = None


class Store:
    """A file of threads; ":memory:" lives as long as the object. Safe to use from several threads and processes."""

    def __init__(self, path: str | Path) -> None:
        self.path = None if str(path) == ":memory:" else Path(path).absolute()
        if self.path is not None and not self.path.parent.is_dir():
            raise StoreError(f"the store {str(path)!r} cannot be made: there is no directory {str(self.path.parent)!r}")
        self._lock = threading.RLock()
        self._ids: dict[str, int] = {}
        try:
            self._db = sqlite3.connect(
                str(path), timeout=30.0, isolation_level=None, check_same_thread=False, cached_statements=64
            )
        except sqlite3.Error as error:
            raise StoreError(f"the store {str(path)!r} cannot be opened: {error}") from None
        self._close = weakref.finalize(self, self._db.close)
        try:
            self._prepare(str(path))
        except (sqlite3.DatabaseError, StoreError) as error:
            self._close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{str(path)!r} cannot be used as a store: {error}") from None

    def _prepare(self, path: str) -> None:
        db = self._db
        version = db.execute("PRAGMA user_version").fetchone()[0]
        empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not empty or version:
            self._fits(path, version)
        db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(f"PRAGMA journal_size_limit={_PAGE_BYTES * _JOURNAL_PAGES}")
        db.execute(f"PRAGMA wal_autocheckpoint={_JOURNAL_PAGES}")
        if empty:
            db.execute("BEGIN IMMEDIATE")
            with self._transaction():
                if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                    db.execute(f"PRAGMA application_id={_APPLICATION}")
                    db.execute(f"PRAGMA user_version={SCHEMA}")
                    for statement in _TABLES.split(";"):
                        db.execute(statement)
            self._fits(path, db.execute("PRAGMA user_version").fetchone()[0])
        elif version < SCHEMA:
            db.execute(f"PRAGMA user_version={SCHEMA}")  # rows written from here on are packed

    def _fits(self, path: str, version: int) -> None:
        if self._db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise StoreError(f"{path!r} is another program's SQLite file, not a store of threads: give a new file name")
        if version > SCHEMA:
            raise StoreError(
                f"the store {path!r} was written by a newer version (schema {version}; this one reads up to {SCHEMA}): "
                f"update, or give a new file name"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Write the journal back and close the file; calling it twice is harmless."""
        with self._lock:
            self._close()

    def threads(self) -> list[str]:
        """Names of all threads, oldest first."""
        with self._lock:
            return [name for (name,) in self._db.execute("SELECT name FROM threads ORDER BY id")]

    def number(self, thread: str, graph: str | None = None, parent: str | None = None) -> int | None:
        """The thread's number; made when `graph` is given, else None for an unknown thread."""
        with self._lock:
            if thread in self._ids:
                return self._ids[thread]
            if graph is not None:
                self._db.execute("INSERT OR IGNORE INTO threads (name, graph, parent) VALUES (?, ?, ?)", (thread, graph, parent))
            found = self._db.execute("SELECT id FROM threads WHERE name = ?", (thread,)).fetchone()
            if found is None:
                return None
            self._ids[thread] = found[0]
            return int(found[0])

    def graph_of(self, thread: str) -> str | None:
        """Name of the graph that began the thread; None for an unknown thread."""
        with self._lock:
            found = self._db.execute("SELECT graph FROM threads WHERE name = ?", (thread,)).fetchone()
        return None if found is None else str(found[0])

    def rows(self, thread: str, latest: bool = False) -> list[Row]:
        """The thread from its start, or from the start of its latest run; empty for an unknown one."""
        with self._lock:
            number = self.number(thread)
            if number is None:
                return []
            first, last = number << 32, ((number + 1) << 32) - 1
            if latest:
                query = "SELECT id FROM rows WHERE id BETWEEN ? AND ? AND kind = 'start' ORDER BY id DESC LIMIT 1"
                found = self._db.execute(query, (first, last)).fetchone()
                first = first if found is None else found[0]
            query = "SELECT id - ?, kind, step, node, at_ms, data, events FROM rows WHERE id BETWEEN ? AND ? ORDER BY id"
            return [Row(*row) for row in self._db.execute(query, (number << 32, first, last))]

    def append(self, number: int, seq: int, kind: str, step: int, node: str | None, data: str, events: bytes | None) -> None:
        """Write one row and commit it. Raises StoreError when another writer was there, or the disk is full."""
        try:
            with self._lock:
                self._db.execute(_APPEND, ((number << 32) | seq, kind, step, node, int(time.time() * 1000), data, events))
        except sqlite3.IntegrityError:
            raise StoreError(f"thread number {number} was written by another run meanwhile: resume it") from None
        except sqlite3.Error as error:
            raise StoreError(f"step {step} could not be written to {self._shown}: {error}") from None

    def fork(self, thread: str, into: str, step: int) -> None:
        """Copy a thread's rows up to `step` into a new one; side effects of its later steps are its own."""
        with self._lock:
            source = self.number(thread)
            if self.number(into) is not None:
                raise StoreError(f"thread {into!r} exists already in {self._shown}: fork into another name")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                with self._transaction():
                    target = self.number(into, self.graph_of(thread) or "", thread)
                    assert source is not None and target is not None
                    first = source << 32
                    self._db.execute(
                        "INSERT INTO rows SELECT id + ?, kind, step, node, at_ms, data, events FROM rows "
                        "WHERE id BETWEEN ? AND ? AND step <= ? AND (kind <> 'start' OR step < ? OR id = ?) ORDER BY id",
                        ((target - source) << 32, first, ((source + 1) << 32) - 1, step, step, first),
                    )
            except BaseException:
                self._ids.pop(into, None)
                raise

    def once(self, thread: str, step: int, key: str, compute: Callable[[], str]) -> str:
        """`agents.events.memo` for this thread: the claim is committed before `compute` runs, the result before it is returned.

        Raises UnknownOutcome when the claim is there without a result, or the first try raised: it is not run twice. A `compute`
        that waits for a person (`interrupt`) runs again from its start once there is an answer.
        """
        number = self.number(thread, "")
        with self._lock:
            claim = "INSERT OR IGNORE INTO memos VALUES (?, ?, ?, NULL)"
            fresh = self._db.execute(claim, (number, step, key)).rowcount == 1
            if not fresh:
                query = "SELECT result FROM memos WHERE thread = ? AND step = ? AND key = ?"
                (kept,) = self._db.execute(query, (number, step, key)).fetchone()
                return recalled(kept, key)
        try:
            result = compute()
        except Interrupt:
            with self._lock:
                self._db.execute("DELETE FROM memos WHERE thread = ? AND step = ? AND key = ?", (number, step, key))
            raise
        except BaseException as error:
            self._keep(number, step, key, f"!{type(error).__name__}: {error}")
            raise
        self._keep(number, step, key, "=" + result)
        return result

    def _keep(self, number: int | None, step: int, key: str, result: str) -> None:
        with self._lock:
            update = "UPDATE memos SET result = ? WHERE thread = ? AND step = ? AND key = ?"
            self._db.execute(update, (result, number, step, key))

    def claim_thread(self, thread: str, graph: str) -> int:
        """The thread's number, now ours alone to write. Raises BusyError when somebody else has it."""
        number = self.number(thread, graph)
        assert number is not None
        if not lease.take(self._lease_path, number, f"memory-{id(self)}"):
            raise BusyError(f"thread {thread!r} in {self._shown} is being run elsewhere: wait for it, or use another thread name")
        return number

    def release_thread(self, number: int) -> None:
        """Let the thread go."""
        lease.release(self._lease_path, number, f"memory-{id(self)}")

    @property
    def _lease_path(self) -> Path | None:
        return None if self.path is None else self.path.with_name(self.path.name + "-threads")

    @property
    def _shown(self) -> str:
        return "memory" if self.path is None else repr(str(self.path))


def recalled(kept: str | None, key: str) -> str:
    """A memoized result. Raises UnknownOutcome for one that never came, or that was an error."""
    if kept is None:
        raise UnknownOutcome(f"{key}: it was begun before the run stopped and its result is unknown; it is not run a second time")
    if kept.startswith("!"):
        raise UnknownOutcome(f"{key}: it failed before with {kept[1:]}, and is not run a second time in the same step")
    return kept[1:]


class Memory:
    """Memos of a run without a store: they outlive retries of a node, not the process."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int, str], str | None] = {}
        self._lock = threading.Lock()

    def once(self, thread: str, step: int, key: str, compute: Callable[[], str]) -> str:
        place = (thread, step, key)
        with self._lock:
            if place in self._kept:
                return recalled(self._kept[place], key)
            self._kept[place] = None
        try:
            self._kept[place] = "=" + (result := compute())
        except Interrupt:
            del self._kept[place]
            raise
        except BaseException as error:
            self._kept[place] = f"!{type(error).__name__}: {error}"
            raise
        return result
