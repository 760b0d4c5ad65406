"""Adapters of single requests on one transformers model: each answers as it does alone, nothing of it stays."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from agents import Persona
from agents.card import BaseEntry
from agents.chat import Adapter, Message, Request, Sampling, answer
from agents.models import open_model

TEXTS = ("how many rivers?", "texas", "the state of texas and its rivers", "x")


def make(base: Path, out: Path, seed: int, **config: Any) -> str:
    torch.manual_seed(seed)
    wanted = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "up_proj"], "init_lora_weights": False, **config}
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**wanted)).save_pretrained(out)
    return str(out)


@pytest.fixture(scope="module")
def adapters(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("peft")
    return [make(model_dir, place / "one", 1), make(model_dir, place / "two", 2, r=8, use_rslora=True)]


@pytest.fixture
def model(model_dir: Path) -> Iterator[Any]:
    opened = open_model(str(model_dir), batch=4)
    yield opened
    opened.close()


def ask(text: str, *adapters: Adapter, tokens: int = 10) -> Request:
    sampling = Sampling(max_tokens=tokens, logprobs=True)
    return Request(messages=(Message(role="user", content=text),), sampling=sampling, adapters=adapters)


def test_mixed_requests_answer_as_each_adapter_s_own_model_alone(model: Any, model_dir: Path, adapters: list[str]) -> None:
    sets = [(), *((Adapter(path=path),) for path in adapters)]
    alone = [
        [reply.text for reply in answer(open_model(path), [ask(text) for text in TEXTS])] for path in (str(model_dir), *adapters)
    ]
    assert len({tuple(texts) for texts in alone}) == 3
    requests = [ask(text, *chosen) for text in TEXTS for chosen in sets]
    for _ in range(2):
        replies = answer(model, requests)
        assert [reply.text for reply in replies] == [alone[k][i] for i in range(len(TEXTS)) for k in range(len(sets))]
    turns = [answer(model, [ask(TEXTS[0], *sets[turn % 3])])[0].text for turn in range(30)]
    assert turns == [alone[turn % 3][0] for turn in range(30)]


def test_scales_and_sets_are_peft_s(model: Any, model_dir: Path, adapters: list[str]) -> None:
    one, two = adapters
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), one, adapter_name="one")
    peft.load_adapter(two, adapter_name="two")
    for layer in (module for module in peft.modules() if isinstance(module, LoraLayer)):
        for name, scale in (("one", 0.5), ("two", 2.0)):
            layer.scaling[name] *= scale
    peft.base_model.set_adapter(["one", "two"])
    ids = model.prompt_ids([Message(role="user", content=TEXTS[0])])
    with torch.no_grad():
        expected = torch.log_softmax(peft.eval()(torch.tensor([ids])).logits[0, -1], -1).max().item()
    chosen = (Adapter(path=one, scale=0.5), Adapter(path=two, scale=2.0))
    assert answer(model, [ask(TEXTS[0], *chosen)])[0].logprobs[0].logprob == pytest.approx(expected, abs=1e-5)
    halves = (Adapter(path=one, scale=0.5), Adapter(path=one, scale=0.5))
    whole = answer(model, [ask(TEXTS[0], Adapter(path=one))])[0]
    assert answer(model, [ask(TEXTS[0], *halves)])[0].logprobs == whole.logprobs
    bare = answer(model, [ask(TEXTS[0])])[0]
    assert answer(model, [ask(TEXTS[0], Adapter(path=one, scale=0.0))])[0].logprobs == bare.logprobs


def test_threads_with_different_adapters_do_not_meet(model: Any, adapters: list[str]) -> None:
    sets = [(), *((Adapter(path=path),) for path in adapters)]
    alone = [answer(model, [ask(TEXTS[0], *chosen, tokens=24)])[0].text for chosen in sets]
    wrong: list[tuple[int, str]] = []

    def work(k: int) -> None:
        for _ in range(12):
            text = answer(model, [ask(TEXTS[0], *sets[k], tokens=24)])[0].text
            if text != alone[k]:
                wrong.append((k, text))

    threads = [threading.Thread(target=work, args=(k % 3,)) for k in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_two_answers_begun_side_by_side_in_one_thread_do_not_meet(model: Any, adapters: list[str]) -> None:
    sets = [(Adapter(path=path),) for path in adapters]
    alone = [answer(model, [ask(TEXTS[0], *chosen, tokens=24)])[0].text for chosen in sets]
    first, second = (model.generate([ask(TEXTS[0], *chosen, tokens=24), ask("x", *chosen, tokens=2)]) for chosen in sets)
    found: list[dict[int, Any]] = [dict([next(first)]), dict([next(second)])]  # the short ones; the long ones go on in turns
    found[0] |= dict(first)
    found[1] |= dict(second)
    assert [replies[0].text for replies in found] == alone


def test_on_a_model_opened_from_an_adapter_both_are_added(model_dir: Path, adapters: list[str]) -> None:
    own = open_model(adapters[0])
    both = answer(open_model(str(model_dir)), [ask(TEXTS[0], *(Adapter(path=path) for path in adapters))])[0]
    before = answer(own, [ask(TEXTS[0])])[0]
    assert answer(own, [ask(TEXTS[0], Adapter(path=adapters[1]))])[0].text == both.text != before.text
    assert answer(own, [ask(TEXTS[0])])[0].logprobs == before.logprobs


def test_a_replaced_directory_is_read_again(model: Any, model_dir: Path, adapters: list[str], tmp_path: Path) -> None:
    place = tmp_path / "desk"
    shutil.copytree(adapters[0], place)
    request = ask(TEXTS[0], Adapter(path=str(place)))
    first = answer(model, [request])[0].text
    make(model_dir, place, 2, r=8, use_rslora=True)
    assert answer(model, [request])[0].text == answer(model, [ask(TEXTS[0], Adapter(path=adapters[1]))])[0].text != first


def test_training_goes_on_as_before(model: Any, adapters: list[str]) -> None:
    model.model.train()
    before = {name: parameter.requires_grad for name, parameter in model.model.named_parameters()}
    answer(model, [ask("x", Adapter(path=adapters[0]))])
    after = {name.replace(".base_layer", ""): p.requires_grad for name, p in model.model.named_parameters()}
    assert model.model.training
    assert {name: after[name] for name in before} == before
    assert not any(wanted for name, wanted in after.items() if "lora_" in name)


def test_what_cannot_be_added_is_refused_and_the_others_answered(
    model: Any, model_dir: Path, adapters: list[str], tmp_path: Path
) -> None:
    from tests.export.tiny_families import make_family

    damaged = tmp_path / "damaged"
    shutil.copytree(adapters[0], damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"\x08")
    other = make_family("smollm2", tmp_path / "other", seed=7)
    cases = [
        (str(tmp_path / "nowhere"), "no adapter_config.json and adapter_model.safetensors there"),
        (str(damaged), "cannot be read"),
        (make(other, tmp_path / "strange", 3), "has no place in"),
        (make(model_dir, tmp_path / "dora", 4, use_dora=True), r"does more than add A and B \(use_dora\)"),
        (make(model_dir, tmp_path / "saved", 5, modules_to_save=["lm_head"]), r"does more than add A and B \(modules_to_save\)"),
    ]
    replies = answer(model, [ask("x"), *(ask("x", Adapter(path=path)) for path, _ in cases)])
    assert replies[0].error is None
    for reply, (_, said) in zip(replies[1:], cases):
        assert reply.stop_reason == "error" and reply.text == "" and re.search(said, reply.error or ""), reply.error


def test_an_adapter_of_another_base_is_refused_by_its_card(model: Any, adapters: list[str], tmp_path: Path) -> None:
    place = tmp_path / "foreign"
    shutil.copytree(adapters[0], place)
    from tests.agents.test_card import card

    card(base=BaseEntry(id="other", sha256="0" * 64)).save(place)
    reply = answer(model, [ask("x", Adapter(path=str(place)))])[0]
    assert reply.stop_reason == "error" and "made for another base (sha256 000000000000…)" in (reply.error or "")


def test_a_persona_has_its_adapter(model: Any, adapters: list[str]) -> None:
    plain, desk = (
        Persona("desk", model, "Answer.", adapter=adapter, sampling=Sampling(max_tokens=10)) for adapter in (None, adapters[0])
    )
    alone = plain("texas").text
    assert desk("texas").text != alone == plain("texas").text
