"""Divergences against torch's own; texts that reach past a window; a reference that survives its way over the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.chat import Message
from agents.models import open_model
from export.battery import battery
from export.errors import ExportError
from export.parity import (
    CONVERSATION,
    LEAST,
    LOGITS_BYTES,
    LONG,
    LONG_TOKENS,
    MOST,
    Reference,
    choose_texts,
    differences,
    divergence,
    long_length,
    measure,
    sliding_window,
    write_reference,
)
from tests.export.tiny_families import make_family

TALK = [
    ((Message(role="user", content=f"How many rows has table {i}, and who wrote the first of them?"),), f"SELECT {i};")
    for i in range(40)
]


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("mistral-window", tmp_path_factory.mktemp("parity") / "model", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def reference(windowed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    model = open_model(str(windowed), dtype="float32", device="cpu")
    directory = tmp_path_factory.mktemp("reference")
    return write_reference(model, directory, TALK, 64), directory  # type: ignore[arg-type]


def test_divergence_is_torchs_kl() -> None:
    rng = np.random.default_rng(0)
    p, q = (rng.standard_normal((200, 31)).astype(np.float32) * 4 for _ in range(2))
    q[100:] = p[100:]
    klds, same = divergence(p, q)
    log_p, log_q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (p, q))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).numpy()
    np.testing.assert_allclose(klds, expected, rtol=1e-9, atol=1e-15)
    assert same[100:].all() and abs(klds[100:]).max() < 1e-14
    np.testing.assert_array_equal(same, p.argmax(-1) == q.argmax(-1))


def test_logits_that_are_not_finite_are_an_error() -> None:
    found = np.zeros((3, 5), np.float32)
    found[1, 2] = np.inf
    with pytest.raises(ExportError, match="not finite"):
        divergence(np.zeros((3, 5), np.float32), found)


def test_a_source_whose_own_logits_are_not_finite_has_no_reference(windowed: Path, tmp_path: Path) -> None:
    model = open_model(str(windowed), dtype="float32", device="cpu")
    model.model.get_output_embeddings().weight.data[7] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(ExportError, match="own logits are not finite"):
        write_reference(model, tmp_path, TALK, 64)  # type: ignore[arg-type]


def test_the_long_text_runs_past_the_window_and_stays_in_the_context() -> None:
    assert long_length(None, 2048) == 1024
    assert long_length(None, 300) == 300
    assert long_length(4096, 32768) == 4096 + 256
    assert long_length(4096, 4200) == 4200


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"sliding_window": 512, "layer_types": ["full_attention"] * 3}, None),
        ({"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]}, 512),
    ],
)
def test_which_models_have_a_window(config: dict[str, object], window: int | None) -> None:
    assert sliding_window(config) == window


def test_a_reference_holds_what_the_source_says(reference: tuple[Reference, Path], windowed: Path) -> None:
    kept, directory = reference
    assert Reference.read(directory) == kept
    conversations = [text for text in kept.texts if text.name == CONVERSATION]
    assert sum(text.compared for text in conversations) >= 512
    assert all(len(text.ids) <= 64 and text.first == 0 for text in conversations)
    long = kept.texts[-1]
    assert long.name == LONG and len(long.ids) == 1024 and long.compared == LONG_TOKENS and long.first >= 64
    rows = np.load(directory / "logits.npy", allow_pickle=False)
    assert rows.dtype == np.float32 and rows.shape == (sum(text.compared for text in kept.texts), kept.vocabulary)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(windowed, dtype=torch.float32).eval()
    with torch.no_grad():
        whole = model(torch.tensor([long.ids])).logits[0, long.first :].numpy()
    np.testing.assert_allclose(rows[-long.compared :], whole, atol=2e-5)
    tokenizer = AutoTokenizer.from_pretrained(windowed)
    assert list(kept.strings) == battery([token.content for token in tokenizer.added_tokens_decoder.values()])
    assert len(kept.strings) >= 200
    for text, ids in zip(kept.strings, kept.string_ids):
        assert list(ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    for prompt in kept.prompts:
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        assert list(prompt.ids) == tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_measuring_tells_equal_noisy_and_windowless_apart(reference: tuple[Reference, Path], windowed: Path) -> None:
    from transformers import AutoModelForCausalLM

    kept, directory = reference
    model = AutoModelForCausalLM.from_pretrained(windowed, dtype=torch.float32).eval()
    blind = AutoModelForCausalLM.from_pretrained(windowed, dtype=torch.float32, sliding_window=None).eval()
    rng = np.random.default_rng(0)

    def logits(of: object, noise: float = 0.0) -> object:
        def ask(ids: list[int]) -> np.ndarray:
            with torch.no_grad():
                found = of(torch.tensor([ids])).logits[0].numpy()  # type: ignore[operator]
            return found + noise * rng.standard_normal(found.shape).astype(np.float32)

        return ask

    equal = measure(kept, directory, logits(model))  # type: ignore[arg-type]
    assert equal.kld < 1e-9 and equal.top1 == 1.0 and equal.tokens == sum(text.compared for text in kept.texts)
    assert equal.past_window is not None and equal.past_window.tokens == LONG_TOKENS
    noisy = measure(kept, directory, logits(model, 0.1))  # type: ignore[arg-type]
    # Independent noise of variance s on every logit costs s / 2 nats, less a little where few tokens carry the mass.
    assert 0.001 < noisy.kld < 0.006 and noisy.top1 < 1.0 and noisy.max_kld > noisy.kld
    windowless = measure(kept, directory, logits(blind))  # type: ignore[arg-type]
    assert windowless.conversations is not None and windowless.conversations.kld < 1e-9
    assert windowless.past_window is not None and windowless.past_window.kld > 0.05


@pytest.mark.parametrize(("width", "tokens"), [(640, MOST), (32_064, 1046), (151_936, LEAST), (10**6, LEAST)])
def test_as_many_positions_are_compared_as_fit(windowed: Path, width: int, tokens: int) -> None:
    model: Any = open_model(str(windowed), dtype="float32", device="cpu")
    texts = choose_texts(model, TALK * 8, None, width)
    assert sum(text.compared for text in texts) == tokens
    assert 4 * width * tokens <= max(LOGITS_BYTES, 4 * width * LEAST)


def test_the_error_of_a_mean_is_that_of_independent_positions(reference: tuple[Reference, Path]) -> None:
    kept, directory = reference
    rng = np.random.default_rng(1)
    rows = np.load(directory / "logits.npy")
    ends = np.cumsum([0, *(text.compared for text in kept.texts)])
    found = rows + 0.1 * rng.standard_normal(rows.shape).astype(np.float32)
    blocks = iter([np.pad(found[a:b], ((text.first, 0), (0, 0))) for a, b, text in zip(ends, ends[1:], kept.texts)])
    parity = measure(kept, directory, lambda ids: next(blocks))
    klds, _ = divergence(rows, found)
    means = [rng.choice(klds, len(klds)).mean() for _ in range(400)]
    assert parity.kld == pytest.approx(klds.mean()) and parity.kld_error == pytest.approx(np.std(means), rel=0.15)


def test_another_vocabulary_is_an_error(reference: tuple[Reference, Path]) -> None:
    kept, directory = reference
    with pytest.raises(ExportError, match="its vocabulary is another"):
        measure(kept, directory, lambda ids: np.zeros((len(ids), kept.vocabulary + 1), np.float32))


def test_a_torn_reference_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no whole reference"):
        Reference.read(tmp_path)
    (tmp_path / "reference.json").write_text("{", encoding="utf-8")
    with pytest.raises(ExportError, match="no whole reference"):
        Reference.read(tmp_path)


def test_differences_name_the_place() -> None:
    assert list(differences([[1, 2], [1, 3], [1], []], [[1, 2], [1, 2], [1, 2], []])) == [(1, 1), (2, 1)]
