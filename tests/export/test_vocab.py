"""Vocabularies give transformers' ids in llama.cpp, a wrong one is found, and what cannot be written is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from agents.models.gguf_text import TextRules
from export.battery import battery
from export.convert import end_ids
from export.errors import ExportError
from export.prove import prove
from export.source import Source
from export.vocab import (
    BYTE,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    pre_tokenizer,
    vocabulary,
)
from tests.export.tiny_families import GPT2, LLAMA3, QWEN2, make_family, make_family_tokenizer

KINDS = ("spm", "gemma", "phi3", "llama3", "qwen2", "gpt2", "smollm")


def written(tokenizer: Any, rows: int | None = None, ends: tuple[int, ...] = ()) -> Vocabulary:
    return vocabulary(tokenizer, rows if rows is not None else len(tokenizer), list(ends), "here")


def changed(tokenizer: Any, change: Callable[[dict[str, Any]], object]) -> Any:
    """The tokenizer with its tokenizer.json changed."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def engine() -> None:
    pytest.importorskip("llama_cpp", reason="needs llama.cpp: pip install 'penknife[gguf]' (compiles for minutes)")


def test_the_battery_is_long_and_of_all_kinds() -> None:
    texts = battery()
    assert len(texts) == len(set(texts)) >= 200
    assert any(len(text) > 32 and not text.strip() for text in texts)
    for kind in ("def f", "你好", "e\u0301", "😀", "12345678901234567890", "\r\n"):
        assert any(kind in text for text in texts)
    around = battery(["<c0>", "</s>"])
    assert {"<c0>", "a<c0>b", " </s>", "<c0></s> c"} <= set(around)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_templates_are_transformers(kind: str) -> None:
    engine()
    tokenizer = make_family_tokenizer(kind)
    proof = prove(tokenizer, "llama", written(tokenizer).metadata, "here")
    assert proof.texts >= 200 and proof.conversations >= 3 and proof.skipped == ()


@pytest.mark.parametrize(("kind", "pre"), [("llama3", "gpt-2"), ("llama3", "qwen2"), ("qwen2", "default"), ("gpt2", "smollm")])
def test_a_wrong_pre_tokenizer_is_found(kind: str, pre: str) -> None:
    engine()
    tokenizer = make_family_tokenizer(kind)
    with pytest.raises(ExportError, match=r"llama\.cpp tokenizes \d+ of \d+ texts differently, first .*instead of"):
        prove(tokenizer, "llama", written(tokenizer).metadata | {"tokenizer.ggml.pre": pre}, "here")


def test_without_normalization_decomposed_text_is_found_different() -> None:
    engine()
    tokenizer = make_family_tokenizer("qwen2")
    metadata = written(tokenizer).metadata
    assert metadata.pop("penknife.tokenizer.normalizer") == "NFC"
    with pytest.raises(ExportError, match="texts differently"):
        prove(tokenizer, "qwen2", metadata, "here")


def test_a_vocabulary_that_aborts_llama_cpp_is_one_sentence() -> None:
    engine()
    tokenizer = make_family_tokenizer("gpt2")
    metadata = written(tokenizer).metadata | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0] * len(tokenizer)}
    with pytest.raises(ExportError, match=r"llama\.cpp does not accept its vocabulary \(exit code -?\d+|texts differently"):
        prove(tokenizer, "llama", metadata, "here")


def test_another_template_is_found() -> None:
    tokenizer = make_family_tokenizer("qwen2")
    metadata = written(tokenizer).metadata
    metadata["tokenizer.chat_template"] = metadata["tokenizer.chat_template"].replace("<|im_end|>", "<|im_end|> ")
    with pytest.raises(ExportError, match="its chat template renders"):
        prove(tokenizer, "qwen2", metadata, "here")


def test_without_llama_cpp_the_proof_says_what_it_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.prove.find_spec", lambda name: None)
    tokenizer = make_family_tokenizer("qwen2")
    proof = prove(tokenizer, "qwen2", written(tokenizer).metadata, "here")
    assert proof.texts == 0 and proof.conversations >= 3
    assert "llama-cpp-python is not installed (pip install" in proof.skipped[0]


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("split", [False, True])
def test_the_newer_way_to_write_spaces(scheme: str, split: bool) -> None:
    """transformers 5 and Mistral's newer checkpoints: a Metaspace pre-tokenizer instead of normalizers."""
    engine()
    tokenizer = make_family_tokenizer("spm")
    tokenizer._tokenizer.normalizer = normalizers.Sequence([])
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    made = written(tokenizer)
    assert not made.add_space_prefix and made.space_before == {"always": "every", "first": "first", "never": None}[scheme]
    assert prove(tokenizer, "llama", made.metadata, "here").texts >= 200


def test_types_of_tokens() -> None:
    tokenizer = make_family_tokenizer("spm")
    made = written(tokenizer, rows=len(tokenizer) + 6)
    types = dict(zip(made.tokens, made.types))
    assert types["<unk>"] == UNKNOWN and types["<s>"] == types["</s>"] == CONTROL
    assert types["<0x0A>"] == BYTE and types["<c0>"] == USER_DEFINED and types["▁the"] == NORMAL
    assert made.types[-6:] == [UNUSED] * 6 and made.padded == 6 and len(set(made.tokens)) == len(tokenizer) + 6
    assert sum(kind == BYTE for kind in made.types) == 256
    assert UNKNOWN not in written(make_family_tokenizer("qwen2")).types


