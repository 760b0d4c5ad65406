"""Words of a conversation that name an argument, one of its choices, or a function: `any<c2> child - friendly<c3> park there`.

Does: find them. Does not: write the marks (`view.py`) or decide what is called.

A small model points where something is marked; without a mark it has to match words in their order and forms first, which it
learns from many more rows (the same lever as `factory.tasks.sql.marks`, for functions instead of columns).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from factory.tasks.sql.mention import Mention, strongest
from factory.tasks.tools.functions import Argument, Function

WORDS_KEPT = 10_000
"""Different words remembered for one list of names."""
SAME_WORDS = 2
"""Most arguments that the same words may name; as many functions beside them."""

_WORD = re.compile(r"\d+|[^\W\d_]+")
_HYPHENATED = re.compile(r"(?<![^\W\d_])[^\W\d_]+-[^\W\d_]+")
_ENDINGS = ("ings", "ing", "ers", "ed", "es", "er", "s", "e")
_WEAK = frozenset(
    """a an any and are as at be by can do does for from get has have i in is it me my name new no not number of on or per
    s some that the their there this to was what when where which who with you""".split()
)
"""Words that name something only together with others."""
_VERBS = frozenset("check do find list look lookup search show".split())
"""Weak where they stand in a function's name: requests are full of them."""
_HEAD = 4
"""Letters of the shorter word that one word must share with another from its start, to be a form or part of it."""
_TAIL = 2
"""Letters that the longer one has more, at least: `bath` and `bathroom`, but not `star` and `start`."""


@dataclass(frozen=True)
class Name:
    """What may be said for one argument or function: the stems of its words."""

    number: int
    stems: tuple[str, ...]
    weak: frozenset[str]
    choice: bool


class Names:
    """The names of one list of arguments or functions, and which of them each word met so far belongs to."""

    def __init__(self, names: Sequence[Name]) -> None:
        self.names = tuple(names)
        self._of: dict[str, dict[int, str]] = {}
        self._whole: dict[str, list[int]] = {}
        self._headed: dict[str, list[tuple[int, str]]] = {}
        for i, name in enumerate(self.names):
            for own in name.stems:
                self._whole.setdefault(own, []).append(i)
                self._headed.setdefault(own[:_HEAD], []).append((i, own))

    def of(self, word: str) -> dict[int, str]:
        """Place in `names` -> the stem there that `word` is a form or part of."""
        found = self._of.get(word)
        if found is None:
            among = dict.fromkeys(self._whole.get(word, ()), word)
            for i, own in self._headed.get(word[:_HEAD], ()):
                if i not in among and _is_part(word, own):
                    among[i] = own
            if len(self._of) >= WORDS_KEPT:
                self._of.clear()
            found = self._of[word] = dict(sorted(among.items()))
        return found


@lru_cache(1 << 12)
def argument_names(arguments: tuple[Argument, ...]) -> Names:
    """An argument's own name, and each choice it has in words."""
    return Names(
        [
            _name(number, text, _WEAK, choice)
            for number, argument in enumerate(arguments)
            for text, choice in [(argument.words, False), *((str(c), True) for c in argument.choices if isinstance(c, str))]
            if _WORD.search(text)
        ]
    )


@lru_cache(1 << 12)
def function_names(functions: tuple[Function, ...]) -> Names:
    return Names([_name(number, function.words, _WEAK | _VERBS, False) for number, function in enumerate(functions)])


@lru_cache(1 << 14)
def _name(number: int, text: str, weak: frozenset[str], choice: bool) -> Name:
    stems = tuple(dict.fromkeys(stem(word) for word in _WORD.findall(text)))
    return Name(number, stems, frozenset(stem(word) for word in weak), choice)


@lru_cache(1 << 14)
def mentions(text: str, names: Names, taken: tuple[tuple[int, int], ...] = ()) -> tuple[Mention, ...]:
    """In the order of the text. A mention holds stems of one name, at least one of them telling, or the whole name.

    Of overlapping ones those stay that cover most of their names, at most `SAME_WORDS` that cover as much. Places inside `taken`
    (spans of values) name choices only."""
    runs: list[tuple[float, Mention]] = []
    for words in _readings(text):
        for name, first, last, said in _runs(words, names):
            start, end = words[first][0], words[last][1]
            if name.choice or not any(a <= start and end <= b for a, b in taken):
                runs.append((said**1.5 / len(name.stems), Mention(start, end, name.number)))
    return strongest(runs, SAME_WORDS)


def _runs(words: Sequence[tuple[int, int, str]], names: Names) -> Iterator[tuple[Name, int, int, int]]:
    """(name, first word, last word, different stems of the name) of every run of a name's words."""
    of = [names.of(word) for _, _, word in words]
    for first, found in enumerate(of):
        for i in found:
            if first and i in of[first - 1]:
                continue  # inside a run that has been seen
            said: set[str] = set()
            last = first
            while last < len(of) and i in of[last]:
                said.add(of[last][i])
                last += 1
            name = names.names[i]
            if said - name.weak or len(said) == len(name.stems):
                yield name, first, last - 1, len(said)


def _is_part(word: str, own: str) -> bool:
    """Whether one is the beginning of the other: `bath` and `bathroom`."""
    short, long = (word, own) if len(word) <= len(own) else (own, word)
    return len(short) >= _HEAD and len(long) - len(short) >= _TAIL and long.startswith(short)


@lru_cache(1 << 14)
def _readings(text: str) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """The words as (start, end, stem); and each hyphenated one as one word by itself: `wi-fi` is `wifi`."""
    single = tuple((found.start(), found.end(), stem(found.group())) for found in _WORD.finditer(text))
    joined = (((f.start(), f.end(), stem(f.group().replace("-", ""))),) for f in _HYPHENATED.finditer(text))
    return (single, *joined)


@lru_cache(1 << 14)
def stem(word: str) -> str:
    """The same for a name and for its use in a request: `Movies`, `movie` -> `movy`; `leaving`, `leave` -> `leav`."""
    word = word.lower()
    for ending in ("ies", "ie"):
        if word.endswith(ending) and len(word) > 4:
            return word.removesuffix(ending) + "y"
    if word.endswith("ss"):
        return word
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
