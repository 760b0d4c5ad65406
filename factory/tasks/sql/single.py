"""WikiSQL's form in position tokens: `<max><c3><c5><eq> butler cc ( ks )<c4><gt> 3`.

Does: write a logical form (`forms.py`) as compact text and read it back, values spelt as the question spells them.
Does not: write or read SQL, or anything with a second table (`lexemes.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from factory.tasks.sql.forms import Form
from factory.tasks.sql.schema import Schema
from factory.tasks.sql.spaced import chunks, find, find_inside, number_literal, numbers, same_number, spaced
from factory.tasks.task import AnswerError

AGGREGATE_TOKENS = ("<sel>", "<max>", "<min>", "<count>", "<sum>", "<avg>")
OPERATOR_TOKENS = ("<eq>", "<gt>", "<lt>")
MAX_CONDITIONS = 4

_HEAD = re.compile(r"\s*(<\w+>)\s*<c(\d+)>")
_CONDITION = re.compile(r"\s*<c(\d+)>\s*(<\w+>)(.*?)(?=\s*<c\d+>|\s*$)", re.DOTALL)


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


def to_compact(question: str, form: Form, rank: Sequence[int]) -> str:
    """Compact text; `rank[i]` is the number column i has in the prompt.

    Conditions follow the places of their values in the question, so that equal meanings have one spelling to learn.
    """
    written = []
    for column, operator, value in form.conds:
        text, place = spell(question, value)
        body = spaced(text) or " " + text.lower()
        written.append((place, f"<c{rank[column]}>{OPERATOR_TOKENS[operator]}{body}"))
    written.sort(key=lambda item: item[0])
    return f"{AGGREGATE_TOKENS[form.agg]}<c{rank[form.sel]}>" + "".join(text for _, text in written)


def from_compact(schema: Schema, question: str, completion: str, order: Sequence[int]) -> Form:
    """The reverse; `order[k]` is the schema column shown as `<ck>`. Raises AnswerError("not-parsed" | "unknown-column")."""
    head = _HEAD.match(completion)
    if head is None or head[1] not in AGGREGATE_TOKENS:
        raise AnswerError("not-parsed", f"no aggregate and column at the start: {completion[:80]!r}")

    def column(number: str) -> int:
        if int(number) >= len(order):
            raise AnswerError("unknown-column", f"<c{number}> is not in the prompt ({len(order)} columns)")
        return order[int(number)]

    selected, conditions, at = column(head[2]), [], head.end()
    while at < len(completion.rstrip()):
        found = _CONDITION.match(completion, at)
        if found is None or found[2] not in OPERATOR_TOKENS or not found[3].strip():
            raise AnswerError("not-parsed", f"not a condition: {completion[at : at + 80]!r}")
        own, operator = column(found[1]), OPERATOR_TOKENS.index(found[2])
        value = spell(question, found[3].strip())[0]
        if operator or schema.tables[0].columns[own].type == "number":
            value = number_literal(value) or value
        conditions.append((own, operator, value))
        at = found.end()
    return Form(selected, AGGREGATE_TOKENS.index(head[1]), tuple(conditions))
