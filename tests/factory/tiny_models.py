"""Tiny models of the real classes with random weights, and a table data set small enough for them to learn.

All models share one byte-level BPE tokenizer and a plain chat template, as teacher and student must for `logits` and `on-policy`.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

TEMPLATE = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '</s>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
CONTROL = ("</s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Qwen2's way of splitting text: transformers gives it to every directory whose model type is qwen2, whatever its files say."""
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 2048, "initializer_range": 0.1}  # fmt: skip

FRUIT = ("apple", "pear", "plum", "fig", "lime", "mango", "melon", "cherry")
COLUMNS = ("Name", "Price", "Colour")
ASKED = {1: ("price of {}", "how much does {} cost", "{} costs what amount of money"),
         2: ("colour of {}", "what does {} look like", "{} has which tint")}  # fmt: skip


def make_tables(directory: Path, train: int, held_out: int) -> Path:
    """A data directory in WikiSQL's layout: price and colour of fruit, asked in three ways each, over several small tables.

    Held-out questions are on tables of their own and never ask for a fruit in the words of a training question.
    """
    asked = [(column, words.format(fruit), fruit) for column, ways in ASKED.items() for words in ways for fruit in FRUIT]
    held = [item for number, item in enumerate(asked) if (number + number // len(FRUIT)) % 4 == 3]
    directory.mkdir(parents=True, exist_ok=True)
    for split, n, pool in (("train", train, [item for item in asked if item not in held]), ("xdev", held_out, held)):
        tables, questions = [], []
        for number in range(-(-n // len(pool))):
            rows = [
                [fruit, 3 + (i * 5 + number) % 11, ("red", "green", "blue")[(i + number) % 3]] for i, fruit in enumerate(FRUIT)
            ]
            name = f"{split}-{number}"
            tables.append({"id": name, "header": list(COLUMNS), "types": ["text", "real", "text"], "rows": rows})
            for column, question, fruit in pool:
                sql = {"sel": column, "agg": 0, "conds": [[0, 0, fruit]]}
                questions.append({"table_id": name, "question": question, "sql": sql})
        _write(directory / f"{split}.jsonl.xz", questions[:n])
        _write(directory / f"tables_{split}.jsonl.xz", tables)
    return directory


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with lzma.open(path, "wt", encoding="utf-8", preset=0) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make_tokenizer(texts: Sequence[str], vocab: int = 1024, merges_from_the_end: bool = False) -> Any:
    """A byte-level BPE with `TEMPLATE`; `merges_from_the_end` keeps entries and ids and turns the order of merges around."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    parts = [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(parts)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(CONTROL), initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    if merges_from_the_end:
        state = json.loads(bpe.to_str())
        state["model"]["merges"].reverse()
        bpe = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="</s>", pad_token="<|endoftext|>", extra_special_tokens=list(CONTROL[2:]),
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_model(kind: str, tokenizer: Any, directory: Path, seed: int = 0) -> Path:
    """A model directory of class "mixtral", "llama" or "qwen2": random weights, safetensors, the tokenizer beside them."""
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from factory.train import quiet

    torch.manual_seed(seed)
    shared = {**SHAPE, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None,
              "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    if kind == "mixtral":
        model: Any = MixtralForCausalLM(MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **shared))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shared))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shared))
    with quiet():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory
