"""Ordinary SQL, however written -> lexemes of the general form, hence one canonical spelling.

Does: parse with sqlglot, resolve aliases and unqualified columns against the schema, write every query the same way:
qualified names, a table's second use as `name_2`, literals by column type, comparisons with the column on the left.
Does not: reorder or optimise; a query and its canonical spelling give the same rows. What it cannot say it refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from factory.tasks.sql.lexemes import (
    MAX_INSTANCES,
    ColumnRef,
    DerivedAs,
    DerivedName,
    DerivedRef,
    Lexeme,
    Number,
    TableRef,
    Text,
    Word,
    to_plain,
)
from factory.tasks.sql.schema import ColumnType, Schema
from factory.tasks.sql.scopes import Resolver, Scope, Scopes, Source, refuse
from factory.tasks.sql.spaced import number_literal
from factory.tasks.task import AnswerError

if TYPE_CHECKING:
    from sqlglot import exp

    Words = dict[type[exp.Expr], str]

Spell = Callable[[str, int | None], str]
"""(text of a literal, global column it is compared with) -> its text."""


def canonicalise(schema: Schema, sql: str) -> str:
    """One spelling for any SELECT the general form can say; canonical SQL comes back unchanged.

    Raises AnswerError: "not-parsed", "not-single-select", "not-supported", "unknown-table", "unknown-column".
    """
    return to_plain(schema, read_sql(schema, sql))


def read_sql(schema: Schema, sql: str, spell: Spell | None = None) -> list[Lexeme]:
    """SQL -> lexemes; `spell` may rewrite text literals (to the question's or the stored spelling)."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        parsed = [node for node in sqlglot.parse(sql, read="sqlite") if node is not None]
    except (SqlglotError, RecursionError) as error:
        raise AnswerError("not-parsed", str(error).splitlines()[0]) from None
    if len(parsed) != 1 or not isinstance(parsed[0], exp.Query):
        raise AnswerError("not-single-select", f"not one SELECT statement: {sql.strip()[:120]!r}")
    return _Writer(schema, spell or (lambda text, _: text)).query(parsed[0], (), {}, derived=False)[0]


class _Writer:
    def __init__(self, schema: Schema, spell: Spell) -> None:
        from sqlglot import exp

        self.exp = exp
        self.schema, self.spell = schema, spell
        self.names = Resolver(schema)
        self.starts = [sum(len(t.columns) for t in schema.tables[:k]) for k in range(len(schema.tables))]

        self.compare: Words = {exp.EQ: "=", exp.NEQ: "!=", exp.GT: ">", exp.LT: "<", exp.GTE: ">=", exp.LTE: "<="}
        self.arithmetic: Words = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*of", exp.Div: "/"}
        self.aggregates: Words = {exp.Max: "max(", exp.Min: "min(", exp.Count: "count(", exp.Sum: "sum(", exp.Avg: "avg("}

    # -- queries ---------------------------------------------------------------------------------------------------
    def query(self, node: exp.Expr, outer: Scopes, ctes: dict[str, exp.Expr], derived: bool) -> tuple[list[Lexeme], list[str]]:
        """Lexemes of a SELECT or set operation, and its output names."""
        exp = self.exp
        while isinstance(node, exp.Subquery | exp.Paren) and not node.args.get("joins"):
            node = node.this
        with_ = node.args.get("with_") or node.args.get("with")
        if with_ is not None:
            if with_.args.get("recursive"):
                raise refuse("WITH RECURSIVE")
            ctes = {**ctes, **{cte.alias.lower(): cte.this for cte in with_.expressions}}
        if isinstance(node, exp.SetOperation):
            word = {exp.Union: "union", exp.Intersect: "intersect", exp.Except: "except"}.get(type(node))
            if word is None or (word != "union" and not node.args.get("distinct", True)):
                raise refuse("this set operation")
            word = "union all" if word == "union" and not node.args.get("distinct") else word
            if isinstance(node.expression, exp.SetOperation | exp.Subquery):
                raise refuse("a nested set operation")
            if node.expression.args.get("order") or node.expression.args.get("limit"):
                raise refuse("ORDER BY inside a set operation")
            left, outputs = self.query(node.this, outer, ctes, derived)
            right, _ = self.query(node.expression, outer, ctes, derived)
            line = [*left, Word(word), *right]
            if node.args.get("order") or node.args.get("limit"):
                raise refuse("ORDER BY of a set operation")
            return line, outputs
        if not isinstance(node, exp.Select):
            raise refuse(type(node).key.upper())
        return self.select(node, outer, ctes, derived)

    def select(self, node: exp.Select, outer: Scopes, ctes: dict[str, exp.Expr], derived: bool) -> tuple[list[Lexeme], list[str]]:
        exp = self.exp
        for key in ("windows", "qualify", "laterals", "distribute", "sort", "cluster"):
            if node.args.get(key):
                raise refuse(key.upper())
        if (node.args.get("distinct") is not None) and node.args["distinct"].args.get("on"):
            raise refuse("DISTINCT ON")
        from_ = node.args.get("from_") or node.args.get("from")
        if from_ is None:
            raise refuse("SELECT without FROM")
        scope = Scope([])
        first = self.source(from_.this, scope, outer, ctes, node)
        from_line: list[Lexeme] = [Word("from"), *first]
        scopes = (scope, *outer)
        for join in [*(from_.this.args.get("joins") or []), *(node.args.get("joins") or [])]:
            if join.method or join.side.upper() not in ("", "LEFT") or join.kind.upper() not in ("", "INNER", "CROSS", "OUTER"):
                raise refuse(f"{join.method} {join.side} {join.kind} JOIN".strip())
            if scope.sources[0].table < 0:
                raise refuse("a join with a derived table")
            from_line += [Word("left" if join.side else "join"), *self.source(join.this, scope, outer, ctes, node)]
            if scope.sources[-1].table < 0:
                raise refuse("a join with a derived table")
            on = join.args.get("on")
            if on is not None and not isinstance(on, exp.Boolean):
                from_line += [Word("on"), *self.condition(on, scopes, ctes)]
            elif join.args.get("using"):
                for k, name in enumerate(join.args["using"]):
                    right = self.names.pick(scope.sources[-1:], name.name.lower())
                    left = self.names.pick(scope.sources[:-1], name.name.lower())
                    if left is None or right is None:
                        raise AnswerError("unknown-column", f"no column {name.name!r} to join on")
                    from_line += [Word("and" if k else "on"), left, Word("="), right]
        items, outputs = self.items(node, scope, scopes, ctes)
        items_line: list[Lexeme] = [Word("distinct")] if node.args.get("distinct") else []
        for i, item in enumerate(items):
            items_line += ([Word(",")] if i else []) + item
            items_line += [DerivedName(i + 1)] if derived and item != [Word("*")] else []
        line: list[Lexeme] = [Word("select"), *items_line, *from_line]
        if node.args.get("where"):
            line += [Word("where"), *self.condition(node.args["where"].this, scopes, ctes)]
        if node.args.get("group"):
            for i, key in enumerate(node.args["group"].expressions):
                line += [Word("," if i else "group"), *self.term(key, scopes, ctes)]
        if node.args.get("having"):
            if not node.args.get("group"):
                raise refuse("HAVING without GROUP BY")
            line += [Word("having"), *self.condition(node.args["having"].this, scopes, ctes)]
        if node.args.get("order"):
            for i, key in enumerate(node.args["order"].expressions):
                line += [Word("," if i else "order"), *self.term(key.this, scopes, ctes)]
                line += [Word("desc")] if key.args.get("desc") else []
        for name in ("limit", "offset"):
            if node.args.get(name):
                count = node.args[name].expression
                if not isinstance(count, exp.Literal) or count.is_string:
                    raise refuse(f"{name.upper()} that is not a number")
                line += [Word(name), Number(count.this)]
        first_source = scope.sources[0]
        if first_source.unnamed is not None and not first_source.used:
            at = 1 + len(items_line) + 1
            line[at : at + len(first)] = [Word("("), *first_source.unnamed(), Word(")"), DerivedAs(0)]
        return line, outputs

    def source(self, node: exp.Expr, scope: Scope, outer: Scopes, ctes: dict[str, exp.Expr], select: exp.Select) -> list[Lexeme]:
        exp = self.exp
        name = node.alias_or_name.lower()
        if isinstance(node, exp.Table) and node.name.lower() in ctes and not node.db:
            held = {key: value for key, value in ctes.items() if key != node.name.lower()}
            return self.derived(ctes[node.name.lower()].copy(), name, scope, outer, held)
        elif isinstance(node, exp.Subquery):
            return self.derived(node.this, name, scope, outer, ctes)
        elif isinstance(node, exp.Table):
            table = self.names.tables.get(node.name.lower())
            if table is None:
                raise AnswerError("unknown-table", f"no table {node.name!r}; there are {', '.join(sorted(self.names.tables))}")
            taken = {(s.table, s.instance) for s in scope.sources}
            if outer and self.names.correlated(select, outer):
                taken |= {(s.table, s.instance) for one in outer for s in one.sources}
            instance = next((k for k in range(1, MAX_INSTANCES + 1) if (table, k) not in taken), None)
            if instance is None:
                raise refuse(f"{node.name!r} used more than {MAX_INSTANCES} times")
            scope.sources.append(Source(name, table, instance))
            return [TableRef(table, instance)]
        else:
            raise refuse(f"{type(node).key.upper()} in FROM")

    def derived(self, node: exp.Expr, name: str, scope: Scope, outer: Scopes, ctes: dict[str, exp.Expr]) -> list[Lexeme]:
        inner, outputs = self.query(node, outer, ctes, derived=True)
        unnamed = partial(self.query, node, outer, ctes, derived=False)
        scope.sources.append(Source(name, -1, outputs=outputs, unnamed=lambda: unnamed()[0]))
        return [Word("("), *inner, Word(")"), DerivedAs(len(outputs))]

    def items(
        self, node: exp.Select, scope: Scope, scopes: Scopes, ctes: dict[str, exp.Expr]
    ) -> tuple[list[list[Lexeme]], list[str]]:
        exp = self.exp
        outputs: list[str] = []
        for item in node.expressions:
            inner = item.this if isinstance(item, exp.Alias) else item
            star = isinstance(inner, exp.Star) or (isinstance(inner, exp.Column) and isinstance(inner.this, exp.Star))
            if star and len(node.expressions) == 1 and (isinstance(inner, exp.Star) or len(scope.sources) == 1):
                scope.items.append([Word("*")])
                outputs += ["*"]
            elif star:
                for source in scope.sources:
                    if isinstance(inner, exp.Star) or source.name == inner.table.lower():
                        if source.table < 0:
                            raise refuse("* of a derived table beside other columns")
                        for c, column in enumerate(self.schema.tables[source.table].columns):
                            scope.items.append([ColumnRef(source.table, source.instance, c)])
                            outputs.append(column.name.lower())
            else:
                line = self.term(inner, scopes, ctes)
                scope.items.append(line)
                outputs.append(item.alias_or_name.lower())
                if isinstance(item, exp.Alias):
                    scope.aliases[item.alias.lower()] = line
        return scope.items, outputs

    # -- expressions and conditions: canonical_terms.py holds the rest ------------------------------------------------
    def term(self, node: exp.Expr, scopes: Scopes, ctes: dict[str, exp.Expr]) -> list[Lexeme]:
        """A column, aggregate, number, or one arithmetic operation on two of them; ORDER BY 2 means the second item."""
        exp = self.exp
        while isinstance(node, exp.Paren):
            node = node.this
        if (
            isinstance(node, exp.Literal)
            and not node.is_string
            and node.this.isdigit()
            and isinstance(node.parent, exp.Ordered | exp.Group)
        ):
            if not 1 <= int(node.this) <= len(scopes[0].items):
                raise refuse(f"ORDER BY {node.this}")
            return scopes[0].items[int(node.this) - 1]
        if isinstance(node, exp.Alias):
            node = node.this
        if type(node) in self.arithmetic:
            left, right = self.operand(node.this, scopes, ctes), self.operand(node.expression, scopes, ctes)
            return [*left, Word(self.arithmetic[type(node)]), *right]
        return self.operand(node, scopes, ctes)

    def operand(self, node: exp.Expr, scopes: Scopes, ctes: dict[str, exp.Expr]) -> list[Lexeme]:
        exp = self.exp
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.Column):
            return self.names.column(node, scopes)
        if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal) and not node.this.is_string:
            return [Number("-" + node.this.this)]
        if isinstance(node, exp.Literal):
            return [Text(node.this) if node.is_string else Number(node.this)]
        if type(node) in self.aggregates and not node.expressions:
            word, inner = self.aggregates[type(node)], node.this
            if isinstance(inner, exp.Distinct):
                if len(inner.expressions) != 1:
                    raise refuse("DISTINCT over several columns")
                word = word if word in ("max(", "min(") else word + "distinct"
                inner = inner.expressions[0]
            while isinstance(inner, exp.Paren):
                inner = inner.this
            if word == "count(" and isinstance(inner, exp.Star | exp.Literal):
                return [Word("count(*)")]
            if type(inner) in self.arithmetic:
                return [Word(word), Word("agg(("), *self.term(inner, scopes, ctes), Word("agg))")]
            if not isinstance(inner, exp.Column):
                raise refuse(f"an aggregate of {type(inner).key.upper()}")
            return [Word(word), *self.names.column(inner, scopes), Word("agg)")]
        if isinstance(node, exp.Subquery | exp.Select):
            return [Word("("), *self.query(node, scopes, ctes, derived=False)[0], Word(")")]
        raise refuse(type(node).key.upper())

    def condition(self, node: exp.Expr, scopes: Scopes, ctes: dict[str, exp.Expr]) -> list[Lexeme]:
        exp = self.exp
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.And | exp.Or):
            parts: list[Any] = []
            self.flatten(node, type(node), parts)
            line: list[Lexeme] = []
            for i, part in enumerate(parts):
                body = self.condition(part, scopes, ctes)
                wrap = isinstance(node, exp.And) and isinstance(part.unnest(), exp.Or)
                line += [Word("and" if isinstance(node, exp.And) else "or")] if i else []
                line += [Word("("), *body, Word(")")] if wrap else body
            return line
        return self.predicate(node, scopes, ctes)

    def flatten(self, node: exp.Expr, kind: type, out: list[exp.Expr]) -> None:
        while isinstance(node, self.exp.Paren):
            node = node.this
        if isinstance(node, kind):
            self.flatten(node.this, kind, out)
            self.flatten(node.expression, kind, out)
        else:
            out.append(node)

    def predicate(self, node: exp.Expr, scopes: Scopes, ctes: dict[str, exp.Expr]) -> list[Lexeme]:
        exp = self.exp
        no = ""
        while isinstance(node, exp.Not | exp.Paren):
            no = no if isinstance(node, exp.Paren) else ("" if no else "not ")
            node = node.this
        if node.args.get("negate"):
            no = "" if no else "not "
        if isinstance(node, exp.Exists):
            inner = node.this.unnest() if isinstance(node.this, exp.Subquery) else node.this
            if isinstance(inner, exp.Select) and not inner.args.get("group") and not inner.find(exp.AggFunc):
                inner = inner.copy().select("*", append=False)  # EXISTS does not look at the columns
            return [Word(no + "exists"), Word("("), *self.query(inner, scopes, ctes, derived=False)[0], Word(")")]
        if type(node) in self.compare:
            return self.comparison(node, no, scopes, ctes)
        left = self.term(node.this, scopes, ctes) if node.this is not None else []
        if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
            return [*left, Word("is not null" if no else "is null")]
        if isinstance(node, exp.Between):
            low, high = (self.value(node.args[k], left, scopes, ctes) for k in ("low", "high"))
            return [*left, Word(no + "between"), *low, Word("and"), *high]
        if isinstance(node, exp.Like) and isinstance(node.expression, exp.Literal | exp.Column):
            pattern = self.operand(node.expression, scopes, ctes)[0]
            if not isinstance(pattern, Text):
                raise refuse("LIKE with a column")
            return [*left, Word(no + "like"), self.pattern(pattern.text)]
        if isinstance(node, exp.In) and node.args.get("query") is not None:
            return [*left, Word(no + "in"), Word("("), *self.query(node.args["query"], scopes, ctes, derived=False)[0], Word(")")]
        if isinstance(node, exp.In) and node.expressions:
            line = [*left, Word(no + "in"), Word("(")]
            for i, item in enumerate(node.expressions):
                line += ([Word(",")] if i else []) + self.value(item, left, scopes, ctes)
            return [*line, Word(")")]
        raise refuse(type(node).key.upper())

    def comparison(self, node: exp.Expr, no: str, scopes: Scopes, ctes: dict[str, exp.Expr]) -> list[Lexeme]:
        exp = self.exp
        word = self.compare[type(node)]
        if no:
            word = {"=": "!=", "!=": "=", ">": "<=", "<=": ">", "<": ">=", ">=": "<"}[word]
        left, right = node.this, node.expression
        flip = {">": "<", "<": ">", ">=": "<=", "<=": ">="}
        if isinstance(left, exp.Literal | exp.Subquery) and not isinstance(right, exp.Literal | exp.Subquery):
            left, right, word = right, left, flip.get(word, word)
        line = self.term(left, scopes, ctes)
        return [*line, Word(word), *self.value(right, line, scopes, ctes)]

    def pattern(self, text: str) -> Text:
        inner = text.strip("%")
        before, after = text.startswith("%"), len(text) > 1 and text.endswith("%")
        if "%" in inner or text != "%" * before + inner + "%" * after or not inner:
            raise refuse(f"LIKE {text!r}")
        return Text(self.spell(inner, -1), "%" * before, "%" * after)

    def value(self, node: exp.Expr, left: Sequence[Lexeme], scopes: Scopes, ctes: dict[str, exp.Expr]) -> list[Lexeme]:
        """The right side of a comparison with `left`: literals take the spelling of the column's type."""
        line = self.term(node, scopes, ctes)
        if len(line) != 1 or not isinstance(line[0], Text | Number):
            return line
        kind, column = compared(self.schema, left, self.starts)
        return [literal_lexeme(line[0].text, isinstance(line[0], Number), kind, column, self.spell)]


def compared(schema: Schema, left: Sequence[Lexeme], starts: Sequence[int]) -> tuple[ColumnType | None, int | None]:
    """Type and global column of what a value is compared with, by its last operand as the compact reader sees it."""
    if left and left[-1] in (Word("count(*)"), Word("agg))")):
        return "number", None
    if left and left[-1] == Word("agg)") and left[-3] not in (Word("max("), Word("min(")):
        return "number", None
    last = next((item for item in reversed(left) if isinstance(item, ColumnRef | DerivedRef)), None)
    if isinstance(last, ColumnRef):
        return schema.tables[last.table].columns[last.column].type, starts[last.table] + last.column
    return None, None


def literal_lexeme(text: str, is_number: bool, kind: ColumnType | None, column: int | None, spell: Spell) -> Lexeme:
    """A number for number columns and wherever the type is unknown, when it reads as one; else a text."""
    number = number_literal(text) or number_literal(text.replace(" ", ""))
    if kind in ("number", None) and number is not None:
        return Number(number)
    if is_number and number is None:
        return Number(text)
    return Text(spell(text, column))
