"""Artifacts for the app's tests: a card over a model that answers from a script, and a real small file where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from agents.card import BaseEntry, CalibrationEntry, Card, program
from agents.chat import Request
from app.artifacts import EMBEDDED, Artifact, find_artifacts
from app.wiring import Workshop

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = {
    "how many moons": "SELECT count(*) FROM moon WHERE planet = 'Saturn'",
    "by kind": "SELECT kind, count(*) AS n FROM visit GROUP BY kind ORDER BY n DESC",
    "per year": "SELECT year, count(*) AS visits FROM visit GROUP BY year",
    "drop": "DROP TABLE moon",
    "nobody": "SELECT name FROM moon WHERE discovered_by = 'Nobody At All'",
    "markup": "SELECT '<script>alert(1)</script>' AS \"<b>x</b>\", name FROM planet LIMIT 2",
}


def card(task: str = "sql", **more: Any) -> Card:
    return Card(
        **more,
        name="scripted",
        task=task,
        task_version=1,
        dialect="plain",
        prompt_template="sql/general/plain/1",
        constraint=None,
        parser="sql",
        base=BaseEntry(id="scripted"),
        calibration=tuple(CalibrationEntry(threshold=t, kept=k, accuracy=a) for t, k, a in [(0.0, 1.0, 0.6), (0.9, 0.5, 0.9)]),
        created_by=program(),
    )


def scripted_answer(request: Request) -> str:
    """The statement for the words of a question."""
    asked = request.messages[-1].content.lower()
    return next((sql for words, sql in ANSWERS.items() if words in asked), "SELECT name FROM planet ORDER BY name")


def artifact(runs: Path, name: str = "scripted", task: str = "sql", **more: Any) -> Artifact:
    """An artifact as `find_artifacts` finds it: the card is real, the weights are not."""
    place = runs / name / "model"
    place.mkdir(parents=True, exist_ok=True)
    card(task, **more).save(place)
    (place / "model.safetensors").write_bytes(b"none")
    return next(one for one in find_artifacts(runs, runs / "nothing")[0] if one.run == name)


class ScriptedShop(Workshop):
    """A workshop whose models answer from `ANSWERS`, and are counted when opened."""

    def __init__(self, answer=scripted_answer) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.opened = 0
        self._answer = answer

    def model(self, artifact: Artifact):  # type: ignore[no-untyped-def]
        from agents import Scripted

        def make() -> Scripted:
            self.opened += 1
            return Scripted([self._answer], repeat=True, name=artifact.path.name)

        return self._models.get(artifact.key, make)


def real_artifact(runs: Path) -> Path:
    """A real GGUF file as a run's model: the embedded one, or that of a quickstart of this checkout; skips without one."""
    pytest.importorskip("llama_cpp", reason='needs llama.cpp: pip install "penknife[gguf]"')
    places = [*sorted(EMBEDDED.rglob("*.gguf")), *sorted((ROOT / "runs").glob("*/model/*.gguf"))]
    for path in places:
        from agents.artifact import is_adapter, read_card

        card, _ = read_card(path)
        if card.task == "sql" and not is_adapter(path, card):
            target = runs / "student" / "model" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            return target
    pytest.skip("no trained sql model here: make quickstart, then python -m export.gguf runs/quickstart/model --quant Q8_0")
