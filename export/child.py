"""Run `export.probe` in a process of its own and bring back what it found, however it ended.

Does: hand over the job, pass its progress on, end it when it goes silent, turn a crash into a sentence.
Does not: judge what was found.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from agents.card import CalibrationEntry, ScoreEntry
from export.apart import command, environment
from export.probe import PROGRESS, Found, Job
from export.questions import Loaded
from factory.events import EventLog
from factory.predictions import Prediction, calibration, read_predictions

MEANING = {"SIGABRT": "aborted", "SIGSEGV": "crashed", "SIGBUS": "crashed", "SIGILL": "hit an instruction this processor lacks",
           "SIGKILL": "was killed, most likely for memory", "SIGFPE": "crashed"}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """One model's answers to the questions; empty when it was asked none, or did not finish."""

    predictions: tuple[Prediction, ...] = ()
    summary: dict[str, Any] | None = None
    """`Evaluation.summary()`"""

    def right(self) -> dict[str, bool]:
        """Question id -> whether its answer is right, of those that count towards the score."""
        return {prediction.id: prediction.correct for prediction in self.predictions if prediction.counted}

    @property
    def failed(self) -> int:
        """Questions the engine gave no answer to."""
        return sum(prediction.error == "model-error" for prediction in self.predictions)

    def entry(self, loaded: Loaded | None) -> ScoreEntry | None:
        """The score as a card carries it."""
        if self.summary is None or loaded is None:
            return None
        names = set(ScoreEntry.model_fields)
        return ScoreEntry(split=loaded.split, **{key: value for key, value in self.summary.items() if key in names})

    def errors_by_kind(self) -> dict[str, int]:
        """Kind of error -> wrong answers of that kind, most first; empty when it was asked nothing."""
        return dict(self.summary["errors_by_kind"]) if self.summary is not None else {}

    def calibration(self) -> tuple[tuple[CalibrationEntry, ...], float | None]:
        """What this model's own confidence means, and its expected calibration error."""
        found = calibration(self.predictions)
        if found is None:
            return (), None
        entries = (CalibrationEntry(threshold=t.threshold, kept=t.kept, accuracy=t.accuracy) for t in found.thresholds)
        return tuple(entries), found.ece


@dataclass(frozen=True)
class Outcome:
    """What a measuring process left behind."""

    found: Found
    answers: Answers
    died: str | None
    """how it ended, if not by itself: a clause like "aborted while opening it (SIGABRT: …)" """


def run_probe(job: Job, patience_s: float, events: EventLog, stage: str) -> Outcome:
    """Do `job` in a child process; its progress becomes a stage of `events`.

    `patience_s`: seconds without a line of progress after which the child is ended.
    """
    with tempfile.TemporaryDirectory(prefix="penknife-probe-") as name:
        directory = Path(name)
        job = job.model_copy(update={"predictions": directory / "predictions.jsonl"})
        (directory / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        started = command("export.probe", str(directory / "job.json"), str(directory / "found.json"))
        with (directory / "stderr").open("w+b") as said, events.stage(stage, unit="questions") as progress:
            code, silent = _run(started, said, patience_s, progress)
            said.seek(0)
            words = said.read()[-20_000:].decode("utf-8", "replace")
        try:
            found = Found.model_validate_json((directory / "found.json").read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            found = Found()
        predictions = tuple(read_predictions(directory / "predictions.jsonl")) if found.finished else ()
    died = None
    if silent:
        died = f"said nothing for {patience_s:g} s while {found.step}"
    elif found.error is None and not found.finished:
        died = _how(code, found.step, words)
    return Outcome(found, Answers(predictions, found.evaluation if predictions else None), died)


def missing_backend(spec: str, path: Path) -> str | None:
    """Why a file's engine cannot be used here, with the way out; None when it can."""
    if spec.startswith("gguf:") or path.suffix == ".gguf":
        if find_spec("llama_cpp") is None:
            from agents.models.llama_library import INSTALL

            return INSTALL
    elif (spec.startswith("onnx:") or (path.is_dir() and any(path.glob("*.onnx")))) and find_spec("onnxruntime") is None:
        return "ONNX directories need onnxruntime: pip install 'penknife[onnx]'"
    return None


def _run(started: list[str], said: IO[bytes], patience_s: float, progress: Any) -> tuple[int, bool]:
    """(exit status, whether it was ended for silence)."""
    child = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL, text=True, errors="replace",
                             env=environment())  # fmt: skip
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (line := lines.get(timeout=patience_s)) is not None:
            if line.startswith(PROGRESS):
                _pass_on(line.removeprefix(PROGRESS), progress)
        return child.wait(timeout=patience_s), False
    except (queue.Empty, subprocess.TimeoutExpired):
        return -signal.SIGKILL, True
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _pass_on(text: str, progress: Any) -> None:
    try:
        event = json.loads(text)
    except ValueError:
        return
    if event.get("kind") == "start":
        progress.total = event.get("total")
    elif event.get("kind") == "progress":
        progress.advance(event["done"] - progress.done)
    elif event.get("kind") == "warning":
        progress.warn(event["message"])


def _how(code: int, step: str, words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    last = f": {lines[-1][:200]}" if lines else ""
    if code >= 0:
        return f"failed while {step} (exit status {code}{last})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{MEANING.get(name, 'was ended')} while {step} ({name}{last})"
