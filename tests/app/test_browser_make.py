"""Make and Compare of the real app in a headless Chromium: a tiny model is made, stopped, exported, measured, asked."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import fits, overlong, served, settled

from app.jobs import RUNNING, Jobs
from app.run_jobs import RUN, jobs_dir

pytestmark = pytest.mark.browser
NAME = "in-the-browser"
TINY = {"Validation": 20, "Final": 20, "Gate": 8, "Checkpoints": 4}


def opened(tab: Any, page: str) -> Any:
    tab.goto(f"/{page}")
    tab.wait_for_selector("h1")
    settled(tab)
    return tab


def fill(tab: Any, label: str, value: object) -> None:
    box = tab.get_by_label(label, exact=True)
    box.fill(str(value))
    box.press("Tab")
    settled(tab)


def choose(tab: Any, key: str, words: str) -> None:
    """Take the option of a select box that holds these words."""
    tab.locator(f".st-key-{key} input").first.fill(words)
    tab.keyboard.press("Enter")
    settled(tab)


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


def person(browser: Any, url: str, width: int = 1280) -> Any:
    context = browser.new_context(viewport={"width": width, "height": 900}, base_url=url)
    context.set_default_timeout(120_000)
    return context


def trained(run: Path) -> list[dict[str, Any]]:
    """What the run's log says of training."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["stage"] == "train"]


def scored(run: Path) -> list[int]:
    """Steps whose checkpoint was scored."""
    return [event["step"] for event in trained(run) if event["kind"] == "metric" and "score" in event]


def start(tab: Any, name: str, minutes: int) -> None:
    """Fill the form for a tiny run, look at its plan and start it; returns once it trains."""
    assert tab.get_by_role("button", name="Start", exact=True).is_disabled(), "the plan comes first"
    fill(tab, "Minutes", minutes)
    fill(tab, "Examples", 800)
    tab.get_by_text("All other settings").click()
    for label, value in TINY.items():
        fill(tab, label, value)
    fill(tab, "Name of the run", name)
    tab.get_by_role("button", name="Show the plan").click()
    tab.get_by_text(re.compile("sql: 800 questions to learn from")).wait_for()
    tab.locator(".st-key-start button:not([disabled])").click()
    tab.get_by_text(re.compile(r"train: \d+ of \d+ steps, .* left")).wait_for()


@pytest.fixture(scope="module")
def made(browser: Any, app_url: str, app_runs: Path) -> Iterator[Path]:
    """A run that was planned, started, watched, stopped and taken up in the browser, and closed in between; ended afterwards."""
    run, jobs = app_runs / NAME, Jobs(jobs_dir(app_runs))
    try:
        context = person(browser, app_url)
        tab = opened(context.new_page(), "make")
        start(tab, NAME, 1)
        context.close()  # the tab is gone; the run goes on
        (job,) = jobs.recent(RUN)
        until(lambda: scored(run) or jobs.state(job) not in RUNNING)
        context = person(browser, app_url)
        tab = opened(context.new_page(), "make")
        choose(tab, "run", NAME)
        tab.get_by_role("button", name="Stop", exact=True).click()
        tab.get_by_role("button", name="Resume").wait_for()
        assert jobs.state(job) == "stopped" and not (run / "model").exists()
        tab.get_by_role("button", name="Resume").click()
        tab.get_by_text("Right answers of the finished model").wait_for(timeout=240_000)
        settled(tab)
        context.close()
        yield run
    finally:
        for job in jobs.recent():
            jobs.stop(job, now=True)


def test_a_run_outlives_the_app_that_started_it(browser: Any, tmp_path: Path) -> None:
    runs, name = tmp_path / "runs", "left-alone"
    runs.mkdir()
    jobs = Jobs(jobs_dir(runs))
    try:
        with served(runs) as url:
            context = person(browser, url)
            start(opened(context.new_page(), "make"), name, 5)
            context.close()
        (job,) = jobs.recent(RUN)
        before = len(trained(runs / name))
        until(lambda: len(trained(runs / name)) > before)  # no app, no browser: it trains
        assert jobs.state(job) == "running"
        with served(runs) as url:
            context = person(browser, url)
            tab = opened(context.new_page(), "make")
            choose(tab, "run", name)
            tab.get_by_text(re.compile(r"train: \d+ of \d+ steps, .* left")).wait_for()
            tab.get_by_role("button", name="Stop", exact=True).click()
            tab.get_by_role("button", name="Resume").wait_for()
            context.close()
        assert jobs.state(job) == "stopped"
    finally:
        for job in jobs.recent():
            jobs.stop(job, now=True)


def test_a_run_is_started_watched_stopped_and_taken_up(made: Path, app_runs: Path) -> None:
    jobs = Jobs(jobs_dir(app_runs))
    assert [jobs.state(job) for job in jobs.recent(RUN)] == ["done", "stopped"]
    assert json.loads((made / "state.json").read_text())["finished"] is True
    events = trained(made)
    starts = [event for event in events if event["kind"] == "start"]
    ends = [event for event in events if event["kind"] == "end"]
    assert len(starts) == 2 and [end["ok"] for end in ends] == [False, True]
    assert starts[1]["done"] > 0, "it went on from a checkpoint"
    assert (made / "model" / "card.json").is_file()


