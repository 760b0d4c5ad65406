"""The page Make under AppTest: empty, planned, running, stopped, done, refused; its jobs are real processes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app import form_view, make_form, run_files, run_jobs, uploads, view
from app.jobs import RUNNING, Jobs
from app.make_form import settings_from
from factory.events import EventLog
from factory.settings import DistillSettings, SettingsError, to_toml

OWNER = "0123456789abcdef" * 2


def wait_for(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def jobs(runs: Path) -> Jobs:
    return Jobs(run_jobs.jobs_dir(runs))


def a_run(runs: Path, name: str = "tiny", *, ended: bool = False, finished: bool = False, task: str = "sql") -> Path:
    """A run's directory as `factory.distill` leaves it after some steps of training."""
    place = runs / name
    place.mkdir()
    (place / "config.toml").write_text(to_toml(DistillSettings(task=task, minutes=0.5)))
    log = EventLog(place / "events.jsonl")
    with log.stage("rows", total=4, unit="rows") as rows:
        rows.drop("duplicate", 2)
        rows.metric(examples=4, rows=2, dropped=2)
    (place / "train.jsonl").write_text('{"question": "How many <b>?", "answer": "SELECT 1", "id": "a"}\n')
    with (place / "events.jsonl").open("a") as file:
        lines = [{"kind": "start", "stage": "train", "total": 20, "unit": "steps", "done": 0}]
        lines += [{"kind": "progress", "stage": "train", "done": n, "total": 20, "unit": "steps", "left_s": 61.0, "loss": 5.0 - n}
                  for n in (1, 2, 3)]  # fmt: skip
        lines += [{"kind": "metric", "stage": "train", "step": 3, "score": 0.25}]
        if ended:
            lines += [
                {"kind": "end", "stage": "train", "ok": finished, "seconds": 3.0, "error": "" if finished else "interrupted"}
            ]
        file.writelines(json.dumps({"time": time.time(), **line}) + "\n" for line in lines)
    if finished:
        (place / "state.json").write_text('{"finished": true}')
        (place / "scores.json").write_text('{"student": {"score": 0.5, "low": 0.4, "high": 0.6, "n": 100}}')
    return place


def a_ledger(place: Path) -> None:
    from factory.ledger import Ledger

    with closing(Ledger(place / "ledger.sqlite")):
        pass
    with closing(sqlite3.connect(place / "ledger.sqlite")) as db:
        db.execute("INSERT INTO drops (stage, row_id, reason) VALUES ('rows', 'q-7', 'duplicate')")
        db.commit()


def shown(test: Any) -> str:
    """All words of a page, escapes taken out."""
    kinds = (test.markdown, test.caption, test.error, test.info, test.warning, test.success, test.code)
    return "\n".join(str(one.value) for kind in kinds for one in kind).replace("\\", "")


def test_with_no_run_the_form_says_what_to_do(page: Callable[..., Any]) -> None:
    test = page("make")
    assert not test.exception and "No model was made here yet" in shown(test)
    assert test.button(key="start").disabled and not test.button(key="plan").disabled
    drawn = {one.key for kind in (test.selectbox, test.number_input, test.text_input, test.toggle) for one in kind}
    assert {f"make-{field.name}" for field in make_form.form_fields()} <= drawn, "every setting has its field"


def test_the_plan_comes_before_the_start_and_belongs_to_its_settings(
    page: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_form, "run_job", lambda settings: ([sys.executable, "-c", "print('calls <b>264</b>')"], {}))
    test = page("make", owner=OWNER)
    test.button(key="plan").click().run()
    plans = Jobs(runs / "app" / OWNER / "jobs")
    (job,) = plans.recent()
    assert job.argv[-1] == "--dry-run"
    wait_for(lambda: plans.state(job) not in RUNNING)
    test.run()
    assert "calls <b>264</b>" in [code.value for code in test.code] and not test.button(key="start").disabled
    test.number_input(key="make-examples").set_value(7).run()
    assert test.button(key="start").disabled, "a plan for other settings does not count"


