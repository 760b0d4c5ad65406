"""The sql task as the rest of the project sees it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from factory.tasks import TASKS, get_task
from factory.tasks.sql.database import Database
from factory.tasks.sql.task import SqlTask
from factory.tasks.task import DataSource, Example, TaskError


@pytest.fixture(scope="module")
def task() -> SqlTask:
    return SqlTask()


@pytest.fixture(scope="module")
def example(task: SqlTask) -> Example:
    table = Database.from_rows("w", ["Name", "Size"], [["ann", "3"], ["bob", "5"]])
    return Example("w-1", "What size has Ann?", table, "w", 'SELECT "Size" FROM "t" WHERE "Name" = \'Ann\'', "train")


def test_tasks_by_name() -> None:
    assert isinstance(get_task("sql"), SqlTask) and {"sql", "route"} <= set(TASKS)
    with pytest.raises(TaskError, match=r"unknown task 'sqll'; choose from .*sql"):
        get_task("sqll")


def test_listing_tasks_imports_none() -> None:
    heavy = ("factory.tasks.sql", "sqlglot", "torch")
    code = f"import sys, factory.tasks; assert not [m for m in sys.modules if m.startswith({heavy})]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_needs_no_heavy_package() -> None:
    heavy = ("torch", "transformers", "trl", "datasets", "matplotlib", "openai", "llguidance")
    code = (
        "import sys; from factory.tasks import get_task; from factory.tasks.task import DataSource; t = get_task('sql'); "
        "e = t.load(DataSource(split='xdev', limit=3))[0][0]; t.score(e, e.reference); t.verify(e, e.reference); "
        f"assert not [m for m in {heavy} if m in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_judging(task: SqlTask, example: Example) -> None:
    assert example.reference is not None
    assert task.score(example, example.reference).correct and task.verify(example, "SELECT 3").ok
    assert not task.verify(example, "SELECT 4").ok and task.vote_key(example, "SELECT 3") == task.vote_key(
        example, example.reference
    )
    assert [m.span for m in task.matches(example)] == ["Ann"] and task.matches(example) is task.matches(example)


def test_overlap(task: SqlTask, example: Example) -> None:
    same = task.overlap_keys(
        replace(example, id="w-2", question="what SIZE has ann", reference="select size from t where name = 'ANN'")
    )
    assert same == task.overlap_keys(example)
    other = task.overlap_keys(
        replace(example, question="What size has Bob?", reference='SELECT "Size" FROM "t" WHERE "Name" = \'Bob\'')
    )
    assert not set(other.items()) & set(same.items())
    assert "answer" not in task.overlap_keys(replace(example, reference=None))


def test_show(task: SqlTask, example: Example) -> None:
    shown = task.show(example, example.reference or "")
    assert shown == {"question": example.question, "answer": example.reference, "columns": ["Size"], "rows": [[3.0]]}
    assert "does-not-run" in task.show(example, "SELECT x FROM t")["error"]
    bare = replace(example, context=Database.from_values("v", ["Name", "Size"]))
    assert "no rows" in task.show(bare, example.reference or "")["error"]


def test_a_foreign_example_is_refused(task: SqlTask, example: Example) -> None:
    with pytest.raises(TaskError, match="no database"):
        task.verify(replace(example, context=None), "SELECT 1")


@pytest.mark.parametrize("dialect", ["plain", "compact"])
def test_prompt_and_dialect_go_together(task: SqlTask, dialect: str) -> None:
    examples, _ = task.load(DataSource(split="xdev", limit=50))
    for example in examples:
        assert example.reference is not None
        completion = task.encode(example, example.reference, dialect)  # type: ignore[arg-type]
        answer = task.decode(example, completion, dialect)  # type: ignore[arg-type]
        assert task.verify(example, answer).ok
        assert task.messages(example, dialect)[-1].role == "user"  # type: ignore[arg-type]
    assert len(task.corpus(examples, dialect)) >= len(examples)  # type: ignore[arg-type]
