"""Rows -> ids, masks, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.dataset import Collator, DatasetError, LengthGrouped, prompt_text, read_rows, tokenize


def test_prompt_ids_are_those_met_when_generating(tokenizer: Any) -> None:
    """A prompt ending in a space would merge with the completion if both were tokenized together."""
    row = {"prompt": [{"role": "user", "content": "red green "}], "completion": "blue seven"}
    made = tokenize([row], tokenizer, 64)
    prompt = tokenizer(prompt_text(tokenizer, row["prompt"]), add_special_tokens=False)["input_ids"]
    assert made.row(0)[: made.prompt_lengths[0]].tolist() == prompt
    assert tokenizer.decode(made.row(0)[made.prompt_lengths[0] :]) == "blue seven<|end|>"


def test_long_rows_are_counted(rows: list[dict[str, Any]], tokenizer: Any) -> None:
    whole = tokenize(rows, tokenizer, 64)
    limit = int(np.sort(whole.lengths)[20])
    part = tokenize([*rows, {"prompt": rows[0]["prompt"], "completion": ""}], tokenizer, limit)
    assert part.dropped == {"truncated": int((whole.lengths > limit).sum()), "empty-completion": 1}
    assert len(part) + sum(part.dropped.values()) == len(rows) + 1
    assert part.row_ids == [row["id"] for row, n in zip(rows, whole.lengths) if n <= limit]


def test_everything_dropped_is_an_error(rows: list[dict[str, Any]], tokenizer: Any) -> None:
    with pytest.raises(
        DatasetError, match=r"all 48 rows were dropped \(truncated 48\): the longest has \d+ tokens and max_length is 5"
    ):
        tokenize(rows, tokenizer, 5)
    with pytest.raises(DatasetError, match="0 rows"):
        tokenize([], tokenizer, 64)


def test_batch_predicts_the_next_token(rows: list[dict[str, Any]], tokenizer: Any) -> None:
    made = tokenize(rows, tokenizer, 64)
    batch = Collator(made).batch([3, 11, 4])
    parts = [made.row(i) for i in (3, 11, 4)]
    width = max(map(len, parts)) - 1
    assert batch.input_ids.shape == (3, width)
    assert batch.tokens == sum(map(len, parts))
    expected = np.concatenate([p[made.prompt_lengths[i] :] for i, p in zip((3, 11, 4), parts)])
    assert batch.targets.tolist() == expected.tolist()
    flat = batch.input_ids.flatten()[batch.positions]
    before = np.concatenate([p[made.prompt_lengths[i] - 1 : -1] for i, p in zip((3, 11, 4), parts)])
    assert flat.tolist() == before.tolist()
    assert batch.weights.tolist() == [1.0] * len(expected)


def test_prompt_loss_weighs_prompt_tokens(rows: list[dict[str, Any]], tokenizer: Any) -> None:
    made = tokenize(rows, tokenizer, 64)
    batch = Collator(made, prompt_loss=0.25).batch([0, 1])
    assert len(batch.targets) == sum(len(made.row(i)) - 1 for i in (0, 1))
    assert float(batch.weights.sum()) == 0.25 * (made.prompt_lengths[:2].sum() - 2) + batch.completion.sum()


def test_batches_have_one_length_and_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 5003)
    sampler = LengthGrouped(lengths, 16, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(5003))
    groups = [lengths[order[i : i + 16]] for i in range(0, 4992, 16)]
    assert 1 - sum(g.sum() for g in groups) / sum(16 * g.max() for g in groups) < 0.05
    assert list(LengthGrouped(lengths, 16, seed=3)) == order
    sampler.set_epoch(1)
    assert list(sampler) != order
    means = [g.mean() for g in groups]
    assert abs(np.corrcoef(range(len(means)), means)[0, 1]) < 0.2, "long groups must not come in order"


def test_read_rows_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": [], "completion": "a"}\n\n{"prompt": []}\n')
    with pytest.raises(DatasetError, match=r"train.jsonl:3"):
        read_rows(path)
