"""One table of a database, in the form of a student that learned questions about single tables (WikiSQL's).

Does: show a table or view of a user's database as such a table, with its own names, types and stored values; spell the values of
an answer as that table stores them; tell from a card which form its student learned.
Does not: copy rows (SQL runs on the database itself), join tables, or change how a WikiSQL table is asked about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from factory.tasks.sql import cells
from factory.tasks.sql.database import Database, ExecError, quote
from factory.tasks.sql.forms import Form
from factory.tasks.sql.schema import Column, Schema, Table
from factory.tasks.task import TaskError

if TYPE_CHECKING:
    import sqlite3

    from agents.card import Card
    from factory.tasks.sql.link import Match

MOST_FOUND = 64
"""Stored values that one look through a large table may bring."""

SchemaForm = Literal["single", "general"]
"""How a schema is shown and answers are written: "single" is WikiSQL's (`Schema.single`), "general" everything else."""

_NUMERAL = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
"""A number that SQLite's CAST reads whole and that is no code with leading zeros."""
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def learned_form(card: Card | None) -> SchemaForm:
    """The form a student was trained in.

    Cards say it in their prompt template, `sql/single/compact/1` or `sql/general/compact/1`. Of those that do not
    (`sql/compact/1`), a student that saw WikiSQL alone learned the one-table form. Without a card it is the general one.
    """
    if card is None:
        return "general"
    said = card.prompt_template.split("/")
    if "single" in said or "general" in said:
        return "single" if "single" in said else "general"
    # A user's own --db may be called wikisql too; its licence is "yours".
    return "single" if card.data and all(d.name == "wikisql" and d.license != "yours" for d in card.data) else "general"


def in_form(database: Database, form: SchemaForm, table: str | None = None) -> Database:
    """The database as a student of this form is asked about it; `table` narrows it to one table. Raises TaskError."""
    return database if form == "general" and table is None else one_table(database, table, form=form)


def one_table(database: Database, table: str | None = None, *, form: SchemaForm = "single") -> Database:
    """The database with one of its tables or views in sight; `table` None means the only one there is.

    In the general form nothing but what is in sight changes. In the single form numbers are linked as text is, and columns are
    called by words (`order_date`, `orderDate`: "order date"). Raises TaskError: no such table, several and none named, too wide.
    """
    from factory.tasks.sql.dialect import MAX_COLUMNS

    if database.schema.single:
        return database
    tables = database.schema.tables
    names = ", ".join(own.name for own in tables)
    if table is None and len(tables) > 1:
        raise TaskError(
            f"{database.id}: has {len(tables)} tables ({names}), and this model was trained on questions about one table: name "
            "it with table=NAME (--table NAME), or make a view that joins what is needed and name that"
        )
    chosen = [own for own in tables if table is None or own.name.lower() == table.lower()]
    if not chosen:
        raise TaskError(f"{database.id}: has no table {table!r}; choose from {names}")
    shown = chosen[0]
    if form == "single" and len(shown.columns) > MAX_COLUMNS:
        raise TaskError(
            f"{database.id}: table {shown.name} has {len(shown.columns)} columns, and this model tells {MAX_COLUMNS} apart: make "
            "a view of those that are asked about and name it with table=NAME (--table NAME)"
        )
    first = next(i for i, (own, _) in enumerate(database.schema.columns) if own is shown)
    columns = shown.columns
    if form == "single":
        with closing(database.connection()) as connection:
            columns = tuple(_as_learned(connection, shown, column) for column in columns)
    keys = tuple(key for key in database.schema.foreign_keys if key.table == key.ref_table == shown.name)
    schema = Schema(database.schema.name, (Table(shown.name, columns),), keys, single=form == "single")

    def values(column: int) -> tuple[str, ...]:
        if not schema.single:
            return database.values(first + column)
        from factory.tasks.sql.sqlite_file import LINKED_VALUES, distinct

        with closing(database.connection()) as connection:
            return distinct(connection, shown.name, columns[column].name, LINKED_VALUES)

    def beyond(column: int, texts: Sequence[str]) -> tuple[str, ...]:
        from factory.tasks.sql.sqlite_file import LINKED_VALUES

        if not schema.single or len(view.values(column)) < LINKED_VALUES:
            return ()
        return _found(view, columns[column], texts)

    view = Database(
        database.id, lambda: schema, lambda _: database.connection(), has_rows=database.has_rows, values=values, beyond=beyond
    )
    return view


def as_stored(database: Database, matches: Sequence[Match], form: Form) -> Form:
    """The form with texts that must be equal spelt as the table stores them; a text that is not stored stays as asked."""
    return Form(form.sel, form.agg, tuple((c, o, v if o else _stored(database, matches, c, v)) for c, o, v in form.conds))


def as_asked(matches: Sequence[Match], form: Form) -> Form:
    """The reverse for an answer to learn: linked values spelt as the question has them."""
    spans = {(match.column, match.value): match.span for match in matches}
    return Form(form.sel, form.agg, tuple((c, o, spans.get((c, v), v)) for c, o, v in form.conds))


def _stored(database: Database, matches: Sequence[Match], column: int, text: str) -> str:
    own = database.schema.columns[column][1]
    if own.type == "number" and cells.number(text) is not None:
        return text
    key = cells.key(text)
    known = database.values(column)
    if text in known:
        return text
    alike = [m.value for m in matches if m.column == column and key in (cells.key(m.span), cells.key(m.value))]
    alike += [value for value in known if cells.key(value) == key]
    return alike[0] if alike else _looked_up(database, own, text)


def _looked_up(database: Database, column: Column, text: str) -> str:
    """For tables with more values than are linked: what the table has for this text, letter case aside."""
    found = _found(database, column, [text])
    return text if text in found or not found else found[0]


def _found(database: Database, column: Column, texts: Sequence[str]) -> tuple[str, ...]:
    """Those of these texts that the column stores, letter case aside, as stored; one look through the table, two seconds at most.
    Numbers are looked up as numbers, by an index where there is one."""
    table, name = quote(database.schema.tables[0].name), quote(column.name)
    if column.type == "number" and not column.cast:
        wanted = [digits for digits in map(cells.number_text, texts) if digits is not None]
    else:
        wanted = ["'" + text.replace("'", "''") + "'" for text in texts]
        name += " COLLATE NOCASE"
    if not wanted:
        return ()
    try:
        rows = database.execute(
            f"SELECT DISTINCT {quote(column.name)} FROM {table} "
            f"WHERE {name} IN ({', '.join(dict.fromkeys(wanted))}) LIMIT {MOST_FOUND}"
        ).rows
    except ExecError:
        return ()
    return tuple(str(cell) for (cell,) in rows)


def _as_learned(connection: sqlite3.Connection, table: Table, column: Column) -> Column:
    """The column with one of the two types the form knows; text that is all numerals counts as numbers and is cast."""
    from factory.tasks.sql.sqlite_file import LINKED_VALUES, distinct, stored_type

    label = " ".join(_CAMEL.sub(" ", column.name).replace("_", " ").split())
    stored = stored_type(connection, table.name, column.name)
    if "number" in (column.type, stored):
        return replace(column, type="number", label=label)
    if stored == "text" and column.values and all(map(_NUMERAL.fullmatch, column.values)):
        every = distinct(connection, table.name, column.name, LINKED_VALUES)
        if all(map(_NUMERAL.fullmatch, every)):
            return replace(column, type="number", label=label, cast=True)
    return replace(column, type="text", label=label)
