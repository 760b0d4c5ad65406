"""Words that name arguments, choices and functions."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from factory.tasks import get_task
from factory.tasks.task import Example
from factory.tasks.tools import calls
from factory.tasks.tools.functions import Toolset, read_tools
from factory.tasks.tools.mentions import argument_names, function_names, mentions, stem
from tests.factory.tasks.tools.worlds import TODAY

SPECS: list[dict[str, Any]] = [
    {"name": "SearchHotel", "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string"}, "star_rating": {"type": "integer"}, "number_of_rooms": {"type": "integer"},
        "has_wifi": {"type": "boolean"}, "departure_date": {"type": "string", "format": "date"},
        "kind": {"type": "string", "enum": ["Family", "Place of Worship", "Full-size"]}}}},
    {"name": "ReserveHotel", "parameters": {"type": "object", "properties": {"hotel_name": {"type": "string"}}}},
    {"name": "find_movies", "parameters": {"type": "object", "properties": {}}},
]  # fmt: skip
FUNCTIONS = read_tools(SPECS, "specs")
ARGUMENTS = {argument.name: argument for function in FUNCTIONS for argument in function.arguments}
NAMES = argument_names(tuple(ARGUMENTS.values()))


def named(text: str, *taken: str) -> list[tuple[str, str]]:
    """(words, argument) of every mention; `taken` are spans of values."""
    places = tuple((text.index(part), text.index(part) + len(part)) for part in taken)
    return [(text[m.start : m.end], list(ARGUMENTS)[m.number]) for m in mentions(text, NAMES, places)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a two star place", [("star", "star_rating"), ("place", "kind")]),
        ("three rooms with wi-fi", [("rooms", "number_of_rooms"), ("wi-fi", "has_wifi")]),
        ("Which city? One with Wifi", [("city", "city"), ("Wifi", "has_wifi")]),
        ("the Cities", [("Cities", "city")]),
        ("wi-fi? a star city, wi-fi", [("wi-fi", "has_wifi"), ("star", "star_rating"), ("city", "city"), ("wi-fi", "has_wifi")]),
        ("we depart soon", [("depart", "departure_date")]),
        ("when do you start", []),
        ("a place of worship, full-size", [("place of worship", "kind"), ("full-size", "kind")]),
        ("what is the number of it", []),
        ("", []),
    ],
)
def test_words_that_name_an_argument_or_a_choice(text: str, expected: list[tuple[str, str]]) -> None:
    assert named(text) == expected


def test_a_value_names_no_argument_but_may_be_a_choice() -> None:
    assert named("the Star City Hotel", "Star City Hotel") == []
    assert named("a Family ticket", "Family") == [("Family", "kind")]


def test_the_name_that_is_covered_most_wins_and_two_may_tie() -> None:
    functions = function_names(FUNCTIONS)
    assert [m.number for m in mentions("reserve a hotel", functions)] == [1, 0, 1]
    assert [m.number for m in mentions("reserve hotel", functions)] == [1]
    assert mentions("find me something", functions) == ()
    assert [m.number for m in mentions("any movie", functions)] == [2]


@pytest.mark.parametrize(
    ("a", "b"), [("Movies", "movie"), ("leaving", "leave"), ("cities", "city"), ("Rated", "rate"), ("address", "addresses")]
)
def test_forms_of_a_word_have_one_stem(a: str, b: str) -> None:
    assert stem(a) == stem(b)


def test_prompts_mark_them_before_the_words_and_values_still_come_back() -> None:
    toolset = Toolset("trips", FUNCTIONS, TODAY)
    reference = calls.write([calls.Call("SearchHotel", {"city": "San jose", "star_rating": 2, "kind": "Full-size"})])
    example = Example("q", "A full-size hotel of 2 stars in San jose", toolset, "trips", reference, "train", {})
    task: Any = get_task("tools")
    said = task.messages(example, "compact")[0].content.split("<q><usr>")[1]
    number = {argument.name: task.view(example).argument_number[argument.key] for argument in ARGUMENTS.values()}
    kind, stars, hotel = number["kind"], number["star_rating"], number["hotel_name"]
    assert said == f" a<c{kind}> full - size<t0><t1><c{hotel}> hotel of<v0> 2<c{stars}> stars in<v1> san jose"
    completion = task.encode(example, reference, "compact")
    assert "<v1>" in completion and "<v0>" in completion and "<enum> full - size" in completion
    assert json.loads(task.decode(example, completion, "compact")) == json.loads(reference)


def test_any_default_and_a_long_text_will_do() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "tags": {"type": "array", "default": []},
                                               "extra": {"type": "object", "default": {"a": [1]}}}}  # fmt: skip
    toolset = Toolset("t", read_tools([{"name": "find", "parameters": schema}], "specs"), TODAY)
    task: Any = get_task("tools")
    example = Example("q", "x" * 20_000 + " which city", toolset, "t", "[]", "train", {})
    began = time.process_time()
    assert task.messages(example, "compact")[0].content.endswith("which<c0> city")
    assert time.process_time() - began < 5, "letters without an end are read once"
    assert task.variant(example, "[]", "plain", random.Random(1)).completion == "[]"
