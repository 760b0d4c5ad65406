"""Real kills and several processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from factory.events import EventLog
from factory.train import TrainJob, train
base, out, rows, epochs = sys.argv[1:]
torch.set_num_threads(1)
def score(directory):
    with (Path(out) / "asked").open("a") as file:
        file.write(directory.name + "\\n")
    return 0.5
job = TrainJob(Path(base), Path(out), json.loads(Path(rows).read_text()), epochs=float(epochs), batch=4, max_length=64,
               learning_rate=5e-3, log_every=1, save_every=3, checkpoints=3)
result = train(job, EventLog(), score)
text = json.dumps({"losses": result.losses, "steps": result.steps, "best": result.best_step})
(Path(out) / ("result" + os.environ.get("RANK", ""))).write_text(text)
"""


def command(student_dir: Path, out: Path, rows: list[dict[str, Any]], epochs: float) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").write_text(json.dumps(rows))
    (out / "script.py").write_text(SCRIPT)
    return [str(out / "script.py"), str(student_dir), str(out), str(out / "rows.json"), str(epochs)]


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_kill_nine_at_random_moments(student_dir: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """However often it is killed, the losses are those of a run that never was."""
    subprocess.run([sys.executable, *command(student_dir, tmp_path / "whole", rows, 8)], env=environment(), check=True)
    expected = json.loads((tmp_path / "whole" / "result").read_text())
    run = [sys.executable, *command(student_dir, tmp_path / "killed", rows, 8)]
    dice = random.Random(0)
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(run, env=environment())
        checkpoints = tmp_path / "killed" / "checkpoints"
        before = set(checkpoints.glob("*/complete.json"))
        # Start-up takes seconds: wait for it to pass, then kill within the following steps.
        while process.poll() is None and set(checkpoints.glob("*/complete.json")) <= before:
            time.sleep(0.01)
        time.sleep(dice.random() * 0.5)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    if process.wait() != 0:
        subprocess.run(run, env=environment(), check=True)
    assert kills >= 3
    found = json.loads((tmp_path / "killed" / "result").read_text())
    assert found["steps"] == expected["steps"] == 96
    assert [step for step, _ in found["losses"]] == list(range(1, 97))
    assert [loss for _, loss in found["losses"]] == pytest.approx([loss for _, loss in expected["losses"]], rel=1e-4)


@pytest.mark.slow
def test_two_processes(student_dir: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Two processes share the batches, one writes and scores; twice the rows a step, half the steps."""
    # `accelerate launch` starts several GPU processes through this launcher; on CPUs it wants MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    several = {**environment(), "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        [*launch, *command(student_dir, tmp_path / "run", rows, 2)], env=several, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / "run" / f"result{rank}").read_text()) for rank in (0, 1))
    assert first == second and first["steps"] == 12 and first["losses"][-1][1] < first["losses"][0][1]
    assert (tmp_path / "run" / "asked").read_text().split() == ["step-000004", "step-000008", "step-000012"]
