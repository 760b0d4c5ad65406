"""What a run left behind, gathered from the files of its directory for the report.

Does: read config, card, scores, predictions, events, ledger and state, each when it is there, and list what is not.
Does not: draw, write, or judge (`factory.report`, `factory.plots`).
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agents.card import FILE_NAME, Card, CardError
from factory import events as event_file
from factory.events import Event
from factory.ledger import Ledger, LedgerError, Totals
from factory.predictions import Prediction, read_predictions

T = TypeVar("T")

WHO = ("teacher", "untrained", "student")


@dataclass
class RunFacts:
    """Everything the report tells. Absent parts are empty, and named in `missing` with the reason."""

    run_dir: Path
    missing: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    card: Card | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """name -> `Evaluation.summary()`, with "parameters" and "model_bytes" where known"""
    predictions: list[Prediction] = field(default_factory=list)
    """the student's, on the split of its score"""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """a few answered questions as `Task.show` gives them, with "correct" """
    state: dict[str, Any] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)
    """(optimizer step, training loss)"""
    validation_losses: list[tuple[float, float]] = field(default_factory=list)
    step_scores: list[tuple[float, float, float | None, float | None]] = field(default_factory=list)
    """(optimizer step, score, low, high) of the checkpoints"""
    drops: dict[str, dict[str, int]] = field(default_factory=dict)
    """stage -> reason -> rows lost"""
    seconds: dict[str, float] = field(default_factory=dict)
    """stage -> wall-clock seconds, all starts of the run together"""
    warnings: list[str] = field(default_factory=list)
    totals: Totals | None = None

    @property
    def data(self) -> list[dict[str, Any]]:
        """The data sets read, as dicts of name, split, license, source, sha256, n, skipped."""
        known = self.state.get("data")
        if isinstance(known, list):
            return known
        return [entry.model_dump() for entry in self.card.data] if self.card is not None else []


def gather(run_dir: Path) -> RunFacts:
    """The facts of a run; a part that is absent or damaged is named in `missing`, never raised."""
    facts = RunFacts(run_dir)

    def part(name: str, read: Callable[[Path], T], empty: T) -> T:
        path = run_dir / name
        if not path.exists():
            facts.missing[name] = "not there"
            return empty
        try:
            return read(path)
        except (ValueError, OSError, CardError, LedgerError) as error:
            facts.missing[name] = f"cannot be read: {' '.join(str(error).split())[:200]}"
            return empty

    facts.config = part("config.toml", lambda path: tomllib.loads(path.read_text(encoding="utf-8")), {})
    model_card = f"model/{FILE_NAME}"
    name = model_card if (run_dir / model_card).exists() else FILE_NAME
    facts.card = part(name, lambda path: Card.load(path, check_weights=False), None)
    facts.scores = part("scores.json", _scores, {})
    facts.predictions = part("predictions.jsonl", read_predictions, [])
    for optional, empty in (("answers.json", []), ("state.json", {})):
        if (run_dir / optional).exists():
            setattr(facts, optional.removesuffix(".json"), part(optional, _json, empty))
    no_events: list[Event] = []
    _read_events(facts, part("events.jsonl", event_file.read, no_events))
    nothing: tuple[dict[str, dict[str, int]], Totals | None] = ({}, None)
    ledger_drops, facts.totals = part("ledger.sqlite", _ledger, nothing)
    facts.drops = {**facts.drops, **ledger_drops}
    return facts


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _scores(path: Path) -> dict[str, dict[str, Any]]:
    found = _json(path)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    scores = {name: dict(entry) for name, entry in found.items() if isinstance(entry, dict) and "score" in entry}
    first = [name for name in WHO if name in scores]
    return {name: scores[name] for name in [*first, *(name for name in scores if name not in first)]}


def _ledger(path: Path) -> tuple[dict[str, dict[str, int]], Totals | None]:
    with Ledger(path) as ledger:
        return ledger.drops(), ledger.totals()


def _read_events(facts: RunFacts, log: list[Event]) -> None:
    by_step: dict[str, dict[float, Any]] = {"loss": {}, "validation_loss": {}, "score": {}}
    drops: dict[str, Counter[str]] = {}
    for event in log:
        stage, kind = str(event.get("stage", "")), event.get("kind")
        if kind == "start":
            drops.pop(stage, None)  # a stage that starts over counts its losses afresh
        elif kind == "end":
            facts.seconds[stage] = facts.seconds.get(stage, 0.0) + float(event.get("seconds") or 0.0)
        elif kind == "drop":
            drops.setdefault(stage, Counter())[str(event.get("reason"))] += int(event.get("n", 1))
        elif kind == "warning":
            text = f"{stage}: {event.get('message')}"
            if text not in facts.warnings:
                facts.warnings.append(text)
        if kind not in ("metric", "progress"):
            continue
        step = event.get("step", event.get("done"))
        for name, found in by_step.items():
            value = event.get(name, event.get("eval_loss") if name == "validation_loss" else None)
            # Only training counts in steps; other stages' scores are single numbers.
            if isinstance(value, (int, float)) and isinstance(step, (int, float)) and ("step" in event or name != "score"):
                found[step] = (value, event.get("low"), event.get("high"))  # a step taken again replaces the first
    facts.drops = {stage: dict(counts.most_common()) for stage, counts in drops.items()}
    facts.losses = [(step, value[0]) for step, value in sorted(by_step["loss"].items())]
    facts.validation_losses = [(step, value[0]) for step, value in sorted(by_step["validation_loss"].items())]
    facts.step_scores = [(step, *value) for step, value in sorted(by_step["score"].items())]
