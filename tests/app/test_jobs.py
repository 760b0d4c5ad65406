"""Jobs: real processes, started, watched by another `Jobs` (as after a restart), stopped, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app import jobs as module
from app.jobs import ROOT, RUNNING, Job, JobError, Jobs

SLEEPER = "import time, sys\nprint('begun', flush=True)\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"


def wait_for(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "jobs")


def ended(jobs: Jobs, job: Job) -> str:
    wait_for(lambda: jobs.state(job) not in RUNNING)
    return jobs.state(job)


def test_a_command_that_ends_well_is_done_and_its_output_kept(jobs: Jobs) -> None:
    job = jobs.start("plan", [*python("import sys; print(open(sys.argv[1]).read())"), "{job}/a.txt"], files={"a.txt": "héllo"})
    assert jobs.state(job) in RUNNING
    assert ended(jobs, job) == "done"
    assert jobs.lines(job) == ["héllo"]
    assert jobs.sentence(job) == ""
    assert jobs.ended(job) == pytest.approx(time.time(), abs=20)


@pytest.mark.parametrize(
    ("script", "state", "sentence"),
    [
        ("import sys; sys.stderr.write('distill: error: rank cannot be 0\\n'); sys.exit(2)", "refused", "rank cannot be 0"),
        (
            "import sys; sys.stderr.write('distill: stopped: budget spent; go on\\n'); sys.exit(3)",
            "stopped",
            "budget spent; go on",
        ),
        ("raise RuntimeError('x' * 3)", "failed", "The command broke off: RuntimeError: xxx. The log below says more."),
        ("import os; os.kill(os.getpid(), 9)", "killed", "The process ended without a word"),
    ],
)
def test_how_a_command_ended_is_said_in_its_own_words(jobs: Jobs, script: str, state: str, sentence: str) -> None:
    job = jobs.start("distill", python(script))
    assert ended(jobs, job) == state
    assert jobs.sentence(job).startswith(sentence)


def test_a_command_that_does_not_exist_fails_with_its_name(jobs: Jobs) -> None:
    job = jobs.start("plan", ["/nowhere/at-all"])
    assert ended(jobs, job) == "failed"
    assert "/nowhere/at-all" in jobs.sentence(job)


def test_a_job_is_found_watched_and_stopped_by_an_app_started_later(jobs: Jobs) -> None:
    jobs.start("distill", python(SLEEPER), about="/runs/a")
    later = Jobs(jobs.root)
    found = later.last_about("/runs/a", "distill")
    assert found is not None
    wait_for(lambda: later.lines(found) == ["begun"])
    assert later.state(found) == "running"
    later.stop(found)
    assert later.state(found) in ("stopping", "stopped")
    assert ended(later, found) == "stopped"
    assert later.sentence(found) == "Stopped; everything finished so far is kept."


def test_a_job_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from app.jobs import Jobs\n"
        f"Jobs(Path({str(tmp_path)!r})).start('distill', [sys.executable, '-c', {SLEEPER!r}], about='x')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    jobs = Jobs(tmp_path)
    (job,) = jobs.recent()
    wait_for(lambda: jobs.lines(job) == ["begun"])
    assert jobs.state(job) == "running"
    jobs.stop(job, now=True)
    assert ended(jobs, job) == "stopped"


def test_stopping_works_where_the_app_was_started_with_interrupts_ignored(tmp_path: Path) -> None:
    """As `streamlit run … &` in a script does."""
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from pathlib import Path; from app.jobs import Jobs\n"
        f"Jobs(Path({str(tmp_path)!r})).start('distill', [sys.executable, '-c', {SLEEPER!r}])"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    jobs = Jobs(tmp_path)
    (job,) = jobs.recent()
    wait_for(lambda: jobs.lines(job) == ["begun"])
    jobs.stop(job)
    assert ended(jobs, job) == "stopped"
    assert json.loads((job.directory / "exit.json").read_text())["code"] == 130


def test_another_process_with_the_same_number_is_neither_watched_nor_stopped(jobs: Jobs) -> None:
    job = jobs.start("distill", python(SLEEPER))
    wait_for(lambda: jobs.lines(job) == ["begun"])
    jobs.stop(job, now=True)
    ended(jobs, job)
    (job.directory / "stop.json").unlink()
    other = subprocess.Popen(python("import time; time.sleep(60)"), start_new_session=True)
    try:
        started = psutil.Process(other.pid).create_time() - 100
        (job.directory / "process.json").write_text(json.dumps({"pid": other.pid, "started": started}))
        assert jobs.state(job) == "killed"
        jobs.stop(job, now=True)
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


def test_starting_again_repeats_the_command_with_its_files(jobs: Jobs) -> None:
    script = "import sys, pathlib; print(pathlib.Path(sys.argv[1]).read_text())"
    first = jobs.start("distill", [*python(script), "{job}/settings.toml"], "run", {"settings.toml": "rank = 4"})
    ended(jobs, first)
    second = jobs.again(first)
    assert second.id != first.id
    assert ended(jobs, second) == "done"
    assert jobs.lines(second) == ["rank = 4"]
    assert str(second.directory) in second.argv[-1]


def test_what_runs_is_not_started_again(jobs: Jobs) -> None:
    job = jobs.start("distill", python(SLEEPER), about="runs/a")
    with pytest.raises(JobError, match="runs/a: still runs; stop it"):
        jobs.again(job)
    jobs.stop(job, now=True)
    ended(jobs, job)


def test_no_more_than_a_few_run_at_once(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER", 1)
    job = jobs.start("distill", python(SLEEPER))
    with pytest.raises(JobError, match="wait for one to end"):
        jobs.start("plan", python("pass"))
    jobs.stop(job, now=True)
    ended(jobs, job)
    jobs.start("plan", python("pass"))


def test_old_jobs_that_ended_are_removed(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    for _ in range(4):
        ended(jobs, jobs.start("plan", python("pass")))
    assert len(jobs.recent()) == 2


@pytest.mark.parametrize(
    "id", ["../../etc", "plan-20260101-000000-abcdef/../..", "", "/etc/passwd", "plan-20260101-000000-abcde\n"]
)
def test_an_id_that_is_no_plain_name_is_never_looked_up(jobs: Jobs, id: str) -> None:
    with pytest.raises(JobError, match="there is no job"):
        jobs.get(id)


def test_damaged_job_files_are_passed_over(jobs: Jobs) -> None:
    good = jobs.start("plan", python("pass"))
    for number, text in enumerate(('{"kind": 3}', "no json", '["a"]')):
        place = jobs.root / f"plan-20260101-000000-00000{number}"
        place.mkdir()
        (place / "job.json").write_text(text)
    assert [job.id for job in jobs.recent()] == [good.id]
    ended(jobs, good)


def test_control_characters_of_the_output_are_left_out(jobs: Jobs) -> None:
    job = jobs.start("plan", python(r"print('\x1b[31mred\x1b[0m\x07 <b>x</b>')"))
    ended(jobs, job)
    assert jobs.lines(job) == ["red <b>x</b>"]


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="cannot be written"):
        Jobs(tmp_path / "file").start("plan", python("pass"))
