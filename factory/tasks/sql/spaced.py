"""Write text so that a word is the same token wherever it stands: one space before every word, number and mark.

Does: cut text into chunks with their place in the original, join them lower-cased, find a span again, read numbers.
Does not: know SQL, schemas or tokenizers; it only relies on byte-level BPE keeping a leading space with its word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from factory.tasks.sql import cells

_CHUNK = re.compile(r"'(?:s|t|re|ve|m|ll|d)(?!\w)|[^\W\d_]+|\d+|[^\w\s]|_", re.IGNORECASE)
_CONTRACTION = re.compile(r"'[A-Za-z]")
_PLAIN_SIGNS = str.maketrans("−–", "--", ",")
_BARE = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

LONGEST_NUMBER = 12
"""Chunks of the longest number looked for: sign, six groups of thousands with commas, would be 14; nobody asks that."""


@dataclass(frozen=True)
class Chunk:
    """`text` is lower-cased and begins with a space (except contractions, `'s`); `[start, end)` is its place in the original."""

    text: str
    start: int
    end: int


def chunks(text: str) -> list[Chunk]:
    """Words, numbers and single marks of `text`, in order; white space is dropped."""
    out = []
    for found in _CHUNK.finditer(text):
        piece = found.group().lower()
        # GPT-2's pre-tokenizer keeps 's, 't, … whole only without a space before them.
        joined = found.start() > 0 and not text[found.start() - 1].isspace() and _CONTRACTION.match(piece)
        out.append(Chunk(piece if joined else " " + piece, found.start(), found.end()))
    return out


def spaced(text: str) -> str:
    """`Butler CC (KS)` -> ` butler cc ( ks )`."""
    return "".join(chunk.text for chunk in chunks(text))


def spaced_name(name: str) -> str:
    """An identifier as words: `Home_Town`, `homeTown` -> ` home town`."""
    return spaced(_CAMEL.sub(" ", name).replace("_", " ")) or " " + name.strip().lower()


def find(question: Sequence[Chunk], text: str) -> tuple[int, int] | None:
    """First place of `text` in the original question as (start, end) characters, whole chunks compared; None when absent."""
    wanted = [chunk.text.strip() for chunk in chunks(text)]
    size = len(wanted)
    if not size:
        return None
    have = [chunk.text.strip() for chunk in question]
    for i in range(len(have) - size + 1):
        if have[i : i + size] == wanted:
            return question[i].start, question[i + size - 1].end
    return None


def find_inside(question: Sequence[Chunk], text: str) -> tuple[int, int] | None:
    """Like `find`, but the span may begin or end inside a word (` indianapolis , in` in `Indianapolis, Indiana`)."""
    wanted = spaced(text).strip()
    joined, places = [], []
    for chunk in question:
        own = chunk.end - chunk.start
        lead = len(chunk.text) - len(chunk.text.lstrip())
        for k, char in enumerate(chunk.text):
            joined.append(char)
            places.append(chunk.start + min(max(k - lead, 0), own - 1))
    at = "".join(joined).find(wanted) if wanted else -1
    return None if at < 0 else (places[at], places[at + len(wanted) - 1] + 1)


def number_literal(text: str) -> str | None:
    """The SQL literal of a number as people write it (`1,234.50` -> `1234.50`); None for anything else."""
    bare = "".join(text.translate(_PLAIN_SIGNS).split())
    return bare.removeprefix("+") if cells.number(text) is not None and _BARE.fullmatch(bare) else None


def numbers(text: str) -> list[tuple[str, int, int]]:
    """Every number in `text` that whole chunks spell: (literal, start, end); overlapping readings (`1`, `1.5`) all appear."""
    parts = chunks(text)
    out = []
    for i, first in enumerate(parts):
        if not (first.text.strip()[0].isdigit() or first.text.strip() in "-+−–."):
            continue
        for last in parts[i : i + LONGEST_NUMBER]:
            literal = number_literal(text[first.start : last.end])
            if literal is not None:
                out.append((literal, first.start, last.end))
    return out


def same_number(a: str, b: str) -> bool:
    """Whether two number literals mean the same value; equal spelling decides where floats lose digits."""
    return a == b or (len(a) < 16 and len(b) < 16 and float(a) == float(b))
