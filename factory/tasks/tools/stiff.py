"""Requests made for Seal-Tools' functions by templates: thousands of kinds of function, each asked for in stiff words.

Does: read the functions, divide them into those of training and those of validation, sample requests for them on many days.
Does not: hold templates (`sampler.py`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import random
from collections import Counter
from pathlib import Path

from factory.tasks.sql.reading import SUFFIXES, Fingerprint
from factory.tasks.task import Example, TaskError
from factory.tasks.tools.functions import Function
from factory.tasks.tools.sampler import sample_requests
from factory.tasks.tools.seal import read_functions

COUNTS = {"train": 12_000, "xdev": 600}
HELD_OUT = 0.1
"""Share of the functions that only the validation part ("xdev") asks for."""
A_DAY = 40
"""Requests made for one day and one choice of functions."""
AT_ONCE = 24
"""Functions of that choice; each request offers some of them."""
_FIRST, _DAYS = dt.date(2018, 1, 1), 3650


def read(data_dir: Path, split: str, seen: Fingerprint) -> tuple[list[Example], Counter[str]]:
    """The same requests every time. Raises TaskError."""
    path = next((p for s in SUFFIXES if (p := data_dir / f"tool{s}").exists()), None)
    if path is None or split not in COUNTS:
        raise TaskError(f"--split {split} of stiff: {data_dir} needs tool.jsonl.xz, and the splits are {', '.join(COUNTS)}")
    functions = [function for function, _ in read_functions(path, seen).values() if _held(function) == (split == "xdev")]
    if not functions:
        raise TaskError(f"--split {split} of stiff: none of the functions of {path} belongs to it; choose another split")
    chance = random.Random(f"stiff {split}")
    examples: list[Example] = []
    while len(examples) < COUNTS[split]:
        today = _FIRST + dt.timedelta(chance.randrange(_DAYS))
        some = chance.sample(functions, min(AT_ONCE, len(functions)))
        made = sample_requests(some, A_DAY, chance.randrange(1 << 30), today)
        for text, toolset, answer, _ in made:
            id = f"stiff-{split}-{len(examples)}"
            kind = "none" if answer == "[]" else "call"
            examples.append(Example(id, text, toolset, "stiff", answer, split, {"kind": kind}))
    return examples[: COUNTS[split]], Counter()


def _held(function: Function) -> bool:
    return int(hashlib.sha256(function.name.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF < HELD_OUT
