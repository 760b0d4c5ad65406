"""Several models as one teacher: their mean, cached and graded, against each one's own forward pass."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.chat import Message, Request, Sampling
from agents.models.decode import Batch, Row
from agents.models.hf import TransformersModel
from factory.dataset import tokenize
from factory.ensemble import Ensemble
from factory.machine import Machine
from factory.settings import DistillSettings
from factory.teacher import TeacherError, open_teacher, resolve_teacher
from factory.teachers_local import load_planned
from factory.topk import TopkStore, store_topk
from tests.factory.tiny_models import make_model, make_tokenizer

KINDS = ("llama", "qwen2", "mixtral")


@pytest.fixture(scope="module")
def shared() -> Any:
    return make_tokenizer(["red green blue seven eight nine north south " * 5])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, shared: Any) -> list[Path]:
    root = tmp_path_factory.mktemp("members")
    return [make_model(kind, shared, root / kind, seed) for seed, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def members(places: list[Path]) -> list[Any]:
    from transformers import AutoModelForCausalLM

    return [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in places]


def mean_of(members: list[Any], ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return sum(member(input_ids=ids).logits.softmax(-1) for member in members) / len(members)


def test_the_logits_are_the_mean_of_the_members_probabilities(members: list[Any]) -> None:
    ids = torch.randint(5, 200, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = Ensemble(members)(input_ids=ids).logits
    torch.testing.assert_close(logits.exp(), mean_of(members, ids), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(3, 17), rtol=0, atol=1e-5)


def test_cached_decoding_of_rows_that_end_apart_is_decoding_anew(members: list[Any]) -> None:
    dice = random.Random(1)
    prompts = [[dice.randrange(5, 200) for _ in range(n)] for n in (3, 9, 6)]
    wanted = []
    for prompt, length in zip(prompts, (4, 9, 6)):
        ids = list(prompt)
        for _ in range(length):
            ids.append(int(mean_of(members, torch.tensor([ids]))[0, -1].argmax()))
        wanted.append(ids[len(prompt) :])
    rows = [Row(prompt, length) for prompt, length in zip(prompts, (4, 9, 6))]
    batch = Batch(Ensemble(members), rows, pad_id=0)
    for _ in range(9):
        batch.forward()
        batch.choose(None)
        batch.drop({i for i, row in enumerate(batch.rows) if len(row.tokens) >= row.max_tokens})
    assert [row.tokens for row in rows] == wanted


@pytest.mark.parametrize("windows", [(4, None), (None, 4), (4, 8)])
def test_every_member_keeps_its_own_window(windows: tuple[int | None, int | None], shared: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    members: list[Any] = []
    for seed, window in enumerate(windows):
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2 + seed, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "vocab_size": len(shared), "initializer_range": 0.3}  # fmt: skip
        members.append(MistralForCausalLM(MistralConfig(sliding_window=window, **shape)).eval())
    prompt = [7, 31, 8, 90, 12, 44]
    ids = list(prompt)
    for _ in range(9):
        ids.append(int(mean_of(members, torch.tensor([ids]))[0, -1].argmax()))
    row = Row(prompt, 9)
    batch = Batch(Ensemble(members), [row], pad_id=0)
    for _ in range(9):
        batch.forward()
        batch.choose(None)
    assert row.tokens == ids[len(prompt) :]


def test_padding_of_a_head_takes_no_part(members: list[Any]) -> None:
    """A member with 9 outputs more than there are tokens counts as the same without them."""
    import copy

    wide = copy.deepcopy(members[0])
    count = wide.config.vocab_size
    wide.resize_token_embeddings(count + 9, mean_resizing=False)
    wide.get_output_embeddings().weight.data[count:] = 5.0
    ids = torch.randint(5, 200, (2, 7), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        padded = Ensemble([wide, members[1]], count)(input_ids=ids).logits
        plain = Ensemble(members[:2])(input_ids=ids).logits
    torch.testing.assert_close(padded, plain)
    with pytest.raises(ValueError, match="outputs for"):
        Ensemble(members, count + 1)


def test_members_are_fitted_together(places: list[Path], tmp_path: Path) -> None:
    """Two that fit alone but not together are refused, or taken in 4 bit where that fits."""
    spec = "ensemble:" + ",".join(map(str, places[:2]))
    both = resolve_teacher(spec, DistillSettings(), Machine(0.0, 16.0, 100.0, tmp_path))
    alone = resolve_teacher(str(places[0]), DistillSettings(), Machine(0.0, 16.0, 100.0, tmp_path))
    assert both.parameters == pytest.approx(
        alone.parameters + resolve_teacher(str(places[1]), DistillSettings(), Machine(0.0, 16.0, 100.0, tmp_path)).parameters
    )
    between = (alone.need_gb + both.need_gb) / 2
    narrow = resolve_teacher(spec, DistillSettings(), Machine(0.0, between, 100.0, tmp_path))
    assert (both.bits, narrow.bits) == (16, 4)
    with pytest.raises(TeacherError, match=r"needs .* in 4 bit or"):
        resolve_teacher(spec, DistillSettings(), Machine(0.0, 1.0, 100.0, tmp_path))


def test_stored_probabilities_are_those_of_the_mean(members: list[Any], shared: Any, tmp_path: Path) -> None:
    given = [
        {"id": f"r{i}", "prompt": [{"role": "user", "content": f"red {i}"}], "completion": f"green seven {i}"} for i in range(9)
    ]
    made = tokenize(given, shared, 64)
    store_topk(made, Ensemble(members), tmp_path, 6, len(shared), "three", batch=4)
    store = TopkStore.open(tmp_path)
    for i in (0, 8):
        ids, logprobs = store.row(made.key(i))
        mean = mean_of(members, torch.from_numpy(made.row(i)[None].astype("int64")))[0]
        best = mean[int(made.prompt_lengths[i]) - 1 : -1, : len(shared)].topk(6, -1)
        assert ids.tolist() == best.indices.tolist()
        torch.testing.assert_close(torch.from_numpy(logprobs.copy()).float(), best.values.log(), rtol=2e-3, atol=2e-3)


def test_a_spec_opens_a_teacher_that_answers(places: list[Path]) -> None:
    settings = DistillSettings(teacher="ensemble:x,y", method="logits")
    plan = resolve_teacher("ensemble:" + ",".join(map(str, places[:2])), settings)
    assert plan.name == "llama+qwen2" and plan.members == tuple(map(str, places[:2])) and plan.constrained
    alone = resolve_teacher(str(places[0]), settings)
    assert plan.need_gb > alone.need_gb and plan.revision != alone.revision
    model, _ = load_planned(plan)
    assert isinstance(model, Ensemble) and not model.training
    teacher = open_teacher(plan)
    assert isinstance(teacher, TransformersModel)
    request = Request(id="a", messages=(Message(role="user", content="red"),), sampling=Sampling(max_tokens=5, temperature=0.0))
    [(_, reply)] = teacher.generate([request])
    assert reply.error is None and 1 <= reply.usage.completion_tokens <= 5


def test_what_cannot_speak_as_one_is_refused_in_a_sentence(places: list[Path], tmp_path: Path) -> None:
    other = make_model("llama", make_tokenizer(["something else entirely, with other merges"]), tmp_path / "other")
    for spec, part in (
        (f"ensemble:{places[0]}", "two model directories or more"),
        (f"ensemble:{places[0]},{places[0]}", "the same model twice"),
        (f"ensemble:{places[0]},{tmp_path / 'nothing'}", "there is no directory"),
        (f"ensemble:{places[0]},{other}", "mean different things"),
        (f"ensemble:embedded,{places[0]}", "different dialects"),
        ("ensemble:qwen2.5-7b,mixtral", "members are model directories, or embedded, embedded-base"),
    ):
        with pytest.raises(TeacherError) as caught:
            resolve_teacher(spec, DistillSettings())
        assert part in str(caught.value) and "\n" not in str(caught.value)
    on_policy = DistillSettings(teacher="ensemble:a,b", method="on-policy")
    with pytest.raises(TeacherError, match=r"cannot grade on-policy.*choose --method logits"):
        resolve_teacher(f"ensemble:{places[0]},{places[1]}", on_policy)
    with pytest.raises(ValueError, match="two models or more"):
        Ensemble([object()])
