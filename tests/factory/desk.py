"""Questions to a help desk, few enough to be learned in seconds: the labelled file that route's tests train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

SAID: dict[str, Sequence[str]] = {
    "billing": ("i was charged {} times", "invoice {} is wrong", "refund payment {}", "why is bill {} so high"),
    "support": ("the app crashed {} times", "error {} when saving", "i cannot open file {}", "screen {} stays black"),
}
"""Label -> ways to ask, with a place for a number."""


def write_questions(path: Path, said: Mapping[str, Sequence[str]] = SAID) -> Path:
    """Every way to ask with each of 24 numbers, labelled, as JSONL; returns `path`."""
    rows = [{"question": text.format(i), "label": label} for i in range(24) for label, texts in said.items() for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
