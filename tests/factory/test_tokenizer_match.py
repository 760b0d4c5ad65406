"""Tokenizers are compared by what they encode: an equal vocabulary size proves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from factory.tokenizer_match import PROBES, compare_tokenizers

ENGLISH = ["the cat sat on the mat and the dog sat on the log", "select the name of the singer from the stadium"] * 40
NUMBERS = ["1998 1999 2000 2001 12345 54321 98765", "x1 = y2 * z3; a[0] += b[10]", "Größe naïveté Привет"] * 40


def tokenizer(texts: list[str], size: int = 320) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def test_a_tokenizer_agrees_with_its_copy_and_with_tokens_added_behind() -> None:
    own, copy = tokenizer(ENGLISH), tokenizer(ENGLISH)
    report = compare_tokenizers(own, copy)
    assert report.agree
    assert report.probes == len(PROBES)
    copy.add_tokens(["<|never in a probe|>"])
    assert compare_tokenizers(own, copy).agree


def test_equal_sizes_with_different_merges_do_not_agree() -> None:
    a, b = tokenizer(ENGLISH, 300), tokenizer(NUMBERS, 300)
    assert len(a) == len(b) == 300
    report = compare_tokenizers(a, b)
    assert not report.agree
    assert report.sizes == (300, 300)
    text = str(report)
    assert "differ on" in text
    assert "300 and 300" in text


def test_one_permuted_pair_of_ids_is_found() -> None:
    """The same splits under other ids: only comparing ids shows it."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    a = tokenizer(ENGLISH)
    state = json.loads(a.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["Ġ"], vocabulary["e"] = vocabulary["e"], vocabulary["Ġ"]
    b = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert [len(a.encode(p)) for p in PROBES] == [len(b.encode(p)) for p in PROBES]
    assert not compare_tokenizers(a, b).agree


@pytest.mark.parametrize("kind", ["0123456789", "数", "🙂", "\t", "   ", "SELECT", "def "])
def test_the_probes_hold_every_kind_of_text(kind: str) -> None:
    assert any(kind in probe for probe in PROBES)
