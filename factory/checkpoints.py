"""What training leaves on disk so that a kill at any moment costs little: whole checkpoints and the scores of candidates.

Does: mark a checkpoint as whole, find the newest whole one, remove old ones, keep candidates' scores and the best.
Does not: write weights (the trainer does) or score them.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from factory.schedule import write_json

MARK = "complete.json"
PREFIX = "checkpoint-"


def mark_complete(checkpoint: Path) -> None:
    """Flush every file of a checkpoint to the disk, then write down their sizes: from now on it counts."""
    sizes = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MARK):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        sizes[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    write_json(checkpoint / MARK, sizes)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that was written is still there with its size."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def newest(directory: Path) -> Path | None:
    """The whole checkpoint with the most steps; torn ones are passed over."""
    found = [p for p in directory.glob(f"{PREFIX}*") if p.is_dir() and p.name.removeprefix(PREFIX).isdigit() and is_complete(p)]
    return max(found, key=step_of, default=None)


def prune(directory: Path, keep: int = 2) -> None:
    """Remove all but the `keep` newest whole checkpoints, and torn ones older than those."""
    every = sorted((p for p in directory.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()), key=step_of, reverse=True)
    whole = [p for p in every if is_complete(p)]
    for path in every:
        if whole[:keep] and path not in whole[:keep] and step_of(path) < step_of(whole[0]):
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Scored:
    """A candidate model and its task score (None: nobody scored it)."""

    step: int
    score: float | None
    name: str


@dataclass
class Candidates:
    """Models tried so far, in `directory`/step-N; only the best one's files stay. `scores.json` says which were scored."""

    directory: Path
    scored: list[Scored] = field(default_factory=list)

    @classmethod
    def open(cls, directory: Path) -> Candidates:
        path = directory / "scores.json"
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        kept = cls(directory, [Scored(**entry) for entry in entries])
        best = kept.best
        if best is not None and not kept.path(best).is_dir():
            kept.scored = []
        return kept

    def path(self, scored: Scored) -> Path:
        return self.directory / scored.name

    @property
    def best(self) -> Scored | None:
        """Highest score; of equal ones the later. Without scores, the latest."""
        return max(self.scored, key=lambda s: (-1.0 if s.score is None else s.score, s.step), default=None)

    def add(self, step: int, score: float | None, name: str, write: bool = True) -> Scored:
        """Remember a candidate; with `write`, on disk too, and remove the files of all but the best."""
        entry = Scored(step, score, name)
        self.scored = [s for s in self.scored if s.step != step] + [entry]
        if not write:
            return entry
        write_json(self.directory / "scores.json", [{"step": s.step, "score": s.score, "name": s.name} for s in self.scored])
        best = self.best
        for path in self.directory.glob("step-*"):
            if best is not None and path.name != best.name:
                shutil.rmtree(path, ignore_errors=True)
        return entry
