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
        (f"ensemble:{places[0]},{tmp_path / 'nothing'}", "nothing"),
        (f"ensemble:{places[0]},{other}", "mean different things"),
        (f"ensemble:embedded,{places[0]}", "different dialects"),
    ):
        with pytest.raises(TeacherError) as caught:
            resolve_teacher(spec, DistillSettings())
        assert part in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="two models or more"):
        Ensemble([object()])
