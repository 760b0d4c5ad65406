"""Python modules of export run in processes of their own, which end when the one that started them does.

Does: build the command and the environment of such a process; inside it, watch for the parent's end in two ways (Linux's death
signal, which also reaches code that never returns to Python, and everywhere a thread that compares parent ids), then run the
module.
Does not: read what the module says.

    run("export.quantize_child", input=json.dumps(job))         # python -m export.apart PARENT export.quantize_child
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WATCH_S = 0.5
"""Seconds between two looks at the parent."""
PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: str) -> list[str]:
    """What starts `module` as a child of this process."""
    return [sys.executable, "-m", "export.apart", str(os.getpid()), module, *arguments]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which the package is found whatever the current directory is."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path, **(more or {})}


def run(
    module: str, *arguments: str, input: str | None = None, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `module` to its end, with both its streams kept. Raises subprocess.TimeoutExpired, after ending it."""
    given = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    return subprocess.run(command(module, *arguments), capture_output=True, text=True, errors="replace", check=False,
                          env=environment(env), timeout=timeout, **given)  # fmt: skip


def end_with(parent: int) -> None:
    """Have this process end as soon as its parent, process `parent`, has."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        # An orphan gets another parent; one that already has another was orphaned before it came here.
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main() -> None:
    parent, module = int(sys.argv[1]), sys.argv[2]
    end_with(parent)
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
