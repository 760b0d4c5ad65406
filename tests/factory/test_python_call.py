"""`factory.distill(…)` and `factory.finetune(…)`: the Python calls of the two commands, as often as one likes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import factory
from agents.card import Card
from factory.facts import gather
from factory.settings import SettingsError
from tests.factory.shop import Shop, make_shop, serve


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_python_calls_work_again_and_again(shop, tmp_path):
    heard: list[str] = []
    with serve(shop.answers()) as server:
        same = {"db": shop.db, "questions": shop.questions, "validation": 2, "final": 2, "gate": 2, "checkpoints": 1, "epochs": 1}
        for name in ("one", "two"):
            made = factory.distill(listener=lambda event: heard.append(event["kind"]), teacher=server.spec, out=tmp_path / name,
                                   **same)  # fmt: skip
            assert made == tmp_path / name
        assert set(server.calls.values()) == {2}
        assert factory.distill(teacher=server.spec, out=tmp_path / "one", **same) == tmp_path / "one"
        assert set(server.calls.values()) == {2}
    tuned = factory.finetune(out=tmp_path / "tuned", **same)
    assert {"start", "progress", "metric", "drop", "end"} <= set(heard)
    assert (tmp_path / "one" / "train.jsonl").read_bytes() == (tmp_path / "two" / "train.jsonl").read_bytes()
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert tuned is not None
    assert len(lines(tuned / "train.jsonl")) == 24
    assert {row["source"] for row in lines(tuned / "train.jsonl")} == {"labels"}
    assert set(json.loads((tuned / "scores.json").read_text())) == {"untrained", "student"}
    assert Card.load(tuned / "model").teacher is None
    assert gather(tuned).missing == {"ledger.sqlite": "not there"}


def test_an_unknown_setting_of_the_python_call_names_the_known_ones():
    with pytest.raises(SettingsError, match=r"unknown setting 'studnet'; did you mean 'student'\? known ones: .*teacher"):
        factory.distill(studnet="scratch:tiny")


@pytest.mark.parametrize("adapter", ["lora"])
def test_an_adapter_is_merged_and_kept(shop, tmp_path, adapter):
    made = factory.finetune(db=shop.db, questions=shop.questions, adapter=adapter, rank=4, epochs=1, batch=8, validation=2,
                            final=2, gate=2, checkpoints=1, out=tmp_path / "run")  # fmt: skip
    assert made is not None
    assert {"adapter_config.json", "adapter_model.safetensors", "card.json"} <= {
        p.name for p in (made / "model/adapter").iterdir()
    }
    card = Card.load(made / "model")
    assert card.adapter_sha256 is not None
    assert Card.load(made / "model" / "adapter").weights_sha256 == card.weights_sha256


def test_a_call_before_and_after_the_module_is_imported_and_nothing_heavy_loads():
    program = (
        "import sys, factory\n"
        "assert callable(factory.distill) and callable(factory.finetune)\n"
        "import factory.distill as module\n"
        "assert module is factory.distill and module.run and module.main\n"
        "print({'torch', 'transformers', 'peft'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_dry_run_gives_no_directory(shop, tmp_path, capsys):
    assert factory.distill(teacher="recorded", db=shop.db, questions=shop.questions, out=tmp_path / "x", dry_run=True) is None
    assert "24" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


def test_an_interrupt_goes_through_and_the_next_call_continues(shop, tmp_path):
    same = {"teacher": "recorded", "db": shop.db, "questions": shop.questions, "validation": 2, "final": 2, "gate": 2,
            "checkpoints": 1, "epochs": 1, "out": tmp_path / "run"}  # fmt: skip

    def interrupt(event: dict[str, Any]) -> None:
        if event["kind"] == "start" and event["stage"] == "merge":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        factory.distill(interrupt, **same)
    heard: list[str] = []
    made = factory.distill(lambda event: heard.append(str(event.get("stage"))), **same)
    assert made == tmp_path / "run"
    assert "generate" not in heard
    assert "report" in heard
