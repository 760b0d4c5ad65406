"""Make queries about a database from its schema and the values really stored in it, for `--db` without questions.

Does: fill query templates (filters, aggregates, groups, order, joins along foreign keys, sub-queries, set operations) with
stored values, run each, keep those whose result is neither empty nor everything, balance the templates.
Does not: phrase them naturally (`factory.phrase`) or label them; a teacher answers each question independently afterwards.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from agents.sandbox import ExecError
from factory.tasks.sql import english
from factory.tasks.sql.database import Database, quote
from factory.tasks.sql.dialect import canonicalise
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.sketch import Aggregate, Filter, Item, Link, Operator, SetWord, Sketch, name, without_filters, write
from factory.tasks.task import AnswerError

TRIES = 40
"""Attempts per wanted query before the sampler gives up on getting more."""
LONGEST_VALUE = 40
VALUES = 300
"""Stored values of a column to choose from."""
MOST_ROWS = 100
"""Rows a listing may return; a question about more is rarely asked."""


@dataclass(frozen=True)
class SampledQuery:
    """Canonical SQL, what it asks in stiff English, the template it came from, and the texts a question must name."""

    sql: str
    english: str
    template: str
    values: tuple[str, ...] = ()


def sample_queries(database: Database, n: int, seed: int = 0) -> list[SampledQuery]:
    """Up to n different queries, templates in turn (one that fits the database poorly gives fewer); a seed fixes them.

    Without rows every query that compiles is kept and literals come from the schema's sample values.
    """
    return _Sampler(database, random.Random(seed)).sample(n)


_LONG_FRACTION = re.compile(r"^-?\d+\.\d{5,}")


class _Skip(Exception):
    """This template does not fit here."""


class _Sampler:
    def __init__(self, database: Database, rng: random.Random) -> None:
        self.database, self.rng = database, rng
        self.schema: Schema = database.schema
        self.starts = [sum(len(t.columns) for t in self.schema.tables[:k]) for k in range(len(self.schema.tables))]
        self.stored: dict[int, list[str]] = {}
        self.keys = self.key_columns()

    def sample(self, n: int) -> list[SampledQuery]:
        templates = self.templates()
        counts = dict.fromkeys(templates, 0)
        tried = dict.fromkeys(templates, 0)
        out: dict[str, SampledQuery] = {}
        for _ in range(TRIES * n):
            if len(out) >= n:
                break
            # The template with the fewest queries so far, counting what failed a little.
            template = min(templates, key=lambda t: (counts[t] + tried[t] / TRIES, self.rng.random()))
            tried[template] += 1
            try:
                sketch = templates[template]()
                sql = canonicalise(self.schema, write(self.schema, sketch))
            except (_Skip, AnswerError, ExecError):
                continue
            if sql in out or not self.worth_asking(sketch, sql):
                continue
            counts[template] += 1
            text = english.describe(self.schema, sketch, self.rng.randrange(1 << 30))
            out[sql] = SampledQuery(sql, text, template, sketch.values())
        return list(out.values())

    def templates(self) -> dict[str, Callable[[], Sketch]]:
        single: dict[str, Callable[[], Sketch]] = {
            "filter": lambda: self.listing("filter", 1),
            "filter-two": lambda: self.listing("filter-two", 2),
            "aggregate": lambda: self.aggregated("aggregate"),
        }
        if self.schema.single:
            return single
        return {
            **single,
            "filter-or": lambda: self.listing("filter-or", 2, "OR"),
            "count": lambda: Sketch("count", (Item(None),), (t := self.table(),), filters=(self.filter(t),)),
            "count-distinct": self.count_distinct,
            "superlative": self.superlative,
            "group-count": self.group_count,
            "group-having": self.group_having,
            "group-most": self.group_most,
            "join": self.join,
            "join-most": self.join_most,
            "above-average": self.above_average,
            "extreme": self.extreme,
            "without": lambda: self.membership("without", "not in"),
            "with": lambda: self.membership("with", "in"),
            "set": self.set_operation,
        }

    # -- is it worth asking? -------------------------------------------------------------------------------------------
    def worth_asking(self, sketch: Sketch, sql: str) -> bool:
        try:
            rows = self.database.execute(sql).rows
            if not self.database.has_rows:
                return True
            if not rows or len(rows) > MOST_ROWS or all(cell is None for row in rows for cell in row):
                return False
            if len(rows) == 1 and sketch.items[0].aggregate in ("", "COUNT", "COUNT DISTINCT") and rows[0] in ((0,), (None,)):
                return False
            if self.tied(sketch) or self.of_one_row(sketch):
                return False
            if sketch.filters or sketch.having is not None or sketch.second is not None:
                everything = self.database.execute(write(self.schema, without_filters(sketch))).rows
                return sorted(map(repr, everything)) != sorted(map(repr, rows))
            return True
        except ExecError:
            return False

    def tied(self, sketch: Sketch) -> bool:
        """Whether LIMIT cuts between rows that the order does not tell apart."""
        if sketch.order is None or sketch.limit is None:
            return False
        longer = replace(sketch, items=(sketch.order,), limit=sketch.limit + 1)
        rows = self.database.execute(write(self.schema, longer)).rows
        return rows[0][0] is None or (len(rows) > sketch.limit and rows[-1] == rows[-2])

    def of_one_row(self, sketch: Sketch) -> bool:
        """Whether an aggregate is taken of a single row."""
        item = sketch.items[0]
        if item.aggregate not in ("SUM", "AVG", "MIN", "MAX") or sketch.group is not None:
            return False
        counted = replace(sketch, items=(Item(item.column, "COUNT"),))
        return self.database.execute(write(self.schema, counted)).rows in (((0,),), ((1,),))

    # -- choices -------------------------------------------------------------------------------------------------------
    def key_columns(self) -> set[int]:
        """Columns that only identify: keys and whatever ends in id."""
        out = {i for i, (_, c) in enumerate(self.schema.columns) if c.primary_key and c.type == "number"}
        for key in self.schema.foreign_keys:
            for table, column in ((key.table, key.column), (key.ref_table, key.ref_column)):
                at = self.find(table, column)
                if at is not None and self.schema.columns[at][1].type == "number":
                    out.add(at)
        out |= {i for i, (_, c) in enumerate(self.schema.columns) if english.words(c.name).split()[-1:] == ["id"]}
        return set() if self.schema.single else out

    def find(self, table: str, column: str) -> int | None:
        for i, (owner, own) in enumerate(self.schema.columns):
            if owner.name.lower() == table.lower() and own.name.lower() == column.lower():
                return i
        return None

    def columns(self, table: int) -> list[int]:
        start = self.starts[table]
        return list(range(start, start + len(self.schema.tables[table].columns)))

    def table(self) -> int:
        return self.rng.choice([t for t, table in enumerate(self.schema.tables) if table.columns])

    def column(self, table: int, kind: str = "", exclude: tuple[int, ...] = ()) -> int:
        """A column to ask about, of the kind ("number", "text") if one is given; identifiers only when nothing else is left."""
        fits = [c for c in self.columns(table) if c not in exclude and (not kind or self.schema.columns[c][1].type == kind)]
        better = [c for c in fits if c not in self.keys]
        if not better and (kind or not fits):
            raise _Skip
        return self.rng.choice(better or fits)

    def values(self, column: int) -> list[str]:
        if column not in self.stored:
            table, own = self.schema.columns[column]
            found: list[str] = []
            if self.database.has_rows and not self.schema.single:
                full = name(self.schema, column)
                sql = f"SELECT DISTINCT {full} FROM {quote(table.name)} WHERE {full} IS NOT NULL LIMIT {VALUES}"
                try:
                    found = [str(row[0]) for row in self.database.execute(sql).rows]
                except ExecError:
                    found = []
            found = found or list(own.values)
            self.stored[column] = [
                v
                for v in found
                if v.strip() and len(v) <= LONGEST_VALUE and "\n" not in v and "%" not in v and not _LONG_FRACTION.search(v)
            ]
        return self.stored[column]

    def filter(self, table: int, exclude: tuple[int, ...] = ()) -> Filter:
        column = self.column(table, exclude=exclude)
        values = self.values(column)
        if not values:
            raise _Skip
        value = self.rng.choice(values)
        if self.schema.columns[column][1].type == "number":
            if not self.schema.single and len(values) > 2 and self.rng.random() < 0.2:
                low, high = sorted(self.rng.sample(values, 2), key=_as_float)
                return Filter(column, "between", low, high)
            operators: list[Operator] = ["=", ">", "<"] if self.schema.single else ["=", ">", "<", ">=", "<=", "!="]
            return Filter(column, self.rng.choice(operators), value)
        draw = self.rng.random()
        if self.schema.single or draw < 0.8:
            return Filter(column, "=", value)
        if draw < 0.87:
            return Filter(column, "!=", value)
        if draw < 0.94 and " " in value:
            return Filter(column, "contains", self.rng.choice(value.split()))
        return Filter(column, "begins", value[:1]) if value[:1].isalpha() else Filter(column, "=", value)

    @cached_property
    def all_links(self) -> list[Link]:
        """Joins along foreign keys; where none is declared, between columns of one name that mostly hold the same values."""
        pairs = [(self.find(k.table, k.column), self.find(k.ref_table, k.ref_column)) for k in self.schema.foreign_keys]
        known = [(a, b) for a, b in pairs if a is not None and b is not None and self.table_of(a) != self.table_of(b)]
        for b, (table, column) in enumerate(self.schema.columns) if not known else ():
            # The referred column comes first in its table, as keys do.
            if column is not table.columns[0]:
                continue
            for a, (other, own) in enumerate(self.schema.columns):
                if other is table or own.name.lower() != column.name.lower() or own.type != column.type:
                    continue
                mine, theirs = set(self.values(a)), set(self.values(b))
                if mine and len(mine & theirs) * 2 > len(mine):
                    known.append((a, b))
        return [Link(a, b) for a, b in known] + [Link(b, a) for a, b in known]

    def link(self) -> Link:
        if not self.all_links:
            raise _Skip
        return self.rng.choice(self.all_links)

    def table_of(self, column: int) -> int:
        return max(t for t, start in enumerate(self.starts) if start <= column and self.schema.tables[t].columns)

    # -- templates -----------------------------------------------------------------------------------------------------
    def listing(self, template: str, filters: int, joined: str = "AND") -> Sketch:
        table = self.table()
        first = self.filter(table)
        chosen = [first]
        if filters == 2:
            chosen.append(self.filter(table, () if joined == "OR" else (first.column,)))
        asked = self.column(table, exclude=tuple(f.column for f in chosen))
        items = [Item(asked)]
        if not self.schema.single and self.rng.random() < 0.25:
            items.append(Item(self.column(table, exclude=(asked,))))
        return Sketch(template, tuple(items), (table,), filters=tuple(chosen), joined="OR" if joined == "OR" else "AND")

    def aggregated(self, template: str) -> Sketch:
        table = self.table()
        filters = (self.filter(table),) if self.schema.single or self.rng.random() < 0.7 else ()
        used = tuple(f.column for f in filters)
        if self.schema.single and self.rng.random() < 0.4:
            return Sketch(template, (Item(self.column(table, exclude=used), "COUNT"),), (table,), filters=filters)
        aggregates: tuple[Aggregate, ...] = ("MAX", "MIN", "AVG", "SUM")
        column = self.column(table, "number", used)
        return Sketch(template, (Item(column, self.rng.choice(aggregates)),), (table,), filters=filters)

    def count_distinct(self) -> Sketch:
        table = self.table()
        filters = (self.filter(table),) if self.rng.random() < 0.5 else ()
        item = Item(self.column(table, exclude=tuple(f.column for f in filters)), "COUNT DISTINCT")
        return Sketch("count-distinct", (item,), (table,), filters=filters)

    def superlative(self) -> Sketch:
        table = self.table()
        by = self.column(table, "number")
        filters = (self.filter(table, (by,)),) if self.rng.random() < 0.3 else ()
        asked = self.column(table, exclude=(by, *(f.column for f in filters)))
        limit = 1 if self.rng.random() < 0.7 else self.rng.randint(2, 5)
        most = self.rng.random() < 0.6
        return Sketch("superlative", (Item(asked),), (table,), filters=filters, order=Item(by), descending=most, limit=limit)

    def group_key(self, table: int) -> int:
        key = self.column(table, "text")
        if self.database.has_rows and len(self.values(key)) < 2:
            raise _Skip
        return key

    def group_count(self) -> Sketch:
        table = self.table()
        key = self.group_key(table)
        measure = (
            Item(None) if self.rng.random() < 0.6 else Item(self.column(table, "number"), self.rng.choice(("AVG", "MAX", "SUM")))
        )
        return Sketch("group-count", (Item(key), measure), (table,), group=key)

    def group_having(self) -> Sketch:
        table = self.table()
        key = self.group_key(table)
        sizes = [1, 2, 3]
        if self.database.has_rows:
            every = Sketch("", (Item(None),), (table,), group=key)
            sizes = [int(str(row[0])) for row in self.database.execute(write(self.schema, every)).rows]
        operator: Operator = self.rng.choice((">", ">=", "="))
        having: tuple[Item, Operator, str] = (Item(None), operator, str(self.rng.choice(sizes)))
        return Sketch("group-having", (Item(key),), (table,), group=key, having=having)

    def group_most(self) -> Sketch:
        table = self.table()
        key = self.group_key(table)
        return Sketch(
            "group-most", (Item(key),), (table,), group=key, order=Item(None), descending=self.rng.random() < 0.8, limit=1
        )

    def join(self) -> Sketch:
        link = self.link()
        left, right = self.table_of(link.left), self.table_of(link.right)
        filters = [self.filter(right, (link.right,))]
        if self.rng.random() < 0.2:
            filters.append(self.filter(left, (link.left,)))
        asked = self.column(left, exclude=tuple(f.column for f in filters))
        return Sketch("join", (Item(asked),), (left, right), (link,), tuple(filters), distinct=self.rng.random() < 0.5)

    def join_most(self) -> Sketch:
        link = self.link()
        left, right = self.table_of(link.left), self.table_of(link.right)
        key = self.column(left, "text")
        if self.rng.random() < 0.5:
            return Sketch("join-most", (Item(key), Item(None)), (left, right), (link,), group=key)
        return Sketch("join-most", (Item(key),), (left, right), (link,), group=key, order=Item(None), descending=True, limit=1)

    def above_average(self) -> Sketch:
        table = self.table()
        column = self.column(table, "number")
        inner = Sketch("", (Item(column, "AVG"),), (table,))
        operator: Operator = self.rng.choice((">", "<"))
        asked = Item(None) if self.rng.random() < 0.3 else Item(self.column(table, exclude=(column,)))
        return Sketch("above-average", (asked,), (table,), filters=(Filter(column, operator, query=inner),))

    def extreme(self) -> Sketch:
        table = self.table()
        column = self.column(table, "number")
        filters = (self.filter(table, (column,)),) if self.rng.random() < 0.5 else ()
        inner = Sketch("", (Item(column, self.rng.choice(("MAX", "MIN"))),), (table,), filters=filters)
        asked = Item(self.column(table, exclude=(column, *(f.column for f in filters))))
        return Sketch("extreme", (asked,), (table,), filters=(Filter(column, "=", query=inner), *filters))

    def membership(self, template: str, operator: Operator) -> Sketch:
        link = self.link()
        left, right = self.table_of(link.left), self.table_of(link.right)
        filters = (self.filter(right, (link.right,)),) if operator == "in" or self.rng.random() < 0.5 else ()
        inner = Sketch("", (Item(link.right),), (right,), filters=filters)
        asked = self.column(left, exclude=(link.left,))
        return Sketch(template, (Item(asked),), (left,), filters=(Filter(link.left, operator, query=inner),))

    def set_operation(self) -> Sketch:
        table = self.table()
        first = self.filter(table)
        second = self.filter(table)
        if first == second:
            raise _Skip
        asked = Item(self.column(table, exclude=(first.column, second.column)))
        word: SetWord = self.rng.choice(("INTERSECT", "UNION", "EXCEPT"))
        other = Sketch("", (asked,), (table,), filters=(second,))
        return Sketch("set", (asked,), (table,), filters=(first,), second=(word, other))


def _as_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
