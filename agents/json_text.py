"""Read the JSON a model wrote, whole or broken, without believing more than it wrote.

Does: plain JSON; JSON in a fence, in a string, with words around it or said twice; Python literals; brackets left open at its
end; what `json-repair` mends (trailing commas, single quotes, bare keys, comments). A value that is not there stays absent.
Does not: accept a text that ends within a string (a limit or a stop word cut it: what was cut off cannot be known), or two
different objects side by side.

    parse("{'order_id': 17,}")      # Parsed({"order_id": 17}, "Python literal")
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

WORDS_DROPPED = "words around the JSON dropped"
LONGEST = 1_000_000
"""Characters that are looked at; longer texts are unreadable."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A value and what had to be done to read it ("" for plain JSON)."""

    value: Any
    how: str = ""


class Unreadable(Exception):
    """Not JSON ("not-json"), or JSON that stops where a value is in doubt ("cut-off")."""

    def __init__(self, kind: Literal["not-json", "cut-off"]) -> None:
        super().__init__(kind)
        self.kind: Literal["not-json", "cut-off"] = kind


def parse(text: str, *, cut_off: bool = False) -> Parsed:
    """The one value in `text`. With `cut_off` (the text ended at a limit) a number at its very end is in doubt too.

    Raises Unreadable."""
    if len(text) > LONGEST:
        raise Unreadable("not-json")
    try:
        return _parse(text.strip(), cut_off)
    except RecursionError:
        raise Unreadable("not-json") from None


def _parse(text: str, cut_off: bool) -> Parsed:
    try:
        value = json.loads(text)
    except ValueError:
        pass
    else:
        if isinstance(value, str) and value.strip()[:1] in ("{", "["):
            return Parsed(_parse(value.strip(), cut_off).value, "JSON within a string")
        return Parsed(value)
    fence = _FENCE.search(text)
    if fence is not None:
        return Parsed(_parse(fence.group(1).strip(), cut_off and not fence.group(2)).value, "fence around the JSON")
    try:
        return Parsed(json.loads(text, strict=False), "line breaks within a string")
    except ValueError:
        pass
    start = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=-1)
    if start < 0:
        raise Unreadable("not-json")
    body = text[start:]
    found = _first(body)
    if found is not None:
        return found if start == 0 else Parsed(found.value, WORDS_DROPPED)
    if (literal := _literal(body)) is not None:
        return Parsed(literal, "Python literal")
    state = _scan(body)
    if state.closers is not None:  # only the end is missing
        if state.in_string or (cut_off and body[-1:].isalnum()):
            raise Unreadable("cut-off")
        closed = _closed(body, state.closers)
        if closed is not None:
            return Parsed(closed, "closed at the end")
    return Parsed(_mended(body, cut_off), "json-repair")


_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)(?:\n?(```)|\Z)", re.DOTALL)
_DECODER = json.JSONDecoder()
_AFTER = re.compile(r"[\s;`]*(</?[\w|=]+>[\s;`]*)*")
_LITERALS = {"true", "false", "null", "True", "False", "None"}


def _first(body: str) -> Parsed | None:
    """A whole value at the start, when nothing else that looks like a value follows it, or only itself again."""
    try:
        value, end = _DECODER.raw_decode(body)
    except ValueError:
        return None
    rest = body[end:]
    if _AFTER.fullmatch(rest):
        return Parsed(value, "mark after the JSON dropped")
    if not re.search(r"[{\[]", rest):
        return Parsed(value, WORDS_DROPPED)
    while (rest := rest.strip()) != "":
        try:
            again, end = _DECODER.raw_decode(rest)
        except ValueError:
            raise Unreadable("not-json") from None
        if again != value:
            raise Unreadable("not-json")
        rest = rest[end:]
    return Parsed(value, "said twice")


def _literal(body: str) -> Any:
    """A Python dict or list of plain values, exactly as Python reads it, else None."""
    try:
        value = ast.literal_eval(body)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return json.loads(json.dumps(value)) if isinstance(value, dict | list) else None


@dataclass(frozen=True, slots=True)
class _End:
    """How a text ends: brackets still to close (None when they do not match), and whether it is within a string."""

    closers: str | None
    in_string: bool


def _scan(body: str) -> _End:
    """Follow brackets and double-quoted strings to the end of the text."""
    stack: list[str] = []
    in_string = escaped = False
    for char in body:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "{[":
            stack.append("}" if char == "{" else "]")
        elif char in "}]" and (not stack or stack.pop() != char):
            return _End(None, in_string)
    return _End("".join(reversed(stack)) if stack else None, in_string)


def _closed(body: str, closers: str) -> Any:
    """The value with its open brackets closed; a last key without a value is left out. None when that does not make JSON."""
    body = re.sub(r'[,{]?\s*"(?:[^"\\]|\\.)*"\s*:\s*$', lambda found: "{" if found.group().startswith("{") else "", body)
    body = body.rstrip().rstrip(",")
    try:
        return json.loads(body + closers)
    except ValueError:
        return None


def _mended(body: str, cut_off: bool) -> Any:
    """What json-repair makes of it, less what it invented. Raises Unreadable."""
    import json_repair

    single = body.count("'") > body.count('"')
    if cut_off and body[-1:] not in ("}", "]"):
        raise Unreadable("cut-off")
    if single and len(re.findall(r"(?<!\\)'", body)) % 2:  # open at the end, or an apostrophe within: which one cannot be told
        raise Unreadable("not-json" if body[-1:] in ("}", "]") else "cut-off")
    if not single and len(re.findall(r'(?<!\\)"', body)) % 2:  # a quote too many or too few: where a text ends cannot be told
        raise Unreadable("not-json")
    try:
        value = json_repair.loads(body, skip_json_loads=True)
    except (ValueError, RecursionError, IndexError):
        raise Unreadable("not-json") from None
    if not isinstance(value, dict | list) or not value:
        raise Unreadable("not-json")
    if any(text[:1] in _QUOTES or text[-1:] in _QUOTES for text in _texts(value)):  # a guess went astray by a quote
        raise Unreadable("not-json")
    return _believed(value, '""' in body or "''" in body, "null" in body or "None" in body)


_QUOTES = ('"', "'")


def _texts(value: Any) -> Iterator[str]:
    """Every text and key in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)


def _believed(value: Any, empties: bool, nulls: bool) -> Any:
    """Without the empty texts and nulls that the repair put where nothing was written."""
    if isinstance(value, dict):
        return {
            name: _believed(part, empties, nulls)
            for name, part in value.items()
            if not (part == "" and not empties) and not (part is None and not nulls)
        }
    return [_believed(part, empties, nulls) for part in value] if isinstance(value, list) else value
