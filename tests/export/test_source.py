"""What cannot be exported is refused before a weight is read; an adapter is merged as peft merges it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.card import BaseEntry, Card, CardError
from export.convert import convert
from export.errors import ExportError
from export.source import Source
from tests.export.llama_logits import torch_logits
from tests.export.tiny_families import make_family


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("qwen2", tmp_path_factory.mktemp("source") / "qwen")


@pytest.fixture
def copy(qwen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qwen, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value is not None}), "utf-8")


def truncate(file: Path, size: int) -> None:
    with file.open("r+b") as opened:
        opened.truncate(size)


def patch(file: Path, offset: int, raw: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(raw)


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def longer_offsets(model: Path) -> None:
    file = model / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["model.norm.weight"]["data_offsets"][1] += 4
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def more_tokens(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<c2>", "<c3>"])
    tokenizer.save_pretrained(model)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown architecture": (
        lambda m: edit(m / "config.json", architectures=["MambaForCausalLM"]),
        r"architecture 'MambaForCausalLM' cannot be exported; choose a model of Llama, Mistral, Qwen2, .*Phi-3",
    ),
    "no architecture": (lambda m: edit(m / "config.json", architectures=None), r"architecture None cannot be exported"),
    "multimodal Gemma": (
        lambda m: edit(m / "config.json", architectures=["Gemma3ForConditionalGeneration"]),
        r"export its text part as Gemma3ForCausalLM",
    ),
    "broken config": (lambda m: (m / "config.json").write_text("{"), r"config\.json: cannot be read"),
    "config of another type": (lambda m: (m / "config.json").write_text("[]"), r"holds no JSON object"),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), r"no tokenizer\.json there; save the tokenizer"),
    "pickle": (pickled, r"pytorch_model\.bin is a pickle, which can run code when read; convert the weights to safetensors"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), r"no weights \(\*\.safetensors\) there"),
    "cut short": (lambda m: truncate(m / "model.safetensors", 300_000), r"cut short or damaged \(it has 300000 bytes"),
    "cut in the header": (lambda m: truncate(m / "model.safetensors", 100), r"cut short or damaged \(its header of \d+ bytes"),
    "empty": (lambda m: truncate(m / "model.safetensors", 0), r"cut short or damaged"),
    "header length": (lambda m: patch(m / "model.safetensors", 0, b"\xff" * 8), r"cut short or damaged"),
    "header no JSON": (lambda m: patch(m / "model.safetensors", 8, b"\x00\x00"), r"its header is not JSON"),
    "overlapping tensors": (longer_offsets, r"cut short or damaged \(model\.norm\.weight"),
    "other shape": (
        lambda m: edit(m / "config.json", intermediate_size=96),
        r"mlp\.gate_proj\.weight is \[128, 64\] where config\.json means \[96, 64\]",
    ),
    "more layers": (lambda m: edit(m / "config.json", num_hidden_layers=4, layer_types=None), r"model\.layers\.3\..* is missing"),
    "fewer layers": (
        lambda m: edit(m / "config.json", num_hidden_layers=2, layer_types=None),
        r"model\.layers\.2\.\S+ and 11 more tensors have no place in a Qwen2 model",
    ),
    "untied without a head": (lambda m: edit(m / "config.json", tie_word_embeddings=False), r"lm_head\.weight is missing"),
    "quantized": (
        lambda m: edit(m / "config.json", quantization_config={"quant_method": "fp8"}),
        r"stored quantized; give the original checkpoint",
    ),
    "activation": (lambda m: edit(m / "config.json", hidden_act="relu"), r"activation 'relu'; llama\.cpp computes silu"),
    "dynamic rope": (
        lambda m: edit(m / "config.json", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        r"rope_type 'dynamic' cannot be exported for Qwen2",
    ),
    "llama3 rope on Qwen2": (
        lambda m: edit(m / "config.json", rope_parameters={
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}),
        r"rope_type 'llama3' cannot be exported for Qwen2",
    ),
    "tokenizer larger than the embedding": (more_tokens, r"its tokenizer has ids up to 643, its embedding 642 rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence_before_weights_are_read(
    name: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = REFUSED[name]
    change(copy)
    monkeypatch.setattr("export.source.read_rows", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ExportError, match=said) as raised:
        convert(Source.open(copy), tmp_path / "out.gguf")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("*gguf*")) and not list(tmp_path.glob(".*"))


def test_weights_of_other_kinds_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"model\.norm\.weight is stored as I8; give the checkpoint in F32, F16 or BF16"):
        Source.open(copy)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = make_family("llama", tmp_path / "m", max_shard_size="100KB")
    Source.open(directory)
    gone = sorted(directory.glob("*.safetensors"))[2]
    gone.unlink()
    with pytest.raises(ExportError, match=rf"'{gone.name}', which model\.safetensors\.index\.json names, is not there"):
        Source.open(directory)


@pytest.mark.parametrize("given", ["nowhere", "model.safetensors"])
def test_what_is_no_directory_is_refused(given: str, copy: Path) -> None:
    with pytest.raises(ExportError, match=r"not a directory|is a file; give"):
        Source.open(copy / given)


def test_a_card_of_other_weights_is_refused(copy: Path) -> None:
    card = Card(task="sql", task_version=1, dialect="plain", prompt_template="x", constraint=None, parser="sql",
                base=BaseEntry(id="tiny"), weights_sha256=Source.open(copy).sha256, created_by="test")  # fmt: skip
    card.save(copy)
    assert Source.open(copy).card == card
    card.model_copy(update={"weights_sha256": "0" * 64}).save(copy)
    with pytest.raises(CardError, match="are not those of its card"):
        Source.open(copy)


def test_tensors_are_the_models(qwen: Path) -> None:
    from transformers import AutoModelForCausalLM

    wanted = AutoModelForCausalLM.from_pretrained(qwen).state_dict()
    for name, found in Source.open(qwen).tensors():
        assert np.array_equal(found, wanted[name].numpy()), name


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilized": {"use_rslora": True, "r": 4, "lora_alpha": 16},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 64}, "lora_alpha": 4},
    "DoRA": {"use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head replaced": {"modules_to_save": ["lm_head"]},
    "layers": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_merged_as_peft_merges_it(name: str, tmp_path: Path) -> None:
    base = make_family("llama", tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", **ADAPTERS[name])
    source = Source.open(tmp_path / "adapter")
    assert source.kind == "adapter" and source.model_dir == base and source.base_sha256 is not None
    wanted = model.merge_and_unload().state_dict()
    changed = 0
    stored = Source.open(base)
    for weight, found in source.tensors():
        assert np.abs(found - wanted[weight].numpy()).max() < 1e-6, weight
        changed += not np.array_equal(found, stored.read(weight))
    assert changed >= 2
    # A processor may round the product of a few rows in another order than that of all.
    some, every = source.read("model.layers.1.mlp.up_proj.weight", 3, 9), source.read("model.layers.1.mlp.up_proj.weight")
    np.testing.assert_allclose(some, every[3:9], rtol=0, atol=1e-7)


def adapted(base: Path, directory: Path, **settings: Any) -> Any:
    """A peft model of `base` with an adapter whose every part is random, saved to `directory`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": every, "task_type": "CAUSAL_LM", **settings})
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for part, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight) if "magnitude" not in part else 0.1 * torch.rand_like(weight)
    model.save_pretrained(directory)
    return model


def test_an_adapters_file_computes_what_base_and_adapter_compute(tmp_path: Path) -> None:
    base = make_family("llama", tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", use_rslora=True)
    convert(Source.open(tmp_path / "adapter"), tmp_path / "out.gguf", "F32")
    ids = np.arange(3, 67)[None]
    with torch.inference_mode():
        wanted = model.eval()(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(torch_logits(tmp_path, ids, gguf_file="out.gguf") - wanted).max() < 1e-4


REFUSED_ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "base gone": ({"base_model_name_or_path": "./elsewhere"}, r"its base model '\./elsewhere' is not there"),
    "base on the hub": (
        {"base_model_name_or_path": "org/name"},
        r"its base 'org/name' is not on this machine; download it, or put",
    ),
    "no base": ({"base_model_name_or_path": ""}, r"names no base model"),
    "other type": ({"peft_type": "IA3"}, r"an adapter of type 'IA3' cannot be merged here; merge it .* with factory\.merge"),
    "changed base": ({"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights 'pissa_niter_4' changes the base itself"),
    "biases": ({"bias": "lora_only"}, r"it trains biases"),
    "token rows": ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices cannot be merged here"),
}


@pytest.mark.parametrize("name", REFUSED_ADAPTERS)
def test_adapters_that_cannot_be_merged_say_the_way_out(name: str, tmp_path: Path) -> None:
    adapted(make_family("llama", tmp_path / "base"), tmp_path / "adapter")
    changes, said = REFUSED_ADAPTERS[name]
    edit(tmp_path / "adapter" / "adapter_config.json", **changes)
    with pytest.raises(ExportError, match=said):
        Source.open(tmp_path / "adapter")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapted(make_family("llama", tmp_path / "base"), tmp_path / "adapter")
    wide = make_family("llama", tmp_path / "wide", hidden_size=128)
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(wide))
    with pytest.raises(ExportError, match=r"do not fit its base's .*; give the base it was trained on"):
        Source.open(tmp_path / "adapter")


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    adapted(make_family("llama", tmp_path / "base"), tmp_path / "adapter")
    truncate(tmp_path / "adapter" / "adapter_model.safetensors", 5000)
    with pytest.raises(ExportError, match=r"adapter_model\.safetensors: cut short or damaged"):
        Source.open(tmp_path / "adapter")


def test_the_run_around_a_model_is_found(copy: Path, tmp_path: Path) -> None:
    assert Source.open(copy).run_dir is None
    (tmp_path / "config.toml").write_text("")
    assert Source.open(copy).run_dir == tmp_path.resolve()
