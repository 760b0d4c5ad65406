"""The ladder that a weak model's tool call climbs before it is run or sent back: every rung that was needed is named.

Does: take the calls of a reply (or those written into its text), parse their arguments, mend broken JSON, coerce values by the
tool's schema, and say of what cannot be mended which field, which value and what was expected, in a sentence for the model.
Does not: call a model or a tool, run anything, or invent a value: what is missing is asked for again (`agents.persona` does).

    mended = repair(reply, [tool.spec for tool in tools])
    mended.calls        # valid by their schemas, in the order they came
    mended.rungs        # (("json-repair", "lookup: Python literal"), ("coerce", 'lookup.order_id: "17" → 17'))
    mended.problems     # for each: retry_message(problem) goes back to the model, once; then escalate
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agents.chat import Reply, ToolCall, ToolSpec
from agents.coerce import fit
from agents.json_text import Parsed, Unreadable, parse
from agents.schema import SHOWN, describe, resolve, shown, types_of
from agents.text_calls import find_calls, without_thoughts

if TYPE_CHECKING:
    from pydantic import ValidationError

Rung = Literal["json-repair", "coerce", "text-call", "retry", "stop-repeat", "escalate"]
"""In the order they are climbed. `repair` reports the first three; the tool loop counts the others under these names."""
ProblemKind = Literal["unknown-tool", "not-json", "missing", "wrong-value", "extra-field", "cut-off", "empty"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one call. `field` is a path ("items[2].price"; "" is the arguments as a whole), `value` what was written
    there, `expected` what the schema wants; `call` is the call as it came, so that the answer can name its id."""

    kind: ProblemKind
    call: ToolCall
    field: str = ""
    value: Any = None
    expected: str = ""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of a reply's calls. A call with problems is not in `calls`; `text` is the reply's text less the calls in it."""

    calls: tuple[ToolCall, ...] = ()
    rungs: tuple[tuple[Rung, str], ...] = ()
    problems: tuple[Problem, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class RepairedValue:
    """A JSON answer (`output=`) after the same ladder: `value` is meaningful when there are no problems."""

    value: Any = None
    rungs: tuple[tuple[Rung, str], ...] = ()
    problems: tuple[Problem, ...] = ()


def repair(reply: Reply | str, tools: Sequence[ToolSpec]) -> Repaired:
    """The calls in a reply, each valid by its tool's schema, or a problem for each that is not.

    Calls written as text count only where the reply has no others; a reply with neither text nor calls is a problem too."""
    if isinstance(reply, str):
        reply = Reply(text=reply)
    calls, text, rungs = reply.calls, reply.text, list[tuple[Rung, str]]()
    cut_off = reply.stop_reason in ("length", "timeout", "cancelled")
    if not calls and tools and _MAY_CALL.search(text):
        calls, text, rungs = _written_calls(text, tools, cut_off)
    if not calls and not text.strip() and reply.stop_reason != "error":
        return Repaired(problems=(Problem("empty", ToolCall(name=""), expected=", ".join(tool.name for tool in tools)),))
    good: list[ToolCall] = []
    problems: list[Problem] = []
    for at, call in enumerate(calls):
        mended, found, steps = repair_call(call, tools, cut_off=cut_off and at == len(calls) - 1)
        rungs += steps
        problems += found
        if not found:
            good.append(mended)
    return Repaired(tuple(good), tuple(rungs), tuple(problems), text)


def repair_call(
    call: ToolCall, tools: Sequence[ToolSpec], *, cut_off: bool = False
) -> tuple[ToolCall, tuple[Problem, ...], tuple[tuple[Rung, str], ...]]:
    """(the call as its tool wants it, what cannot be mended, the rungs that were needed)."""
    rungs: list[tuple[Rung, str]] = []
    tool = _tool_named(call.name, tools)
    if tool is None:
        return call, (Problem("unknown-tool", call, value=call.name, expected=", ".join(tool.name for tool in tools)),), ()
    if tool.name != call.name:
        rungs.append(("coerce", f"tool {shown(call.name)} → {tool.name}"))
    arguments: Any = call.arguments
    if call.raw is not None:
        try:
            parsed = parse(call.raw, cut_off=cut_off) if call.raw.strip() else Parsed({})
        except Unreadable as error:
            return call, (Problem(error.kind, call, value=call.raw, expected=describe(tool.parameters)),), tuple(rungs)
        arguments = parsed.value
        if parsed.how:
            rungs.append(("json-repair", f"{tool.name}: {parsed.how}"))
    arguments, how = _as_fields(arguments, tool)
    if how:
        rungs.append(("coerce", f"{tool.name}: {how}"))
    fitted = fit(arguments, tool.parameters or True)
    rungs += [("coerce", f"{tool.name}.{note}") for note in fitted.notes]
    problems = tuple(Problem(m.kind, call, m.field, m.value, m.expected) for m in fitted.misfits)
    if problems or fitted.value is call.arguments or (call.raw is None and not rungs and fitted.value == call.arguments):
        return call, problems, tuple(rungs)
    return ToolCall(id=call.id, name=tool.name, arguments=fitted.value), (), tuple(rungs)


def repair_value(text: str, schema: dict[str, Any], *, name: str = "answer", cut_off: bool = False) -> RepairedValue:
    """The JSON value in a text (fenced, with prose around it, broken as calls are), coerced by `schema`.

    `cut_off`: the text ended at a limit, so that its last word is in doubt."""
    call = ToolCall(name=name, raw=text)
    said = without_thoughts(text)
    rungs: list[tuple[Rung, str]] = []
    try:
        parsed = parse(said, cut_off=cut_off)
    except Unreadable as error:
        if not {"object", "array"} & set(types_of(resolve(schema, schema))) and error.kind == "not-json" and said.strip():
            parsed = Parsed(said.strip())  # a bare word where a scalar is wanted
        else:
            return RepairedValue(problems=(Problem(error.kind, call, value=said, expected=describe(schema)),))
    if parsed.how:
        rungs.append(("json-repair", f"{name}: {parsed.how}"))
    fitted = fit(parsed.value, schema)
    rungs += [("coerce", f"{name}.{note}") for note in fitted.notes]
    problems = tuple(Problem(m.kind, call, m.field, m.value, m.expected) for m in fitted.misfits)
    return RepairedValue(fitted.value, tuple(rungs), problems)


def problems_of(call: ToolCall, error: ValidationError) -> tuple[Problem, ...]:
    """What pydantic refused although the schema allowed it (a date, a validator of one's own), as problems of the call."""
    out = []
    for entry in error.errors(include_url=False, include_context=False):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in entry["loc"]).lstrip(".")
        kind: ProblemKind = {"missing": "missing", "extra_forbidden": "extra-field"}.get(entry["type"], "wrong-value")  # type: ignore[assignment]
        out.append(Problem(kind, call, path, entry["input"], entry["msg"]))
    return tuple(out)


