"""Judged answers -> the rows a student trains on; every example becomes a row or a counted drop.

Does: pick one proven answer for each example, remove what overlaps held-out data and what repeats, write train.jsonl at once.
Does not: ask or judge (`generate.py`), count tokens (`dataset.py`).

Rules. A row *overlaps* when it shares a key of `task.overlap_keys` with a held-out example (exact question, normalised answer,
each in the same context), or when the word 3-grams of the two questions have a Jaccard index of at least 0.8. A row *repeats*
when an earlier one asks the same in the same context, or gives the same answer there to a question whose 3-grams agree by 0.8:
in one table "… in 1992" and "… in 1993" are two questions, since their answers differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from factory.events import EventLog
from factory.ledger import Judged, Ledger
from factory.tasks.task import AnswerError, Dialect, Example, HasVariants, Task

STAGE = "rows"
LABELS = "labels"
"""Source of an answer that came with the data."""
JACCARD = 0.8
"""Share of common 3-grams from which two questions count as the same."""
GRAM = 3

Row = dict[str, Any]
_WORD = re.compile(r"\w+", re.UNICODE)


@dataclass
class Selection:
    """Rows in the order of the examples; `drops` counts the others by reason, so that both add up to the examples."""

    rows: list[Row] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    variants: list[Row] = field(default_factory=list)
    """the further copies of `rows`, see `vary`"""
    lost_variants: Counter[str] = field(default_factory=Counter)
    path: Path | None = None


def select_rows(
    task: Task,
    examples: Sequence[Example],
    ledger: Ledger | None,
    held_out: Sequence[Example],
    dialect: Dialect,
    events: EventLog,
    *,
    path: Path | None = None,
    teacher: str | None = None,
    fill: bool = False,
    copies: int = 1,
    seed: int = 0,
) -> Selection:
    """Rows to train on, in `dialect`, written to `path` (JSON lines) in one step when given and any.

    Answers come from `ledger` (of `teacher`, or of all), or, with `ledger` None, are the examples' own references; with
    `fill` those also stand in where no answer in the ledger proved right. `copies` above 1 adds variants. The same
    input gives the same bytes. Raises LedgerError when drops cannot be stored, OSError when `path` cannot be written.
    """
    out = Selection(path=path)
    lost: list[tuple[str, str]] = []
    verdicts = ledger.verdicts(teacher) if ledger is not None else {}
    names = ledger.teachers() if ledger is not None else {}
    held = HeldOut(task, held_out)
    seen = _Seen()
    with events.stage(STAGE, total=len(examples), unit="rows") as stage:
        for example in examples:
            stage.advance()
            if ledger is None:
                picked, reason = example.reference, "no-reference"
                source = LABELS
            else:
                choice, reason = pick(verdicts.get(example.id, ()))
                picked = None if choice is None else choice.canonical
                source = "" if choice is None else names[choice.key]
                if choice is None and fill and example.reference is not None:
                    picked, source = example.reference, LABELS
            made = reason if picked is None else _row(task, example, picked, source, dialect, held, seen)
            if isinstance(made, str):
                lost.append((made, example.id))
            else:
                out.rows.append(made)
        out.drops.update(reason for reason, _ in lost)
        if ledger is not None:
            ledger.replace_drops(STAGE, lost)
        for reason, n in out.drops.most_common():
            stage.drop(reason, n)
        stage.metric(examples=len(examples), rows=len(out.rows), dropped=len(lost))
        filled = sum(row["source"] == LABELS for row in out.rows) if ledger is not None else 0
        if filled:
            stage.warn(f"{filled:,} rows have the data's own answer: the teacher's did not prove right")
    if copies > 1 and out.rows:
        with events.stage("variants", total=len(out.rows) * (copies - 1), unit="rows") as stage:
            out.variants, out.lost_variants = vary(task, examples, out.rows, held, dialect, copies, seed)
            for reason, n in out.lost_variants.most_common():
                stage.drop(reason, n)
            stage.metric(rows=len(out.variants), dropped=out.lost_variants.total())
    if path is not None and out.rows:
        write_jsonl(path, [*out.rows, *out.variants])
    return out


def vary(
    task: Task, examples: Sequence[Example], rows: Sequence[Row], held: HeldOut, dialect: Dialect, copies: int, seed: int | str
) -> tuple[list[Row], Counter[str]]:
    """The second to last of `copies` copies of every row, in other variants where the task has them, else as they are; and how
    many could not be taken, by reason: a question put another way must not overlap held-out data either. An id's copies are
    `ID/1`, `ID/2` …"""
    out: list[Row] = []
    lost: Counter[str] = Counter()
    by_id = {example.id: example for example in examples}
    for copy in range(1, copies):
        random = Random(f"{seed} {copy}")
        for row in rows:
            made = {**row, "id": f"{row['id']}/{copy}"}
            if isinstance(task, HasVariants):
                example = replace(by_id[row["id"]], reference=row["answer"])
                try:
                    question, messages, completion = task.variant(example, row["answer"], dialect, random)
                except AnswerError as error:
                    lost[f"not-in-dialect-{error.reason}"] += 1
                    continue
                if question != example.question:
                    reason = held.overlap(task.overlap_keys(replace(example, question=question)), ngrams(question))
                    if reason is not None:
                        lost[reason] += 1
                        continue
                prompt = [message.model_dump(include={"role", "content"}) for message in messages]
                made |= {"prompt": prompt, "completion": completion}
            out.append(made)
    return out, lost


def pick(judged: Sequence[Judged]) -> tuple[Judged | None, str]:
    """The proven answer most samples gave (then the shortest, then the first), or None and the commonest reason against them."""
    proven = [row for row in judged if row.ok and row.canonical is not None]
    if not proven:
        reasons = Counter(row.reason for row in judged)
        return None, min(reasons, key=lambda reason: (-reasons[reason], reason)) if reasons else "no-answer"
    count = Counter(row.canonical for row in proven)
    return min(proven, key=lambda row: (-count[row.canonical], len(row.canonical or ""), row.canonical or "")), "ok"


def _row(task: Task, example: Example, answer: str, source: str, dialect: Dialect, held: HeldOut, seen: _Seen) -> Row | str:
    """A row, or the reason why there is none."""
    answered = replace(example, reference=answer)
    keys = task.overlap_keys(answered)
    grams = ngrams(example.question)
    reason = held.overlap(keys, grams) or seen.repeats(example, keys, answer, grams)
    if reason is not None:
        return reason
    try:
        completion = task.encode(answered, answer, dialect)
    except AnswerError as error:
        return f"not-in-dialect-{error.reason}"
    seen.add(example, keys, answer, grams)
    return {
        "id": example.id, "context_id": example.context_id, "question": example.question, "answer": answer,
        "prompt": [message.model_dump(include={"role", "content"}) for message in task.messages(example, dialect)],
        "completion": completion, "source": source,
    }  # fmt: skip


def words(question: str) -> list[str]:
    """Lower-case words and numbers of a question."""
    return _WORD.findall(question.lower())


def ngrams(question: str) -> frozenset[str]:
    """Word 3-grams of a question, its ends marked, so that a question of n words has n: one swapped word changes up to 3."""
    padded = ["", *words(question), ""]
    return frozenset("\t".join(padded[i : i + GRAM]) for i in range(max(1, len(padded) - GRAM + 1)))


class GramIndex:
    """Finds sets with a Jaccard index of at least `JACCARD`, exactly, looking only at each set's first grams in one fixed order:

    two sets that similar must share one of their first |A| - ceil(0.8 |A|) + 1 (prefix filter, Chaudhuri et al. 2006).
    """

    def __init__(self) -> None:
        self._sets: list[frozenset[str]] = []
        self._by_gram: defaultdict[tuple[object, str], list[int]] = defaultdict(list)
        self._frequency: Counter[str] = Counter()

    def learn(self, sets: Iterable[frozenset[str]]) -> None:
        """Note how common grams are, so that prefixes hold the rare ones; only before the first `add`."""
        for grams in sets:
            self._frequency.update(grams)

    def _prefix(self, grams: frozenset[str]) -> list[str]:
        ordered = sorted(grams, key=lambda gram: (self._frequency[gram], gram))
        return ordered[: len(ordered) - -(-len(ordered) * 4 // 5) + 1]

    def add(self, grams: frozenset[str], group: object = None) -> None:
        self._sets.append(grams)
        for gram in self._prefix(grams):
            self._by_gram[group, gram].append(len(self._sets) - 1)

    def similar(self, grams: frozenset[str], group: object = None) -> bool:
        """Whether a set added in this group is that similar."""
        tried: set[int] = set()
        for gram in self._prefix(grams):
            for number in self._by_gram.get((group, gram), ()):
                if number not in tried:
                    tried.add(number)
                    other = self._sets[number]
                    common = len(grams & other)
                    if 5 * common >= 4 * (len(grams) + len(other) - common):
                        return True
        return False


class HeldOut:
    """Validation and test examples, indexed for overlap."""

    def __init__(self, task: Task, examples: Sequence[Example]) -> None:
        self._keys: set[tuple[str, str]] = set()
        self._index = GramIndex()
        sets = [ngrams(example.question) for example in examples]
        self._index.learn(sets)
        for example, grams in zip(examples, sets, strict=True):
            self._keys.update(task.overlap_keys(example).items())
            self._index.add(grams)

    def overlap(self, keys: Mapping[str, str], grams: frozenset[str]) -> str | None:
        """Why a row may not train: "held-out-<kind>" or "held-out-ngram"; None when it may."""
        for kind, key in keys.items():
            if (kind, key) in self._keys:
                return f"held-out-{kind}"
        return "held-out-ngram" if self._index.similar(grams) else None


class _Seen:
    """Rows kept so far, indexed for repetition."""

    def __init__(self) -> None:
        self._questions: dict[tuple[str, str], str] = {}
        self._index = GramIndex()

    def repeats(self, example: Example, keys: Mapping[str, str], answer: str, grams: frozenset[str]) -> str | None:
        before = self._questions.get((example.context_id, " ".join(words(example.question))))
        group = self._group(example, keys, answer)
        if before is not None:
            return "duplicate" if before == group else "duplicate-contradicts"
        return "near-duplicate" if self._index.similar(grams, group) else None

    def add(self, example: Example, keys: Mapping[str, str], answer: str, grams: frozenset[str]) -> None:
        group = self._group(example, keys, answer)
        self._questions[example.context_id, " ".join(words(example.question))] = group
        self._index.add(grams, group)

    @staticmethod
    def _group(example: Example, keys: Mapping[str, str], answer: str) -> str:
        return hashlib.sha256(f"{example.context_id}\0{keys.get('answer', answer)}".encode()).hexdigest()


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write all rows or none: a temporary file beside `path`, flushed to disk, then renamed over it."""
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
