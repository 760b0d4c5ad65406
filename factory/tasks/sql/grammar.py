"""Grammars: every SQL a student may write over one schema, and nothing else.

Does: build a Lark grammar (llguidance's dialect) per schema, question and dialect; bound its longest sentence.
Does not: compile or run it (`agents.constrain`). The general form's rules are in `general_grammar.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from agents.constrain import Constraint
from factory.tasks.sql.database import quote
from factory.tasks.sql.forms import AGGREGATES
from factory.tasks.sql.prompt import schema_of
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.single import AGGREGATE_TOKENS, MAX_CONDITIONS, OPERATOR_TOKENS
from factory.tasks.sql.spaced import chunks, numbers
from factory.tasks.task import Dialect

if TYPE_CHECKING:
    from factory.tasks.sql.database import Database
    from factory.tasks.sql.link import Match


def constraint(source: Schema | Database, question: str, matches: Sequence[Match], dialect: Dialect) -> Constraint:
    """The grammar of every acceptable completion: existing tables and columns; values from the question, numbers, stored values."""
    schema = schema_of(source)
    if not schema.single:
        raise NotImplementedError
    rules = _single_compact(schema, question) if dialect == "compact" else _single_plain(schema, question)
    return Constraint(kind="lark", source=rules)


def max_completion_tokens(source: Schema | Database, question: str, matches: Sequence[Match], dialect: Dialect) -> int:
    """Bytes of the longest sentence of the grammar: a byte-level tokenizer never needs more tokens (plus one to end)."""
    schema = schema_of(source)
    name = max(len(quote(column.name).encode()) for _, column in schema.columns)
    asked = max(len(question.encode()) * 2, len("".join(c.text for c in chunks(question)).encode()))
    head = 32 + name + len(quote(schema.tables[0].name).encode())
    return head + MAX_CONDITIONS * (name + asked + 16)


def choice(texts: Iterable[str]) -> str:
    """Alternatives as Lark string literals; raises ValueError when there are none."""
    written = [json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts)]
    if not written:
        raise ValueError("a choice needs at least one text")
    return " | ".join(written)


def substring(parts: Sequence[str]) -> str:
    """A run of whole parts as an llguidance regex node (it also matches nothing: intersect with a non-empty pattern)."""
    return "%regex " + json.dumps({"substring_chunks": list(parts)}, ensure_ascii=False)


def _single_compact(schema: Schema, question: str) -> str:
    parts = [chunk.text for chunk in chunks(question)]
    lines = [
        f"start: AGG COL cond{{0,{MAX_CONDITIONS}}}" if parts else "start: AGG COL",
        f"AGG: {choice(AGGREGATE_TOKENS)}",
        f"COL: {choice(f'<c{i}>' for i in range(len(schema.columns)))}",
    ]
    if parts:
        lines += ["cond: COL OP VALUE", f"OP: {choice(OPERATOR_TOKENS)}", "VALUE: RUN & /(?s:.+)/", f"RUN: {substring(parts)}"]
    return "\n".join(lines) + "\n"


def raw_parts(question: str) -> list[str]:
    """The question cut at chunk borders, white space kept apart, quotes doubled: what a quoted literal may be made of."""
    out, at = [], 0
    for chunk in chunks(question):
        out += [question[at : chunk.start]] if chunk.start > at else []
        out.append(question[chunk.start : chunk.end])
        at = chunk.end
    return [part.replace("'", "''") for part in out]


def _single_plain(schema: Schema, question: str) -> str:
    table = schema.tables[0]
    parts = raw_parts(question)
    digits = [literal for literal, _, _ in numbers(question)]
    text = [quote(column.name) for column in table.columns if column.type != "number"]
    number = [quote(column.name) for column in table.columns if column.type == "number"]
    aggregates = [name for name in AGGREGATES if name]
    head = "start: \"SELECT \" selected " + json.dumps(f" FROM {quote(table.name)}", ensure_ascii=False)
    lines = [
        head + (f' (" WHERE " cond (" AND " cond){{0,{MAX_CONDITIONS - 1}}})?' if parts else ""),
        'selected: COL | AGG "(" COL ")"',
        f"COL: {choice(quote(column.name) for column in table.columns)}",
        f"AGG: {choice(aggregates)}",
    ]
    if parts:
        values = "(QUOTED | NUMBER)" if digits else "QUOTED"
        conditions = [f'TEXT_COL (" = " QUOTED | RANGE {values})'] if text else []
        conditions += [f'NUMBER_COL (" = " | RANGE) {values}'] if number else []
        lines += [f"cond: {' | '.join(conditions)}", 'RANGE: " > " | " < "']
        lines += [f"TEXT_COL: {choice(text)}"] if text else []
        lines += [f"NUMBER_COL: {choice(number)}"] if number else []
        lines += [f"NUMBER: {choice(digits)}"] if digits else []
        lines += ["QUOTED: \"'\" BODY \"'\"", "BODY: RUN & /(?s:\\S(.*\\S)?)/", f"RUN: {substring(parts)}"]
    return "\n".join(lines) + "\n"
