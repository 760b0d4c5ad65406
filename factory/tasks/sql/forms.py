"""WikiSQL's logical form and its SQL: SELECT [aggregate](column) FROM t WHERE column op value AND …

Does: write a form as canonical SQL, read SQL back into a form (a fast path for canonical text, sqlglot for any other), compare.
Does not: read files (`wikisql.py`) or handle joins, groups and the rest of SQL (`components.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factory.tasks.sql import cells
from factory.tasks.sql.database import quote
from factory.tasks.sql.schema import Column, Schema

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")
Condition = tuple[int, int, str]
"""(column index, index into OPERATORS, value as text)."""


@dataclass(frozen=True)
class Form:
    """Column indices count the table's columns from 0; `agg` indexes AGGREGATES."""

    sel: int
    agg: int
    conds: tuple[Condition, ...]

    @classmethod
    def read(cls, data: Mapping[str, Any], n_columns: int) -> Form | None:
        """From WikiSQL's {"sel", "agg", "conds"}; None when it is malformed or names a column that is not there."""
        try:
            form = cls(int(data["sel"]), int(data["agg"]), tuple((int(c), int(o), _words(v)) for c, o, v in data["conds"]))
        except (KeyError, TypeError, ValueError):
            return None
        columns_fit = all(0 <= column < n_columns for column in (form.sel, *(c for c, _, _ in form.conds)))
        names_fit = 0 <= form.agg < len(AGGREGATES) and all(0 <= o < len(OPERATORS) and v for _, o, v in form.conds)
        return form if columns_fit and names_fit else None

    def data(self) -> dict[str, Any]:
        """As WikiSQL writes it."""
        return {"sel": self.sel, "agg": self.agg, "conds": [list(c) for c in self.conds]}


def literal(column: Column, operator: int, value: str) -> str:
    """A condition's value in SQL: a bare number where the comparison is numeric, else a quoted string.

    Numeric means that the column is one or the operator is > or <, and that the value reads as a number."""
    if column.type == "number" or operator != 0:
        digits = cells.number_text(value)
        if digits is not None:
            return digits
    return "'" + value.replace("'", "''") + "'"


def to_sql(form: Form, schema: Schema) -> str:
    """Canonical SQL of a form."""
    columns = schema.tables[0].columns
    selected = quote(columns[form.sel].name)
    if form.agg:
        selected = f"{AGGREGATES[form.agg]}({_compared(columns[form.sel])})"
    where = " AND ".join(f"{_compared(columns[c])} {OPERATORS[o]} {literal(columns[c], o, v)}" for c, o, v in form.conds)
    return f"SELECT {selected} FROM {quote(schema.tables[0].name)}" + (f" WHERE {where}" if where else "")


def _compared(column: Column) -> str:
    """A column where its values are compared or added up."""
    return f"CAST(NULLIF({quote(column.name)}, '') AS REAL)" if column.cast else quote(column.name)


def from_sql(sql: str, schema: Schema) -> Form | None:
    """The form that a statement says, or None when it says something a form cannot (or does not parse)."""
    return _from_canonical(sql, schema) or _from_tree(sql, schema)


def same_form(one: Form, two: Form, schema: Schema) -> bool:
    """Equal column, aggregate and set of conditions; values ignore case, or are numbers where `literal` writes them bare."""
    return (one.sel, one.agg, condition_keys(one, schema)) == (two.sel, two.agg, condition_keys(two, schema))


def condition_keys(form: Form, schema: Schema) -> frozenset[tuple[int, int, str | float]]:
    """Conditions as a set, values normalised as `same_form` compares them."""
    columns = schema.tables[0].columns
    return frozenset((c, o, value_key(columns[c], o, v)) for c, o, v in form.conds)


def value_key(column: Column, operator: int, value: str) -> str | float:
    """What a condition's value equals."""
    number = cells.number(value) if column.type == "number" or operator != 0 else None
    return " ".join(value.lower().split()) if number is None else number


_NAME = r'"((?:[^"]|"")+)"'
_HEAD = re.compile(rf"SELECT (?:({'|'.join(AGGREGATES[1:])})\({_NAME}\)|{_NAME}) FROM {_NAME}")
_CONDITION = re.compile(rf"(?: WHERE | AND ){_NAME} ([=<>]) (?:'((?:[^']|'')*)'|(-?[\d.]+))")


