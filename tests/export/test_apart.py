"""Children of an export end with it, however it ends and whatever they are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from export import apart

ROOT = Path(__file__).resolve().parents[2]
BUSY = {
    "in Python": "while True: time.sleep(0.01)",
    "deaf to signals": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); time.sleep(600)",
    "in C code that keeps the interpreter": "ctypes.PyDLL(None).sleep(600)",
}


def module(directory: Path, body: str) -> str:
    """A module that says it runs, then does `body`; found through PYTHONPATH."""
    (directory / "busy.py").write_text(f"import ctypes, os, signal, sys, time\nprint(os.getpid(), flush=True)\n{body}\n")
    return "busy"


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("doing", BUSY)
def test_a_child_ends_with_its_parent(tmp_path: Path, doing: str, how: signal.Signals) -> None:
    name = module(tmp_path, BUSY[doing])
    code = f"import subprocess; from export import apart; subprocess.Popen(apart.command({name!r})).wait()"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.send_signal(how)
    parent.wait()
    until = time.monotonic() + 10
    while not gone(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone(child)


def test_an_orphan_of_before_does_nothing(tmp_path: Path) -> None:
    module(tmp_path, "time.sleep(600)")
    command = apart.command("busy")
    command[3] = "1"
    env = {**apart.environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    assert subprocess.run(command, env=env, timeout=30, check=False, capture_output=True).returncode == 1


def test_a_module_gets_its_arguments_and_input_and_its_status_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    name = module(tmp_path, "print(sys.argv[1:], __name__, sys.stdin.read(), os.environ['MORE']); raise SystemExit(3)")
    done = apart.run(name, "a", "b", input="said", env={"MORE": "yes"})
    assert done.returncode == 3 and done.stdout.splitlines()[1] == "['a', 'b'] __main__ said yes"
    assert apart.run(name, env={"MORE": "no"}).stdout.splitlines()[1] == "[] __main__  no"
    with pytest.raises(subprocess.TimeoutExpired):
        apart.run(module(tmp_path, "time.sleep(600)"), timeout=1)
