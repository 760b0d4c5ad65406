"""Find stored values that a question mentions, and the columns they are stored in (BRIDGE, Lin et al. 2020).

Does: match spans of the question with stored values after normalising, longest first, few per column.
Does not: decide what the question asks; prompts show the matches and grammars may copy them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from factory.tasks.sql import cells
from factory.tasks.sql.database import Database


@dataclass(frozen=True)
class Match:
    """`column` is the column's global index, `span` the text as in the question, `value` the text as stored."""

    column: int
    span: str
    value: str


PER_COLUMN = 3
PER_NUMBER, PER_TEXT = 4, 6
"""Most columns that one span is shown in: "1" is stored in nearly all."""
PER_QUESTION = 12
LONGEST = 16
"""Tokens of the longest span tried."""
LOOKED_UP = 5
"""Tokens of the longest span looked up in a column of very many values."""
INDEXES_KEPT = 256

_TOKEN = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+|[0-9]+(?:\.[0-9]+)?|[^\W\d_]+")
_DIGITS = frozenset("0123456789.")
_STOP_WORDS = """
    a about after all an and any are as at be been before between both but by can could did do does each from for had has have
    he her his how i if in into is it its many me more most much name not of on or other over s she show so some t tell than that
    the their them there these they this those to total under up was we were what when where which while who whom whose why will
    with would you your"""
_STOP = frozenset(_STOP_WORDS.split())
"""Words that are values only by accident when they stand alone."""


@dataclass(frozen=True)
class _Token:
    text: str
    start: int
    end: int
    numeric: bool


@dataclass(frozen=True)
class _Index:
    """Normalised text or number -> (column, value as stored); `longest` in tokens; `names`: the words of each column's name."""

    texts: dict[str, list[tuple[int, str]]]
    numbers: dict[float, list[tuple[int, str]]]
    longest: int
    names: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Candidate:
    column: int
    value: str
    start: int
    end: int
    tokens: int
    numeric: bool
    mentioned: float


def link(database: Database, question: str) -> tuple[Match, ...]:
    """At most twelve matches, in schema order of their columns, then by position in the question.

    A span counts where its letters and digits, ignoring case, are a whole stored value; numbers compare as numbers."""
    index = _index(database)
    tokens = _tokens(question)
    index = _widened(index, database, question, tokens)
    asked = [_stem(token.text) for token in tokens]
    mentioned = [_mentioned(name, asked) for name in index.names]
    found: list[_Candidate] = []
    for i, first in enumerate(tokens):
        if first.numeric:
            found += _numbers(index, question, first, mentioned)
        joined = ""
        for j in range(i, min(len(tokens), i + index.longest)):
            joined += tokens[j].text
            hits = index.texts.get(joined)
            if hits and not (i == j and _accidental(question, first)):
                end = tokens[j].end
                found += [_Candidate(c, v, first.start, end, j - i + 1, False, mentioned[c]) for c, v in hits]
    return tuple(_as_match(question, c) for c in _choose(found))


def _choose(found: list[_Candidate]) -> list[_Candidate]:
    """Longest first, then columns that the question names; nothing inside what its column already has."""
    taken: dict[int, list[_Candidate]] = defaultdict(list)
    columns_of: dict[int, int] = defaultdict(int)
    kept: list[_Candidate] = []
    for one in sorted(found, key=lambda c: (-c.tokens, c.numeric, -c.mentioned, c.start, c.column)):
        same = taken[one.column]
        covered = any((o.start <= one.start and one.end <= o.end) or o.value == one.value for o in same)
        crowded = columns_of[one.start] >= (PER_NUMBER if one.numeric else PER_TEXT)
        if covered or crowded or len(same) == PER_COLUMN or len(kept) == PER_QUESTION:
            continue
        same.append(one)
        kept.append(one)
        columns_of[one.start] += 1
    return sorted(kept, key=lambda c: (c.column, c.start))


def _numbers(index: _Index, question: str, token: _Token, mentioned: list[float]) -> list[_Candidate]:
    """The number, and the same with the sign before it when that is not a dash between words."""
    value = float(token.text)
    found = [_Candidate(c, v, token.start, token.end, 1, True, mentioned[c]) for c, v in index.numbers.get(value, ())]
    sign = token.start - 1
    if sign >= 0 and question[sign] in "-−–" and (sign == 0 or question[sign - 1] in " ("):
        found += [_Candidate(c, v, sign, token.end, 1, True, mentioned[c]) for c, v in index.numbers.get(-value, ())]
    return found


