"""Rows of text -> token ids with a completion mask -> batches of tensors.

Does: tokenize prompt and completion apart and join them, leave out and count rows that are too long, draw batches of like length.
Does not: choose rows (`rows.py`), know losses, or pack several rows into one sequence.
Module of torch code; imported by the trainer only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

CHUNK = 2048
"""Rows handed to the tokenizer at once: its threads stay busy and memory stays flat."""


class DatasetError(Exception):
    """Rows that cannot be trained on: one sentence with the value and the next step."""


@dataclass
class TokenRows(Dataset[int]):
    """Tokenized rows, end to end: row i is `ids[offsets[i]:offsets[i + 1]]`, its first `prompt_lengths[i]` ids are the prompt.

    Every row ends in the end-of-sequence id. As a torch dataset it yields row numbers; `Collator` makes the tensors.
    """

    ids: np.ndarray
    """(total tokens,) int32"""
    offsets: np.ndarray
    """(rows + 1,) int64"""
    prompt_lengths: np.ndarray
    """(rows,) int32"""
    row_ids: list[str]
    pad_id: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason ("truncated": longer than max_length; "empty-completion")."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64, tokens of each row."""
        return np.diff(self.offsets)

    @property
    def completion_tokens(self) -> int:
        return int(len(self.ids) - self.prompt_lengths.sum())

    def row(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def key(self, index: int) -> bytes:
        """16 bytes naming the row by its ids and prompt length: equal for any student that tokenizes it equally."""
        head = int(self.prompt_lengths[index]).to_bytes(4, "little")
        return hashlib.sha256(head + self.row(index).astype("<i4").tobytes()).digest()[:16]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `train.jsonl`. Raises DatasetError naming file and line."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                row["prompt"], row["completion"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DatasetError(f"{path}:{number}: not a training row ({error!r}); each needs prompt and completion") from None
            rows.append(row)
    return rows


def prompt_text(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt as the model reads it, ready for the completion. Qwen3's empty thinking block is part of it."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=False))


def tokenize(rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int) -> TokenRows:
    """Prompt ids + completion ids + end of sequence, each row at most `max_length` tokens.

    Prompt and completion are tokenized apart, so the prompt's ids are the ones met when generating, whatever follows.
    Raises DatasetError when no row is left, when a tokenizer has no end-of-sequence token, or no rows were given.
    """
    if not rows:
        raise DatasetError("0 rows to train on; every row was dropped before training, see the drop reasons")
    if tokenizer.eos_token_id is None:
        raise DatasetError(f"tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token; choose a student with one")
    kept: list[list[int]] = []
    prompt_lengths: list[int] = []
    row_ids: list[str] = []
    dropped: dict[str, int] = {}
    longest = 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        prompts = tokenizer([prompt_text(tokenizer, row["prompt"]) for row in chunk], add_special_tokens=False)["input_ids"]
        completions = tokenizer([row["completion"] for row in chunk], add_special_tokens=False)["input_ids"]
        for row, prompt, completion in zip(chunk, prompts, completions):
            length = len(prompt) + len(completion) + 1
            longest = max(longest, length)
            if not completion or length > max_length:
                reason = "truncated" if completion else "empty-completion"
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            kept.append([*prompt, *completion, tokenizer.eos_token_id])
            prompt_lengths.append(len(prompt))
            row_ids.append(str(row.get("id", start + len(row_ids))))
    if not kept:
        raise DatasetError(
            f"all {len(rows)} rows were dropped ({_counts(dropped)}): the longest has {longest} tokens and max_length is "
            f"{max_length}; raise --max-length"
        )
    offsets = np.zeros(len(kept) + 1, np.int64)
    np.cumsum([len(ids) for ids in kept], out=offsets[1:])
    ids = np.fromiter((token for row_ids_ in kept for token in row_ids_), np.int32, int(offsets[-1]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TokenRows(ids, offsets, np.asarray(prompt_lengths, np.int32), row_ids, int(pad), dropped)


def join(parts: Sequence[TokenRows]) -> TokenRows:
    """Several sets of rows as one, in their order. All must have one pad id."""
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [np.zeros(1, np.int64), *(part.offsets[1:] + start for part, start in zip(parts, starts))]
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, n in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + n
    if len({part.pad_id for part in parts}) != 1:
        raise DatasetError("rows with different pad tokens cannot be joined; tokenize them with one tokenizer")
    return TokenRows(
        np.concatenate([part.ids for part in parts]), np.concatenate(offsets),
        np.concatenate([part.prompt_lengths for part in parts]), [name for part in parts for name in part.row_ids],
        parts[0].pad_id, dropped,
    )  # fmt: skip


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in dropped.items())


class LengthGrouped(Sampler[int]):
    """Row numbers so that each run of `group` rows has about one length, the runs in random order.

    The order depends on `seed` and epoch only, so that a resumed run meets the same batches. Rows are shuffled, cut into
    pools of 50 groups, and sorted inside a pool: groups stay random, padding falls to a few percent.
    """

    def __init__(self, lengths: np.ndarray, group: int, seed: int) -> None:
        self.lengths, self.group, self.seed, self.epoch = lengths, group, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        pool = self.group * 50
        groups: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            groups += [part[i : i + self.group] for i in range(0, len(part), self.group)]
        short = [g for g in groups if len(g) < self.group]
        full = [g for g in groups if len(g) == self.group]
        for i in random.permutation(len(full)):
            yield from full[i].tolist()
        for group in short:
            yield from group.tolist()


@dataclass
class Batch:
    """What one step needs, flat over the positions that carry loss (N of them).

    The model reads `input_ids` without the last token of each row (nothing is predicted from it), right-padded: under a causal
    mask padding on the right is never seen by a real token, so there is no attention mask and the fast causal kernel runs.
    """

    input_ids: torch.Tensor
    """(B, T) int64"""
    positions: torch.Tensor
    """(N,) int64, index into the flattened B * T positions whose next token carries loss"""
    targets: torch.Tensor
    """(N,) int64, the next token"""
    weights: torch.Tensor
    """(N,) float32: 1 on completion tokens, `prompt_loss` on prompt tokens"""
    completion: np.ndarray
    """(N,) bool: the target belongs to the completion"""
    tokens: int
    """Real (not padding) tokens of the batch"""


class Collator:
    """Row numbers -> the tensors of `Batch` as a dict (plus `top_ids`, `top_logprobs` (N, k) when a store is given)."""

    def __init__(self, rows: TokenRows, prompt_loss: float = 0.0, store: Any = None) -> None:
        self.rows, self.prompt_loss, self.store = rows, prompt_loss, store

    def batch(self, indices: Sequence[int]) -> Batch:
        rows = self.rows
        parts = [rows.row(i) for i in indices]
        width = max(len(p) for p in parts) - 1
        input_ids = np.full((len(parts), width), rows.pad_id, np.int64)
        positions, targets, completion = [], [], []
        for b, (i, ids) in enumerate(zip(indices, parts)):
            input_ids[b, : len(ids) - 1] = ids[:-1]
            prompt = int(rows.prompt_lengths[i])
            first = 1 if self.prompt_loss > 0 else max(prompt, 1)
            at = np.arange(first, len(ids))
            positions.append(b * width + at - 1)
            targets.append(ids[first:])
            completion.append(at >= prompt)
        answered = np.concatenate(completion)
        return Batch(
            torch.from_numpy(input_ids),
            torch.from_numpy(np.concatenate(positions)),
            torch.from_numpy(np.concatenate(targets).astype(np.int64)),
            torch.from_numpy(np.where(answered, 1.0, self.prompt_loss).astype(np.float32)),
            answered,
            sum(len(p) for p in parts),
        )

    def __call__(self, indices: Sequence[int]) -> dict[str, Any]:
        batch = self.batch(indices)
        out: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "positions": batch.positions,
            "targets": batch.targets,
            "weights": batch.weights,
            "tokens": batch.tokens,
        }
        if self.store is not None:
            found = [self.store.row(self.rows.key(i)) for i in indices]
            out["top_ids"] = torch.from_numpy(np.concatenate([ids.astype(np.int64) for ids, _ in found]))
            if self.prompt_loss > 0:
                out["graded"] = torch.from_numpy(np.flatnonzero(batch.completion))
            out["top_logprobs"] = torch.from_numpy(np.concatenate([logprobs.astype(np.float32) for _, logprobs in found]))
        return out
