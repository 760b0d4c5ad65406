"""A teacher's k best log-probabilities at every completion token, stored once and read by any student with its tokenizer.

Does: run a local teacher over prompt + completion (teacher forcing), write shards that count only when whole, find rows again.
Does not: generate, or compare tokenizers (`tokenizer_match.py`). Module of torch code; imported lazily.

On disk: `index.json` and `topk-00000.safetensors` …, each holding for its rows, end to end: `ids` (tokens, k) uint16 (int32 above
65,536 entries), `logprobs` (tokens, k) float16 in nats, best first, `offsets` (rows + 1) int64, `keys` (rows, 16) uint8: a hash
of the row's token ids, so that a row is found by what it says and never by its place.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from factory.dataset import Collator, TokenRows
from factory.events import Stage
from factory.machine import safetensors_header
from factory.schedule import write_json
from factory.selected import Selected

FORMAT = 1
TYPES = {"U16": np.uint16, "I32": np.int32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}


class TopkError(Exception):
    """A store that cannot be used: one sentence with the value, the choices and the next step."""


@dataclass(frozen=True)
class TopkReport:
    """What a store holds. `asked` rows went through the teacher now; `reused` were there before, or twice in the rows."""

    rows: int
    tokens: int
    asked: int
    reused: int
    size_bytes: int

    @property
    def bytes_per_token(self) -> float:
        return self.size_bytes / max(1, self.tokens)


class TopkStore:
    """Read access by row key; arrays are mapped, not read."""

    def __init__(self, directory: Path, k: int, vocab: int, teacher: str) -> None:
        self.directory, self.k, self.vocab, self.teacher = directory, k, vocab, teacher
        self.shards: list[dict[str, np.ndarray]] = []
        self.places: dict[bytes, tuple[int, int]] = {}
        for path in sorted(directory.glob("topk-*.safetensors")):
            self.add(path)

    @classmethod
    def open(cls, directory: Path) -> TopkStore:
        """An existing store. Raises TopkError."""
        path = directory / "index.json"
        if not path.is_file():
            raise TopkError(f"{directory} holds no stored log-probabilities (no index.json); store them first")
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] > FORMAT:
            raise TopkError(f"{path} has format {index['format']}, newer than {FORMAT}; update the package or store again")
        return cls(directory, index["k"], index["vocab"], index["teacher"])

    def add(self, path: Path) -> None:
        arrays = _mapped(path)
        number = len(self.shards)
        self.shards.append(arrays)
        for i, key in enumerate(arrays["keys"]):
            self.places[key.tobytes()] = (number, i)

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    @property
    def tokens(self) -> int:
        return sum(len(shard["ids"]) for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob("topk-*.safetensors"))

    def row(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        """ids (n, k) and log-probabilities (n, k) of a row's n completion tokens. Raises KeyError."""
        number, i = self.places[key]
        shard = self.shards[number]
        at = slice(int(shard["offsets"][i]), int(shard["offsets"][i + 1]))
        return shard["ids"][at], shard["logprobs"][at]

    def keep(self, rows: TokenRows, vocab: int) -> TokenRows:
        """The rows the teacher has seen; the others are left out and counted as "no-teacher-logits". Raises TopkError."""
        if vocab < self.vocab:
            raise TopkError(
                f"{self.directory} was stored for {self.vocab} token ids and the student has {vocab}: their tokenizers differ; "
                "store again for this student or choose method 'sft'"
            )
        seen = [i for i in range(len(rows)) if rows.key(i) in self]
        if not seen:
            raise TopkError(
                f"{self.directory} has none of the {len(rows)} rows: rows or tokenizer have changed; store again, "
                "or choose method 'sft'"
            )
        missing = len(rows) - len(seen)
        return _subset(rows, seen, {"no-teacher-logits": missing} if missing else {})


