from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from agents.chat import Message, ModelError, Request, Sampling, answer
from agents.constrain import Constraint, accepts, choice, copy_from, json_schema, lark
from agents.models import open_model
from agents.models.hf import TransformersModel
from tests.agents.conftest import make_model, make_tokenizer

QUESTIONS = [
    "how many rivers?",
    "x",
    "which state has the most rivers running through it, and how many of them are there in all?",
    "texas",
    "the state of texas",
    "rivers rivers rivers",
]


def ask(text: str, *, constraint: Constraint | None = None, id: str = "", **sampling: Any) -> Request:
    return Request(messages=(Message(role="user", content=text),), sampling=Sampling(**sampling), constraint=constraint, id=id)


def reference(model: Any, tokenizer: Any, text: str, count: int) -> list[int]:
    """What transformers' own generate writes for one prompt alone, without the end token."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=count, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
    return [token for token in out if token not in (tokenizer.eos_token_id, tokenizer.pad_token_id)]


def test_a_batch_writes_what_generate_writes_for_each_prompt_alone(llama: Any) -> None:
    limits = [24, 3, 12, 24, 1, 17]
    replies = answer(llama, [ask(q, max_tokens=n, logprobs=True, id=q) for q, n in zip(QUESTIONS, limits)])
    for question, limit, reply in zip(QUESTIONS, limits, replies):
        expected = reference(llama.model, llama.tokenizer, question, limit)
        written = [t.id for t in reply.logprobs if t.id != llama.tokenizer.eos_token_id]
        assert written == expected, question
        assert reply.text == llama.tokenizer.decode(expected, skip_special_tokens=True)
        assert reply.id == question
        assert reply.usage.completion_tokens == len(reply.logprobs) <= limit
        assert reply.stop_reason == ("length" if len(expected) == limit else "stop")


def test_rows_come_as_they_finish_and_every_index_once(llama: Any) -> None:
    seen = [i for i, _ in llama.generate([ask("texas", max_tokens=9), ask("how many rivers?", max_tokens=2)] * 6)]
    assert sorted(seen) == list(range(12))
    assert seen[0] % 2 == 1


def test_sliding_window_models_keep_their_own_cache() -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(tokenizer), sliding_window=8, max_position_embeddings=256, initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = TransformersModel(MistralForCausalLM(config).eval(), tokenizer)
    limits = [3, 20, 9, 20, 20, 6]
    replies = answer(model, [ask(q, max_tokens=n, logprobs=True) for q, n in zip(QUESTIONS, limits)])
    for question, limit, reply in zip(QUESTIONS, limits, replies):
        written = [t.id for t in reply.logprobs if t.id != tokenizer.eos_token_id]
        assert written == reference(model.model, tokenizer, question, limit)


def test_sampling_is_reproducible_whatever_the_neighbours(llama: Any) -> None:
    request = ask("how many rivers?", temperature=1.0, max_tokens=12, seed=7)
    alone = answer(llama, [request])[0].text
    among = answer(llama, [ask("texas", max_tokens=5), request, *(ask(q, temperature=1.5, seed=1) for q in QUESTIONS)])[1].text
    others = {r.text for r in answer(llama, [ask("how many rivers?", temperature=1.0, max_tokens=12, seed=s) for s in range(6)])}
    assert alone == among
    assert len(others) > 3


def test_sampled_frequencies_follow_the_model_and_top_p_cuts_the_tail(llama: Any) -> None:
    options = choice(["a", "b", "c", "d"])
    shown = answer(llama, [ask("x", constraint=options, logprobs=True, top_logprobs=4)])[0].logprobs[0].top
    expected = {text: 2.718281828**value for _, text, value in shown}
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    for temperature, top_p in ((1.0, 1.0), (3.0, 1.0), (3.0, 0.6)):
        heated = {text: value ** (1 / temperature) for text, value in expected.items()}
        total, mass, kept = sum(heated.values()), 0.0, {}
        for text, value in sorted(heated.items(), key=lambda item: -item[1]):
            if mass < top_p:
                kept[text] = value / total
            mass += value / total
        n = 600
        requests = [ask("x", constraint=options, temperature=temperature, top_p=top_p, seed=s) for s in range(n)]
        texts = [reply.text for reply in answer(llama, requests)]
        assert set(texts) <= set(kept)
        for text, value in kept.items():
            assert texts.count(text) / n == pytest.approx(value / sum(kept.values()), abs=0.08)


def test_constraints_hold_for_every_row_and_free_rows_stay_free(llama: Any) -> None:
    schema = json_schema({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
                          "required": ["n"], "additionalProperties": False})  # fmt: skip
    kinds = [choice(["yes", "no"]), copy_from("Lake Erie"), schema, lark('start: C C\nC: "<c0>" | "<c1>" | "<c2>"'), None]
    requests = [ask(q, constraint=kinds[i % 5], max_tokens=40) for i, q in enumerate(QUESTIONS * 5)]
    replies = answer(llama, requests)
    for request, reply in zip(requests, replies):
        if request.constraint is not None:
            assert reply.stop_reason == "stop", reply
            assert accepts(request.constraint, reply.text), reply.text
        else:
            expected = reference(llama.model, llama.tokenizer, request.messages[0].content, 40)
            assert reply.text == llama.tokenizer.decode(expected, skip_special_tokens=True)


def test_end_token_may_come_only_where_the_grammar_may_end(llama: Any) -> None:
    replies = answer(llama, [ask(q, constraint=lark("start: /(ab)+/"), max_tokens=30, logprobs=True) for q in QUESTIONS])
    for reply in replies:
        assert reply.text.startswith("ab")
        if reply.stop_reason == "stop":
            assert accepts(lark("start: /(ab)+/"), reply.text)
            assert reply.logprobs[-1].token == "" and reply.logprobs[-1].id == llama.tokenizer.eos_token_id
        assert "".join(t.token for t in reply.logprobs) == reply.text


def test_a_bad_grammar_fails_its_request_only(llama: Any) -> None:
    good, bad, stuck = answer(
        llama,
        [
            ask("x", constraint=choice(["yes"])),
            ask("x", constraint=lark("start: %%")),
            ask("x", constraint=lark("start: A\nA: /a/ & /b/")),
        ],
    )
    assert good.text == "yes"
    assert bad.stop_reason == "error" and "does not compile" in (bad.error or "") and bad.text == ""
    assert stuck.stop_reason == "error" and "constraint failed" in (stuck.error or "") and stuck.text == ""


def test_logprobs_are_those_of_the_masked_logits(llama: Any) -> None:
    reply = answer(llama, [ask("texas", constraint=choice(["a", "b"]), logprobs=True, top_logprobs=5)])[0]
    ids = llama.prompt_ids([Message(role="user", content="texas")])
    with torch.no_grad():
        logits = llama.model(torch.tensor([ids])).logits[0, -1]
    pair = llama.tokenizer.convert_tokens_to_ids(["a", "b"])
    expected = torch.log_softmax(logits[pair], -1)
    top = {token: value for token, _, value in reply.logprobs[0].top}
    assert top == {token: pytest.approx(value.item(), abs=1e-4) for token, value in zip(pair, expected)}
    assert reply.logprobs[0].logprob == pytest.approx(expected.max().item(), abs=1e-4)
    assert answer(llama, [ask("texas")])[0].logprobs == ()


def test_stop_texts_end_an_answer_before_them(llama: Any) -> None:
    whole = answer(llama, [ask("how many rivers?", max_tokens=24)])[0].text
    stop = whole[5:8]
    cut = answer(llama, [ask("how many rivers?", max_tokens=24, stop=(stop, "never there"))])[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.stop_reason == "stop"


def test_an_answer_ends_at_its_time_limit_with_what_there_is(llama: Any) -> None:
    whole = answer(llama, [ask("how many rivers?", max_tokens=24)])[0]
    request = ask("how many rivers?", max_tokens=24).model_copy(update={"timeout_s": 1e-6})
    cut, free = answer(llama, [request, ask("how many rivers?", max_tokens=24)])
    assert (cut.stop_reason, cut.usage.completion_tokens) == ("timeout", 1)
    assert whole.text.startswith(cut.text)
    assert free.text == whole.text


def test_too_long_prompts_lose_their_beginning_and_say_so(llama: Any) -> None:
    words = "rivers of texas " * 200
    length = len(llama.prompt_ids([Message(role="user", content=words)]))
    reply = answer(llama, [ask(words, max_tokens=16)])[0]
    assert reply.truncated_prompt_tokens == length - (512 - 16) > 0
    assert reply.usage.prompt_tokens == 496
    none = answer(llama, [ask("x", max_tokens=512)])[0]
    assert none.stop_reason == "error" and "context of 512" in (none.error or "")


def test_a_consumer_may_leave_early_and_training_mode_comes_back(llama: Any) -> None:
    llama.model.train()
    for _ in llama.generate([ask(q, max_tokens=5) for q in QUESTIONS]):
        assert not llama.model.training
        break
    assert llama.model.training
    llama.model.eval()


def test_adapter_directory_answers_like_the_merged_model(model_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer = make_tokenizer()
    torch.manual_seed(3)
    adapted = get_peft_model(
        make_model(tokenizer),
        LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False),
    )
    adapted.peft_config["default"].base_model_name_or_path = str(model_dir)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    requests = [ask(q, max_tokens=10) for q in QUESTIONS]
    texts = [
        [reply.text for reply in answer(open_model(str(path)), requests)]
        for path in (tmp_path / "adapter", tmp_path / "merged", model_dir)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_bfloat16_on_request(model_dir: Path) -> None:
    model = open_model(f"hf:{model_dir}", dtype="bfloat16", device="cpu")
    assert next(model.model.parameters()).dtype is torch.bfloat16
    assert answer(model, [ask("x", constraint=choice(["yes", "no"]))])[0].text in ("yes", "no")
    model.close()
    model.close()
    with pytest.raises(ModelError, match="closed"):
        answer(model, [ask("x")])


def test_directories_that_cannot_work_are_refused_before_loading(model_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import transformers

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", never)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(model_dir / "config.json", pickled)
    with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
        open_model(str(pickled))
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle"):
        open_model(str(pickled))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"base model .* is not there"):
        open_model(str(adapter))
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(pickled)}))
    with pytest.raises(ModelError, match="is a pickle"):
        open_model(str(adapter))
    empty = tmp_path / "empty"
    empty.mkdir()
    for spec, message in [
        (str(empty), "no config.json"),
        (f"hf:{tmp_path}/nowhere", "is not a directory"),
        (str(tmp_path / "nowhere"), "neither a directory nor a kind"),
        ("gguf:sql.gguf", "there is no such file; give a GGUF file"),
        ("student.gguf", "there is no such file; give a GGUF file"),
        ("onnx:dir", "is no directory"),
    ]:
        with pytest.raises(ModelError, match=message):
            open_model(spec)
    with pytest.raises(ModelError, match="unknown option 'dtyp'; did you mean 'dtype'"):
        open_model(str(model_dir), dtyp="float32")
    with pytest.raises(ModelError, match="option dtype cannot be 'int3'"):
        open_model(str(model_dir), dtype="int3")
    with pytest.raises(ModelError, match="no device 'cuda:9'"):
        open_model(str(model_dir), device="cuda:9")
