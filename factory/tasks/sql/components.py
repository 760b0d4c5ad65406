"""Take a query apart into the sets that Spider's exact set match compares (Yu et al. 2018).

Does: parse with sqlglot, put real tables for aliases, treat columns joined by a foreign key as one, and give the parts as sets.
Does not: prove two queries equal: different parts may mean the same, which is why results are compared where rows exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from factory.tasks.sql.schema import Schema

VALUE = "?"
"""What every value is written as when values are ignored."""


@dataclass(frozen=True)
class Condition:
    """One comparison as normalised text: left side, operator ("eq", "not in", …), right side; `literal` when that is a value."""

    left: str
    operator: str
    right: str
    literal: bool


@dataclass(frozen=True)
class Parts:
    """One SELECT's parts. `connectives` are the number of ORs; `others` are set operations with their own parts."""

    tables: tuple[str, ...]
    columns: tuple[str, ...]
    """Sorted columns of the select list, without aggregates."""
    select: tuple[str, ...]
    """Sorted select list, with aggregates."""
    distinct: bool
    where: frozenset[Condition]
    having: frozenset[Condition]
    ors: int
    group: frozenset[str]
    order: tuple[str, ...]
    limit: str | None
    set_operation: str
    other: Parts | None
    """The right side of a set operation."""


def parts(sql: str, schema: Schema, *, values: bool) -> Parts | None:
    """The parts of a query; with `values` False every literal is written "?". None when it does not parse as a query."""
    tree = parse(sql)
    if tree is None:
        return None
    names = _Names(schema, values)
    try:
        return _query(tree.transform(_as_text, names.all_names(tree)), names, {})
    except (SqlglotError, RecursionError):
        return None


def parse(sql: str) -> Any | None:
    """sqlglot's tree of one query, or None."""
    try:
        trees = [tree for tree in sqlglot.parse(sql, dialect="sqlite") if tree is not None]
    except (SqlglotError, RecursionError):
        return None
    if len(trees) != 1 or not isinstance(trees[0], exp.Query) or not trees[0].selects:
        return None
    return trees[0]


def is_ordered(sql: str) -> bool:
    """True when the rows' order is part of the answer: an ORDER BY on the outermost query."""
    if "order" not in sql.lower():
        return False
    tree = parse(sql)
    return tree is not None and bool(tree.args.get("order"))


def same_parts(one: Parts | None, two: Parts | None) -> bool:
    return one is not None and one == two


def stable(found: Parts) -> str:
    """Text of parts that is the same in every process: sets have no order of their own."""
    other = "" if found.other is None else stable(found.other)
    sets = [sorted(map(repr, part)) for part in (found.where, found.having, found.group)]
    plain = (found.tables, found.select, found.distinct, found.ors, found.order, found.limit, found.set_operation)
    return repr((plain, sets, other))


class _Names:
    """Column names of a schema, and which of them foreign keys make one."""

    def __init__(self, schema: Schema, values: bool) -> None:
        self.values = values
        self.columns = {t.name.lower(): {c.name.lower() for c in t.columns} for t in schema.tables}
        self._same: dict[str, str] = {}
        for key in schema.foreign_keys:
            a = self.root(f"{key.table}.{key.column}".lower())
            b = self.root(f"{key.ref_table}.{key.ref_column}".lower())
            self._same[max(a, b)] = min(a, b)

    def all_names(self, tree: Any) -> set[str]:
        """Columns of the schema and names that the query itself gives."""
        given = {alias.name.lower() for alias in tree.find_all(exp.TableAlias)} | {
            a.alias.lower() for a in tree.find_all(exp.Alias)
        }
        return given.union(*self.columns.values())

    def root(self, name: str) -> str:
        while self._same.get(name, name) != name:
            name = self._same[name]
        return name


Scope = Mapping[str, str]
"""Alias or table name, lower case -> table name; outer queries' names are included."""


def _as_text(node: Any, names: set[str]) -> Any:
    """SQLite reads "x" as a text where nothing is called x."""
    if isinstance(node, exp.Column) and not node.table and node.this.args.get("quoted") and node.name.lower() not in names:
        return exp.Literal.string(node.name)
    return node


def _query(tree: Any, names: _Names, outer: Scope) -> Parts:
    if isinstance(tree, exp.Subquery):
        return _query(tree.this, names, outer)
    if isinstance(tree, exp.SetOperation):
        left, right = _query(tree.left, names, outer), _query(tree.right, names, outer)
        operation = type(tree).key + ("" if tree.args.get("distinct") else " all")
        order, limit = _order(tree, names, outer, {}), _limit(tree, names)
        return replace(left, set_operation=operation, other=right, order=left.order + order, limit=limit or left.limit)
    scope = dict(outer)
    tables: list[str] = []
    sources = ([tree.args["from_"].this] if tree.args.get("from_") else []) + [join.this for join in tree.args.get("joins") or ()]
    local: dict[str, str] = {}
    for source in sources:
        text = source.name.lower() if isinstance(source, exp.Table) else stable(_query(source.unnest(), names, outer))
        tables.append(text)
        local[(source.alias or source.name).lower()] = source.name.lower() if isinstance(source, exp.Table) else ""
    scope.update(local)
    aliases = {e.alias.lower(): e.this for e in tree.expressions if isinstance(e, exp.Alias)}
    selected = [e.unalias() for e in tree.expressions]
    ors = sum(len(list(_own(c, exp.Or))) for c in (tree.args.get("where"), tree.args.get("having")) if c is not None)
    return Parts(
        tables=tuple(sorted(tables)),
        columns=tuple(sorted(_text(_bare(e), names, scope, local) for e in selected)),
        select=tuple(sorted(_text(e, names, scope, local) for e in selected)),
        distinct=bool(tree.args.get("distinct")),
        where=frozenset(_conditions(tree.args.get("where"), names, scope, local, {})),
        having=frozenset(_conditions(tree.args.get("having"), names, scope, local, aliases)),
        ors=ors,
        group=frozenset(
            _text(e, names, scope, local, aliases) for e in (tree.args["group"].expressions if tree.args.get("group") else ())
        ),
        order=_order(tree, names, scope, local, aliases),
        limit=_limit(tree, names),
        set_operation="",
        other=None,
    )