def test_a_finished_run_shows_its_plots_rows_and_ledger(made: Path, tab: Any) -> None:
    opened(tab, "make")
    choose(tab, "run", NAME)
    tab.get_by_text("Right answers of the finished model").wait_for()
    score = json.loads((made / "scores.json").read_text())["student"]["score"]
    assert f"{100 * score:.1f} %" in tab.get_by_test_id("stMetricValue").inner_text().replace("\u00a0", " ")
    tab.wait_for_function("document.querySelectorAll('[data-testid=stVegaLiteChart] :is(canvas, svg)').length >= 2")
    assert tab.get_by_text("rows kept").first.is_visible()
    tab.get_by_role("tab", name="Ledger").click()
    tab.get_by_text(re.compile(r"8\d\d answers, page 1 of 1\d")).wait_for()


def test_two_files_are_exported_measured_and_asked(made: Path, tab: Any) -> None:
    tab.set_default_timeout(180_000)
    opened(tab, "compare")
    tab.get_by_role("tab", name="Measured").click()
    choose(tab, "run", NAME)
    for quant in ("Q4_0", "Q8_0"):
        choose(tab, "quant", quant)
        tab.get_by_role("button", name="Export", exact=True).click()
        until((made / "model" / f"{made.name}-{quant.lower()}.gguf").is_file, 180)
        tab.locator(".st-key-export button:not([disabled])").wait_for()
    fill(tab, "Questions to measure on", 20)
    tab.get_by_role("button", name="Measure", exact=True).click()
    tab.get_by_text(re.compile("Measured on wikisql .*20 questions")).wait_for()
    rows = json.loads((made / "compare.json").read_text())["rows"]
    assert {row["name"] for row in rows} >= {f"{NAME}-q4_0.gguf", f"{NAME}-q8_0.gguf"}
    tab.wait_for_function("document.querySelectorAll('[data-testid=stVegaLiteChart] :is(canvas, svg)').length >= 3")
    with tab.expect_download() as download:
        tab.locator(".st-key-csv button").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == len(rows) + 1

    tab.get_by_role("tab", name="Side by side").click()
    tab.get_by_role("button", name="Ask them").click()
    tab.locator(".st-key-ask button:not([disabled])").wait_for()
    tab.get_by_text("compared with", exact=True).first.wait_for()
    verdict = re.compile("the same answer|another answer with the same result|a different answer")
    tab.get_by_text(verdict).or_(tab.get_by_role("alert")).first.wait_for()

    tab.get_by_role("tab", name="Card").click()
    choose(tab, "card-of", f"{NAME}-q4_0")
    tab.get_by_test_id("stCode").filter(has_text=f"{NAME}-q4_0.gguf").wait_for()
    settled(tab)  # a click before the new button is drawn asks for a file that is no longer offered
    with tab.expect_download() as download:
        tab.get_by_role("button", name=re.compile(r"Download \d+\.\d MB")).click()
    assert Path(download.value.path()).read_bytes() == (made / "model" / f"{NAME}-q4_0.gguf").read_bytes()


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("bad.jsonl", b'{"question": "Who?", "sql": "SELECT 1"}\n{"nothing": 1}\n', r"bad\.jsonl.*2"),
        ("bad.sqlite", b"no database at all " * 50, "is not a SQLite file"),
        ("bad.exe", b"MZ", "files are not allowed"),
    ],
)
def test_a_bad_upload_is_refused_in_a_sentence(
    tab: Any, app_runs: Path, tmp_path: Path, name: str, data: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(data)
    opened(tab, "make")
    tab.get_by_text("Your own data").click()
    kind = "database" if name.endswith("sqlite") else "questions"
    tab.locator(f".st-key-make-upload-{kind} input[type=file]").set_input_files(tmp_path / name)
    tab.get_by_text(re.compile(why)).first.wait_for()
    assert not list((app_runs / "app").rglob("bad.*"))


def test_one_s_own_questions_are_previewed(tab: Any, tmp_path: Path) -> None:
    fired: list[str] = []
    tab.on("dialog", lambda dialog: (fired.append(dialog.message), dialog.dismiss()))
    (tmp_path / "mine <b>.jsonl").write_text('{"question": "<img src=x onerror=alert(1)> who?", "sql": "SELECT 1"}\n')
    opened(tab, "make")
    tab.get_by_text("Your own data").click()
    tab.locator(".st-key-make-upload-questions input[type=file]").set_input_files(tmp_path / "mine <b>.jsonl")
    tab.get_by_text("1 questions, 1 with SQL").wait_for()
    assert tab.get_by_text("<img src=x onerror=alert(1)> who?").first.is_visible()
    assert tab.get_by_text(re.compile("--questions needs --db")).first.is_visible(), "and what is still missing is said"
    assert fired == [] and tab.locator("main img[src='x']").count() == 0


@pytest.mark.parametrize("page", ["make", "compare"])
def test_nothing_scrolls_sideways_at_400_pixels_with_a_run(made: Path, browser: Any, app_url: str, page: str) -> None:
    context = person(browser, app_url, width=400)
    tab = opened(context.new_page(), page)
    if page == "make":
        choose(tab, "run", NAME)
        tab.get_by_text("Right answers of the finished model").wait_for()
        names = ["Rows", "Ledger", "Log", "Settings"]
    else:
        names = ["All models", "Measured", "Side by side", "Card"]
    for name in names:
        tab.get_by_role("tab", name=name).click()
        settled(tab)
        tab.wait_for_timeout(500)
        assert fits(tab), (name, overlong(tab))
    context.close()
