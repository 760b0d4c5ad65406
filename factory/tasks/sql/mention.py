"""Words of a text that name something numbered (a column, an argument, a function), and which of overlapping ones count.

Does: choose among mentions. Does not: find them (`marks.py`, `factory.tasks.tools.mentions`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mention:
    """Characters [start, end) of a text that name `number`."""

    start: int
    end: int
    number: int


def strongest(found: Iterable[tuple[float, Mention]], most: int) -> tuple[Mention, ...]:
    """Of (weight, mention)s those that no heavier one overlaps, in the order of the text; of as heavy ones in the same place at
    most `most`, each of another number."""
    kept: list[tuple[float, Mention]] = []
    for weight, run in sorted(found, key=lambda item: (-item[0], item[1].start, item[1].number)):
        rivals = [other for other in kept if other[1].start < run.end and run.start < other[1].end]
        if len(rivals) < most and all(heavy <= weight + 1e-9 and other.number != run.number for heavy, other in rivals):
            kept.append((weight, run))
    return tuple(sorted((run for _, run in kept), key=lambda run: (run.start, run.number)))
