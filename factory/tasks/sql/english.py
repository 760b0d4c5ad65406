"""A sampled query in plain English: stiff, but it says exactly what the query asks.

Does: describe a sketch, with several wordings of each construct so that a student does not learn one of them by heart.
Does not: sound natural; a teacher rephrases (`factory.phrase`), or the wording is used as it is (`--teacher templates`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from factory.tasks.sql.schema import Schema
from factory.tasks.sql.sketch import Filter, Item, Sketch

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

LEADS = ("What is", "Give", "Show", "Find", "Tell me", "I need", "Return")
LISTS = ("List", "Give", "Show", "Find", "What is", "Return", "Tell me")
COUNTS = ("How many {rows} are there{where}?", "Count the {rows}{where}.", "What is the number of {rows}{where}?")
WORDS: dict[str, tuple[str, ...]] = {
    "=": ("is", "equals", "is exactly"),
    "!=": ("is not", "is different from"),
    ">": ("is greater than", "is more than", "is above", "is over"),
    "<": ("is less than", "is below", "is under", "is smaller than"),
    ">=": ("is at least", "is no less than"),
    "<=": ("is at most", "is no more than"),
    "contains": ("contains", "includes the text"),
    "begins": ("begins with", "starts with"),
    "between": ("is between", "lies between"),
    "missing": ("is missing", "is not known"),
}
AGGREGATES: dict[str, tuple[str, ...]] = {
    "COUNT": ("number of {}", "count of {}"),
    "COUNT DISTINCT": ("number of different {}", "number of distinct {}"),
    "SUM": ("total {}", "sum of {}"),
    "AVG": ("average {}", "mean {}"),
    "MIN": ("lowest {}", "smallest {}", "minimum {}"),
    "MAX": ("highest {}", "largest {}", "maximum {}"),
}
HIGH, LOW = ("highest", "largest", "greatest"), ("lowest", "smallest", "least")
COMPARISONS = {">": "more than", ">=": "at least", "<": "fewer than", "=": "exactly"}


def words(name: str) -> str:
    """An identifier as words: `stadiumName`, `stadium_name` -> `stadium name`; a WikiSQL header stays as it is."""
    return " ".join(_CAMEL.sub(" ", name).replace("_", " ").split()).lower() or name


def describe(schema: Schema, sketch: Sketch, seed: int = 0) -> str:
    """One sentence; the same seed chooses the same wording."""
    return _Describer(schema, random.Random(seed)).sentence(sketch)


class _Describer:
    def __init__(self, schema: Schema, rng: random.Random) -> None:
        self.schema, self.rng = schema, rng

    def sentence(self, sketch: Sketch) -> str:
        if sketch.second is not None:
            word, other = sketch.second
            both = {"INTERSECT": "and also", "UNION": "or", "EXCEPT": "but not"}[word]
            asked = self.asked(sketch.items, sketch)
            first, second = self.rows(sketch), self.rows(other)
            return self.end(f"{self.pick(LISTS)} the {asked} of {first}, {both} of {second}")
        if sketch.group is not None:
            return self.grouped(sketch)
        only = sketch.items[0]
        if len(sketch.items) == 1 and only.column is None:
            rows, where = self.noun(sketch.tables[0]), self.where(sketch)
            return self.pick(COUNTS).format(rows=rows, where=where)
        asked = self.asked(sketch.items, sketch)
        if sketch.order is not None and sketch.limit is not None:
            return self.superlative(sketch, asked)
        different = "different " if sketch.distinct else ""
        if only.aggregate:
            return self.end(f"{self.pick(LEADS)} the {asked} of {self.rows(sketch)}")
        ending = "" if sketch.order is None else f", ordered by {self.column(sketch.order.column)}"
        ending += " from high to low" if sketch.order is not None and sketch.descending else ""
        return self.end(f"{self.pick(LISTS)} the {different}{asked} of {self.rows(sketch)}{ending}")

    def superlative(self, sketch: Sketch, asked: str) -> str:
        assert sketch.order is not None
        most = self.pick(HIGH if sketch.descending else LOW)
        by = self.column(sketch.order.column)
        count = "" if sketch.limit == 1 else f"{sketch.limit} "
        noun = self.noun(sketch.tables[0], one=sketch.limit == 1)
        return self.end(f"{self.pick(LISTS)} the {asked} of the {count}{noun}{self.where(sketch)} with the {most} {by}")

    def grouped(self, sketch: Sketch) -> str:
        assert sketch.group is not None
        key, rows = self.column(sketch.group), self.noun(sketch.tables[-1])
        about = f"{rows}{self.where(sketch)}"
        others = [item for item in sketch.items if item.column != sketch.group]
        if sketch.having is not None:
            item, operator, value = sketch.having
            if item.column is None:
                return self.end(f"{self.pick(LISTS)} each {key} that has {COMPARISONS[operator]} {value} {about}")
            measure = self.item(item)
            return self.end(
                f"{self.pick(LISTS)} each {key} for which the {measure} of {about} {self.pick(WORDS[operator])} {value}"
            )
        if sketch.order is not None:
            most = "most" if sketch.descending else "fewest"
            if sketch.order.column is None:
                return self.end(f"{self.pick(('Which', 'What'))} {key} has the {most} {about}", question=True)
            measure = f"{self.pick(HIGH if sketch.descending else LOW)} {self.item(sketch.order)}"
            return self.end(f"{self.pick(('Which', 'What'))} {key} has the {measure} of {about}", question=True)
        measures = " and the ".join(
            "number of " + about if item.column is None else f"{self.item(item)} of {about}" for item in others
        )
        return self.end(self.pick((f"For each {key}, give the {measures}", f"Show every {key} and the {measures}")))

    # -- parts ---------------------------------------------------------------------------------------------------------
    def pick(self, choices: Sequence[str]) -> str:
        return self.rng.choice(choices)

    @staticmethod
    def end(text: str, question: bool = False) -> str:
        text = " ".join(text.split())
        return text + ("?" if question or text.startswith(("What", "Which", "How")) else ".")

    def noun(self, table: int, one: bool = False) -> str:
        if self.schema.single:
            return "row" if one else "rows"
        name = words(self.schema.tables[table].name)
        return f"{name} entry" if one else f"{name} entries"

    def column(self, column: int | None) -> str:
        assert column is not None
        name = self.schema.columns[column][1].name
        return name if self.schema.single else words(name)

    def item(self, item: Item) -> str:
        return (
            self.pick(AGGREGATES[item.aggregate]).format(self.column(item.column)) if item.aggregate else self.column(item.column)
        )

    def asked(self, items: Sequence[Item], sketch: Sketch) -> str:
        parts = [self.item(item) if item.column is not None else "number of " + self.noun(sketch.tables[0]) for item in items]
        return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]

    def rows(self, sketch: Sketch) -> str:
        where = self.where(sketch)
        return (self.noun(sketch.tables[0]) if where else "all " + self.noun(sketch.tables[0])) + where

    def where(self, sketch: Sketch) -> str:
        """` whose a is 1 and whose b is over 2`; tables joined to the first: ` that have b entries whose …`."""
        base = sketch.tables[0]
        own = [self.filter(f) for f in sketch.filters if self.table_of(f.column) == base]
        text = f" {sketch.joined.lower()}".join(f" {part}" for part in own)
        for table in sketch.tables[1:] if sketch.group is None else ():
            parts = [self.filter(f) for f in sketch.filters if self.table_of(f.column) == table]
            text += (" and" if text else "") + f" that have {self.noun(table)}"
            text += f" {sketch.joined.lower()}".join(f" {part}" for part in parts)
        if sketch.group is not None and len(sketch.tables) > 1:
            parts = [self.filter(f) for f in sketch.filters if self.table_of(f.column) != base]
            text += f" {sketch.joined.lower()}".join(f" {part}" for part in parts)
        return text

    def table_of(self, column: int) -> int:
        at = 0
        for t, table in enumerate(self.schema.tables):
            at += len(table.columns)
            if column < at:
                return t
        raise IndexError(column)

    def filter(self, f: Filter) -> str:
        own = self.column(f.column)
        if f.query is None:
            high = f" and {f.high}" if f.operator == "between" else ""
            value = f" {f.value}{high}" if f.operator != "missing" else ""
            return f"whose {own} {self.pick(WORDS[f.operator])}{value}"
        inner = f.query
        only = inner.items[0]
        if only.aggregate:
            about = f" of {self.rows(inner)}" if inner.filters or inner.tables else ""
            return f"whose {own} {self.pick(WORDS[f.operator])} the {self.item(only)}{about}"
        no = "is not" if f.operator == "not in" else "is"
        return f"whose {own} {no} the {self.column(only.column)} of any {self.rows(inner).removeprefix('all ')}"
