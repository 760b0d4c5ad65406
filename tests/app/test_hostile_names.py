"""Thirty hostile texts as names of runs and model files, and as questions to several files: nothing leads out, nothing runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from app_models import artifact
from test_drawing import HOSTILE

from app import run_files, side_by_side
from app.jobs import RUNNING, Jobs
from app.make_form import run_name
from app.run_files import RunError
from app.wiring import BUNDLED
from factory.settings import DistillSettings, SettingsError

NAMES = [*HOSTILE, "..", ".", "/", "a/../../b", "link", "link/x.gguf", "app", "-rf", "a\nb"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Runs with a link that leads out, to a run and a file that are there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.toml").write_text('task = "sql"\n')
    (outside / "x.gguf").write_bytes(b"GGUF")
    place = tmp_path / "runs"
    (place / "app").mkdir(parents=True)
    (place / "link").symlink_to(outside)
    return place


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_hostile_name_finds_no_run_and_no_file(name: str, root: Path) -> None:
    with pytest.raises(RunError):
        run_files.run_named(root, name)
    if name != "app":  # a directory of ours, and no model
        with pytest.raises(RunError):
            run_files.artifact_named(root, name)
    assert run_files.find_runs(root) == []


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_hostile_name_becomes_no_run(name: str) -> None:
    try:
        found = run_name(name, DistillSettings())
    except SettingsError as error:
        assert "\n" not in str(error)
    else:
        assert found == name == "link", "the one plain name among them"


@pytest.mark.parametrize("text", HOSTILE, ids=range(30))
def test_a_hostile_question_is_one_argument(text: str, tmp_path: Path) -> None:
    argv = side_by_side.ask_job([artifact(tmp_path)], text, BUNDLED, text.replace("\0", ""))
    printing = "import json, sys; print(json.dumps(sys.argv[1:]))"
    jobs = Jobs(tmp_path / "jobs")
    job = jobs.start("ask", [sys.executable, "-c", printing, *argv[3:]], text)
    end = time.monotonic() + 20
    while jobs.state(job) in RUNNING:
        assert time.monotonic() < end, "did not end in time"
        time.sleep(0.05)
    question = next(word for word in json.loads(job.output.read_text()) if word.startswith("--question="))
    assert question == f"--question={text.replace(chr(0), ' ')}"
    assert not Path("/tmp/pk-owned").exists()
