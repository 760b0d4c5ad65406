"""Fit a JSON value to a JSON schema where that is safe, and name each place where it is not.

Does: "2" → 2, "true" → true, 3.0 → 3, one value → a list of it, JSON inside a string, the case of an enum or a key, null in an
optional field, fields nobody asked for (dropped, or refused where additionalProperties is false); nested objects and lists, $ref,
anyOf, oneOf (as anyOf), allOf, bounds, lengths, patterns. Every change is a note; a misfit has a path, a value and what was
wanted. Does not: invent a value, guess between two readings, follow a $ref out of the schema, or judge `format`, `not`, `if` (the
tool's own validation does).

    fitted = fit({"order_id": "17"}, schema)
    fitted.value, fitted.notes, fitted.misfits       # {"order_id": 17}, ('order_id: "17" → 17',), ()
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agents.json_text import Unreadable, parse
from agents.schema import Schema, describe, is_type, merge, resolve, same_json, shown, types_of

MisfitKind = Literal["missing", "wrong-value", "extra-field"]
DEPTH = 64
"""Levels of nesting that are looked into; deeper values are misfits."""
INTEGER_DIGITS = 40
"""Longest text read as an integer."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """One place that does not fit: `field` is a path ("items[2].price", "" is the whole), `expected` a phrase ("an integer")."""

    kind: MisfitKind
    field: str
    value: Any
    expected: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """`value` is as the schema wants it when there are no misfits; `notes` say what was changed."""

    value: Any
    notes: tuple[str, ...] = ()
    misfits: tuple[Misfit, ...] = ()


def fit(value: Any, schema: Schema) -> Fitted:
    """The value as `schema` wants it, with a note for each change, or the misfits that forbid it."""
    fitting = _Fitting(schema)
    try:
        fitted = fitting.node(value, schema, "", 0)
    except RecursionError:  # a schema whose references go in a circle
        return Fitted(value, (), (Misfit("wrong-value", "", value, "a value that is not nested without end"),))
    return Fitted(fitted, tuple(fitting.notes), tuple(fitting.misfits))


@dataclass(slots=True)
class _Fitting:
    """One walk through a value and its schema; `notes` and `misfits` grow on the way."""

    root: Schema
    notes: list[str] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)
    dropped: int = 0

    def node(self, value: Any, schema: Schema, path: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return value if schema else self.refuse(value, schema, path)
        if depth > DEPTH:
            return self.refuse(value, schema, path, f"at most {DEPTH} levels of nesting")
        if not schema:
            return value
        schema = resolve(schema, self.root)
        branches = schema.get("anyOf") or schema.get("oneOf")
        if branches:
            rest = {name: part for name, part in schema.items() if name not in ("anyOf", "oneOf")}
            return self.union(value, [merge(rest, resolve(b, self.root)) for b in branches], path, depth, schema)
        if "const" in schema:
            return self.option(value, [schema["const"]], schema, path)
        if "enum" in schema:
            return self.option(value, schema["enum"], schema, path)
        types = types_of(schema)
        if not types:
            return value
        kind = next((kind for kind in types if is_type(value, kind)), None)
        if kind is None:
            return self.coerced(value, types, schema, path, depth)
        if kind == "integer" and isinstance(value, float):
            self.note(path, value, int(value))
            return self.bounded(int(value), schema, path)
        if kind == "object":
            return self.object(value, schema, path, depth)
        if kind == "array":
            return self.array(value, schema, path, depth)
        return self.bounded(value, schema, path)

    def adopt(self, trial: _Fitting) -> None:
        """Take over what a trial found."""
        self.notes += trial.notes
        self.misfits += trial.misfits
        self.dropped += trial.dropped

    def refuse(self, value: Any, schema: Schema, path: str, expected: str | None = None) -> Any:
        self.misfits.append(Misfit("wrong-value", path, value, expected or describe(schema, self.root)))
        return value

    def note(self, path: str, before: Any, after: Any) -> None:
        self.notes.append(f"{path or 'arguments'}: {shown(before)} → {shown(after)}")

    def union(self, value: Any, branches: list[Schema], path: str, depth: int, whole: Schema) -> Any:
        """The branch that needs least: no change, then the fewest fields dropped, then the fewest notes.

        When none fits: the misfits inside of the nearest one, or one misfit for the whole."""
        tried: list[tuple[int, int, int, _Fitting, Any]] = []
        for branch in branches:
            trial = _Fitting(self.root)
            fitted = trial.node(value, branch, path, depth + 1)
            if not trial.misfits and not trial.notes:
                return fitted
            tried.append((len(trial.misfits), trial.dropped, len(trial.notes), trial, fitted))
        misfits, _, _, best, fitted = min(tried, key=lambda entry: entry[:3])
        if misfits and not (isinstance(value, dict | list) and any(m.field != path for m in best.misfits)):
            return self.refuse(value, whole, path)
        self.adopt(best)
        return fitted

    def option(self, value: Any, options: Iterable[Any], schema: Schema, path: str) -> Any:
        """A value of an enum: exactly, by its text without regard to case, or as the one element of a list."""
        options = list(options)
        for option in options:
            if same_json(value, option):
                return option
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(one, list | dict) and one is not None:
            alike = [option for option in options if option is not None and _plain(_text(option)) == _plain(_text(one))]
            if len(alike) == 1 and _plain(_text(one)):
                self.note(path, value, alike[0])
                return alike[0]
        if None in options and _says_null(value):
            self.note(path, value, None)
            return None
        return self.refuse(value, schema, path)

    def coerced(self, value: Any, types: list[str], schema: Mapping[str, Any], path: str, depth: int) -> Any:
        """A value of none of the wanted types, read as one of them where there is one safe reading."""
        for kind in types:
            found = _read(value, kind)
            if found is not _NOTHING:
                trial = _Fitting(self.root)
                fitted = trial.node(found, {**schema, "type": kind}, path, depth + 1)
                self.note(path, value, fitted)
                self.adopt(trial)
                return fitted
        if "array" in types and value is not None:
            trial = _Fitting(self.root)
            fitted = trial.node([value], {**schema, "type": "array"}, path, depth + 1)
            if not trial.misfits:
                self.note(path, value, fitted)
                self.adopt(trial)
                return fitted
        if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list):
            trial = _Fitting(self.root)
            fitted = trial.node(value[0], schema, path, depth + 1)
            if not trial.misfits:
                self.note(path, value, fitted)
                self.adopt(trial)
                return fitted
        return self.refuse(value, schema, path)

    def object(self, value: dict[str, Any], schema: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Schema] = schema.get("properties") or {}
        patterns: Mapping[str, Schema] = schema.get("patternProperties") or {}
        extra: Schema | None = schema.get("additionalProperties")
        required = schema.get("required") or ()
        out: dict[str, Any] = {}
        for name, part in self.renamed(value, properties, path).items():
            at = f"{path}.{name}" if path else name
            if name in properties:
                wanted = properties[name]
                if part is None and name not in required and not self.allows_null(wanted):
                    self.notes.append(f"{at}: null, left out")
                    continue
                out[name] = self.node(part, wanted, at, depth + 1)
            elif (matching := [wanted for pattern, wanted in patterns.items() if _matches(pattern, name)]) != []:
                for wanted in matching:
                    part = self.node(part, wanted, at, depth + 1)
                out[name] = part
            elif extra is False:
                known = ", ".join(properties) or "none"
                self.misfits.append(Misfit("extra-field", at, part, f"only these fields: {known}"))
            elif extra is None and properties:
                self.notes.append(f"{at}: {shown(part)}, not a field, dropped")
                self.dropped += 1
            else:
                out[name] = self.node(part, True if extra is None else extra, at, depth + 1)
        for name in required:
            if name not in out and not any(m.field == (f"{path}.{name}" if path else name) for m in self.misfits):
                wanted = properties.get(name, True)
                self.misfits.append(Misfit("missing", f"{path}.{name}" if path else name, None, describe(wanted, self.root)))
        few, many = schema.get("minProperties", 0), schema.get("maxProperties", math.inf)
        return out if few <= len(out) <= many else self.refuse(out, schema, path, f"{few} to {many} fields")

    def renamed(self, value: dict[str, Any], properties: Mapping[str, Schema], path: str) -> dict[str, Any]:
        """Keys that differ from one property only in case, "_", "-" or spaces get that property's name."""
        unknown = [name for name in value if name not in properties]
        if not unknown or not properties:
            return value
        free = [name for name in properties if name not in value]
        names: dict[str, str] = {}
        for name in unknown:
            alike = [candidate for candidate in free if _plain(candidate) == _plain(name)]
            if len(alike) == 1 and alike[0] not in names.values():
                names[name] = alike[0]
                self.notes.append(f"{path + '.' if path else ''}{alike[0]}: written {shown(name)}")
        return {names.get(name, name): part for name, part in value.items()}

    def allows_null(self, schema: Schema) -> bool:
        trial = _Fitting(self.root)
        trial.node(None, schema, "", 0)
        return not trial.misfits

    def array(self, value: list[Any], schema: Mapping[str, Any], path: str, depth: int) -> list[Any]:
        first: list[Schema] = schema.get("prefixItems") or []
        rest: Schema = schema.get("items", True)
        if isinstance(rest, list):  # how drafts before 2020-12 wrote prefixItems
            first, rest = rest, schema.get("additionalItems", True)
        out = [
            self.node(part, first[i] if i < len(first) else rest, f"{path}[{i}]", depth + 1)  # a False schema refuses by itself
            for i, part in enumerate(value)
        ]
        few, many = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        if not few <= len(out) <= many:
            return list(self.refuse(out, schema, path))
        if schema.get("uniqueItems") and any(same_json(a, b) for i, a in enumerate(out) for b in out[:i]):
            return list(self.refuse(out, schema, path, "an array without repeated values"))
        return out

    def bounded(self, value: Any, schema: Mapping[str, Any], path: str) -> Any:
        """Bounds of numbers, lengths and patterns of texts."""
        if isinstance(value, str):
            pattern = schema.get("pattern")
            wrong = not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
            wrong = wrong or (pattern is not None and not _matches(pattern, value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            step = schema.get("multipleOf")
            # Draft 4 wrote exclusiveMinimum as a boolean beside minimum.
            above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
            low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
            wrong = not low <= value <= high
            wrong = wrong or (above is not None and value <= (low if isinstance(above, bool) else above) and above is not False)
            wrong = wrong or (below is not None and value >= (high if isinstance(below, bool) else below) and below is not False)
            wrong = wrong or bool(step and abs(value / step - round(value / step)) > 1e-9)
        else:
            wrong = False
        return self.refuse(value, schema, path) if wrong else value


_NOTHING = object()
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")


def _read(value: Any, kind: str) -> Any:
    """A value of another type as this one, or _NOTHING when there is no single safe reading."""
    text = value.strip() if isinstance(value, str) else None
    if kind in ("integer", "number") and text is not None and len(text) <= INTEGER_DIGITS and _NUMBER.fullmatch(text):
        try:
            return int(text)
        except ValueError:
            number = float(text)
        if not math.isfinite(number) or (kind == "integer" and not number.is_integer()):
            return _NOTHING
        return int(number) if kind == "integer" else number
    if kind == "boolean":
        if text is not None and text.lower() in ("true", "false"):
            return text.lower() == "true"
        return bool(value) if is_type(value, "integer") and value in (0, 1) else _NOTHING
    if kind == "string" and is_type(value, "number"):
        return json.dumps(value)
    if kind in ("object", "array") and text is not None and text[:1] == ("{" if kind == "object" else "["):
        inner = _loads(text)
        return inner if is_type(inner, kind) else _NOTHING
    return None if kind == "null" and _says_null(value) else _NOTHING


def _loads(text: str) -> Any:
    try:
        return parse(text).value
    except Unreadable:
        return _NOTHING


def _says_null(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("", "null", "none")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).casefold()


def _matches(pattern: str, text: str) -> bool:
    """Whether the pattern is found in the text; one that Python does not read is left to the tool's own validation."""
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return True
