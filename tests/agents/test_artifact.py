"""A persona from an artifact asks, constrains and reads exactly as the evaluation does; other bases are refused in a sentence."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agents.artifact import GROUP, find_task
from agents.card import BaseEntry, CalibrationEntry, Card, CardError, FileEntry
from agents.chat import ModelError, Reply, Request, TokenLogprob
from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.tools import PersonaError
from factory.evaluate import evaluate
from factory.tasks import get_task
from factory.tasks.runtime import answerer
from factory.tasks.sql.database import Database
from factory.tasks.task import DataSource, Dialect, TaskError
from tests.agents.conftest import make_model, make_tokenizer

QUESTIONS = 12


def card(dialect: Dialect = "compact", **changes: Any) -> Card:
    values: dict[str, Any] = {
        "name": "sql-tiny",
        "task": "sql",
        "task_version": 1,
        "dialect": dialect,
        "prompt_template": f"sql/{dialect}/1",
        "constraint": "lark",
        "parser": f"sql/{dialect}",
        "max_tokens": 96,
        "base": BaseEntry(id="scratch:tiny"),
        "calibration": (
            CalibrationEntry(threshold=0.2, kept=1.0, accuracy=0.6),
            CalibrationEntry(threshold=0.8, kept=0.5, accuracy=0.95),
        ),
        "created_by": "penknife",
    }
    return Card(**{**values, **changes})


@pytest.fixture(scope="module")
def examples() -> Any:
    return get_task("sql").load(DataSource(dataset="wikisql", split="xdev", limit=QUESTIONS, seed=3))[0]


@pytest.mark.parametrize("dialect", ["plain", "compact"])
def test_prompt_constraint_and_answer_are_the_evaluations(tmp_path: Path, examples: Any, dialect: Dialect) -> None:
    """What evaluate sends and makes of the replies, against what the persona sends and makes of the same replies."""
    task = get_task("sql")
    card(dialect).save(tmp_path)
    right = [task.encode(example, example.reference, dialect) for example in examples]
    right[3] = "not an answer"
    judge = Scripted(right)
    scored = evaluate(task, judge, examples, dialect, max_tokens=96)
    same = Scripted(right)
    persona = Persona.from_artifact(tmp_path, model=same, task=answerer)
    for example, prediction in zip(examples, scored.predictions):
        if prediction.answer is None:
            with pytest.raises(PersonaError):
                persona(example.question, database=example.context)
        else:
            assert persona(example.question, database=example.context).text == prediction.answer
    for theirs, ours in zip(judge.requests, same.requests):
        assert ours.messages == theirs.messages
        assert ours.constraint == theirs.constraint
        assert ours.sampling == theirs.sampling
    assert len(same.requests) == QUESTIONS


def test_a_real_student_answers_as_its_evaluation(tmp_path: Path, examples: Any) -> None:
    """A random transformers model under the sql grammar: valid SQL, and the same as the evaluation's."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    make_model(tokenizer).save_pretrained(tmp_path)
    card(max_tokens=64).save(tmp_path)
    persona = Persona.from_artifact(tmp_path, task=answerer)
    short = [example for example in examples if len(example.question) < 60][:4]
    scored = evaluate(get_task("sql"), persona.model, short, "compact", max_tokens=64, batch=1)
    for example, prediction in zip(short, scored.predictions):
        try:
            result = persona(example.question, database=example.context)
        except PersonaError:
            assert prediction.answer is None
            continue
        assert result.text == prediction.answer
        assert result.confidence == pytest.approx(prediction.confidence, abs=1e-5)
    persona.model.close()


def test_a_database_file_may_come_when_made_or_with_the_question(tmp_path: Path) -> None:
    db = tmp_path / "shop.sqlite"
    with sqlite3.connect(db) as made:
        made.executescript("CREATE TABLE orders (id INTEGER, city TEXT); INSERT INTO orders VALUES (17, 'Oslo');")
    card("plain").save(tmp_path)
    said = 'SELECT "orders"."city" FROM "orders" WHERE "orders"."id" = 17'
    persona = Persona.from_artifact(tmp_path, model=Scripted([said] * 2), task=answerer, db=str(db))
    assert persona("where is 17?").text == said
    unbound = Persona.from_artifact(tmp_path, model=Scripted([said]), task=answerer)
    with pytest.raises(TaskError, match=r"db=FILE\.sqlite"):
        unbound("where is 17?")
    assert unbound("where is 17?", db=str(db)).text == said
    assert [tuple(row) for row in Database.from_file(db).execute(said).rows] == [("Oslo",)]


