"""How a persona's model says what it wants: a tool call, a way to go, an answer. One grammar for it, one reader of it.

Does: bound a schema so that a call always ends, write the union of the tools' schemas, the routes and the answer as one grammar,
describe the tools in the prompt where the chat template does not, read a reply back.
Does not: mend what does not fit (`agents.repair`), run tools or ask a model.

A call is compact JSON, {"name":"lookup","arguments":{"order_id":17}}; a way to go is {"goto":"billing"}; an answer is plain text,
or with `output=` JSON of its schema ({"answer":…} beside tools). Which of them it is, is decided by the first characters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from agents.chat import Reply, ToolCall, ToolSpec
from agents.constrain import Constraint, Kind, json_schema, lark

BIGGEST = 10**15
"""Largest size of a number in a call whose schema sets none; 15 digits survive every JSON reader."""
MAX_ITEMS = 32
"""Longest list in a call whose schema sets no limit."""
ANSWER_MARK = "\nAnswer: "
"""Stands between free thinking and what the grammar governs; compact JSON and names never hold it."""
_RULES = {"x-guidance": {"whitespace_flexible": False, "coerce_one_of": True}}


@dataclass(frozen=True, slots=True)
class Said:
    """What a reply means: calls, a way to go, or the text of an answer (`thought` is what came before the grammar bit)."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    goto: str | None = None
    thought: str = ""
    formal: bool = False
    """whether it was written as the grammar writes it, so that it cannot mean anything else"""


def honours(model: Any, kind: Kind) -> bool:
    """Whether this model decodes under constraints of this kind. A backend that cannot do all lists in `constrains` which."""
    kinds = getattr(model, "constrains", None)
    return kinds is None or kind in kinds


def shows_tools(model: Any, tools: Sequence[ToolSpec]) -> bool:
    """Whether the model is told about `Request.tools` by its own means: a server is, a chat template may leave them out."""
    count = getattr(model, "prompt_ids", None)
    if count is None:
        return True
    from agents.chat import Message, ModelError

    probe = (Message(role="user", content="?"),)
    try:
        return len(count(probe, tools)) > len(count(probe))
    except ModelError:
        return False


