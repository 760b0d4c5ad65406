"""A process killed at any moment: its thread goes on at the last finished step, and no side effect runs twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents import Store

ROOT = Path(__file__).resolve().parents[2]


KILLED = """
import sys, os, time, random
from pydantic import BaseModel
from agents import AgentGraph, END, GraphError, Store
from agents import events as ev

class State(BaseModel):
    n: int = 0
    notes: list[str] = []

g = AgentGraph(State, name="killed")
effects = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def effect(n):
    os.write(effects, f"{n}\\n".encode())
    time.sleep(0.0005)
    return f"did {n}"

@g.node(start=True)
def step(s):
    try:
        note = ev.memo("effect", lambda: effect(s.n))
    except ev.UnknownOutcome:
        note = f"unknown {s.n}"
    s.notes.append(note)
    return g.goto(END if s.n == 199 else "step", {"n": s.n + 1})

print("ready", flush=True)
store = Store(sys.argv[1])
if store.rows("u"):
    try:
        run = g.resume("u", store=store, max_steps=1000)
    except GraphError as error:
        assert "has ended at step 200" in str(error)
        print("end 200")
        sys.exit()
else:
    run = g.run(State(), thread="u", store=store, max_steps=1000)
print(run.reason, run.trace[0].resumed_at, flush=True)
"""


def killed_runs(tmp_path: Path, moments: list[float]) -> None:
    """Kill the run at each moment (seconds after its start), look at the file, and let a last process finish it."""
    store, effects = tmp_path / "runs.db", tmp_path / "effects.txt"
    command = [sys.executable, "-c", KILLED, str(store), str(effects)]
    last = -1
    for moment in moments:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept = Store(store)
        rows = kept.rows("u")
        kept.close()
        steps = [row.step for row in rows if row.kind == "node"]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= last, "a finished step was lost"
        last = len(steps)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert done == ["ready", "end", str(last) if last > 0 else done[2]]
    rows = Store(store).rows("u")
    notes = [note for row in rows if row.kind == "node" for note in json.loads(row.data)["a"]["notes"]]
    assert [note.split()[1] for note in notes] == [str(n) for n in range(200)]
    assert sum(note.startswith("unknown") for note in notes) <= len(moments)
    written = effects.read_text().split()
    assert len(written) == len(set(written)), "a side effect ran twice in one step"
    assert {note.split()[1] for note in notes if note.startswith("did")} <= set(written)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_at_three_moments(tmp_path: Path) -> None:
    killed_runs(tmp_path, [0.0, 0.04, 0.06])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_at_fifty_random_moments(tmp_path: Path) -> None:
    rng = random.Random(7)
    for i in range(10):
        (tmp_path / str(i)).mkdir()
        killed_runs(tmp_path / str(i), [rng.uniform(0.0, 0.08) for _ in range(5)])
