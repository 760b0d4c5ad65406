"""Values made to fit a schema where that is safe, and the field named where it is not; checked against jsonschema."""

from __future__ import annotations

import random
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from agents.coerce import fit
from agents.schema import describe

INTEGER = {"type": "integer"}


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "price": {"type": "number"},
        "fast": {"type": "boolean", "default": False},
        "city": {"enum": ["Paris", "New York"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        "address": {"$ref": "#/$defs/Address"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}},
    },
    "required": ["count"],
    "$defs": {
        "Address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string"}},
            "required": ["street"],
        },
        "Line": {
            "type": "object",
            "properties": {"sku": {"type": "string"}, "n": INTEGER},
            "required": ["sku", "n"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"count": "2"}, {"count": 2}),
        ({"count": 3.0}, {"count": 3}),
        ({"count": " 3.0 "}, {"count": 3}),
        ({"count": [4]}, {"count": 4}),
        ({"Count": 4}, {"count": 4}),
        ({"count": 1, "price": "2.50"}, {"count": 1, "price": 2.5}),
        ({"count": 1, "fast": "True"}, {"count": 1, "fast": True}),
        ({"count": 1, "fast": None}, {"count": 1}),
        ({"count": 1, "city": "new_york"}, {"count": 1, "city": "New York"}),
        ({"count": 1, "tags": "red"}, {"count": 1, "tags": ["red"]}),
        ({"count": 1, "tags": '["red", "blue"]'}, {"count": 1, "tags": ["red", "blue"]}),
        ({"count": 1, "tags": [1, 2.5]}, {"count": 1, "tags": ["1", "2.5"]}),
        ({"count": 1, "limit": "null"}, {"count": 1, "limit": None}),
        ({"count": 1, "limit": "7"}, {"count": 1, "limit": 7}),
        (
            {"count": 1, "address": '{"street": "Rue 1", "zip": 75001}'},
            {"count": 1, "address": {"street": "Rue 1", "zip": "75001"}},
        ),
        ({"count": 1, "lines": {"sku": "x", "n": "2"}}, {"count": 1, "lines": [{"sku": "x", "n": 2}]}),
        ({"count": 1, "color": "red"}, {"count": 1}),
    ],
)
def test_safe_readings(given: Any, wanted: Any) -> None:
    fitted = fit(given, SCHEMA)
    assert (fitted.value, fitted.misfits) == (wanted, ())
    assert fitted.notes
    jsonschema.validate(fitted.value, SCHEMA)


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({}, "count", "an integer from 1 to 9"),
        ({"count": None}, "count", "an integer from 1 to 9"),
        ({"count": 0}, "count", "an integer from 1 to 9"),
        ({"count": "1,000"}, "count", "an integer from 1 to 9"),
        ({"count": "2 pieces"}, "count", "an integer from 1 to 9"),
        ({"count": 2.5}, "count", "an integer from 1 to 9"),
        ({"count": True}, "count", "an integer from 1 to 9"),
        ({"count": float("nan")}, "count", "an integer from 1 to 9"),
        ({"count": "9" * 5000}, "count", "an integer from 1 to 9"),
        ({"count": [1, 2]}, "count", "an integer from 1 to 9"),
        ({"count": 1, "fast": "maybe"}, "fast", "true or false"),
        ({"count": 1, "city": "London"}, "city", 'one of "Paris", "New York"'),
        ({"count": 1, "limit": "few"}, "limit", "an integer or null"),
        ({"count": 1, "address": "Rue 1"}, "address", "an object with street (a string), zip (a string)"),
        ({"count": 1, "address": {"zip": "1"}}, "address.street", "a string"),
        ({"count": 1, "lines": [{"sku": "x", "n": 1}, {"sku": "y", "n": "many"}]}, "lines[1].n", "an integer"),
        ({"count": 1, "lines": [{"sku": "x", "n": 1, "color": "red"}]}, "lines[0].color", "only these fields: sku, n"),
    ],
)
def test_what_cannot_be_read_safely_is_named(given: Any, field: str, expected: str) -> None:
    (misfit,) = fit(given, SCHEMA).misfits
    assert (misfit.field, misfit.expected) == (field, expected)