def _accidental(question: str, token: _Token) -> bool:
    """A lone stop-word, or a letter that an apostrophe cut off."""
    if token.numeric:
        return False
    if token.text in _STOP:
        alone_upper = len(token.text) == 1 and question[token.start].isupper() and token.start > 0
        return not alone_upper
    return len(token.text) == 1 and token.start > 0 and question[token.start - 1] in "'’"


def _as_match(question: str, found: _Candidate) -> Match:
    """The span grows over signs that the stored value has at its ends and the question has there too: "butler (ks)"."""
    start, end = found.start, found.end
    text = found.value
    tail = "".join(re.findall(r"[^\w\s]*\s*", text[_last(text) :]))
    for sign in "".join(tail.split()):
        if end < len(question) and question[end] == sign:
            end += 1
        else:
            break
    head = text[: _first(text)]
    for sign in reversed("".join(head.split())):
        if start > 0 and question[start - 1] == sign:
            start -= 1
        else:
            break
    return Match(found.column, question[start:end], found.value)


def _first(text: str) -> int:
    found = re.search(r"\w", text)
    return found.start() if found else len(text)


def _last(text: str) -> int:
    found = re.search(r"\w\W*$", text)
    return found.start() + 1 if found else len(text)


def _tokens(text: str) -> list[_Token]:
    tokens = []
    for found in _TOKEN.finditer(text):
        word = found[0]
        numeric = word[0] in _DIGITS
        tokens.append(_Token(word.replace(",", "") if numeric else _plain(word), found.start(), found.end(), numeric))
    return tokens


def _plain(word: str) -> str:
    """Lower case without letters outside a-z (stored copies often lost their accents), unless nothing else is there."""
    lower = word.lower()
    return lower if lower.isascii() else (lower.encode("ascii", "ignore").decode() or lower)


def _mentioned(name: tuple[str, ...], asked: list[str]) -> float:
    """2 when the question has the column's name as it is, else the share of the name's words that it has."""
    common = len(set(name) & set(asked))
    if not common:
        return 0.0
    as_it_is = common == len(set(name)) and f" {' '.join(name)} " in f" {' '.join(asked)} "
    return 2.0 if as_it_is else common / len(set(name))


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


@lru_cache(maxsize=INDEXES_KEPT)
def _index(database: Database) -> _Index:
    columns = database.schema.columns
    names = tuple(tuple(_stem(token.text) for token in _tokens(column.called)) for _, column in columns)
    return _indexed([(column, database.values(column)) for column in range(len(columns))], names)


def _widened(index: _Index, database: Database, question: str, tokens: list[_Token]) -> _Index:
    """With what columns of very many values store of the question: those are looked up, for no index of them is kept."""
    spans = [
        question[first.start : last.end]
        for i, first in enumerate(tokens)
        for last in tokens[i : i + LOOKED_UP]
        if first is not last or not _accidental(question, first)
    ]
    found = [(column, database.beyond(column, spans)) for column in range(len(index.names))]
    more = _indexed([(column, values) for column, values in found if values], index.names)
    if not more.texts and not more.numbers:
        return index
    return _Index(
        {**index.texts, **{key: list(dict.fromkeys([*index.texts.get(key, ()), *hits])) for key, hits in more.texts.items()}},
        {
            **index.numbers,
            **{key: list(dict.fromkeys([*index.numbers.get(key, ()), *hits])) for key, hits in more.numbers.items()},
        },
        max(index.longest, more.longest),
        index.names,
    )


def _indexed(values_of: Iterable[tuple[int, tuple[str, ...]]], names: tuple[tuple[str, ...], ...]) -> _Index:
    texts: dict[str, list[tuple[int, str]]] = {}
    numbers: dict[float, list[tuple[int, str]]] = {}
    longest = 1
    for column, values in values_of:
        for value in values:
            number = cells.number(value)
            if number is not None:
                numbers.setdefault(number, []).append((column, value))
                continue
            words = _TOKEN.findall(value)
            if words and len(words) <= LONGEST:
                joined = "".join(word.replace(",", "") if word[0] in _DIGITS else _plain(word) for word in words)
                texts.setdefault(joined, []).append((column, value))
                longest = max(longest, len(words))
    return _Index(texts, numbers, min(LONGEST, longest + 2), names)
