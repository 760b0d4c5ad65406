"""A base model from a recipe, small: what it reads, that it learns, that a stopped run goes on, what its card says."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from agents.card import Card
from factory import events
from factory.evaluate import evaluate_model
from factory.mixture import load_rows
from factory.pretrain import PretrainSettings, run
from factory.settings import DistillSettings, EvaluateSettings, SettingsError, StudentSettings
from factory.tasks.sql.sources import BUNDLED
from factory.tasks.task import TaskError
from factory.train import load_tokenizer

RECIPE = """
name = "small"
hidden = 64
inner = 128
layers = 2
heads = 2
kv_heads = 1
vocab = 900
tokenizer_chars = 2000
epochs = {epochs}
batch = 16
checkpoints = 2
[[parts]]
task = "sql"
dataset = "wikisql"
folder = "wikisql"
copies = 3
judged = 20
[[texts]]
file = "books.txt.xz"
license = "public domain"
tokens = 640
window = 64
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred of the bundled questions with their tables, and a text."""
    out = tmp_path_factory.mktemp("data")
    (out / "wikisql").mkdir()
    with lzma.open(BUNDLED / "train.jsonl.xz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    kept = [row for row in rows if row["split"] == "train"][:300] + [row for row in rows if row["split"] == "xdev"][:40]
    ids = {row["table_id"] for row in kept}
    with lzma.open(BUNDLED / "tables_train.jsonl.xz", "rt", encoding="utf-8") as file:
        tables = [line for line in file if json.loads(line)["id"] in ids]
    with lzma.open(out / "wikisql" / "train.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
    with lzma.open(out / "wikisql" / "tables_train.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(tables)
    with lzma.open(out / "books.txt.xz", "wt", encoding="utf-8") as file:
        file.write("It was the best of times, it was the worst of times. " * 200 + "\n<|endoftext|>\nCall me Ishmael.\n")
    return out


def _recipe(path: Path, epochs: float = 1.0) -> str:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "small.toml"
    file.write_text(RECIPE.format(epochs=epochs), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def made(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    return run(PretrainSettings(recipe=_recipe(place), data_dir=data_dir, out=place / "run"))


def test_rows_are_every_part_in_variants_without_held_out_questions(made: Path) -> None:
    rows = load_rows(made / "rows.npz")
    from_sql = [name for name in rows.row_ids if not name.startswith("books")]
    first = [name for name in from_sql if "/" not in name]
    assert len(from_sql) == 3 * len(first) and len(first) > 250
    assert len(rows) - len(from_sql) == 10  # 640 tokens in windows of 64
    log = [event for event in events.read(made / "events.jsonl") if event["kind"] == "metric"]
    assert any(event["stage"] == "rows of sql/wikisql" and event["rows"] == len(from_sql) for event in log)
    # The second copy of a row has the same words, its columns in another order and so under other numbers.
    numbers = {id for token, id in load_tokenizer(made / "model").get_vocab().items() if token.startswith("<c")}
    tokens = {name: sorted(set(rows.row(i).tolist()) - numbers) for i, name in enumerate(rows.row_ids)}
    assert np.mean([tokens[name] == tokens[f"{name}/1"] for name in first]) > 0.95
    assert any(rows.row(rows.row_ids.index(n)).tolist() != rows.row(rows.row_ids.index(f"{n}/1")).tolist() for n in first)


def test_it_learns_and_its_card_says_from_what(made: Path) -> None:
    log = [event for event in events.read(made / "events.jsonl") if "loss" in event]
    losses = [event["loss"] for event in log]
    assert losses[-1] < 0.7 * losses[0]
    card = Card.load(made / "model")
    assert card.task == "sql" and card.dialect == "compact" and card.prompt_template == "sql/single/compact/1"
    assert [entry.name for entry in card.data] == ["wikisql", "wikisql", "books"]
    assert card.data[2].license == "public domain" and len(card.data[2].sha256) == 64
    assert card.scores["sql/wikisql"].n > 20


def test_a_base_is_scored_on_any_task_it_learned(made: Path, data_dir: Path) -> None:
    settings = EvaluateSettings(model=str(made / "model"), task="sql", data_dir=data_dir / "wikisql", split="xdev", limit=10)
    result, document = evaluate_model(settings)
    assert result.n == 10 and document["task"] == "sql"


def test_a_finished_run_returns_at_once_and_other_settings_are_refused(made: Path, data_dir: Path) -> None:
    before = (made / "events.jsonl").read_bytes()
    recipe = str(made.parent / "small.toml")
    assert run(PretrainSettings(recipe=recipe, data_dir=data_dir, out=made, resume=True)) == made
    assert (made / "events.jsonl").read_bytes() == before
    with pytest.raises(SettingsError, match="epochs"):
        run(PretrainSettings(recipe=recipe, data_dir=data_dir, out=made, epochs=2))


def test_a_stopped_run_ends_where_an_undisturbed_one_does(
    made: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory import pretrain

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    settings = PretrainSettings(recipe=_recipe(tmp_path), data_dir=data_dir, out=tmp_path / "run")
    monkeypatch.setattr(pretrain, "judge", stop)  # at the first candidate, half way
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.undo()
    monkeypatch.setattr("factory.tasks.sql.task.SqlTask.version", 99)
    with pytest.raises(SettingsError, match="begun with version 1 of the task sql, and version 99"):
        run(settings)
    monkeypatch.undo()
    again = run(settings)
    one, other = load_file(made / "model" / "model.safetensors"), load_file(again / "model" / "model.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-4, err_msg=name)


def test_goes_on_from_a_model_that_is_there(made: Path, data_dir: Path, tmp_path: Path) -> None:
    out = run(PretrainSettings(recipe=_recipe(tmp_path, 0.2), data_dir=data_dir, out=tmp_path / "run", init=made / "model"))
    first = next(event["loss"] for event in events.read(out / "events.jsonl") if "loss" in event)
    fresh = next(event["loss"] for event in events.read(made / "events.jsonl") if "loss" in event)
    assert first < 0.7 * fresh
    assert not (out / "student").exists()


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="data-dir"):
        run(PretrainSettings(recipe=_recipe(tmp_path), out=tmp_path / "run"))


def test_stored_as_the_embedded_base_and_found_by_name(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory import embedded
    from factory.student import StudentError, resolve_student
    from factory.teacher import TeacherError, resolve_teacher

    monkeypatch.setattr(embedded, "HOME", tmp_path)
    with pytest.raises(StudentError, match="no embedded base; choose scratch:tiny"):
        resolve_student("embedded", StudentSettings())
    with pytest.raises(TeacherError, match="no embedded teacher; give --teacher recorded"):
        resolve_teacher("embedded", DistillSettings())
    for kind in ("base", "teacher"):
        embedded.store(made / "model", kind, home=tmp_path)
    card = Card.load(tmp_path / "base")  # checks the weights' hash
    assert card.scores == Card.load(made / "model").scores
    whole, kept = (
        (made / "model" / "model.safetensors").stat().st_size,
        (tmp_path / "base" / "model.safetensors").stat().st_size,
    )
    assert 0.45 < kept / whole < 0.6  # 16 bits instead of 32
    student = resolve_student("embedded", StudentSettings())
    assert student.spec == "embedded" and student.dialect == "compact" and student.model_id == str(tmp_path / "base")
    assert resolve_teacher("embedded", DistillSettings(method="logits", teacher="embedded")).dialect == "compact"
    with pytest.raises(SettingsError, match="choose from base, teacher"):
        embedded.store(made / "model", "student", home=tmp_path)
