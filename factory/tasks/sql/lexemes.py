"""The general form as a line of lexemes, each with one spelling in ordinary SQL and one in position tokens.

Does: write lexemes in both dialects and read the compact one back; so translating between dialects cannot change a query.
Does not: read ordinary SQL (`canonical.py`) or check that a line of lexemes is a query (`general_grammar.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from factory.tasks.sql.database import quote
from factory.tasks.sql.schema import ColumnType, Schema
from factory.tasks.sql.spaced import number_literal, spaced
from factory.tasks.task import AnswerError

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

AGGREGATE_WORDS = tuple(word for word in WORDS if word.endswith(("(", "(distinct")) and word not in ("(", "agg(("))
SET_WORDS = ("union", "union all", "intersect", "except")
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
    """Position tokens of a prompt: `tables[k]` is the table shown as `<tk>`, `columns[t][k]` the column of table t shown as `<ck>`."""

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


_TOKEN = re.compile(r"<(?:[a-z]+\d*|[*,()%])>|[^<]+|<")
_BY_TOKEN = {compact: word for word, (_, compact) in WORDS.items() if compact.count("<") == 1 and word not in ("agg((", "agg))")}


def from_compact(
    schema: Schema, completion: str, named: Names, restore: Callable[[str, ColumnType | None, int | None], Lexeme]
) -> list[Lexeme]:
    """Compact text -> lexemes; `restore(text, type, global column)` spells a value again (type None: nothing known).

    Raises AnswerError("not-parsed" | "unknown-table" | "unknown-column").
    """
    reader = _Reader(schema, _TOKEN.findall(completion.strip()), named, restore)
    return reader.read()


class _Reader:
    """One pass over the tokens, remembering what the next value will be compared with and which brackets are open."""

    def __init__(self, schema: Schema, tokens: list[str], named: Names, restore: Callable[..., Lexeme]) -> None:
        self.schema, self.tokens, self.named, self.restore = schema, tokens, named, restore
        self.at = 0
        self.line: list[Lexeme] = []
        self.compared: tuple[ColumnType | None, int | None] = (None, None)
        self.starts = [sum(len(t.columns) for t in schema.tables[:k]) for k in range(len(schema.tables))]

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def fail(self, reason: str, detail: str) -> AnswerError:
        return AnswerError(reason, f"{detail} at {''.join(self.tokens[max(self.at - 3, 0) : self.at + 3])!r}")

    def read(self) -> list[Lexeme]:
        brackets: list[str] = []
        while self.at < len(self.tokens):
            token = self.peek()
            if token in ("<%>",) or not token.startswith("<"):
                self.value()
                continue
            aggregate = self.aggregate()
            if aggregate is not None:
                self.line.append(Word(aggregate))
                if aggregate == "count(*)":
                    self.compared = ("number", None)
                elif self.peek() == "<(>":
                    self.at += 1
                    self.line.append(Word("agg(("))
                    brackets.append("agg))")
                else:
                    self.operand()
                    self.line.append(Word("agg)"))
                    if not aggregate.startswith(("max", "min")):
                        self.compared = ("number", None)
                continue
            if re.fullmatch(r"<[itd]\d+>", token):
                self.operand()
                continue
            word = _BY_TOKEN.get(token)
            if word is None:
                raise self.fail("not-parsed", f"no such token {token!r}")
            self.at += 1
            if word == "(":
                brackets.append(")")
            elif word == ")":
                if not brackets:
                    raise self.fail("not-parsed", "a bracket closes that was not opened")
                kind = brackets.pop()
                self.line.append(Word(kind))
                self.compared = ("number", None) if kind == "agg))" else self.compared
                continue
            self.line.append(Word(word))
        if brackets:
            raise self.fail("not-parsed", "a bracket stays open")
        return _name_outputs(self.line)

    def aggregate(self) -> str | None:
        token, following = self.peek(), self.peek(1)
        name = token[1:-1]
        if name not in ("max", "min", "count", "sum", "avg"):
            return None
        if name == "count" and following == "<*>":
            self.at += 2
            return "count(*)"
        if following == "<distinct>" and f"{name}(distinct" in WORDS:
            self.at += 2
            return f"{name}(distinct"
        self.at += 1
        return f"{name}("

    def operand(self) -> None:
        token, instance = self.peek(), 1
        if token.startswith("<d"):
            self.at += 1
            if not re.fullmatch(r"<d[1-9][1-9]>", token):
                raise self.fail("not-parsed", f"no such token {token!r}")
            self.line.append(DerivedRef(int(token[2]), int(token[3])))
            self.compared = (None, None)
            return
        if token.startswith("<i"):
            instance = int(token[2:-1])
            self.at += 1
            token = self.peek()
        if not re.fullmatch(r"<t\d+>", token):
            raise self.fail("not-parsed", "a table or column is missing")
        if int(token[2:-1]) >= len(self.named.tables):
            raise self.fail("unknown-table", f"{token} is not in the prompt")
        table = self.named.tables[int(token[2:-1])]
        self.at += 1
        number = re.fullmatch(r"<c(\d+)>", self.peek())
        if number is None:
            self.line.append(TableRef(table, instance))
            return
        if int(number[1]) >= len(self.named.columns[table]):
            raise self.fail("unknown-column", f"{token}{number[0]} is not in the prompt")
        column = self.named.columns[table][int(number[1])]
        self.at += 1
        self.line.append(ColumnRef(table, instance, column))
        self.compared = (self.schema.tables[table].columns[column].type, self.starts[table] + column)

    def value(self) -> None:
        before = after = ""
        if self.peek() == "<%>":
            before = "%"
            self.at += 1
        text = ""
        while self.peek() and (self.peek() == "<" or not self.peek().startswith("<")):
            text += self.peek()
            self.at += 1
        if self.peek() == "<%>":
            after = "%"
            self.at += 1
        text = text.strip()
        last = self.line[-1] if self.line else None
        if before or after or last in (Word("like"), Word("not like")):
            restored = self.restore(text, "text", None)
            self.line.append(Text(restored.text if isinstance(restored, Number | Text) else text, before, after))
        elif last in (Word("limit"), Word("offset")):
            self.line.append(Number(number_literal(text) or "1"))
        else:
            self.line.append(self.restore(text, *self.compared))


def _name_outputs(line: Sequence[Lexeme]) -> list[Lexeme]:
    """Name derived tables, and the outputs of those that are referred to (compact text leaves names out)."""
    level, levels = 0, []
    opened: list[int] = []
    referred: dict[int, int] = {}
    for i, item in enumerate(line):
        if item in (Word("("), Word("agg((")):
            opened.append(level)
        elif item in (Word(")"), Word("agg))")) and opened:
            level = opened.pop()
        elif item == Word("select"):
            level = i + 1
        elif isinstance(item, DerivedRef):
            referred[level] = item.size
        levels.append(level)
    out: list[Lexeme] = []
    # One frame per open bracket: size of the derived table it encloses (None: it encloses none), in its SELECT list, outputs so far.
    frames: list[tuple[int | None, bool, int]] = [(None, False, 0)]
    for i, item in enumerate(line):
        size, listing, count = frames[-1]
        if size and listing and item in (Word(","), Word("from")) and out[-1] != Word("*"):
            count += 1
            out.append(DerivedName(count))
        out.append(item)
        if item == Word("select"):
            listing, count = True, 0
        frames[-1] = (size, listing and item != Word("from"), count)
        if item in (Word("("), Word("agg((")):
            frames.append((referred.get(levels[i], 0) if i and line[i - 1] == Word("from") else None, False, 0))
        elif item in (Word(")"), Word("agg))")) and len(frames) > 1:
            frames.pop()
            out += [] if size is None else [DerivedAs(size)]
    return out
