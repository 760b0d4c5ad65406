"""The estimate of what rounding a tensor costs, against rounding it for real in torch; the choice, against trying every set."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.quant_types import Recipe, predict
from export.sensitivity import MOST_BYTES, ROOM, batches, choose, rounded, rounding_losses
from export.source import Source
from tests.export.tiny_families import TEXTS, make_family


def kld(reference: torch.Tensor, found: torch.Tensor) -> float:
    p, q = torch.log_softmax(reference.double(), -1), torch.log_softmax(found.double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def rounded_for_real(model: Any, name: str, ids: torch.Tensor) -> torch.Tensor:
    """Logits (rows, length, V) with the module `name` and what it reads rounded; the embedding where it is looked up too."""
    module = model.get_submodule(name)
    undo = [module.register_forward_pre_hook(lambda _, given: (rounded(given[0]), *given[1:]))] if name != "embed" else []
    before = module.weight.data
    module.weight.data = rounded(before)
    try:
        with torch.inference_mode():
            return model(input_ids=ids).logits
    finally:
        module.weight.data = before
        for hook in undo:
            hook.remove()


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_the_estimate_is_what_rounding_one_tensor_costs(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = Source.open(make_family(kind, tmp_path / "m", steps=30, initializer_range=0.05))
    tokenizer = source.tokenizer
    texts = [np.array(tokenizer(text)["input_ids"], np.int64) for text in TEXTS]
    found = rounding_losses(source, texts * 24)
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    model.eval()
    right: dict[str, float] = {}
    for tensor in source.plan.tensors:
        if tensor.name not in found or tensor.role in ("embedding", "head"):
            continue
        total = tokens = 0.0
        for ids in texts:
            given = torch.from_numpy(ids)[None]
            with torch.inference_mode():
                reference = model(input_ids=given).logits
            total += kld(reference, rounded_for_real(model, tensor.source.removesuffix(".weight"), given)) * len(ids)
            tokens += len(ids)
        right[tensor.name] = total / tokens
    assert len(right) >= 14
    ratios = np.array([found[name] / right[name] for name in right])
    assert 0.8 < np.median(ratios) < 1.25
    assert ratios.min() > 0.4 and ratios.max() < 2.5  # a mean of some hundred squares
    assert np.corrcoef([np.log(found[name]) for name in right], [np.log(right[name]) for name in right])[0, 1] > 0.8


def test_rounding_is_ggmls(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(0).normal(size=(7, 96)).astype(np.float32)
    values[2, :32] = 0
    kind = gguf.GGMLQuantizationType.Q8_0
    assert np.array_equal(
        rounded(torch.from_numpy(values)).numpy(), gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    )


def test_a_tied_embedding_has_one_cost_and_odd_rows_none(tmp_path: Path) -> None:
    source = Source.open(make_family("smollm2", tmp_path / "m", hidden_size=80, num_attention_heads=5, num_key_value_heads=5))
    ids = [np.arange(40, dtype=np.int64)] * 2
    found = rounding_losses(source, ids)
    assert set(found) == {tensor.name for tensor in source.plan.tensors if "ffn_down" in tensor.name}  # 128 columns, the rest 80
    other = Source.open(make_family("smollm2", tmp_path / "n"))
    assert rounding_losses(other, ids)["token_embd.weight"] > 0
    assert rounding_losses(other, ids) == rounding_losses(other, ids)


def test_the_choice_reaches_the_limit_with_few_bytes(tmp_path: Path) -> None:
    plan = Source.open(make_family("llama", tmp_path / "m", num_hidden_layers=1)).plan
    matrices = [tensor for tensor in plan.tensors if len(tensor.shape) == 2]
    losses = dict(zip((tensor.name for tensor in matrices), np.random.default_rng(1).lognormal(0, 1.5, len(matrices))))
    size = {tensor.name: math.prod(tensor.shape) for tensor in matrices}
    whole = sum(losses.values())
    for limit in (0.95, 0.8, 0.6):
        kept = choose(plan, losses, 1.0, limit)
        assert kept is not None and whole - sum(losses[name] for name in kept) <= ROOM * limit * whole + 1e-12
        best = min(
            sum(size[name] for name in some)
            for n in range(len(matrices) + 1)
            for some in itertools.combinations(size, n)
            if whole - sum(losses[name] for name in some) <= ROOM * limit * whole
        )
        assert sum(size[name] for name in kept) <= 1.35 * best
        assert predict(plan, Recipe("Q8_0", keep=kept)).tensor_bytes < MOST_BYTES * predict(plan, Recipe("Q8_0")).tensor_bytes
    assert choose(plan, losses, 1.0, 0.01) is None
    assert choose(plan, dict.fromkeys(losses, 0.0), 1.0, 0.5) is None


def test_texts_are_cut_and_counted() -> None:
    long = [np.arange(2000, dtype=np.int64)] * 100
    found = batches(long, 135_000_000, 49152)
    assert all(rows.shape == (1, 512) for rows in found)
    assert 8_000 < sum(rows.size for rows in found) <= 1.5e12 / 135e6
    assert sum(rows.size for rows in batches(long, 10**12, 1000)) == 512  # a text of the largest model
