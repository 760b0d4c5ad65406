"""Grammars: every SQL a student may write over one schema, and nothing else.

Does: build a Lark grammar (llguidance's dialect) per schema, question and dialect; bound its longest sentence.
Does not: compile or run it (`agents.constrain`). The general form's rules are in `general_grammar.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from agents.constrain import Constraint
from factory.tasks.sql.database import quote
from factory.tasks.sql.forms import AGGREGATES
from factory.tasks.sql.general_grammar import Values, rules
from factory.tasks.sql.lexemes import names
from factory.tasks.sql.marks import Marks
from factory.tasks.sql.prompt import full_order, schema_of
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.single import AGGREGATE_TOKENS, AND, MAX_CONDITIONS, OPERATOR_TOKENS
from factory.tasks.sql.spaced import chunks, numbers, spaced
from factory.tasks.task import Dialect

if TYPE_CHECKING:
    from factory.tasks.sql.database import Database
    from factory.tasks.sql.link import Match


_spaced = lru_cache(1 << 14)(spaced)

LONGEST_SAMPLE = 40
"""Characters of the longest stored value that the general form may name without its being in the question."""
MOST_SAMPLES = 256
LONGEST_COPY = 80
"""Characters of the longest span the general form copies from the question."""


def constraint(
    source: Schema | Database,
    question: str,
    matches: Sequence[Match],
    dialect: Dialect,
    order: Sequence[int] | None = None,
) -> Constraint:
    """The grammar of every acceptable completion: existing tables and columns, values of the question, numbers, stored values."""
    schema = schema_of(source)
    if schema.single:
        text = _single_compact(schema, question, matches) if dialect == "compact" else _single_plain(schema, question)
    else:
        values = _values(schema, question, matches, dialect)
        text = rules(schema, dialect, names(schema, full_order(schema, order)), values)
    return Constraint(kind="lark", source=text)


GENERAL_TOKENS = 8192
"""Tokens to allow for the general form. Its sentences are bounded, but the bound (hundreds of queries) is of no use; of 1,000
random walks with uniform and peaked scores over 50 schemas the longest took 4,605 tokens, the median one 310."""


def max_completion_tokens(source: Schema | Database, question: str, matches: Sequence[Match], dialect: Dialect) -> int:
    """Tokens to allow for a completion, the end token included.

    WikiSQL's form: the bytes of the grammar's longest sentence, which no byte-level tokenizer exceeds. General: GENERAL_TOKENS.
    """
    schema = schema_of(source)
    if not schema.single:
        return GENERAL_TOKENS
    column = max(len(quote(column.name).encode()) for _, column in schema.columns)
    copied = max(len(question.encode()) * 2 + 2, len("".join(chunk.text for chunk in chunks(question)).encode()))
    return 40 + column + len(quote(schema.tables[0].name).encode()) + MAX_CONDITIONS * (column + copied + 16)


def choice(texts: Iterable[str]) -> str:
    """Alternatives as Lark string literals; raises ValueError when there are none."""
    written = [json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts)]
    if not written:
        raise ValueError("a choice needs at least one text")
    return " | ".join(written)


def substring(parts: Sequence[str]) -> str:
    """A run of whole parts as an llguidance regex node (it also matches nothing: intersect with a non-empty pattern)."""
    return "%regex " + json.dumps({"substring_chunks": list(parts)}, ensure_ascii=False)


def _single_compact(schema: Schema, question: str, matches: Sequence[Match]) -> str:
    parts = [chunk.text for chunk in chunks(question)]
    marks = len(Marks(schema, question, matches).values)
    lines = [
        f"start: AGG COL cond{{0,{MAX_CONDITIONS}}}" if parts else "start: AGG COL",
        f"AGG: {choice(AGGREGATE_TOKENS)}",
        f"COL: {choice(f'<c{i}>' for i in range(len(schema.columns)))}",
    ]
    if parts:
        lines += [f"cond: OP {'(MARK | VALUE)' if marks else 'VALUE'} COL", f"OP: {choice(AND + op for op in OPERATOR_TOKENS)}"]
        lines += [f"MARK: {choice(f'<v{i}>' for i in range(marks))}"] if marks else []
        lines += ["VALUE: RUN & /(?s:.+)/", f"RUN: {substring(parts)}"]
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
    head = 'start: "SELECT " selected ' + json.dumps(f" FROM {quote(table.name)}", ensure_ascii=False)
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
        lines += ['QUOTED: "\'" BODY "\'"', "BODY: RUN & /(?s:\\S(.*\\S)?)/", f"RUN: {substring(parts)}"]
    return "\n".join(lines) + "\n"


def _values(schema: Schema, question: str, matches: Sequence[Match], dialect: Dialect) -> Values:
    """Texts: spans of the question, linked values, short stored samples; any number of ordinary length."""
    samples = [v for _, column in schema.columns if column.type != "number" for v in column.values if len(v) <= LONGEST_SAMPLE]
    stored = [*(match.value for match in matches), *samples[:MOST_SAMPLES]]
    if dialect == "compact":
        parts = [chunk.text for chunk in chunks(question)]
        own = [*(_spaced(match.span) for match in matches), *(_spaced(value) for value in stored)]
        number, limit, like = "/ (- )?[0-9]{1,9}( \\. [0-9]{1,4})?/", "/ [1-9][0-9]{0,2}/", '"<%>"? TEXT "<%>"?'
        named = [f"STORED: {choice(text for text in own if text)}"] if any(own) else []
    else:
        parts = raw_parts(question)
        own = ["'" + value.replace("'", "''") + "'" for value in stored]
        number, limit, like = "/-?[0-9]{1,9}(\\.[0-9]{1,4})?/", "/[1-9][0-9]{0,2}/", "LIKE"
        named = [f"STORED: {choice(own)}"] if own else []
        ways = ["COPY"] * bool(parts) + ([choice(value.replace("'", "''") for value in stored)] if stored else [])
        named += ["BARE: " + (" | ".join(ways) or '"?"'), 'LIKE: "\'" "%"? BARE "%"? "\'"']
        named.append('DIGITS: "\'" ' + number + ' "\'"')
    copied = "COPY" if dialect == "compact" else '"\'" COPY "\'"'
    ways = [copied] * bool(parts) + ["STORED"] * any(own) + (["DIGITS"] if dialect == "plain" else [])
    copy = (
        f"COPY: RUN & /(?s:[^ ](.{{0,{LONGEST_COPY}}}[^ ])?)/"
        if dialect == "plain"
        else f"COPY: RUN & /(?s:.{{1,{LONGEST_COPY}}})/"
    )
    named += [copy, f"RUN: {substring(parts)}"] if parts else []
    return Values((f"TEXT: {' | '.join(ways) or 'NUMBER'}", *named), "TEXT", like, number, limit)
