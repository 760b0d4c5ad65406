"""Students that learned single tables, scored on a user's file: `python -m factory.evaluate MODEL --db FILE --questions FILE`."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agents.card import BaseEntry, Card, DataEntry, sha256_of_weights
from agents.chat import Request
from agents.models.scripted import Scripted
from agents.persona import Persona
from factory.cli import run_cli
from factory.evaluate import main
from factory.predictions import read_predictions
from factory.settings import StudentSettings
from factory.tasks import get_task
from factory.tasks.runtime import answerer
from factory.tasks.sql.database import Database
from factory.tasks.sql.one_table import one_table
from factory.tasks.task import DataSource, Example

ASKED = {
    "Which river runs through texas?": "SELECT name FROM river WHERE state = 'Texas'",
    "How many rivers are there in new york?": "SELECT count(name) FROM river WHERE state = 'New York'",
    "How long is the NUECES?": "SELECT length_km FROM river WHERE name = 'Nueces'",
    "Which river is the longest of all?": "SELECT name FROM river ORDER BY length_km DESC LIMIT 1",
}
"""The last one is beyond what a form says: it can be asked and scored, and is wrong."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rivers.sqlite"
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE river (name TEXT, state TEXT, length_km INTEGER)")
        rows = [("Rio Grande", "Texas", 3000), ("Nueces", "Texas", 500), ("Hudson", "New York", 507)]
        made.executemany("INSERT INTO river VALUES (?, ?, ?)", rows)
    made.close()
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q, "sql": sql}) + "\n" for q, sql in ASKED.items()))
    return path


def card(**changes: Any) -> Card:
    data = (DataEntry(name="wikisql", split="train", license="BSD-3-Clause", sha256="0" * 64, n=1),)
    values: dict[str, Any] = {"task": "sql", "task_version": 1, "dialect": "compact", "prompt_template": "sql/compact/1",
                              "constraint": "lark", "parser": "sql/compact", "max_tokens": 48,
                              "base": BaseEntry(id="scratch:tiny"), "data": data, "created_by": "test"}  # fmt: skip
    return Card(**{**values, **changes})


@pytest.fixture
def scripted(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Scripted]:
    """Every model opened answers rightly when it is asked as it learned, about the one table."""
    task, database, opened = get_task("sql"), one_table(Database.from_file(file), "river"), []
    right = {}
    for question, sql in list(ASKED.items())[:3]:
        example = Example("q", question, database, database.id)
        prompt = task.messages(example, "compact")[0].content
        right[prompt] = task.encode(example, sql, "compact")

    def open_model(spec: str, **options: Any) -> Scripted:
        opened.append(Scripted([lambda request: answer(request)], name=spec, repeat=True))
        return opened[-1]

    def answer(request: Request) -> str:
        return right.get(request.messages[0].content, "<min><c0>")

    monkeypatch.setattr("agents.models.open_model", open_model)
    return opened


def test_a_student_of_single_tables_is_scored_in_its_form(
    file: Path, questions: Path, tmp_path: Path, scripted: list[Scripted]
) -> None:
    card().save(tmp_path)
    main([str(tmp_path), "--db", str(file), "--questions", str(questions), "--json", str(tmp_path / "s.json")])
    document = json.loads((tmp_path / "s.json").read_text())
    assert (document["n"], document["score"]) == (4, 0.75)
    direct = sqlite3.connect(file)
    for prediction in read_predictions(tmp_path / "s.predictions.jsonl"):
        assert prediction.answer is not None
        same = direct.execute(prediction.answer).fetchall() == direct.execute(ASKED[prediction.question]).fetchall()
        assert same is prediction.correct
    direct.close()


def test_of_several_tables_one_is_named(
    file: Path, questions: Path, tmp_path: Path, scripted: list[Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(file) as made:
        made.execute("CREATE VIEW long AS SELECT * FROM river WHERE length_km > 1000")
    made.close()
    card(prompt_template="sql/single/compact/1", data=()).save(tmp_path)
    where = [str(tmp_path), "--db", str(file), "--questions", str(questions)]
    assert run_cli(main, where) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "rivers: has 2 tables (river, long)" in said[0] and "--table NAME" in said[0]
    assert scripted == []
    main([*where, "--table", "River", "--json", str(tmp_path / "s.json")])
    assert json.loads((tmp_path / "s.json").read_text())["score"] == 0.75
    assert run_cli(main, [str(tmp_path), "--table", "river"]) == 2
    assert "--table 'river' needs --db" in capsys.readouterr().err


def test_random_weights_under_the_grammar_write_sql_that_runs(file: Path, questions: Path, tmp_path: Path) -> None:
    """A real student, untrained, by its directory: persona and evaluation send the same and read the same."""
    from factory.student import prepare_student, resolve_student

    task = get_task("sql")
    examples, _ = task.load(DataSource(db=file, questions=questions, split="all", form="single"))
    plan = resolve_student("scratch:tiny", StudentSettings())
    model_dir = prepare_student(plan, task.corpus(examples, "compact"), task.special_tokens("compact"), tmp_path / "student", 0)
    card(weights_sha256=sha256_of_weights(model_dir)).save(model_dir)
    main([str(model_dir), "--db", str(file), "--questions", str(questions), "--json", str(tmp_path / "s.json")])
    persona = Persona.from_artifact(model_dir, task=answerer, db=file)
    direct = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    predictions = read_predictions(tmp_path / "s.predictions.jsonl")
    for prediction in predictions:
        assert prediction.answer is not None or prediction.cut
        if prediction.answer is not None:
            direct.execute(prediction.answer).fetchall()
            assert persona(prediction.question).text == prediction.answer
    direct.close()
    persona.model.close()
    assert any(prediction.answer is not None for prediction in predictions)