@pytest.mark.parametrize(
    ("kind", "begins"), [("spm", True), ("gemma", True), ("llama3", True), ("qwen2", False), ("smollm", False)]
)
def test_begin_and_end_are_what_transformers_adds(kind: str, begins: bool) -> None:
    tokenizer = make_family_tokenizer(kind)
    made = written(tokenizer)
    assert (made.add_bos, made.add_eos) == (begins, False)
    assert made.special_ids["eos"] == tokenizer.eos_token_id
    assert made.special_ids.get("bos") == tokenizer.bos_token_id


def test_every_end_of_an_answer_is_kept(tmp_path: Path) -> None:
    directory = make_family("qwen2", tmp_path / "m")
    assert end_ids(Source.open(directory)) == [2]
    (directory / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    source = Source.open(directory)
    assert end_ids(source) == [0, 2]
    assert written(source.tokenizer, ends=(0,)).eos_ids == [0, 2]


@pytest.mark.parametrize(
    ("steps", "whole", "name"),
    [
        ([pre_tokenizers.ByteLevel(False)], False, "gpt-2"),
        ([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)], False, "smollm"),
        ([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)], True, "llama-bpe"),
        ([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)], False, "dbrx"),
        ([pre_tokenizers.Split(Regex(QWEN2), "removed", True), pre_tokenizers.ByteLevel(False, use_regex=False)], False, "qwen2"),
    ],
)
def test_pre_tokenizers_are_found_by_what_they_do(steps: list[Any], whole: bool, name: str) -> None:
    bpe = Tokenizer(models.BPE(ignore_merges=whole))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    assert pre_tokenizer(json.loads(bpe.to_str()), "here") == name


@pytest.mark.parametrize("steps", [steps for steps in PRE_TOKENIZERS if not any("gpt-2" in step for step in steps)])
def test_every_named_pre_tokenizer_is_llama_cpps(steps: tuple[str, ...]) -> None:
    """Each regular expression of the table, in a tokenizer of its own, proven by the battery."""
    engine()
    name = PRE_TOKENIZERS[steps]
    tokenizer = make_family_tokenizer("gpt2")
    splits = [pre_tokenizers.Split(Regex(step), "isolated") for step in steps if step != "digits one by one"]
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    if name in ("tekken", "minicpm5"):
        changed(tokenizer, lambda state: state["model"].update(ignore_merges=True))
    made = written(tokenizer)
    assert made.pre == name
    assert prove(tokenizer, "llama", made.metadata, "here").texts >= 200


REFUSED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "other words": (
        "llama3",
        lambda state: state["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\W+"),
        r"splits text by \\w\+\|\\W\+, for which llama\.cpp has no name; known are those of dbrx",
    ),
    "lower case": ("gpt2", lambda state: state.update(normalizer={"type": "Lowercase"}), "normalizes text by Lowercase"),
    "space in front": ("gpt2", lambda state: state["pre_tokenizer"].update(add_prefix_space=True), "a space before every text"),
    "whole words": ("qwen2", lambda state: state["model"].update(ignore_merges=True), "ignores merges for whole words"),
    "word parts": ("gpt2", lambda state: state["model"].update(end_of_word_suffix="</w>"), "marks word parts"),
    "token after a space only": (
        "spm",
        lambda state: [token.update(normalized=True) for token in state["added_tokens"] if token["content"] == "<c0>"],
        r"finds the added token '<c0>' after a space only",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_do_is_refused(name: str) -> None:
    kind, change, said = REFUSED[name]
    with pytest.raises(ExportError, match=said):
        written(changed(make_family_tokenizer(kind), change))


def test_word_piece_is_refused() -> None:
    from transformers import PreTrainedTokenizerFast

    pieces = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))
    with pytest.raises(ExportError, match="is a WordPiece model; only BPE"):
        written(pieces)


def test_text_rules_leave_added_tokens_alone() -> None:
    rules = TextRules(form="NFC", strip_after=frozenset({"<|user|>"}), space_before="first", added=("<|user|>", "<c>", "<c0>"))
    assert rules.apply("e\u0301") == " é"
    assert rules.apply("<|user|>\n\n x") == "<|user|>x"
    assert rules.apply("<c0>\u0338 x") == "<c0>\u0338 x"  # composed over the token's ">", this would be "≯"
    assert rules.apply("a<c0> e\u0301") == " a<c0> é"
    assert TextRules(space_before="every", added=("<c0>",)).apply("a<c0>b <c0> c<c0>") == " a<c0> b <c0> c<c0>"
    assert TextRules().apply("<c0>\u0338") == "<c0>\u0338"


def test_gpt2s_own_words_are_spelled_as_the_library_spells_them() -> None:
    """ByteLevel's own regular expression is the one llama.cpp calls gpt-2."""
    whole, spelled = Tokenizer(models.BPE()), Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    spelled.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GPT2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    for text in battery():
        assert whole.pre_tokenizer.pre_tokenize_str(text) == spelled.pre_tokenizer.pre_tokenize_str(text)
