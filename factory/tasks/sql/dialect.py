"""Canonical SQL <-> what a student writes: ordinary SQL ("plain") or position tokens ("compact").

Does: encode and decode answers in both dialects, list the compact dialect's tokens. Does not: execute, score or build prompts.
The compact forms are in `single.py` (WikiSQL's one table) and `general.py` (everything else).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from factory.tasks.sql.prompt import full_order
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.single import (
    AGGREGATE_TOKENS,
    OPERATOR_TOKENS,
    Condition,
    Single,
    from_compact,
    parse_single,
    single_sql,
    spell,
    to_compact,
)
from factory.tasks.task import AnswerError, Dialect

if TYPE_CHECKING:
    from factory.tasks.sql.link import Match

PROMPT_TOKENS = ("<q>", "<v>", "<num>", "<fk>")
MAX_COLUMNS = 64
"""Column tokens: columns of one table that the compact dialect can name."""
MAX_TABLES = 32

_FENCE = re.compile(r"```(?:\w+)?[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_LABEL = re.compile(r"^\s*(?:\*\*)?(?:sqlite|sql(?:ite)?\s*query|sql|query|answer)(?:\*\*)?\s*:\s*(?:\*\*)?\s*", re.IGNORECASE)
_START = re.compile(r"(?<![\w\"'])(?:SELECT|WITH)\b", re.IGNORECASE)


def special_tokens(dialect: Dialect) -> tuple[str, ...]:
    """Tokens a from-scratch tokenizer of this dialect must hold whole (as ordinary added tokens: they are part of the text)."""
    if dialect == "plain":
        return ()
    columns = tuple(f"<c{i}>" for i in range(MAX_COLUMNS))
    return PROMPT_TOKENS + AGGREGATE_TOKENS + OPERATOR_TOKENS + columns


def rank_of(order: Sequence[int]) -> list[int]:
    """`order[k] = i` -> `rank[i] = k`."""
    rank = [0] * len(order)
    for k, i in enumerate(order):
        rank[i] = k
    return rank


def encode(
    schema: Schema, question: str, matches: Sequence[Match], sql: str, dialect: Dialect, order: Sequence[int] | None = None
) -> str:
    """SQL -> completion text. `order` as given to `render_prompt`. Raises AnswerError when the dialect cannot say it."""
    if not schema.single:
        raise AnswerError("not-supported", "general form")
    query = parse_single(schema, sql)
    if dialect == "plain":
        spelt = tuple(Condition(c.column, c.operator, spell(question, c.value)[0]) for c in query.conditions)
        return single_sql(schema, Single(query.aggregate, query.column, spelt))
    if len(schema.columns) > MAX_COLUMNS:
        raise AnswerError("too-many-columns", f"{len(schema.columns)} columns; the compact dialect names {MAX_COLUMNS}")
    return to_compact(question, query, rank_of(full_order(schema, order)))


def decode(
    schema: Schema, question: str, matches: Sequence[Match], completion: str, dialect: Dialect, order: Sequence[int] | None = None
) -> str:
    """Completion text -> canonical SQL, values spelt as in the question (or as stored, outside WikiSQL's form).

    Raises AnswerError: "empty", "not-single-select", "not-parsed", "not-single-form", "unknown-table", "unknown-column".
    """
    if dialect == "plain":
        sql = extract_sql(completion)
        return single_sql(schema, parse_single(schema, sql)) if schema.single else sql
    if not completion.strip():
        raise AnswerError("empty", "the completion is empty")
    if not schema.single:
        raise AnswerError("not-supported", "general form")
    return single_sql(schema, from_compact(question, completion, full_order(schema, order)))


def extract_sql(text: str) -> str:
    """The one statement in a model's reply: fences, `SQL:` labels, prose before and after, and the semicolon go."""
    fenced = [block for block in _FENCE.findall(text) if _START.search(block)]
    body = fenced[-1] if fenced else text
    body = _LABEL.sub("", body.strip(), count=1)
    start = _START.search(body)
    if start is None:
        raise AnswerError("empty" if not text.strip() else "not-single-select", f"no SELECT in the answer: {text.strip()[:120]!r}")
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
