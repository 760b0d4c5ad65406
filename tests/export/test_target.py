"""Memory and speed classes: bytes a token streams against the file's own, predictions against the published pairs."""

from __future__ import annotations

import math

import pytest

from export.convert import convert
from export.errors import ExportError
from export.quant_types import Recipe, predict
from export.source import Source
from export.target import DEVICE_CLASSES, cache_bytes, parse_target, predict_speed, streamed_bytes
from tests.export.tiny_families import make_family


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source.open(make_family("smollm2", tmp_path_factory.mktemp("target") / "tied"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source.open(make_family("qwen3", tmp_path_factory.mktemp("target") / "untied"))


@pytest.mark.parametrize("text", ["tablet", "", "0", "-3", "nan", "inf"])
def test_an_unknown_target_is_refused_with_the_choices(text):
    with pytest.raises(ExportError, match=r"--target cannot be .*; give phone, pi, laptop, or the largest file in megabytes"):
        parse_target(text)


def test_a_size_is_the_largest_file():
    target = parse_target("2.5")
    assert target.excess(2_500_000, 10**9) is None
    assert target.excess(2_500_001, 0) == "2.5 MB is more than the 2.5 MB asked for"
    assert parse_target("20mb").limit_bytes == 20_000_000


def test_a_class_counts_cache_and_runtime_and_says_why():
    target = parse_target("phone")
    assert target.excess(1_000_000_000, 100_000_000) is None
    said = target.excess(1_400_000_000, 100_000_000)
    assert said is not None
    assert "1,400 MB of weights" in said
    assert "1500 MB of a phone" in said


def test_streamed_bytes_are_the_tensors_read_for_one_token(tied, untied, tmp_path):
    from agents.models.gguf_file import read_gguf

    for source in (tied, untied):
        convert(source, tmp_path / "file.gguf", "F16")
        tensors = {tensor.name: tensor for tensor in read_gguf(tmp_path / "file.gguf").tensors}
        whole = sum(tensor.size for tensor in tensors.values())
        embedding = tensors["token_embd.weight"]
        row = embedding.size // max(embedding.shape)
        expected = whole if source is tied else whole - embedding.size + row
        assert streamed_bytes(predict(source.plan, Recipe("F16")).types, source.plan) == expected


def test_the_cache_is_what_transformers_keeps_in_16_bits(tied):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tied.path, dtype=torch.float16)
    with torch.inference_mode():
        layers = model(torch.zeros(1, 10, dtype=torch.long), use_cache=True).past_key_values.layers
    assert cache_bytes(tied.plan, 10) == sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


PUBLISHED = [
    ("phone", 1083 * 2**20, 50.2),
    ("phone", 0.79e9, 14.0),
    ("pi", 0.398e9, 25.77),
    ("laptop", 1.87 * 2**30, 11.05),
    ("laptop", 4.92e9, 9.63),
]
"""class, bytes of the file, tokens/s"""


@pytest.mark.parametrize(("name", "file_bytes", "rate"), PUBLISHED)
def test_published_pairs_are_inside_what_is_predicted_for_their_class(name, file_bytes, rate):
    speed = predict_speed(DEVICE_CLASSES[name], int(file_bytes))
    assert 0.97 * speed.slow <= rate <= 1.03 * speed.fast


def test_a_prediction_says_that_it_is_one_and_never_beats_what_was_measured_here():
    speed = predict_speed(DEVICE_CLASSES["laptop"], 2_000_000, measured=1500.0)
    assert speed.capped
    assert speed.fast == 1500.0
    assert speed.say() == "predicted on a laptop, not measured: about 1,500 tokens/s (no faster than measured here)"
    free = predict_speed(DEVICE_CLASSES["laptop"], 4_920_000_000)
    assert math.isclose(free.fast, 47 / 4.92, rel_tol=1e-6)
    assert free.say() == "predicted on a laptop, not measured: 4.5 to 9.6 tokens/s (from bytes and published speeds)"
