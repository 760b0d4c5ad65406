"""The tools task through the two commands, on the smallest student: functions and questions in, a scored persona out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.persona import Persona
from factory.distill import run as distill
from factory.evaluate import evaluate_model
from factory.finetune import run as finetune
from factory.settings import DistillSettings, EvaluateSettings, FinetuneSettings, SettingsError, build
from factory.tasks import get_task
from factory.tasks.runtime import answerer
from factory.tasks.task import DataSource
from tests.factory.tasks.tools.worlds import SPECS


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "functions.json"
    path.write_text(json.dumps(SPECS))
    return path


def labelled(tmp_path: Path, functions: Path, n: int = 60) -> Path:
    made = get_task("tools").drafts(DataSource(functions=str(functions)), n, 0)
    rows = [{"question": e.question, **e.extra["row"], "split": "xdev" if i % 6 == 0 else "train"} for i, e in enumerate(made)]
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_finetune_on_ones_own_functions_then_evaluate_and_ask(tmp_path: Path, functions: Path) -> None:
    asked = labelled(tmp_path, functions)
    settings = FinetuneSettings(
        task="tools", functions=str(functions), questions=asked, epochs=1, checkpoints=1, gate=4, batch=16, out=tmp_path / "run"
    )
    done = finetune(settings)
    assert done is not None
    scores = json.loads((done / "scores.json").read_text())["student"]
    assert scores["n"] == 10 and scores["metric"] == "exact" and scores["metrics"]["valid"] == 1.0
    assert {"exact", "exact_call", "function", "argument_f1"} <= scores["metrics"].keys()
    report = (done / "report.md").read_text()
    assert "```json" in report or "answers" in report
    assert f"--functions {functions}" in report and f"--questions {asked}" in report
    again, _ = evaluate_model(
        EvaluateSettings(model=str(done / "model"), task="tools", functions=str(functions), questions=asked, split="xdev")
    )
    assert again.score == scores["score"] and again.n == 10
    persona = Persona.from_artifact(done / "model", task=answerer, functions=str(functions), today="2020-01-01")
    assert isinstance(json.loads(persona("list mails of March 8th").text), list)


@pytest.mark.slow
def test_distill_from_recorded_answers_and_from_templates(tmp_path: Path, functions: Path) -> None:
    shared = {"task": "tools", "functions": str(functions), "epochs": 1, "checkpoints": 1, "gate": 4, "batch": 16}
    done = distill(DistillSettings(**shared, teacher="recorded", questions=labelled(tmp_path, functions), out=tmp_path / "a"))
    assert done is not None and json.loads((done / "scores.json").read_text())["student"]["n"] == 10
    done = distill(DistillSettings(**shared, teacher="templates", examples=60, out=tmp_path / "b"))
    assert done is not None
    made = [json.loads(line) for line in (done / "questions.jsonl").read_text().splitlines()]
    assert len(made) == 60 and all({"question", "calls", "functions", "today", "split"} <= row.keys() for row in made)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"functions": "f.json"}, "--functions 'f.json' is for the task 'tools', not 'sql'; give --task tools"),
        ({"task": "tools", "functions": "f.json", "dataset": "sgd"}, "give --dataset or --functions, not both"),
        ({"task": "tools", "db": "x.sqlite"}, "the task 'tools' takes --functions"),
        ({"task": "tools", "functions": "f.json", "teacher": "recorded"}, "has no answers for f.json: give --questions"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(values: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(DistillSettings, values, "factory.distill")
    assert words in str(error.value)
