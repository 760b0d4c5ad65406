"""The engine behind GGUF models: who may share keys and values, who waits for whom, what many threads at once get."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.chat import Adapter, Message, ModelError, Request, Sampling, answer
from agents.constrain import choice, json_schema, regex
from agents.models import open_model
from agents.models.llama_prefix import Memory, shared
from agents.models.llama_width import Widths
from tests.agents.gguf_models import NEEDS_LLAMA, to_adapter, to_gguf

pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)

PERSONA = "You answer questions about the rivers of texas and the states they run through, in few words. "


@pytest.fixture(scope="module")
def file(model_dir: Path) -> Path:
    return to_gguf(model_dir)


@pytest.fixture(scope="module")
def adapters(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("adapters")
    return [str(to_adapter(model_dir, place / f"a{seed}", seed)) for seed in (1, 2)]


@pytest.fixture
def gguf(file: Path) -> Iterator[Any]:
    model = open_model(str(file), threads=1, kv="f32")
    yield model
    model.close()


def ask(text: str, tokens: int = 8, persona: str = "", **extra: Any) -> Request:
    turns = [Message(role="system", content=persona)] if persona else []
    messages = (*turns, Message(role="user", content=text))
    return Request(messages=messages, sampling=Sampling(max_tokens=tokens), static_messages=len(turns), **extra)


# ------------------------------------------------------------------------------------------------ adapters


def test_two_adapters_in_alternation_answer_as_each_alone(file: Path, adapters: list[str]) -> None:
    """1,000 turns, one request after another, over three adapter sets and a scale, against engines that know only one set."""
    sets = [(Adapter(path=adapters[0]),), (Adapter(path=adapters[1]),), (), (Adapter(path=adapters[0], scale=0.5),)]
    texts = [f"how many rivers run through {name}" for name in ("texas", "the state", "ohio")]
    alone: dict[tuple[int, str], str] = {}
    for number, chosen in enumerate(sets):
        model = open_model(str(file), threads=1, kv="f32", kept=number)  # an engine of its own
        for text in texts:
            reply = answer(model, [ask(text, persona=PERSONA, adapters=chosen)])[0]
            alone[number, text] = reply.text
        model.close()
    assert len({alone[number, texts[0]] for number in range(4)}) == 4, "the adapters must change what is answered"
    model = open_model(str(file), threads=1, kv="f32")
    reused = 0
    for turn in range(1000):
        number, text = turn % 4 if turn % 8 < 4 else turn % 2, texts[turn % 3]
        reply = answer(model, [ask(text, persona=PERSONA, adapters=sets[number])])[0]
        assert reply.text == alone[number, text], (turn, number, text)
        reused += reply.usage.reused_tokens > 0
    assert reused > 900  # and yet prompts were not worked out anew
    model.close()


def test_logits_show_the_adapters_of_the_request_alone(gguf: Any, adapters: list[str], model_dir: Path) -> None:
    ids = gguf.tokenize("how many rivers run through the state of texas")
    base, first, both = (
        gguf.logits(ids, chosen) for chosen in ((), ((adapters[0], 1.0),), ((adapters[0], 1.0), (adapters[1], 0.5)))
    )
    again = gguf.logits(ids)
    np.testing.assert_array_equal(base, again)
    assert np.abs(first - base).max() > 0.1 and np.abs(both - first).max() > 0.05
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapters[0].removesuffix(".gguf")).eval()
    with torch.inference_mode():
        expected = peft(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(first, expected, atol=2e-3)


def test_a_replaced_adapter_file_is_another_adapter(file: Path, adapters: list[str], tmp_path: Path) -> None:
    """Also of a prompt whose keys and values are still in memory under the old one."""
    place = tmp_path / "desk.gguf"
    shutil.copy(adapters[0], place)
    model = open_model(str(file), threads=1, kv="f32")
    request = ask("how many rivers run through texas", persona=PERSONA, adapters=(Adapter(path=str(place)),))
    first = answer(model, [request])[0].text
    assert first == answer(model, [request])[0].text
    shutil.copy(adapters[1], place)
    other = request.model_copy(update={"adapters": (Adapter(path=adapters[1]),)})
    assert answer(model, [request])[0].text == answer(model, [other])[0].text != first
    place.unlink()
    gone = answer(model, [request])[0]
    assert gone.stop_reason == "error" and "there is no such file" in (gone.error or "")
    model.close()


def test_a_close_waits_for_those_who_cut_text(file: Path) -> None:
    """A hundred openings closed while other threads tokenize: each call ends with ids or with the sentence, never in a crash."""
    wrong: list[BaseException] = []

    def cut(model: Any) -> None:
        try:
            while True:
                model.tokenize("how many rivers run through texas " * 50)
        except ModelError as error:
            if "was closed; open it again" not in str(error):
                wrong.append(error)
        except BaseException as error:
            wrong.append(error)

    for _ in range(100):
        model = open_model(str(file), threads=1, kv_tokens=64, context=64)
        threads = [threading.Thread(target=cut, args=(model,)) for _ in range(3)]
        [thread.start() for thread in threads]
        model.close()
        [thread.join(30) for thread in threads]
        assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_adapter_sets_take_turns(file: Path, adapters: list[str]) -> None:
    """A short request under one adapter does not wait for a long one under another to end."""
    model: Any = open_model(str(file), threads=1, kv="f32")
    long = ask("x", 400, adapters=(Adapter(path=adapters[0]),), constraint=regex("[ab]{390}"))
    short = ask("y", 8, adapters=(Adapter(path=adapters[1]),), constraint=choice(["done"]))
    order = [index for index, _ in model.generate([long, short])]
    assert order == [1, 0]
    model.close()


# ------------------------------------------------------------------------------------------------ prefixes


def test_a_personas_prompt_is_worked_out_once(gguf: Any) -> None:
    first, second = (answer(gguf, [ask(text, persona=PERSONA)])[0] for text in ("how many rivers", "which state is it"))
    static = len(gguf.tokenize("<|system|>" + PERSONA))
    assert first.usage.reused_tokens == 0 and static > 30
    assert static <= second.usage.reused_tokens < second.usage.prompt_tokens
    other = answer(gguf, [ask("how many rivers", persona="Another. " + PERSONA)])[0]
    assert other.usage.reused_tokens < 10


def test_requests_of_one_persona_at_once_wait_for_its_prompt(file: Path) -> None:
    model: Any = open_model(str(file), threads=1, kv="f32")
    replies = answer(model, [ask(f"{i} rivers", persona=PERSONA * 2) for i in range(6)])
    assert sum(reply.usage.reused_tokens == 0 for reply in replies) == 1
    model.close()


def test_a_conversation_goes_on_where_it_was(gguf: Any) -> None:
    first = answer(gguf, [ask("how many rivers run through texas", constraint=choice(["seven"]))])[0]
    turns = (Message(role="user", content="how many rivers run through texas"), Message(role="assistant", content=first.text))
    more = Request(messages=(*turns, Message(role="user", content="sure?")), sampling=Sampling(max_tokens=4))
    assert answer(gguf, [more])[0].usage.reused_tokens >= first.usage.prompt_tokens


def test_memory_is_never_promised_twice() -> None:
    """Random arrivals and ends: what is taken stays within the cells, and equals a count of every place by hand."""
    gone: list[int] = []
    memory = Memory(cells=600, sequences=12, kept=6, forget=gone.append)
    dice, live = random.Random(0), []
    for step in range(3000):
        if live and (dice.random() < 0.45 or len(live) == 5):
            held = live.pop(dice.randrange(len(live)))
            held.ids.extend(dice.choices(range(50), k=dice.randint(0, 5)))
            held.ready = min(len(held.ids), held.spans[-1][2])
            if dice.random() < 0.3:
                memory.keep_start(held, min(held.ready, 8))
            memory.end(held)
        else:
            key = dice.choice(["a", "b"])
            ids = [dice.choice([1, 2])] * dice.choice([0, 8, 20]) + dice.choices(range(50), k=dice.randint(2, 60))
            source, count = memory.best(key, ids)
            assert source is None or (source.key == key and source.ids[:count] == ids[:count] and count < len(ids))
            held = memory.begin(key, list(ids), dice.randint(1, 40), source, count)
            if held is not None:
                held.ready = len(ids)
                live.append(held)
            else:
                assert live
        places = {(origin, at) for held in memory.held for origin, start, end in held.spans for at in range(start, end)}
        assert memory.taken() == len(places) <= 600, step
        numbers = [held.number for held in memory.held]
        assert len(set(numbers)) == len(numbers) <= 12
    assert gone


def test_shared_counts_the_common_beginning() -> None:
    dice = random.Random(1)
    for _ in range(300):
        one, other = (dice.choices([1, 2], k=dice.randint(0, 9)) for _ in range(2))
        most = min(len(one), len(other))
        by_hand = next((i for i in range(most) if one[i] != other[i]), most)
        assert shared(one, other, most) == by_hand


def test_little_memory_delays_and_too_little_is_a_sentence(file: Path) -> None:
    model: Any = open_model(str(file), threads=1, kv="f32", kv_tokens=96, context=90)
    replies = answer(model, [ask(f"{i} rivers run", 40, constraint=regex("[ab]{30}")) for i in range(6)])
    assert [len(reply.text) for reply in replies] == [30] * 6
    model.close()


# ------------------------------------------------------------------------------------------------ widths


def test_the_width_with_the_most_tokens_a_second_is_used() -> None:
    seconds = {1: 1.0, 2: 4.0, 4: 5.0, 8: 6.0, 16: 8.0}  # two at once are slower than one after another, sixteen quicker
    widths = Widths()
    for count in (1, 2, 4, 8, 16):
        for _ in range(12):
            width = widths.best(count)
            widths.learn(width, seconds[width])
    assert [widths.best(count) for count in (1, 2, 4, 8, 16)] == [1, 1, 1, 8, 16]


# ------------------------------------------------------------------------------------------------ threads


def stress(file: Path, threads: int, seconds: float, adapters: list[str]) -> tuple[int, list[str], float, float]:
    """Ask from many threads; returns how many were answered, what was wrong, and resident MB after a warm-up and at the end.

    Every request spells its own number under a grammar, or is compared with the engine's answer to it alone.
    """
    import psutil

    model: Any = open_model(str(file), threads=1, kv="f32")
    sets: list[tuple[Adapter, ...]] = [(), *((Adapter(path=path),) for path in adapters)]
    plain = [ask(f"rivers of {i}", 6, persona=PERSONA, adapters=sets[i % len(sets)]) for i in range(12)]
    alone = [answer(model, [request])[0].text for request in plain]
    wrong: list[str] = []
    counts = [0] * threads
    until = time.monotonic() + seconds
    schema = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"], "additionalProperties": False}

    def work(me: int) -> None:
        dice = random.Random(me)
        while time.monotonic() < until and not wrong:
            kind, number = dice.randrange(4), dice.randrange(10**6)
            if kind == 0:
                reply = answer(model, [plain[number % 12]])[0]
                good = reply.text == alone[number % 12]
            elif kind == 1:
                mine = f"thread {me} number {number}"
                *pieces, reply = model.stream(ask(mine, 60, constraint=choice([mine])))
                good = "".join(pieces) == reply.text == mine
            elif kind == 2:
                request = ask(
                    "x", 30, persona=PERSONA, constraint=json_schema({**schema, "properties": {"id": {"const": number}}})
                )
                reply = answer(model, [request])[0]
                good = reply.text == f'{{"id":{number}}}'
            else:
                stream = model.stream(ask(f"{number}", 200, constraint=regex("[ab]{190}")))
                next(stream)
                stream.close()
                counts[me] += 1
                continue
            counts[me] += 1
            if not good:
                wrong.append(f"thread {me}, kind {kind}, number {number}: {reply!r}")

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    process, early = psutil.Process(), 0.0
    time.sleep(seconds / 4)
    gc.collect()
    early = process.memory_info().rss / 1e6
    for worker in workers:
        worker.join()
    assert model._use().engine.load == (0, 0) or time.sleep(0.5) is None
    late = process.memory_info().rss / 1e6
    model.close()
    return sum(counts), wrong, early, late


def test_sixty_four_threads_get_their_own_answers(file: Path, adapters: list[str]) -> None:
    answered, wrong, _, _ = stress(file, 64, 3.0, adapters)
    assert wrong == [] and answered >= 64


@pytest.mark.slow
def test_minutes_of_sixty_four_threads_leave_memory_flat(file: Path, adapters: list[str]) -> None:
    """PENKNIFE_STRESS_S sets the seconds (default 120)."""
    answered, wrong, early, late = stress(file, 64, float(os.environ.get("PENKNIFE_STRESS_S", "120")), adapters)
    print(f"{answered} requests, resident {early:.1f} -> {late:.1f} MB")
    assert wrong == []
    assert late <= 1.05 * early


def test_closing_ends_what_runs(file: Path) -> None:
    model: Any = open_model(str(file), threads=1, kv="f32", batch=3)
    ended: list[str] = []

    def work() -> None:
        ended.extend(reply.stop_reason for _, reply in model.generate([ask("x", 400, constraint=regex("[ab]{390}"))] * 3))

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.1)
    model.close()
    worker.join(timeout=30)
    assert not worker.is_alive() and set(ended) <= {"cancelled", "stop"} and ended


def test_a_long_kept_text_makes_room_for_a_prompt_that_begins_like_it(file: Path) -> None:
    model = open_model(str(file), threads=1, context=256, kv_tokens=256)
    first = answer(model, [ask("texas " * 180)])[0]
    second = answer(model, [ask("texas " * 10 + "rivers " * 180)])[0]
    model.close()
    assert first.usage.prompt_tokens + second.usage.prompt_tokens > 256 + 40
    assert first.error is None and second.error is None


def test_nothing_is_kept_where_nothing_is_to_be(file: Path) -> None:
    model = open_model(str(file), threads=1, batch=1, kept=0)
    reused = [answer(model, [ask(text, persona=PERSONA)])[0].usage.reused_tokens for text in ("texas", "ohio", "texas")]
    model.close()
    assert reused == [0, 0, 0]


def test_more_requests_at_once_than_tokens_of_a_step(file: Path) -> None:
    model = open_model(str(file), threads=1, batch=24, batch_tokens=16)
    answer(model, [ask("texas")])  # from now on only the prompt's last token is left to work out
    replies = answer(model, [ask("texas", tokens=12) for _ in range(24)])
    model.close()
    assert [reply.error for reply in replies] == [None] * 24


@pytest.mark.parametrize("where", ["_advance", "_admit", "_finish", "_sweep"])
def test_when_the_engine_breaks_everybody_hears_of_it(file: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Each request ends with the mistake, also those the engine had just taken out of its queues; a later one is refused."""
    model: Any = open_model(str(file), threads=1, batch=2, kept=3)
    engine = model._shared.engine

    def broken(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    part, name = {"_advance": (engine._chooser, "choose"), "_admit": (engine.memory, "begin")}.get(where, (engine.memory, "end"))
    monkeypatch.setattr(part, name, broken)
    extra = {"timeout_s": 0.05} if where == "_sweep" else {}
    said: list[str] = []

    def one(n: int) -> None:
        try:
            answer(model, [ask(f"river {n}", tokens=200 if extra else 8, **extra)])
        except (RuntimeError, ModelError) as error:
            said.append(str(error))

    threads = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(said) == 6 and "broken on purpose" in said
    with pytest.raises(ModelError, match="was closed; open it again"):
        answer(model, [ask("texas")])
    again = open_model(str(file), threads=1, batch=2, kept=3)
    model.close()
    assert answer(again, [ask("texas")])[0].error is None
    shares: Any = open_model(str(file), threads=1, batch=2, kept=3)
    assert shares._shared is again._shared
    shares.close()
    again.close()