class Line(BaseModel):
    sku: str
    n: int = 1


class Invoice(BaseModel):
    number: int
    paid: bool | None = None
    lines: list[Line]
    payer: Line | str = ""


def mutated(value: Any, dice: random.Random) -> Any:
    """A JSON value with something else somewhere in it."""
    junk: list[Any] = [
        None,
        True,
        "2",
        "true",
        "x",
        3.0,
        2.5,
        -1,
        [],
        ["x"],
        {},
        {"sku": "s"},
        '{"sku": "s", "n": 2}',
        "[1]",
        10**30,
    ]
    if dice.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return dice.choice(junk)
    if isinstance(value, list):
        at = dice.randrange(len(value))
        return [mutated(part, dice) if i == at else part for i, part in enumerate(value)]
    at = dice.choice(list(value))
    kind = dice.random()
    if kind < 0.15:
        return {name: part for name, part in value.items() if name != at}
    if kind < 0.3:
        return {**value, dice.choice(["extra", at.upper()]): dice.choice(junk)}
    return {name: mutated(part, dice) if name == at else part for name, part in value.items()}


GOOD_INVOICE = {"number": 7, "paid": True, "lines": [{"sku": "a", "n": 2}, {"sku": "b", "n": 1}], "payer": {"sku": "p", "n": 1}}
GOOD_ORDER = {
    "count": 2, "price": 1.5, "fast": True, "city": "Paris", "tags": ["a"], "limit": 3,
    "address": {"street": "x", "zip": "1"}, "lines": [{"sku": "a", "n": 1}],
}  # fmt: skip


@pytest.mark.parametrize(("schema", "good"), [(Invoice.model_json_schema(), GOOD_INVOICE), (SCHEMA, GOOD_ORDER)])
def test_what_is_called_fitting_fits_by_jsonschema_and_what_fits_is_left_alone(schema: dict[str, Any], good: Any) -> None:
    dice = random.Random(4)
    check = jsonschema.Draft202012Validator(schema)
    assert fit(good, schema).notes == () and fit(good, schema).value == good
    fitting = 0
    for _ in range(1500):
        value = good
        for _ in range(dice.randint(1, 3)):
            value = mutated(value, dice)
        fitted = fit(value, schema)
        if fitted.misfits:
            assert not check.is_valid(value) or any(m.kind == "extra-field" for m in fitted.misfits), (value, fitted)
        else:
            fitting += 1
            assert check.is_valid(fitted.value), (value, fitted)
        if check.is_valid(value) and not any("dropped" in note or "written" in note for note in fitted.notes):
            assert fitted.value == value
    assert 300 < fitting < 1400


def test_unions_take_the_branch_that_loses_nothing() -> None:
    pair = {
        "anyOf": [
            {"type": "object", "properties": {"a": INTEGER}},
            {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}},
        ]
    }
    assert fit({"a": 1, "b": "2"}, pair).value == {"a": 1, "b": 2}
    tagged = {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": INTEGER}, "required": ["kind", "lives"]},
            {
                "type": "object",
                "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}},
                "required": ["kind", "name"],
            },
        ]
    }
    assert fit({"kind": "cat", "lives": "9"}, tagged).value == {"kind": "cat", "lives": 9}
    (misfit,) = fit({"kind": "dog"}, tagged).misfits
    assert (misfit.kind, misfit.field) == ("missing", "name")


def test_schemas_that_go_in_a_circle_or_nowhere_end() -> None:
    circle = {"$ref": "#/$defs/A", "$defs": {"A": {"allOf": [{"$ref": "#/$defs/A"}]}}}
    assert fit(1, circle).misfits
    loop = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}
    assert fit(1, loop).value == 1
    assert fit(1, {"$ref": "http://x/y"}).value == 1
    tree = {
        "$ref": "#/$defs/T",
        "$defs": {"T": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/T"}}}}},
    }
    assert "an object with kids" in describe(tree)
    deep: Any = {}
    for _ in range(200):
        deep = {"kids": [deep]}
    assert fit(deep, tree).misfits