def test_a_cascade_takes_its_threshold_from_the_card_and_asks_the_larger_model_plainly(tmp_path: Path, examples: Any) -> None:
    card().save(tmp_path)
    small = Scripted([lambda request: unsure(request, 0.5)], repeat=True)
    big = Scripted([examples[0].reference])
    cascade = Persona.from_artifact(tmp_path, model=small, task=answerer) | big
    assert cascade.threshold == 0.8
    task = get_task("sql")

    def unsure(request: Request, p: float) -> Reply:
        return Reply(
            text=task.encode(examples[0], examples[0].reference, "compact"),
            logprobs=(TokenLogprob(token="x", logprob=math.log(p)),),
        )

    result = cascade(examples[0].question, database=examples[0].context)
    assert result.escalated == "unsure" and result.text == examples[0].reference
    assert big.requests[0].messages == task.messages(examples[0], "plain")


def exported(**changes: Any) -> Card:
    entry = FileEntry(name="a.gguf", format="gguf", precision="Q8_0", bits_per_weight=8.5, source_sha256="ab" * 32)
    return card(weights_sha256="ab" * 32, file=entry.model_copy(update=changes))


class Weights(Scripted):
    """A scripted model that says whose weights it has."""

    def __init__(self, sha: str) -> None:
        super().__init__([])
        self.source_sha256 = sha


@pytest.mark.parametrize(
    ("make", "model", "words"),
    [
        (lambda d: exported().save(d), Weights("cd" * 32), ["abababababab", "cdcdcdcdcdcd", "another base"]),
        (lambda d: card(task="chess").save(d), Scripted([]), ["'chess'", "task"]),
        (lambda d: card(task_version=99).save(d), Scripted([]), ["version 99", "update"]),
        (lambda d: None, Scripted([]), ["card"]),
    ],
)
def test_what_cannot_be_run_is_one_sentence(tmp_path: Path, make: Any, model: Any, words: list[str]) -> None:
    make(tmp_path)
    finder = {} if "'chess'" in words else {"task": answerer}
    with pytest.raises((PersonaError, CardError, ModelError, TaskError)) as caught:
        Persona.from_artifact(tmp_path, model=model, **finder)
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words)


def gguf(path: Path, **metadata: Any) -> Path:
    """A GGUF file without tensors, written by llama.cpp's own Python package."""
    writer_of = pytest.importorskip("gguf", reason="pip install gguf").GGUFWriter
    writer = writer_of(path, "llama")
    for key, value in metadata.items():
        writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_for_another_base_is_refused_before_any_model_runs(tmp_path: Path) -> None:
    other = gguf(tmp_path / "desk.gguf", **{"general.type": "adapter", "penknife.base.sha256": "ab" * 32})
    whole = gguf(tmp_path / "whole.gguf", **{"general.name": "whole"})
    with pytest.raises(PersonaError, match="adapter for the base with weights abababababab…, but scripted has cdcdcdcdcdcd…"):
        Persona("desk", Weights("cd" * 32), adapter=str(other))
    assert Persona("desk", Weights("ab" * 32), adapter=(other, 0.5)).adapters[0].scale == 0.5
    with pytest.raises(PersonaError, match=r"whole\.gguf is a whole model"):
        Persona("desk", Weights("ab" * 32), adapter=str(whole))
    with pytest.raises(PersonaError, match="does not exist"):
        Persona("desk", Weights("ab" * 32), adapter=str(tmp_path / "none.gguf"))


def test_an_adapter_artifact_needs_its_base(tmp_path: Path) -> None:
    entry = exported(kind="adapter", base_sha256="cd" * 32).model_dump_json()
    file = gguf(tmp_path / "desk.gguf", **{"general.type": "adapter", "penknife.base.sha256": "cd" * 32, "penknife.card": entry})
    with pytest.raises(PersonaError, match="is an adapter; give model="):
        Persona.from_artifact(file, task=answerer)
    persona = Persona.from_artifact(file, model=Weights("cd" * 32), task=answerer)
    assert [adapter.path for adapter in persona.adapters] == [str(file)]
    with pytest.raises(PersonaError, match="adapter for the base"):
        Persona.from_artifact(file, model=Weights("ef" * 32), task=answerer)


def test_tasks_are_found_by_their_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    point = metadata.EntryPoint("sql", "factory.tasks.runtime:answerer", GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == GROUP else [])
    assert find_task("sql", "x") is answerer
    with pytest.raises(PersonaError, match="there are: sql"):
        find_task("chess", "x")
