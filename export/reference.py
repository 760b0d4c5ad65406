"""What a source itself says and scores, measured once and kept for every file that is compared with it.

Does: have the source write its reference and answer the questions in a process of its own (float32, on the CPU), keep both in the
run around it, with its own distance in bfloat16, find them again when source, questions and program are the same.
Does not: compare anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.card import program
from export.child import Answers, run_probe
from export.errors import ExportError
from export.parity import REFERENCE_VERSION, Parity, Reference
from export.probe import Job
from factory.predictions import read_predictions, write_predictions

if TYPE_CHECKING:
    from export.questions import Loaded, Questions
    from export.source import Source
    from factory.events import EventLog

FOLDER = "export-reference"


@dataclass(frozen=True)
class Measured:
    """A source's reference directory (see `export.parity`) and its answers."""

    directory: Path
    reference: Reference
    answers: Answers
    bfloat16: Parity | None = None
    """the source's own distance when weights and sums are bfloat16: what half the bits cost without any export"""


def measured_source(
    source: Source,
    questions: Questions | None,
    loaded: Loaded | None,
    window: int | None,
    batch: int,
    patience_s: float,
    events: EventLog,
) -> Measured:
    """The source's side of every comparison; takes seconds to minutes the first time.

    Raises ExportError when the source cannot be opened or does not answer.
    """
    identity = {
        "source": source.sha256,
        "base": source.base_sha256,
        "questions": questions.model_dump(mode="json", exclude={"origin"}) if questions is not None else None,
        "data": loaded.sha256 if loaded is not None else None,
        "tokenizer": _hash_of_files(source.tokenizer_dir),
        "window": window,
        "version": [REFERENCE_VERSION, program()],
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    directory = _root(source) / key
    if (directory / "reference.json").is_file():
        return _read(directory)
    staged = Path(tempfile.mkdtemp(prefix=f"{key}-", suffix=".tmp", dir=directory.parent))
    try:
        job = Job(model=f"hf:{source.path}", options={"device": "cpu", "dtype": "float32", "batch": batch}, reference=staged,
                  source=True, window=window, questions=questions, batch=batch)  # fmt: skip
        outcome = run_probe(job, patience_s, events, f"score {source.path.name}, the source")
        if outcome.died is not None or outcome.found.error is not None:
            raise ExportError(f"{source.path}: the source itself cannot be measured: {outcome.found.error or outcome.died}")
        if outcome.answers.failed:
            raise ExportError(f"{source.path}: the source itself failed on {outcome.answers.failed} questions; check the model")
        write_predictions(staged / "predictions.jsonl", outcome.answers.predictions)
        (staged / "evaluation.json").write_text(json.dumps(outcome.answers.summary), encoding="utf-8")
        half = outcome.found.parity
        (staged / "bfloat16.json").write_text(half.model_dump_json() if half is not None else "null", encoding="utf-8")
        (staged / "of.json").write_text(json.dumps(identity, indent=1), encoding="utf-8")
        if directory.exists():
            shutil.rmtree(directory)
        staged.rename(directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return _read(directory)


def _read(directory: Path) -> Measured:
    try:
        summary: dict[str, Any] | None = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
        answers = Answers(tuple(read_predictions(directory / "predictions.jsonl")), summary)
        half = json.loads((directory / "bfloat16.json").read_text(encoding="utf-8"))
        bfloat16 = Parity.model_validate(half) if half is not None else None
    except (OSError, ValueError):
        raise ExportError(f"{directory}: is no whole reference of a source; delete it and give the same command again") from None
    return Measured(directory, Reference.read(directory), answers, bfloat16)


def _root(source: Source) -> Path:
    """In the run around the source, else beside its files; in the system's temporary directory where neither can be written."""
    place = source.run_dir or source.path
    root = place / FOLDER if os.access(place, os.W_OK) else Path(tempfile.gettempdir()) / f"penknife-{FOLDER}-{os.getuid()}"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root


def _hash_of_files(directory: Path) -> Mapping[str, str]:
    """SHA-256 of what makes a tokenizer: a changed chat template makes other prompts."""
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names if (directory / name).is_file()}
