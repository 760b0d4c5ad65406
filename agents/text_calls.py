"""Find the tool calls that a model wrote into its text instead of calling.

Does: tags (<tool_call>, <function=name>, [TOOL_CALLS], <|python_tag|>, DeepSeek's, <invoke>), JSON with a name and arguments as
the whole text or in a fence, Python's name(args) as the last lines, ReAct's "Action: / Action Input:". Thoughts, and what is
written after an invented "Observation:", are not searched.
Does not: read prose: a tool that is only mentioned in a sentence, or inside of code that does more, is not called. Arguments come
back as they were written; `agents.repair` reads them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from agents.json_text import WORDS_DROPPED, Unreadable, parse


@dataclass(frozen=True, slots=True)
class Written:
    """A call in a text: `arguments` is JSON text, a dict, or (positional values, values by name); `style` is how it was
    written and `how` what had to be done to read its JSON."""

    name: str
    arguments: str | dict[str, Any] | tuple[list[Any], dict[str, Any]]
    style: str
    how: str = ""


def find_calls(text: str, names: Iterable[str], *, cut_off: bool = False) -> tuple[tuple[Written, ...], str]:
    """(calls in the order they were written, the text without them). `names` are the tools there are; `cut_off`: the text ended
    at a limit.

    A tagged call may name an unknown tool (the caller says so to the model); an untagged one counts only with a known name, or
    when it is a JSON object with nothing but a name and arguments."""
    known = _Names(names, cut_off)
    said = without_thoughts(text)
    for style, find in _STYLES:
        calls = []
        for name, arguments in find(said, known):
            calls.append(Written(name, arguments, style, known.how))
            known.how = ""
        if calls:
            return tuple(calls), _around(said, style)
    return (), said


def without_thoughts(text: str) -> str:
    """The text without <think> sections, open ones at its end too."""
    return _THOUGHT.sub("", text) if "<think" in text else text


class _Names(frozenset[str]):
    """The tools there are, and on the way what was done to read the last JSON."""

    def __new__(cls, names: Iterable[str], cut_off: bool) -> _Names:
        made = super().__new__(cls, names)
        made.cut_off, made.how = cut_off, ""
        return made

    cut_off: bool
    how: str


Found = Iterator[tuple[str, Any]]

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_TAGS = (
    r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)",
    r"<\|tool_call\|?>(.*?)(?:<\|?/tool_call\|>|<tool_call\|>|\Z)",
    r"<function_?call>(.*?)(?:</function_?call>|\Z)",
    r"\[TOOL_CALLS?\](.*?)(?:</s>|\[/TOOL_CALLS?\]|(?=\[TOOL_CALLS?\])|\Z)",
    r"<\|python_tag\|>(.*?)(?:<\|eom_id\|>|<\|eot_id\|>|\Z)",
    r"\bfunctools(\[.*)\Z",
)
_TAGGED = tuple(re.compile(tag, re.DOTALL) for tag in _TAGS)
_FUNCTION = re.compile(r"<function[=:]\s*\"?([\w.-]+)\"?\s*>(.*?)(?:</function>|<function/>|(?=<function[=:])|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter[=:]\s*\"?([\w.-]+)\"?\s*>\n?(.*?)\n?</parameter>", re.DOTALL)
_INVOKE = re.compile(r"<invoke name=\"([\w.-]+)\"\s*>(.*?)(?:</invoke>|\Z)", re.DOTALL)
_INVOKED = re.compile(r"<parameter name=\"([\w.-]+)\"\s*>(.*?)</parameter>", re.DOTALL)
_DEEPSEEK = re.compile(r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?([\w.-]+)\s*(.*?)(?:<｜tool▁call▁end｜>|\Z)", re.DOTALL)
_FUNCTIONARY = re.compile(r"^>>>([\w.-]+)\s*\n(.*?)(?=^>>>|\Z)", re.DOTALL | re.MULTILINE)
_ACTION = re.compile(r"^\s*\**Action\**\s*:\**[ \t]*`?([\w.-]+)`?[ \t]*(?:([(\[].*?[)\]])[ \t]*)?$", re.MULTILINE | re.IGNORECASE)
_INPUT = re.compile(r"\s*^\s*\**Action[ _]Input\**\s*:\**\s*(.*)", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_ENDED = re.compile(r"^\s*\**(?:Observation|Thought|Final Answer|Action|PAUSE)\b", re.MULTILINE | re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[ARGS\]|\[CALL_ID\]\w*\[ARGS\])?\s*(\{.*)", re.DOTALL)
_NAME_KEYS = ("name", "tool", "tool_name", "function_name", "function", "action")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "kwargs", "tool_input", "tool_args", "action_input", "input", "params")
_LIST_KEYS = ("tool_calls", "calls", "function_calls", "actions")
_BESIDE = {"id", "type", "call_id", "index", "thought", "reasoning", "tool_call_id"}


def _tagged(text: str, known: _Names) -> Found:
    for tag in _TAGGED:
        for found in tag.finditer(text):
            yield from _inside(found.group(1), known)


def _inside(body: str, known: _Names) -> Found:
    """What stands in a tag: JSON, name{JSON}, <function=…>, or name(args)."""
    body = body.strip()
    inner = list(_functions(body, known))
    if inner:
        yield from inner
        return
    loose = list(_json(body, known, tagged=True))
    named = _NAMED.fullmatch(body)
    if loose:
        yield from loose
    elif named is not None:
        yield named.group(1), named.group(2).strip()
    else:
        yield from _python(body, known, tagged=True)


def _functions(text: str, known: _Names) -> Found:
    for pattern, parameter in ((_FUNCTION, _PARAMETER), (_INVOKE, _INVOKED)):
        for found in pattern.finditer(text):
            given = dict(parameter.findall(found.group(2)))
            yield found.group(1), given or found.group(2).strip() or "{}"


def _deepseek(text: str, known: _Names) -> Found:
    for found in _DEEPSEEK.finditer(text):
        yield found.group(1), found.group(2).strip() or "{}"


def _functionary(text: str, known: _Names) -> Found:
    for found in _FUNCTIONARY.finditer(text):
        if found.group(1) != "all":
            yield found.group(1), found.group(2).strip() or "{}"


def _react(text: str, known: _Names) -> Found:
    """The first action only: what follows it is the model's guess at the result."""
    found = _ACTION.search(text)
    if found is None:
        return
    name, brackets = found.group(1), found.group(2)
    given = _INPUT.match(text, found.end())
    if given is not None:
        ended = _ENDED.search(given.group(1))
        yield name, _unquoted(given.group(1)[: ended.start() if ended else None].strip())
    elif brackets is not None:
        called = list(_python(f"{name}({brackets[1:-1]})", _Names({name}, False)))
        yield called[0] if called else (name, brackets[1:-1].strip())
    elif name in known:
        yield name, "{}"


