"""GGUF adapters against peft's logits, through llama.cpp; what such a file cannot hold is refused with the way out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.models.gguf_file import verify
from export.convert import convert
from export.errors import ExportError
from export.lora import check_adapter, write_adapter
from export.parity import divergence
from export.source import Source
from tests.export.tiny_families import TEXTS, make_family

NEEDS_LLAMA = 'needs llama.cpp: pip install "penknife[gguf]"'
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bases")
    make_family("smollm2", place / "smollm2")
    make_family("qwen3", place / "qwen3")
    make_family("gemma2", place / "gemma2")
    make_family("phi3", place / "phi3")
    return place


def adapt(base: Path, out: Path, **settings: Any) -> Any:
    """Write an adapter with random A and B; returns the peft model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "init_lora_weights": False, **settings}
    peft = get_peft_model(model, LoraConfig(**config)).eval()
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if ("lora_" in name and "magnitude" not in name) or "modules_to_save" in name:
                weight.mul_(0.5)
    peft.save_pretrained(out)
    return peft


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("smollm2", {}),
    "rank-stabilized": ("smollm2", {"use_rslora": True}),
    "ranks": ("smollm2", {"rank_pattern": {"q_proj": 4, "down_proj": 16}}),
    "rank-stabilized-ranks": ("smollm2", {"use_rslora": True, "rank_pattern": {"k_proj": 4}}),
    "alphas": ("smollm2", {"alpha_pattern": {"v_proj": 5, "q_proj": 32}}),
    "no-permutation": ("qwen3", {"target_modules": [*LINEAR, "lm_head"]}),
    "scaled-queries": ("gemma2", {}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}),
}


DEFAULT = ("plain", "rank-stabilized-ranks", "fused")


@pytest.mark.parametrize("kind", [k if k in DEFAULT else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_base_and_adapter_say_what_peft_says(bases, tmp_path, kind):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    from agents.models import open_model

    family, settings = KINDS[kind]
    base = Source.open(bases / family)
    peft = adapt(bases / family, tmp_path / "adapter", **settings)
    source = Source.open(tmp_path / "adapter")
    convert(base, tmp_path / "base.gguf", "F32")
    made = write_adapter(source, tmp_path / "adapter.gguf")
    assert verify(tmp_path / "adapter.gguf").sealed
    assert made.matrices == len(source.adapter.deltas)
    assert (made.folded > 0) == (kind in ("rank-stabilized-ranks", "alphas", "scaled-queries"))
    ids = base.tokenizer(TEXTS[0] + TEXTS[1], add_special_tokens=False)["input_ids"][:64]
    with torch.inference_mode():
        wanted = peft(torch.tensor([ids])).logits[0].float().numpy()
        with peft.disable_adapter():
            plain = peft(torch.tensor([ids])).logits[0].float().numpy()
    model: Any = open_model(f"gguf:{tmp_path / 'base.gguf'}", threads=1)
    try:
        found = model.logits(ids, adapters=[(str(tmp_path / "adapter.gguf"), 1.0)])
        write_adapter(source, tmp_path / "half.gguf", type_name="F16")
        halved = model.logits(ids, adapters=[(str(tmp_path / "half.gguf"), 1.0)])
    finally:
        model.close()
    assert np.mean(divergence(wanted, plain)[0]) > 1e-2, "the adapter changes nothing, so this would prove nothing"
    assert np.mean(divergence(wanted, found)[0]) < 1e-5
    assert np.mean(divergence(wanted, halved)[0]) < 1e-4


def test_plain_tensors_are_bit_equal_to_llama_cpps_own_layout(bases, tmp_path):
    """Row order of lora_B by another route: B A permuted as the merged weight is must be the file's product."""
    from gguf import GGUFReader

    adapt(bases / "smollm2", tmp_path / "adapter")
    source, base = Source.open(tmp_path / "adapter"), Source.open(bases / "smollm2")
    write_adapter(source, tmp_path / "adapter.gguf")
    convert(source, tmp_path / "merged.gguf", "F32")
    convert(base, tmp_path / "base.gguf", "F32")
    read = [
        {t.name: t.data.reshape(t.shape[::-1]) for t in GGUFReader(tmp_path / f"{n}.gguf").tensors}
        for n in ("adapter", "merged", "base")
    ]
    for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.2.ffn_down.weight"):
        product = 2.0 * read[0][f"{name}.lora_b"] @ read[0][f"{name}.lora_a"]
        np.testing.assert_allclose(product, read[1][name] - read[2][name], atol=1e-5)


def test_half_precision_halves_the_file_and_refuses_what_it_cannot_hold(bases, tmp_path):
    from gguf import GGUFReader
    from safetensors.torch import load_file, save_file

    adapt(bases / "smollm2", tmp_path / "adapter")
    source = Source.open(tmp_path / "adapter")
    write_adapter(source, tmp_path / "whole.gguf")
    made = write_adapter(source, tmp_path / "half.gguf", type_name="F16")
    assert made.bits == 16.0 and made.bytes < 0.6 * (tmp_path / "whole.gguf").stat().st_size
    whole, half = ({t.name: t.data for t in GGUFReader(tmp_path / f"{name}.gguf").tensors} for name in ("whole", "half"))
    assert whole.keys() == half.keys()
    for name, values in whole.items():
        assert half[name].dtype == np.float16
        np.testing.assert_array_equal(half[name], values.astype(np.float16))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = 1e6
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ExportError, match=r"F16 cannot hold .*; give --adapter-type F32"):
        write_adapter(Source.open(tmp_path / "adapter"), tmp_path / "not.gguf", type_name="F16")
    assert not (tmp_path / "not.gguf").exists()


def test_the_file_names_its_base(bases, tmp_path):
    adapt(bases / "smollm2", tmp_path / "adapter")
    source = Source.open(tmp_path / "adapter")
    write_adapter(source, tmp_path / "adapter.gguf")
    metadata = verify(tmp_path / "adapter.gguf").metadata
    assert metadata["general.type"] == "adapter"
    assert metadata["adapter.type"] == "lora"
    assert metadata["adapter.lora.alpha"] == 16.0
    assert metadata["penknife.base.sha256"] == Source.open(bases / "smollm2").sha256


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "is DoRA, which llama.cpp does not compute"),
    "bias": ({"bias": "lora_only"}, "trains biases|biases"),
    "saved": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, "changes the embedding"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_file_cannot_hold_is_refused_with_the_way_out(bases, tmp_path, kind):
    settings, said = REFUSED[kind]
    adapt(bases / "qwen3", tmp_path / "adapter", **settings)
    with pytest.raises(ExportError, match=said) as refused:
        check_adapter(Source.open(tmp_path / "adapter"))
    assert "merge" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_directory_is_no_adapter(bases):
    with pytest.raises(ExportError, match="is no adapter directory"):
        check_adapter(Source.open(bases / "smollm2"))


def test_an_adapter_without_its_base_is_refused(bases, tmp_path):
    shutil.copytree(bases / "smollm2", tmp_path / "base")
    adapt(tmp_path / "base", tmp_path / "adapter")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ExportError, match=r"its base model .* is not there"):
        Source.open(tmp_path / "adapter")
