"""What a student sees of one request in the compact dialect: the turns in short, their spans numbered, functions numbered.

Does: cut a conversation into turns, keep the latest whole and of older ones what fits, number spans `<v0>`…, functions `<t0>`…
and arguments `<c0>`…; write the prompt, with the marks of what its words name.
Does not: write answers (`compact.py`) or grammars (`grammar.py`).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random
from typing import Any, Literal

from factory.tasks.sql.mention import Mention
from factory.tasks.sql.spaced import Chunk, chunks, spaced
from factory.tasks.task import AnswerError
from factory.tasks.tools.functions import Argument, Function, Toolset
from factory.tasks.tools.mentions import Names, argument_names, function_names, mentions
from factory.tasks.tools.values import Span, find_spans

Role = Literal["user", "system"]
ROLE_TOKENS: Mapping[Role, str] = {"user": "<usr>", "system": "<sys>"}
MAX_VALUES, MAX_FUNCTIONS, MAX_ARGUMENTS = 16, 32, 64
OLDER_CHUNKS: Mapping[Role, int] = {"user": 80, "system": 40}
"""Words, numbers and marks kept of the turns before the last two."""
LONG_TURN = 64
"""A longer turn of the system is shown around its spans only."""
BEFORE_SPAN = 2
"""Chunks kept before a span where only what is around spans is shown."""
CHOICES_SHOWN = 3
"""Choices of an argument that are shown though nobody mentions them."""
TYPE_TOKENS = {"integer": "<int>", "number": "<int>", "date": "<date>", "time": "<time>", "boolean": "<true>"}

KEPT = frozenset("no not nope never without yes yeah yep any all both none".split())
"""Words that a thinned conversation keeps: without them it says something else."""
EMPTY = frozenset(
    """yes yeah yep yup no nope not now ok okay sure please thank thanks you that that's is it it's this correct right all good
    great fine works work for me sounds perfect nice do i , . ! ? well alright cool awesome can am like love would go
    ahead very much just then and so the one 's are there any others other else anything what how about let's let us see
    'm 'd 'll""".split()
)
"""An older turn of nothing but these is left out."""

