"""The llama.cpp backend against transformers on the same weights: logits, tokens, prompts, replies, log-probabilities."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.chat import Adapter, ChatModel, Message, ModelError, Reply, Request, Sampling, StreamingModel, ToolSpec, answer
from agents.constrain import choice, copy_from, json_schema, lark, regex
from agents.models import open_model
from tests.agents.gguf_models import NEEDS_LLAMA, reseal, to_adapter, to_gguf
from tests.export.tiny_families import TEXTS, make_family

pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)


@pytest.fixture(scope="module")
def file(model_dir: Path) -> Path:
    return to_gguf(model_dir)


@pytest.fixture(scope="module")
def gguf(file: Path) -> Iterator[Any]:
    model = open_model(f"gguf:{file}", threads=1, kv="f32")
    yield model
    model.close()


def ask(text: str, **extra: Any) -> Request:
    sampling = {name: extra.pop(name) for name in list(extra) if name in Sampling.model_fields}
    return Request(messages=(Message(role="user", content=text),), sampling=Sampling(**{"max_tokens": 12, **sampling}), **extra)


def test_it_is_a_model_that_streams(gguf: Any) -> None:
    assert isinstance(gguf, ChatModel) and isinstance(gguf, StreamingModel)


def test_logits_are_transformers(gguf: Any, llama: Any) -> None:
    import torch

    ids = gguf.tokenize("how many rivers run through the state of texas? " * 12)
    found = gguf.logits(ids)
    with torch.inference_mode():
        expected = torch.log_softmax(llama.model(torch.tensor([ids])).logits[0], -1).numpy()
    scored = found - np.log(np.exp(found - found.max(-1, keepdims=True)).sum(-1, keepdims=True)) - found.max(-1, keepdims=True)
    kld = (np.exp(expected) * (expected - scored)).sum(-1)
    assert found.shape == expected.shape and len(ids) > 100  # more than one chunk
    assert kld.max() < 2e-6 and (scored.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "phi3", "llama3-rope"])
def test_prompts_are_cut_into_the_same_tokens(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = make_family(kind, tmp_path / kind)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = open_model(str(to_gguf(directory)), threads=1, kv="f32")
    extra = ["e\u0301 decomposed", "<c0> and <c1>", "a  b   c", "", "\n\n x", "tail ", "Ünïcode ☂"]
    for text in [*TEXTS, *extra]:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        if text:
            assert model.tokenize(text) == expected, text
        turns = (Message(role="user", content=text),)
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert model.prompt_ids(turns) == tokenizer(rendered, add_special_tokens=False)["input_ids"], text
    for text in TEXTS:
        ids = model.tokenize(text)
        spoken = b"".join(model._use().weights.pieces[i] for i in ids).decode("utf-8", "replace")
        assert spoken.strip() == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    model.close()


def test_sixteen_bits_of_keys_and_values_cost_little(file: Path, gguf: Any) -> None:
    half: Any = open_model(str(file), threads=1)
    ids = gguf.tokenize("how many rivers run through the state of texas? " * 12)
    assert 1e-6 < np.abs(half.logits(ids) - gguf.logits(ids)).max() < 0.1
    half.close()


BOUND = [
    None,
    choice(["texas", "river", "<c1>"]),
    regex("[a-f]{3,9}"),
    json_schema({"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}, "required": ["n", "s"]}),
    copy_from("rivers run through texas", words=True),
]


@pytest.mark.parametrize("logprobs", [False, True])
def test_replies_are_transformers(gguf: Any, llama: Any, logprobs: bool) -> None:
    requests = [ask(text, constraint=bound, logprobs=logprobs, top_logprobs=3 * logprobs, id=f"{text}{i}", max_tokens=10)
                for i, bound in enumerate(BOUND) for text in ("how many rivers", "texas")]  # fmt: skip
    for found, expected in zip(answer(gguf, requests), answer(llama, requests)):
        assert (found.id, found.text, found.stop_reason) == (expected.id, expected.text, expected.stop_reason)
        assert found.usage.prompt_tokens == expected.usage.prompt_tokens
        assert found.usage.completion_tokens == expected.usage.completion_tokens
        assert [one.id for one in found.logprobs] == [one.id for one in expected.logprobs]
        assert [one.token for one in found.logprobs] == [one.token for one in expected.logprobs]
        np.testing.assert_allclose([one.logprob for one in found.logprobs], [one.logprob for one in expected.logprobs], atol=2e-3)
        for ours, theirs in zip(found.logprobs, expected.logprobs):
            assert len(ours.top) == len(theirs.top)
            assert ours.top[:1] == () or ours.top[0][0] == theirs.top[0][0]


def test_sampling_follows_the_distribution_it_reports(gguf: Any) -> None:
    bound = choice(["a", "b", "c"])
    asked = [ask("pick", temperature=1.5, seed=seed, constraint=bound, top_logprobs=3, max_tokens=4) for seed in range(400)]
    replies = answer(gguf, asked)
    first = {token: logprob for _, token, logprob in replies[0].logprobs[0].top}
    heated = {token: np.exp(logprob / 1.5) for token, logprob in first.items()}
    counts = {token: sum(reply.text == token for reply in replies) for token in heated}
    assert sum(counts.values()) == len(replies)
    for token, weight in heated.items():
        share = weight / sum(heated.values())
        assert abs(counts[token] / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5 + 0.01
    again = answer(gguf, asked)
    assert [reply.text for reply in again] == [reply.text for reply in replies]  # a seed says it all
    narrow = answer(gguf, [ask("pick", temperature=1.5, top_p=1e-6, seed=1, constraint=bound)])[0]
    assert narrow.text == max(first, key=lambda token: first[token])


def test_a_stream_is_the_reply_in_pieces(gguf: Any) -> None:
    for request in (ask("rivers", max_tokens=20), ask("x", constraint=choice(["größer ☂ oder kleiner"]), max_tokens=60)):
        *pieces, reply = gguf.stream(request)
        assert isinstance(reply, Reply) and all(isinstance(piece, str) for piece in pieces)
        assert "".join(pieces) == reply.text == answer(gguf, [request])[0].text
    assert len(pieces) > 5


def test_no_stop_text_is_ever_shown(gguf: Any) -> None:
    bound = choice(["one, two, three; four"])
    plain = answer(gguf, [ask("x", constraint=bound, max_tokens=40)])[0]
    for stop in (", th", "three;", "o", "zzz"):
        *pieces, reply = gguf.stream(ask("x", constraint=bound, stop=(stop, ";;;"), max_tokens=40))
        expected = plain.text.split(stop)[0]
        assert "".join(pieces) == reply.text == expected
        assert reply.stop_reason == "stop"


def test_a_stream_given_up_frees_its_slot(file: Path) -> None:
    model: Any = open_model(str(file), threads=1, kv="f32", batch=1)
    for _ in range(3):
        stream = model.stream(ask("rivers", constraint=regex("[ab]{400}"), max_tokens=400))
        next(stream)
        stream.close()
    reply = answer(model, [ask("texas", constraint=choice(["yes"]))])[0]
    assert reply.text == "yes" and reply.timings.queue_ms < 5000
    iterator = model.generate(
        [ask("x", constraint=regex("[ab]{400}"), max_tokens=400)] * 5 + [ask("y", constraint=choice(["k"]))]
    )
    next(iterator)
    iterator.close()
    assert answer(model, [ask("texas", constraint=choice(["no"]))])[0].text == "no"
    model.close()


def test_a_time_limit_ends_with_what_there_is(gguf: Any) -> None:
    request = ask("x", constraint=regex("[ab]{400}"), max_tokens=400, timeout_s=0.05)
    start = time.perf_counter()
    reply = answer(gguf, [request])[0]
    assert reply.stop_reason == "timeout" and set(reply.text) <= {"a", "b"} and len(reply.text) < 400
    assert time.perf_counter() - start < 5


def test_long_prompts_follow_the_policy_and_are_counted(file: Path, gguf: Any, llama: Any) -> None:
    long = ask("many rivers " * 300, max_tokens=12)
    kept, expected = answer(gguf, [long])[0], answer(llama, [long])[0]
    assert kept.truncated_prompt_tokens == expected.truncated_prompt_tokens > 0
    assert kept.text == expected.text
    refusing = open_model(str(file), threads=1, kv="f32", overflow="refuse")
    reply = answer(refusing, [long])[0]
    assert reply.stop_reason == "error" and "refuse" not in (reply.error or "") and "shorten it" in (reply.error or "")
    refusing.close()
    dropping: Any = open_model(str(file), threads=1, kv="f32", overflow="drop_oldest")
    turns = [Message(role="system", content="SYS")]
    for number in range(30):
        turns += [Message(role="user", content=f"question {number} about rivers"), Message(role="assistant", content="so")]
    turns.append(Message(role="user", content="last question"))
    reply = answer(dropping, [Request(messages=tuple(turns), sampling=Sampling(max_tokens=8), static_messages=1)])[0]
    assert reply.truncated_prompt_tokens > 0 and reply.error is None
    most = dropping.context - 8
    fits = [n for n in range(0, 60, 2) if len(dropping.prompt_ids([turns[0], *turns[1 + n :]])) <= most]
    assert reply.usage.prompt_tokens == len(dropping.prompt_ids([turns[0], *turns[1 + fits[0] :]]))
    dropping.close()
    assert "leaves no room" in (answer(gguf, [ask("x", max_tokens=5000)])[0].error or "")


def test_grammars_fail_closed(gguf: Any) -> None:
    bad, stuck = ask("x", constraint=lark("start: nothing_here"), id="b"), ask("x", constraint=regex("[^\\x00-\\xff]{3}x{2}"))
    replies = answer(gguf, [bad, ask("x", constraint=choice(["ok"])), stuck])
    assert replies[0].stop_reason == "error" and "does not compile" in (replies[0].error or "") and replies[0].id == "b"
    assert replies[1].text == "ok"
    assert replies[2].error is None  # another grammar's failure is its own


def test_opened_twice_it_is_shared_until_the_last_is_closed(file: Path, gguf: Any) -> None:
    other: Any = open_model(str(file), threads=1, kv="f32", overflow="refuse")
    assert other._use() is gguf._use()
    apart: Any = open_model(str(file), threads=1, kv="f32", batch=2)
    assert apart._use() is not gguf._use()
    apart.close()
    other.close()
    other.close()
    assert answer(gguf, [ask("x", constraint=choice(["still"]))])[0].text == "still"
    with pytest.raises(ModelError, match="was closed"):
        answer(other, [ask("x")])


def test_tools_reach_the_template(gguf: Any, llama: Any) -> None:
    tool = ToolSpec(name="lookup", description="d", parameters={"type": "object"})
    turns = (Message(role="user", content="x"),)
    assert gguf.prompt_ids(turns, (tool,)) == llama.prompt_ids(turns, (tool,))


def test_an_adapter_of_another_base_is_refused(file: Path, gguf: Any, model_dir: Path, tmp_path: Path) -> None:
    from tests.agents.conftest import make_model, make_tokenizer

    other = tmp_path / "other"
    make_tokenizer().save_pretrained(other)
    make_model(make_tokenizer(), seed=9).save_pretrained(other)
    adapter = to_adapter(other, tmp_path / "adapter", seed=1)
    reply = answer(gguf, [ask("x", adapters=(Adapter(path=str(adapter)),))])[0]
    assert reply.stop_reason == "error" and "another base" in (reply.error or "")
    for path, words in ((file, "not a LoRA adapter"), (tmp_path / "none.gguf", "no such file")):
        assert words in (answer(gguf, [ask("x", adapters=(Adapter(path=str(path)),))])[0].error or "")
    with pytest.raises(ModelError, match="an adapter, not a model"):
        open_model(str(adapter))


def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path, file: Path) -> None:
    empty, cut, flipped = tmp_path / "empty.gguf", tmp_path / "cut.gguf", tmp_path / "flipped.gguf"
    empty.write_bytes(b"")
    data = file.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    at = len(data) - 1000
    flipped.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    for path in (empty, cut, flipped, tmp_path / "none.gguf"):
        with pytest.raises(ModelError) as caught:
            open_model(str(path))
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_foreign_files_are_tried_in_another_process(file: Path, tmp_path: Path, llama: Any) -> None:
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(file.read_bytes())
    reseal(foreign)
    model: Any = open_model(str(foreign), threads=1, kv="f32")
    assert answer(model, [ask("rivers")])[0].text == answer(llama, [ask("rivers")])[0].text
    model.close()
    deadly = tmp_path / "deadly.gguf"
    data = foreign.read_bytes()
    assert data.count(b"gpt2") >= 1
    deadly.write_bytes(data.replace(b"gpt2", b"none", 1))  # a vocabulary of a kind that llama.cpp aborts on
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load it"):
        open_model(str(deadly))


def test_without_llama_cpp_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    from agents.models.llama_library import library

    library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", None)
    with pytest.raises(ModelError, match=r"pip install 'penknife\[gguf\]'.*cmake.*GGML_NATIVE=OFF"):
        open_model(str(file))


def test_a_model_left_open_does_not_disturb_the_end(file: Path) -> None:
    program = (
        "from agents.models import open_model\nfrom agents.chat import *\n"
        f"m = open_model({str(file)!r}, threads=1)\n"
        "s = m.stream(Request(messages=(Message(role='user', content='x'),), sampling=Sampling(max_tokens=300)))\n"
        "print(type(next(s)).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "str\n", "")
