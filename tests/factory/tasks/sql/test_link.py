"""Spans of a question that are stored values, and the columns they are stored in."""

from __future__ import annotations

import random

import pytest

from factory.tasks.sql import cells, wikisql
from factory.tasks.sql.database import Database
from factory.tasks.sql.link import PER_COLUMN, PER_QUESTION, Match, link
from factory.tasks.sql.reading import Fingerprint
from factory.tasks.sql.sources import BUNDLED

ROWS = [
    ["robinson r - 22", "new york", "1,234", "1", "w", "butler cc ( ks )"],
    ["the", "york", "-5", "1", "a", "x"],
    ["götzis , austria", "new york city", "37.3", "2", "l", "y (1990)"],
]


@pytest.fixture(scope="module")
def table() -> Database:
    return Database.from_rows("l", ["Name", "City", "Crowd", "Rank", "Result", "School"], ROWS)


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Who flew the Robinson R-22?", [(0, "Robinson R-22", "robinson r - 22")]),
        ("Who is from New York City?", [(1, "New York City", "new york city")]),
        ("New York or York?", [(1, "New York", "new york"), (1, "York", "york")]), ("What is the city?", []),
        ("crowd of 1234", [(2, "1234", "1,234")]),
        ("crowd of 1,234.", [(2, "1,234", "1,234")]), ("a crowd of -5", [(2, "-5", "-5")]),
        ("a crowd of 37.30", [(2, "37.30", "37.3")]), ("in 37", []),
        ("result of w", [(4, "w", "w")]), ("What's a result?", []),
        ("Who went to Butler CC (KS)?", [(5, "Butler CC (KS)", "butler cc ( ks )")]),
        ("who is in götzis, austria", [(0, "götzis, austria", "götzis , austria")]),
        ("Götzis Austria", [(0, "Götzis Austria", "götzis , austria")]),
        ("Gtzis Austria", [(0, "Gtzis Austria", "götzis , austria")]), ("school y (1990) ok", [(5, "y (1990)", "y (1990)")]),
        ("", []), ("km² of 5²?", []),
    ],
)  # fmt: skip
def test_spans_and_values(table: Database, question: str, found: list[tuple[int, str, str]]) -> None:
    assert list(link(table, question)) == [Match(*one) for one in found]


def test_common_numbers_do_not_flood() -> None:
    wide = Database.from_rows("n", [f"C{i}" for i in range(20)], [["1"] * 20, ["2"] * 20])
    found = link(wide, "What is C7 when C3 is 1 and C9 is 2?")
    assert {m.column for m in found} >= {3, 7, 9} and len(found) <= 8


def test_at_most_so_many_matches() -> None:
    names = [f"name{chr(97 + i)}" for i in range(20)]
    table = Database.from_rows("m", ["A", "B", "C", "D", "E"], [[n] * 5 for n in names])
    found = link(table, " ".join(names))
    assert len(found) == PER_QUESTION
    assert max(sum(m.column == c for m in found) for c in range(5)) <= PER_COLUMN


def test_gold_values_are_linked_to_their_columns() -> None:
    train, _ = wikisql.read(BUNDLED, "train", Fingerprint())
    wanted = linked = matches = 0
    chosen = random.Random(3).sample(train, 1500)
    for example in chosen:
        found = link(example.context, example.question)
        matches += len(found)
        assert all(match.span in example.question for match in found)
        for column, operator, value in example.extra["sql"]["conds"]:
            if operator == 0:
                wanted += 1
                linked += any(m.column == column and cells.key(m.span) == cells.key(value) for m in found)
    assert linked / wanted > 0.97 and matches / len(chosen) < 2.5