def retry_message(problem: Problem | Sequence[Problem]) -> str:
    """What the model is told, once: tool, field, value, expected type; of an unknown tool, which there are."""
    problems = [problem] if isinstance(problem, Problem) else list(problem)
    sentences = list(dict.fromkeys(_sentence(one) for one in problems))
    names = dict.fromkeys(one.call.name for one in problems if one.kind not in ("unknown-tool", "empty"))
    again = f" Write {', '.join(names)} again with this put right." if names else ""
    return " ".join(sentences) + again


def same_call(call: ToolCall) -> str:
    """Equal texts for calls with the same name and arguments, whatever the order of their keys."""
    given = json.dumps(call.arguments, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=repr)
    return f"{call.name}({given if call.raw is None else call.raw.strip()})"


def without_progress(done: Sequence[tuple[ToolCall, str]], call: ToolCall, *, limit: int = 3) -> bool:
    """Whether `call` would be run for the `limit`-th time although its last `limit` - 1 runs said the same.

    `done`: (call, result) in the order they were run."""
    wanted = same_call(call)
    results = [result for earlier, result in done if earlier.name == call.name and same_call(earlier) == wanted]
    return len(results) >= limit - 1 and len(set(results[-(limit - 1) :])) == 1


_MAY_CALL = re.compile(r"[{(\[<>]|^\s*\**Action\b", re.MULTILINE | re.IGNORECASE)
"""No style of writing a call does without one of these."""
_WRAPPERS = ("arguments", "parameters", "args", "kwargs", "input")


