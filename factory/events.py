"""Progress and metrics of a run, one JSON line each in `events.jsonl`.

Does: write typed events, keep stage progress with time left, hand each event to a listener (the CLI's progress bar).
Does not: print. `factory.progress` draws; the report and the app read the file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Stage:
    """One stage's progress: `advance` counts units, `metric` records numbers, `drop` and `warn` count losses."""

    def __init__(self, log: EventLog, name: str, total: float | None, unit: str, done: float) -> None:
        self.log, self.name, self.total, self.unit = log, name, total, unit
        self.done, self.first = done, done
        self.started = time.monotonic()
        self._last = 0.0

    def advance(self, n: float = 1, **numbers: Any) -> None:
        """Count `n` units done; written at most ten times a second, and always when numbers are given or the stage is full."""
        self.done += n
        now = time.monotonic()
        if numbers or now - self._last > 0.1 or self.done == self.total:
            self._last = now
            self.log.emit("progress", stage=self.name, done=self.done, total=self.total, unit=self.unit,
                          left_s=self.left_s(), **numbers)  # fmt: skip

    def left_s(self) -> float | None:
        """Seconds left by the mean rate so far in this process; None while unknown."""
        fresh = self.done - self.first
        if self.total is None or fresh <= 0:
            return None
        return round((self.total - self.done) * (time.monotonic() - self.started) / fresh, 1)

    def metric(self, **numbers: Any) -> None:
        self.log.emit("metric", stage=self.name, **numbers)

    def drop(self, reason: str, n: int = 1, **details: Any) -> None:
        self.log.emit("drop", stage=self.name, reason=reason, n=n, **details)

    def warn(self, message: str) -> None:
        self.log.emit("warning", stage=self.name, message=message)


class EventLog:
    """Append-only log; `path` None keeps events in memory only (`events`). After a kill, `read` skips a torn last line."""

    def __init__(self, path: Path | None = None, listener: Listener | None = None) -> None:
        self.path, self.listener = path, listener
        self.events: list[Event] = []
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
            self._file = path.open("a", encoding="utf-8")
            if torn:
                self._file.write("\n")

    def emit(self, kind: str, **fields: Any) -> Event:
        """Write one event {"time": seconds since the epoch, "kind": kind, ...} and hand it to the listener."""
        event: Event = {"time": round(time.time(), 3), "kind": kind, **fields}
        if self._file is not None:
            self._file.write(json.dumps(event, default=str, ensure_ascii=False) + "\n")
            self._file.flush()
        else:
            self.events.append(event)
        if self.listener is not None:
            self.listener(event)
        return event

    @contextmanager
    def stage(self, name: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Stage]:
        """A stage with a start and an end event; an exception is recorded as its end and goes on up."""
        self.emit("start", stage=name, total=total, unit=unit, done=done)
        stage = Stage(self, name, total, unit, done)
        try:
            yield stage
        except BaseException as error:
            self.emit("end", stage=name, ok=False, seconds=round(time.monotonic() - stage.started, 3), error=repr(error))
            raise
        self.emit("end", stage=name, ok=True, seconds=round(time.monotonic() - stage.started, 3), done=stage.done)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[Event]:
    """Every whole event of a log; lines torn by a kill are skipped."""
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events
