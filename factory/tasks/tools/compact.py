"""Calls in position tokens: `<call><t0><c0><v1><c3><enum> moderate` or `<none>`.

Does: write canonical calls so and read them back. Does not: build the prompt (`view.py`) or the grammar (`grammar.py`).

After an argument's token stands a numbered span of the request, `<true>` or `<false>`, `<any>` for "anything will do", `<x0>` for
what an earlier call returned (`API_call_0`, Seal-Tools only), a choice after `<enum>`, a number written out, or text copied from
the request (dates and times are always spans). Arguments that say their
default are left out: the call is the same.
"""

from __future__ import annotations

import re
from typing import Any

from factory.tasks.sql.spaced import spaced
from factory.tasks.task import AnswerError
from factory.tasks.tools import calls as calls_
from factory.tasks.tools.calls import Call, Variants
from factory.tasks.tools.functions import ANYTHING, Argument
from factory.tasks.tools.view import MAX_ARGUMENTS, MAX_FUNCTIONS, MAX_VALUES, View

NONE, CALL = "<none>", "<call>"
RESULTS = 16
MAX_CALLS = 8
TOKENS = (
    *(f"<t{i}>" for i in range(MAX_FUNCTIONS)),
    *(f"<c{i}>" for i in range(MAX_ARGUMENTS)),
    *(f"<v{i}>" for i in range(MAX_VALUES)),
    "<q>",
    *"<call> <none> <usr> <sys> <true> <false> <any> <req> <str> <int> <date> <time> <enum>".split(),
    *(f"<x{i}>" for i in range(RESULTS)),
)
SPANS_FOR: dict[str, tuple[str, ...]] = {
    "text": ("text", "number", "date", "time"),
    "integer": ("number",),
    "number": ("number",),
    "date": ("date",),
    "time": ("time",),
}
"""Kind of argument -> kinds of span it takes."""
NUMBER = re.compile(r" (?:- )?[0-9]{1,9}(?: \. [0-9]{1,9})?")
_RESULT = re.compile(r"API_call_(\d+)")
_ARGUMENT = re.compile(r"<c(\d+)>((?:<(?:v\d+|x\d+|true|false|any)>)|(?:<enum>)?[^<]*(?:<(?!c\d+>|call>)[^<]*)*)")


def encode(view: View, answer: str, variants: Variants) -> str:
    """Canonical calls -> completion. Raises AnswerError with the reason why the dialect cannot say them."""
    view.check()
    found = calls_.read(answer)
    if not found:
        return NONE
    if len(found) > MAX_CALLS:
        raise AnswerError("too-many-calls", f"{len(found)} calls; the compact dialect says {MAX_CALLS}")
    return "".join(_encode_call(view, call, variants) for call in found)


def _encode_call(view: View, call: Call, variants: Variants) -> str:
    number = next((i for i, function in enumerate(view.toolset.functions) if function.name == call.name), None)
    if number is None:
        raise AnswerError("unknown-function", f"{call.name!r} is not offered")
    function = view.toolset.functions[number]
    given = calls_.full(function, call)
    unknown = next((name for name in given if name not in function.by_name), None)
    if unknown is not None:
        raise AnswerError("extra-argument", f"{call.name} has no argument {unknown!r}")
    parts = [f"{CALL}<t{number}>"]
    for argument in function.arguments:
        if argument.name in given:
            value = _encode_value(view, argument, given[argument.name], variants.get(f"{call.name}.{argument.name}", ()))
            parts.append(f"<c{view.argument_number[argument.key]}>{value}")
        elif argument.required:
            raise AnswerError("missing-argument", f"{call.name} needs {argument.name!r}")
    return "".join(parts)


