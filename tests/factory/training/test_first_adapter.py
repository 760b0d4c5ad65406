"""Going on from an adapter: directories and GGUF files say what peft said, training begins there, others are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.card import ADAPTER_FILE, Card
from factory import finetune
from factory.embedded import HOME, embedded_dir
from factory.facts import gather
from factory.first_adapter import find_adapter, take_adapter
from factory.run_card import base_name
from factory.settings import FinetuneSettings, build
from factory.student import StudentError, resolve_student
from factory.train import TrainError, open_model_for_training, quiet

EMBEDDED = embedded_dir("base") is not None
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROBE = torch.tensor([[5, 9, 14, 3, 7, 20, 31, 8]])
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ranks": {"use_rslora": True, "rank_pattern": {"q_proj": 2, "down_proj": 6}},
    "alphas": {"alpha_pattern": {"v_proj": 5, "k_proj": 32}},
}


def settings(**more: Any) -> FinetuneSettings:
    return build(FinetuneSettings, {"adapter": "lora", **more}, "test")


def found(path: Path, student: Path, **more: Any) -> Any:
    asked = settings(adapter_from=str(path), student=str(student), **more)
    return find_adapter(asked, resolve_student(asked.student, asked), Path("runs/elsewhere"), None)


def adapt(base: Path, out: Path, **config: Any) -> torch.Tensor:
    """Write an adapter with random A and B; returns peft's logits of the probe."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    given = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "init_lora_weights": False, **config}
    with quiet():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**given)).eval()
        model.save_pretrained(out)
    with torch.inference_mode():
        return model(input_ids=PROBE).logits


def begun(base: Path, adapter: Path) -> torch.Tensor:
    """Logits of the probe before the first step."""
    with quiet():
        model = open_model_for_training(base, "lora", 99, 0, adapter)
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    with torch.inference_mode():
        return model.float().eval()(input_ids=PROBE).logits


@pytest.mark.parametrize("kind", KINDS)
def test_training_begins_with_what_peft_said(kind: str, student_dir: Path, tmp_path: Path) -> None:
    from export.lora import write_adapter
    from export.source import Source
    from factory.merge import name_base

    expected = adapt(student_dir, tmp_path / "adapter", **KINDS[kind])
    name_base(tmp_path / "adapter", str(student_dir))
    write_adapter(Source.open(tmp_path / "adapter"), tmp_path / "adapter.gguf")
    write_adapter(Source.open(tmp_path / "adapter"), tmp_path / "half.gguf", type_name="F16")
    for source in ("adapter", "adapter.gguf", "half.gguf"):
        one = found(tmp_path / source, student_dir)
        assert (one.kind, one.rank) == ("lora", 6 if kind == "ranks" else 4)
        taken = take_adapter(one, student_dir, tmp_path / "run" / "first-adapter")
        assert json.loads((taken / "adapter_config.json").read_text())["base_model_name_or_path"] == str(student_dir.resolve())
        logits = begun(student_dir, taken)
        # The frozen base is in bfloat16 where the machine multiplies it.
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    fresh = adapt(student_dir, tmp_path / "other", **{**KINDS[kind], "r": 3})
    assert (fresh - expected).abs().max() > 0.2 * expected.abs().max()


