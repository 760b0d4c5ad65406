"""WikiSQL's form: SELECT [agg](column) FROM one table WHERE column op value AND …, as data, as canonical SQL, as compact text.

Does: write and read the canonical SQL of the form, and its compact spelling. Does not: anything with a second table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from factory.tasks.sql.schema import Column, Schema
from factory.tasks.sql.spaced import chunks, find, find_inside, number_literal, numbers, same_number, spaced
from factory.tasks.task import AnswerError

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
"""In WikiSQL's own numbering."""
OPERATORS = ("=", ">", "<")
AGGREGATE_TOKENS = ("<sel>", "<max>", "<min>", "<count>", "<sum>", "<avg>")
OPERATOR_TOKENS = ("<eq>", "<gt>", "<lt>")
MAX_CONDITIONS = 4

_NAME = r'"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|\w+'
_LITERAL = r"'(?:[^']|'')*'|[-+]?\d+(?:\.\d+)?"
_HEAD = re.compile(
    rf"\s*SELECT\s+(?:(?P<agg>MAX|MIN|COUNT|SUM|AVG)\s*\(\s*(?P<inner>{_NAME})\s*\)|(?P<col>{_NAME}))"
    rf"\s+FROM\s+(?P<table>{_NAME})\s*(?P<where>WHERE\s+)?",
    re.IGNORECASE,
)
_CONDITION = re.compile(rf"(?P<col>{_NAME})\s*(?P<op>=|>|<)\s*(?P<value>{_LITERAL})\s*(?P<more>AND\s+)?", re.IGNORECASE)
_COMPACT_HEAD = re.compile(r"\s*(<\w+>)\s*<c(\d+)>")
_COMPACT_CONDITION = re.compile(r"\s*<c(\d+)>\s*(<\w+>)(.*?)(?=\s*<c\d+>|\s*$)", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """`column` and `operator` are indices (schema column, OPERATORS); `value` is text without quotes."""

    column: int
    operator: int
    value: str


@dataclass(frozen=True)
class Single:
    """A WikiSQL logical form: `aggregate` indexes AGGREGATES, `column` the schema's columns."""

    aggregate: int
    column: int
    conditions: tuple[Condition, ...] = ()


def quote(name: str) -> str:
    """An identifier in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(column: Column, value: str) -> str:
    """The value as canonical SQL writes it for this column: a bare number for number columns, else a quoted text."""
    number = number_literal(value) if column.type == "number" else None
    return number if number is not None else "'" + value.replace("'", "''") + "'"


def single_sql(schema: Schema, query: Single) -> str:
    """Canonical SQL of the form: `SELECT MAX("Col") FROM "t" WHERE "A" = 'v' AND "B" > 3`."""
    columns = schema.tables[0].columns
    selected = quote(columns[query.column].name)
    if query.aggregate:
        selected = f"{AGGREGATES[query.aggregate]}({selected})"
    where = " AND ".join(
        f"{quote(columns[c.column].name)} {OPERATORS[c.operator]} {literal(columns[c.column], c.value)}" for c in query.conditions
    )
    return f"SELECT {selected} FROM {quote(schema.tables[0].name)}" + (f" WHERE {where}" if where else "")


def _unquote(name: str) -> str:
    if name[0] == '"':
        return name[1:-1].replace('""', '"')
    return name[1:-1] if name[0] in "`[" else name


def _index(schema: Schema, name: str) -> int:
    wanted = _unquote(name)
    for i, column in enumerate(schema.tables[0].columns):
        if column.name == wanted:
            return i
    for i, column in enumerate(schema.tables[0].columns):
        if column.name.lower() == wanted.lower():
            return i
    raise AnswerError("unknown-column", f"no column {wanted!r} in table {schema.tables[0].name!r}")


def parse_single(schema: Schema, sql: str) -> Single:
    """SQL of the form -> data. Raises AnswerError("not-single-form" | "unknown-column" | "unknown-table")."""
    sql = sql.strip().removesuffix(";").rstrip()
    head = _HEAD.match(sql)
    if head is None:
        raise AnswerError("not-single-form", f"not SELECT [aggregate](column) FROM table …: {sql[:120]!r}")
    if _unquote(head["table"]).lower() != schema.tables[0].name.lower():
        raise AnswerError("unknown-table", f"no table {_unquote(head['table'])!r}; there is {schema.tables[0].name!r}")
    aggregate = AGGREGATES.index((head["agg"] or "").upper())
    column = _index(schema, head["inner"] or head["col"])
    conditions, at, more = [], head.end(), bool(head["where"])
    while more:
        found = _CONDITION.match(sql, at)
        if found is None:
            raise AnswerError("not-single-form", f"not a condition: {sql[at : at + 80]!r}")
        value = found["value"]
        value = value[1:-1].replace("''", "'") if value[0] == "'" else value
        conditions.append(Condition(_index(schema, found["col"]), OPERATORS.index(found["op"]), value))
        at, more = found.end(), bool(found["more"])
    if at != len(sql):
        raise AnswerError("not-single-form", f"more than conditions joined by AND: {sql[at : at + 80]!r}")
    return Single(aggregate, column, tuple(conditions))


def spell(question: str, value: str) -> tuple[str, int]:
    """The value as the question spells it, and where it stands there (-1: not in the question, the value itself)."""
    parts = chunks(question)
    place = find(parts, value)
    if place is None and (wanted := number_literal(value)) is not None:
        place = next(((a, b) for number, a, b in numbers(question) if same_number(number, wanted)), None)
    if place is None:
        place = find_inside(parts, value)
    return (value, -1) if place is None else (question[place[0] : place[1]], place[0])


def to_compact(question: str, query: Single, rank: Sequence[int], sort_conditions: bool = True) -> str:
    """`<max><c3><c5><eq> butler cc ( ks )<c4><gt> 3`; `rank[i]` is the number column i has in the prompt.

    Conditions follow the question (their values' places), so that equal meanings have one spelling to learn.
    """
    written = []
    for condition in query.conditions:
        text, place = spell(question, condition.value)
        body = spaced(text) or " " + text.lower()
        written.append((place, f"<c{rank[condition.column]}>{OPERATOR_TOKENS[condition.operator]}{body}"))
    if sort_conditions:
        written.sort(key=lambda item: item[0])
    return f"{AGGREGATE_TOKENS[query.aggregate]}<c{rank[query.column]}>" + "".join(text for _, text in written)


def from_compact(question: str, completion: str, order: Sequence[int]) -> Single:
    """The reverse; `order[k]` is the schema column shown as `<ck>`. Raises AnswerError("not-parsed" | "unknown-column")."""
    head = _COMPACT_HEAD.match(completion)
    if head is None or head[1] not in AGGREGATE_TOKENS:
        raise AnswerError("not-parsed", f"no aggregate and column at the start: {completion[:80]!r}")

    def column(number: str) -> int:
        if int(number) >= len(order):
            raise AnswerError("unknown-column", f"<c{number}> is not in the prompt ({len(order)} columns)")
        return order[int(number)]

    selected, conditions, at = column(head[2]), [], head.end()
    while at < len(completion.rstrip()):
        found = _COMPACT_CONDITION.match(completion, at)
        if found is None or found[2] not in OPERATOR_TOKENS or not found[3].strip():
            raise AnswerError("not-parsed", f"not a condition: {completion[at : at + 80]!r}")
        value, _ = spell(question, found[3].strip())
        conditions.append(Condition(column(found[1]), OPERATOR_TOKENS.index(found[2]), value))
        at = found.end()
    return Single(AGGREGATE_TOKENS.index(head[1]), selected, tuple(conditions))
