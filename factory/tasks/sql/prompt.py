"""Prompts of the sql task: the schema, the values found in the question, the question.

Does: write the messages in both dialects.
Does not: link values (`link.py`), write answers (`dialect.py`) or grammars (`grammar.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agents.chat import Message
from factory.tasks.sql.database import quote
from factory.tasks.sql.marks import Marks
from factory.tasks.sql.schema import Schema, Table
from factory.tasks.sql.spaced import spaced, spaced_name
from factory.tasks.task import Dialect

if TYPE_CHECKING:
    from factory.tasks.sql.database import Database
    from factory.tasks.sql.link import Match


@dataclass(frozen=True)
class Layout:
    """How prompts are laid out; a student must be asked in the layout it learned."""

    question: Literal["first", "last"] = "last"
    """compact: where the question stands"""
    anchor: Literal["before", "after", "both"] = "before"
    """compact: column token before its name, after it (a causal model then sums the name up there), or both"""
    links: bool = True
    """show values found in the question next to their column"""
    types: bool = True
    """compact: mark number columns"""
    samples: int = 3
    """plain: stored values shown for a column"""
    sample_chars: int = 40
    """plain: longest stored value shown"""


LAYOUT = Layout()

SYSTEM = (
    "You translate questions into SQLite. Answer with exactly one SELECT statement over the given schema and nothing else: "
    "no explanation, no code fence, no semicolon. Write table and column names in double quotes, exactly as in the schema; "
    'in a query over several tables write every column as "table"."column". '
    "Copy values as the question or the schema spells them."
)


def schema_of(source: Schema | Database) -> Schema:
    """The schema of a database, or the schema itself."""
    return source if isinstance(source, Schema) else source.schema


def full_order(schema: Schema, order: Sequence[int] | None) -> list[int]:
    """A permutation of the global column numbers with the columns of a table together (tables by first appearance)."""
    total = len(schema.columns)
    if order is None:
        return list(range(total))
    if sorted(order) != list(range(total)):
        raise ValueError(f"order {list(order)!r} is not a permutation of {total} columns")
    owner = [t for t, table in enumerate(schema.tables) for _ in table.columns]
    seen = list(dict.fromkeys(owner[i] for i in order))
    return sorted(order, key=lambda i: seen.index(owner[i]))


def render_prompt(
    source: Schema | Database,
    question: str,
    matches: Sequence[Match],
    dialect: Dialect,
    order: Sequence[int] | None = None,
    layout: Layout = LAYOUT,
) -> tuple[Message, ...]:
    """The messages for one question.

    `matches` are linked values (`Match(column, span, value)`, `column` global). `order` renumbers the position tokens of the
    compact dialect (k-th shown column is `order[k]`); give the same `order` to `encode` and `decode`. Plain ignores it.
    """
    schema = schema_of(source)
    if dialect == "plain":
        return (
            Message(role="system", content=SYSTEM),
            Message(role="user", content=_plain(schema, question, matches, layout)),
        )
    return (Message(role="user", content=_compact(schema, question, matches, full_order(schema, order), layout)),)


def _single_compact(schema: Schema, question: str, matches: Sequence[Match], order: Sequence[int], layout: Layout) -> str:
    """` no.<num><v0><c1> school<c2> … <q> which<c2> school did<v0> 3 play for`: names and values marked where they are said."""
    marks = Marks(schema, question, matches if layout.links else ())
    rank = [0] * len(order)
    shown = []
    for k, i in enumerate(order):
        rank[i] = k
        column = schema.columns[i][1]
        name = spaced(column.called) or " " + column.called.lower()
        number = "<num>" if layout.types and column.type == "number" else ""
        shown.append(name + number + "".join(f"<v{value}>" for value in marks.of_column(i)) + f"<c{k}>")
    return "".join(shown) + "<q>" + marks.written(rank)


def _compact(schema: Schema, question: str, matches: Sequence[Match], order: Sequence[int], layout: Layout) -> str:
    if schema.single:
        return _single_compact(schema, question, matches, order, layout)
    spans: dict[int, list[str]] = {}
    for match in matches if layout.links else ():
        text = spaced(match.span)
        if text not in spans.setdefault(match.column, []):
            spans[match.column].append(text)
    owner = [t for t, table in enumerate(schema.tables) for _ in table.columns]
    shown: list[str] = []
    table_rank: dict[int, int] = {}
    tokens: dict[int, str] = {}
    local: dict[int, int] = {}
    for i in order:
        table = owner[i]
        if table not in table_rank:
            table_rank[table] = len(table_rank)
            shown.append(f"<t{table_rank[table]}>{spaced_name(schema.tables[table].name)}")
        number = local.get(table, 0)
        local[table] = number + 1
        tokens[i] = f"<c{number}>"
        column = schema.columns[i][1]
        name = spaced_name(column.name)
        if layout.types and column.type == "number":
            name += "<num>"
        name += "".join(f"<v>{text}" for text in spans.get(i, ()))
        before = tokens[i] if layout.anchor != "after" else ""
        after = tokens[i] if layout.anchor != "before" else ""
        shown.append(before + name + after)
    for key in schema.foreign_keys:
        ends = [_position(schema, key.table, key.column), _position(schema, key.ref_table, key.ref_column)]
        if None not in ends:
            shown.append("<fk>" + "".join(f"<t{table_rank[owner[i]]}>{tokens[i]}" for i in ends if i is not None))
    asked = "<q>" + spaced(question)
    body = "".join(shown)
    return body + asked if layout.question == "last" else asked + body


def _position(schema: Schema, table: str, column: str) -> int | None:
    for i, (owner, own) in enumerate(schema.columns):
        if owner.name.lower() == table.lower() and own.name.lower() == column.lower():
            return i
    return None


def _plain(schema: Schema, question: str, matches: Sequence[Match], layout: Layout) -> str:
    parts = [_create(schema, table, layout) for table in schema.tables]
    if matches and layout.links:
        parts.append("Values of the question found in the database:")
        for match in dict.fromkeys((m.column, m.span, m.value) for m in matches):
            table, column = schema.columns[match[0]]
            parts.append(f'{quote(table.name)}.{quote(column.name)}: "{match[1]}" is stored as {_text(match[2])}')
    parts.append(f"Question: {question.strip()}")
    return "\n".join(parts)


def _create(schema: Schema, table: Table, layout: Layout) -> str:
    lines: list[tuple[str, str]] = []
    for column in table.columns:
        declared = column.declared or {"number": "NUMERIC", "time": "TEXT", "text": "TEXT"}.get(column.type, "")
        line = f"  {quote(column.name)} {declared}".rstrip() + (" PRIMARY KEY" if column.primary_key else "")
        short = [v for v in column.values if len(v) <= layout.sample_chars][: layout.samples]
        lines.append((line, f" -- {', '.join(_text(v) if column.type != 'number' else v for v in short)}" if short else ""))
    for key in schema.foreign_keys:
        if key.table.lower() == table.name.lower():
            reference = f"{quote(key.ref_table)}({quote(key.ref_column)})"
            lines.append((f"  FOREIGN KEY ({quote(key.column)}) REFERENCES {reference}", ""))
    body = "\n".join(line + ("," if i < len(lines) - 1 else "") + note for i, (line, note) in enumerate(lines))
    return f"CREATE TABLE {quote(table.name)} (\n{body}\n);"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''").replace("\n", " ") + "'"
