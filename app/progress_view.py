"""A run's `events.jsonl` as something to look at: stages, time left, loss and score by step, losses of rows by reason.

Does: read only what is new since the last look, survive torn lines and files that begin anew, thin long series out.
Does not: draw, or know whether a process works on the run (`app.run_files`, `app.jobs`).

    watch = RunWatch(Path("runs/sql/events.jsonl"))
    progress = watch.update()
    progress.current, progress.losses
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from factory.events import Event
from factory.progress import SHOWN_NUMBERS, duration, percent

Status = Literal["running", "done", "stopped"]
POINTS = 600
"""Most points of one series: more cannot be told apart on a screen."""
WARNINGS = 20
CHUNK = 8 << 20
"""Bytes read at one look: a log of hours is caught up with in several, and no look takes long."""
AFTER = {
    "data": "student", "student": "gate", "generate": "rows", "rows": "train", "store probabilities": "train",
    "train": "merge, final score, report", "merge": "final score, report", "score student": "report",
}  # fmt: skip
"""Stage -> what comes next, in words; a stage that is not here says nothing of it."""

Point = tuple[float, float]


@dataclass
class StageView:
    """One stage as it stands."""

    name: str
    total: float | None = None
    unit: str = ""
    done: float = 0
    left_s: float | None = None
    status: Status = "running"
    seconds: float = 0.0
    """of all its starts that ended"""
    numbers: dict[str, float] = field(default_factory=dict)
    drops: Counter[str] = field(default_factory=Counter)
    error: str = ""

    @property
    def share(self) -> float | None:
        """Done of total, 0-1; None where there is no total."""
        if self.status == "done":
            return 1.0
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None

    def sentence(self) -> str:
        """ "train: 40 of 316 steps, 51 s left, loss 1.24"."""
        if self.status == "running":
            parts = [
                f"{self.name}: {_amount(self.done)} of {_amount(self.total)} {self.unit}".rstrip() if self.total else self.name
            ]
            if self.left_s is not None:
                parts.append(f"{duration(self.left_s)} left")
        else:
            parts = [f"{self.name}: {self.status} in {duration(self.seconds)}"]
        return ", ".join(parts + [f"{name.replace('_', ' ')} {_number(name, value)}" for name, value in self.numbers.items()])


@dataclass
class Progress:
    """Everything an event log says so far."""

    stages: dict[str, StageView] = field(default_factory=dict)
    """in the order in which they began last"""
    warnings: list[str] = field(default_factory=list)
    updated: float | None = None
    """time of the last event, epoch seconds"""
    behind: bool = False
    """whether there is more of the log than was read so far"""
    _losses: dict[float, float] = field(default_factory=dict)
    _scores: dict[float, float] = field(default_factory=dict)
    rows_kept: int | None = None

    @property
    def current(self) -> StageView | None:
        """The stage that runs, if one does."""
        return next((stage for stage in reversed(self.stages.values()) if stage.status == "running"), None)

    @property
    def losses(self) -> list[Point]:
        """(optimizer step, training loss)."""
        return thinned(sorted(self._losses.items()))

    @property
    def scores(self) -> list[Point]:
        """(optimizer step, share of validation questions right)."""
        return sorted(self._scores.items())

    @property
    def drops(self) -> dict[str, dict[str, int]]:
        """Stage -> reason -> rows lost, most first; stages that lost none are left out."""
        return {name: dict(stage.drops.most_common()) for name, stage in self.stages.items() if stage.drops}

    @property
    def begun(self) -> bool:
        return bool(self.stages)

    def headline(self) -> str:
        """What goes on now, and what comes after it."""
        stage = self.current
        if stage is None:
            return ""
        after = AFTER.get(stage.name)
        return stage.sentence() + (f"; then: {after}" if after else "")

    def table(self) -> list[dict[str, str]]:
        """One row a stage, in words."""
        return [
            {
                "stage": stage.name,
                "state": stage.status,
                "done": "" if not stage.done and not stage.total else f"{_amount(stage.done)} {stage.unit}".strip(),
                "time": duration(stage.seconds) if stage.status != "running" else "",
                "result": ", ".join(f"{name.replace('_', ' ')} {_number(name, value)}" for name, value in stage.numbers.items()),
            }
            for stage in self.stages.values()
        ]

    def take(self, event: Event) -> None:
        """Add one event; kinds and fields that are not known are passed over."""
        kind, name = event.get("kind"), str(event.get("stage", ""))
        if isinstance(event.get("time"), int | float):
            self.updated = float(event["time"])
        if kind == "start":
            self._start(name, event)
        elif name in self.stages:
            stage = self.stages[name]
            match kind:
                case "progress":
                    stage.done = _float(event.get("done"), stage.done)
                    stage.total = _float(event.get("total"), stage.total)
                    stage.left_s = _float(event.get("left_s"), None)
                    self._numbers(stage, event)
                case "metric":
                    self._numbers(stage, event)
                case "drop":
                    stage.drops[str(event.get("reason"))] += int(_float(event.get("n"), 1))
                case "warning":
                    text = f"{name}: {event.get('message')}"
                    if text not in self.warnings and len(self.warnings) < WARNINGS:
                        self.warnings.append(text)
                case "end":
                    stage.status = "done" if event.get("ok") else "stopped"
                    stage.seconds += _float(event.get("seconds"), 0.0)
                    stage.error = str(event.get("error") or "")
                    stage.left_s = None

    def _start(self, name: str, event: Event) -> None:
        for stage in self.stages.values():
            if stage.status == "running":  # killed: nobody wrote its end
                stage.status = "stopped"
        before = self.stages.pop(name, None)
        self.stages[name] = StageView(name, _float(event.get("total"), None), str(event.get("unit") or ""),
                                      _float(event.get("done"), 0.0), seconds=before.seconds if before else 0.0)  # fmt: skip

    def _numbers(self, stage: StageView, event: Event) -> None:
        for number in SHOWN_NUMBERS:
            value = event.get(number)
            if isinstance(value, int | float) and not isinstance(value, bool):
                stage.numbers[number] = float(value)
        if stage.name == "train":
            step = _float(event.get("step", event.get("done")), None)
            for number, series in (("loss", self._losses), ("score", self._scores)):
                value = _float(event.get(number), None)
                if step is not None and value is not None:
                    series[step] = value
        if stage.name == "rows" and (rows := _float(event.get("rows"), None)) is not None:
            self.rows_kept = int(rows)


class RunWatch:
    """Follows one log. `update` is cheap when nothing is new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.progress = Progress()
        self._at, self._file_id = 0, 0

    def update(self) -> Progress:
        """What the log says by now; an empty Progress while there is none."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file_id or status.st_size < self._at:
                    self.progress, self._at, self._file_id = Progress(), 0, status.st_ino
                file.seek(self._at)
                data = file.read(CHUNK)
        except OSError:
            return self.progress
        whole = data.rfind(b"\n") + 1
        self._at += whole
        for line in data[:whole].splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self.progress.take(event)
        self.progress.behind = self._at < status.st_size and whole > 0
        return self.progress


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """Evenly chosen points, the last one among them."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def line_chart(points: Sequence[Point], title: str, *, share: bool = False, dots: bool = False) -> dict[str, Any]:
    """A Vega-Lite picture of a series over optimizer steps; `share`: values are 0-1 and shown in per cent."""
    encoding: Mapping[str, Any] = {
        "x": {"field": "step", "type": "quantitative", "title": "optimizer step", "axis": {"tickMinStep": 1}},
        "y": {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": share},
              "axis": {"format": ".0%"} if share else {}},
        "tooltip": [{"field": "step", "title": "step"}, {"field": "value", "title": title, "format": ".1%" if share else ".4f"}],
    }  # fmt: skip
    return {
        "data": {"values": [{"step": step, "value": value} for step, value in points]},
        "mark": {"type": "line", "point": dots, "interpolate": "linear"},
        "encoding": encoding,
        "height": 220,
    }


def _number(name: str, value: float) -> str:
    if name == "score":
        return percent(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _amount(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _float(value: Any, otherwise: Any) -> Any:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise
