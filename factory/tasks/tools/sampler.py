"""Requests for functions that come without any: sampled calls said in stiff words.

Does: sample calls of one or two functions with values of the arguments' kinds, say them by templates, and some requests that fit
no function or lack a required argument.
Does not: ask a model; a teacher may phrase the requests better (`factory.phrase`).
"""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Sequence
from typing import Any

from factory.tasks.tools import calls
from factory.tasks.tools.functions import Argument, Function, Toolset

MANY = 8
"""Functions offered at once, where there are more."""
NONE_SHARE, LACKING_SHARE, TWO_SHARE = 0.12, 0.08, 0.12
OPTIONAL_SHARE = 0.5
TRIES = 20
"""Tries for each draft wanted before it is said that no more differ."""
INSTRUCTION = (
    "You rewrite a stiff request to an assistant as one person would say it. Ask for exactly what it asks for, keep every name, "
    "number, date and quoted value as it is spelt, add nothing, and answer with the request alone: one line, no quotation marks "
    "around it, no explanation."
)

_PEOPLE = "Maria Lopez|John Smith|Aisha Khan|Peter Novak|Li Wei|Emma Brown|Carlos Diaz|Olga Petrova|Sam Taylor|Nina Rossi".split(
    "|"
)
_CITIES = (
    "San Jose|Berlin|New York|Lisbon|Toronto|Nairobi|Kyoto|Oslo|Santa Fe|Cape Town|Lyon|Melbourne|Porto Alegre|Austin".split("|")
)
_COUNTRIES = "Germany|Brazil|Kenya|Japan|Canada|Portugal|India|Mexico|New Zealand|Egypt".split("|")
_STREETS = "12 Oak Street|405 Mill Road|7 Harbour Lane|88 King Avenue|3 Station Square".split("|")
_MAILS = "maria@example.com|j.smith@example.org|office@example.net|team@example.com".split("|")
_THINGS = (
    "Blue Horizon|Green Valley|Morning Star|Golden Gate|Silver Lake|Red Door|Sunny Side|Old Mill|North Wind|Stone Bridge|"
    "Night Train|second edition|annual report|garden party|quarterly budget|winter boots|coffee beans|desk lamp|blue bicycle|"
    "piano lesson"
).split("|")
_BY_NAME: tuple[tuple[str, Sequence[str]], ...] = (
    (r"(restaurant|hotel|event|movie|song|book|product|company|team|file|project|album|store|shop) ", _THINGS),
    (r"e?mail", _MAILS),
    (r"street|address", _STREETS),
    (r"country|nation", _COUNTRIES),
    (r"city|town|location|place|destination|origin|from|to$|area|where", _CITIES),
    (r"person|customer|user|name$|artist|author|actor|director|doctor|recipient|contact|owner|employee|patient", _PEOPLE),
)
_OPENINGS = ("{what}", "Please {what}", "I want to {what}", "Can you {what}", "{what} for me", "I need you to {what}")
_JOINS = (": ", ", ", " with ", ", ")
_ELSEWHERE = (
    "thanks, that is all", "hello there", "what can you do?", "never mind", "tell me a joke", "who won the game last night?",
    "that sounds good", "why is the sky blue?", "you are very helpful", "let me think about it", "good morning",
    "sing me a song about the sea", "how old are you?", "I will come back later", "what is the meaning of life?",
)  # fmt: skip
_PATTERN_DIGITS = "0123456789"


def sample_requests(
    functions: Sequence[Function], n: int, seed: int, today: dt.date
) -> list[tuple[str, Toolset, str, tuple[str, ...]]]:
    """(request, functions offered, canonical calls, texts the request must name); no request twice, so there may be fewer."""
    chance = random.Random(seed)
    out: dict[str, tuple[str, Toolset, str, tuple[str, ...]]] = {}
    for _ in range(n * TRIES):
        if len(out) == n:
            break
        made = _request(functions, chance, today)
        out.setdefault(made[0].lower(), made)
    return list(out.values())


def _request(functions: Sequence[Function], chance: random.Random, today: dt.date) -> tuple[str, Toolset, str, tuple[str, ...]]:
    offered = list(chance.sample(list(functions), MANY) if len(functions) > MANY else functions)
    chance.shuffle(offered)
    toolset = Toolset("functions", tuple(offered), today)
    kind = chance.random()
    if kind < NONE_SHARE:
        outside = [function for function in functions if function not in offered]
        if outside and chance.random() < 0.5:
            text, _, said = _said(chance.choice(outside), chance, today)
            return _capital(text), toolset, "[]", said
        said_text = chance.choice(_ELSEWHERE)
        about = chance.choice(["", ", please", f" {chance.choice(_PEOPLE)}", f", I am in {chance.choice(_CITIES)}"])
        return _capital(said_text.rstrip("?") + about + ("?" if said_text.endswith("?") else "")), toolset, "[]", ()
    able = [f for f in offered if all(a.kind != "other" or not a.required for a in f.arguments)] or offered
    first = chance.choice(able)
    lacking = [argument for argument in first.arguments if argument.required and argument.default is None]
    if kind < NONE_SHARE + LACKING_SHARE and lacking:
        text, _, said = _said(first, chance, today, without=chance.choice(lacking))
        return _capital(text), toolset, "[]", said
    parts = [_said(first, chance, today)]
    if kind > 1 - TWO_SHARE and len(able) > 1:
        parts.append(_said(chance.choice([f for f in able if f is not first]), chance, today))
    text = chance.choice([" and then ", ", then ", ", and also "]).join(part[0] for part in parts)
    return _capital(text), toolset, calls.write([part[1] for part in parts]), tuple(v for part in parts for v in part[2])


def _said(
    function: Function, chance: random.Random, today: dt.date, without: Argument | None = None
) -> tuple[str, calls.Call, tuple[str, ...]]:
    given: dict[str, Any] = {}
    phrases: list[str] = []
    named: list[str] = []
    for argument in chance.sample(function.arguments, len(function.arguments)):
        wanted = argument.required or chance.random() < OPTIONAL_SHARE
        if argument is without or argument.kind == "other" or not wanted:
            continue
        value, text = sample_value(argument, function, chance, today)
        if not argument.required and argument.default is not None and calls.same_value(argument, value, argument.default, today):
            continue
        given[argument.name] = value
        words = argument.words.strip()
        if argument.kind == "boolean":
            phrases.append(f"{words} yes" if value else f"{words} no")
            named.append(words)
            continue
        phrases.append(chance.choice([f"{words} {text}", f"{words} {text}", f"{text} as {words}", f"{words} is {text}"]))
        named.append(text.strip('"'))
    what = function.words.strip()
    text = chance.choice(_OPENINGS).format(what=what)
    return text + (chance.choice(_JOINS) + ", ".join(phrases) if phrases else ""), calls.Call(function.name, given), tuple(named)


def sample_value(argument: Argument, function: Function, chance: random.Random, today: dt.date) -> tuple[Any, str]:
    """(value, how it is said)."""
    schema = function.parameters.get("properties", {}).get(argument.name, {})
    if argument.choices:
        value = chance.choice(argument.choices)
        return value, str(value)
    if argument.kind == "boolean":
        value = chance.random() < 0.6
        return value, "yes" if value else "no"
    if argument.kind in ("integer", "number"):
        low = int(schema.get("minimum", 1))
        high = int(schema.get("maximum", max(low, chance.choice([9, 60, 500, 5000]))))
        number: int | float = chance.randint(low, max(low, high))
        if argument.kind == "number" and chance.random() < 0.3 and number < high:
            number += chance.choice([0.5, 0.25, 0.9])
        return number, str(number)
    if argument.kind == "date":
        day = today + dt.timedelta(chance.randint(0, 40))
        return day.isoformat(), _day(day, today, chance)
    if argument.kind == "time":
        hour, minute = chance.randint(0, 23), chance.choice([0, 0, 15, 30, 45])
        short = f"{(hour - 1) % 12 + 1}" + (f":{minute:02d}" if minute else "")
        spoken = f"{short} {'am' if hour < 12 else 'pm'}"
        return f"{hour:02d}:{minute:02d}", chance.choice([spoken, f"{hour:02d}:{minute:02d}"])
    text = _text(argument, chance)
    return text, chance.choice([text, text, f'"{text}"'])


def _day(day: dt.date, today: dt.date, chance: random.Random) -> str:
    ahead = (day - today).days
    if ahead < 2 and chance.random() < 0.6:
        return ("today", "tomorrow")[ahead]
    if day.year == today.year and chance.random() < 0.7:
        ending = "th" if 10 <= day.day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
        return f"{day:%B} {day.day}{ending}"
    return day.isoformat()


def _text(argument: Argument, chance: random.Random) -> str:
    words = argument.words
    examples = re.search(r"\(?(?:e\.g\.|for example|such as),? ([^).;]+)", argument.description)
    if examples is not None and chance.random() < 0.6:
        named = [part.strip(" '\"") for part in re.split(r",| or | and |etc", examples[1])]
        if fitting := [part for part in named if part and len(part) < 40]:
            return chance.choice(fitting)
    if re.search(r" (id|code|number|key|token)$", words):
        return "".join(chance.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(2)) + "".join(
            chance.choice(_PATTERN_DIGITS) for _ in range(chance.choice([3, 4, 5]))
        )
    for pattern, bank in _BY_NAME:
        if re.search(pattern, words):
            return chance.choice(list(bank))
    return chance.choice(_THINGS)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
