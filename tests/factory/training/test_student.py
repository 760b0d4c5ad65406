"""Names and specs, and models made from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import student
from factory.machine import HubState, Machine
from factory.scratch import EOS, SCRATCH, Shape, init_weights, new_model
from factory.settings import StudentSettings
from factory.student import STUDENTS, StudentError, prepare_student, resolve_student, training_gb

TEXTS = ["<c0> name<c1> year<q> which name in 1999"] * 3 + [f"<q> word{i} other{i * 7}" for i in range(400)]


def machine(monkeypatch: pytest.MonkeyPatch, ram: float = 20.0, disk: float = 100.0) -> None:
    monkeypatch.setattr(student, "look_at_machine", lambda: Machine(0.0, ram, disk, Path("/cache")))
    monkeypatch.setattr(student, "hub_state", lambda model_id: HubState(problem="cannot be reached"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("scratch:huge", ["scratch:huge", "scratch:tiny", "scratch:base"]),
        ("qwen2.5-05b", ["did you mean 'qwen2.5-0.5b'", "gemma3-270m", "hub:ORG/NAME"]),
        ("hub:gpt", ["'gpt' is not a hub name"]),
        ("smollm2-135m", ["HuggingFaceTB/SmolLM2-135M-Instruct", "cannot be reached"]),
        ("./absent", ["there is no directory absent"]),
    ],
)
def test_what_cannot_be_is_one_sentence(spec: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    with pytest.raises(StudentError) as error:
        resolve_student(spec, StudentSettings())
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_memory_need_and_have(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, ram=3.0)
    with pytest.raises(
        StudentError, match=r"needs about \d+\.\d GB to train and this machine has 3\.0 GB free; .*--adapter qlora"
    ):
        resolve_student("danube3-4b", StudentSettings())
    assert resolve_student("scratch:tiny", StudentSettings()).need_gb < 3


def test_download_against_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, disk=0.1)
    monkeypatch.setattr(student, "hub_state", lambda model_id: HubState("abc", False, "apache-2.0"))
    with pytest.raises(StudentError, match=r"download of 0\.3 GB and /cache has 0\.1 GB free"):
        resolve_student("smollm2-135m", StudentSettings())
    machine(monkeypatch)
    monkeypatch.setattr(student, "hub_state", lambda model_id: HubState("abc", False, "apache-2.0"))
    plan = resolve_student("smollm2-135m", StudentSettings())
    assert (plan.adapter, plan.dialect, plan.revision, plan.license) == ("lora", "plain", "abc", "apache-2.0")
    assert 0.2 < plan.download_gb < 0.3


def test_need_grows_with_what_is_trained() -> None:
    facts = STUDENTS["qwen2.5-1.5b"]
    needs = [training_gb(facts, a, 8, 1024, 16, "plain") for a in ("none", "lora", "qlora")]
    assert needs == sorted(needs, reverse=True) and needs[0] > 16 * 1.5


def test_directory_is_a_student(student_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch)
    plan = resolve_student(str(student_dir), StudentSettings())
    assert (plan.kind, plan.dialect, plan.hidden, plan.adapter) == ("directory", "plain", 32, "lora")
    assert prepare_student(plan, [], [], tmp_path / "x", 0) == student_dir
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(StudentError, match="is an adapter; merge it"):
        resolve_student(str(tmp_path), StudentSettings())


def test_shapes() -> None:
    for shape in SCRATCH.values():
        assert shape.hidden % 256 == 0 and shape.inner % 256 == 0
    sizes = [shape.parameters for shape in SCRATCH.values()]
    assert 3 < sizes[0] < 6 and 6 < sizes[1] < 10 and 20 < sizes[2] < 30


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    machine(monkeypatch)
    monkeypatch.setitem(SCRATCH, "tiny", Shape(32, 64, 2, 2, 2, 600))
    plan = resolve_student("scratch:tiny", StudentSettings())
    return prepare_student(plan, TEXTS, ["<c0>", "<c1>", "<q>"], tmp_path / "a", 7)


def test_scratch_is_deterministic_and_reused(made: Path, tmp_path: Path) -> None:
    plan = resolve_student("scratch:tiny", StudentSettings())
    again = prepare_student(plan, TEXTS, ["<c0>", "<c1>", "<q>"], tmp_path / "b", 7)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (made / name).read_bytes() == (again / name).read_bytes()
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert prepare_student(plan, TEXTS, ["<c0>", "<c1>", "<q>"], made, 7) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
    prepare_student(plan, TEXTS, ["<c0>", "<c1>", "<q>"], made, 8)
    assert (made / "model.safetensors").read_bytes() != (again / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*tmp"))
    assert not list(made.glob("*.bin"))


def test_scratch_tokenizer(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    assert len(tokenizer) == 600 and tokenizer.eos_token == EOS and tokenizer.bos_token is None
    steps = json.loads((made / "tokenizer.json").read_text())
    assert steps["normalizer"] is None
    assert steps["pre_tokenizer"]["type"] == "ByteLevel" and steps["pre_tokenizer"]["use_regex"] is True
    for token in ("<c0>", "<q>"):
        assert tokenizer.encode(f"a{token}b", add_special_tokens=False)[1:-1] == [tokenizer.convert_tokens_to_ids(token)]
    text = "<c0> straße naïve 12.5<c1> x\n<q>\ttab 🙂 end"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text, "tokens of the dialect are text, not control tokens"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert rendered == "<|user|>hi<|assistant|>"
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert len(ids) == 2 + len(tokenizer.encode("hi", add_special_tokens=False))
    # Merges do not run across whole tokens: no token of the vocabulary holds a piece of one.
    assert not [t for t in tokenizer.get_vocab() if "<c" in t and t not in ("<c0>", "<c1>")]


@pytest.mark.parametrize("induction", [False, True])
def test_init_weights(tokenizer: Any, induction: bool) -> None:
    model = new_model(Shape(64, 64, 2, 2, 2, 330), tokenizer)
    for p in model.parameters():
        torch.nn.init.constant_(p, float("nan"))
    init_weights(model, 3, induction)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    first = {n: p.clone() for n, p in model.named_parameters()}
    init_weights(model, 3, induction)
    assert all(torch.equal(p, first[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("induction", [False, True])
def test_induction_heads_copy_before_any_training(induction: bool) -> None:
    """Random tokens said twice: the second time, the next token follows from the first."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=2048, hidden_size=256, num_hidden_layers=4, intermediate_size=512, num_attention_heads=4,
                         num_key_value_heads=4, tie_word_embeddings=True)  # fmt: skip
    model = LlamaForCausalLM(config)
    init_weights(model, 0, induction)
    once = torch.randint(0, 2048, (8, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(torch.cat([once, once], dim=1)).logits
    right = (logits[:, 40:-1].argmax(-1) == once[:, 1:]).float().mean().item()
    assert right > 0.1 if induction else right < 0.01


def test_induction_refuses_grouped_heads(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="4 query / 2 key"):
        init_weights(new_model(Shape(64, 64, 2, 4, 2, 330), tokenizer), 0)


def test_system_messages_move_into_the_users_turn(student_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Danube's template, which refuses the system role."""
    import shutil

    from transformers import AutoTokenizer

    machine(monkeypatch)
    strict = tmp_path / "strict"
    shutil.copytree(student_dir, strict)
    (strict / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    )
    plan = resolve_student(str(strict), StudentSettings())
    base = prepare_student(plan, [], [], tmp_path / "base", 0)
    assert base == tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|user|>be brief\n\nhi"
    assert tokenizer.apply_chat_template(messages[1:], tokenize=False) == "<|user|>hi"
    assert (base / "model.safetensors").is_symlink()
