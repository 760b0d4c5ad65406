"""One writer per thread of conversation, across processes and within one: a lock that the operating system drops with its holder.

Does: lock byte `number` of the file beside the store (fcntl, or msvcrt on Windows), so that a process killed a moment ago leaves
nothing to wait for.
Does not: work on network file systems that ignore file locks, nor guard SQLite itself (which has its own locks).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

_guard = threading.Lock()
_held: dict[str, set[int]] = {}
_files: dict[str, int] = {}


def take(path: Path | None, number: int, key: str) -> bool:
    """Whether lock `number` is now ours. `path` None locks within this process alone, under `key`."""
    name = key if path is None else str(path)
    with _guard:
        held = _held.setdefault(name, set())
        if number in held:
            return False
        if path is not None and not _lock(name, number):
            return False
        held.add(number)
        return True


def release(path: Path | None, number: int, key: str) -> None:
    """Give lock `number` back. The file stays open while anything in it is held: closing it would drop the others too."""
    name = key if path is None else str(path)
    with _guard:
        held = _held.get(name, set())
        held.discard(number)
        if path is not None and name in _files:
            _unlock(_files[name], number)
        if not held:
            _held.pop(name, None)
            if name in _files:
                os.close(_files.pop(name))


def _lock(name: str, number: int) -> bool:
    if name not in _files:
        _files[name] = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    descriptor = _files[name]
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, number, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except OSError:
        if not _held.get(name):
            os.close(_files.pop(name))
        return False
    return True


def _unlock(descriptor: int, number: int) -> None:
    if os.name == "nt":
        import msvcrt

        os.lseek(descriptor, number, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, number)
