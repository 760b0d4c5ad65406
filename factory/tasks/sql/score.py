"""Judge an answer against the reference: by result, by WikiSQL's logical form, by Spider's exact set match.

Does: score, verify, name the kind of error, give the key under which answers agree in a vote.
Does not: run anything outside `Database.execute`, or average (`factory.predictions` counts and gives intervals).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from factory.tasks.sql import forms
from factory.tasks.sql.components import Condition, Parts, is_ordered, parts, same_parts, stable
from factory.tasks.sql.database import Database, ExecError, Result
from factory.tasks.task import Score, TaskError, Verdict

ERROR_KINDS = (
    "no-answer", "does-not-run", "time-out", "too-many-rows", "too-large", "not-read-only", "wrong-table", "wrong-column",
    "wrong-aggregate", "wrong-condition-column", "wrong-operator", "wrong-value", "missing-condition", "extra-condition",
    "wrong-structure", "wrong-result",
)  # fmt: skip
"""Kinds of wrong answers in the order they are looked for: an answer with several faults has the first."""


def score(database: Database, answer: str, reference: str | None) -> Score:
    """Metrics that apply: "execution" (rows exist and the reference runs), "logical_form" (single table), or "exact_set"
    (values ignored, Spider's own) and "exact_set_values". `correct` is execution, else logical_form, else exact_set."""
    if reference is None:
        raise TaskError("a question without a reference cannot be scored; give its SQL, or score another split")
    metrics: dict[str, bool] = {}
    fault: str | None = None if answer.strip() else "no-answer"
    result: Result | None = None
    if fault is None:
        try:
            result = _run(database, answer)
        except ExecError as error:
            fault = error.kind
    wanted = _reference_result(database, reference) if database.has_rows else None
    if wanted is not None:
        metrics["execution"] = result is not None and _agree(database, answer, result, reference, wanted)
    if database.schema.single:
        one, two = forms.from_sql(answer, database.schema), forms.from_sql(reference, database.schema)
        metrics["logical_form"] = (
            fault is None and one is not None and two is not None and forms.same_form(one, two, database.schema)
        )
    else:
        metrics["exact_set"] = fault is None and _same_sets(database, answer, reference, values=False)
        metrics["exact_set_values"] = fault is None and _same_sets(database, answer, reference, values=True)
    correct = next(metrics[name] for name in ("execution", "logical_form", "exact_set") if name in metrics)
    return Score(correct=correct, metrics=metrics, error=None if correct else fault or fault_kind(database, answer, reference))


def verify(database: Database, answer: str, reference: str | None) -> Verdict:
    """Whether an answer may be learned from; reasons are ERROR_KINDS and "empty-result" (no reference, and nothing comes back).

    A result with no rows, or only NULLs, or one 0, proves nothing: then the queries themselves must agree, values too."""
    if not answer.strip():
        return Verdict(ok=False, reason="no-answer", detail="the answer is empty")
    try:
        result = _run(database, answer)
    except ExecError as error:
        return Verdict(ok=False, reason=error.kind, detail=error.detail)
    if reference is None:
        if database.has_rows and not _says_something(result):
            return Verdict(ok=False, reason="empty-result", detail="it runs, but returns nothing")
        return Verdict(ok=True)
    wanted = _reference_result(database, reference) if database.has_rows else None
    if wanted is not None and _says_something(wanted):
        agrees = _agree(database, answer, result, reference, wanted)
    else:
        agrees = normalised(database, answer) == normalised(database, reference)
    if agrees:
        return Verdict(ok=True)
    return Verdict(ok=False, reason=fault_kind(database, answer, reference), detail="it disagrees with the reference")


def vote_key(database: Database, answer: str) -> str | None:
    """A hash of the result where rows exist, else of the normalised query; None when it does not run or returns nothing."""
    try:
        result = _run(database, answer)
    except ExecError:
        return None
    if not database.has_rows:
        return hashlib.sha256(normalised(database, answer).encode("utf-8", "replace")).hexdigest()
    return database.result_key(result, is_ordered(answer)) if result.rows else None


def normalised(database: Database, sql: str) -> str:
    """A query's text after taking out what does not matter: order of conditions and tables, aliases, case, layout."""
    if database.schema.single:
        form = forms.from_sql(sql, database.schema)
        if form is not None:
            columns = database.schema.tables[0].columns
            keys = sorted(((columns[c].name.lower(), o, str(v)) for c, o, v in forms.condition_keys(form, database.schema)))
            return repr((columns[form.sel].name.lower(), form.agg, keys))
    found = parts(sql, database.schema, values=True)
    if found is None:
        return " ".join(sql.lower().split())
    return stable(found)


def fault_kind(database: Database, answer: str, reference: str) -> str:
    """Which of ERROR_KINDS explains that a running answer is wrong."""
    schema = database.schema
    if schema.single:
        one, two = forms.from_sql(answer, schema), forms.from_sql(reference, schema)
        if one is not None and two is not None:
            return _form_fault(one, two, database)
    left, right = parts(answer, schema, values=True), parts(reference, schema, values=True)
    return "wrong-structure" if left is None or right is None else _parts_fault(left, right)


def _form_fault(one: forms.Form, two: forms.Form, database: Database) -> str:
    if one.sel != two.sel:
        return "wrong-column"
    if one.agg != two.agg:
        return "wrong-aggregate"
    keys = [forms.condition_keys(form, database.schema) for form in (one, two)]
    left, right = ({Condition(str(c), str(o), str(v), True) for c, o, v in key} for key in keys)
    return _condition_fault(left, right) or "wrong-result"


def _parts_fault(one: Parts, two: Parts) -> str:
    if one.tables != two.tables:
        return "wrong-table"
    if one.columns != two.columns:
        return "wrong-column"
    if one.select != two.select:
        return "wrong-aggregate"
    fault = _condition_fault(set(one.where), set(two.where)) or _condition_fault(set(one.having), set(two.having))
    if fault is not None:
        return fault
    return "wrong-structure" if one != two else "wrong-result"


def _condition_fault(one: set[Condition], two: set[Condition]) -> str | None:
    """Conditions that both sides have are set aside; what is left is compared by column, then operator, then value."""
    left, right = one - two, two - one
    if not left and not right:
        return None
    if not left:
        return "missing-condition"
    if not right:
        return "extra-condition"
    if sorted(c.left for c in left) == sorted(c.left for c in right):
        same_operators = sorted((c.left, c.operator) for c in left) == sorted((c.left, c.operator) for c in right)
        return "wrong-value" if same_operators else "wrong-operator"
    if len(left) == len(right):
        return "wrong-condition-column"
    return "missing-condition" if len(left) < len(right) else "extra-condition"


def _run(database: Database, answer: str) -> Result:
    """The result where rows exist; else only the proof that it compiles."""
    if database.has_rows:
        return database.execute(answer)
    database.check(answer)
    return Result((), ())


def _agree(database: Database, answer: str, result: Result, reference: str, wanted: Result) -> bool:
    ordered = is_ordered(reference)
    return database.result_key(result, ordered) == database.result_key(wanted, ordered)


@lru_cache(maxsize=256)
def _reference_result(database: Database, reference: str) -> Result | None:
    """None when the reference itself does not run."""
    try:
        return database.execute(reference)
    except ExecError:
        return None


def _says_something(result: Result) -> bool:
    cells = [cell for row in result.rows for cell in row if cell is not None]
    return bool(cells) and not (len(cells) == 1 and len(result.rows) == 1 and cells[0] == 0)


def _same_sets(database: Database, answer: str, reference: str, *, values: bool) -> bool:
    return same_parts(parts(answer, database.schema, values=values), parts(reference, database.schema, values=values))
