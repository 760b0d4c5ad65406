"""What a base model reads: rows of several tasks and running text, tokenized into one set of rows.

Does: load each part, keep what overlaps no held-out question, add variants, tokenize, count what is lost; train the tokenizer.
Does not: train a model. Module used by `pretrain.py`; the tokens it makes are kept, so that a resumed run reads the same.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.events import EventLog
from factory.recipe import Recipe, TaskPart, TextPart
from factory.tasks import get_task
from factory.tasks.task import DatasetCard, DataSource, Dialect, Example, Task, TaskError

if TYPE_CHECKING:
    from factory.dataset import TokenRows

DIALECT: Dialect = "compact"
END_OF_DOCUMENT = "<|endoftext|>"


@dataclass
class Part:
    """One task part as read."""

    recipe: TaskPart
    task: Task
    train: list[Example]
    validation: list[Example]
    held_out: list[Example]
    cards: list[DatasetCard] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.recipe.task}/{self.recipe.dataset}"


def read_parts(recipe: Recipe, data_dir: Path | None) -> list[Part]:
    """Every task part, its validation split and all else it must not overlap. Raises TaskError."""
    tasks: dict[str, Task] = {}
    return [_read(part, tasks.setdefault(part.task, get_task(part.task)), recipe.seed, data_dir) for part in recipe.parts]


def _read(part: TaskPart, task: Task, seed: int, data_dir: Path | None) -> Part:
    if part.folder is not None and data_dir is None:
        raise TaskError(f"{part.task}/{part.dataset} is read from the folder {part.folder!r} of --data-dir, and none is given")
    directory = data_dir / part.folder if data_dir is not None and part.folder is not None else None
    source = DataSource(dataset=part.dataset, data_dir=directory, split=part.split, limit=part.examples, seed=seed)
    train, card = task.load(source)
    cards, others = [card], task.others(source.model_copy(update={"limit": None}))
    validation: list[Example] = []
    split = task.validation_split(source)
    if part.judged:
        validation, held = task.load(source.model_copy(update={"split": split, "limit": None}))
        cards.append(held)
    return Part(part, task, train, validation, others, cards)


def corpus(parts: list[Part], recipe: Recipe, data_dir: Path | None) -> Iterator[str]:
    """Texts for the tokenizer: every task's prompts and answers, and the beginning of the running text, in lower case."""
    for part in parts:
        yield from part.task.corpus(part.train, DIALECT)
    left = recipe.tokenizer_chars
    for text in recipe.texts:
        for document in _documents(text, data_dir):
            yield from document[:left].lower().split("\n")
            left -= len(document)
            if left <= 0:
                break
    for name in recipe.tokenizer_files:
        yield from _strings(name, recipe.tokenizer_chars, data_dir)


def _strings(name: str, most: int, data_dir: Path | None) -> Iterator[str]:
    """Texts of a data file in lower case, up to `most` characters."""
    left = most
    for line in _lines(name, data_dir):
        for text in _walk(line):
            yield text.lower()
            left -= len(text)
        if left <= 0:
            return


def _walk(line: str) -> Iterator[str]:
    """The strings of a JSON value, or the line itself when it is none."""
    try:
        waiting = [json.loads(line)]
    except ValueError:
        yield line
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def special_tokens(parts: list[Part], recipe: Recipe) -> tuple[str, ...]:
    """Those of every task and those in reserve, each once."""
    own = (token for part in parts for token in part.task.special_tokens(DIALECT))
    return tuple(dict.fromkeys((*own, *recipe.reserved_tokens)))