def _encode_value(view: View, argument: Argument, value: Any, variants: tuple[str, ...] | list[str] | Any) -> str:
    if value == ANYTHING:
        return "<any>"
    if isinstance(value, bool):
        return "<true>" if value else "<false>"
    result = _RESULT.fullmatch(value) if isinstance(value, str) else None
    if result is not None and view.toolset.chained and int(result[1]) < RESULTS:
        return f"<x{result[1]}>"
    value = calls_.typed(argument, value, view.toolset.today)
    if argument.kind == "choice":
        if value in argument.choices:
            return f"<enum>{spaced(value) or ' ' + value}"
        raise AnswerError("not-a-choice", f"{argument.name}: {value!r} is none of {', '.join(map(repr, argument.choices))}")
    if argument.kind == "other":
        raise AnswerError("no-such-type", f"{argument.name}: the compact dialect has no lists or objects ({value!r})")
    for spelling in (value, *variants):
        for i, (span, text) in enumerate(view.values):
            if span.kind in SPANS_FOR[argument.kind] and calls_.same_value(
                argument, span.value if span.kind != "text" else text, spelling, view.toolset.today
            ):
                return f"<v{i}>"
    if argument.kind in ("date", "time"):
        raise AnswerError(f"not-a-{argument.kind}", f"{argument.name}: no {argument.kind} of the request is {value!r}")
    if argument.kind in ("integer", "number") and isinstance(value, int | float):
        written = spaced(str(value))
        if NUMBER.fullmatch(written) and argument.allows(value):
            return written
    if argument.kind in ("integer", "number"):
        raise AnswerError("not-a-number", f"{argument.name}: {value!r} is no number that may be written out")
    for spelling in (value, *variants):
        if isinstance(spelling, str) and view.shows(spelling):
            return spaced(spelling)
    raise AnswerError("value-not-in-request", f"{argument.name}: {value!r} is not in the part of the request that is shown")


def decode(view: View, completion: str) -> tuple[Call, ...]:
    """The reverse. Raises AnswerError("not-parsed" | "unknown-function" | "unknown-argument")."""
    text = completion.strip()
    if text == NONE:
        return ()
    first, *rest = text.split(CALL)
    if first.strip() or not rest:
        raise AnswerError("not-parsed", f"neither {NONE} nor calls: {completion[:80]!r}")
    return tuple(_decode_call(view, part) for part in rest)


def _decode_call(view: View, text: str) -> Call:
    head = re.match(r"\s*<t(\d+)>", text)
    if head is None:
        raise AnswerError("not-parsed", f"no function at the start: {text[:80]!r}")
    if int(head[1]) >= len(view.toolset.functions):
        raise AnswerError("unknown-function", f"<t{head[1]}> is not offered ({len(view.toolset.functions)} functions)")
    function = view.toolset.functions[int(head[1])]
    given: dict[str, Any] = {}
    at = head.end()
    while text[at:].strip():
        found = _ARGUMENT.match(text, at)
        if found is None:
            raise AnswerError("not-parsed", f"not an argument: {text[at : at + 80]!r}")
        number = int(found[1])
        name = view.arguments[number].name if number < len(view.arguments) else None
        argument = function.by_name.get(name) if name is not None else None
        if argument is None:
            raise AnswerError("unknown-argument", f"{function.name} has no <c{number}>")
        given[argument.name] = _decode_value(view, argument, found[2])
        at = found.end()
    return Call(function.name, given)


def _decode_value(view: View, argument: Argument, text: str) -> Any:
    bare = text.strip()
    if bare in ("<true>", "<false>"):
        return bare == "<true>"
    if bare == "<any>":
        return ANYTHING
    number = re.fullmatch(r"<([vx])(\d+)>", bare)
    if number is not None and number[1] == "x":
        return f"API_call_{number[2]}"
    if number is not None:
        if int(number[2]) >= len(view.values):
            raise AnswerError("not-parsed", f"{bare} is not in the prompt ({len(view.values)} values)")
        span, spelt = view.values[int(number[2])]
        return spelt if argument.kind == "text" else calls_.typed(argument, span.value, view.toolset.today)
    if bare.startswith("<enum>"):
        return calls_.typed(argument, bare.removeprefix("<enum>").strip(), view.toolset.today)
    if argument.kind in ("integer", "number"):
        return calls_.typed(argument, bare.replace(" ", ""), view.toolset.today)
    return calls_.typed(argument, view.spelling(bare) or bare, view.toolset.today)
