"""Dates, times of day and numbers as people say them, found in text and read.

Does: find them with their place, resolve them (`next Monday` counts from a given day) to ISO dates, HH:MM and numbers
(`eight years back` to the year).
Does not: know functions or prompts; years are those of the given day unless said.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Literal

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUE = {word: n for n, word in enumerate(_UNITS)} | {word: 10 * n for n, word in enumerate(_TENS, start=2)}
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = (
    {name: n for n, name in enumerate(_MONTHS, start=1)} | {name[:3]: n for n, name in enumerate(_MONTHS, start=1)} | {"sept": 9}
)
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth".split()

_W = "(?:" + "|".join([*_TENS, *sorted(_UNITS, key=len, reverse=True)]) + ")"
_M = "(?:" + "|".join([*_MONTHS, "sept", *(name[:3] for name in _MONTHS)]) + r")\b\.?"
_O = r"(?:\d{1,2}(?:st|nd|rd|th)|(?:" + "|".join(_ORDINALS) + r")\b)"
_D = "(?:" + "|".join(_DAYS) + ")"
_YEAR = r"(?:,?\s+(?P<year>\d{4})\b)?"
_PART = r"(?P<part>morning|afternoon|evening|night)"
_H = r"(?P<hour>\d{1,2}|(?:" + "|".join(sorted(_UNITS[1:13], key=len, reverse=True)) + r")\b)"
_MIN = r"(?:\s*[:.]\s*(?P<min>[0-5]\d)(?!\d)|\s+(?P<minword>thirty|fifteen|forty[ -]five|ten|twenty)\b)?"
_CLOCK = r"o['’\"]?\s?clock"
_AMPM = r"(?P<half>[ap])(?:\.\s?m\b\.?|\s?m\b)"

_DATES = [
    r"(?P<iso>\d{4}-\d{2}-\d{2})",
    rf"(?P<month>{_M})\s+(?:the\s+)?(?P<day>\d{{1,2}}(?:st|nd|rd|th)?(?!\d|:|\s*[ap]\.?m)){_YEAR}",
    rf"(?P<month>{_M})\s+(?:the\s+)?(?P<day>{_O}){_YEAR}",
    rf"(?:the\s+)?(?P<day>{_O}|\d{{1,2}})\s+(?:of\s+)?(?P<month>{_M}){_YEAR}",
    rf"(?:the\s+)?(?P<day>{_O})\s+of\s+(?:this|the)\s+month",
    rf"\bthe\s+(?P<day>{_O})(?!\s+(?:street|avenue|floor|one|time|st|ave|option)\b)",
    r"\b(?:the\s+)?(?P<rel>day\s+after\s+tomorrow|(?:later\s+)?today|tomorrow|tonight)\b",
    rf"\b(?P<weekday>{_D})\s+(?P<week>next|this)\s+week\b",
    rf"\b(?P<week>next|this)\s+week\s+(?:on\s+)?(?P<weekday>{_D})\b",
    rf"\b(?:(?:this|next|coming|the\s+coming|upcoming)\s+)?(?P<weekday>{_D})\b",
]
_TIMES = [
    rf"\b(?P<past>half|quarter)\s+(?P<way>past|to)\s+{_H}(?:\s+(?:{_CLOCK}\s+)?(?:in\s+the\s+|at\s+)?{_PART}|\s*{_AMPM})?",
    rf"\b{_H}{_MIN}\s*{_AMPM}",
    rf"\b{_H}{_MIN}(?:\s+{_CLOCK})?\s+(?:in\s+the\s+|at\s+|this\s+)?{_PART}\b",
    rf"\b{_PART}\s+(?:at\s+)?{_H}{_MIN}(?!\s*(?:people|persons|tickets|of\b))",
    r"\b(?P<hour>[01]?\d|2[0-3]):(?P<min>[0-5]\d)(?!\d|:)",
    rf"\b{_H}\s+{_CLOCK}\b",
    r"\b(?P<named>noon|midday|midnight)\b",
]
_NUMBERS = [
    r"(?<!\w)['’](?P<short>\d{2})(?![\w'’])",
    r"\b(?P<whole>last|this)\s+year\b",
    rf"(?<![\w.,-])(?P<ago>\d{{1,3}}|{_W}(?:[ -]{_W})?)\s+years?\s+(?:ago|back|earlier)\b",
    r"(?<![\w.])\$?\s?(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?![\w]|\.\d|,\d{3})",
    rf"\b(?P<words>{_W}(?:(?:[ -]|\s+and\s+)(?:{_W}|hundred|thousand))*)\b",
]
_PATTERNS: list[tuple[Literal["date", "time", "number"], re.Pattern[str]]] = [
    *(("date", re.compile(p, re.IGNORECASE)) for p in _DATES),
    *(("time", re.compile(p, re.IGNORECASE)) for p in _TIMES),
    *(("number", re.compile(p, re.IGNORECASE)) for p in _NUMBERS),
]


@dataclass(frozen=True)
class Moment:
    """Characters [start, end) of a text; `value` is an ISO date, HH:MM, or a number's shortest spelling."""

    start: int
    end: int
    kind: Literal["date", "time", "number"]
    value: str