def _words(value: Any) -> str:
    return " ".join(str(value).split())


def _indices(schema: Schema) -> dict[str, int]:
    return {column.name.lower(): i for i, column in enumerate(schema.tables[0].columns)}


def _from_canonical(sql: str, schema: Schema) -> Form | None:
    """Reads exactly what `to_sql` writes."""
    head = _HEAD.match(sql)
    if head is None or head[4].replace('""', '"').lower() != schema.tables[0].name.lower():
        return None
    index = _indices(schema)
    sel = index.get((head[2] or head[3]).replace('""', '"').lower())
    conditions: list[Condition] = []
    at = head.end()
    while at < len(sql):
        found = _CONDITION.match(sql, at)
        column = None if found is None else index.get(found[1].replace('""', '"').lower())
        if found is None or column is None or (found[0].startswith(" WHERE") is bool(conditions)):
            return None
        value = found[4] if found[3] is None else found[3].replace("''", "'")
        conditions.append((column, OPERATORS.index(found[2]), value))
        at = found.end()
    return None if sel is None else Form(sel, AGGREGATES.index(head[1] or ""), tuple(conditions))


def _from_tree(sql: str, schema: Schema) -> Form | None:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        tree = sqlglot.parse_one(sql, dialect="sqlite")
    except (SqlglotError, RecursionError):
        return None
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1:
        return None
    asked = {name for name, part in tree.args.items() if part} - {"expressions", "from_", "from", "where", "kind"}
    tables = list(tree.find_all(exp.Table))
    if asked or tree.args.get("kind") or len(tables) != 1 or tables[0].name.lower() != schema.tables[0].name.lower():
        return None
    index = _indices(schema)
    selected = tree.expressions[0].unalias()
    agg = 0
    if isinstance(selected, exp.Max | exp.Min | exp.Count | exp.Sum | exp.Avg):
        agg = AGGREGATES.index(type(selected).key.upper())
        selected = selected.this
    selected = _uncast(selected, index, schema)
    if not isinstance(selected, exp.Column) or selected.name.lower() not in index:
        return None
    where = tree.args.get("where")
    conditions = _conditions(where.this, index, schema) if where is not None else ()
    return None if conditions is None else Form(index[selected.name.lower()], agg, conditions)


def _uncast(tree: Any, index: Mapping[str, int], schema: Schema) -> Any:
    """The column inside the CAST that `to_sql` writes around numbers held as text."""
    from sqlglot import exp

    inner = tree.this if isinstance(tree, exp.Cast) else None
    inner = inner.this if isinstance(inner, exp.Nullif) else inner
    if isinstance(inner, exp.Column) and inner.name.lower() in index:
        return inner if schema.tables[0].columns[index[inner.name.lower()]].cast else tree
    return tree


def _conditions(tree: Any, index: Mapping[str, int], schema: Schema) -> tuple[Condition, ...] | None:
    from sqlglot import exp

    tree = tree.unnest()
    if isinstance(tree, exp.And):
        left, right = _conditions(tree.left, index, schema), _conditions(tree.right, index, schema)
        return None if left is None or right is None else left + right
    operator = {exp.EQ: 0, exp.GT: 1, exp.LT: 2}.get(type(tree))
    if operator is None:
        return None
    column, value = (_uncast(side.unnest(), index, schema) for side in (tree.left, tree.right))
    if isinstance(value, exp.Column) and not isinstance(column, exp.Column):
        column, value, operator = value, column, (0, 2, 1)[operator]
    text = _literal_text(value, index)
    if not isinstance(column, exp.Column) or column.name.lower() not in index or text is None:
        return None
    return ((index[column.name.lower()], operator, text),)


def _literal_text(value: Any, index: Mapping[str, int]) -> str | None:
    from sqlglot import exp

    if isinstance(value, exp.Column) and value.this.args.get("quoted") and value.name.lower() not in index:
        return str(value.name)  # SQLite reads "x" as a string where no column is called x
    if isinstance(value, exp.Neg) and isinstance(value.this, exp.Literal) and not value.this.is_string:
        return f"-{value.this.this}"
    return str(value.this) if isinstance(value, exp.Literal) else None
