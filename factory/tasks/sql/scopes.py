"""Names in a query: which use of which table a column belongs to.

Does: keep the sources of a query and of the queries around it, resolve columns as SQLite does. Does not: parse or write SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from factory.tasks.sql.lexemes import MAX_DERIVED, ColumnRef, DerivedRef, Lexeme, Text
from factory.tasks.sql.schema import Schema
from factory.tasks.task import AnswerError

if TYPE_CHECKING:
    from sqlglot import exp


@dataclass
class Source:
    """A table use, or (table -1) the derived table with its output names, in lower case."""

    name: str
    table: int
    instance: int = 1
    outputs: list[str] = field(default_factory=list)
    unnamed: Callable[[], list[Lexeme]] | None = None
    """the derived table's query again, its outputs unnamed"""
    used: bool = False


@dataclass
class Scope:
    sources: list[Source]
    aliases: dict[str, list[Lexeme]] = field(default_factory=dict)
    items: list[list[Lexeme]] = field(default_factory=list)


Scopes = tuple[Scope, ...]


def refuse(what: str) -> AnswerError:
    return AnswerError("not-supported", f"{what} is outside the forms that can be written")


class Resolver:
    """Tables and columns of a schema by lower-case name."""

    def __init__(self, schema: Schema) -> None:
        self.tables = {table.name.lower(): i for i, table in enumerate(schema.tables)}
        self.columns = [{c.name.lower(): i for i, c in enumerate(table.columns)} for table in schema.tables]

    def correlated(self, select: exp.Select, outer: Scopes) -> bool:
        """Whether some column inside `select` belongs to a query around it."""
        from sqlglot import exp

        for column in select.find_all(exp.Column):
            inside, node = False, column.find_ancestor(exp.Select)
            while node is not None:
                from_ = node.args.get("from_") or node.args.get("from")
                uses = [from_.this, *(j.this for j in node.args.get("joins") or [])] if from_ else []
                for use in uses:
                    known = isinstance(use, exp.Table) and use.name.lower() in self.tables
                    own = column.name.lower() in self.columns[self.tables[use.name.lower()]] if known else not column.table
                    inside = inside or (use.alias_or_name.lower() == column.table.lower() if column.table else own)
                if inside or node is select:
                    break
                node = node.find_ancestor(exp.Select)
            if not inside and self.lookup(column, outer) is not None:
                return True
        return False

    def pick(self, sources: Sequence[Source], column: str) -> Lexeme | None:
        for source in sources:
            if source.table >= 0 and column in self.columns[source.table]:
                return ColumnRef(source.table, source.instance, self.columns[source.table][column])
            if source.table < 0 and column in source.outputs:
                if len(source.outputs) > MAX_DERIVED or "*" in source.outputs:
                    raise refuse(f"a derived table of {len(source.outputs)} columns")
                source.used = True
                return DerivedRef(len(source.outputs), source.outputs.index(column) + 1)
        return None

    def lookup(self, node: exp.Column, scopes: Scopes) -> Lexeme | None:
        for scope in scopes:
            if node.table:
                named = [s for s in scope.sources if s.name == node.table.lower()]
                # A table may also be called by its own name after it was given an alias-free second use.
                found = self.pick(named, node.name.lower())
            else:
                found = self.pick(scope.sources, node.name.lower())
            if found is not None:
                return found
        return None

    def column(self, node: exp.Column, scopes: Scopes) -> list[Lexeme]:
        found = self.lookup(node, scopes)
        if found is not None:
            return [found]
        if not node.table:
            for scope in scopes:
                if node.name.lower() in scope.aliases:
                    return scope.aliases[node.name.lower()]
            if node.this.quoted:
                return [Text(node.name)]  # SQLite reads "x" as a text when no column is called so
        known = ", ".join(dict.fromkeys(s.name for scope in scopes for s in scope.sources))
        raise AnswerError("unknown-column", f"no column {node.sql(dialect='sqlite')} in {known}")