def token_rows(parts: list[Part], recipe: Recipe, data_dir: Path | None, tokenizer: Any, events: EventLog) -> TokenRows:
    """All rows of the recipe, tokenized. Rows that overlap held-out questions, repeat, are too long or cannot be said in the
    compact dialect are left out and counted."""
    from factory.dataset import join, tokenize

    made: list[TokenRows] = []
    for part in parts:
        with events.stage(f"rows of {part.name}") as stage:
            rows, lost = _task_rows(part, recipe.seed, events)
            tokens = tokenize(rows, tokenizer, recipe.max_length)
            for reason, n in {**lost, **tokens.dropped}.items():
                stage.drop(reason, n)
            stage.metric(rows=len(tokens), tokens=len(tokens.ids), mean=round(len(tokens.ids) / len(tokens), 1))
            made.append(tokens)
    for text in recipe.texts:
        with events.stage(f"rows of {text.file}") as stage:
            made.append(_text_rows(text, data_dir, tokenizer))
            stage.metric(rows=len(made[-1]), tokens=len(made[-1].ids))
    return join(made)


def _task_rows(part: Part, seed: int, events: EventLog) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Proven rows of one part and its variants, with counts of what was lost on the way."""
    from factory.rows import HeldOut, select_rows, vary

    rows = select_rows(part.task, part.train, None, part.held_out, DIALECT, events).rows
    if part.recipe.copies == 1:
        return rows, {}
    held = HeldOut(part.task, part.held_out)
    variants, lost = vary(part.task, part.train, rows, held, DIALECT, part.recipe.copies, f"{seed} {part.name}")
    return [*rows, *variants], {f"variant-{reason}": n for reason, n in lost.items()}


def _documents(text: TextPart, data_dir: Path | None) -> Iterator[str]:
    kept: list[str] = []
    for line in _lines(text.file, data_dir):
        if END_OF_DOCUMENT in line:
            yield "".join(kept)
            kept = []
        else:
            kept.append(line)
    yield "".join(kept)


def _lines(name: str, data_dir: Path | None) -> Iterator[str]:
    """Lines of a text file, packed (.xz) or not. Raises TaskError."""
    if data_dir is None:
        raise TaskError(f"{name} is read from --data-dir, and none is given")
    path = data_dir / name
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
            yield from file
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read ({error}); give the --data-dir that holds it") from None


def _text_rows(text: TextPart, data_dir: Path | None, tokenizer: Any) -> TokenRows:
    """Windows of running text, all of whose tokens carry loss."""
    import numpy as np

    from factory.dataset import TokenRows

    ids: list[int] = []
    for document in _documents(text, data_dir):
        ids += tokenizer(" ".join(document.lower().split()), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if len(ids) >= text.tokens:
            break
    count = min(len(ids), text.tokens) // text.window
    if count == 0:
        raise TaskError(f"{text.file} has {len(ids)} tokens, less than one window of {text.window}; take another text or window")
    kept = np.asarray(ids[: count * text.window], np.int32)
    names = [f"{text.file}/{i}" for i in range(count)]
    pad = int(tokenizer.pad_token_id)
    return TokenRows(kept, np.arange(count + 1, dtype=np.int64) * text.window, np.zeros(count, np.int32), names, pad)


def text_card(text: TextPart, data_dir: Path | None) -> DatasetCard:
    """A running text as a card lists it; n counts the windows read."""
    path = (data_dir or Path()) / text.file
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DatasetCard(name=path.name.split(".")[0], split="train", license=text.license, source=text.file, sha256=digest,
                       n=text.tokens // text.window, skipped={})  # fmt: skip


def save_rows(rows: TokenRows, path: Path) -> None:
    """Tokens as a .npz without pickles, whole or not at all."""
    import numpy as np

    partial = path.with_name(f".{path.name}.tmp.npz")
    np.savez(partial, ids=rows.ids, offsets=rows.offsets, prompt_lengths=rows.prompt_lengths, pad=np.int64(rows.pad_id),
             names=np.frombuffer(json.dumps(rows.row_ids).encode(), np.uint8))  # fmt: skip
    partial.replace(path)


def load_rows(path: Path) -> TokenRows:
    import numpy as np

    from factory.dataset import TokenRows

    with np.load(path, allow_pickle=False) as kept:
        names = json.loads(kept["names"].tobytes().decode())
        return TokenRows(kept["ids"], kept["offsets"], kept["prompt_lengths"], names, int(kept["pad"]))
