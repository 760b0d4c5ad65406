"""Exit codes and the one line on stderr, each through a real process."""

import subprocess
import sys

import pytest

from factory.cli import _USER_ERRORS

PROGRAM = """
import sys
from factory.cli import RunStopped, run_cli
def main(argv):
    {body}

raise SystemExit(run_cli(main, []))
"""


def run(body, **options):
    return subprocess.run([sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, **options)


@pytest.mark.parametrize(("module", "kind"), _USER_ERRORS.items())
def test_user_errors_are_one_line_and_exit_2(module, kind):
    done = run(f"from {module} import {kind}; raise {kind}('unknown thing \\'x\\';\\n choose from y')")
    assert done.returncode == 2
    assert done.stderr.endswith("error: unknown thing 'x'; choose from y\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("open('/nonexistent/file')", "/nonexistent/file: no such file or directory"),
        ("open('/')", "/: is a directory"),
        ("raise OSError(28, 'No space left on device', 'out/model')", "out/model: the disk is full"),
        ("raise PermissionError(13, 'Permission denied', 'out')", "out: permission denied"),
        ("raise RuntimeError('I/O error: No space left on device (os error 28)')", "the disk is full"),
        ("import sqlite3; raise sqlite3.OperationalError('database or disk is full')", "the disk is full"),
    ],
)
def test_the_machines_limits_are_one_line_and_exit_2(body, says):
    done = run(body)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("body", ["{}['bug']", "raise OSError(5, 'Input/output error')", "raise ValueError('a bug')"])
def test_a_bug_keeps_its_traceback(body):
    done = run(body)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_clean_stop_exits_3():
    done = run("raise RunStopped('1.00 of 1.00 dollars spent; continue with a larger --budget-usd')")
    assert done.returncode == 3
    assert done.stderr.endswith("stopped: 1.00 of 1.00 dollars spent; continue with a larger --budget-usd\n")


def test_interrupt_exits_130():
    done = run("raise KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr == "interrupted; continue with the same command\n"


def test_saying_an_error_loads_nothing_heavy():
    done = run("import atexit; atexit.register(lambda: print({'torch', 'transformers', 'matplotlib'} & sys.modules.keys())); "
               "from factory.tasks.task import TaskError; raise TaskError('x')")  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "set()\n")


def test_success_exits_0_and_exit_codes_of_argparse_pass_through():
    assert run("print('fine')").stdout == "fine\n"
    assert run("raise SystemExit(2)").returncode == 2


def test_a_closed_pipe_is_silent():
    command = f'{sys.executable} -c "{PROGRAM.format(body="[print(i) for i in range(100000)]")}" | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout == "0\n"
    assert done.stderr == ""
