"""Spans of a request that an argument may take whole: dates, times, numbers, quoted texts, names, identifiers.

Does: find them in one turn of a conversation, with what they mean; street addresses and places of two words are one span each.
Does not: say which argument they belong to.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Literal

from factory.tasks.sql.spaced import spaced
from factory.tasks.tools import moments

SpanKind = Literal["date", "time", "number", "text"]
_QUOTED = re.compile(r"(?<!\w)\"([^\"\n]{1,80})\"|“([^”\n]{1,80})”|(?<!\w)'([^'\n]{1,80})'(?!\w)")
_CODE = re.compile(r"(?<!\w)[\w./@:%+-]*(?:\d[A-Za-z]|[A-Za-z]\d|\w@\w|\w_\w|\w/\w|\w\.[a-z]{2,4}\b)[\w./@:%+-]*\w")
_WORD = r"(?:(?:[A-Z]\.){2,}|[A-Z][\w'’&-]*(?:(?<=\b[A-Z])\.(?= [A-Z]))?)"
_FIRST = rf"(?:(?:St|Mt|Dr|Mrs?|Ms)\.(?= [A-Z])|{_WORD})"
"""A name's first word, or the first after a joining one: only there is `St.` no street."""
_NAME = re.compile(rf"{_FIRST}(?:,? (?:{_WORD}|\d+)|,? (?:of|the|de|la|vs\.?|at|on|for|&|and|in) (?:the )?{_FIRST})*")
_AFTER = re.compile(r"(?:,? I(?:['’](?:m|d|ll|ve))?|, (?:It|Ok))$")
"""Ends no name: `Santa Rosa, I think`."""
_INITIALS = re.compile(r"(?:[A-Z]\.){2,}(?= ([\w'’]+))")
"""Their last point may end a sentence: `in Washington D.C. Please …`."""
_KIND = re.compile(r" (?:(?:international|bus|train|bart) )?(?:airport|station)\b")
"""Belongs to the name before it: `LGB airport`."""
_JOINERS = re.compile(r" (?:at|on|for|and|in) ")
_ADDRESS = re.compile(
    r"(?<![\w.$-])\d{1,5}(?:-\d{1,5})? (?:[A-Za-z][\w.'’]* |\d{1,3}(?:st|nd|rd|th) ){1,4}?"
    r"(?:street|st|avenue|ave|road|rd|boulevard|blvd|drive|dr|lane|ln|way|place|court|ct|parkway|pkwy|highway|hwy|square|plaza)\b"
    r"(?-i:(?: [A-Z][\w'’]+)*)(?: # ?\d+\b)?",
    re.IGNORECASE,
)
"""A house's number and its street, in either case; what follows it with a capital belongs to it."""
_NO_STREET = re.compile(
    r" (?:a|an|and|at|for|from|in|is|my|of|on|or|please|that|this|to|with|your|tickets?|people|am|pm|one|same|i"
    r"|stars?|minutes?|hours?|days?|adults?|persons?|seats?|rooms?|bedrooms?)\b",
    re.IGNORECASE,
)
"""Words that no street's name holds: `2 tickets on the way`."""
_SPELT = re.compile(r"\d{3,5}|\d{1,2} (?:(?-i:[A-Z])[\w.'’]*(?: |$)|\d{1,3}(?:st|nd|rd|th) )+(?:#|$)", re.IGNORECASE)
"""A low number begins an address only where every word has a capital: `12 Oak Street`, not `2 one way`."""
_UNIT = re.compile(r"(?:[A-Z]{2,4}|Dollars?|Euros?|Pounds?|Yen|Fahrenheit|Celsius|Percent)\b")
"""What stands after a number and is no name: `500 USD`, `120 Fahrenheit`."""
_IN_YEAR = re.compile(r"\b(?:in|from|of|since|until|year) (?:19|20)\d\d$", re.IGNORECASE)
"""A number that is a year: `songs from 2016 Adele made`."""
_HOUSE = re.compile(r"\d{3,5}(?: .*)?$|\d{1,3}(?:st|nd|rd|th)$", re.IGNORECASE)
"""What a name goes on from: a house's number, an address, or a numbered street."""
_PLACE = re.compile(
    r"\b(?:(?:san|los|las|santa|saint) [a-z][\w'’-]+|new (?:york|delhi|orleans|jersey|mexico|zealand)|long (?:beach|island))\b",
    re.IGNORECASE,
)
"""Places of two words that people also write small, or half so: `Los angeles`."""
_SENTENCE = re.compile(r"(?:^|[.!?:]\s+|\"\s*)$")
_TITLES = frozenset("a all an be her his how if it just let my no our that the this we when where who why your".split())
"""Openers that a name within a sentence begins with: `at The Van Buren`, `the song Let It Be`."""
_BEGINS = re.compile(r"(?:^|[.!?:\n,(-]\s*|\"\s*)$")
"""Before a sentence or a part of one: what begins it with a capital may be any opener."""
SHORT = 4
"""Words of a sentence whose first word may be a name by itself: `Toronto, please.`"""
_OPENERS = frozenset(
    """a about additionally after alright also am an and any are as at awesome be before book but buy by bye calculate can
    cancel check compare confirm confirming convert could create determine did do does download evaluate excellent
    explain fantastic find finally first firstly for from generate get give goodbye great hello help here hey hi how i
    i'd i'll i'm i've if in is it it's its just kindly lastly let let's list look looking lovely make many may maybe me
    my need next no nope not now of ok okay on one or our perfect play please pm provide rent reserve retrieve search
    second secondly send set she should show so some sorry start sure tell thank thanks that that's the their them then
    there there's these they third this those to transfer translate try update use using very want was we we're well
    were what what's when where which while who why will with would yeah yep yes you you're you've your""".split()
)


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a turn; `value` is what it means: ISO date, HH:MM, number, or its words in lower case."""

    start: int
    end: int
    kind: SpanKind
    value: str

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.value


def find_spans(text: str, today: dt.date | None) -> list[Span]:
    """Spans in the order of the text, none across another."""
    found: list[Span] = []

    def add(start: int, end: int, kind: SpanKind, value: str) -> None:
        if start < end and value and not any(start < other.end and other.start < end for other in found):
            found.append(Span(start, end, kind, value))

    for quoted in _QUOTED.finditer(text):
        group = next(i for i in (1, 2, 3) if quoted[i] is not None)
        add(quoted.start(group), quoted.end(group), "text", spaced(quoted[group]))
    for address in _ADDRESS.finditer(text):
        if _SPELT.match(address.group()) and not _NO_STREET.search(address.group()):
            add(address.start(), address.end(), "text", spaced(address.group()))
    for moment in moments.find(text, today):
        add(moment.start, moment.end, moment.kind, moment.value)
    for code in _CODE.finditer(text):
        add(code.start(), code.end(), "text", spaced(code.group()))
    places = list(_PLACE.finditer(text))
    for name in _NAME.finditer(text):
        for start, end in _names(text, name.start(), name.end()):
            end = max([end, *(place.end() for place in places if start <= place.start() < end)])
            end = kind.end() if (kind := _KIND.match(text, end)) else end
            end = min([end, *(other.start for other in found if start < other.start < end)])
            end = start + len(text[start:end].rstrip(" ,"))
            if text[start:end].strip(",.'’").lower() in _OPENERS:
                continue
            add(start, end, "text", spaced(text[start:end]))
    for place in places:
        add(place.start(), place.end(), "text", spaced(place.group()))
    return _joined(text, sorted(found, key=lambda span: span.start))


def _joined(text: str, found: list[Span]) -> list[Span]:
    """With what begins with a number as one: `888 Golden Saratoga`, `30th Street Station`, `1100 Foster Square Lane`."""
    out: list[Span] = []
    for span in found:
        before = out[-1] if out else None
        if (
            before is not None
            and before.kind in ("number", "text")
            and span.kind == "text"
            and text[before.end : span.start] == " "
            and text[span.start].isupper()
            and not _UNIT.match(text, span.start)
            and not _IN_YEAR.search(text[max(0, before.start - 6) : before.end])
            and _HOUSE.match(text[before.start : before.end])
        ):
            out[-1] = Span(before.start, span.end, "text", spaced(text[before.start : span.end]))
        else:
            out.append(span)
    return out


def _trimmed(name: str) -> str:
    """Without what follows it: marks, the next sentence after initials, `, I think`, the `'s` of a single word."""
    name = name.rstrip(" ,'’")
    after = next((m for m in _INITIALS.finditer(name) if m[1].lower() in _OPENERS), None)
    name = name[: after.end()] if after is not None else name
    while end_of := _AFTER.search(name):
        name = name[: end_of.start()].rstrip(" ,'’")
    name = name if re.search(r"(?:[A-Z]\.){2}$", name) else name.rstrip(".'’ ,")
    return name[:-2] if re.search(r"[’']s$", name) and " " not in name else name


def _names(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """A run of capitalised words, cut at joining words and freed of the words that sentences begin with."""
    out = []
    at = start
    for piece in [*(m.span() for m in _JOINERS.finditer(text, start, end)), (end, end)]:
        first, last = at, piece[0]
        at = piece[1]
        begins = _BEGINS.search(text[:first]) is not None
        while first < last:
            word = text[first:last].split(" ", 1)[0]
            plain = word.strip(",.'’").lower()
            title = not begins and word[0].isupper() and len(word) < last - first and plain in _TITLES
            if title or (plain not in _OPENERS and not (plain.endswith("ing") and _SENTENCE.search(text[:first]))):
                break
            first += len(word) + 1
        piece_text = _trimmed(text[first:last])
        opens = " " not in piece_text and _SENTENCE.search(text[:first]) and len(text[first:].split(".")[0].split()) > SHORT
        if (len(piece_text) > 1 or piece_text.isdigit()) and not opens:
            out.append((first, first + len(piece_text)))
    return out