def test_a_refused_plan_is_said_in_its_own_words(page: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "import sys; sys.stderr.write('distill: error: teacher x is unknown; choose another\\n'); sys.exit(2)"
    monkeypatch.setattr(make_form, "run_job", lambda settings: ([sys.executable, "-c", words], {}))
    test = page("make", owner=OWNER)
    test.button(key="plan").click().run()
    plans = Jobs(runs / "app" / OWNER / "jobs")
    wait_for(lambda: plans.state(plans.recent()[0]) == "refused")
    test.run()
    assert "teacher x is unknown; choose another" in shown(test) and test.button(key="start").disabled


@pytest.mark.parametrize("name", ["../out", "a/b", "app", ".x", "<script>alert(1)</script>", "x" * 79 + "/"])
def test_a_name_that_leads_elsewhere_is_refused(page: Callable[..., Any], runs: Path, name: str) -> None:
    test = page("make")
    test.text_input(key="make-name").set_value(name).run()
    assert not test.exception and len(test.error) == 1 and "name cannot be" in shown(test)
    assert [path.name for path in runs.iterdir()] == ["app"]


def test_settings_that_do_not_go_together_are_one_sentence(page: Callable[..., Any]) -> None:
    test = page("make")
    test.selectbox(key="make-method").set_value("logits").run()
    assert not test.exception and "only replays text" in shown(test)
    assert len(test.error) == 1


def test_start_runs_the_command_and_a_refusal_before_the_run_exists_is_shown(
    page: Callable[..., Any], runs: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys\nif '--dry-run' in sys.argv: sys.exit(0)\n"
        "sys.stderr.write('distill: error: the disk is full; free some\\n'); sys.exit(2)"
    )
    fake = ([sys.executable, "-c", script], {})
    monkeypatch.setattr(make_form, "run_job", lambda settings: fake)
    monkeypatch.setattr(run_jobs, "run_job", lambda settings: fake)
    test = page("make", owner=OWNER)
    test.text_input(key="make-name").set_value("mine").run()
    test.button(key="plan").click().run()
    plans = Jobs(runs / "app" / OWNER / "jobs")
    wait_for(lambda: plans.state(plans.recent()[0]) == "done")
    test.run()
    test.button(key="start").click().run()
    (job,) = jobs.recent()
    assert job.about == str(runs / "mine")
    wait_for(lambda: jobs.state(job) == "refused")
    test.run()
    assert test.selectbox(key="run").value == "mine" and "the disk is full; free some" in shown(test)
    test.button(key="again").click().run()
    assert len(jobs.recent()) == 2


def test_a_running_run_shows_time_left_and_is_stopped_and_resumed(
    page: Callable[..., Any], runs: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = a_run(runs)
    sleeper = [sys.executable, "-c", "import time, sys\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"]
    job = jobs.start(run_jobs.RUN, sleeper, str(place))
    wait_for(lambda: jobs.state(job) == "running")
    time.sleep(0.5)
    test = page("make", run="tiny")
    assert not test.exception, test.exception
    texts = shown(test) + "".join(str(one.proto) for one in test.get("progress"))
    assert "3 of 20 steps" in texts.replace("\\", "") and "left" in texts
    test.button(key="stop").click().run()
    wait_for(lambda: jobs.state(job) == "stopped")
    test.run()
    assert "Stopped; everything finished so far is kept" in shown(test)
    monkeypatch.setattr(run_jobs, "resume_job", lambda module, path: [sys.executable, "-c", "print('goes on')"])
    test.button(key="resume").click().run()
    assert len(jobs.recent()) == 2
    newest = jobs.last_about(str(place), run_jobs.RUN)
    assert newest is not None and newest.id != job.id
    wait_for(lambda: jobs.state(newest) == "done")


def test_a_run_of_a_killed_process_can_be_resumed_with_its_own_settings(runs: Path, jobs: Jobs) -> None:
    place = a_run(runs)
    run = run_files.run_named(runs, "tiny")
    how = run_jobs.standing(run, jobs)
    assert how.state == "resumable" and how.can_resume and "last checkpoint" in how.sentence
    argv = make_form.resume_job(run.command, run.path)
    assert argv[1:] == ["-m", "factory.distill", "--config", str(place / "config.toml"), "--out", str(place)]


def test_a_run_that_somebody_else_works_in_can_be_watched_only(page: Callable[..., Any], runs: Path) -> None:
    import fcntl

    place = a_run(runs)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        test = page("make", run="tiny")
        assert "did not start works in this run" in shown(test)
        assert not [one for one in test.button if one.key in ("stop", "resume")]


def test_a_finished_run_shows_score_rows_and_ledger(page: Callable[..., Any], runs: Path) -> None:
    a_ledger(a_run(runs, ended=True, finished=True))
    test = page("make", run="tiny")
    assert not test.exception, test.exception
    assert test.metric[0].value == "50.0 %" and not [one for one in test.button if one.key in ("stop", "resume")]
    assert test.dataframe[0].value["question"][0] == "How many <b>?", "text of a row stays text"
    assert "1 rows dropped" in shown(test) and test.dataframe[1].value["id"][0] == "q-7"
    assert "No answer fits" in shown(test)


def test_a_damaged_run_is_shown_as_far_as_it_goes(page: Callable[..., Any], runs: Path) -> None:
    place = a_run(runs)
    (place / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    (place / "config.toml").write_text("not = [toml")
    (place / "state.json").write_text("{")
    test = page("make", run="tiny")
    assert not test.exception, test.exception
    assert "ledger.sqlite" in shown(test) and len(test.error) == 2, "one sentence each for rows and ledger"


class Sent:
    """What Streamlit gives for an uploaded file."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data, self.file_id = name, data, name

    def getvalue(self) -> bytes:
        return self.data


@pytest.mark.parametrize(
    ("name", "data", "kind", "task", "why"),
    [
        ("q.jsonl", b'{"question": "a", "sql": "SELECT 1"}\n{"nothing": 1}\n', "questions", "sql", "2"),
        ("q.jsonl", b"{\n", "questions", "route", "1"),
        ("q.jsonl", b"\n\n", "questions", "tools", "no rows"),
        ("q.exe", b"MZ", "questions", "sql", "not a questions file"),
        ("d.sqlite", b"no database at all" * 40, "database", "sql", "not a SQLite file"),
    ],
)
def test_a_bad_upload_is_refused_and_not_kept(tmp_path: Path, name: str, data: bytes, kind: Any, task: str, why: str) -> None:
    with pytest.raises(uploads.UploadError, match=why):
        form_view._kept(Sent(name, data), tmp_path / "up", kind, task)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_good_upload_is_kept_once(tmp_path: Path) -> None:
    sent = Sent("my <b>questions.jsonl", b'{"question": "Who?", "label": "person"}\n')
    first, again = (form_view._kept(sent, tmp_path, "questions", "route") for _ in range(2))
    assert first == again and uploads.look_at_rows(first) == (1, ({"question": "Who?", "label": "person"},))


def test_the_page_is_registered() -> None:
    assert "make" in view.PAGES and "compare" in view.PAGES


@pytest.mark.parametrize("name", ["make", "compare"])
def test_opening_a_page_imports_no_model_library(name: str, runs: Path) -> None:
    a_run(runs)
    root = Path(form_view.__file__).resolve().parents[1]
    script = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        f"test = AppTest.from_file({str(root / 'app' / 'pages' / name)!r} + '.py', default_timeout=60).run()\n"
        "assert not test.exception, test.exception\n"
        "print(sorted({'torch', 'transformers', 'llama_cpp', 'onnxruntime'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=90, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_functions_are_read_from_a_file_and_never_imported(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'os:system' is no file"):
        settings_from({"task": "tools", "functions": "os:system"}, "own", tmp_path)
