"""A user's own functions and questions.

Does: open `--functions` (a JSON file, or MODULE:OBJECT in Python), read `--questions` rows of requests and their calls.
Does not: make questions where there are none (`sampler.py`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.chat import ToolSpec
from factory.tasks.sql.reading import Fingerprint, field, read_lines, text_field
from factory.tasks.task import AnswerError, Example, TaskError
from factory.tasks.tools import calls
from factory.tasks.tools.functions import Function, Toolset, from_spec, read_tools
from factory.tasks.tools.score import invalid

HELD_OUT = 10
"""One question in this many is for validation where rows carry no "split"."""


def open_functions(place: str, seen: Fingerprint | None = None) -> tuple[Function, ...]:
    """The functions of a JSON file, or of MODULE:OBJECT: an object, or a list of objects, that `Persona(tools=…)` takes. Raises
    TaskError."""
    path = Path(place)
    if path.suffix == ".json" or path.exists():
        try:
            data = path.read_bytes()
            found = json.loads(data)
        except OSError as error:
            raise TaskError(f"--functions {place}: cannot be read ({error.strerror}); give FILE.json or MODULE:OBJECT") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TaskError(f"--functions {place}: not valid JSON ({error}); expected a list of functions") from None
        if seen is not None:
            seen.add(data)
        return read_tools(found, f"--functions {place}")
    module, colon, name = place.partition(":")
    if not colon or not module or not name:
        raise TaskError(f"--functions {place}: no such file, and not MODULE:OBJECT; give FILE.json or, say, my_tools:tools")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise TaskError(f"--functions {place}: {error}; give MODULE:OBJECT that can be imported from here") from None
    functions = of_tools(value if isinstance(value, list | tuple) else [value], f"--functions {place}")
    if seen is not None:
        seen.add(json.dumps([[f.name, f.description, dict(f.parameters)] for f in functions], sort_keys=True).encode())
    return functions


def of_tools(given: Sequence[Any], where: str) -> tuple[Function, ...]:
    """Functions from what a program has: Functions, specs, `@tool` functions and sources of them, OpenAI-style dicts."""
    from agents.tools import PersonaError, tools_of

    found: list[Function] = []
    for one in given:
        if isinstance(one, Function):
            found.append(one)
        elif isinstance(one, ToolSpec):
            found.append(from_spec(one))
        elif isinstance(one, Mapping):
            found += read_tools(dict(one), where)
        else:
            try:
                found += [from_spec(tool.spec) for tool in tools_of([one])]
            except PersonaError as error:
                raise TaskError(f"{where}: {error}") from None
    if not found:
        raise TaskError(f"{where}: holds no function; give at least one")
    return tuple(found)


def read_questions(
    path: Path, functions: tuple[Function, ...], split: str, seen: Fingerprint
) -> tuple[list[Example], Counter[str]]:
    """Rows of {"question", "calls", "functions", "today"}, all but the first optional; functions are names among those given, or
    signatures.

    `train` and `xdev` follow the rows' "split" when any row has one, else a fixed tenth by the question's text is `xdev`; `all`
    reads everything. Rows of the other part are counted. Raises TaskError naming file and line.
    """
    rows = list(read_lines(path, seen))
    marked = any("split" in row for _, row in rows)
    by_name = {function.name: function for function in functions}
    sets: dict[Any, Toolset] = {}
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for n, row in rows:
        question = str(field(path, n, row, "question")).strip()
        if not question:
            text_field(path, n, row, "question")
        here = str(row.get("split", "train")) if marked else ("xdev" if _held_out(question) else "train")
        if split not in ("all", here):
            skipped[f"split-{here}"] += 1
            continue
        toolset = _toolset(path, n, row, by_name, sets)
        reference = _reference(path, n, row, toolset)
        extra = {"kind": "none" if reference == "[]" else "call", "also": row.get("also") or {}}
        examples.append(Example(str(row.get("id", f"{path.stem}-{n}")), question, toolset, toolset.id, reference, split, extra))
    return examples, skipped


def _toolset(path: Path, n: int, row: Mapping[str, Any], by_name: dict[str, Function], sets: dict[Any, Toolset]) -> Toolset:
    offered = row.get("functions")
    try:
        today = dt.date.fromisoformat(row["today"]) if row.get("today") else None
    except (TypeError, ValueError):
        raise TaskError(f"{path}, line {n}: today is {row['today']!r}; write YYYY-MM-DD") from None
    key = (json.dumps(offered, sort_keys=True), today)
    if key in sets:
        return sets[key]
    if offered is None:
        chosen = tuple(by_name.values())
    elif isinstance(offered, list) and all(isinstance(one, str) for one in offered):
        unknown = next((name for name in offered if name not in by_name), None)
        if unknown is not None:
            raise TaskError(f"{path}, line {n}: function {unknown!r} is not among those given ({', '.join(by_name)})")
        chosen = tuple(by_name[name] for name in dict.fromkeys(offered))
    else:
        chosen = read_tools(offered, f"{path}, line {n}")
    if not chosen:
        raise TaskError(f'{path}, line {n}: no functions are offered; give --functions, or "functions" in the row')
    name = hashlib.sha256(json.dumps([[f.name, dict(f.parameters)] for f in chosen], sort_keys=True).encode()).hexdigest()[:12]
    return sets.setdefault(key, Toolset(f"functions-{name}", chosen, today))


def _reference(path: Path, n: int, row: Mapping[str, Any], toolset: Toolset) -> str | None:
    given = row.get("calls", row.get("answer"))
    if given is None:
        return None
    try:
        found = calls.read(given if isinstance(given, str) else json.dumps(given))
    except AnswerError as error:
        raise TaskError(
            f'{path}, line {n}: calls cannot be read ({error}); write [{{"name": …, "arguments": {{…}}}}], or [] where none fits'
        ) from None
    typed = [
        calls.Call(
            call.name,
            {
                name: calls.typed(own.by_name[name], value, toolset.today) if name in own.by_name else value
                for name, value in call.arguments.items()
            },
        )
        if (own := toolset.by_name.get(call.name)) is not None
        else call
        for call in found
    ]
    bad = invalid(toolset, tuple(typed))
    if bad is not None:
        raise TaskError(f"{path}, line {n}: {bad[1]}; mend the row, or the function's schema")
    return calls.write(typed)


def _held_out(question: str) -> bool:
    return int(hashlib.sha256(question.lower().encode("utf-8", "replace")).hexdigest(), 16) % HELD_OUT == 0
