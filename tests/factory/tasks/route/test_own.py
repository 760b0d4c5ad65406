"""A user's own rows: from twenty on, divided or as marked, with or without a labels file, and everything that can be wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from factory.tasks import get_task
from factory.tasks.route.labels import OUT_OF_SCOPE
from factory.tasks.task import DataSource, TaskError

TASK = get_task("route")


def write(path: Path, *rows) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def load(questions: Path, split: str = "all", **more):
    return TASK.load(DataSource(questions=questions, split=split, **more))


def twenty(tmp_path: Path, n: int = 20) -> Path:
    rows = [{"question": f"request number {i}", "label": ("billing", "sales", "support")[i % 3]} for i in range(n)]
    return write(tmp_path / "desk.jsonl", *rows)


@pytest.mark.parametrize("n", [20, 2000])
def test_rows_without_splits_are_divided_by_label(tmp_path: Path, n: int) -> None:
    path = twenty(tmp_path, n)
    train, card = load(path, "train")
    held, _ = load(path, "validation")
    assert len(train) + len(held) == n
    assert card.skipped == {"split-validation": len(held)} and card.source == "desk.jsonl"
    whole, part = Counter(e.reference for e in [*train, *held]), Counter(e.reference for e in held)
    assert part == {label: max(1, round(count / 10)) for label, count in whole.items()}
    assert {e.id for e in load(path, "train")[0]} == {e.id for e in train}
    assert {e.id for e in TASK.others(DataSource(questions=path))} == {e.id for e in held}


def test_the_order_of_the_rows_does_not_move_them(tmp_path: Path) -> None:
    path = twenty(tmp_path)
    before = {e.question for e in load(path, "validation")[0]}
    write(path, *reversed(path.read_text().splitlines()))
    assert {e.question for e in load(path, "validation")[0]} == before


def test_marked_rows_stay_where_they_are(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl",
        *({"question": f"a {i}", "label": "a"} for i in range(10)),
        {"question": "b", "label": "b", "split": "validation"},
        {"text": "c", "intent": "b", "split": "test"},
        {"question": "nobody labelled this"},
    )
    assert [e.question for e in load(path, "validation")[0]] == ["b"]
    assert [e.question for e in load(path, "test")[0]] == ["c"]
    train = load(path, "train")[0]
    assert len(train) == 11
    assert train[-1].reference is None
    assert {id(e.context) for e in train} == {id(train[0].context)}


def test_out_of_scope_is_a_label_of_that_name_or_the_one_the_file_says(tmp_path: Path) -> None:
    rows = [{"question": f"{label} {i}", "label": label} for label in ("a", "b", "other") for i in range(3)]
    path = write(tmp_path / "q.jsonl", *rows)
    assert load(path)[0][0].context.out_of_scope is False
    labels = write(tmp_path / "l.json", {"labels": {"a": "first", "b": ""}, "out_of_scope": "other", "name": "My desk"})
    examples = load(path, labels=labels)[0]
    context = examples[0].context
    assert (context.out_of_scope, context.answers, context.title) == (True, ("a", "b", OUT_OF_SCOPE), "My desk")
    assert Counter(e.reference for e in examples) == {"a": 3, "b": 3, OUT_OF_SCOPE: 3}
    write(path, *rows, {"question": "weather", "label": "out_of_scope"})
    assert load(path)[0][-1].reference == OUT_OF_SCOPE


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 21: not valid JSON"),
        ("[]", "line 21: .* is not an object"),
        ({"label": "sales"}, "line 21: no 'question'"),
        ({"question": " ", "label": "sales"}, "line 21: 'question' is ' '"),
        ({"question": "x", "label": 3}, "line 21: the label is 3"),
        ({"question": "x", "label": "sales", "split": "dev"}, "line 21: split 'dev'; choose from train, validation, test"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row, said: str) -> None:
    path = twenty(tmp_path)
    write(path, *path.read_text().splitlines(), row)
    with pytest.raises(TaskError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert "desk.jsonl" in str(caught.value)


def test_labels_that_are_not_in_the_file(tmp_path: Path) -> None:
    path = twenty(tmp_path)
    labels = write(tmp_path / "l.txt", "billing", "sale", "support")
    with pytest.raises(TaskError, match=r"desk\.jsonl, line 2: the label 'sales' is not in .*l\.txt; did you mean 'sale'"):
        load(path, labels=labels)
    no = write(tmp_path / "l.json", {"labels": ["billing", "sales", "support"], "out_of_scope": False})
    write(path, *path.read_text().splitlines(), {"question": "x", "label": "out_of_scope"})
    with pytest.raises(TaskError, match=r"line 21: 'out_of_scope', but .*\"out_of_scope\": false"):
        load(path, labels=no)


def test_files_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="has no rows"):
        load(write(tmp_path / "empty.jsonl"))
    with pytest.raises(TaskError, match="at least two"):
        load(write(tmp_path / "one.jsonl", {"question": "x", "label": "a"}))
    with pytest.raises(TaskError, match="cannot be read"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match=r"--split dev: .* has train, validation; choose one of those, or all"):
        load(twenty(tmp_path), "dev")


def test_a_student_is_asked_with_the_labels_it_learned(tmp_path: Path) -> None:
    path = twenty(tmp_path)
    learned = TASK.card_data(load(path, "train")[0])
    few = write(tmp_path / "monday.jsonl", {"question": "pay", "label": "billing"}, {"question": "weather"})
    examples = load(few, card_data=learned)[0]
    assert examples[0].context.answers == ("billing", "sales", "support")
    assert examples[0].context_id == "desk"
    write(few, {"question": "pay", "label": "biling"})
    with pytest.raises(TaskError, match=r"monday\.jsonl, line 1: the student never learned the label 'biling'; did you mean"):
        load(few, card_data=learned)
    with pytest.raises(TaskError, match=r"--dataset clinc150: the student learned other labels \(desk\)"):
        TASK.load(DataSource(dataset="clinc150", card_data=learned))
    both = {"sets": [*learned["sets"], {**learned["sets"][0], "id": "night"}]}
    write(few, {"question": "pay", "label": "billing"})
    with pytest.raises(TaskError, match="fit several of the student's sets"):
        load(few, card_data=both)
    night = write(tmp_path / "night.jsonl", {"question": "pay", "label": "billing"})
    assert load(night, card_data=both)[0][0].context_id == "night"
