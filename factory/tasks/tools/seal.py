"""Read Seal-Tools (Wu et al. 2024): requests over 4,076 functions, often with several calls, some fed by earlier ones.

Does: read dev.jsonl[.xz] and tool.jsonl[.xz], divide the questions into a training and a validation part by their ids, offer
the functions wanted among others of the same field.
Does not: change values: what a question does not say stays as it is, and is counted when it cannot be pointed at.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from agents.chat import ToolSpec
from factory.tasks.sql.reading import SUFFIXES, Fingerprint, field, read_lines, text_field
from factory.tasks.task import Example, TaskError
from factory.tasks.tools import calls
from factory.tasks.tools.functions import Function, Toolset, from_spec, kind_by_name

HELD_OUT = 0.3
"""Share of the questions that are the validation part ("xdev")."""
WITHOUT_SHARE = 0.08
"""Share of examples whose functions are taken away: none fits."""
OTHERS = 2
"""Functions offered beside those wanted."""
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}


def read_functions(path: Path, seen: Fingerprint) -> dict[str, tuple[Function, str]]:
    """Name -> (function, field). Raises TaskError."""
    found = {}
    for n, row in read_lines(path, seen):
        properties = {}
        for name, one in field(path, n, row, "parameters").items():
            kind = _TYPES.get(one.get("type", "str"), "string")
            moment = kind_by_name(name) if kind == "string" else None
            form = {"format": moment} if moment else {}
            properties[name] = {"type": kind, **form, "description": str(one.get("description", ""))}
        required = [name for name in row.get("required", ()) if name in properties]
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        spec = ToolSpec(name=row["api_name"], description=row.get("api_description", ""), parameters=schema)
        found[spec.name] = from_spec(spec), str(row.get("field", ""))
    return found


def read(data_dir: Path, split: str, seen: Fingerprint) -> tuple[list[Example], Counter[str]]:
    """Examples in file order and skipped rows by reason; splits: train and xdev (a fixed division of dev), all, or a file."""
    files = {p.name.split(".")[0]: p for s in reversed(SUFFIXES) for p in data_dir.glob(f"*{s}")}
    tools = files.get("tool")
    divided = split in ("train", "xdev", "all") and split not in files
    path = files.get("dev" if divided else split)
    if tools is None or path is None:
        there = ", ".join(["train", "xdev", "all", *(name for name in sorted(files) if name not in ("tool", "field"))])
        raise TaskError(f"--split {split}: {data_dir} needs tool.jsonl.xz and the split's file; choose from {there}")
    functions = read_functions(tools, seen)
    by_field: dict[str, list[Function]] = defaultdict(list)
    for function, name in functions.values():
        by_field[name].append(function)
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for n, row in read_lines(path, seen):
        id = str(field(path, n, row, "id"))
        chance = random.Random(int(hashlib.sha256(id.encode()).hexdigest()[:12], 16))
        held = chance.random() < HELD_OUT
        if divided and split != "all" and held != (split == "xdev"):
            continue
        made = field(path, n, row, "calling")
        if not all(call["api"] in functions for call in made):
            skipped["unknown-function"] += 1
            continue
        wanted = list(dict.fromkeys(call["api"] for call in made))
        others = _others(wanted, functions, by_field, chance)
        without = len(wanted) == 1 and chance.random() < WITHOUT_SHARE * 3
        offered = others if without else [*(functions[name][0] for name in wanted), *others]
        chance.shuffle(offered)
        reference = [calls.Call(call["api"], _typed(functions[call["api"]][0], call["parameters"])) for call in made]
        examples.append(
            Example(
                f"seal-{id}",
                text_field(path, n, row, "query"),
                Toolset(f"seal-{id}", tuple(offered), chained=True),
                "seal-tools",
                calls.write(() if without else reference),
                split,
                {"kind": "none" if without else "call"},
            )
        )
    return examples, skipped


def _typed(function: Function, given: dict[str, Any]) -> dict[str, Any]:
    own = function.by_name
    return {name: calls.typed(own[name], value, None) if name in own else value for name, value in given.items()}


def _others(
    wanted: list[str],
    functions: dict[str, tuple[Function, str]],
    by_field: dict[str, list[Function]],
    chance: random.Random,
) -> list[Function]:
    near = [f for name in wanted for f in by_field[functions[name][1]] if f.name not in wanted]
    names = {f.name: f for f in (chance.sample(near, OTHERS) if len(near) > OTHERS else near)}
    every = list(functions)
    while len(names) < OTHERS:
        name = chance.choice(every)
        if name not in wanted:
            names[name] = functions[name][0]
    return list(names.values())
