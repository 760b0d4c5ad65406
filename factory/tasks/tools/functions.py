"""Typed functions as this task sees them: what may be called, with which arguments of which kind.

Does: read OpenAI-style tool lists, JSON schemas and `@tool` functions, tell the kind of each argument, give names as words, put
arguments into another order.
Does not: read requests, validate calls (`calls.py`) or run anything.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from random import Random
from typing import Any, Literal

from agents.chat import ToolSpec
from factory.tasks.sql.spaced import spaced
from factory.tasks.task import TaskError

Kind = Literal["text", "integer", "number", "boolean", "date", "time", "choice", "other"]
"""What an argument takes. "other" (lists, objects, several types) has no compact form, only a plain one."""

ANYTHING = "dontcare"
"""The value of an argument the user says anything will do for, where its schema allows that."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_DATE, _TIME = re.compile(r"(?:^|[ _])date$", re.IGNORECASE), re.compile(r"(?:^|[ _])time$", re.IGNORECASE)


@dataclass(frozen=True)
class Argument:
    """One argument; `choices` as the schema spells them (texts of an enum, or the numbers it allows)."""

    name: str
    kind: Kind
    required: bool
    choices: tuple[Any, ...] = ()
    default: Any = field(default=None, hash=False)
    """of any JSON type, lists and objects too"""
    description: str = ""
    low: float | None = None
    high: float | None = None
    """smallest and largest number allowed"""

    @property
    def key(self) -> tuple[Any, ...]:
        """Arguments of two functions with one key are one in the compact prompt."""
        return self.name, self.kind, self.choices, self.low, self.high

    @cached_property
    def words(self) -> str:
        return spaced_words(self.name)

    def allows(self, number: float) -> bool:
        """Whether a number is one of the choices, or within the bounds; whole where it must be."""
        if self.choices:
            return number in self.choices
        whole = self.kind != "integer" or float(number).is_integer()
        return whole and (self.low is None or number >= self.low) and (self.high is None or number <= self.high)


@dataclass(frozen=True, eq=False)
class Function:
    """One function. `parameters` is its JSON schema; `arguments` are the same, required ones first. Read from a schema, each part
    is by name: in what order a schema writes its properties means nothing, and must not change a compact prompt."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    arguments: tuple[Argument, ...]

    @cached_property
    def spec(self) -> ToolSpec:
        return ToolSpec(name=self.name, description=self.description, parameters=dict(self.parameters))

    @cached_property
    def words(self) -> str:
        return spaced_words(self.name)

    @cached_property
    def by_name(self) -> dict[str, Argument]:
        return {argument.name: argument for argument in self.arguments}


@dataclass(frozen=True, eq=False)
class Toolset:
    """The functions offered for one request, in the order they are shown; `today` is what "tomorrow" counts from; `chained`
    allows what an earlier call returns as a value (`API_call_0`, Seal-Tools)."""

    id: str
    functions: tuple[Function, ...]
    today: dt.date | None = None
    chained: bool = False
    by_name: Mapping[str, Function] = field(init=False)

    def __post_init__(self) -> None:
        by_name = {function.name: function for function in self.functions}
        if len(by_name) < len(self.functions):
            names = [function.name for function in self.functions]
            twice = next(name for name in names if names.count(name) > 1)
            raise TaskError(f"two functions are called {twice!r}; give each its own name")
        object.__setattr__(self, "by_name", by_name)


@lru_cache(1 << 14)
def spaced_words(name: str) -> str:
    """`getHTTPHeader`, `get_http_header` -> ` get http header`."""
    return spaced(_CAMEL.sub(" ", name).replace("_", " ").replace("-", " ")) or " " + name.lower()


def from_spec(spec: ToolSpec) -> Function:
    """A function from its JSON schema."""
    parameters = spec.parameters
    properties = parameters.get("properties") or {}
    required = set(parameters.get("required") or ())
    own = [_argument(name, schema, name in required) for name, schema in properties.items()]
    own.sort(key=lambda argument: (not argument.required, argument.name))
    return Function(spec.name, spec.description, parameters, tuple(own))


def _argument(name: str, schema: Any, required: bool) -> Argument:
    from agents.schema import resolve, types_of

    schema = resolve(schema, schema)
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        real = [b for b in branches if isinstance(b, Mapping) and b.get("const") != ANYTHING and b.get("type") != "null"]
        if len(real) == 1:
            schema = {**{k: v for k, v in schema.items() if k not in ("anyOf", "oneOf")}, **resolve(real[0], real[0])}
    types = [one for one in types_of(schema) if one != "null"]
    choices = tuple(schema["enum"]) if "enum" in schema else ()
    kind: Kind = "other"
    if choices and all(isinstance(c, str) for c in choices):
        kind = "choice"
    elif types == ["integer"] or types == ["number"] or types == ["boolean"]:
        kind = types[0]  # type: ignore[assignment]
    elif types == ["string"] and not choices:
        kind = {"date": "date", "time": "time"}.get(str(schema.get("format")), "text")  # type: ignore[assignment]
    return Argument(name, kind, required, choices, schema.get("default"), str(schema.get("description") or ""),
                    _number(schema.get("minimum")), _number(schema.get("maximum")))  # fmt: skip


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def kind_by_name(name: str) -> Literal["date", "time"] | None:
    """What a text argument without a stated format holds, where its name says so: `check_in_date`, `show time`."""
    return "date" if _DATE.search(name) else "time" if _TIME.search(name) else None


def reordered(function: Function, given: Set[tuple[str, str]], lost: float, random: Random) -> Function:
    """Required arguments first, each part in a random order, without a share `lost` of the optional ones that are not among the
    (function, argument) names `given`; its schema likewise."""
    kept = [
        argument
        for argument in function.arguments
        if argument.required or (function.name, argument.name) in given or random.random() >= lost
    ]
    shown = tuple(sorted(random.sample(kept, len(kept)), key=lambda argument: not argument.required))
    properties = function.parameters.get("properties") or {}
    parameters = {**function.parameters, "properties": {argument.name: properties[argument.name] for argument in shown}}
    return replace(function, arguments=shown, parameters=parameters)


def read_tools(data: Any, where: str) -> tuple[Function, ...]:
    """Functions of an OpenAI-style tool list, a list of {"name", "parameters"}, or one of these. Raises TaskError."""
    rows: Sequence[Any] = data if isinstance(data, list) else [data]
    found = []
    for n, row in enumerate(rows, start=1):
        body = row.get("function", row) if isinstance(row, dict) else row
        name = body.get("name", body.get("title")) if isinstance(body, dict) else None
        if not isinstance(name, str) or not name:
            raise TaskError(
                f"{where}: entry {n} has no name ({str(row)[:60]!r}); write "
                '{"name": …, "description": …, "parameters": {"type": "object", "properties": {…}}}'
            )
        parameters = body.get("parameters", body.get("input_schema"))
        if parameters is None:
            parameters = {k: v for k, v in body.items() if k in ("type", "properties", "required", "$defs")}
        if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
            raise TaskError(
                f"{where}: the parameters of {name!r} are {str(parameters)[:60]!r}; they must be a JSON object's schema"
            )
        found.append(from_spec(ToolSpec(name=name, description=str(body.get("description") or ""), parameters=parameters)))
    if not found:
        raise TaskError(f"{where}: holds no function; write a list of at least one")
    return tuple(found)
