"""`python -m factory.evaluate`: what it writes, what it refuses, how it goes on after a kill."""

import json
import subprocess
import sys

import pytest

from agents.card import BaseEntry, Card, sha256_of_weights
from agents.chat import Message, ModelError, Reply
from agents.models.scripted import Scripted
from factory.confidence import wilson
from factory.evaluate import evaluate_model, main, model_bytes
from factory.predictions import read_predictions
from factory.settings import EvaluateSettings, SettingsError
from factory.tasks.task import AnswerError, DatasetCard, Example, Score, TaskError

KEYS = {"task", "dataset", "split", "n", "score", "interval", "metrics", "seconds_per_example", "errors_by_kind", "model_bytes",
        "model", "constrained", "decoding", "version"}  # fmt: skip


class Sums:
    """Ten questions "0+0" … "9+9"; the compact dialect writes its prompts with an = at the end."""

    name, version, metric, datasets = "sums", 1, "equal", {"ten": "ten sums"}

    def validation_split(self, source):
        return "held-out"

    def load(self, source):
        if source.data_dir is not None:
            raise TaskError(f"--data-dir {source.data_dir}: no such directory; give the one that holds ten")
        found = [Example(str(i), f"{i}+{i}", None, "none", reference=str(i + i)) for i in range(10)][: source.limit]
        return found, DatasetCard(
            name="ten", split=source.split, license="none", source="", sha256="0" * 64, n=len(found), skipped={}
        )

    def messages(self, example, dialect):
        return (Message(role="user", content=example.question + ("=" if dialect == "compact" else "")),)

    def constraint(self, example, dialect):
        return None

    def decode(self, example, completion, dialect):
        if not completion.isdigit():
            raise AnswerError("no-number")
        return completion

    def score(self, example, answer):
        right = answer == example.reference
        return Score(correct=right, metrics={"equal": right}, error=None if right else "wrong-sum")


def right_but_for_three_and_four(request):
    i = int(request.messages[-1].content[0])
    return "?" if i == 3 else "1" if i == 4 else str(i + i)


@pytest.fixture
def opened(monkeypatch):
    """The toy task under its name, and each model opened: Scripted, answering all questions but two."""
    models = []

    def open_model(spec, **options):
        models.append(Scripted([right_but_for_three_and_four], name=spec, repeat=True))
        return models[-1]

    monkeypatch.setattr("agents.models.open_model", open_model)
    monkeypatch.setitem(__import__("factory.tasks", fromlist=["TASKS"]).TASKS, "sums", Sums)
    return models