def bounded(schema: Any, max_chars: int) -> Any:
    """The schema with a limit on every text, number and list that has none, so that what follows it always ends.

    Objects that name their properties take no others. A recursive schema stays without limit.
    """
    if isinstance(schema, list):
        return [bounded(one, max_chars) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            out[key] = {name: bounded(one, max_chars) for name, one in value.items()}
        elif key in ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties"):
            out[key] = bounded(value, max_chars)
        elif key not in ("description", "default", "examples", "title"):
            out[key] = value
    kind = out.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if "enum" in out or "const" in out:
        return out
    if "string" in kinds:
        out.setdefault("maxLength", max_chars)
    if "number" in kinds and "multipleOf" not in out:
        out["multipleOf"] = 1e-6
    if "number" in kinds or "integer" in kinds:
        if "minimum" not in out and "exclusiveMinimum" not in out:
            out["minimum"] = -BIGGEST
        if "maximum" not in out and "exclusiveMaximum" not in out:
            out["maximum"] = BIGGEST
    if "array" in kinds:
        out.setdefault("maxItems", MAX_ITEMS)
    if out.get("properties"):
        out.setdefault("additionalProperties", False)
    elif "object" in kinds and out.get("additionalProperties") not in (None, False):
        out.setdefault("maxProperties", MAX_ITEMS)
    return out


def call_schema(spec: ToolSpec, max_chars: int) -> dict[str, Any]:
    """Schema of one whole call: {"name": this tool, "arguments": its parameters}."""
    arguments = bounded({"type": "object", **spec.parameters}, max_chars)
    if not arguments.get("properties") and "additionalProperties" not in arguments:
        arguments["additionalProperties"] = False
    shared = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
    return {
        "type": "object",
        "properties": {"name": {"const": spec.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **shared,
    }


def grammar(
    tools: Sequence[ToolSpec] = (),
    routes: Sequence[str] = (),
    answer: Constraint | dict[str, Any] | None = None,
    *,
    wrapped: bool = False,
    think: int | None = None,
    max_chars: int = 512,
) -> Constraint | None:
    """The union of these as one constraint; None when nothing is constrained.

    `answer`: a schema, a constraint of any kind but lark, or None for free text. `wrapped` also lets a call stand in
    <tool_call> marks, as some chat templates teach. `think`: tokens of free text first. Raises ValueError for a lark answer
    beside anything else.
    """
    if not tools and not routes and think is None:
        return json_schema(bounded(answer, max_chars)) if isinstance(answer, dict) else answer
    rules, starts = [], []
    for i, spec in enumerate(tools):
        rules.append(f"call_{i}: %json {_json(call_schema(spec, max_chars) | _RULES)}")
        starts.append(f"call_{i}")
        if wrapped:
            starts.append(f'"<tool_call>\\n" call_{i} "\\n</tool_call>"')
    if routes:
        way = {"type": "object", "properties": {"goto": {"enum": list(routes)}}, "required": ["goto"]}
        rules.append(f"route: %json {_json(way | {'additionalProperties': False} | _RULES)}")
        starts.append("route")
    if isinstance(answer, dict):
        beside = bounded(answer, max_chars)
        if tools or routes:
            shared = {key: beside.pop(key) for key in ("$defs", "definitions") if key in beside}
            beside = {"type": "object", "properties": {"answer": beside}, "required": ["answer"],
                      "additionalProperties": False, **shared}  # fmt: skip
        rules.append(f"answer: %json {_json(beside | _RULES)}")
    elif answer is None:
        rules.append(
            "answer: " + ("/ ?[^{<\\s](?s:.)*/" if wrapped else "/ ?[^{\\s](?s:.)*/" if tools or routes else "/(?s:.)+/")
        )
    elif answer.kind == "json_schema":
        rules.append(f"answer: %json {_json(json.loads(answer.source) | _RULES)}")
    elif answer.kind == "choice":
        rules.append("answer: " + " | ".join(json.dumps(text) for text in json.loads(answer.source)))
    elif answer.kind == "regex":
        rules.append("answer: /" + answer.source.replace("/", "\\/") + "/")
    else:
        raise ValueError("a lark constraint stands alone: it cannot be joined with tools, routes or thinking")
    starts.append("answer")
    start = " | ".join(starts)
    if think is not None:
        rules.append(f'thought[max_tokens={think}, stop="</think>"]: /(?s:.*)/')
        start = f"thought {json.dumps(ANSWER_MARK)} ({start})"
    return lark("\n".join([f"start: {start}", *rules, ""]))


def read(reply: Reply, names: frozenset[str], *, think: bool = False, routes: bool = False) -> Said | None:
    """What a reply says when it says it as the grammar has it; None when it looks like a call that is not whole."""
    text, thought = reply.text, ""
    if think:
        before, mark, after = text.rpartition(ANSWER_MARK)
        if mark:
            thought, text = before.removesuffix("</think>").strip(), after
    if reply.calls:
        plain = all(call.raw is None and call.name in names for call in reply.calls)
        return Said(text, reply.calls, thought=thought) if plain else None
    bare = text.strip()
    if bare.startswith("<tool_call>"):
        bare = bare.removeprefix("<tool_call>").removesuffix("</tool_call>").strip()
    elif not bare.startswith("{") or not (names or routes):
        return Said(text, thought=thought)
    try:
        found = json.loads(bare)
    except ValueError:
        return None
    if routes and isinstance(found, dict) and found.keys() == {"goto"}:
        return Said(goto=str(found["goto"]), thought=thought, formal=True)
    if isinstance(found, dict) and found.keys() == {"name", "arguments"} and found["name"] in names:
        if isinstance(found["arguments"], dict):
            return Said(calls=(ToolCall(name=found["name"], arguments=found["arguments"]),), thought=thought, formal=True)
        return None
    if isinstance(found, dict) and found.keys() == {"answer"}:
        return Said(_json(found["answer"]), thought=thought, formal=True)
    return None


def instructions(tools: Sequence[ToolSpec], routes: Sequence[str], schema: dict[str, Any] | None, told: bool) -> str:
    """What the prompt says about calls, routes and the form of the answer. `told`: the model hears of the tools by itself."""
    parts = []
    if tools and not told:
        lines = [_json({"name": spec.name, "description": spec.description, "parameters": spec.parameters}) for spec in tools]
        parts.append(
            'You can call these functions. To call one, answer with nothing but {"name":…,"arguments":{…}}; you are then told '
            "its result.\n" + "\n".join(lines)
        )
    if routes:
        parts.append(f'To hand over, answer with nothing but {{"goto":…}}, naming one of: {", ".join(routes)}.')
    if schema is not None:
        how = '{"answer":…} whose value is JSON' if tools or routes else "nothing but JSON"
        parts.append(f"Answer with {how} of this schema:\n{_json(schema)}")
    return "\n\n".join(parts)


def written(call: ToolCall) -> str:
    """A call as the grammar writes it."""
    return _json({"name": call.name, "arguments": call.arguments})


def schema_of(output: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of an answer, without titles."""
    from agents.tools import untitled

    schema: dict[str, Any] = untitled(output.model_json_schema())
    return schema


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
