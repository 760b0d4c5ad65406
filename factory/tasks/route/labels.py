"""Label sets: the answers a router may give, their words, and how they are read and kept in a card.

Does: hold a set (name, labels, descriptions, out of scope or not), read it from a file, write it to card data and back, give
the constraint and the parser of its answers, each made once.
Does not: read questions (`sources.py`, `own.py`) or write prompts (`prompt.py`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from agents.constrain import Constraint, choice
from factory.tasks.sql.reading import Fingerprint, read_bytes
from factory.tasks.sql.spaced import spaced_name
from factory.tasks.task import AnswerError, Dialect, TaskError

OUT_OF_SCOPE = "out_of_scope"
"""The canonical answer to what belongs to no label; a label of that name means the same."""
OOS_TOKEN = "<oos>"
MOST_LABELS = 1000
LONGEST_LABEL = 120
LONGEST_DESCRIPTION = 400
_MARK = re.compile(r"<[a-z]+>")


@dataclass(frozen=True, eq=False)
class LabelSet:
    """`id` names the set in data and cards, `title` (words) in compact prompts; `labels` maps a name to its description."""

    id: str
    title: str
    labels: Mapping[str, str]
    out_of_scope: bool = True
    """whether "none of these" is an answer"""
    outside_above: Mapping[str, float] = field(default_factory=dict)
    """share of false alarms ("0.05") -> what `weigh.OUTSIDE` must exceed to call an utterance out of scope, of one student"""

    @cached_property
    def words(self) -> dict[str, str]:
        """Answer -> completion of the compact dialect: the label in spaced lower-case words, or one token."""
        out = {name: spaced_name(name) for name in self.labels}
        return out | ({OUT_OF_SCOPE: OOS_TOKEN} if self.out_of_scope else {})

    @cached_property
    def answers(self) -> tuple[str, ...]:
        return (*self.labels, OUT_OF_SCOPE) if self.out_of_scope else tuple(self.labels)

    def completions(self, dialect: Dialect) -> tuple[str, ...]:
        """What may be written, in the order of `answers`."""
        return tuple(self.words[answer] for answer in self.answers) if dialect == "compact" else self.answers

    def constraint(self, dialect: Dialect) -> Constraint:
        return self._compact if dialect == "compact" else self._plain

    @cached_property
    def _compact(self) -> Constraint:
        return choice(self.completions("compact"))

    @cached_property
    def _plain(self) -> Constraint:
        return choice(self.answers)

    def encode(self, answer: str, dialect: Dialect) -> str:
        if answer not in self.answers:
            raise AnswerError("unknown-label", f"{answer[:80]!r} is no label of {self.id}{self.near(answer)}")
        return self.words[answer] if dialect == "compact" else answer

    def decode(self, completion: str, dialect: Dialect) -> str:
        """The label a text means: as the constraint has it, else (models that write freely) in other case, quoted, after
        "label:", or as the only one that occurs in it. Raises AnswerError: "empty", "unknown-label"."""
        if not completion.strip():
            raise AnswerError("empty", "the completion is empty")
        if dialect == "compact":
            found = self._by_words.get(" ".join(completion.split()))
        else:
            found = self._read(completion)
        if found is None:
            raise AnswerError("unknown-label", f"{completion.strip()[:80]!r} is no label of {self.id}")
        return found

    @cached_property
    def _by_words(self) -> dict[str, str]:
        return {" ".join(words.split()): answer for answer, words in self.words.items()}

    @cached_property
    def _by_reading(self) -> dict[str, str]:
        return {_reading(answer): answer for answer in self.answers}

    def _read(self, completion: str) -> str | None:
        text = completion.strip()
        if text in self.answers:
            return text
        first = re.sub(r"^\W*(?:label|answer|intent)\W*:\W*", "", text, flags=re.IGNORECASE)
        found = self._by_reading.get(_reading(first)) or self._by_reading.get(_reading(first.split("\n")[0]))
        if found is not None:
            return found
        read = f" {_reading(text)} "
        within = [answer for reading, answer in self._by_reading.items() if f" {reading} " in read]
        # "transfer" inside "cancel transfer" is not a second answer.
        longest = [a for a in within if not any(a != b and f" {_reading(a)} " in f" {_reading(b)} " for b in within)]
        return longest[0] if len(longest) == 1 else None

    def near(self, text: str) -> str:
        """Advice about a label that is not there."""
        close = difflib.get_close_matches(text, self.answers, n=1)
        some = ", ".join(self.answers[:8]) + (", …" if len(self.answers) > 8 else "")
        return f"; did you mean {close[0]!r}?" if close else f"; choose from {some}"

    def data(self) -> dict[str, Any]:
        """For a card, JSON-ready."""
        said = {"id": self.id, "title": self.title, "labels": dict(self.labels), "out_of_scope": self.out_of_scope}
        return said | ({"outside_above": dict(self.outside_above)} if self.outside_above else {})


def make_set(id: str, title: str, labels: Mapping[str, str] | Iterable[str], out_of_scope: bool, where: str) -> LabelSet:
    """A checked label set; `where` names its origin in the TaskError of a bad one."""
    described = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels, "")
    if OUT_OF_SCOPE in described:
        del described[OUT_OF_SCOPE]
        out_of_scope = True
    if len(described) + out_of_scope < 2:
        raise TaskError(
            f"{where}: {len(described)} label(s) ({', '.join(described)}); a router needs at least two to choose from"
        )
    if len(described) > MOST_LABELS:
        raise TaskError(f"{where}: {len(described):,} labels; at most {MOST_LABELS:,} can be told apart, merge some")
    seen: dict[str, str] = {}
    for name, description in described.items():
        if not name.strip() or len(name) > LONGEST_LABEL or "\n" in name or _MARK.search(name):
            raise TaskError(f"{where}: the label {name[:60]!r} is empty, has a line break or a <mark>, or is longer than "
                            f"{LONGEST_LABEL} characters; rename it")  # fmt: skip
        if len(description) > LONGEST_DESCRIPTION:
            raise TaskError(f"{where}: the description of {name!r} has {len(description)} characters; "
                            f"{LONGEST_DESCRIPTION} at most")  # fmt: skip
        words = _reading(name) or name
        if words in seen:
            raise TaskError(f"{where}: the labels {seen[words]!r} and {name!r} read the same; rename one")
        seen[words] = name
    return LabelSet(id, title, described, out_of_scope)


def from_data(data: Mapping[str, Any], where: str) -> tuple[LabelSet, ...]:
    """The label sets of a card's task data; raises TaskError when there are none or they are damaged."""
    try:
        sets = tuple(
            replace(make_set(str(one["id"]), str(one["title"]), {str(k): str(v) for k, v in one["labels"].items()},
                             bool(one["out_of_scope"]), where),
                    outside_above={str(k): float(v) for k, v in one.get("outside_above", {}).items()})
            for one in data["sets"]
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TaskError(f"{where}: its card holds no label set ({error!r}); train the router again, or give --labels") from None
    if not sets:
        raise TaskError(f"{where}: its card holds no label set; train the router again, or give --labels")
    return sets


@dataclass(frozen=True)
class LabelsFile:
    """What a labels file says. `outside` is the label that means out of scope, None where it says nothing of that."""

    labels: Mapping[str, str]
    outside: str | bool | None
    title: str | None


def read_labels(path: Path, seen: Fingerprint) -> LabelsFile:
    """JSON ({"labels": {name: description} or [names], "out_of_scope": true/false/name, "name": words}, or just the names), or
    text with a label a line, `name` or `name: description`. Raises TaskError naming file and line."""
    try:
        text = read_bytes(path, seen).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TaskError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    if path.suffix == ".json" or text.lstrip()[:1] in ("{", "["):
        return _from_json(path, text)
    labels: dict[str, str] = {}
    for n, line in enumerate(text.splitlines(), start=1):
        name, _, description = line.partition("\t") if "\t" in line else line.partition(":")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not name.strip():
            raise TaskError(f"{path}, line {n}: {line.strip()[:40]!r} has no label; expected `name` or `name: description`")
        if name.strip() in labels:
            raise TaskError(f"{path}, line {n}: the label {name.strip()!r} stands there twice; keep one")
        labels[name.strip()] = " ".join(description.split())
    return LabelsFile(labels, None, None)


def _from_json(path: Path, text: str) -> LabelsFile:
    expected = 'expected {"labels": {"name": "description", …}, "out_of_scope": true}, or a list of names'
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); {expected}") from None
    outside, title = None, None
    found = raw
    if isinstance(raw, dict) and isinstance(raw.get("labels"), dict | list):
        unknown = set(raw) - {"labels", "out_of_scope", "name"}
        if unknown:
            raise TaskError(f"{path}: unknown key {sorted(unknown)[0]!r}; {expected}")
        found, outside, title = raw["labels"], raw.get("out_of_scope"), raw.get("name")
    if isinstance(found, list):
        repeated = next((name for i, name in enumerate(found) if name in found[:i]), None)
        if repeated is not None:
            raise TaskError(f"{path}: the label {repeated!r} stands there twice; keep one")
        found = dict.fromkeys(found, "") if all(isinstance(name, str) for name in found) else None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise TaskError(f"{path}: {text.strip()[:40]!r} holds no labels; {expected}")
    if not isinstance(outside, str | bool | None) or not isinstance(title, str | None):
        raise TaskError(f'{path}: "out_of_scope" is true, false or a label, and "name" is text; {expected}')
    return LabelsFile(found, outside, title)


def _reading(text: str) -> str:
    """What tells labels apart: their letters, digits and marks in lower case."""
    return " ".join(re.sub(r"[_\-/]+", " ", spaced_name(text)).strip(" .?\"'`*!").split())