def _bare(tree: Any) -> Any:
    """An aggregate's argument, or the expression itself."""
    if isinstance(tree, exp.AggFunc) and tree.this is not None:
        inner = tree.this
        return inner.expressions[0] if isinstance(inner, exp.Distinct) and inner.expressions else inner
    return tree


def _own(tree: Any, kind: type) -> Iterator[Any]:
    """Nodes of a kind outside sub-queries."""
    if isinstance(tree, kind):
        yield tree
    for child in tree.iter_expressions():
        if not isinstance(child, exp.Query):
            yield from _own(child, kind)


def _order(tree: Any, names: _Names, scope: Scope, local: Scope, aliases: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    order = tree.args.get("order")
    ends = [] if order is None else order.expressions
    return tuple(_text(e.this, names, scope, local, aliases) + (" desc" if e.args.get("desc") else "") for e in ends)


def _limit(tree: Any, names: _Names) -> str | None:
    limit = tree.args.get("limit")
    if limit is None:
        return None
    return str(limit.expression.sql(dialect="sqlite")) if names.values else VALUE


def _conditions(clause: Any, names: _Names, scope: Scope, local: Scope, aliases: Mapping[str, Any]) -> Iterator[Condition]:
    if clause is None:
        return
    pending = [clause.this]
    while pending:
        tree = pending.pop().unnest()
        if isinstance(tree, exp.And | exp.Or):
            pending += [tree.left, tree.right]
            continue
        negated = isinstance(tree, exp.Not)
        if negated:
            tree = tree.this.unnest()
        yield _condition(tree, negated, lambda e: _text(e, names, scope, local, aliases))


def _condition(tree: Any, negated: bool, text: Any) -> Condition:
    prefix = "not " if negated else ""
    if isinstance(tree, exp.Binary) and not isinstance(tree, exp.Connector):
        left, right, operator = tree.left.unnest(), tree.right.unnest(), type(tree).key
        flips = {"gt": "lt", "lt": "gt", "gte": "lte", "lte": "gte", "eq": "eq", "neq": "neq"}
        both_columns = isinstance(left, exp.Column) and isinstance(right, exp.Column)
        if operator in flips and ((_is_literal(left) and not _is_literal(right)) or (both_columns and text(left) > text(right))):
            left, right, operator = right, left, flips[operator]
        return Condition(text(left), prefix + operator, text(right), _is_literal(right))
    if isinstance(tree, exp.In):
        query = tree.args.get("query")
        choice = text(query) if query is not None else ", ".join(sorted(text(e) for e in tree.expressions))
        return Condition(text(tree.this), prefix + "in", choice, query is None)
    if isinstance(tree, exp.Between):
        low, high = tree.args["low"], tree.args["high"]
        return Condition(
            text(tree.this), prefix + "between", f"{text(low)} and {text(high)}", _is_literal(low) and _is_literal(high)
        )
    return Condition("", prefix + type(tree).key, text(tree), False)


def _is_literal(tree: Any) -> bool:
    return isinstance(tree, exp.Literal | exp.Null | exp.Boolean) or (isinstance(tree, exp.Neg) and _is_literal(tree.this))


def _text(tree: Any, names: _Names, scope: Scope, local: Scope, aliases: Mapping[str, Any] | None = None) -> str:
    """An expression as normalised text: real table names, lower case, values as they are or as "?"."""

    def mend(node: Any) -> Any:
        if isinstance(node, exp.Query):
            return exp.Var(this=stable(_query(node, names, scope)))
        if isinstance(node, exp.Column) and not isinstance(node.this, exp.Star):
            if aliases and not node.table and node.name.lower() in aliases:
                return exp.Var(this=_text(aliases[node.name.lower()], names, scope, local))
            return exp.Var(this=_column(node, names, scope, local))
        if isinstance(node, exp.Column):
            return exp.Var(this=f"{scope.get(node.table.lower(), node.table.lower())}.*")
        if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal):
            return exp.Var(this=f"-{node.this.this}" if names.values else VALUE)
        if isinstance(node, exp.Literal):
            return exp.Var(this=repr(str(node.this).lower()) if names.values else VALUE)
        return node

    return str(tree.copy().transform(mend).sql(dialect="sqlite", normalize_functions="lower")).strip()


def _column(node: Any, names: _Names, scope: Scope, local: Scope) -> str:
    column = node.name.lower()
    if node.table:
        table = scope.get(node.table.lower(), node.table.lower())
    else:
        within = [t for t in dict.fromkeys([*local.values(), *scope.values()]) if column in names.columns.get(t, ())]
        table = within[0] if within else ""
    return names.root(f"{table}.{column}")
