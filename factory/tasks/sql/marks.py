"""Schema linking for the compact dialect: which words of a question name a stored value or a column.

Does: number the linked values of a question `<v0>`, `<v1>`, … by their place, find the words that name columns, and write the
question with both kinds of mark before the words they stand for.
Does not: find stored values (`link.py`), or write answers (`single.py`). Only WikiSQL's form is marked.

A small model then points instead of copying: to learn `<v0><c4>` takes far fewer rows than to learn to spell a value and to
match its words with a column (name-based linking as in Wang et al. 2020, RAT-SQL; value anchors as in Lin et al. 2020, BRIDGE).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from factory.tasks.sql.mention import Mention, strongest
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.spaced import chunks, find

if TYPE_CHECKING:
    from factory.tasks.sql.link import Match

MAX_VALUES = 16
"""Value tokens: linked spans of one question that can be pointed at."""
COLUMNS_PER_SPAN = 2
"""Most columns that the same words may name."""

_STOP = frozenset(
    """a all an and any are as at be been by did do does each for from had has have how in is it its many much name no not number
    of on or per s than that the their then there this to total was were what when where which who whom whose with""".split()
)
"""Words that name a column only together with others."""
_WORD = re.compile(r"[0-9]+|[^\W\d_]+|[#%$]")
_ENDINGS = ("ing", "ed", "es", "s", "ers", "er")


class Marks:
    """The marks of one question. `values[i]` is the span (text, start) that `<vi>` stands for, in the order of the question."""

    def __init__(self, schema: Schema, question: str, matches: Sequence[Match]) -> None:
        self.schema, self.question, self.matches = schema, question, matches
        self.chunks = chunks(question)

    @cached_property
    def values(self) -> tuple[tuple[str, int], ...]:
        places: dict[str, tuple[str, int]] = {}
        for match in self.matches:
            key = match.span.lower()
            if key not in places:
                found = find(self.chunks, match.span)
                at = found[0] if found is not None else self.question.lower().find(key)
                if at >= 0:
                    places[key] = (self.question[at : at + len(match.span)], at)
        return tuple(sorted(places.values(), key=lambda value: (value[1], -len(value[0])))[:MAX_VALUES])

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Lower-cased span -> i of `<vi>`."""
        return {text.lower(): i for i, (text, _) in enumerate(self.values)}

    def of_column(self, column: int) -> list[int]:
        """The i of every `<vi>` stored in a column, ascending."""
        own = (self.number_of.get(match.span.lower()) for match in self.matches if match.column == column)
        return sorted({i for i in own if i is not None})

    @cached_property
    def names(self) -> tuple[Mention, ...]:
        taken = [(at, at + len(text)) for text, at in self.values]
        return column_names(self.schema, self.question, taken)

    def written(self, rank: Sequence[int]) -> str:
        """The question as the compact dialect writes it, marks before what they stand for; column i is `<c(rank[i])>`."""
        before: dict[int, list[str]] = {}
        starts = [chunk.start for chunk in self.chunks]
        marks = [(at, 0, f"<v{i}>") for i, (_, at) in enumerate(self.values)]
        marks += [(name.start, 1, f"<c{rank[name.number]}>") for name in self.names]
        for at, _, token in sorted(marks):
            nearest = max((start for start in starts if start <= at), default=starts[0] if starts else 0)
            before.setdefault(nearest, []).append(token)
        return "".join("".join(before.get(chunk.start, ())) + chunk.text for chunk in self.chunks)


def column_names(schema: Schema, question: str, taken: Sequence[tuple[int, int]] = ()) -> tuple[Mention, ...]:
    """Runs of words that name columns (by their number in the schema), in the order of the question.

    A run holds stems of one column's name, at least one of them telling (or the whole name). Of overlapping runs the one that
    covers most of its name stays, with at most one that ties. Runs inside `taken` (places of values) do not count.
    """
    words = [(found.start(), found.end(), _stem(found.group())) for found in _WORD.finditer(question)]
    runs: list[tuple[float, Mention]] = []
    for i, (_, column) in enumerate(schema.columns):
        name = {_stem(word) for word in _WORD.findall(column.called)}
        at = 0
        while at < len(words):
            last = at
            while last < len(words) and words[last][2] in name:
                last += 1
            said = {stem for _, _, stem in words[at:last]}
            if said and (said - _STOP or said == name):
                run = Mention(words[at][0], words[last - 1][1], i)
                if not any(start <= run.start and run.end <= end for start, end in taken):
                    runs.append((len(said) ** 1.5 / len(name), run))
            at = max(last, at + 1)
    return strongest(runs, COLUMNS_PER_SPAN)


def _stem(word: str) -> str:
    """A crude stem, the same for a name and for its use in a question: `players`, `Player` -> `play`."""
    word = word.lower()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