def _unquoted(text: str) -> str:
    fence = _FENCE.fullmatch(text)
    return (fence.group(1) if fence else text).strip().strip("`").strip() or "{}"


def _json(text: str, known: _Names, tagged: bool = False) -> Found:
    """A JSON object that names a tool and its arguments, or a list of them, and nothing else."""
    text = text.strip()
    if text[:1] not in ("{", "["):
        return
    try:
        parsed = parse(text, cut_off=known.cut_off)
    except Unreadable as error:
        cut = re.match(r"\[?\s*\{\s*[\"'](?:name|tool|function)[\"']\s*:\s*[\"']([\w.-]+)[\"']\s*,\s*[\"']\w+[\"']\s*:\s*", text)
        if cut is not None and (tagged or cut.group(1) in known or error.kind == "cut-off"):
            yield cut.group(1), text[cut.end() :]  # the tool is known, its arguments are not: those are asked for again
        return
    if parsed.how == WORDS_DROPPED and not tagged:
        return
    known.how = parsed.how
    yield from _named(parsed.value, known, tagged)


def _named(value: Any, known: _Names, tagged: bool) -> Found:
    if isinstance(value, list):
        every = [list(_named(part, known, tagged)) for part in value]
        if all(every):
            for part in every:
                yield from part
        return
    if not isinstance(value, dict):
        return
    for key in _LIST_KEYS:
        if isinstance(value.get(key), list) and not value.keys() - _BESIDE - {key, "content"}:
            yield from _named(value[key], known, True)
            return
    if isinstance(value.get("function"), dict):
        yield from _named(value["function"], known, True)
        return
    name_key = next((key for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    given_key = next((key for key in _ARGUMENT_KEYS if key in value and key != name_key), None)
    if name_key is not None:
        name, rest = value[name_key], value.keys() - _BESIDE - {name_key}
        if given_key is not None and (rest == {given_key} or name in known):
            yield name, _written(value[given_key])
        elif given_key is None and (tagged or name in known):
            yield name, {key: value[key] for key in value if key in rest}
    elif len(value) == 1 and (name := next(iter(value))) in known and isinstance(value[name], dict):
        yield name, value[name]


def _written(value: Any) -> str | dict[str, Any]:
    return value if isinstance(value, dict | str) else json.dumps(value)


def _whole_json(text: str, known: _Names) -> Found:
    yield from _json(text, known)


def _fenced(text: str, known: _Names) -> Found:
    for found in _FENCE.finditer(text):
        body = found.group(1)
        calls = list(_json(body, known)) or list(_python(body, known))
        yield from calls


def _lines(text: str, known: _Names) -> Found:
    """name(args) as the whole text, or calls as its last lines, after words."""
    whole = list(_python(text, known))
    if whole:
        yield from whole
        return
    last: list[tuple[str, Any]] = []
    for line in reversed(text.strip().splitlines()):
        line = line.strip().strip("`")
        calls = list(_python(line, known) if line.endswith((")", "]")) else _json(line, known) if line.endswith("}") else ())
        if not calls and line:
            break
        last = calls + last
    yield from last


def _python(text: str, known: _Names, tagged: bool = False) -> Found:
    """Calls of known tools with plain values, alone or in a list: `look(17)`, `[look(id=17), look(id=18)]`, `print(look(17))`."""
    text = text.strip()
    if not text.endswith((")", "]")):
        return
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return
    calls: list[tuple[str, Any]] = []
    for statement in body:
        if not isinstance(statement, ast.Expr | ast.Assign):
            return
        value = statement.value
        for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if isinstance(node, ast.Call) and _dotted(node.func) == "print" and len(node.args) == 1:
                node = node.args[0]
            if not isinstance(node, ast.Call):
                return
            name = _dotted(node.func)
            if name is None or not (tagged or name in known or name.rpartition(".")[2] in known):
                return
            try:
                placed = [ast.literal_eval(argument) for argument in node.args]
                keyed = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg is not None}
                json.dumps([placed, keyed], allow_nan=False)
            except (ValueError, TypeError, RecursionError):
                return
            calls.append((name, (placed, keyed) if placed else keyed))
    yield from calls


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    inner = _dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{inner}.{node.attr}" if inner is not None and isinstance(node, ast.Attribute) else None


_STYLES: tuple[tuple[str, Callable[[str, _Names], Found]], ...] = (
    ("tag", _tagged),
    ("function tag", _functions),
    ("DeepSeek tag", _deepseek),
    (">>> name", _functionary),
    ("JSON", _whole_json),
    ("fence", _fenced),
    ("ReAct", _react),
    ("Python", _lines),
)
_CUT_AT = re.compile(
    r"<tool_call>|<\|tool_call|<function|\[TOOL_CALL|<\|python_tag\|>|functools\[|<invoke|<｜tool|^>>>|```|^\s*\**Action\**\s*:",
    re.MULTILINE | re.IGNORECASE,
)


def _around(text: str, style: str) -> str:
    """The words before the first call; a call without a mark of its own is the whole text."""
    mark = _CUT_AT.search(text)
    return text[: mark.start()].strip() if mark is not None and style not in ("JSON", "Python") else ""
