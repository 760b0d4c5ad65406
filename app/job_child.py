"""The process between the app and a long command: it starts the command, waits for it, and writes down how it ended.

Does: note its own process in process.json, run the command of job.json with its output in output.log, write exit.json.
Does not: know what the command does, or import anything of this project: it outlives the app and should stay small.

    python job_child.py JOB_DIRECTORY
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any


def write(path: Path, value: object) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def main(directory: Path) -> int:
    import psutil

    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    child: subprocess.Popen[bytes] | None = None
    asked: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        # The command is in this process group and has heard it too, unless it was not there yet.
        asked.append(number)

    # With a handler of our own the command starts with the default one, even where the app was started with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hear)
    write(directory / "process.json", {"pid": os.getpid(), "started": psutil.Process().create_time()})
    outcome: dict[str, Any]
    if (directory / "stop.json").exists():
        write(directory / "exit.json", {"code": 130, "ended": time.time()})
        return 0
    with (directory / "output.log").open("ab") as log:
        try:
            child = subprocess.Popen(job["argv"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=job["cwd"])
        except OSError as error:
            log.write(f"error: {job['argv'][0]} cannot be started ({error.strerror})\n".encode())
            outcome = {"code": 127, "ended": time.time()}
        else:
            if asked:
                child.send_signal(asked[0])
            outcome = {"code": child.wait(), "ended": time.time()}
    write(directory / "exit.json", outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
