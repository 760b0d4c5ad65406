"""Evaluation from end to end on real parts: SQLite, an endpoint that fails at times, and a transformers model."""

import json
import sqlite3
import subprocess
import sys

import pytest

from factory.evaluate import evaluate, main
from factory.predictions import read_predictions
from factory.settings import StudentSettings
from factory.tasks import get_task
from factory.tasks.task import DataSource
from tests.openai_server import Faults, OpenAIServer

QUESTIONS = {
    "How many rivers are there?": "SELECT COUNT(*) FROM river",
    "Which rivers run through Texas?": "SELECT name FROM river WHERE state = 'texas'",
    "How long is the Nueces?": "SELECT length FROM river WHERE name = 'nueces'",
    "Which river is longest?": "SELECT name FROM river ORDER BY length DESC LIMIT 1",
}


@pytest.fixture
def arguments(tmp_path):
    database, questions = tmp_path / "rivers.sqlite", tmp_path / "questions.jsonl"
    with sqlite3.connect(database) as db:
        db.execute("CREATE TABLE river (name TEXT, state TEXT, length INTEGER)")
        rows = [("rio grande", "texas", 3000), ("nueces", "texas", 500), ("hudson", "new york", 507)]
        db.executemany("INSERT INTO river VALUES (?, ?, ?)", rows)
    db.close()
    questions.write_text("".join(json.dumps({"question": q, "sql": sql}) + "\n" for q, sql in QUESTIONS.items()))
    return ["--db", str(database), "--questions", str(questions)]


def answer(body):
    prompt = body["messages"][-1]["content"]
    question = next(q for q in QUESTIONS if q in prompt)
    return {
        "How many rivers are there?": "```sql\nSELECT COUNT(*) FROM river\n```",
        "Which river is longest?": "SELECT name FROM river ORDER BY length ASC LIMIT 1",
        "How long is the Nueces?": "I do not know.",
    }.get(question, QUESTIONS[question])


def test_an_endpoint_that_fails_at_times_is_scored_all_the_same(arguments, tmp_path):
    with OpenAIServer(answer, faults=Faults(script=("rate_limit", "truncated"))) as server:
        command = [sys.executable, "-m", "factory.evaluate", server.spec, *arguments, "--json", tmp_path / "s.json"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "s.json").read_text())
    assert (document["n"], document["score"], document["dataset"]) == (4, 0.5, "rivers")
    assert document["model_bytes"] is None
    # The server takes no grammar, so the result must not claim one.
    assert (document["constrained"], document["decoding"]) == (False, "greedy, unconstrained")
    assert "without their grammar" in done.stderr
    wrong = {p.question: p.error for p in read_predictions(tmp_path / "s.predictions.jsonl") if not p.correct}
    assert set(wrong) == {"Which river is longest?", "How long is the Nueces?"}
    assert sum(document["errors_by_kind"].values()) == 2
    assert set(server.injected) == {"rate_limit", "truncated"}


def test_an_endpoint_that_is_not_there_is_one_line_and_exit_2(arguments, tmp_path, monkeypatch, capsys):
    from agents.models.http import HttpModel, HttpOptions
    from factory.cli import run_cli

    impatient = HttpOptions(retries=0, timeout_s=1.0)
    monkeypatch.setattr("agents.models.open_model", lambda spec, **options: HttpModel(spec, impatient))
    assert run_cli(main, ["http://127.0.0.1:9/v1#m", *arguments, "--json", str(tmp_path / "s.json")]) == 2
    assert "not one of the first 4 questions got an answer" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "s.json").exists()


@pytest.fixture
def data_dir(tmp_path):
    """Two questions in WikiSQL's own layout, as a split of a new name."""
    directory = tmp_path / "wikisql"
    directory.mkdir()
    table = {
        "id": "1-1",
        "header": ["River", "State", "Length"],
        "rows": [["Rio Grande", "Texas", "3000"], ["Hudson", "New York", "507"]],
    }
    questions = [
        {"table_id": "1-1", "question": "Which river is in Texas?", "sql": {"sel": 0, "agg": 0, "conds": [[1, 0, "Texas"]]}},
        {"table_id": "1-1", "question": "How many have a length of 507?", "sql": {"sel": 0, "agg": 3, "conds": [[2, 0, "507"]]}},
    ]
    (directory / "tables_new.jsonl").write_text(json.dumps(table) + "\n")
    (directory / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return directory


def test_a_random_student_is_scored_from_its_directory(data_dir, tmp_path, capsys):
    from agents.card import BaseEntry, Card, sha256_of_weights
    from factory.student import prepare_student, resolve_student

    task = get_task("sql")
    examples, _ = task.load(DataSource(dataset="wikisql", data_dir=data_dir, split="new"))
    plan = resolve_student("scratch:tiny", StudentSettings())
    corpus, special = task.corpus(examples, "compact"), task.special_tokens("compact")
    model_dir = prepare_student(plan, corpus, special, tmp_path / "student", 0)
    Card(
        task="sql",
        task_version=task.version,
        dialect="compact",
        prompt_template="sql/compact/1",
        constraint="lark",
        parser="sql/compact",
        max_tokens=48,
        base=BaseEntry(id="scratch:tiny"),
        weights_sha256=sha256_of_weights(model_dir),
        created_by="test",
    ).save(model_dir)
    where = ["--dataset", "wikisql", "--data-dir", str(data_dir), "--split", "new"]
    main([str(model_dir), *where, "--json", str(tmp_path / "s.json"), "--execution-guided", "2"])
    document = json.loads((tmp_path / "s.json").read_text())
    assert (document["n"], document["dataset"], document["split"]) == (2, "wikisql", "new")
    assert document["decoding"] == "execution-guided, 2 candidates, constrained"
    assert document["model_bytes"] == (model_dir / "model.safetensors").stat().st_size
    predictions = read_predictions(tmp_path / "s.predictions.jsonl")
    # Under the grammar even random weights write SQL over this schema, or run into the limit: nothing else can go wrong.
    assert all(p.answer is not None or p.cut for p in predictions)
    assert all(p.confidence is not None and 0 <= p.confidence <= 1 for p in predictions)
    assert "student" in capsys.readouterr().out


def test_the_reference_scores_everything_in_both_dialects(arguments):
    from agents.models.scripted import Scripted

    task = get_task("sql")
    examples, _ = task.load(DataSource(db=arguments[1], questions=arguments[3], split="all"))
    by_id = {example.id: example for example in examples}
    for dialect in ("plain", "compact"):
        oracle = Scripted([lambda r, d=dialect: task.encode(by_id[r.id], by_id[r.id].reference, d)], repeat=True)
        assert evaluate(task, oracle, examples, dialect, constrained=False).score == 1.0