def _written_calls(
    text: str, tools: Sequence[ToolSpec], cut_off: bool
) -> tuple[tuple[ToolCall, ...], str, list[tuple[Rung, str]]]:
    found, rest = find_calls(text, [tool.name for tool in tools], cut_off=cut_off)
    if not found:
        return (), text, []
    calls = []
    for number, written in enumerate(found, 1):
        given, id = written.arguments, f"text-{number}"
        if isinstance(given, tuple):
            tool = _tool_named(written.name, tools)
            placed = list((tool.parameters.get("properties") or {}) if tool is not None else {})
            if len(given[0]) > len(placed) or set(placed[: len(given[0])]) & given[1].keys():
                calls.append(ToolCall(id=id, name=written.name, raw=json.dumps(given[0])))
                continue
            given = {**dict(zip(placed, given[0])), **given[1]}
        if isinstance(given, str):
            calls.append(ToolCall(id=id, name=written.name, raw=given))
        else:
            calls.append(ToolCall(id=id, name=written.name, arguments=given))
    rungs: list[tuple[Rung, str]] = [("text-call", f"{written.name}, as {written.style}") for written in found]
    rungs += [("json-repair", f"{written.name}: {written.how}") for written in found if written.how]
    return tuple(calls), rest, rungs


def _tool_named(name: str, tools: Sequence[ToolSpec]) -> ToolSpec | None:
    """The tool of this name, or the only one that is called so but for case, "-", "_", "functions." or "()"."""
    for tool in tools:
        if tool.name == name:
            return tool
    plain = _plain(name)
    alike = [tool for tool in tools if _plain(tool.name) == plain]
    return alike[0] if len(alike) == 1 and plain else None


def _plain(name: str) -> str:
    return re.sub(
        r"[\s_-]|\(\)$", "", name.strip().removeprefix("functions.").removeprefix("tools.").removesuffix(".call")
    ).casefold()


def _as_fields(arguments: Any, tool: ToolSpec) -> tuple[Any, str]:
    """(arguments as an object, what was done): unwrapped, null as none, one bare value as the one field there is."""
    properties = tool.parameters.get("properties") or {}
    if isinstance(arguments, dict):
        names = {"name", "tool", "function"} - properties.keys()
        rest = [key for key in arguments if not (key in names and _plain(str(arguments[key])) == _plain(tool.name))]
        if len(rest) == 1 and rest[0] in _WRAPPERS and rest[0] not in properties and isinstance(arguments[rest[0]], dict):
            return arguments[rest[0]], f"unwrapped from {rest[0]!r}"
        return arguments, ""
    if arguments is None:
        return {}, "null as no arguments"
    wanted = list(tool.parameters.get("required") or properties)
    if len(wanted) == 1:
        return {wanted[0]: arguments}, f"{shown(arguments)} as {wanted[0]}"
    return arguments, ""


def _sentence(problem: Problem) -> str:
    tool, at = problem.call.name, problem.field
    if problem.kind == "unknown-tool":
        names = problem.expected.split(", ") if problem.expected else []
        near = difflib.get_close_matches(tool, names, 1, 0.5)
        there = f"the tools are: {problem.expected}" if names else "there are no tools; answer in words"
        return f"There is no tool {tool!r}; {there}." + (f" Did you mean {near[0]!r}?" if near else "")
    if problem.kind == "empty":
        return "The answer was empty; answer in words" + (f", or call one of: {problem.expected}." if problem.expected else ".")
    if problem.kind == "not-json":
        return f"{tool}: the arguments {shown(problem.value)} are not JSON; expected {problem.expected}."
    if problem.kind == "cut-off":
        return f"{tool}: the arguments were cut off at {shown(problem.value[-SHOWN // 2 :])}; expected {problem.expected}, whole."
    if problem.kind == "missing":
        return f"{tool}: {at} is missing; expected {problem.expected}."
    if problem.kind == "extra-field":
        return f"{tool}: {at} is {shown(problem.value)}, but there is no such field; expected {problem.expected}."
    return f"{tool}: {at or 'the value'} is {shown(problem.value)}; expected {problem.expected}."
