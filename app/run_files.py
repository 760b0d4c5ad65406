"""The run directories below one root, and what lies in them: found by plain names, so that no name leads elsewhere.

Does: list runs with what they are and how they stand, open one by name, find exported files, tell whether a process works in one.
Does not: read logs (`app.progress_view`) or rows (`app.rows_view`), or write anything.
"""

from __future__ import annotations

import fcntl
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.rundir import NAME_LENGTH, RunDir

OWN = "app"
"""The app's own directory among the runs."""


class RunError(Exception):
    """A run or file that cannot be shown: one sentence with the way on."""


@dataclass(frozen=True)
class RunEntry:
    """One run directory as its own files describe it."""

    name: str
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    score: dict[str, Any] | None = None
    """the student's final score: `Evaluation.summary()` with "score", "low", "high", "n" """
    changed: float = 0.0
    """when its log was last written, epoch seconds"""

    @property
    def files(self) -> RunDir:
        """Its paths."""
        return RunDir(self.path)

    @property
    def command(self) -> str:
        """The module whose command made it: only distilling has a teacher."""
        return "factory.distill" if "teacher" in self.config else "factory.finetune"

    def title(self) -> str:
        """ "sql, scratch:tiny taught by recorded"."""
        taught = f" taught by {self.config['teacher']}" if "teacher" in self.config else ""
        return f"{self.config.get('task', '?')}, {self.config.get('student', '?')}{taught}"


def find_runs(root: Path) -> list[RunEntry]:
    """Every run directly below `root`, the one that changed last first."""
    if not root.is_dir():
        return []
    names = [path.name for path in root.iterdir() if path.name != OWN]
    inside = [path for name in names if (path := _below(root, name)) is not None and (path / "config.toml").is_file()]
    return sorted((_entry(path) for path in inside), key=lambda run: run.changed, reverse=True)


def run_named(root: Path, name: str) -> RunEntry:
    """The run called `name`. Raises RunError for a name that is no plain one, leads out of `root`, or is not there."""
    path = _below(root, name) if "/" not in name else None
    if path is None or name == OWN or not (path / "config.toml").is_file():
        raise RunError(f"there is no run {name[:NAME_LENGTH]!r} in {root}; choose one from the list")
    return _entry(path)


def artifact_named(root: Path, name: str) -> Path:
    """The file, ONNX or model directory that `name` ("tiny/model/tiny-q8_0.gguf") means below `root`. Raises RunError."""
    path = _below(root, name)
    if path is None or not ((path.suffix == ".gguf" and path.is_file()) or path.is_dir()):
        raise RunError(f"there is no model file {name[:NAME_LENGTH]!r} in {root}; choose one from the list")
    return path


def artifact_name(root: Path, path: Path) -> str:
    """What `artifact_named` takes for this path."""
    return path.resolve().relative_to(root.resolve()).as_posix()


def artifacts(runs: Sequence[RunEntry], root: Path) -> list[str]:
    """Names of everything that can be asked: exported files, ONNX directories, and each finished run's own model directory."""
    from export.compare import exported_files

    names = []
    for run in runs:
        model = run.files.model
        if model.is_dir() and _below(root, f"{run.name}/model") is not None:
            names += [artifact_name(root, file) for file in exported_files(model) if not file.name.endswith(".rejected")]
            if (model / "config.json").is_file():
                names.append(artifact_name(root, model))
    return names


def in_use(run: RunEntry) -> bool:
    """Whether a process works in this run: whoever does holds its lock. The lock is touched for microseconds to find out; ask
    `app.jobs` first about runs of its own."""
    try:
        with (run.path / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_json(path: Path) -> Any:
    """A JSON file's value, None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _below(root: Path, name: str) -> Path | None:
    """The path of a relative name below `root`, links followed; None when it leads out of it or to it."""
    if not name or "\0" in name or len(name) > 1000:
        return None
    try:
        path, top = (root / name).resolve(), root.resolve()
        parts = Path(name).parts
        inside = path != top and path.is_relative_to(top) and not Path(name).is_absolute() and ".." not in parts
        return root / name if inside and path.exists() else None
    except (OSError, RuntimeError):
        return None


def _entry(path: Path) -> RunEntry:
    files = RunDir(path)
    try:
        config = tomllib.loads(files.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    state, scores = read_json(files.state), read_json(files.scores)
    student = scores.get("student") if isinstance(scores, dict) else None
    log = files.events if files.events.exists() else files.config
    return RunEntry(
        path.name, path, config,
        finished=isinstance(state, dict) and bool(state.get("finished")),
        score=student if isinstance(student, dict) and "score" in student else None,
        changed=log.stat().st_mtime,
    )  # fmt: skip
