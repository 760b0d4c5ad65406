"""The progress view on a terminal and off one, and the words for numbers."""

import io
import itertools

import pytest
from rich.console import Console

from factory import progress
from factory.events import EventLog
from factory.progress import ProgressView, duration, percent, scores_table


def run(console, monkeypatch, step_s=1.0, steps=40):
    clock = iter(itertools.count())
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock) * step_s))
    with ProgressView(console) as view:
        log = EventLog(listener=view)
        with log.stage("train", total=steps, unit="steps") as stage:
            for step in range(steps):
                stage.advance(loss=1 / (step + 1))
            stage.drop("too-long", n=3)
            stage.drop("duplicate", n=12)
            stage.warn("2 rows [b]cut[/b]")
    return console.file.getvalue()


def test_lines_when_piped(monkeypatch):
    text = run(Console(file=io.StringIO(), force_terminal=False, width=60), monkeypatch)
    lines = text.splitlines()
    assert lines[0] == "train: started"
    assert "train: warning: 2 rows [b]cut[/b]" in lines
    assert lines[-1] == "train: dropped 15 (duplicate 12, too-long 3)"
    assert lines[-2].startswith("train: done in ")
    moving = [line for line in lines if line.startswith("train: ") and " of 40 steps" in line]
    assert 8 <= len(moving) <= 20  # of forty events
    assert all("left" in line and "loss 0" in line for line in moving[1:-1])
    assert "\x1b" not in text


def test_lines_of_a_long_stage_grow_rarer(monkeypatch):
    text = run(Console(file=io.StringIO(), force_terminal=False, width=60), monkeypatch, step_s=1.0, steps=4000)
    assert len([line for line in text.splitlines() if " of 4000 steps" in line]) < 150


def test_no_flood_when_events_are_fast(monkeypatch):
    text = run(Console(file=io.StringIO(), force_terminal=False), monkeypatch, step_s=0.001)
    assert len(text.splitlines()) == 4  # start, warning, end, drops


def test_bars_on_a_terminal(monkeypatch):
    text = run(Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None), monkeypatch)
    assert "train" in text
    assert "40/40" in text
    assert "loss 0.025" in text
    assert "dropped 15" in text


def test_a_failed_stage_says_so():
    console = Console(file=io.StringIO(), force_terminal=False)
    with ProgressView(console) as view:
        log = EventLog(listener=view)
        with pytest.raises(RuntimeError), log.stage("ask", total=2, unit="answers", done=1):
            raise RuntimeError("gone")
    assert console.file.getvalue().splitlines() == ["ask: started (1 of 2 answers done)", "ask: stopped in 0 s"]


def test_unknown_events_are_ignored():
    view = ProgressView(Console(file=io.StringIO()))
    view({"kind": "something new", "stage": "x"})
    view({"kind": "progress", "stage": "never started", "done": 1})
    assert view.console.file.getvalue() == ""


def test_scores_table():
    console = Console(file=io.StringIO(), width=120)
    found = {"metric": "execution", "score": 0.4567, "low": 0.4, "high": 0.5, "n": 500, "seconds_per_example": 0.1234}
    console.print(scores_table({"student": found | {"errors_by_kind": {"value": 3, "wrong-column": 9}}, "[teacher]": found}))
    text = console.file.getvalue()
    assert "45.7 %" in text
    assert "40.0 % to 50.0 %" in text
    assert "wrong-column (9)" in text
    assert "[teacher]" in text


def test_words():
    assert (duration(7.6), duration(200), duration(7500)) == ("8 s", "3 min 20 s", "2 h 5 min")
    assert percent(0.45678) == "45.7 %"
