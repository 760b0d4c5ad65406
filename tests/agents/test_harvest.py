"""Escalations of a recorded run become rows that fine-tuning reads, once the task has proved them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agents.artifact import GROUP
from agents.chat import Message
from agents.events import Escalated
from agents.graph import AgentGraph
from agents.harvest import harvest, main
from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.route import END
from factory.tasks import get_task
from factory.tasks.runtime import answerer
from factory.tasks.task import DataSource
from tests.agents.test_artifact import card


class State(BaseModel):
    question: str
    notes: list[str] = []


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("sql", "factory.tasks.runtime:answerer", GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == GROUP else [])


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as made:
        made.executescript("CREATE TABLE orders (id INTEGER, city TEXT); INSERT INTO orders VALUES (17, 'Oslo'), (18, 'Bergen');")
    return path


RIGHT = 'SELECT "orders"."city" FROM "orders" WHERE "orders"."id" = 17'
BIG = [RIGHT, 'SELECT "orders"."city" FROM "orders" WHERE "orders"."id" = 99', RIGHT, "I do not know"]
QUESTIONS = ["where is 17?", "where is 99?", "where is 17?", "who am I?"]


@pytest.fixture
def store(tmp_path: Path, db: Path) -> Path:
    """A graph's store after four questions; the small model answers nonsense, so that each escalates."""
    card("plain").save(tmp_path)
    sql = Persona.from_artifact(tmp_path, model=Scripted(["?"], repeat=True), task=answerer, db=str(db), name="sql")
    g = AgentGraph(State, name="shop")
    cascade = sql | Scripted(BIG)
    place = tmp_path / "runs.db"

    @g.node(start=True)
    def ask(s: State) -> State:
        try:
            return s.model_copy(update={"notes": [cascade(s.question).text]})
        except Exception:
            return s

    g.edge("ask", END)
    for number, question in enumerate(QUESTIONS):
        g.run(State(question=question), thread=f"u{number}", store=str(place))
    return place


def test_proven_answers_become_questions_for_finetune(
    tmp_path: Path, store: Path, db: Path, installed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    assert main([str(store), "--out", str(rows), "--db", str(db)]) == 0
    found = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    assert [(row["question"], row["sql"], row["reason"]) for row in found] == [("where is 17?", RIGHT, "invalid")]
    said = capsys.readouterr().out
    assert "1 rows from 4 escalations" in said and "duplicate 1" in said and "no-answer 1" in said
    examples, about = get_task("sql").load(DataSource(db=db, questions=rows, split="all"))
    assert [(e.question, e.reference) for e in examples] == [("where is 17?", RIGHT)] and not about.skipped
    assert get_task("sql").verify(examples[0], RIGHT).ok


def escalated(question: str, better: str | None, task: str | None = None) -> Escalated:
    return Escalated("desk", "big", "unsure", 0.2, (Message(role="user", content=question),), "hm", better, task)


def test_every_escalation_is_a_row_or_a_counted_drop() -> None:
    def events() -> Iterator[Escalated]:
        yield escalated("a", "1")
        yield escalated("a", "1")
        yield escalated("a", "2")
        yield escalated("b", None)
        yield escalated("c", "3", task="sql")
        yield escalated("d", "bad")

    out = harvest(events(), None, lambda question, answer: "wrong" if answer == "bad" else "ok")
    assert [row["completion"] for row in out.rows] == ["1"] and out.rows[0]["prompt"] == [{"role": "user", "content": "a"}]
    assert out.drops == {"duplicate": 1, "duplicate-contradicts": 1, "no-answer": 1, "other-task": 1, "wrong": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{none}", "--out", "{out}", "--db", "{db}"], "no such store"),
        (["{store}", "--out", "{out}"], "nothing proves these answers"),
        (["{store}", "--out", "{out}", "--task", "sql"], "needs --db"),
        (["{store}", "--out", "{out}", "--task", "chess"], "no installed package brings"),
        (["{store}", "--out", "{out}", "--unproven"], "none of 4 escalations"),
        (["{store}", "--out", "{deep}", "--db", "{db}"], "no directory"),
        (["{db}", "--out", "{out}", "--db", "{db}"], "another program's SQLite file"),
    ],
)
def test_what_cannot_be_harvested_is_one_line(
    tmp_path: Path, store: Path, db: Path, installed: None, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    places: dict[str, Any] = {
        "none": tmp_path / "none.db",
        "store": store,
        "db": db,
        "out": tmp_path / "o.jsonl",
        "deep": tmp_path / "x" / "o",
    }
    assert main([one.format(**places) for one in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said and not (tmp_path / "o.jsonl").exists()
