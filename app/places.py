"""Where the app keeps what it keeps: everything under one directory of runs.

Does: name the directory of runs (PENKNIFE_RUNS, else ./runs), and in it each browser's own place for threads, uploads, training
rows and personas; refuse names that would lead out of it.
Does not: read what lies there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

RUNS = "PENKNIFE_RUNS"
_OWNER = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,79}")


class PlaceError(ValueError):
    """A name that cannot be a file of ours: one sentence."""


def runs_dir() -> Path:
    """The directory of runs; it need not exist."""
    return Path(os.environ.get(RUNS) or "runs").absolute()


def own_dir(owner: str) -> Path:
    """A browser's own directory, made when it is first asked for. Raises PlaceError for a key that is none."""
    if not _OWNER.fullmatch(owner):
        raise PlaceError(f"{owner!r:.60} is no browser's key")
    place = runs_dir() / "app" / owner
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    return place


def inside(root: Path, name: str) -> Path:
    """`root/name` for a plain file name. Raises PlaceError for one that leads elsewhere or has odd characters."""
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise PlaceError(f"{name!r:.80} is no file name; use letters, digits, dots, dashes, at most 80 characters")
    path = root / name
    if path.resolve().parent != root.resolve():
        raise PlaceError(f"{name!r:.80} leads out of {root.name}; give a plain file name")
    return path
