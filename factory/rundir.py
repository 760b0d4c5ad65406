"""One run directory: the files between the stages, and the claim that keeps a run's settings and its files together.

Does: create or resume the directory, refuse one made with other settings, keep two processes apart, write files whole.
Does not: run stages (`distill`, `finetune`) or know what the files mean.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from factory.settings import SettingsError, to_toml

NAME_LENGTH = 80
"""Characters of a default directory's name."""
FREE_BYTES = 64 * 1024**2
"""Least free disk to start with; what checkpoints and weights will take is not counted."""

PASSING = frozenset({"out", "force", "dry_run", "in_flight", "budget_usd", "price_in", "price_out", "final", "resume", "device"})
"""Settings that may change between the first start of a run and its continuation."""


VERSION_UNSAID = {"tools": 2}
"""Version of a task in runs that do not say it, where that has changed since."""
BEGUN = frozenset({"lock", "config.toml.tmp", "moved-aside.txt"})
"""All that a run killed at its very start can hold."""


class RunDir:
    """Paths of one run and its lock. Use `claim`; close it (or end the process) to let another process continue the run."""

    def __init__(self, path: Path, lock: IO[str] | None = None) -> None:
        self.path, self._lock = path, lock
        self.config = path / "config.toml"
        self.ledger = path / "ledger.sqlite"
        self.rows = path / "train.jsonl"
        self.events = path / "events.jsonl"
        self.scores = path / "scores.json"
        self.predictions = path / "predictions.jsonl"
        self.student = path / "student"
        self.first_adapter = path / "first-adapter"
        self.topk = path / "topk"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.adapter = path / "model" / "adapter"
        self.report = path / "report.md"
        self.state = path / "state.json"

    @classmethod
    def claim(cls, path: Path, settings: BaseModel, *, force: bool = False, need_bytes: int = FREE_BYTES) -> RunDir:
        """Create `path`, or take up the run in it. With `force` a run with other settings is moved aside, never deleted.

        Raises SettingsError when it holds other settings, is in use, cannot be written or lacks space.
        """
        try:
            free = shutil.disk_usage(next(part for part in (path, *path.absolute().parents) if part.exists())).free
            if free < need_bytes:
                raise SettingsError(f"{path}: needs {need_bytes / 1e9:.1f} GB of free disk and has {free / 1e9:.1f} GB; "
                                    "free some, or give --out on another disk")  # fmt: skip
            path.mkdir(parents=True, exist_ok=True)
            if not (path / "config.toml").exists() and (other := {part.name for part in path.iterdir()} - BEGUN):
                raise SettingsError(f"{path}: holds {min(other)!r} and is no run; give an --out that is new or empty")
            lock = _lock(path)
            if force and (path / "config.toml").exists() and differences(path / "config.toml", settings):
                path.rename(aside := _free_name(path))
                path.mkdir(parents=True)
                lock.close()
                lock = _lock(path)
                (path / "moved-aside.txt").write_text(f"The run that was here is now {aside.name}.\n", encoding="utf-8")
        except BlockingIOError:
            raise SettingsError(f"{path}: another process is working in this run; wait for it, or give another --out") from None
        except OSError as error:
            raise SettingsError(f"{path}: {_why(error)}; give a writable --out") from None
        run = cls(path, lock)
        if run.config.exists():
            different = differences(run.config, settings)
            if different:
                run.close()
                name, (old, new) = next(iter(different.items()))
                more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
                raise SettingsError(f"{path}: made with {name.replace('_', '-')} = {old!r}, now {new!r}{more}; "
                                    "give another --out, or --force to move the old run aside")  # fmt: skip
        try:
            run.sweep()
            run.write(run.config, to_toml(settings))
        except BaseException:
            run.close()
            raise
        return run

    def sweep(self) -> None:
        """Remove what a killed process had not finished writing: every such file or directory ends in .tmp."""
        for left in [*self.path.rglob("*.tmp")]:
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def write(self, path: Path, text: str) -> None:
        """Write a text file whole or not at all."""
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def remember(self, **values: Any) -> None:
        """Add facts (JSON) that a later stage or a continuation reads with `recall`."""
        self.write(self.state, json.dumps({**self.recall(), **values}, indent=1, default=str))

    def recall(self) -> dict[str, Any]:
        """Everything remembered so far."""
        try:
            known: dict[str, Any] = json.loads(self.state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return known

    def check_version(self, task: str, version: int) -> None:
        """Raises SettingsError when the run began with another version of its task: its rows ask in other words."""
        known = self.recall()
        begun = known.get("task_versions", {}).get(task) or known.get("task_version")
        if begun is None and "data" in known:
            begun = VERSION_UNSAID.get(task)
        if begun not in (None, version):
            raise SettingsError(f"{self.path}: begun with version {begun} of the task {task}, and version {version} asks in "
                                "other words; give another --out")  # fmt: skip

    def close(self) -> None:
        """Let another process take the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def differences(config: Path, settings: BaseModel) -> dict[str, tuple[Any, Any]]:
    """Settings (name -> (old, new)) that differ from a run's and matter to what it made."""
    try:
        old = tomllib.loads(config.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config}: not valid TOML ({error}); give another --out") from None
    new = tomllib.loads(to_toml(settings))
    # A setting that the run's release did not know had, in effect, the value that is its default now.
    fields = type(settings).model_fields
    before = {name: fields[name].default for name in new.keys() - old.keys() if name in fields} | old
    names = sorted((old.keys() | new.keys()) - PASSING)
    return {name: (before.get(name), new.get(name)) for name in names if before.get(name) != new.get(name)}


def default_path(*parts: str) -> Path:
    """runs/PART-PART-… with everything but letters, digits, dot and dash made a dash; a long name ends in a hash of the whole."""
    whole = "-".join(parts)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", whole).strip("-.").lower()
    if len(name) > NAME_LENGTH:
        name = f"{name[: NAME_LENGTH - 9].rstrip('-.')}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return Path("runs") / name


def _lock(path: Path) -> IO[str]:
    """The directory's lock, held until closed. Raises BlockingIOError when another process holds it."""
    lock = (path / "lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        lock.close()
        raise
    return lock


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate


def _why(error: OSError) -> str:
    known = {errno.EACCES: "no permission to write there", errno.ENOSPC: "the disk is full", errno.EROFS: "the disk is read-only",
             errno.ENOTDIR: "a part of this path is a file", errno.EEXIST: "this is a file, not a directory"}  # fmt: skip
    return known.get(error.errno or 0, error.strerror or str(error))
