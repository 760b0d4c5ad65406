"""The general form as a line of lexemes, each with one spelling in ordinary SQL and one in position tokens.

Does: write lexemes in both dialects; as `compact_reader.py` reads the same lexemes back, translating cannot change a query.
Does not: read ordinary SQL (`canonical.py`) or check that a line of lexemes is a query (`general_grammar.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory.tasks.sql.database import quote
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.spaced import spaced

WORDS: dict[str, tuple[str, str]] = {
    "select": ("SELECT ", "<select>"),
    "distinct": ("DISTINCT ", "<distinct>"),
    "*": ("*", "<*>"),
    ",": (", ", "<,>"),
    "from": (" FROM ", "<from>"),
    "join": (" JOIN ", "<join>"),
    "left": (" LEFT JOIN ", "<left>"),
    "on": (" ON ", "<on>"),
    "where": (" WHERE ", "<where>"),
    "group": (" GROUP BY ", "<group>"),
    "having": (" HAVING ", "<having>"),
    "order": (" ORDER BY ", "<order>"),
    "desc": (" DESC", "<desc>"),
    "limit": (" LIMIT ", "<limit>"),
    "offset": (" OFFSET ", "<offset>"),
    "union": (" UNION ", "<union>"),
    "union all": (" UNION ALL ", "<unionall>"),
    "intersect": (" INTERSECT ", "<intersect>"),
    "except": (" EXCEPT ", "<except>"),
    "and": (" AND ", "<and>"),
    "or": (" OR ", "<or>"),
    "(": ("(", "<(>"),
    ")": (")", "<)>"),
    "=": (" = ", "<eq>"),
    "!=": (" != ", "<ne>"),
    ">": (" > ", "<gt>"),
    "<": (" < ", "<lt>"),
    ">=": (" >= ", "<ge>"),
    "<=": (" <= ", "<le>"),
    "in": (" IN ", "<in>"),
    "not in": (" NOT IN ", "<notin>"),
    "like": (" LIKE ", "<like>"),
    "not like": (" NOT LIKE ", "<notlike>"),
    "between": (" BETWEEN ", "<between>"),
    "not between": (" NOT BETWEEN ", "<notbetween>"),
    "is null": (" IS NULL", "<null>"),
    "is not null": (" IS NOT NULL", "<notnull>"),
    "exists": ("EXISTS ", "<exists>"),
    "not exists": ("NOT EXISTS ", "<notexists>"),
    "+": (" + ", "<add>"),
    "-": (" - ", "<sub>"),
    "*of": (" * ", "<mul>"),
    "/": (" / ", "<div>"),
    "count(*)": ("COUNT(*)", "<count><*>"),
    "max(": ("MAX(", "<max>"),
    "min(": ("MIN(", "<min>"),
    "count(": ("COUNT(", "<count>"),
    "count(distinct": ("COUNT(DISTINCT ", "<count><distinct>"),
    "sum(": ("SUM(", "<sum>"),
    "sum(distinct": ("SUM(DISTINCT ", "<sum><distinct>"),
    "avg(": ("AVG(", "<avg>"),
    "avg(distinct": ("AVG(DISTINCT ", "<avg><distinct>"),
    "agg)": (")", ""),
    "agg((": ("", "<(>"),
    "agg))": (")", "<)>"),
}
"""Word -> (plain, compact). `max(` … `agg)` encloses one column, `max(` `agg((` … `agg))` an arithmetic expression."""

MAX_INSTANCES = 4
"""How often one table may stand in one FROM."""
MAX_DERIVED = 4
"""Output columns of a derived table that may be named."""


@dataclass(frozen=True)
class Word:
    """A keyword, operator or bracket: a key of WORDS."""

    word: str


@dataclass(frozen=True)
class TableRef:
    """Table number `table` in FROM, as its `instance`-th use (1 is the table under its own name)."""

    table: int
    instance: int = 1


@dataclass(frozen=True)
class ColumnRef:
    """Column `column` (within its table) of a table use."""

    table: int
    instance: int
    column: int


@dataclass(frozen=True)
class DerivedRef:
    """Output `number` (from 1) of the derived table in FROM, which has `size` outputs (so that its first mention tells both)."""

    size: int
    number: int


@dataclass(frozen=True)
class DerivedAs:
    """Names a derived table by its number of outputs, 0 when none is referred to; written in plain SQL only."""

    size: int


@dataclass(frozen=True)
class DerivedName:
    """Names output `number` where it is made; written in plain SQL only."""

    number: int


@dataclass(frozen=True)
class Number:
    """A number literal."""

    text: str


@dataclass(frozen=True)
class Text:
    """A text literal; of a LIKE pattern, the part between its outer `%` signs."""

    text: str
    before: str = ""
    after: str = ""


Lexeme = Word | TableRef | ColumnRef | DerivedRef | DerivedAs | DerivedName | Number | Text


def instance_name(schema: Schema, table: int, instance: int) -> str:
    """The name a table use goes by: `city`, `city_2`, …, kept clear of real tables."""
    name = schema.tables[table].name
    if instance == 1:
        return name
    alias = f"{name}_{instance}"
    taken = {own.name.lower() for own in schema.tables}
    while alias.lower() in taken:
        alias += "_"
    return alias


def to_plain(schema: Schema, line: Sequence[Lexeme]) -> str:
    """Ordinary SQL."""
    out = []
    for item in line:
        match item:
            case Word(word):
                out.append(WORDS[word][0])
            case TableRef(table, instance):
                name = quote(schema.tables[table].name)
                out.append(name if instance == 1 else f"{name} AS {quote(instance_name(schema, table, instance))}")
            case ColumnRef(table, instance, column):
                name = quote(schema.tables[table].columns[column].name)
                out.append(f"{quote(instance_name(schema, table, instance))}.{name}")
            case DerivedRef(size, number):
                out.append(f'"d{size}"."v{number}"')
            case DerivedAs(size):
                out.append(f' AS "d{size}"')
            case DerivedName(number):
                out.append(f' AS "v{number}"')
            case Number(text):
                out.append(text)
            case Text(text, before, after):
                out.append("'" + before + text.replace("'", "''") + after + "'")
    return "".join(out)


@dataclass(frozen=True)
class Names:
    """Position tokens of a prompt: `tables[k]` is shown as `<tk>`, `columns[t][k]` is the column of table t shown as `<ck>`."""

    tables: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]


def names(schema: Schema, order: Sequence[int]) -> Names:
    """Position tokens for a grouped global order (`prompt.full_order`)."""
    place = [(t, c) for t, table in enumerate(schema.tables) for c in range(len(table.columns))]
    tables = tuple(dict.fromkeys(place[i][0] for i in order))
    columns = tuple(tuple(place[i][1] for i in order if place[i][0] == t) for t in range(len(schema.tables)))
    return Names(tables + tuple(t for t in range(len(schema.tables)) if t not in tables), columns)


def table_token(named: Names, table: int, instance: int) -> str:
    return ("" if instance == 1 else f"<i{instance}>") + f"<t{named.tables.index(table)}>"


def to_compact(schema: Schema, line: Sequence[Lexeme], named: Names) -> str:
    """Position tokens; literals lower-cased and spaced."""
    out = []
    for item in line:
        match item:
            case Word(word):
                out.append(WORDS[word][1])
            case TableRef(table, instance):
                out.append(table_token(named, table, instance))
            case ColumnRef(table, instance, column):
                out.append(table_token(named, table, instance) + f"<c{named.columns[table].index(column)}>")
            case DerivedRef(size, number):
                out.append(f"<d{size}{number}>")
            case DerivedName() | DerivedAs():
                pass
            case Number(text):
                out.append(spaced(text))
            case Text(text, before, after):
                out.append("<%>" * bool(before) + (spaced(text) or " " + text.lower() or " ''") + "<%>" * bool(after))
    return "".join(out)
