"""What every command line does around its one public function: one line for a user's error, and an exit code.

Does: turn the project's own errors into one line on stderr and exit 2, a clean stop into exit 3, Ctrl-C into 130.
Does not: parse arguments (`factory.settings`) or hide bugs: those keep their traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

USER_ERROR, STOPPED, INTERRUPTED = 2, 3, 130

_DISK_FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded",
              "inline_container.cc", "basic_ios::clear")  # fmt: skip
"""Said when a disk is full; the last two by torch.save, whose writer knows no errno."""
_OS_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and give the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and give the same command again",
    errno.EFBIG: "the file would be larger than this process may write (ulimit -f); raise the limit and run it again",
    errno.EACCES: "permission denied; choose a path you may read and write",
    errno.EPERM: "permission denied; choose a path you may read and write",
    errno.EROFS: "the file system is read-only; choose another path",
    errno.ENOENT: "no such file or directory; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a directory; check the path",
    errno.EISDIR: "is a directory; give a file",
    errno.EEXIST: "exists already and is not a directory; choose another path",
}
_USER_ERRORS = {
    "agents.card": "CardError",
    "agents.chat": "ModelError",
    "agents.tools": "PersonaError",
    "export.errors": "ExportError",
    "factory.dataset": "DatasetError",
    "factory.ledger": "LedgerError",
    "factory.merge": "MergeError",
    "factory.settings": "SettingsError",
    "factory.student": "StudentError",
    "factory.tasks.task": "TaskError",
    "factory.teacher": "TeacherError",
    "factory.topk": "TopkError",
    "factory.train": "TrainError",
}
"""Module -> its exception for a user's error."""


class RunStopped(Exception):
    """A run that ended cleanly before its end (budget spent, endpoint gone): the reason and how to go on, one sentence."""


def user_errors() -> tuple[type[Exception], ...]:
    """The exceptions that mean the user's input or machine, not this program, must change.

    Only of modules that are loaded: no other can have raised one, and saying an error must not load torch.
    """
    loaded = ((sys.modules.get(module), name) for module, name in _USER_ERRORS.items())
    return tuple(getattr(module, name) for module, name in loaded if module is not None)


def message_for(error: Exception) -> str | None:
    """The one line a user should see, or None for a bug."""
    if isinstance(error, user_errors()):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _OS_ADVICE:
        names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{names or error.strerror}: {_OS_ADVICE[error.errno]}"
    # safetensors, SQLite and torch say it in their own exceptions.
    if any(text in str(error) for text in _DISK_FULL):
        return _OS_ADVICE[errno.ENOSPC]
    return None


def run_cli(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and return its exit code: 0; 2 after a user's error; 3 after a clean stop; 130 after Ctrl-C."""
    program = Path(sys.argv[0]).stem or "penknife"
    try:
        main(argv)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; continue with the same command\n")
        return INTERRUPTED
    except RunStopped as stop:
        sys.stderr.write(f"{program}: stopped: {' '.join(str(stop).split())}\n")
        return STOPPED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): nothing to say, and the flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        line = message_for(error)
        if line is None:
            raise
        sys.stderr.write(f"{program}: error: {line}\n")
        return USER_ERROR
    return 0
