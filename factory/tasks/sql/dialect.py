"""Canonical SQL <-> what a student writes: ordinary SQL ("plain") or position tokens ("compact").

Does: encode and decode answers in both dialects, list the compact dialect's tokens. Does not: execute, score or build prompts.
The compact forms are in `single.py` (WikiSQL's one table) and `lexemes.py` (everything else).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from factory.tasks.sql import cells, compact_reader, lexemes, single
from factory.tasks.sql.canonical import literal_lexeme, read_sql
from factory.tasks.sql.forms import Form, from_sql, to_sql
from factory.tasks.sql.lexemes import Lexeme, Text
from factory.tasks.sql.marks import MAX_VALUES, Marks
from factory.tasks.sql.one_table import as_asked, as_stored
from factory.tasks.sql.prompt import full_order, schema_of
from factory.tasks.sql.schema import ColumnType, Schema
from factory.tasks.sql.spaced import chunks, find
from factory.tasks.task import AnswerError, Dialect

if TYPE_CHECKING:
    from factory.tasks.sql.database import Database
    from factory.tasks.sql.link import Match

PROMPT_TOKENS = ("<q>", "<v>", "<num>", "<fk>")
MAX_COLUMNS = 64
"""Columns of one table that the compact dialect can name."""
MAX_TABLES = 32

_FENCE = re.compile(r"```(?:\w+)?[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_LABEL = re.compile(r"^\s*(?:\*\*)?(?:sqlite|sql(?:ite)?\s*query|sql|query|answer)(?:\*\*)?\s*:\s*(?:\*\*)?\s*", re.IGNORECASE)
_START = re.compile(r"(?<![\w\"'])(?:SELECT|WITH)\b", re.IGNORECASE)


def special_tokens(dialect: Dialect, general: bool = True) -> tuple[str, ...]:
    """Tokens a from-scratch tokenizer of this dialect must hold whole (ordinary added tokens: they are part of the text).

    `general` False leaves out what only queries beyond WikiSQL's form need.
    """
    if dialect == "plain":
        return ()
    columns = tuple(f"<c{i}>" for i in range(MAX_COLUMNS))
    values = tuple(f"<v{i}>" for i in range(MAX_VALUES))
    tokens = PROMPT_TOKENS + single.AGGREGATE_TOKENS + single.OPERATOR_TOKENS + (single.AND,) + columns + values
    if general:
        tokens += tuple(f"<t{i}>" for i in range(MAX_TABLES))
        tokens += tuple(f"<i{i}>" for i in range(2, lexemes.MAX_INSTANCES + 1))
        tokens += tuple(f"<d{n}{i}>" for n in range(1, lexemes.MAX_DERIVED + 1) for i in range(1, n + 1))
        tokens += ("<%>", *(token for _, compact in lexemes.WORDS.values() for token in re.findall(r"<[^>]+>", compact)))
    return tuple(dict.fromkeys(tokens))


def canonicalise(source: Schema | Database, sql: str) -> str:
    """The one spelling of a query in its schema's form (WikiSQL's or the general one). Raises AnswerError as `decode` does."""
    schema = schema_of(source)
    return to_sql(_form(schema, sql), schema) if schema.single else lexemes.to_plain(schema, read_sql(schema, sql))


def encode(
    source: Schema | Database,
    question: str,
    matches: Sequence[Match],
    sql: str,
    dialect: Dialect,
    order: Sequence[int] | None = None,
) -> str:
    """SQL -> completion text. `order` as given to `render_prompt`. Raises AnswerError when the dialect cannot say it."""
    schema = schema_of(source)
    if dialect == "compact":
        _check_size(schema)
    if schema.single:
        form = _form(schema, sql)
        if _exact(source):
            form = as_asked(matches, form)
        if dialect == "plain":
            return to_sql(single.respelt(question, form), schema)
        grouped = full_order(schema, order)
        return single.to_compact(Marks(schema, question, matches), form, [grouped.index(i) for i in range(len(grouped))])
    line = read_sql(schema, sql, _Spelling(schema, question, matches).stored)
    if dialect == "plain":
        return lexemes.to_plain(schema, line)
    spans = {match.value: match.span for match in matches}
    line = [Text(spans.get(x.text, x.text), x.before, x.after) if isinstance(x, Text) else x for x in line]
    return lexemes.to_compact(schema, line, lexemes.names(schema, full_order(schema, order)))


def decode(
    source: Schema | Database,
    question: str,
    matches: Sequence[Match],
    completion: str,
    dialect: Dialect,
    order: Sequence[int] | None = None,
) -> str:
    """Completion text -> canonical SQL, values spelt as stored where that is known (a WikiSQL table, which compares loosely, has
    them as in the question), else as in the question.

    Plain SQL beyond the forms that can be written canonically comes back as it is. Raises AnswerError: "empty",
    "not-single-select", "not-parsed", "not-single-form", "unknown-table", "unknown-column".
    """
    schema = schema_of(source)
    if not completion.strip():
        raise AnswerError("empty", "the completion is empty")
    if dialect == "plain":
        sql = extract_sql(completion)
        try:
            return _spelt(source, matches, _form(schema, sql)) if schema.single else canonicalise(schema, sql)
        except AnswerError as error:
            if error.reason == "not-supported":
                return sql
            raise
    grouped = full_order(schema, order)
    if schema.single:
        return _spelt(source, matches, single.from_compact(schema, Marks(schema, question, matches), completion, grouped))
    spelling = _Spelling(schema, question, matches)
    named = lexemes.names(schema, grouped)
    return lexemes.to_plain(schema, compact_reader.from_compact(schema, completion, named, spelling.restore))


def _form(schema: Schema, sql: str) -> Form:
    form = from_sql(sql, schema)
    if form is None:
        raise AnswerError("not-single-form", f"not SELECT [aggregate](column) FROM t WHERE column op value AND …: {sql[:120]!r}")
    return form


def _spelt(source: Schema | Database, matches: Sequence[Match], form: Form) -> str:
    """The SQL of a form, its values as a table of exact spelling stores them."""
    return to_sql(
        form if isinstance(source, Schema) or not _exact(source) else as_stored(source, matches, form), schema_of(source)
    )


def _exact(source: Schema | Database) -> bool:
    """Whether text has to be spelt as it is stored to be found."""
    return not isinstance(source, Schema) and source.has_rows and not source.loose


def _check_size(schema: Schema) -> None:
    widest = max(len(table.columns) for table in schema.tables)
    if widest > MAX_COLUMNS or len(schema.tables) > MAX_TABLES:
        size = f"{len(schema.tables)} tables, the widest of {widest} columns"
        raise AnswerError("schema-too-large", f"{size}; the compact dialect names {MAX_TABLES} and {MAX_COLUMNS}")


class _Spelling:
    """How values are spelt: as stored when that is known, else as in the question, else as given."""

    def __init__(self, schema: Schema, question: str, matches: Sequence[Match]) -> None:
        self.schema, self.question, self.matches = schema, question, matches
        self.parts = chunks(question)

    def _known(self, text: str, column: int | None) -> str | None:
        key = cells.key(text)
        linked = [m for m in self.matches if cells.key(m.value) == key or cells.key(m.span) == key]
        linked.sort(key=lambda m: m.column != column)
        if linked:
            return linked[0].value
        values = self.schema.columns[column][1].values if column is not None and column >= 0 else ()
        return next((v for v in values if v == text), None) or next((v for v in values if cells.key(v) == key), None)

    def stored(self, text: str, column: int | None) -> str:
        """For SQL that someone wrote: only the spelling of a value known to be stored, or with none known, the question's."""
        if any(match.value == text for match in self.matches):
            return text
        known = self._known(text, column)
        if known is not None:
            return known
        if column is not None and column >= 0 and self.schema.columns[column][1].values:
            return text
        return single.spell(self.question, text)[0]

    def restore(self, text: str, kind: ColumnType | None, column: int | None) -> Lexeme:
        """For compact text (lower-cased, spaced)."""
        place = find(self.parts, text)
        asked = text if place is None else self.question[place[0] : place[1]]
        known = self._known(asked, column)
        return literal_lexeme(asked, False, kind, column, lambda own, _: own if known is None else known)


def extract_sql(text: str) -> str:
    """The one statement in a model's reply: fences, `SQL:` labels, prose before and after, and the semicolon go."""
    fenced = [block for block in _FENCE.findall(text) if _START.search(block)]
    body = fenced[-1] if fenced else text
    body = _LABEL.sub("", body.strip(), count=1)
    start = _START.search(body)
    if start is None:
        reason = "not-single-select" if text.strip() else "empty"
        raise AnswerError(reason, f"no SELECT in the answer: {text.strip()[:120]!r}")
    if not fenced and not _START.match(body):
        body = body[start.start() :]
    first, rest = _split_statement(body)
    if not fenced and not rest:
        # Unfenced prose after the statement is set off by a blank line.
        first = re.split(r"\n\s*\n", first.strip(), maxsplit=1)[0]
    if _START.search(rest):
        raise AnswerError("not-single-select", f"more than one statement: {rest.strip()[:120]!r}")
    return first.strip()


def _split_statement(text: str) -> tuple[str, str]:
    """Text up to the first semicolon outside quotes, and what follows it."""
    quote = ""
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"`":
            quote = char
        elif char == ";":
            return text[:i], text[i + 1 :]
    return text, ""
