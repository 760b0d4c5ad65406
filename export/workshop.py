"""Where files are made: one GGUF file after another from one source, each checked, one of them published.

Does: keep a directory of its own beside the destination, reuse the exact intermediate file and the importance matrix, put the
card with this file's scores inside, seal, and move a finished file to its name in one step.
Does not: choose a recipe (`export.auto`), or talk to the user.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.card import FileEntry
from export.convert import convert
from export.errors import ExportError
from export.gate import GateReport, GateSettings, card_for_file, gate
from export.quant_types import Prediction, Recipe, predict
from export.quants import quantize, surprises, written
from export.seal import seal, write_card
from export.source import Source
from factory.events import EventLog

if TYPE_CHECKING:
    from export.imatrix import Importance

REJECTED = ".rejected"
"""Suffix of a file that lost more than it may."""


@dataclass(frozen=True)
class Made:
    """A finished file that has not got its name yet."""

    path: Path
    recipe: Recipe
    prediction: Prediction
    bytes: int
    bits_per_weight: float
    notes: tuple[str, ...]
    """what a user must know, one sentence each"""
    report: GateReport | None = None
    """None until it was checked, and with --no-gate"""
    decode: float | None = None
    """tokens/s, one thread, this machine"""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether it may carry its name."""
        return self.report is None or self.report.ok

    @property
    def types(self) -> dict[str, str]:
        """Tensor name -> type, as written."""
        return written(self.path)


class Workshop:
    """Use `opened`. `calibration`: the file importance is measured on, None without one."""

    def __init__(self, source: Source, out: Path, place: Path, calibration: Path | None, threads: int, events: EventLog) -> None:
        self.source, self.out, self.place = source, out, place
        self.calibration, self.threads, self.events = calibration, threads, events
        self.trials = 0

    @classmethod
    @contextmanager
    def opened(cls, source: Source, out: Path, calibration: Path | None, threads: int, events: EventLog) -> Iterator[Workshop]:
        """A workshop beside `out`, cleared away whatever happens. Raises OSError when nothing can be written there."""
        _sweep(out)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", suffix=".tmp", dir=out.parent))
        try:
            yield cls(source, out, place, calibration, threads, events)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @cached_property
    def importance(self) -> Importance:
        """Measured once, on first use."""
        from export.imatrix import measure, read_calibration

        assert self.calibration is not None
        with self.events.stage("importance", unit="rows") as stage:
            calibration = read_calibration(self.source, self.calibration)
            for reason, n in calibration.dropped.items():
                if reason != "beyond-limit":
                    stage.drop(reason, n)
            stage.total = len(calibration.sequences)
            found = measure(self.source, calibration, stage.advance)
            stage.metric(rows=len(calibration.sequences), tokens=calibration.tokens)
        return found

    @cached_property
    def exact(self) -> Path:
        """The source as a GGUF file that loses nothing, for llama.cpp to quantize."""
        path = self.place / "exact.gguf"
        self._convert(path, exact_type(self.source), "convert")
        return path

    def make(self, recipe: Recipe) -> Made:
        """Write a file by `recipe`. Raises ExportError, OSError."""
        self.trials += 1
        path = self.place / str(self.trials) / self.out.name
        path.parent.mkdir()
        prediction = predict(self.source.plan, recipe)
        said = prediction.say(recipe)
        notes: list[str] = [] if said is None else [said]
        details: dict[str, Any] = {}
        if recipe.needs_llama_cpp:
            importance = self.importance if recipe.importance else None
            exact = self.exact
            with self.events.stage(f"quantize {recipe.label}"):
                matrices = {name: type for name, type in prediction.types.items() if type != "F32"} if prediction.chosen else None
                values = importance.values if importance is not None else None
                done = quantize(exact, path, recipe, values, self.threads, matrices)
            seal(path)  # llama.cpp copied the metadata, and with it the seal of the other file
            notes += [*self._exact_notes, *done.warnings]
            if importance is not None:
                details["importance"] = importance.as_json()
                notes.append(f"importance from {importance.calibration.say()}")
        else:
            notes += self._convert(path, recipe.quant, f"convert to {recipe.label}", recipe.keep)
        found = surprises(prediction, written(path))
        if found:
            notes.append(f"{len(found)} tensors are not of the predicted type ({found[0]}); the sizes printed are the file's own")
        return Made(path, recipe, prediction, path.stat().st_size, _bits(path), tuple(notes), details=details)

    def check(self, made: Made, settings: GateSettings) -> Made:
        """Measure a file against the source. Raises ExportError or TaskError when the source or the questions cannot be used."""
        return replace(made, report=gate(self.source, f"gguf:{made.path}", settings, events=self.events))

    def publish(self, made: Made) -> Path:
        """Card and seal into the file, then move it to its name: with `.rejected` behind it when it lost too much."""
        if self.source.card is not None:
            entry = FileEntry(name=self.out.name, format="gguf", precision=made.recipe.quant,
                              bits_per_weight=made.bits_per_weight, kept_f16=made.recipe.keep,
                              source_sha256=self.source.sha256)  # fmt: skip
            write_card(made.path, card_for_file(self.source.card, entry, made.report))
        seal(made.path)
        target = self.out if made.kept else self.out.with_name(self.out.name + REJECTED)
        made.path.replace(target)
        return target

    def _convert(self, path: Path, type: str, name: str, keep: tuple[str, ...] = ()) -> list[str]:
        with self.events.stage(name, total=self.source.parameters, unit="weights") as stage:
            made = convert(self.source, path, type, lambda done, _: stage.advance(done - stage.done), keep=keep)
        if path.name == "exact.gguf":
            self._exact_notes = made.notes
        return list(made.notes)

    _exact_notes: tuple[str, ...] = ()


def exact_type(source: Source) -> str:
    """The smallest type that holds every weight of a source as it is; a merged adapter's sums need F32."""
    stored = {tensor.dtype for tensor in source.weights.values()}
    scaled = any(tensor.scale != 1.0 for tensor in source.plan.tensors)
    if source.adapter is not None or scaled or len(stored) != 1:
        return "F32"
    return {"F16": "F16", "BF16": "BF16"}.get(stored.pop(), "F32")


def check_place(out: Path) -> None:
    """Raises ExportError when `out` cannot be written, before anything costly."""
    if out.is_dir():
        raise ExportError(f"--out {out}: is a directory; give a file name that ends in .gguf")
    place = out.parent
    if not place.is_dir():
        raise ExportError(f"--out {out}: there is no directory {place}; create it, or choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ExportError(f"--out {out}: {place} cannot be written; choose another --out")


def _bits(path: Path) -> float:
    from agents.models.gguf_file import read_gguf

    return read_gguf(path).bits_per_weight


def _sweep(out: Path) -> None:
    """Remove what a killed export of the same file left."""
    for left in out.parent.glob(f".{out.name}.*.tmp"):
        process = left.name.removeprefix(f".{out.name}.").split(".")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
