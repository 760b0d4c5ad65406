"""A tiny Llama with its own tokenizer, and rows to train it on: real classes, random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.events import EventLog
from factory.scratch import Shape, init_weights, new_model, train_tokenizer
from factory.train import quiet

SPECIAL = ("<c0>", "<c1>", "<q>")
SHAPE = Shape(hidden=32, inner=64, layers=2, heads=2, kv_heads=1, vocab=330)


def made_rows(n: int) -> list[dict[str, Any]]:
    """Copy tasks of different lengths."""
    words = ["red", "green", "blue", "seven", "eight", "nine", "north", "south"]
    rows = []
    for i in range(n):
        text = " ".join(words[(i * 3 + j) % 8] for j in range(2 + i % 5))
        rows.append(
            {
                "id": f"r{i}",
                "prompt": [{"role": "user", "content": f"<c0> colour {i}<c1> number<q> {text}"}],
                "completion": f"<c{i % 2}> {text.split()[0]}",
            }
        )
    return rows


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"][0]["content"] + row["completion"] for row in rows]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    return made_rows(48)


@pytest.fixture(scope="session")
def tokenizer(rows: list[dict[str, Any]]) -> Any:
    return train_tokenizer(texts(rows), SPECIAL, SHAPE.vocab)


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    directory = tmp_path_factory.mktemp("student")
    model = new_model(SHAPE, tokenizer)
    init_weights(model, 0, induction=False)
    with quiet():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def mixtral(tokenizer: Any) -> Any:
    """A teacher of the real class with the student's vocabulary; on-policy training leaves it in bfloat16."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(1)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = MixtralForCausalLM(config).eval()
    # A teacher that is sure of something: random logits would be flat.
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return model


@pytest.fixture
def log() -> EventLog:
    return EventLog()


@pytest.fixture
def stop_at() -> Callable[[int], EventLog]:
    """An event log that dies when training reports this step, as a kill would."""

    def made(step: int) -> EventLog:
        def listener(event: dict[str, Any]) -> None:
            if event["kind"] == "progress" and event["done"] >= step:
                raise KeyboardInterrupt

        return EventLog(None, listener)

    return made
