"""A 4-bit teacher is 4-bit, its experts included: measured, compared with weights rounded by hand, and asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.chat import Message, Request, Sampling, answer
from factory.machine import Machine
from factory.settings import DistillSettings
from factory.teacher import TeacherError, TeacherPlan, open_teacher, resolve_teacher
from factory.teachers_local import (
    MOST_BYTES,
    NotQuantizedError,
    check_quantized,
    expert_parameters,
    footprint,
    load,
    nf4_with_experts,
    pack,
)

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KINDS = ("mixtral", "qwen3_moe")


def tiny(kind: str) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(1)
    shared = {"vocab_size": 320, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "num_experts_per_tok": 2, "max_position_embeddings": 256, "initializer_range": 0.08, "eos_token_id": 0}  # fmt: skip
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(intermediate_size=256, num_local_experts=4, **shared)).to(torch.bfloat16).eval()
    config = Qwen3MoeConfig(intermediate_size=256, moe_intermediate_size=256, num_experts=4, head_dim=32, **shared)
    return Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(["select the name from the table where the score is highest"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE)


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """(kind, directory with safetensors in the hub's layout, one weight for each expert; the 16-bit model)"""
    path = tmp_path_factory.mktemp(request.param)
    model = tiny(request.param)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return request.param, path, model


def rounded(model: Any) -> Any:
    """The 16-bit model with every linear layer and every expert stack rounded to nf4 and back, by bitsandbytes' functions."""
    from bitsandbytes import functional

    outer = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            linear = isinstance(module, torch.nn.Linear) and name == "weight" and id(module) not in outer
            if linear or value.ndim == 3:
                packed, state = functional.quantize_4bit(value.data, compress_statistics=True, quant_type="nf4")
                value.data = functional.dequantize_4bit(packed, state)
    return model


def test_the_hub_layout_is_one_tensor_for_each_expert(saved: tuple[str, Path, Any]) -> None:
    from factory.machine import safetensors_header

    names = safetensors_header(saved[1] / "model.safetensors")
    assert any(".experts.3." in name for name in names)
    assert not any("gate_up_proj" in name for name in names)


def test_a_teacher_loaded_in_4_bit_takes_half_a_byte_for_each_parameter(saved: tuple[str, Path, Any]) -> None:
    _, path, wide = saved
    model, _ = load(str(path), bits=4, device="cpu")
    found, before = footprint(model), footprint(wide)
    assert found.parameters == before.parameters == sum(p.numel() for p in wide.parameters())
    assert before.bytes_per_parameter == 2.0
    assert 0.5 < found.bytes_per_parameter < 0.53
    assert found.wide_share < 0.01
    assert found.size_bytes < 0.5 * before.size_bytes


def test_it_computes_what_its_rounded_weights_compute(saved: tuple[str, Path, Any]) -> None:
    kind, path, wide = saved
    model, _ = load(str(path), bits=4, device="cpu")
    ids = torch.randint(1, 300, (3, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        quantized, expected = model(ids).logits.float(), rounded(tiny(kind))(ids).logits.float()
        original = wide(ids).logits.float()
    # At most tokens: where two experts are near a tie, how a processor rounds bfloat16 decides.
    to_expected, to_original = (
        torch.nn.functional.cosine_similarity(quantized, other, dim=-1).median() for other in (expected, original)
    )
    assert to_expected > 0.9995
    assert 0.9 < to_original < 0.9995


def test_the_library_s_own_4_bit_path_leaves_experts_wide_and_is_refused(saved: tuple[str, Path, Any]) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(
        saved[1], quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    assert footprint(model).bytes_per_parameter > 1.5
    with pytest.raises(NotQuantizedError, match=f"at most {MOST_BYTES}"):
        check_quantized(model)


def test_a_teacher_that_stayed_wide_is_refused_with_ways_on(
    saved: tuple[str, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import factory.teachers_local as module

    monkeypatch.setattr(module, "nf4_with_experts", lambda: None)
    plan = TeacherPlan("./m", "local", "m", "", str(saved[1]), bits=4, device="cpu")
    with pytest.raises(TeacherError, match=r"2\.00 bytes a parameter.*--teacher recorded"):
        open_teacher(plan)


def test_it_answers_through_the_model_interface(saved: tuple[str, Path, Any], tmp_path: Path) -> None:
    """The whole way: spec, plan (4 bit, as memory has room for no more), weights, batched answers; the same twice when greedy."""
    path = saved[1]
    plan = resolve_teacher(str(path), DistillSettings(), Machine(0.0, 1.0012, 100.0, tmp_path))
    assert (plan.bits, plan.device) == (4, "cpu")
    model = open_teacher(plan)
    requests = [
        Request(messages=(Message(role="user", content=text),), sampling=Sampling(max_tokens=6), id=text)
        for text in ("select the name", "a", "where the score is highest")
    ]
    first, second = answer(model, requests), answer(model, requests)
    model.close()
    assert [reply.id for reply in first] == [request.id for request in requests]
    assert all(reply.error is None and 1 <= reply.usage.completion_tokens <= 6 for reply in first)
    assert [reply.text for reply in first] == [reply.text for reply in second]


@pytest.mark.parametrize("shape", [(4, 64, 128), (3, 7, 11)])
def test_packing_a_stack_by_matrices_is_packing_it_whole(shape: tuple[int, int, int]) -> None:
    from bitsandbytes import functional

    stack = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    packed, state = pack(stack)
    whole, expected = functional.quantize_4bit(stack, compress_statistics=True, quant_type="nf4")
    assert torch.equal(packed, whole)
    assert torch.equal(functional.dequantize_4bit(packed, state), functional.dequantize_4bit(whole, expected))


def test_expert_stacks_are_found_by_shape() -> None:
    names = expert_parameters(tiny("mixtral"))
    assert len(names) == 4
    assert all("experts" in name for name in names)


def test_a_dense_teacher_takes_the_same_way(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path)
    options = {"quantization_config": nf4_with_experts(), "dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    assert check_quantized(AutoModelForCausalLM.from_pretrained(tmp_path, **options)).bytes_per_parameter < 0.54


def test_weights_that_cannot_be_loaded_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such thing"}')
    plan = TeacherPlan("./m", "local", "m", "", str(tmp_path), bits=16, device="cpu")
    with pytest.raises(TeacherError, match="cannot be loaded") as caught:
        open_teacher(plan)
    assert "\n" not in str(caught.value)
