"""Questions written by a model of prompts: new ones, of the set asked for, the same for one seed; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory import finetune
from factory.imagine import ImagineSettings, main, run
from factory.settings import FinetuneSettings, SettingsError, build
from factory.tasks import get_task
from factory.tasks.task import DataSource, TaskError
from tests.factory.desk import SAID, write_questions


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("desk") / "desk.jsonl")


@pytest.fixture(scope="module")
def writer(questions: Path) -> Path:
    given = {"task": "route", "questions": questions, "student": "scratch:tiny", "prompt_loss": 1.0, "epochs": 8.0, "final": 4,
             "batch": 16, "checkpoints": 1, "gate": 4, "learning_rate": 2e-3, "out": questions.parent / "writer"}  # fmt: skip
    finetune.run(build(FinetuneSettings, given, "test"))
    return questions.parent / "writer" / "model"


def imagined(writer: Path, questions: Path, out: Path, **more: Any) -> list[dict[str, str]]:
    settings = build(ImagineSettings, {"model": str(writer), "task": "route", "questions": questions, "out": out, **more}, "test")
    counts = run(settings)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert counts["written"] == len(rows)
    return rows


def test_it_writes_new_questions_that_can_be_learned_from(
    writer: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.imagine.BATCH", 64)
    task: Any = get_task("route")
    examples, _ = task.load(DataSource(questions=questions))
    rows = imagined(writer, questions, tmp_path / "a.jsonl", n=30)
    asked = [row["question"] for row in rows]
    assert len(set(asked)) == len(rows) == 30 and {row["set"] for row in rows} == {"desk"}
    prompts = {task.messages(example, "compact")[0].content for example in examples}
    found, _ = task.unlabelled(tmp_path / "a.jsonl", examples)
    assert not prompts & {task.messages(example, "compact")[0].content for example in found}
    # Most are made of what was said: a model that learned nothing would not find these words.
    known = {word for texts in SAID.values() for text in texts for word in text.split()}
    assert sum(len(known & set(text.split())) >= 2 for text in asked) > 20
    assert imagined(writer, questions, tmp_path / "b.jsonl", n=30) == rows
    assert imagined(writer, questions, tmp_path / "c.jsonl", n=30, seed=1) != rows


def test_splices_join_a_beginning_and_an_end_of_questions(questions: Path, tmp_path: Path) -> None:
    task: Any = get_task("route")
    examples, _ = task.load(DataSource(questions=questions))
    made = [imagined(Path("splices"), questions, tmp_path / f"{name}.jsonl", n=200, seed=seed)
            for name, seed in (("a", 0), ("b", 0), ("c", 1))]  # fmt: skip
    assert made[0] == made[1] != made[2]
    asked = [example.question for example in examples]
    labels = {example.question: example.reference for example in examples}
    alike = 0
    for row in made[0]:
        words = row["question"].split()
        cuts = [(a, b) for n in range(1, len(words)) for a in asked if a.split()[:n] == words[:n]
                for b in asked if b.split()[-(len(words) - n) :] == words[n:]]  # fmt: skip
        assert cuts and row["question"] not in asked and row["set"] == "desk"
        alike += any(labels[a] == labels[b] for a, b in cuts)
    assert 0.5 < alike / 200 < 0.95
    found, _ = task.unlabelled(tmp_path / "a.jsonl", examples)
    assert len(found) == len({task.messages(example, "compact")[0].content for example in found}) == 200
    with pytest.raises(SettingsError, match=r"--temperature 0\.5: splices have none"):
        imagined(Path("splices"), questions, tmp_path / "d.jsonl", temperature=0.5)
    with pytest.raises(SettingsError, match="no two questions of the data make another of at most 2 words"):
        (tmp_path / "two.jsonl").write_text("".join(f'{{"question": "{x} b c d e f g h i", "label": "{x}"}}\n' for x in "ab"))
        imagined(Path("splices"), tmp_path / "two.jsonl", tmp_path / "d.jsonl", longest=2)


def test_what_cannot_write_is_refused(writer: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"'nothing' is no model directory; give one that factory.finetune --prompt-loss 1"):
        main(["nothing", "--task", "route"])
    with pytest.raises(TaskError, match=r"only route's can be imagined"):
        main([str(writer), "--task", "sql"])
    with pytest.raises(SettingsError, match="lies in none; give a file in a directory that is there"):
        main([str(writer), "--task", "route", "--out", str(tmp_path / "no" / "a.jsonl")])
    with pytest.raises(TaskError, match=r"never learned the set 'clinc150', only desk; name its own data"):
        main([str(writer), "--task", "route", "--out", str(tmp_path / "a.jsonl")])
    monkeypatch.setattr("factory.imagine.BATCH", 4)
    monkeypatch.setattr("factory.imagine.FRUITLESS", 2)
    with pytest.raises(SettingsError, match="wrote no question that ended within 2 tokens"):
        imagined(writer, questions, tmp_path / "short.jsonl", longest=2, temperature=0.01)
    assert not list(tmp_path.iterdir())