def test_what_does_not_fit_is_refused_before_anything_is_written(student_dir: Path, tmp_path: Path) -> None:
    from export.lora import write_adapter
    from export.source import Source

    def refused(path: Path | str, why: str, student: Path | str = student_dir, **more: Any) -> None:
        with pytest.raises(StudentError, match=why):
            found(path, student, **more)  # type: ignore[arg-type]

    adapt(student_dir, tmp_path / "lora")
    adapt(student_dir, tmp_path / "dora", use_dora=True)
    write_adapter(Source.open(tmp_path / "lora"), tmp_path / "lora.gguf")
    other = tmp_path / "other"
    shutil.copytree(student_dir, other)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    damaged = bytearray((tmp_path / "lora.gguf").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.gguf").write_bytes(bytes(damaged))
    (tmp_path / "empty").mkdir()

    refused(tmp_path / "nothing", "does not exist; give an adapter directory, a GGUF adapter, or embedded")
    refused(tmp_path / "empty", "cannot be used .*adapter_config.json")
    refused(tmp_path / "damaged.gguf", "export it again|copy")
    refused(tmp_path / "lora.gguf", "other weights than", other)
    refused(tmp_path / "lora", "begins from random weights", "scratch:tiny")
    refused(tmp_path / "lora", "'none' is to be trained; give --adapter lora", adapter="none")
    refused(tmp_path / "dora", "is dora, and 'lora'.*give --adapter dora")
    refused(tmp_path / "lora", "--rank 32 beside --adapter-from .* has rank 4; leave --rank out", rank=32)
    assert found(tmp_path / "lora", student_dir, rank=4).rank == found(tmp_path / "lora", student_dir).rank == 4
    assert found(tmp_path / "dora", student_dir, adapter="dora").kind == "dora"
    assert found(tmp_path / "lora", student_dir, adapter="qlora").kind == "lora"
    assert find_adapter(settings(), resolve_student(str(student_dir), settings()), tmp_path, None) is None


def test_memory_is_asked_for_the_adapter_that_is_there(student_dir: Path, tmp_path: Path) -> None:
    adapt(student_dir, tmp_path / "lora", r=512)
    asked = settings(adapter_from=str(tmp_path / "lora"), student=str(student_dir))
    student = resolve_student(asked.student, asked)
    tight = replace(student, have_gb=student.need_gb + 1e-6)
    with pytest.raises(StudentError, match=r"of rank 512 needs about .* GB are free; choose a smaller --batch"):
        find_adapter(asked, tight, tmp_path / "run", None)
    there = find_adapter(asked, student, tmp_path / "run", None)
    assert there is not None and there.need_gb(student, asked.rank) > student.need_gb == there.need_gb(student, 512)


def test_an_adapter_of_another_shape_is_refused_and_never_half_loaded(student_dir: Path, tmp_path: Path) -> None:
    """peft itself loads what it finds and leaves the rest as it was."""
    adapt(student_dir, tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / ADAPTER_FILE)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.lora_A.weight"))

    def changed(place: str, **new: torch.Tensor) -> Path:
        shutil.copytree(tmp_path / "lora", tmp_path / place, dirs_exist_ok=True)
        kept = {key: value for key, value in tensors.items() if key != name}
        save_file(
            {**kept, **{key.replace("-", "."): value.clone() for key, value in new.items()}}, tmp_path / place / ADAPTER_FILE
        )
        return tmp_path / place

    with pytest.raises(StudentError, match=r"changes model\.layers\.1\.mlp\.up_proj\.weight of \[64, 16\], and .* has it as"):
        found(changed("narrow", **{name: tensors[name][:, :16].contiguous()}), student_dir)
    deeper = name.replace("layers.1", "layers.7")
    more = {
        deeper: tensors[name],
        deeper.replace("lora_A", "lora_B"): tensors[name.replace("lora_A", "lora_B")],
        name: tensors[name],
    }
    with pytest.raises(
        StudentError, match=r"changes model\.layers\.7\..* has no such weight; give the student it was trained on"
    ):
        found(changed("deep", **more), student_dir)
    with pytest.raises(StudentError, match="has rank 2 and 4, its configuration says 4"):
        found(changed("thin", **{name: tensors[name][:2].contiguous()}), student_dir)
    (tmp_path / "lora" / ADAPTER_FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(StudentError, match="cannot be used"):
        found(tmp_path / "lora", student_dir)
    with pytest.raises(TrainError, match=r"does not fit the student .*give the student it was trained on"), quiet():
        open_model_for_training(student_dir, "lora", 4, 0, tmp_path / "narrow")


def test_a_card_names_a_base_without_the_directories_it_lies_in(student_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(student_dir, tmp_path / "first" / "model")
    for spec, name in (
        (student_dir, student_dir.name),
        (tmp_path / "first" / "model", "first"),
        ("scratch:tiny", "scratch:tiny"),
    ):
        assert base_name(resolve_student(str(spec), settings(student=str(spec), adapter=None))) == name


@pytest.mark.skipif(not EMBEDDED, reason="this installation has no embedded models")
def test_a_run_goes_on_from_the_adapter_that_ships(tmp_path: Path) -> None:
    """A learning rate of nothing changes nothing: what comes out is what went in."""
    data = tmp_path / "desk.jsonl"
    said = {"balance": "what is in my {} account", "weather": "will it rain on day {}"}
    rows = [{"question": text.format(i), "label": label} for i in range(20) for label, text in said.items()]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "run"
    mine = tmp_path / "mine.gguf"
    shutil.copy(HOME / "route-lora.gguf", mine)
    asked = settings(task="route", questions=data, student="embedded", adapter_from=str(mine), adapter=None, out=out,
                     learning_rate=1e-12, epochs=0.2, batch=8, checkpoints=1, gate=4)  # fmt: skip
    finetune.run(asked)
    first, trained = out / "first-adapter", out / "model" / "adapter"
    assert Card.load(first).task == "route"
    assert Card.load(trained).license == Card.load(HOME / "base").license == "CC-BY-SA-4.0"
    assert {"clinc150+banking77", "desk"} <= {entry.name for entry in Card.load(trained).data}
    assert json.loads((out / "scores.json").read_text())["untrained"]["model"] == str(first)
    assert {entry["name"] for entry in gather(out).data} >= {"clinc150+banking77", "desk"}
    before, after = load_file(first / ADAPTER_FILE), load_file(trained / ADAPTER_FILE)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.allclose(after[name].float(), weight, atol=1e-6), name
        assert weight.abs().max() > 0
    mine.unlink()
    assert finetune.run(asked) == out  # a run needs only what it began with
    with pytest.raises(StudentError, match=r"lies in .*give another --out"):
        finetune.run(asked.model_copy(update={"adapter_from": str(trained), "force": True}))
    assert trained.is_dir()
