"""Whether a result can be drawn, and how.

Does: pick a label column and number columns, bars for names and a line for years or dates.
Does not: draw.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

MOST, SERIES = 100, 3


@dataclass(frozen=True)
class Chart:
    """`x` and `y` are column positions; `rows` what is drawn, sorted for a line."""

    kind: Literal["bar", "line"]
    x: int
    y: tuple[int, ...]
    rows: tuple[tuple[Any, ...], ...]
    names: tuple[str, ...]

    @property
    def data(self) -> dict[str, list[Any]]:
        """Columns by name, for a data frame."""
        return {self.names[at]: [row[at] for row in self.rows] for at in (self.x, *self.y)}


def chartable(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Chart | None:
    """None for a result that a picture would not make clearer: one row, no numbers, no or repeated labels, too many rows."""
    if not 2 <= len(rows) <= MOST or len(columns) < 2 or any(len(row) != len(columns) for row in rows):
        return None
    names = _distinct(columns)
    cells = list(zip(*rows))
    numbers = [at for at, column in enumerate(cells) if all(_is_number(cell) or cell is None for cell in column)
               and any(_is_number(cell) for cell in column)]  # fmt: skip
    times = [at for at in range(len(columns)) if _is_time(names[at], cells[at]) and len(set(cells[at])) == len(rows)]
    if times and (y := [at for at in numbers if at not in times][:SERIES]):
        kept = tuple(sorted((tuple(row) for row in rows), key=lambda row: str(row[times[0]])))
        return Chart("line", times[0], tuple(y), kept, names)
    labels = [at for at in range(len(columns)) if at not in numbers and all(isinstance(cell, str) for cell in cells[at])]
    unique = [at for at in labels if len(set(cells[at])) == len(rows)]
    y = [at for at in numbers if at not in times][:SERIES] or numbers[:SERIES]
    if not unique or not y:
        return None
    return Chart("bar", unique[0], tuple(y), tuple(tuple(row) for row in rows), names)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _is_time(name: str, cells: Sequence[Any]) -> bool:
    if all(isinstance(cell, str) and re.fullmatch(r"\d{4}(-\d{2}(-\d{2})?)?", cell) for cell in cells):
        return True
    years = all(isinstance(cell, int) and 1000 <= cell <= 2999 for cell in cells)
    return years and bool(re.search(r"year|date|jahr", name, re.IGNORECASE))


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Column names that differ, as a data frame needs them."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(out)
