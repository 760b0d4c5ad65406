"""Stored teacher log-probabilities: what is stored, kills, reuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.dataset import TokenRows, tokenize
from factory.events import EventLog
from factory.topk import TopkError, TopkStore, store_topk


@pytest.fixture(scope="module")
def made(rows: list[dict[str, Any]], tokenizer: Any) -> TokenRows:
    return tokenize(rows, tokenizer, 64)


class Dies:
    """A teacher that is killed in its n-th batch."""

    def __init__(self, model: Any, after: int) -> None:
        self.handle = model.register_forward_pre_hook(self.count)
        self.after = after

    def count(self, module: Any, args: Any) -> None:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt


def test_stored_equals_a_direct_forward(made: TokenRows, mixtral: Any, tokenizer: Any, tmp_path: Path) -> None:
    report = store_topk(made, mixtral, tmp_path, 5, len(tokenizer), "m", batch=7, shard_rows=20)
    store = TopkStore.open(tmp_path)
    assert report.rows == report.asked == 48 and report.tokens == made.completion_tokens == store.tokens
    assert len(list(tmp_path.glob("topk-*.safetensors"))) == 3
    assert 5 * 4 < report.bytes_per_token < 40
    for i in (0, 17, 47):
        ids, logprobs = store.row(made.key(i))
        with torch.inference_mode():
            logits = mixtral(input_ids=torch.from_numpy(made.row(i)[None].astype("int64"))).logits[0]
        start = int(made.prompt_lengths[i])
        best = logits[start - 1 : -1].log_softmax(-1).topk(5, -1)
        assert ids.dtype == np.uint16 and ids.tolist() == best.indices.tolist()
        np.testing.assert_allclose(logprobs, best.values, rtol=2e-3, atol=2e-3)


def test_a_kill_loses_at_most_a_shard(made: TokenRows, mixtral: Any, tokenizer: Any, tmp_path: Path) -> None:
    dies = Dies(mixtral, 5)
    with pytest.raises(KeyboardInterrupt):
        store_topk(made, mixtral, tmp_path, 4, len(tokenizer), "m", batch=4, shard_rows=16)
    dies.handle.remove()
    (tmp_path / ".topk-00001.safetensors.99.tmp").write_bytes(b"torn")
    log = EventLog()
    with log.stage("topk", total=48, unit="rows") as stage:
        report = store_topk(made, mixtral, tmp_path, 4, len(tokenizer), "m", stage, batch=4, shard_rows=16)
    assert (report.reused, report.asked) == (16, 32)
    assert log.events[-1]["done"] == 48
    assert not list(tmp_path.glob(".*"))
    fresh = tmp_path / "fresh"
    store_topk(made, mixtral, fresh, 4, len(tokenizer), "m", batch=4, shard_rows=16)
    one, two = TopkStore.open(tmp_path), TopkStore.open(fresh)
    for i in range(48):
        for a, b in zip(one.row(made.key(i)), two.row(made.key(i))):
            np.testing.assert_array_equal(a, b)
    again = store_topk(made, mixtral, tmp_path, 4, len(tokenizer), "m")
    assert (again.asked, again.reused) == (0, 48)


def test_rows_are_found_by_what_they_say(
    made: TokenRows, rows: list[dict[str, Any]], mixtral: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Another student with this tokenizer, other rows, another order: what was asked before is used again."""
    store_topk(made, mixtral, tmp_path, 4, len(tokenizer), "m")
    new = {"id": "new", "prompt": [{"role": "user", "content": "<c0> unseen"}], "completion": "<c1> unseen"}
    other = tokenize([new, *reversed(rows)], tokenizer, 64)
    kept = TopkStore.open(tmp_path).keep(other, len(tokenizer))
    assert kept.dropped == {"no-teacher-logits": 1}
    assert kept.row_ids == [row["id"] for row in reversed(rows)]
    assert all(np.array_equal(kept.row(i), made.row(47 - i)) for i in range(48))
    report = store_topk(other, mixtral, tmp_path, 4, len(tokenizer), "m")
    assert (report.asked, report.reused) == (1, 48)


def test_what_does_not_fit_is_refused(made: TokenRows, mixtral: Any, tokenizer: Any, tmp_path: Path) -> None:
    store_topk(made, mixtral, tmp_path, 4, len(tokenizer), "m")
    with pytest.raises(TopkError, match=r"k 4 \(now 8\), teacher 'm' \(now 'other'\)"):
        store_topk(made, mixtral, tmp_path, 8, len(tokenizer), "other")
    store = TopkStore.open(tmp_path)
    with pytest.raises(TopkError, match="tokenizers differ"):
        store.keep(made, 100)
    strange = tokenize([{"prompt": [{"role": "user", "content": "x"}], "completion": "y"}], tokenizer, 64)
    with pytest.raises(TopkError, match="none of the 1 rows"):
        store.keep(strange, len(tokenizer))
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(TopkError, match="newer than"):
        TopkStore.open(tmp_path)
