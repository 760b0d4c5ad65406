"""A model over n-grams of a question, for each set of answers: counted, weighed, fitted, stored.

Does: TF-IDF of words, pairs of words and the 2 to 5 characters inside them, softmax regression on it or on one hidden layer
over it (as fastText has, Joulin et al. 2017, but not linear), files and back.
Does not: read a task's data (`ngrams.py`) or speak token by token (`ngram_member.py`). Module of torch code; imported lazily.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from factory.ngrams import KIND

LENGTHS = range(2, 6)
"""Characters of a gram inside a word, whose ends count as spaces."""
LEAST = 2
"""Questions that a gram must occur in."""
RATE = 0.02
BATCH = 256
HIDDEN_RATE = 3e-3
HIDDEN_BATCH = 128
SPREAD = 0.3
"""Standard deviation of a hidden layer's first weights."""
LOST_GRAMS = 0.1
LOST_UNITS = 0.3
"""Shares left out at random while a hidden layer is fitted; units make up for it in size, grams do not: whole questions make the
model a little surer than it was while it was fitted."""


@dataclass
class NgramSet:
    """The model of one set of answers. `weight` (F, C) and `bias` (C,) float32 for F grams and C answers; with a hidden layer of
    H units `weight` (F, H) and `head` (H, C)."""

    opening: str
    """the prompt up to the question"""
    completions: tuple[str, ...]
    vocabulary: Mapping[str, int]
    idf: Tensor
    """(F,) float32"""
    weight: Tensor
    bias: Tensor
    characters: bool
    head: Tensor | None = None

    def log_probabilities(self, questions: Sequence[str]) -> Tensor:
        """(N, C) float32, natural logarithm, for N questions in the compact dialect's spelling."""
        ids, values, offsets = vectors([self.row(text) for text in questions])
        scores = nn.functional.embedding_bag(ids, self.weight, offsets, mode="sum", per_sample_weights=values)
        if self.head is not None:
            scores = nn.functional.gelu(scores) @ self.head
        return (scores + self.bias).log_softmax(-1)

    def row(self, text: str) -> tuple[list[int], list[float]]:
        """Numbers of the known grams of a text, and their TF-IDF of length 1."""
        return _tf_idf(text, self.vocabulary, self.idf, self.characters)


def grams_of(text: str, characters: bool) -> Iterator[str]:
    """Words, pairs of words, and (marked by a leading tab) the characters inside them."""
    words = text.split()
    yield from words
    yield from (f"{a} {b}" for a, b in itertools.pairwise(words))
    if characters:
        for word in words:
            yield from _inside(word)


@functools.lru_cache(maxsize=100_000)
def _inside(word: str) -> tuple[str, ...]:
    padded = f" {word} "
    return tuple("\t" + padded[i : i + n] for n in LENGTHS for i in range(len(padded) - n + 1))


def _tf_idf(text: str, vocabulary: Mapping[str, int], idf: Tensor, characters: bool) -> tuple[list[int], list[float]]:
    counts = Counter(vocabulary[gram] for gram in grams_of(text, characters) if gram in vocabulary)
    ids = list(counts)
    values = [(1 + math.log(counts[i])) * weight for i, weight in zip(ids, idf[ids].tolist())]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return ids, [value / length for value in values]


