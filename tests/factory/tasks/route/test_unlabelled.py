"""Utterances without labels: read into the sets that the labelled ones have; what is wrong is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory import distill
from factory.settings import DistillSettings, SettingsError, build
from factory.tasks import get_task
from factory.tasks.task import DataSource, TaskError

TASK: Any = get_task("route")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_each_goes_into_its_set(tmp_path: Path) -> None:
    both, _ = TASK.load(DataSource(dataset="clinc150+banking77"))
    rows = ({"question": "is it cold", "set": "clinc150"}, {"text": "where is my card", "set": "banking77"})
    found, card = TASK.unlabelled(write(tmp_path / "said.jsonl", *rows), both)
    assert [(e.id, e.question, e.context_id, e.reference, e.split) for e in found] == [
        ("unlabelled/said-1", "is it cold", "clinc150", None, "unlabelled"),
        ("unlabelled/said-2", "where is my card", "banking77", None, "unlabelled"),
    ]
    assert found[0].context in {e.context for e in both}
    assert (card.name, card.split, card.n) == ("said", "unlabelled", 2)
    one, _ = TASK.load(DataSource(dataset="banking77"))
    assert TASK.unlabelled(write(tmp_path / "one.jsonl", {"question": "hello"}), one)[0][0].context_id == "banking77"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "is it cold"}, r'line 1: "set" is None; choose from clinc150, banking77'),
        ({"question": "is it cold", "set": "clinc"}, r"line 1: \"set\" is 'clinc'; choose from"),
        ({"set": "clinc150"}, "line 1"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    both, _ = TASK.load(DataSource(dataset="clinc150+banking77"))
    with pytest.raises(TaskError, match=why):
        TASK.unlabelled(write(tmp_path / "said.jsonl", row), both)


def test_an_empty_file_and_labels_only_are_refused(tmp_path: Path) -> None:
    one, _ = TASK.load(DataSource(dataset="banking77"))
    with pytest.raises(TaskError, match="has no rows"):
        TASK.unlabelled(write(tmp_path / "said.jsonl"), one)
    with pytest.raises(SettingsError, match="has no labels for --answers labels: give --answers both"):
        build(
            DistillSettings, {"unlabelled": "said.jsonl", "method": "logits", "answers": "labels", "teacher": "embedded"}, "test"
        )


def test_other_tasks_say_what_to_give_instead(tmp_path: Path) -> None:
    path = write(tmp_path / "said.jsonl", {"question": "how many"})
    with pytest.raises(TaskError, match="task 'sql' needs more than its words; give --questions"):
        distill.run(build(DistillSettings, {"unlabelled": path, "teacher": "embedded", "out": tmp_path / "run"}, "test"))
    with pytest.raises(SettingsError, match="'recorded' answers nothing new; choose a model"):
        build(DistillSettings, {"task": "route", "unlabelled": path}, "test")
    assert not (tmp_path / "run").exists()
