"""Recipes: what is shipped reads, what is wrong is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.pretrain import PretrainSettings, run
from factory.recipe import read_recipe, recipes
from factory.settings import SettingsError
from factory.tasks import TASKS

GOOD = """
name = "t"
hidden = 64
inner = 128
layers = 2
heads = 2
kv_heads = 1
vocab = 1024
[[parts]]
task = "sql"
dataset = "wikisql"
"""


def test_shipped_recipes_read_and_name_tasks_that_exist() -> None:
    assert {"base", "teacher"} <= set(recipes())
    for name in recipes():
        recipe = read_recipe(name)
        assert recipe.name == name
        assert {part.task for part in recipe.parts} <= set(TASKS)
        assert recipe.hidden % 256 == 0 and recipe.inner % 256 == 0, "K quants need rows that are multiples of 256"


def test_the_base_has_at_most_eight_million_parameters_and_the_teacher_more() -> None:
    assert read_recipe("base").shape.parameters < 8.0
    assert read_recipe("teacher").shape.parameters > 3 * read_recipe("base").shape.parameters
    assert read_recipe("teacher-cpu").shape.parameters > read_recipe("base").shape.parameters


def test_teacher_and_base_share_what_the_tokenizer_is_made_of() -> None:
    """So that a student can learn from its teacher's probabilities."""
    base, teacher = read_recipe("base"), read_recipe("teacher-cpu")
    for name in ("vocab", "tokenizer_files", "tokenizer_chars", "reserved_tokens", "texts"):
        assert getattr(base, name) == getattr(teacher, name), name
    assert [(p.task, p.dataset) for p in base.parts] == [(p.task, p.dataset) for p in teacher.parts]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace('name = "t"', 'name = "t"\nepoch = 3'), "epoch"),
        (GOOD.replace("heads = 2", "heads = 3"), "does not divide"),
        (GOOD.replace("hidden = 64", "hidden = 'wide'"), "hidden"),
        (GOOD.split("[[parts]]", maxsplit=1)[0], "parts"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=said) as caught:
        read_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_the_choices() -> None:
    with pytest.raises(SettingsError, match=r"unknown recipe 'bse'; choose from base, base-blades, teacher, teacher-cpu"):
        read_recipe("bse")


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(SettingsError, match="there is no run in"):
        run(PretrainSettings(out=out, resume=True))
    with pytest.raises(SettingsError, match=r"no config\.json there"):
        run(PretrainSettings(out=out, init=tmp_path))
    assert not out.exists()