_ROLE = re.compile(r"^[ \t]*(user|system|assistant)[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Turn:
    role: Role
    text: str


@dataclass(frozen=True)
class Piece:
    """Consecutive chunks of one turn that are shown."""

    turn: int
    chunks: tuple[Chunk, ...]


def turns_of(question: str) -> tuple[Turn, ...]:
    """`User: …` and `System: …` lines as turns; a text without them is one turn of the user."""
    marks = list(_ROLE.finditer(question))
    if not marks or question[: marks[0].start()].strip():
        return (Turn("user", question.strip()),)
    ends = [*(mark.start() for mark in marks[1:]), len(question)]
    said = [(mark[1].lower(), question[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
    return tuple(Turn("user" if who == "user" else "system", text) for who, text in said if text) or (Turn("user", ""),)


@lru_cache(1 << 15)
def _read_turn(text: str, today: dt.date | None) -> tuple[tuple[Chunk, ...], tuple[Span, ...]]:
    """Turns come again: one for each later turn of their conversation."""
    return tuple(chunks(text)), tuple(find_spans(text, today))


def written(turns: Sequence[Turn]) -> str:
    """The reverse of `turns_of`."""
    return "\n".join(f"{turn.role.capitalize()}: {' '.join(turn.text.split())}" for turn in turns)


class View:
    """One request with its functions, as the compact dialect shows them."""

    def __init__(self, toolset: Toolset, question: str) -> None:
        self.toolset = toolset
        self.turns = turns_of(question)
        self.spoken = len(self.turns) > 1 or _ROLE.match(question.lstrip()) is not None
        read = [_read_turn(turn.text, toolset.today) for turn in self.turns]
        self.chunks = [own for own, _ in read]
        self._spans = [spans for _, spans in read]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """What is shown, in the order of the conversation.

        The last two turns; then, turns with spans and the latest first, what the user said before (whole where it fits, else
        around spans) and what the system said around spans. A span that is said again later is shown only there."""
        last = len(self.turns) - 1
        kept: dict[int, list[Piece]] = {}
        shown: set[tuple[str, str]] = set()
        budget = dict(OLDER_CHUNKS)
        older = sorted(range(last - 1), key=lambda n: (self.turns[n].role != "user", not self._spans[n], -n))
        for n in [*range(last, max(last - 2, -1), -1), *older]:
            own, user = self.chunks[n], self.turns[n].role == "user"
            recent, left = n >= last - 1, budget[self.turns[n].role]
            if not recent and all(chunk.text.strip() in EMPTY for chunk in own):
                continue
            fits = user or len(own) <= LONG_TURN if recent else user and len(own) <= left
            pieces = [Piece(n, tuple(own))] if fits and own else self._around_spans(n, shown, user or recent)
            while not recent and pieces and sum(len(piece.chunks) for piece in pieces) > left:
                pieces.pop(0)
            kept[n] = pieces
            shown |= {span.key for piece in pieces for span in self._inside(piece)}
            budget[self.turns[n].role] -= 0 if recent else sum(len(piece.chunks) for piece in pieces)
        return tuple(piece for n in sorted(kept) for piece in kept[n])

    def _inside(self, piece: Piece) -> list[Span]:
        start, end = piece.chunks[0].start, piece.chunks[-1].end
        return [span for span in self._spans[piece.turn] if start <= span.start and span.end <= end + 1]

    def _around_spans(self, n: int, shown: set[tuple[str, str]], numbers: bool) -> list[Piece]:
        keep: set[int] = set()
        for span in self._spans[n]:
            inside = [i for i, chunk in enumerate(self.chunks[n]) if span.start <= chunk.start < span.end]
            if inside and span.key not in shown and (numbers or span.kind != "number"):
                keep |= set(range(max(0, inside[0] - (BEFORE_SPAN if numbers else 1)), inside[-1] + 1))
        out: list[list[Chunk]] = []
        for i in sorted(keep):
            if i - 1 not in keep:
                out.append([])
            out[-1].append(self.chunks[n][i])
        return [Piece(n, tuple(run)) for run in out]

    @cached_property
    def _placed(self) -> tuple[tuple[int, int, Span], ...]:
        """(piece, chunk in it, span) of every span that is shown whole."""
        out = []
        for p, piece in enumerate(self.pieces):
            starts = {chunk.start: i for i, chunk in enumerate(piece.chunks)}
            end = piece.chunks[-1].end
            for span in self._spans[piece.turn]:
                i = next((starts[at] for at in range(span.start, min(span.start + 2, span.end)) if at in starts), None)
                if i is not None and span.end <= end + 1:
                    out.append((p, i, span))
        return tuple(out)

    @cached_property
    def values(self) -> tuple[tuple[Span, str], ...]:
        """(span, its text) of `<v0>`…: what means the same is one; of more than there are tokens for, the latest."""
        latest: dict[tuple[str, str], tuple[Span, str]] = {}
        for p, _, span in reversed(self._placed):
            if len(latest) < MAX_VALUES or span.key in latest:
                text = self.turns[self.pieces[p].turn].text[span.start : span.end]
                latest[span.key] = latest.pop(span.key, (span, text))
        first: dict[tuple[str, str], int] = {}
        for n, (_, _, span) in enumerate(self._placed):
            first.setdefault(span.key, n)
        return tuple(latest[key] for key in sorted(latest, key=lambda key: first[key]))

    @cached_property
    def number_of(self) -> dict[tuple[str, str], int]:
        return {span.key: i for i, (span, _) in enumerate(self.values)}

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """Arguments by their number, in the order the prompt shows them."""
        found = {argument.key: argument for function in self.toolset.functions for argument in reversed(function.arguments)}
        order = dict.fromkeys(argument.key for function in self.toolset.functions for argument in function.arguments)
        return tuple(found[key] for key in order)

    @cached_property
    def argument_number(self) -> dict[Any, int]:
        return {argument.key: i for i, argument in enumerate(self.arguments)}

    @cached_property
    def copied(self) -> tuple[str, ...]:
        """Everything shown, chunk by chunk: what free texts are copied from."""
        return tuple(chunk.text for piece in self.pieces for chunk in piece.chunks)

    def spelling(self, text: str) -> str | None:
        """A copied text as the request spells it; None when it is not shown."""
        place = self._find(text)
        if place is None:
            return None
        piece, first, last = place
        return self.turns[self.pieces[piece].turn].text[
            self.pieces[piece].chunks[first].start : self.pieces[piece].chunks[last].end
        ]

    def shows(self, text: str) -> bool:
        return self._find(text) is not None

    def _find(self, text: str) -> tuple[int, int, int] | None:
        wanted = [chunk.text.strip() for chunk in chunks(text)]
        if not wanted:
            return None
        for p in range(len(self.pieces) - 1, -1, -1):
            have = [chunk.text.strip() for chunk in self.pieces[p].chunks]
            for i in range(len(have) - len(wanted) + 1):
                if have[i : i + len(wanted)] == wanted:
                    return p, i, i + len(wanted) - 1
        return None

    def check(self) -> None:
        """Raises AnswerError when there are more functions or arguments than position tokens."""
        for have, most, what in (
            (len(self.toolset.functions), MAX_FUNCTIONS, "functions"),
            (len(self.arguments), MAX_ARGUMENTS, "arguments"),
        ):
            if have > most:
                raise AnswerError("too-many-functions", f"{have} {what}, but the compact dialect names {most}; offer fewer")

    def prompt(self) -> str:
        """` find bus<t0> from<c0> date<date><c1><req> seats<int><c2>…<q><usr> a<t0> bus to<v0> san jose`."""
        shown: list[str] = []
        seen: set[int] = set()
        for t, function in enumerate(self.toolset.functions[:MAX_FUNCTIONS]):
            shown.append(f"{function.words}<t{t}>")
            shown.append(self._arguments(function, seen))
        marks: dict[tuple[int, int], str] = {}
        for p, i, span in self._placed:
            if span.key in self.number_of:
                marks[p, i] = marks.get((p, i), "") + f"<v{self.number_of[span.key]}>"
        for p, i, token in self._named:
            marks[p, i] = marks.get((p, i), "") + token
        turn = -1
        shown.append("<q>")
        for p, piece in enumerate(self.pieces):
            if piece.turn != turn:
                turn = piece.turn
                shown.append(ROLE_TOKENS[self.turns[turn].role])
            shown += [marks.get((p, i), "") + chunk.text for i, chunk in enumerate(piece.chunks)]
        return "".join(shown)

    @cached_property
    def _names(self) -> tuple[tuple[str, Names], ...]:
        return (
            ("t", function_names(self.toolset.functions[:MAX_FUNCTIONS])),
            ("c", argument_names(self.arguments[:MAX_ARGUMENTS])),
        )

    @cached_property
    def _named(self) -> list[tuple[int, int, str]]:
        """(piece, chunk in it, token) of every place that names an argument or a function."""
        out = []
        for p, piece in enumerate(self.pieces):
            starts = {chunk.start: i for i, chunk in enumerate(piece.chunks)}
            for token, found in self._mentions(piece.turn):
                if found.start in starts:
                    out.append((p, starts[found.start], token))
        return out

    def _mentions(self, turn: int) -> list[tuple[str, Mention]]:
        taken = tuple((span.start, span.end) for span in self._spans[turn] if span.kind == "text")
        return [
            (f"<{letter}{found.number}>", found)
            for letter, names in self._names
            for found in mentions(self.turns[turn].text, names, taken)
        ]

    def thinned(self, random: Random, share: float) -> str:
        """The conversation without a random share of its words. Spans, words that name something and `KEPT` stay; as it is where
        what is left would have other spans."""
        turns = []
        for n, turn in enumerate(self.turns):
            kept = [(span.start, span.end) for span in self._spans[n]] + [(m.start, m.end) for _, m in self._mentions(n)]
            text, at = [], 0
            for i, chunk in enumerate(self.chunks[n]):
                word = chunk.text.strip()
                short = i + 1 < len(self.chunks[n]) and self.chunks[n][i + 1].text.startswith("'")
                said = short or word in KEPT or any(start < chunk.end and chunk.start < end for start, end in kept)
                if not said and word.isalpha() and random.random() < share:
                    text.append(turn.text[at : chunk.start])
                    at = chunk.end
            left = " ".join("".join([*text, turn.text[at:]]).split())
            same = text and [span.key for span in _read_turn(left, self.toolset.today)[1]] == [s.key for s in self._spans[n]]
            turns.append(Turn(turn.role, left if left and same else turn.text))
        return written(turns) if self.spoken else turns[0].text

    def _arguments(self, function: Function, seen: set[int]) -> str:
        out = []
        closed = False
        for argument in function.arguments:
            if not argument.required and not closed:
                out.append("<req>")
                closed = True
            number = self.argument_number[argument.key]
            if number >= MAX_ARGUMENTS:
                continue
            if number not in seen:
                seen.add(number)
                out.append(argument.words + self._kind(argument))
            out.append(f"<c{number}>")
        return "".join(out) + ("" if closed else "<req>")

    def _kind(self, argument: Argument) -> str:
        if argument.kind == "choice":
            said = " ".join(text.strip() for text in self.copied)
            words = [spaced(choice) or " " + choice for choice in argument.choices]
            mentioned = [word for word in words if f" {word.strip()} " in f" {said} "]
            picked = {*mentioned, *words[:CHOICES_SHOWN]}
            return "".join(f"<enum>{word}" for word in words if word in picked)
        return TYPE_TOKENS.get(argument.kind, "")