def test_writes_the_document_and_the_predictions(opened, tmp_path, capsys):
    file = tmp_path / "new" / "scores.json"
    main(["http://localhost:1/v1#m", "--task", "sums", "--json", str(file)])
    document = json.loads(file.read_text())
    assert set(document) == KEYS
    assert {k: document[k] for k in ("task", "dataset", "split", "n", "score", "errors_by_kind", "model_bytes")} == {
        "task": "sums",
        "dataset": "ten",
        "split": "held-out",
        "n": 10,
        "score": 0.8,
        "errors_by_kind": {"no-number": 1, "wrong-sum": 1},
        "model_bytes": None,
    }
    assert document["interval"] == pytest.approx(wilson(8, 10))
    kept = read_predictions(tmp_path / "new" / "scores.predictions.jsonl")
    assert [p.id for p in kept] == [str(i) for i in range(10)]
    assert [p.id for p in kept if not p.correct] == ["3", "4"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["scores.json", "scores.predictions.jsonl"]
    out = capsys.readouterr()
    assert "80.0 %" in out.out
    assert "evaluate: done" in out.err


def test_a_killed_evaluation_goes_on(opened, tmp_path, monkeypatch):
    settings = EvaluateSettings(model="http://localhost:1/v1#m", task="sums", json=tmp_path / "scores.json")

    def killed_at_six(request):
        if request.id == "6":
            raise KeyboardInterrupt
        return right_but_for_three_and_four(request)

    with monkeypatch.context() as first:
        first.setattr("agents.models.open_model", lambda spec, **options: Scripted([killed_at_six], name=spec, repeat=True))
        with pytest.raises(KeyboardInterrupt):
            evaluate_model(settings)
    assert not (tmp_path / "scores.json").exists()
    assert len((tmp_path / "scores.predictions.part").read_text().splitlines()) == 1 + 6
    result, _ = evaluate_model(settings)
    assert (result.n, result.score) == (10, 0.8)
    assert [request.id for request in opened[0].requests] == ["6", "7", "8", "9"]
    assert not (tmp_path / "scores.predictions.part").exists()


def test_other_settings_start_afresh(opened, tmp_path):
    settings = EvaluateSettings(model="http://localhost:1/v1#m", task="sums", json=tmp_path / "scores.json")
    evaluate_model(settings)
    (tmp_path / "scores.predictions.jsonl").rename(tmp_path / "scores.predictions.part")
    evaluate_model(settings.model_copy(update={"constrained": False}))
    assert [len(model.requests) for model in opened] == [10, 10]


def made_for(model_dir, **changes):
    model_dir.mkdir()
    (model_dir / "model.safetensors").write_bytes(b"12345")
    card = Card(
        task="sums",
        task_version=1,
        dialect="compact",
        prompt_template="p",
        constraint=None,
        parser="p",
        max_tokens=7,
        base=BaseEntry(id="scratch:tiny"),
        created_by="test",
        weights_sha256=sha256_of_weights(model_dir),
    )
    card.model_copy(update=changes).save(model_dir)
    return str(model_dir)


def test_the_card_decides_dialect_and_length(opened, tmp_path):
    result, document = evaluate_model(EvaluateSettings(model=made_for(tmp_path / "m"), task="sums", limit=3))
    assert result.dialect == "compact"
    assert [r.messages[-1].content for r in opened[0].requests] == ["0+0=", "1+1=", "2+2="]
    assert {r.sampling.max_tokens for r in opened[0].requests} == {7}
    assert document["model_bytes"] == 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"task": "route"}, "made for the task 'route'"), ({"task_version": 2}, "newer"), ({"weights_sha256": "0" * 64}, "weights")],
)
def test_a_card_that_does_not_fit_is_refused_before_the_model_opens(opened, tmp_path, changes, says):
    from agents.card import CardError

    with pytest.raises((CardError, SettingsError), match=says):
        evaluate_model(EvaluateSettings(model=made_for(tmp_path / "m", **changes), task="sums"))
    assert opened == []


def test_an_adapter_weighs_its_base_too(tmp_path):
    for name, size in (("base/model", 100), ("adapter/adapter_model", 11)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.safetensors").write_bytes(b"x" * size)
    config = {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert model_bytes(tmp_path / "adapter") == 111
    assert model_bytes(tmp_path / "base") == 100
    assert model_bytes(None) is None


def test_a_dead_endpoint_is_an_error_not_a_score_of_zero(monkeypatch, opened, tmp_path):
    settings = EvaluateSettings(model="http://localhost:1/v1#m", task="sums", json=tmp_path / "s.json")
    dead = Scripted([Reply(stop_reason="error", error="connection refused")], name="m", repeat=True)
    with monkeypatch.context() as first:
        first.setattr("agents.models.open_model", lambda spec, **options: dead)
        with pytest.raises(ModelError, match="connection refused"):
            evaluate_model(settings)
    assert not (tmp_path / "s.json").exists()
    assert evaluate_model(settings)[0].score == 0.8  # failures are asked again


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "MODEL is missing"),
        (["nowhere", "--task", "nope"], "unknown task 'nope'"),
        (["nowhere"], "'nowhere' is neither a directory nor a kind of model"),
        (["nowhere", "--limit", "0"], "limit cannot be '0'"),
        (["nowhere", "--dataset", "nope"], "unknown dataset 'nope'"),
        (["nowhere", "--dataset", "wikisql", "--data-dir", "/nonexistent"], "/nonexistent"),
        (["nowhere", "--split", "nope"], "nope"),
        (["nowhere", "--db", "/nonexistent.sqlite"], "/nonexistent.sqlite"),
        (["nowhere", "--questions", "q.jsonl"], "--questions needs --db"),
        (["nowhere", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (["nowhere", "--limit", "2", "--json", "/"], "is a directory"),
        (["nowhere", "--limit", "2", "--json", "/proc/nowhere/s.json"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, says):
    done = subprocess.run([sys.executable, "-m", "factory.evaluate", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
