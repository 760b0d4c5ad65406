"""Text from questions, models and files as Markdown that stays text: nothing in it can become markup.

Does: escape words, wrap code, build tables. Does not: know what a report says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#!|~&$])")


def words(text: object, limit: int = 240) -> str:
    """One line of plain words: whitespace joined, markup and bare links escaped, cut with "…" beyond `limit` characters."""
    line = _cut(" ".join(str(text).split()), limit)
    line = _SPECIAL.sub(r"\\\1", line)
    line = line.replace("://", ":&#47;&#47;").replace("@", "&#64;")
    line = re.sub(r"(?i)www\.", lambda found: found[0][:-1] + "&#46;", line)
    # Only a line's beginning can start a list, a heading or a rule.
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line)


def code(text: object, limit: int = 400) -> str:
    """Text as a code span on one line that also holds inside a table cell; "" gives ""."""
    line = _cut(" ".join(str(text).split()), limit)
    if not line:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    # GFM reads \| before it reads code spans; this is its only escape inside one.
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", r"\|")


def block(text: str, language: str = "") -> str:
    """Text as a fenced block, whatever fences it holds itself."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table of cells that are Markdown already; columns numbered in `right` are right-aligned."""
    numbers = set(right)
    rule = ["---:" if i in numbers else "---" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
