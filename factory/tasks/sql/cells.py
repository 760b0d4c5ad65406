"""When are two stored values the same? One rule for matching questions, comparing results and running WikiSQL.

Does: read numbers written for people ("1,234", "- 5"), and map a text to the key under which it equals others: numbers as
floats, other text as its lower-case letters and digits (WikiSQL's rows are lower-cased and re-tokenised, questions are not).
Does not: know tables; `database.py` uses the keys as a SQLite collation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from factory.tasks.sql.schema import ColumnType

Key = tuple[int, float, str]
"""(0, number, "") or (1, 0.0, letters and digits): numbers sort before text."""

_NUMBER = re.compile(
    r"[^\w.+\-−–]*([+\-−–]?)[^\w.+\-−–]*([0-9]{1,3}(?:\s?,\s?[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)[^\w]*"
)
_BETWEEN_ASCII = re.compile(r"[^a-z0-9]+")
_DASH = re.compile(r"[–—−]")
_BETWEEN = re.compile(r"[\W_]+")
COLLATION = "ALNUM"


def number_text(text: str) -> str | None:
    """The number that `text` is as a whole, as SQL reads it: "$1,000" -> "1000", "- 5 %" -> "-5"; None when it is not one."""
    if not text or len(text) > 40:
        return None
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    digits = found[2].replace(",", "").replace(" ", "")
    return f"-{digits}" if found[1] and found[1] != "+" else digits


def number(text: str) -> float | None:
    """The number that `text` is as a whole, thousands separators and signs around it (money, percent) ignored; else None."""
    digits = number_text(text)
    return None if digits is None else float(digits)


@lru_cache(maxsize=1 << 16)
def key(text: str) -> Key:
    """Two texts are the same value when their keys are equal; "-" and "?" keep their signs, having no letters."""
    value = number(text)
    if value is not None:
        return 0, value, ""
    lower = text.lower()
    return 1, 0.0, _BETWEEN_ASCII.sub("", lower) or _BETWEEN.sub("", lower) or _DASH.sub("-", text.strip())


def collate(one: str, two: str) -> int:
    """-1, 0 or 1, as SQLite wants of a collation."""
    left, right = key(one), key(two)
    return (left > right) - (left < right)


def column_type(values: Iterable[str | None]) -> ColumnType:
    """ "number" when every value that is not empty reads as a number (and there is one), else "text"."""
    seen = False
    for value in values:
        if value and not value.isspace():
            if number(value) is None:
                return "text"
            seen = True
    return "number" if seen else "text"
