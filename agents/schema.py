"""Read a JSON schema: what it wants in words, which types it allows, where its references lead.

Does: describe a schema as a phrase for a model, fold $ref and allOf into one schema, compare JSON values.
Does not: judge a value (`agents.coerce`) or make a grammar of a schema (`agents.constrain`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any] | bool

SHOWN = 80
"""Characters of a value that a note or a message repeats."""
LINKS = 64
"""References followed one after another; a longer chain allows anything."""
_TYPES = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None)}


def describe(schema: Schema, root: Schema | None = None, depth: int = 0) -> str:
    """What a schema wants, in words a small model knows: "an integer from 1 to 9", "one of 'a', 'b'", "an array of strings"."""
    top = root if root is not None else schema
    if isinstance(schema, bool) or not schema:
        return "any value" if schema or schema == {} else "nothing"
    schema = resolve(schema, top)
    if "const" in schema:
        return shown(schema["const"])
    if "enum" in schema:
        return (
            "one of " + ", ".join(shown(option) for option in schema["enum"][:20]) + (", …" if len(schema["enum"]) > 20 else "")
        )
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        return " or ".join(dict.fromkeys(describe(branch, top, depth + 1) for branch in branches))
    types = types_of(schema)
    return " or ".join(_named(kind, schema, top, depth) for kind in types) if types else "any value"


def shown(value: Any) -> str:
    """A value as a message repeats it: JSON, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _named(kind: str, schema: Mapping[str, Any], root: Schema, depth: int) -> str:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    bounds = f" from {low} to {high}" if low is not None and high is not None else ""
    bounds = bounds or (f" of at least {low}" if low is not None else f" of at most {high}" if high is not None else "")
    if kind == "integer":
        return f"an integer{bounds}"
    if kind == "number":
        return f"a number{bounds}"
    if kind == "boolean":
        return "true or false"
    if kind == "string":
        pattern, long = schema.get("pattern"), schema.get("maxLength")
        return (
            "a string" + (f" like {pattern}" if pattern else "") + (f" of at most {long} characters" if long is not None else "")
        )
    if kind == "array":
        items = schema.get("items")
        few, many = schema.get("minItems"), schema.get("maxItems")
        count = f" (at least {few})" if few and many is None else f" (at most {many})" if many is not None and not few else ""
        count = f" ({few} to {many})" if few and many is not None else count
        return (f"an array of ({describe(items, root, depth + 1)})" if items and depth < 3 else "an array") + count
    if kind == "object":
        inner = schema.get("properties") or {}
        if not inner or depth >= 2:
            return "an object"
        return "an object with " + ", ".join(f"{name} ({describe(part, root, depth + 1)})" for name, part in inner.items())
    return kind


def is_type(value: Any, kind: str) -> bool:
    """Whether a value has a JSON type; 3.0 is an integer, true is no number, NaN and infinity are nothing."""
    if kind == "integer":
        return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    known = _TYPES.get(kind)
    return known is None or isinstance(value, known)


def same_json(a: Any, b: Any) -> bool:
    """Equal as JSON: true is not 1, 1 is 1.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(part, b[name]) for name, part in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def types_of(schema: Mapping[str, Any]) -> list[str]:
    """The JSON types a schema allows; of one that names none, what its keywords speak of."""
    named = schema.get("type")
    types = [named] if isinstance(named, str) else list(named or ())
    if not types:
        types = [kind for kind, word in (("object", "properties"), ("array", "items")) if word in schema]
    return [*types, "null"] if types and schema.get("nullable") and "null" not in types else types


def resolve(schema: Schema, root: Schema) -> Mapping[str, Any]:
    """The schema with its own $ref and allOf folded in; a reference that leads nowhere allows anything."""
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    for _ in range(LINKS):
        if "$ref" in schema:
            target = _pointed(schema["$ref"], root)
            own = {name: part for name, part in schema.items() if name != "$ref"}
            schema = merge(own, {} if isinstance(target, bool) else target)
        elif schema.get("allOf"):
            parts = schema["allOf"]
            schema = {name: part for name, part in schema.items() if name != "allOf"}
            for part in parts:
                schema = merge(schema, resolve(part, root))
        else:
            return schema
    return {}


def merge(own: Mapping[str, Any], other: Schema) -> Mapping[str, Any]:
    """Both at once: fields and required names of both, for the rest the first."""
    if isinstance(other, bool):
        return own if other else {"enum": []}
    out = {**other, **own}
    if "properties" in own and "properties" in other:
        out["properties"] = {**other["properties"], **own["properties"]}
    if own.get("required") and other.get("required"):
        out["required"] = list(dict.fromkeys([*own["required"], *other["required"]]))
    return out


def _pointed(reference: str, root: Schema) -> Schema:
    """Where a local reference ("#/$defs/Name") leads; True when nowhere."""
    at: Any = root
    if not reference.startswith("#"):
        return True
    for part in reference[1:].lstrip("/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if part:
            at = at.get(name, True) if isinstance(at, Mapping) else True
    return at if isinstance(at, Mapping | bool) else True
