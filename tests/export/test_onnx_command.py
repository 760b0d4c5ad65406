"""`python -m export.onnx` as a user types it: what it says, what it leaves, and how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.onnx import OnnxSettings, main
from factory.cli import run_cli
from tests.export.tiny_families import make_family

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_family("smollm2", tmp_path_factory.mktemp("command") / "model")


def said(argv, capsys) -> str:
    """The one line of a user's error."""
    assert run_cli(main, [str(part) for part in argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if "error:" in line] == [lines[-1]]
    return lines[-1]


@pytest.mark.slow
def test_a_whole_run_in_processes_of_its_own(model, tmp_path):
    pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")
    out, report = tmp_path / "small-onnx", tmp_path / "report.json"
    command = [sys.executable, "-m", "export.onnx", str(model), "--precision", "int8", "--out", str(out), "--json", str(report)]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "kept: KLD" in ran.stdout and f"written: {out}" in ran.stdout.replace("\n", "")
    document = json.loads(report.read_text())
    assert document["gate"]["verdict"] == "kept" and document["gate"]["parity"]["tokens"] >= 512
    assert document["gate"]["strings"] >= 200 and document["gate"]["string_mismatches"] == 0
    assert document["bytes"] == sum((out / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["export_report.json", "report.json", "small-onnx"]


def test_what_loses_too_much_is_rejected_by_name_and_status(model, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")
    from tests.export.onnx_here import build_here

    build_here(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main([str(model), "--precision", "int4", "--max-kld", "1e-9", "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert not (tmp_path / "out").exists() and (tmp_path / "out.rejected" / "model.onnx").is_file()
    from agents.card import sha256_of_weights

    facts = json.loads((tmp_path / "out.rejected" / "penknife.json").read_text())
    assert facts["weights_sha256"] == sha256_of_weights(tmp_path / "out.rejected")
    verdict = json.loads((tmp_path / "export_report.json").read_text())["files"]["out"]
    assert verdict["verdict"] == "rejected" and "more than 1e-09" in verdict["sentence"]


def test_unknown_precision_names_the_choices(model, capsys):
    assert "choose from fp32, int8, int4" in said([model, "--precision", "int3"], capsys)


def test_missing_library_gives_the_install_line(model, capsys, monkeypatch):
    monkeypatch.setattr("export.onnx_builder.find_spec", lambda name: None if name == "onnxruntime_genai" else object())
    line = said([model], capsys)
    assert "onnxruntime_genai is not installed" in line and "pip install 'penknife[onnx]'" in line
    assert not list(model.glob("*onnx*"))


@pytest.mark.parametrize("damage", ["no-tokenizer", "pickle", "corrupt", "architecture", "nothing"])
def test_bad_directories_are_refused_before_anything_is_made(damage, model, tmp_path, capsys):
    import shutil

    pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")
    bad = tmp_path / "bad"
    if damage != "nothing":
        shutil.copytree(model, bad)
    if damage == "no-tokenizer":
        (bad / "tokenizer.json").unlink()
    if damage == "pickle":
        (bad / "model.safetensors").rename(bad / "pytorch_model.bin")
    if damage == "corrupt":
        (bad / "model.safetensors").write_bytes((bad / "model.safetensors").read_bytes()[:5000])
    if damage == "architecture":
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps({**config, "architectures": ["T5ForConditionalGeneration"]}))
    words = {"no-tokenizer": "no tokenizer.json there", "pickle": "is a pickle", "corrupt": "model.safetensors",
             "architecture": "T5ForConditionalGeneration", "nothing": "not a directory"}[damage]  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    assert words in said([bad, "--out", tmp_path / "out"], capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_adapter_where_one_is_wanted(model, capsys):
    pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")
    assert "holds no adapter" in said([model, "--lora", "adapter"], capsys)


def test_a_builder_that_fails_leaves_nothing(model, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")

    def full(built, out, *_):
        (out / "model.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    from tests.export.onnx_here import build_here

    build_here(monkeypatch)
    monkeypatch.setattr("export.onnx.rewrite", full)
    assert "disk is full" in said([model, "--no-gate", "--out", tmp_path / "out"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_both_commands_ask_alike():
    from export.gguf import GgufSettings

    ours, theirs = OnnxSettings.model_fields, GgufSettings.model_fields
    assert {name for name in ours if name not in theirs} == {"precision"}
    for name in set(ours) - {"precision", "lora", "gate", "out"}:
        assert ours[name].description == theirs[name].description, name