def store_topk(
    rows: TokenRows,
    teacher: Any,
    directory: Path,
    k: int,
    vocab: int,
    name: str,
    stage: Stage | None = None,
    batch: int = 16,
    shard_rows: int = 1024,
) -> TopkReport:
    """Run `teacher` (a transformers causal LM in evaluation mode) over the rows that are not stored yet.

    `vocab` is the size of the shared tokenizer: padding entries above it are left out before the softmax. Killed at any
    moment, the next call goes on after the last whole shard. Raises TopkError when the store was made with another teacher, k
    or vocabulary.
    """
    directory.mkdir(parents=True, exist_ok=True)
    k = min(k, vocab)
    index = {"format": FORMAT, "k": k, "vocab": vocab, "teacher": name}
    path = directory / "index.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != index:
            raise TopkError(f"{directory} was stored with {_differs(found, index)}; remove it or give another directory")
    else:
        write_json(path, index)
    for torn in directory.glob(".*.tmp"):
        torn.unlink()
    store = TopkStore.open(directory)
    new = {rows.key(i): i for i in reversed(range(len(rows)))}
    todo = [i for key, i in new.items() if key not in store]
    reused = len(rows) - len(todo)
    if stage is not None and reused:
        stage.advance(reused)
    selected = [Selected(member) for member in getattr(teacher, "members", None) or [teacher]]
    try:
        # Similar lengths share a batch; a shard is one run of them.
        todo.sort(key=lambda i: int(rows.lengths[i]))
        for start in range(0, len(todo), shard_rows):
            part = todo[start : start + shard_rows]
            _write_shard(_ask(rows, teacher, selected, part, k, vocab, batch, stage), store)
    finally:
        for one in selected:
            one.remove()
    return TopkReport(len(rows), store.tokens, len(todo), reused, store.size_bytes)


def _ask(
    rows: TokenRows, teacher: Any, selected: list[Selected], part: list[int], k: int, vocab: int, batch: int, stage: Stage | None
) -> dict[str, np.ndarray]:
    collate = Collator(rows)
    device = next(teacher.parameters()).device
    ids, logprobs, lengths = [], [], []
    for start in range(0, len(part), batch):
        indices = part[start : start + batch]
        made = collate.batch(indices)
        for one in selected:
            one.positions = made.positions.to(device)
        with torch.inference_mode():
            logits = teacher(input_ids=made.input_ids.to(device), use_cache=False).logits[:, :vocab]
            best = logits.float().log_softmax(-1).topk(k, dim=-1)
        for one in selected:
            one.positions = None
        ids.append(best.indices.cpu().numpy().astype(np.uint16 if vocab <= 1 << 16 else np.int32))
        logprobs.append(best.values.cpu().numpy().astype(np.float16))
        lengths += [int(rows.lengths[i] - rows.prompt_lengths[i]) for i in indices]
        if stage is not None:
            stage.advance(len(indices))
    offsets = np.zeros(len(part) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    keys = np.frombuffer(b"".join(rows.key(i) for i in part), np.uint8).reshape(-1, 16)
    return {"ids": np.concatenate(ids), "logprobs": np.concatenate(logprobs), "offsets": offsets, "keys": keys.copy()}


def _write_shard(arrays: dict[str, np.ndarray], store: TopkStore) -> None:
    path = store.directory / f"topk-{len(store.shards):05d}.safetensors"
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(arrays, tmp)
    with tmp.open("rb+") as file:
        os.fsync(file.fileno())
    tmp.replace(path)
    store.add(path)


def _mapped(path: Path) -> dict[str, np.ndarray]:
    header = safetensors_header(path)
    with path.open("rb") as file:
        base = 8 + int.from_bytes(file.read(8), "little")
    arrays = {}
    for name, entry in header.items():
        kind, shape = TYPES[entry["dtype"]], tuple(entry["shape"])
        empty = 0 in shape
        arrays[name] = np.zeros(shape, kind) if empty else np.memmap(path, kind, "r", base + entry["data_offsets"][0], shape)
    return arrays


def _subset(rows: TokenRows, seen: list[int], dropped: dict[str, int]) -> TokenRows:
    if not dropped:
        return rows
    offsets = np.zeros(len(seen) + 1, np.int64)
    np.cumsum(rows.lengths[seen], out=offsets[1:])
    ids = np.concatenate([rows.row(i) for i in seen])
    return replace(
        rows,
        ids=ids,
        offsets=offsets,
        prompt_lengths=rows.prompt_lengths[seen],
        row_ids=[rows.row_ids[i] for i in seen],
        dropped={**rows.dropped, **dropped},
    )


def _differs(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    return ", ".join(f"{name} {found.get(name)!r} (now {wanted[name]!r})" for name in wanted if found.get(name) != wanted[name])
