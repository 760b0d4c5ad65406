"""The blades that ship, written as model directories: they answer as their files do, teach, and nothing is written over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agents.card import Card
from agents.chat import Request, Sampling
from agents.models import open_model
from factory.cli import run_cli
from factory.embedded import HOME, blade, main
from factory.settings import DistillSettings, SettingsError
from factory.tasks import get_task
from factory.tasks.task import DataSource
from factory.teacher import resolve_teacher
from tests.agents.gguf_models import NEEDS_LLAMA

pytestmark = pytest.mark.skipif(not (HOME / "route-lora.gguf").is_file(), reason="no blades ship with this installation")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blade("route", tmp_path_factory.mktemp("blades") / "route")


def test_a_blade_answers_as_its_merged_file(written: Path) -> None:
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    task = get_task("route")
    examples, _ = task.load(DataSource(dataset="clinc150", split="validation", limit=60))
    asked = [
        Request(
            id=example.id,
            messages=task.messages(example, "compact"),
            sampling=Sampling(temperature=0.0, max_tokens=32),
            constraint=task.constraint(example, "compact"),
        )
        for example in examples
    ]

    def said(spec: str) -> list[str]:
        replies = dict(open_model(spec).generate(asked))
        assert all(reply.stop_reason == "stop" for reply in replies.values())
        return [replies[i].text for i in range(len(asked))]

    ours, file = said(f"hf:{written}"), said(f"gguf:{HOME / 'route-q8_0.gguf'}")
    assert sum(a == b for a, b in zip(ours, file, strict=True)) >= 58


def test_a_blade_is_a_teacher_of_every_kind(written: Path) -> None:
    card = Card.load(written)
    assert card.license == "CC-BY-SA-4.0" and card.name == "embedded-route" and "spider" in {entry.name for entry in card.data}
    assert card.task == "route" and card.dialect == "compact" and card.file is None and card.adapter_sha256 is None
    settings = DistillSettings(task="route", teacher="x", method="logits")
    plan = resolve_teacher(str(written), settings)
    assert plan.dialect == "compact" and round(plan.parameters * 1e3, 1) == 4.2
    for task, told in (("route", 1), ("tools", 1), ("sql", 0)):
        notes = resolve_teacher("embedded", DistillSettings(task=task, teacher="embedded")).notes
        assert sum(f"factory.embedded blade {task} DIR" in note for note in notes) == told
    together = resolve_teacher(f"ensemble:{written},embedded-base", settings)
    assert together.members[0] == str(written)


def test_what_is_there_stays_and_what_is_not_is_said(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in written.iterdir()}
    with pytest.raises(SettingsError, match="is there already; give another directory, or remove it"):
        blade("route", written)
    assert {file.name: file.stat().st_mtime_ns for file in written.iterdir()} == before
    with pytest.raises(SettingsError, match=r"no blade for 'jokes' ships with this installation; choose from .*route"):
        blade("jokes", tmp_path / "out")
    assert run_cli(main, ["blade", "route"]) == 2
    assert "takes: blade, a task and a directory to write" in capsys.readouterr().err
    assert run_cli(main, ["route", str(tmp_path / "out")]) == 2
    assert "or give: blade, a task and a directory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) and [file.name for file in written.parent.iterdir()] == ["route"]


def test_files_that_do_not_belong_together_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(HOME / "base", home / "base")
    whole = (HOME / "route-lora.gguf").read_bytes()
    monkeypatch.setattr("factory.embedded.HOME", home)
    (home / "route-lora.gguf").write_bytes(whole[:-1000])
    out = tmp_path / "blades" / "route"
    with pytest.raises(SettingsError, match="the files of 'route' do not belong together, install this package again") as told:
        blade("route", out)
    assert "--adapter-from" not in str(told.value) and not out.parent.exists()
    (home / "route-lora.gguf").write_bytes(whole)
    shutil.copyfile(HOME / "teacher" / "config.json", home / "base" / "config.json")
    shutil.copyfile(HOME / "teacher" / "model.safetensors", home / "base" / "model.safetensors")
    with pytest.raises(SettingsError, match="trained on other weights than"):
        blade("route", out)
    assert not list(out.parent.iterdir())
    shutil.rmtree(home / "base")
    with pytest.raises(SettingsError, match="choose from none: there is no base"):
        blade("route", out)
