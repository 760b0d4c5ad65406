"""A query as its parts, before it is SQL or English: what the sampler makes and both writers read.

Does: define Sketch and its parts, write a sketch as SQL. Does not: choose queries (`sampler.py`) or describe them (`english.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from factory.tasks.sql.database import quote
from factory.tasks.sql.forms import literal as single_literal
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.spaced import number_literal

Aggregate = Literal["", "COUNT", "COUNT DISTINCT", "SUM", "AVG", "MIN", "MAX"]
Operator = Literal["=", "!=", ">", "<", ">=", "<=", "contains", "begins", "between", "missing", "in", "not in"]
Join = Literal["AND", "OR"]
SetWord = Literal["UNION", "INTERSECT", "EXCEPT"]


@dataclass(frozen=True)
class Item:
    """What is asked for: a column (global number), an aggregate of one, or COUNT of rows (column None)."""

    column: int | None
    aggregate: Aggregate = ""


@dataclass(frozen=True)
class Filter:
    """`column operator value`; `high` ends a between; `query` is the sub-query of in, not in and comparisons with one."""

    column: int
    operator: Operator
    value: str = ""
    high: str = ""
    query: Sketch | None = None


@dataclass(frozen=True)
class Link:
    """A join: the column of the table already there, the column of the table added."""

    left: int
    right: int


@dataclass(frozen=True)
class Sketch:
    """One SELECT over `tables` (the first, then one per link), perhaps combined with a second one."""

    template: str
    items: tuple[Item, ...]
    tables: tuple[int, ...]
    links: tuple[Link, ...] = ()
    filters: tuple[Filter, ...] = ()
    joined: Join = "AND"
    distinct: bool = False
    group: int | None = None
    having: tuple[Item, Operator, str] | None = None
    order: Item | None = None
    descending: bool = False
    limit: int | None = None
    second: tuple[SetWord, Sketch] | None = None

    def values(self) -> tuple[str, ...]:
        """The texts and numbers that a question about it must name."""
        out = [text for f in self.filters for text in (f.value, f.high) if text]
        out += [self.having[2]] if self.having is not None else []
        for f in self.filters:
            out += f.query.values() if f.query is not None else ()
        out += self.second[1].values() if self.second is not None else ()
        return tuple(dict.fromkeys(out))


def without_filters(sketch: Sketch) -> Sketch:
    """The same question about everything."""
    return replace(sketch, filters=(), having=None, second=None)


def write(schema: Schema, sketch: Sketch) -> str:
    """SQL; WikiSQL's form where the schema asks for it."""
    head = "SELECT " + ("DISTINCT " if sketch.distinct else "") + ", ".join(_item(schema, item) for item in sketch.items)
    text = f"{head} FROM {quote(schema.tables[sketch.tables[0]].name)}"
    for table, link in zip(sketch.tables[1:], sketch.links):
        text += f" JOIN {quote(schema.tables[table].name)} ON {name(schema, link.left)} = {name(schema, link.right)}"
    if sketch.filters:
        text += " WHERE " + f" {sketch.joined} ".join(_filter(schema, f) for f in sketch.filters)
    if sketch.group is not None:
        text += f" GROUP BY {name(schema, sketch.group)}"
    if sketch.having is not None:
        item, operator, value = sketch.having
        text += f" HAVING {_item(schema, item)} {operator} {value}"
    if sketch.order is not None:
        text += f" ORDER BY {_item(schema, sketch.order)}" + (" DESC" if sketch.descending else "")
    if sketch.limit is not None:
        text += f" LIMIT {sketch.limit}"
    if sketch.second is not None:
        text += f" {sketch.second[0]} {write(schema, sketch.second[1])}"
    return text


def name(schema: Schema, column: int) -> str:
    """A column in SQL."""
    table, own = schema.columns[column]
    return quote(own.name) if schema.single else f"{quote(table.name)}.{quote(own.name)}"


def _item(schema: Schema, item: Item) -> str:
    if item.column is None:
        return "COUNT(*)"
    own = name(schema, item.column)
    if item.aggregate == "COUNT DISTINCT":
        return f"COUNT(DISTINCT {own})"
    return f"{item.aggregate}({own})" if item.aggregate else own


def _filter(schema: Schema, f: Filter) -> str:
    own = name(schema, f.column)
    if f.operator == "missing":
        return f"{own} IS NULL"
    if f.query is not None:
        return f"{own} {f.operator.upper()} ({write(schema, f.query)})"
    if f.operator in ("contains", "begins"):
        inner = f.value.replace("'", "''")
        return f"{own} LIKE '{'%' if f.operator == 'contains' else ''}{inner}%'"
    if f.operator == "between":
        return f"{own} BETWEEN {_value(schema, f, f.value)} AND {_value(schema, f, f.high)}"
    return f"{own} {f.operator} {_value(schema, f, f.value)}"


def _value(schema: Schema, f: Filter, value: str) -> str:
    column = schema.columns[f.column][1]
    if schema.single:
        return single_literal(column, 0 if f.operator == "=" else 1, value)
    number = number_literal(value) if column.type == "number" else None
    return number if number is not None else "'" + value.replace("'", "''") + "'"
