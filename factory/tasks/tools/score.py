"""Judge answers of the tools task.

Does: check calls against the schemas, compare them with a reference, name what is wrong. Does not: parse completions.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from typing import Any

from factory.tasks.sql.spaced import spaced
from factory.tasks.task import AnswerError, Example, Score, TaskError, Verdict
from factory.tasks.tools import calls
from factory.tasks.tools.calls import Call, Variants
from factory.tasks.tools.functions import ANYTHING, Argument, Function, Toolset


def toolset_of(example: Example) -> Toolset:
    if not isinstance(example.context, Toolset):
        raise TaskError(f"example {example.id!r} has no functions; read examples with the tools task's own loader")
    return example.context


def variants_of(example: Example) -> Variants:
    found: Variants = example.extra.get("also") or {}
    return found


def invalid(toolset: Toolset, found: tuple[Call, ...]) -> tuple[str, str] | None:
    """(reason, sentence) of the first call that its schema refuses, or None."""
    for call in found:
        function = toolset.by_name.get(call.name)
        if function is None:
            return "wrong-function", f"{call.name!r} is not offered; there are {', '.join(toolset.by_name)}"
        missing = next((a.name for a in function.arguments if a.required and a.name not in call.arguments), None)
        if missing is not None:
            return "missing-argument", f"{call.name} needs {missing!r}"
        extra = next((name for name in call.arguments if name not in function.by_name), None)
        if extra is not None:
            return "extra-argument", f"{call.name} has no argument {extra!r}"
        for name, value in call.arguments.items():
            if not _fits(function, function.by_name[name], value):
                return "wrong-value", f"{call.name}: {name} cannot be {json.dumps(value, ensure_ascii=False)}"
    return None


def _fits(function: Function, argument: Argument, value: Any) -> bool:
    from jsonschema import ValidationError

    if value == ANYTHING and argument.default == ANYTHING:
        return True
    if isinstance(value, str) and value.startswith("API_call_"):
        return True
    try:
        _validator(function).evolve(schema=function.parameters["properties"][argument.name]).validate(value)
    except ValidationError:
        return False
    return True


@lru_cache(4096)
def _validator(function: Function) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(dict(function.parameters))


def verify(example: Example, answer: str) -> Verdict:
    """ok when every call fits its schema and, where there is a reference, the calls are those of the reference."""
    toolset = toolset_of(example)
    try:
        found = calls.read(answer)
    except AnswerError as error:
        return Verdict(ok=False, reason=error.reason, detail=str(error))
    if example.reference is not None and (wrong := error_kind(example, found)) is not None:
        return Verdict(ok=False, reason=wrong, detail=f"the reference is {example.reference}")
    bad = invalid(toolset, found)
    if bad is not None and example.reference is None:
        return Verdict(ok=False, reason=bad[0], detail=bad[1])
    return Verdict(ok=True)


def error_kind(example: Example, found: tuple[Call, ...]) -> str | None:
    """None when the calls are those of the reference, else none-missed (it calls nothing where nothing was not right), none-false
    (it calls where nothing fits), wrong-function, missing-argument, extra-argument or wrong-value: the first that applies."""
    toolset, wanted, also = toolset_of(example), calls.read(example.reference or "[]"), variants_of(example)
    if calls.same_calls(toolset, found, wanted, also):
        return None
    if not found:
        return "none-false"
    if not wanted:
        return "none-missed"
    if Counter(call.name for call in found) != Counter(call.name for call in wanted):
        return "wrong-function"
    left = list(found)
    worst = []
    for call in wanted:
        own = next((c for c in left if calls.same_call(toolset, c, call, also)), None)
        own = own or next(c for c in left if c.name == call.name)
        left.remove(own)
        function = toolset.by_name.get(call.name)
        a, b = calls.full(function, own), calls.full(function, call)
        if not calls.same_call(toolset, own, call, also):
            worst.append(
                "missing-argument" if b.keys() - a.keys() else "extra-argument" if a.keys() - b.keys() else "wrong-value"
            )
    return next(kind for kind in ("missing-argument", "extra-argument", "wrong-value") if kind in worst)


def score(example: Example, answer: str) -> Score:
    """Headline: exactly the calls of the reference. Beside it, where they apply: the same over examples that need a call
    ("exact_call", also "…_seen", "…_unseen" by whether training had the service), over those that need none ("none"), and
    "function", whether the right functions are called whatever their arguments."""
    toolset = toolset_of(example)
    wanted = calls.read(example.reference or "[]")
    try:
        found: tuple[Call, ...] | None = calls.read(answer)
        error = error_kind(example, found or ())
    except AnswerError as failed:
        found, error = None, failed.reason
    correct = error is None
    metrics = {"exact": correct}
    if wanted:
        metrics["exact_call"] = correct
        seen = example.extra.get("seen")
        if seen is not None:
            metrics["exact_call_seen" if seen else "exact_call_unseen"] = correct
        names = Counter(call.name for call in wanted)
        metrics["function"] = found is not None and Counter(call.name for call in found) == names
    else:
        metrics["none"] = correct
    metrics["valid"] = found is not None and invalid(toolset, found) is None
    return Score(correct=correct, metrics=metrics, error=error)


def argument_counts(example: Example, answer: str) -> tuple[int, int, int]:
    """(right, given, wanted) arguments of an answer, functions matched by name: for precision, recall and F1 over a set."""
    toolset, also = toolset_of(example), variants_of(example)
    wanted = calls.read(example.reference or "[]")
    try:
        found = list(calls.read(answer))
    except AnswerError:
        found = []
    given = sum(len(calls.full(toolset.by_name.get(call.name), call)) for call in found)
    right = 0
    for call in wanted:
        own = next((c for c in found if calls.same_call(toolset, c, call, also)), None)
        own = own or next((c for c in found if c.name == call.name), None)
        if own is None:
            continue
        found.remove(own)
        function = toolset.by_name.get(call.name)
        have = calls.full(function, own)
        for name, value in calls.full(function, call).items():
            argument = function.by_name.get(name) if function is not None else None
            spellings = also.get(f"{call.name}.{name}", ())
            right += name in have and calls.same_value(argument, have[name], value, toolset.today, spellings)
    return right, given, sum(len(calls.full(toolset.by_name.get(call.name), call)) for call in wanted)


def vote_key(example: Example, answer: str) -> str | None:
    """Canonical JSON: typed values, texts by their words, arguments and calls sorted, defaults left out."""
    toolset = toolset_of(example)
    try:
        found = calls.read(answer)
    except AnswerError:
        return None
    if invalid(toolset, found) is not None:
        return None
    rows = []
    for call in found:
        function = toolset.by_name[call.name]
        given = {
            name: _folded(calls.typed(function.by_name[name], value, toolset.today))
            for name, value in calls.full(function, call).items()
        }
        rows.append(json.dumps([call.name, given], sort_keys=True, ensure_ascii=False))
    return json.dumps(sorted(rows), ensure_ascii=False)


def _folded(value: Any) -> Any:
    return spaced(value).strip() if isinstance(value, str) else value
