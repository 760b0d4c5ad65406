"""WikiSQL's form in position tokens: `<max><c3><and><gt><v1><c4>` is MAX(c3) WHERE c4 > value 1.

Does: write a logical form (`forms.py`) as compact text and read it back, values spelt as the question spells them.
Does not: write or read SQL, find values (`marks.py`), or anything with a second table (`lexemes.py`).

The order is made for a model that continues what followed a token in the prompt. Nothing there follows `<sel>`, `<and>` or
an operator, so that what to select, and how to compare, is decided without such an echo; a value comes before its column, whose
token follows the value's mark in the prompt, so that the echo is right. A value without a mark is written out:
` butler cc ( ks )<c5>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from factory.tasks.sql.forms import Form
from factory.tasks.sql.marks import Marks
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.spaced import chunks, find, find_inside, number_literal, numbers, same_number, spaced
from factory.tasks.task import AnswerError

AGGREGATE_TOKENS = ("<sel>", "<max>", "<min>", "<count>", "<sum>", "<avg>")
OPERATOR_TOKENS = ("<eq>", "<gt>", "<lt>")
MAX_CONDITIONS = 4

AND = "<and>"

_HEAD = re.compile(r"\s*(<\w+>)\s*<c(\d+)>")
_CONDITION = re.compile(r"\s*<and>\s*(<eq>|<gt>|<lt>)\s*(?:<v(\d+)>|(.+?))\s*<c(\d+)>", re.DOTALL)


def spell(question: str, value: str) -> tuple[str, int]:
    """The value as the question spells it, and where it stands there (-1: not in the question, the value itself)."""
    parts = chunks(question)
    place = find(parts, value)
    if place is None and (wanted := number_literal(value)) is not None:
        place = next(((a, b) for number, a, b in numbers(question) if same_number(number, wanted)), None)
    if place is None:
        place = find_inside(parts, value)
    return (value, -1) if place is None else (question[place[0] : place[1]], place[0])


def respelt(question: str, form: Form) -> Form:
    """The form with its values spelt as in the question."""
    return Form(form.sel, form.agg, tuple((c, o, spell(question, v)[0]) for c, o, v in form.conds))


def to_compact(marks: Marks, form: Form, rank: Sequence[int]) -> str:
    """Compact text; `rank[i]` is the number column i has in the prompt.

    Conditions follow the places of their values in the question, so that equal meanings have one spelling to learn.
    """
    written = []
    for column, operator, value in form.conds:
        text, place = spell(marks.question, value)
        mark = marks.number_of.get(text.lower())
        body = f"<v{mark}>" if mark is not None else spaced(text) or " " + text.lower()
        written.append((place, f"{AND}{OPERATOR_TOKENS[operator]}{body}<c{rank[column]}>"))
    written.sort(key=lambda item: item[0])
    return f"{AGGREGATE_TOKENS[form.agg]}<c{rank[form.sel]}>" + "".join(text for _, text in written)


def from_compact(schema: Schema, marks: Marks, completion: str, order: Sequence[int]) -> Form:
    """The reverse; `order[k]` is the schema column shown as `<ck>`. Raises AnswerError("not-parsed" | "unknown-column")."""
    head = _HEAD.match(completion)
    if head is None or head[1] not in AGGREGATE_TOKENS:
        raise AnswerError("not-parsed", f"no aggregate and column at the start: {completion[:80]!r}")

    def column(number: str) -> int:
        if int(number) >= len(order):
            raise AnswerError("unknown-column", f"<c{number}> is not in the prompt ({len(order)} columns)")
        return order[int(number)]

    selected, conditions, at = column(head[2]), [], head.end()
    while completion[at:].strip():
        found = _CONDITION.match(completion, at)
        if found is None:
            raise AnswerError("not-parsed", f"not a condition: {completion[at : at + 80]!r}")
        own, operator = column(found[4]), OPERATOR_TOKENS.index(found[1])
        if found[2] is None:
            value = spell(marks.question, found[3].strip())[0]
        elif int(found[2]) < len(marks.values):
            value = marks.values[int(found[2])][0]
        else:
            raise AnswerError("not-parsed", f"<v{found[2]}> is not in the prompt ({len(marks.values)} values)")
        if operator or schema.tables[0].columns[own].type == "number":
            value = number_literal(value) or value
        conditions.append((own, operator, value))
        at = found.end()
    return Form(selected, AGGREGATE_TOKENS.index(head[1]), tuple(conditions))