def vectors(rows: Sequence[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows end to end as `embedding_bag` takes them: ids (n,) int64, values (n,) float32, offsets (rows,) int64."""
    lengths = torch.tensor([0, *(len(ids) for ids, _ in rows[:-1])])
    return (
        torch.tensor([i for ids, _ in rows for i in ids], dtype=torch.long),
        torch.tensor([value for _, values in rows for value in values], dtype=torch.float32),
        lengths.cumsum(0),
    )


def fit(
    opening: str, asked: Sequence[tuple[str, str]], completions: Sequence[str], characters: bool, epochs: int, seed: int,
    hidden: int = 0,
) -> NgramSet:  # fmt: skip
    """Train on (question, completion) pairs; `completions` may hold more than occur. `hidden`: units between, 0 for none."""
    said = Counter(gram for text, _ in asked for gram in set(grams_of(text, characters)))
    vocabulary = {gram: i for i, gram in enumerate(sorted(gram for gram, n in said.items() if n >= LEAST))}
    seen = torch.tensor([said[gram] for gram in vocabulary], dtype=torch.float32)
    idf = torch.log((1 + len(asked)) / (1 + seen)) + 1
    rows = [_tf_idf(text, vocabulary, idf, characters) for text, _ in asked]
    place = {completion: i for i, completion in enumerate(completions)}
    answers = torch.tensor([place[completion] for _, completion in asked])
    dice = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.zeros(len(vocabulary), hidden or len(completions)))
    bias = nn.Parameter(torch.zeros(len(completions)))
    head = nn.Parameter(torch.empty(hidden, len(completions))) if hidden else None
    if head is not None:
        nn.init.normal_(weight, std=SPREAD, generator=dice)
        nn.init.normal_(head, std=hidden**-0.5, generator=dice)
    learned = [weight, bias] if head is None else [weight, bias, head]
    optimizer = torch.optim.Adam(learned, lr=HIDDEN_RATE if hidden else RATE, fused=True)
    size = HIDDEN_BATCH if hidden else BATCH
    steps = epochs * math.ceil(len(rows) / size)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(rows), generator=dice), size):
            ids, values, offsets = vectors([rows[i] for i in part.tolist()])
            if head is not None:
                values = values * (torch.rand(values.shape, generator=dice) >= LOST_GRAMS)
            scores = nn.functional.embedding_bag(ids, weight, offsets, mode="sum", per_sample_weights=values)
            if head is not None:
                kept = (torch.rand(scores.shape, generator=dice) >= LOST_UNITS) / (1 - LOST_UNITS)
                scores = (nn.functional.gelu(scores) * kept) @ head
            optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(scores + bias, answers[part])
            loss.backward()
            optimizer.step()
            decay.step()
    between = None if head is None else head.detach()
    return NgramSet(opening, tuple(completions), vocabulary, idf, weight.detach(), bias.detach(), characters, between)


def save(sets: Sequence[NgramSet], directory: Path) -> None:
    """Write grams.json, model.safetensors and config.json into a directory that is not there yet."""
    directory.mkdir(parents=True)
    tensors = {
        f"{i}.{name}": tensor.contiguous()
        for i, one in enumerate(sets)
        for name, tensor in (("weight", one.weight), ("bias", one.bias), ("idf", one.idf), ("head", one.head))
        if tensor is not None
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "model.safetensors").chmod(0o644)
    _write(directory / "grams.json", [list(one.vocabulary) for one in sets])
    hash = hashlib.sha256((directory / "grams.json").read_bytes()).hexdigest()
    described = [{"opening": one.opening, "completions": one.completions} for one in sets]
    _write(
        directory / "config.json", {"model_type": KIND, "characters": sets[0].characters, "grams_sha256": hash, "sets": described}
    )


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def load(directory: Path) -> list[NgramSet]:
    """The models of a directory; raises ValueError for one that is damaged, OSError for one that cannot be read."""
    try:
        said = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        listed = (directory / "grams.json").read_bytes()
        if hashlib.sha256(listed).hexdigest() != said["grams_sha256"]:
            raise ValueError("its grams.json is not the one it was made with; make it again with python -m factory.ngrams")
        grams = json.loads(listed)
        tensors = load_file(directory / "model.safetensors")
        out = [
            NgramSet(one["opening"], tuple(one["completions"]), {gram: n for n, gram in enumerate(grams[i])}, tensors[f"{i}.idf"],
                     tensors[f"{i}.weight"], tensors[f"{i}.bias"], bool(said["characters"]), tensors.get(f"{i}.head"))
            for i, one in enumerate(said["sets"])
        ]  # fmt: skip
    except (KeyError, IndexError, TypeError, SafetensorError) as error:
        raise ValueError(f"not a whole n-gram model ({error!r}); make it again with python -m factory.ngrams") from None
    for one in out:
        grams, answers = len(one.vocabulary), len(one.completions)
        units = answers if one.head is None else one.weight.shape[-1]
        shapes = [one.weight.shape, one.bias.shape, one.idf.shape, (units, answers) if one.head is None else one.head.shape]
        if shapes != [(grams, units), (answers,), (grams,), (units, answers)]:
            raise ValueError("its weights do not fit its grams; make it again with python -m factory.ngrams")
    return out
