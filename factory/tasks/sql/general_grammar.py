"""The general form's grammar: joins, grouping, set operations, sub-queries over one schema, of bounded size.

Does: write Lark rules whose every sentence is a SELECT that SQLite prepares: tables and columns exist, each column's table is in
FROM, operands of a set operation have equally many columns, sub-queries compared with a value have one.
Does not: type-check comparisons, or mention a table more than four times.

Rules carry a 64-bit parameter (llguidance's parametric grammars), cut into fields: which tables the select list still needs,
which are in scope, and counters that bound every list and the nesting. A parameter only flows down and to the right, so the
rules are written right-recursively: what comes after an item is the last symbol of the item's rule. llguidance 1.9 does not
compare parameters when a rule that others wait for is complete, so one rule must not stand at one place with two parameters
that matter: nothing is guessed ahead (a derived table's name tells its number of columns, for one).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from factory.tasks.sql.lexemes import (
    MAX_DERIVED,
    WORDS,
    ColumnRef,
    DerivedAs,
    DerivedName,
    DerivedRef,
    Names,
    TableRef,
    to_compact,
    to_plain,
)
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.table_uses import Use, table_uses
from factory.tasks.task import Dialect

MAX_ITEMS, MAX_JOINS, MAX_PREDICATES, MAX_DEPTH = 6, 4, 6, 7
"""Select items; joins beyond those the items need; predicates of a WHERE less one; nesting of queries."""
DEEP = 2
"""From this depth on a query holds one query (its derived table counts), above it two and a derived table: the longest
sentence stays linear in the depth."""
DEEP_ITEMS, DEEP_JOINS, DEEP_PREDICATES = 4, 2, 2
"""Items, joins and predicates (less one) of a query from DEEP on."""

FIELDS = {"cnt": 3, "target": 3, "depth": 3, "joins": 3, "preds": 3, "subs": 2, "derived": 1, "dn": 3, "right": 1}
"""Parameter fields and their bits; what is left of 63 tracks tables. cnt: select items so far; target: how many there must be
(0: any); subs: sub-queries so far; derived: this query makes a derived table; dn: FROM is a derived table of so many columns;
right: this is the right side of a set operation; derived and right together: this is the inside of EXISTS."""
SIZES = [(n, i) for n in range(1, MAX_DERIVED + 1) for i in range(1, n + 1)]
BITS = 63 - sum(FIELDS.values())


@dataclass(frozen=True)
class Values:
    """Ready terminals: `text` is a quoted or compact value, `like` a pattern, `number` and `limit` alternatives of literals."""

    rules: tuple[str, ...]
    text: str
    like: str
    number: str
    limit: str


def rules(schema: Schema, dialect: Dialect, named: Names, values: Values) -> str:
    """Lark text of the whole grammar."""
    return _Grammar(schema, dialect, named, values).text()


class _Grammar:
    def __init__(self, schema: Schema, dialect: Dialect, named: Names, values: Values) -> None:
        self.schema, self.dialect, self.named, self.values = schema, dialect, named, values
        self.uses = table_uses(schema, BITS)
        self.tracked = self.uses[0].scope is not None
        needs = [u.need for u in self.uses if u.need is not None]
        scopes = [u.scope for u in self.uses if u.scope is not None]
        self.need = f"[0:{len(needs)}]"
        self.scope = f"[{len(needs)}:{len(needs) + len(scopes)}]"
        self.scope_mask = ((1 << len(scopes)) - 1) << len(needs)
        self.size = len(scopes)
        self.at, start = {}, BITS
        for name, bits in FIELDS.items():
            self.at[name] = (start, start + bits)
            start += bits

    # -- small words ---------------------------------------------------------------------------------------------------
    def w(self, word: str) -> str:
        """A word's terminal; nothing where the dialect leaves it out."""
        text = WORDS[word][0 if self.dialect == "plain" else 1]
        return json.dumps(text, ensure_ascii=False) if text else ""

    def any(self, *words: str) -> str:
        return "(" + " | ".join(self.w(word) for word in words) + ")"

    def lexeme(self, item: object) -> str:
        line = [item]
        text = to_plain(self.schema, line) if self.dialect == "plain" else to_compact(self.schema, line, self.named)  # type: ignore[arg-type]
        return json.dumps(text, ensure_ascii=False) if text else ""

    def table(self, use: Use) -> str:
        """A table use in FROM; an alias is a lexeme of its own, or the bare name could not end there."""
        if self.dialect == "compact" or use.instance == 1:
            return self.lexeme(TableRef(use.table, use.instance))
        bare, whole = (to_plain(self.schema, [TableRef(use.table, k)]) for k in (1, use.instance))
        return f"{json.dumps(bare, ensure_ascii=False)} {json.dumps(whole.removeprefix(bare), ensure_ascii=False)}"

    def f(self, name: str) -> str:
        a, b = self.at[name]
        return f"[{a}:{b}]"

    def is_(self, test: str, name: str, value: int) -> str:
        return f"{test}({self.f(name)}, {value})"

    def put(self, **fields: int) -> str:
        return hex(sum(value << self.at[name][0] for name, value in fields.items()))

    def mask(self, *names: str, scope: bool = False) -> str:
        out = self.scope_mask if scope else 0
        for name in names:
            a, b = self.at[name]
            out |= ((1 << b) - 1) & ~((1 << a) - 1)
        return hex(out)

    def capped(self, name: str, most: int, deep_most: int, deep: int) -> str:
        """Whether a counter may still grow: below `most`, or from depth `deep` on below `deep_most`."""
        return self.either(self.is_("lt", name, deep_most), self.both(self.is_("lt", name, most), self.is_("lt", "depth", deep)))

    @staticmethod
    def both(*tests: str) -> str:
        tests = tuple(test for test in tests if test)
        out = tests[0]
        for test in tests[1:]:
            out = f"and({out}, {test})"
        return out

    @staticmethod
    def either(*tests: str) -> str:
        out = tests[0]
        for test in tests[1:]:
            out = f"or({out}, {test})"
        return out

    # -- the rules -----------------------------------------------------------------------------------------------------
    def text(self) -> str:
        lines = [
            "%llguidance {}",
            f"start: {self.w('select')} q::0x0",
            *self.terminals(),
            *self.select_list(),
            *self.sources(),
            *self.clauses(),
        ]
        lines += [*self.predicates(), *self.subqueries(), *self.values.rules]
        return "\n".join(lines) + "\n"

    def terminals(self) -> list[str]:
        out = []
        for u, use in enumerate(self.uses):
            columns = range(len(self.schema.tables[use.table].columns))
            names = " | ".join(self.lexeme(ColumnRef(use.table, use.instance, c)) for c in columns)
            out += [f"C{u}: {names}", f"t{u}: {self.table(use)}"]
        out += [f"D{n}{i}: {self.lexeme(DerivedRef(n, i))}" for n, i in SIZES]
        # Words that begin other words (COUNT, COUNT(*)) are cut in two: the lexer is greedy and does not go back.
        out += [
            f"CNT: {self.w('count(')}",
            f"SUMAVG: {self.w('sum(')} | {self.w('avg(')}",
            f"MAXMIN: {self.w('max(')} | {self.w('min(')}",
        ]
        star = '"*)"' if self.dialect == "plain" else self.w("*")
        out += [f"all: CNT {star}", f"agg: MAXMIN | (CNT | SUMAVG) {self.w('distinct')}?"]
        out += [f"ARITH: {' | '.join(self.w(word) for word in ('+', '-', '*of', '/'))}"]
        out += [f"CMP: {' | '.join(self.w(word) for word in ('=', '!=', '>', '<', '>=', '<='))}"]
        out += [f"NUMBER: {self.values.number}", f"COUNT: {self.values.limit}"]
        return out

    def select_list(self) -> list[str]:
        """q: a query after SELECT; sel: a select item and all after it; aft, tail, named, next: what may follow an item."""
        end = self.w("agg)")
        distinct = f"{self.w('distinct')}?"
        q = [f"{distinct} sel::_"]
        whole = self.both(self.is_("le", "target", 1), self.is_("eq", "derived", 0), self.is_("lt", "depth", MAX_DEPTH))
        unnamed = f"{self.w('(')} derived0::bit_and({self.mask('depth')}) {self.w(')')} {self.lexeme(DerivedAs(0))}"
        q += [f"all {self.w('from')} {unnamed} %if {whole}"]
        q += [f"{distinct} {self.w('*')} {self.w('from')} tab::_ %if {self.is_('eq', 'target', 0)}"]
        first, second, inner, inner2 = [], [], [], []
        for u, use in enumerate(self.uses):
            if self.tracked and use.need is None:
                continue
            step = f"::set_bit({use.need})" if self.tracked else "::_"
            clear = f"bit_clear({use.scope})" if self.tracked else ""
            test = f"%if {self.both(self.is_('eq', 'dn', 0), clear)}"
            first.append(f"item{u} aft{step} {test}")
            second.append(f"item{u} tail{step} {test}")
            inner.append(f"C{u} ain{step} {test}")
            inner2.append(f"C{u} {self.w('agg))')} aft{step} {test}")
        for n, i in SIZES:
            known = self.is_("eq", "dn", n)
            fresh = self.both(self.is_("eq", "dn", 0), self.is_("eq", "cnt", 0), self.is_("lt", "depth", MAX_DEPTH))
            first.append(f"ditem{n}{i} aft::bit_or({self.put(dn=n)}) %if {self.either(known, fresh)}")
            second.append(f"ditem{n}{i} tail::_ %if {known}")
        out = [self.rule("q", q)]
        out += [self.rule("sel", [*first, "all aft::_", f"agg {self.w('agg((')} agx::_ %if {self.is_('eq', 'dn', 0)}"])]
        out += [
            self.rule("agx", inner),
            self.rule("ain", ["ARITH ain2::_"]),
            self.rule("ain2", [*inner2, f"NUMBER {self.w('agg))')} aft::_"]),
        ]
        out += [self.rule("aft", ["tail::_", "ARITH sel2::_"]), self.rule("sel2", [*second, "all tail::_", "NUMBER tail::_"])]
        out += [
            f"item{u}: C{u} | agg C{u} {end}" for u in range(len(self.uses)) if not self.tracked or self.uses[u].need is not None
        ]
        out += [f"ditem{n}{i}: D{n}{i} | agg D{n}{i} {end}" for n, i in SIZES]
        out += [self.rule("tail", [f"named::incr({self.f('cnt')})"])]
        names = [
            f"{self.lexeme(DerivedName(i))} next::_ %if {self.both(self.is_('eq', 'derived', 1), self.is_('eq', 'cnt', i))}"
            for i in range(1, MAX_DERIVED + 1)
        ]
        out += [self.rule("named", [*names, f"next::_ %if {self.is_('eq', 'derived', 0)}"])]
        free = self.is_("eq", "target", 0)
        pairs = [(a, b) for a in range(1, MAX_ITEMS + 1) for b in range(1, MAX_ITEMS + 1)]
        same = [self.both(self.is_("eq", "cnt", a), self.is_("eq", "target", b)) for a, b in pairs if a == b]
        below = [self.both(self.is_("eq", "target", b), self.is_("lt", "cnt", b)) for b in range(2, MAX_ITEMS + 1)]
        room = self.capped("cnt", MAX_ITEMS, DEEP_ITEMS, DEEP)
        more = self.both(room, self.either(free, *below))
        out += [
            self.rule("next", [f"{self.w(',')} sel::_ %if {more}", f"{self.w('from')} src::_ %if {self.either(free, *same)}"])
        ]
        return out

    def sources(self) -> list[str]:
        """src: FROM's content; tab: its first table; joins, jtab, on: further ones."""
        src = [f"tab::_ %if {self.is_('eq', 'dn', 0)}"]
        for n in range(1, MAX_DERIVED + 1):
            inner = f"{self.w('(')} derived{n}::bit_and({self.mask('depth')}) {self.w(')')} {self.lexeme(DerivedAs(n))}"
            src += [f"{inner}{more} %if {self.is_('eq', 'dn', n)}" for more in ("", " dbody::_")]
        # A derived table deep down counts as the one sub-query allowed there.
        deep = [
            f"body::incr({self.f('subs')}) %if {self.is_('gt', 'depth', DEEP)}",
            f"body::_ %if {self.is_('le', 'depth', DEEP)}",
        ]
        out = [self.rule("src", src), self.rule("dbody", deep)]
        out += [self.rule("derived0", [f"{self.w('select')} q::incr({self.f('depth')})"])]
        for n in range(1, MAX_DERIVED + 1):
            out += [self.rule(f"derived{n}", [f"derivedb{n}::incr({self.f('depth')})"])]
            out += [self.rule(f"derivedb{n}", [f"{self.w('select')} q::bit_or({self.put(target=n, derived=1)})"])]
        if not self.tracked:
            first = [f"t{u}{more}" for u in range(len(self.uses)) for more in ("", " joins::_")]
            later = [f"t{u}{more}" for u in range(len(self.uses)) for more in ("", " on::_")]
            join = f"{self.any('join', 'left')} jtab::incr({self.f('joins')}) %if {self.is_('lt', 'joins', MAX_JOINS)}"
            out += [self.rule("tab", first), self.rule("jtab", later), self.rule("joins", [join, "body::_"])]
        else:
            first, later = [], []
            extra = self.is_("le", "joins", MAX_JOINS)
            for u, use in enumerate(self.uses):
                allowed = extra if use.need is None else self.either(f"bit_set({use.need})", extra)
                then, on = ("joins", "on") if use.need is None else (f"first{u}", f"later{u}")
                free = f"bit_clear({use.scope})"
                last = [f"is_zeros({self.need})", *([] if use.need is None else [f"eq({self.need}, {1 << use.need})"])]
                first += [f"t{u} {then}::set_bit({use.scope}) %if {free}", f"t{u} %if {self.both(free, self.either(*last))}"]
                later.append(f"t{u} {on}::set_bit({use.scope}) %if {self.both(free, allowed)}")
                later.append(f"t{u} %if {self.both(free, allowed, self.either(*last))}")
                if use.need is not None:
                    clear = f"clear_bit({use.need})"
                    out += [self.rule(then, [f"joins::{clear}"]), self.rule(on, [f"on::{clear}"])]
            room = self.both(f"bit_count_lt({self.scope}, {self.size})", self.capped("joins", MAX_JOINS, DEEP_JOINS, DEEP))
            # A table not yet needed must be left to join: all needed ones are outside the scope.
            test = self.either(f"ne({self.need}, 0)", room)
            join = f"{self.any('join', 'left')} jtab::incr({self.f('joins')}) %if {test}"
            out += [self.rule("tab", first), self.rule("jtab", later)]
            out += [self.rule("joins", [join, f"body::_ %if is_zeros({self.need})"])]
        equal = f"col::_ {self.w('=')} col::_"
        on = f"{self.w('on')} {equal} ({self.w('and')} {equal}){{0,3}}"
        end = f" %if is_zeros({self.need})" if self.tracked else ""
        out += [self.rule("on", ["joins::_", f"{on} joins::_", f"{on}{end}"])]
        columns = [f"C{u} %if bit_set({use.scope})" if self.tracked else f"C{u}" for u, use in enumerate(self.uses)]
        columns += [f"D{n}{i} %if {self.is_('eq', 'dn', n)}" for n, i in SIZES]
        return [*out, self.rule("col", columns)]

    def clauses(self) -> list[str]:
        """What follows FROM; no rule here is empty, for conditions on empty rules are not followed through others.

        body: all after FROM; grest: from GROUP BY on; rest, grouped: from ORDER BY on, without and with groups."""
        group = f"{self.w('group')} col::_ ({self.w(',')} col::_){{0,3}}"
        out = [self.rule("body", [f"{self.w('where')} conds::_", "grest::_"])]
        # Inside EXISTS (derived and right both set) nothing but WHERE: SQLite groups and orders by own columns only.
        plain = f" %if {self.either(self.is_('eq', 'derived', 0), self.is_('eq', 'right', 0))}"
        out += [self.rule("grest", ["rest::_", group + plain, f"{group} hrest::_{plain}"])]
        out += [self.rule("hrest", ["grouped::_", f"{self.w('having')} hconds::_", f"{self.w('having')} hconds::_ grouped::_"])]
        limit = f"({self.w('limit')} COUNT ({self.w('offset')} COUNT)?)"
        desc = f"{self.w('desc')}?"
        left = f"%if {self.is_('eq', 'right', 0)}"
        for name, key in (("rest", "key"), ("grouped", "gkey")):
            order = f"{self.w('order')} {key}::_ {desc} ({self.w(',')} {key}::_ {desc}){{0,2}} {limit}?"
            out += [self.rule(name, [f"{order} {left}", f"{limit} {left}", "setop::_"])]
        out += [
            self.rule("key", ["col::_", "col::_ ARITH col::_"]),
            self.rule("gkey", ["operand::_", "operand::_ ARITH operand::_"]),
        ]
        out += [self.rule("operand", ["col::_", "all", f"agg col::_ {self.w('agg)')}"])]
        words = self.any("union", "union all", "intersect", "except")
        kept = self.mask("depth", "derived")
        sets = []
        for n in range(1, MAX_ITEMS + 1):
            test = self.both(self.is_("eq", "cnt", n), self.is_("eq", "right", 0), self.is_("le", "depth", 1))
            sets.append(f"{words} right{n}::bit_and({kept}) %if {test}")
            out += [self.rule(f"right{n}", [f"{self.w('select')} q::bit_or({self.put(target=n, right=1)})"])]
        return [*out, self.rule("setop", sets)]

    def predicates(self) -> list[str]:
        """conds: a predicate of WHERE and all after it; more: what may follow; hconds: HAVING's predicates."""
        value = f"(NUMBER | {self.values.text})"
        no = {word: self.any(word, f"not {word}") for word in ("in", "like", "between")}
        joiner = self.any("and", "or")
        between = f"{no['between']} {value} {self.w('and')} {value}"
        listed = f"{no['in']} {self.w('(')} {value} ({self.w(',')} {value}){{0,4}} {self.w(')')}"
        null = self.any("is null", "is not null")
        pred = [
            f"key::_ CMP {value}",
            "key::_ CMP key::_",
            f"key::_ {between}",
            f"col::_ {listed}",
            f"col::_ {no['like']} {self.values.like}",
        ]
        pred += [f"col::_ {null}"]
        room = self.both(
            self.is_("lt", "depth", MAX_DEPTH),
            self.either(self.is_("eq", "subs", 0), self.both(self.is_("eq", "subs", 1), self.is_("lt", "depth", DEEP))),
        )
        grouped = f"{self.w('(')} pred::_ ({joiner} pred::_){{1,3}} {self.w(')')}"
        compared = f"key::_ (CMP | {no['in']}) {self.w('(')} one::_ {self.w(')')}"
        exists = f"{self.any('exists', 'not exists')} {self.w('(')} seen::_ {self.w(')')}"
        counted = f"more::incr({self.f('preds')})"
        out = [self.rule("pred", pred), self.rule("counted", [counted])]
        room_to_see = f" %if bit_count_lt({self.scope}, {self.size})" if self.tracked else ""
        out += [self.rule("subpred", [compared, exists + room_to_see])]
        shallow = f" %if {self.is_('lt', 'depth', DEEP)}"
        ways = ["pred::_", "pred::_ counted::_", grouped + shallow, f"{grouped} counted::_{shallow}", f"subpred::_ %if {room}"]
        ways += [f"subpred::_ counted::incr({self.f('subs')}) %if {room}"]
        out += [self.rule("conds", ways)]
        out += [
            self.rule(
                "more", ["grest::_", f"{joiner} conds::_ %if {self.capped('preds', MAX_PREDICATES, DEEP_PREDICATES, DEEP)}"]
            )
        ]
        hpred = [f"gkey::_ CMP {value}", "gkey::_ CMP operand::_", f"gkey::_ {between}"]
        hsub = f"gkey::_ (CMP | {no['in']}) {self.w('(')} one::_ {self.w(')')}"
        out += [
            self.rule("hpred", hpred),
            self.rule("hconds", [f"hpred::_ ({joiner} hpred::_){{0,2}}", f"{hsub} ({joiner} hpred::_)? %if {room}"]),
        ]
        return out

    def subqueries(self) -> list[str]:
        """one: a query of one column on its own; seen: what EXISTS asks for, SELECT * that sees the tables around it."""
        one = self.rule("one", [f"oneb::bit_and({self.mask('depth')})"])
        oneb = self.rule("oneb", [f"onec::incr({self.f('depth')})"])
        onec = self.rule("onec", [f"{self.w('select')} q::bit_or({self.put(target=1)})"])
        seen = self.rule("seen", [f"seenb::bit_and({self.mask('depth', scope=self.tracked)})"])
        seenb = self.rule("seenb", [f"seenc::incr({self.f('depth')})"])
        star = f"{self.w('select')} {self.w('*')} {self.w('from')}"
        return [one, oneb, onec, seen, seenb, self.rule("seenc", [f"{star} tab::bit_or({self.put(derived=1, right=1)})"])]

    @staticmethod
    def rule(name: str, ways: Sequence[str]) -> str:
        # llguidance 1.9 takes a rule of one way for an alias and loses its parameter: a second way, never open.
        ways = [*ways, "all q::_ %if and(bit_set(0), bit_clear(0))"] if len(ways) == 1 else ways
        return f"{name}::_: " + "\n  | ".join(ways)