def find(text: str, today: dt.date | None) -> list[Moment]:
    """Every date, time and number, none inside another, in the order of the text."""
    taken: list[Moment] = []
    for kind, pattern in _PATTERNS:
        for found in pattern.finditer(text):
            start = found.start() + (len(found.group()) - len(found.group().lstrip()))
            if any(start < other.end and other.start < found.end() for other in taken):
                continue
            value = _read(kind, found, today)
            if value is not None:
                taken.append(Moment(start, found.end(), kind, value))
    return sorted(taken, key=lambda moment: moment.start)


def read(text: str, kind: Literal["date", "time", "number"], today: dt.date | None) -> str | None:
    """The one moment of this kind that a text is about; None when it has none."""
    return next((moment.value for moment in find(text, today) if moment.kind == kind), None)


def _read(kind: str, found: re.Match[str], today: dt.date | None) -> str | None:
    # With IGNORECASE the long s is an s.
    parts = {name: value.lower().replace("ſ", "s") for name, value in found.groupdict().items() if value is not None}
    if parts.keys() & {"ago", "whole", "short"}:
        return _year(parts, today)
    if kind == "number":
        return _digits(parts["digits"]) if "digits" in parts else _number_words(parts["words"])
    return _date(parts, today) if kind == "date" else _time(parts)


def _year(parts: dict[str, str], today: dt.date | None) -> str | None:
    """`eight years back`, `last year`, `'16`."""
    if today is None:
        return None
    if "short" in parts:
        year = today.year - today.year % 100 + int(parts["short"])
        return str(year if year <= today.year + 10 else year - 100)
    said = parts.get("ago", "1" if parts.get("whole") == "last" else "0")
    return str(today.year - int(said if said.isdigit() else _number_words(said)))


def _digits(text: str) -> str:
    value = float(text.replace(",", ""))
    return str(int(value)) if value.is_integer() and value < 1e15 else repr(value)


def _number_words(text: str) -> str:
    total = part = 0
    for word in re.split(r"[\s-]+", text):
        if word == "hundred":
            part = max(part, 1) * 100
        elif word == "thousand":
            total, part = total + max(part, 1) * 1000, 0
        elif word != "and":
            part += _VALUE[word]
    return str(total + part)


def _date(parts: dict[str, str], today: dt.date | None) -> str | None:
    try:
        if "iso" in parts:
            return dt.date.fromisoformat(parts["iso"]).isoformat()
        if "day" in parts:
            said = parts["day"]
            day = _ORDINALS.index(said) + 1 if said in _ORDINALS else int(re.sub(r"\D", "", said))
            if today is None and "year" not in parts:
                return None
            year = int(parts["year"]) if "year" in parts else today.year if today is not None else 0
            month = _MONTH[parts["month"].rstrip(".")] if "month" in parts else today.month if today is not None else 0
            return dt.date(year, month, day).isoformat()
    except ValueError:
        return None
    if today is None:
        return None
    if "rel" in parts:
        days = 2 if "after" in parts["rel"] else 1 if parts["rel"] == "tomorrow" else 0
        return (today + dt.timedelta(days)).isoformat()
    ahead = (_DAYS.index(parts["weekday"]) - today.weekday() - 1) % 7 + 1
    if parts.get("week") == "next":
        ahead = 7 - today.weekday() + _DAYS.index(parts["weekday"])
    return (today + dt.timedelta(ahead)).isoformat()


def _time(parts: dict[str, str]) -> str | None:
    if "named" in parts:
        return "00:00" if parts["named"] == "midnight" else "12:00"
    hour = int(parts["hour"]) if parts["hour"].isdigit() else _VALUE[parts["hour"]]
    minute = int(parts["min"]) if "min" in parts else 0
    if "minword" in parts:
        minute = sum(_VALUE[word] for word in re.split(r"[ -]", parts["minword"]))
    if "past" in parts:
        minutes = 30 if parts["past"] == "half" else 15
        hour, minute = (hour, minutes) if parts["way"] == "past" else (hour - 1, 60 - minutes)
    late = parts.get("half") == "p" or parts.get("part") in ("afternoon", "evening", "night")
    early = parts.get("half") == "a" or parts.get("part") == "morning"
    if late and 0 < hour < 12:
        hour += 12
    elif early and hour == 12:
        hour = 0
    return f"{hour:02d}:{minute:02d}" if 0 <= hour < 24 and 0 <= minute < 60 else None
