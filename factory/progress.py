"""Show a run's events: live bars with the time left on a terminal, a line now and then anywhere else.

Does: listen to `EventLog` events and draw them on stderr; print the table of scores.
Does not: write `events.jsonl` or touch stdout while a run goes on, so piped output stays clean.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from factory.events import Event

LINE_EVERY_S = 10.0
SHOWN_NUMBERS = ("loss", "score", "learning_rate", "tokens_per_s", "cost_usd")
"""Numbers of an event that are worth a user's eye, in this order."""


@dataclass
class _Stage:
    name: str
    total: float | None
    unit: str
    started: float
    shown_at: float
    bar: TaskID | None = None
    shown_share: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)


class ProgressView:
    """Listener for `EventLog(listener=view)`; use as a context manager so that the bars end whatever happens.

    On a terminal each stage has a bar with units, time left and its latest numbers. Elsewhere a stage prints its start, its
    end, and between them a line each tenth of the way and each ten seconds, rarer in a stage of hours.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console if console is not None else Console(stderr=True)
        self.live = self.console.is_terminal
        self.stages: dict[str, _Stage] = {}
        self.dropped: dict[str, dict[str, int]] = {}
        self.bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]:<10}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]:<12}"),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.live,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Take one event; kinds that are not known here are ignored."""
        name = str(event.get("stage", ""))
        match event["kind"]:
            case "start":
                self._start(name, event)
            case "progress" if name in self.stages:
                self._progress(self.stages[name], event)
            case "metric" if name in self.stages:
                self._numbers(self.stages[name], event)
            case "drop":
                reasons = self.dropped.setdefault(name, {})
                reasons[event["reason"]] = reasons.get(event["reason"], 0) + int(event.get("n", 1))
            case "warning":
                self._say(f"{name}: warning: {event['message']}", style="yellow")
            case "end" if name in self.stages:
                self._end(self.stages.pop(name), event)

    def _start(self, name: str, event: Event) -> None:
        now = time.monotonic()
        stage = _Stage(name, event.get("total"), event.get("unit") or "", now, now)
        self.stages[name] = stage
        done = event.get("done") or 0
        if self.live:
            stage.bar = self.bars.add_task(name, total=stage.total, completed=done, unit=stage.unit, left="", numbers=Text(""))
        else:
            amount = (
                ""
                if stage.total is None
                else f" ({_amount(done)} of {_amount(stage.total)} {stage.unit} done)".replace(" )", ")")
            )
            self._say(f"{name}: started{amount if done else ''}")

    def _progress(self, stage: _Stage, event: Event) -> None:
        self._numbers(stage, event)
        done, left = event["done"], event.get("left_s")
        stage.total = event.get("total", stage.total)  # training fits its steps to the minutes
        if stage.bar is not None:
            self.bars.update(stage.bar, completed=done, total=stage.total, left="" if left is None else f"{duration(left)} left")
            return
        now = time.monotonic()
        share = done / stage.total if stage.total else 0.0
        pause = max(LINE_EVERY_S, (now - stage.started) / 20)
        if now - stage.shown_at < pause and share - stage.shown_share < 0.1:
            return
        if now - stage.shown_at < 1.0:
            return
        stage.shown_at, stage.shown_share = now, share
        of = "" if stage.total is None else f" of {_amount(stage.total)}"
        parts = [f"{stage.name}: {_amount(done)}{of} {stage.unit}".rstrip()]
        if left is not None:
            parts.append(f"{duration(left)} left")
        if stage.numbers:
            parts.append(_join(stage.numbers))
        self._say(", ".join(parts))

    def _numbers(self, stage: _Stage, event: Event) -> None:
        fresh = {name: event[name] for name in SHOWN_NUMBERS if isinstance(event.get(name), (int, float))}
        if fresh:
            stage.numbers.update(fresh)
            if stage.bar is not None:
                self.bars.update(stage.bar, numbers=Text(_join(stage.numbers)))

    def _end(self, stage: _Stage, event: Event) -> None:
        if stage.bar is not None:
            self.bars.update(stage.bar, left="done" if event.get("ok") else "stopped")
            self.bars.stop_task(stage.bar)
        else:
            parts = [f"{stage.name}: {'done' if event.get('ok') else 'stopped'} in {duration(event.get('seconds') or 0)}"]
            if stage.numbers:
                parts.append(_join(stage.numbers))
            self._say(", ".join(parts))
        if reasons := self.dropped.pop(stage.name, None):
            counts = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items(), key=lambda pair: -pair[1]))
            self._say(f"{stage.name}: dropped {sum(reasons.values())} ({counts})")

    def _say(self, line: str, style: str | None = None) -> None:
        self.console.print(Text(line, style=style or ""), soft_wrap=True)


def scores_table(scores: Mapping[str, Mapping[str, Any]], title: str = "Scores") -> Table:
    """A table of who scored what; `scores` maps a name to an evaluation's summary (`Evaluation.summary()`)."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in ("model", "metric", "score", "95 % interval", "n", "s per question", "most frequent error"):
        table.add_column(column, justify="right" if column in ("score", "n", "s per question") else "left")
    for name, found in scores.items():
        errors = found.get("errors_by_kind") or {}
        worst = max(errors, key=lambda kind: errors[kind], default=None)
        seconds = found.get("seconds_per_example")
        table.add_row(
            Text(name),
            Text(str(found.get("metric", ""))),
            percent(found["score"]),
            f"{percent(found['low'])} to {percent(found['high'])}",
            str(found["n"]),
            "" if seconds is None else f"{seconds:.3f}",
            Text("" if worst is None else f"{worst} ({errors[worst]})"),
        )
    return table


def figure_lines(result: Mapping[str, Any], explained: bool = False) -> list[str]:
    """The task's own figures of an evaluation's summary (`explained`: with how to read them), and what it confuses most, a line
    each."""
    lines = []
    for name, found in (result.get("figures") or {}).items():
        interval = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
        lines.append(
            f"{name}: {found['value']:.3f}{interval}, n {found['n']:,}"
            + (f"; {found['about']}" if explained and found["about"] else "")
        )
    worst = [f"{c['expected']} as {c['answer']} ({c['n']})" for c in (result.get("confusions") or ())[:5]]
    return [*lines, *([f"confused most: {', '.join(worst)}"] if worst else [])]


def percent(share: float) -> str:
    """0.4567 -> "45.7 %"."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _amount(value: float) -> str:
    return f"{value:g}" if value < 1e5 else f"{value:,.0f}"


def _join(numbers: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.4g}' if abs(value) < 1e4 else f'{value:,.0f}'}" for name, value in numbers.items()
    )
