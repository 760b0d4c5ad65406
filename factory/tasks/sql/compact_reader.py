"""Read the compact general form back into lexemes.

Does: undo `lexemes.to_compact`, remembering what each value is compared with, and name derived tables again.
Does not: check that the line is a query; a grammar or SQLite does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from factory.tasks.sql.lexemes import (
    WORDS,
    ColumnRef,
    DerivedAs,
    DerivedName,
    DerivedRef,
    Lexeme,
    Names,
    Number,
    TableRef,
    Text,
    Word,
)
from factory.tasks.sql.schema import ColumnType, Schema
from factory.tasks.sql.spaced import number_literal
from factory.tasks.task import AnswerError

_TOKEN = re.compile(r"<(?:[a-z]+\d*|[*,()%])>|[^<]+|<")
_BY_TOKEN = {compact: word for word, (_, compact) in WORDS.items() if compact.count("<") == 1 and word not in ("agg((", "agg))")}


def from_compact(
    schema: Schema, completion: str, named: Names, restore: Callable[[str, ColumnType | None, int | None], Lexeme]
) -> list[Lexeme]:
    """Compact text -> lexemes; `restore(text, type, global column)` spells a value again (type None: nothing known).

    Raises AnswerError("not-parsed" | "unknown-table" | "unknown-column").
    """
    if not completion.lstrip().startswith("<select>"):
        raise AnswerError("not-parsed", f"no <select> at the start: {completion[:80]!r}")
    reader = _Reader(schema, _TOKEN.findall(completion.strip()), named, restore)
    return reader.read()


class _Reader:
    """One pass over the tokens, remembering what the next value will be compared with and which brackets are open."""

    def __init__(self, schema: Schema, tokens: list[str], named: Names, restore: Callable[..., Lexeme]) -> None:
        self.schema, self.tokens, self.named, self.restore = schema, tokens, named, restore
        self.at = 0
        self.line: list[Lexeme] = []
        self.compared: tuple[ColumnType | None, int | None] = (None, None)
        self.starts = [sum(len(t.columns) for t in schema.tables[:k]) for k in range(len(schema.tables))]

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def fail(self, reason: str, detail: str) -> AnswerError:
        return AnswerError(reason, f"{detail} at {''.join(self.tokens[max(self.at - 3, 0) : self.at + 3])!r}")

    def read(self) -> list[Lexeme]:
        brackets: list[str] = []
        while self.at < len(self.tokens):
            token = self.peek()
            if token in ("<%>",) or not token.startswith("<"):
                self.value()
                continue
            aggregate = self.aggregate()
            if aggregate is not None:
                self.line.append(Word(aggregate))
                if aggregate == "count(*)":
                    self.compared = ("number", None)
                elif self.peek() == "<(>":
                    self.at += 1
                    self.line.append(Word("agg(("))
                    brackets.append("agg))")
                else:
                    self.operand()
                    self.line.append(Word("agg)"))
                    if not aggregate.startswith(("max", "min")):
                        self.compared = ("number", None)
                continue
            if re.fullmatch(r"<[itd]\d+>", token):
                self.operand()
                continue
            word = _BY_TOKEN.get(token)
            if word is None:
                raise self.fail("not-parsed", f"no such token {token!r}")
            self.at += 1
            if word == "(":
                brackets.append(")")
            elif word == ")":
                if not brackets:
                    raise self.fail("not-parsed", "a bracket closes that was not opened")
                kind = brackets.pop()
                self.line.append(Word(kind))
                self.compared = ("number", None) if kind == "agg))" else self.compared
                continue
            self.line.append(Word(word))
        if brackets:
            raise self.fail("not-parsed", "a bracket stays open")
        return _name_outputs(self.line)

    def aggregate(self) -> str | None:
        token, following = self.peek(), self.peek(1)
        name = token[1:-1]
        if name not in ("max", "min", "count", "sum", "avg"):
            return None
        if name == "count" and following == "<*>":
            self.at += 2
            return "count(*)"
        if following == "<distinct>" and f"{name}(distinct" in WORDS:
            self.at += 2
            return f"{name}(distinct"
        self.at += 1
        return f"{name}("

    def operand(self) -> None:
        token, instance = self.peek(), 1
        if token.startswith("<d"):
            self.at += 1
            if not re.fullmatch(r"<d[1-9][1-9]>", token):
                raise self.fail("not-parsed", f"no such token {token!r}")
            self.line.append(DerivedRef(int(token[2]), int(token[3])))
            self.compared = (None, None)
            return
        if token.startswith("<i"):
            instance = int(token[2:-1])
            self.at += 1
            token = self.peek()
        if not re.fullmatch(r"<t\d+>", token):
            raise self.fail("not-parsed", "a table or column is missing")
        if int(token[2:-1]) >= len(self.named.tables):
            raise self.fail("unknown-table", f"{token} is not in the prompt")
        table = self.named.tables[int(token[2:-1])]
        self.at += 1
        number = re.fullmatch(r"<c(\d+)>", self.peek())
        if number is None:
            self.line.append(TableRef(table, instance))
            return
        if int(number[1]) >= len(self.named.columns[table]):
            raise self.fail("unknown-column", f"{token}{number[0]} is not in the prompt")
        column = self.named.columns[table][int(number[1])]
        self.at += 1
        self.line.append(ColumnRef(table, instance, column))
        self.compared = (self.schema.tables[table].columns[column].type, self.starts[table] + column)

    def value(self) -> None:
        before = after = ""
        if self.peek() == "<%>":
            before = "%"
            self.at += 1
        text = ""
        while self.peek() and (self.peek() == "<" or not self.peek().startswith("<")):
            text += self.peek()
            self.at += 1
        if self.peek() == "<%>":
            after = "%"
            self.at += 1
        text = text.strip()
        last = self.line[-1] if self.line else None
        if before or after or last in (Word("like"), Word("not like")):
            restored = self.restore(text, "text", None)
            self.line.append(Text(restored.text if isinstance(restored, Number | Text) else text, before, after))
        elif last in (Word("limit"), Word("offset")):
            self.line.append(Number(number_literal(text) or "1"))
        else:
            self.line.append(self.restore(text, *self.compared))


def _name_outputs(line: Sequence[Lexeme]) -> list[Lexeme]:
    """Name derived tables, and the outputs of those that are referred to (compact text leaves names out)."""
    level, levels = 0, []
    opened: list[int] = []
    referred: dict[int, int] = {}
    for i, item in enumerate(line):
        if item in (Word("("), Word("agg((")):
            opened.append(level)
        elif item in (Word(")"), Word("agg))")) and opened:
            level = opened.pop()
        elif item == Word("select"):
            level = i + 1
        elif isinstance(item, DerivedRef):
            referred[level] = item.size
        levels.append(level)
    out: list[Lexeme] = []
    # One frame per open bracket: size of the derived table in it (None: none), whether in its SELECT list, outputs so far.
    frames: list[tuple[int | None, bool, int]] = [(None, False, 0)]
    for i, item in enumerate(line):
        size, listing, count = frames[-1]
        if size and listing and item in (Word(","), Word("from")) and out[-1] != Word("*"):
            count += 1
            out.append(DerivedName(count))
        out.append(item)
        if item == Word("select"):
            listing, count = True, 0
        frames[-1] = (size, listing and item != Word("from"), count)
        if item in (Word("("), Word("agg((")):
            frames.append((referred.get(levels[i], 0) if i and line[i - 1] == Word("from") else None, False, 0))
        elif item in (Word(")"), Word("agg))")) and len(frames) > 1:
            frames.pop()
            out += [] if size is None else [DerivedAs(size)]
    return out
