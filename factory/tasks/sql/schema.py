"""A database schema as data: what prompts, grammars, samplers and scorers read.

Does: define Column, Table, ForeignKey, Schema. Does not: open a database (`database.py`) or write SQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

ColumnType = Literal["text", "number", "time", "other"]


@dataclass(frozen=True)
class Column:
    """`name` is unique in its table, ignoring case; `values` are some of its distinct stored values, as text.

    `label` is what prompts of the one-table form call it (empty: its name); `cast` marks numbers that a file holds as text.
    """

    name: str
    type: ColumnType = "text"
    declared: str = ""
    primary_key: bool = False
    values: tuple[str, ...] = ()
    label: str = ""
    cast: bool = False

    @property
    def called(self) -> str:
        """What prompts of the one-table form call it."""
        return self.label or self.name


@dataclass(frozen=True)
class ForeignKey:
    table: str
    column: str
    ref_table: str
    ref_column: str


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Schema:
    """`single` marks WikiSQL's form: one table, SELECT [agg](column) WHERE column op value AND …, nothing else."""

    name: str
    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()
    single: bool = False

    @cached_property
    def columns(self) -> tuple[tuple[Table, Column], ...]:
        """All columns in schema order; the index is the column's global number (position token)."""
        return tuple((table, column) for table in self.tables for column in table.columns)
