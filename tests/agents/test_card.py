"""The card: written whole, read back equal, refused when newer, damaged or beside other weights."""

import hashlib
import json
import subprocess
import sys

import pytest

from agents.card import BaseEntry, CalibrationEntry, Card, CardError, DataEntry, ScoreEntry, sha256_of_weights, weight_files


def card(**changes):
    values = {
        "name": "sql-tiny",
        "task": "sql",
        "task_version": 1,
        "dialect": "compact",
        "prompt_template": "sql-compact",
        "constraint": "lark",
        "parser": "sql-compact",
        "stop": ("<|end|>",),
        "base": BaseEntry(id="scratch:tiny"),
        "teacher": "recorded",
        "data": (DataEntry(name="wikisql", split="train", license="BSD-3-Clause", sha256="ab" * 32, n=10),),
        "scores": {
            "student": ScoreEntry(
                split="validation", n=10, score=0.5, low=0.24, high=0.76, metric="execution", decoding="greedy, constrained"
            )
        },
        "calibration": (CalibrationEntry(threshold=0.5, kept=0.9, accuracy=0.6),),
        "created_by": "penknife 0.1.0",
    }
    return Card(**{**values, **changes})


@pytest.fixture
def model_dir(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_round_trip(model_dir):
    written = card(weights_sha256=sha256_of_weights(model_dir))
    assert written.save(model_dir) == model_dir / "card.json"
    assert Card.load(model_dir) == written
    assert Card.load(model_dir / "card.json") == written
    assert Card.load(model_dir / "model.safetensors") == written
    assert [path.name for path in sorted(model_dir.iterdir())] == ["card.json", "model.safetensors"]


def test_a_run_directory_has_nothing_to_check(tmp_path):
    written = card(weights_sha256="0" * 64)
    written.save(tmp_path)
    assert Card.load(tmp_path) == written


def test_other_weights_are_refused(model_dir):
    card(weights_sha256=sha256_of_weights(model_dir)).save(model_dir)
    (model_dir / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(CardError, match="not those of its card"):
        Card.load(model_dir)
    assert Card.load(model_dir, check_weights=False).task == "sql"


def test_an_adapter_is_checked_against_its_own_hash(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"adapter")
    good = hashlib.sha256(b"adapter").hexdigest()
    card(weights_sha256="0" * 64, adapter_sha256=good).save(tmp_path)
    assert Card.load(tmp_path).adapter_sha256 == good
    card(weights_sha256=good, adapter_sha256="0" * 64).save(tmp_path)
    with pytest.raises(CardError, match="not those of its card"):
        Card.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no card"),
        ("{", "not valid JSON"),
        ("[]", "not a card"),
        ('{"task": "sql"}', "not a card"),
        ('{"format_version": 4, "whatever": 1}', "card format 4 is newer than the 3"),
        ('{"format_version": 1, "task": "sql"}', "field required"),
    ],
)
def test_bad_cards_are_refused_in_one_sentence(tmp_path, text, says):
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    with pytest.raises(CardError) as caught:
        Card.load(tmp_path)
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_refused(tmp_path):
    raw = json.loads(card().model_dump_json()) | {"surprise": 1}
    (tmp_path / "card.json").write_text(json.dumps(raw))
    with pytest.raises(CardError, match="surprise"):
        Card.load(tmp_path)


def test_saving_fails_whole(tmp_path, monkeypatch):
    card(name="first").save(tmp_path)
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        card(name="second").save(tmp_path)
    assert Card.load(tmp_path).name == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_hash_of_one_file_and_of_several(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"one")
    one = hashlib.sha256(b"one").hexdigest()
    assert sha256_of_weights(tmp_path) == one == sha256_of_weights(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"two")
    two = hashlib.sha256(b"two").hexdigest()
    listing = f"{one}  a.safetensors\n{two}  b.safetensors\n"
    assert sha256_of_weights(tmp_path) == hashlib.sha256(listing.encode()).hexdigest()


def test_exports_beside_a_model_do_not_change_what_it_is(model_dir):
    before = sha256_of_weights(model_dir)
    (model_dir / "model-q8_0.gguf").write_bytes(b"gguf")
    (model_dir / "adapter").mkdir()
    (model_dir / "adapter" / "adapter_model.safetensors").write_bytes(b"adapter")
    assert sha256_of_weights(model_dir) == before
    assert [file.name for file in weight_files(model_dir / "model-q8_0.gguf")] == ["model-q8_0.gguf"]


def test_no_weights_is_an_error(tmp_path):
    with pytest.raises(CardError, match="no weights there"):
        sha256_of_weights(tmp_path)


def test_importing_the_card_needs_only_pydantic():
    heavy = "torch transformers llama_cpp onnxruntime matplotlib openai llguidance factory"
    code = f"import sys, agents.card; print([name for name in {heavy.split()!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_task_data_travels_and_has_a_limit(model_dir):
    written = card(task_data={"sets": [{"id": "desk", "labels": {"billing": "Geld"}}]})
    written.save(model_dir)
    assert Card.load(model_dir).task_data == written.task_data
    with pytest.raises(ValueError, match="bytes of task data; at most 262,144"):
        card(task_data={"x": "y" * 300_000})
    raw = json.loads((model_dir / "card.json").read_text())
    raw["task_data"] = {"x": "y" * 300_000}
    (model_dir / "card.json").write_text(json.dumps(raw))
    with pytest.raises(CardError, match=r"task_data: .*at most 262,144"):
        Card.load(model_dir)


def test_a_card_from_before_task_data_reads(model_dir):
    raw = json.loads(card().model_dump_json())
    for later in ("task_data", "reliability", "reliability_error"):
        del raw[later]
    (model_dir / "card.json").write_text(json.dumps({**raw, "format_version": 2}))
    assert Card.load(model_dir).task_data == {}
