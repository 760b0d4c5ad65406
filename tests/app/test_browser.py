"""The real app in a headless Chromium: asked, watched, told yes and no, given files, on a narrow screen, by two at once."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser import fits, overlong, served, settled

from app.data.make_solar_system import make
from app.wiring import BUNDLED

pytestmark = pytest.mark.browser
QUESTIONS = ("Who discovered Triton?", "How many visits to Mars were by a rover?", "Which mission has agency ESA?")
PAGES = ("", "make", "compare", "personas", "runs")


def opened(tab: Any, page: str = "") -> Any:
    tab.goto(f"/{page}")
    tab.wait_for_selector("h1")
    settled(tab)
    return tab


def ask(tab: Any, question: str) -> None:
    """Ask, and wait until the answer is there."""
    before = tab.get_by_test_id("stChatMessage").count()
    tab.get_by_test_id("stChatInputTextArea").fill(question)
    tab.keyboard.press("Enter")
    tab.wait_for_function(
        "n => document.querySelectorAll('[data-testid=stChatMessage]').length >= n"
        " && !document.querySelector('.st-key-stop') && document.querySelector('[data-testid=stGraphVizChart] svg')",
        arg=before + 2,
    )
    settled(tab)


def statements(tab: Any) -> list[str]:
    """The SQL of the answers on the page."""
    blocks = tab.get_by_test_id("stChatMessage").get_by_test_id("stCode").all()
    return [text for text in (block.inner_text().strip() for block in blocks) if text.upper().startswith("SELECT")]


def recorded(runs: Path, question: str) -> list[dict[str, Any]]:
    """What the app put on record about a question: the fields that its last trace set."""
    found = []
    for file in (runs / "app").glob("*/turns/*.json"):
        about = json.loads(file.read_text())
        if about["question"] == question:
            fields: dict[str, Any] = {}
            for line in file.with_suffix(".jsonl").read_text().splitlines():
                event = json.loads(line)
                if event["kind"] == "node_ended":
                    fields |= event["changes"]
            found.append(fields)
    return found


def by_sqlite(sql: str, database: Path = BUNDLED) -> list[list[Any]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return [list(row) for row in db.execute(sql)]


def test_three_questions_to_the_bundled_database(tab: Any, app_runs: Path) -> None:
    opened(tab)
    for question in QUESTIONS:
        ask(tab, question)
    shown = statements(tab)
    assert len(shown) == 3
    for question, sql in zip(reversed(QUESTIONS), shown):  # the latest stands on top
        one_line = " ".join(sql.split())
        fields = next(found for found in recorded(app_runs, question) if " ".join(found["sql"].split()) == one_line)
        assert fields["rows"] == by_sqlite(sql), "the rows that the app showed are those sqlite gives"
        assert tab.get_by_text(fields["answer"], exact=True).count() >= 1
    assert tab.get_by_test_id("stDataFrame").count() >= 2
    way = tab.get_by_text("Way taken: table → write → run → check")
    assert way.is_visible()
    lit = tab.locator("[data-testid=stGraphVizChart] svg g.node path[fill='#a3322b']")
    assert lit.count() == 4, "the four nodes that ran are lit"


def test_what_an_answer_is_shown_with_is_fetched_before_it_is_asked_for(tab: Any, app_runs: Path) -> None:
    opened(tab)
    fetched = "performance.getEntriesByType('resource').map(entry => entry.name).join(' ')"
    tab.wait_for_function(f"{fetched}.includes('GraphVizChart') && {fetched}.includes('StreamlitSyntaxHighlighter')")
    assert tab.get_by_test_id("stGraphVizChart").count() == 0


def test_an_interrupt_is_approved_and_another_denied(tab: Any, app_runs: Path) -> None:
    opened(tab)
    tab.get_by_role("button", name="Graph and options").click()
    tab.get_by_text("Ask me before a statement runs").click()
    settled(tab)
    tab.keyboard.press("Escape")
    for button, ran in (("Approve", True), ("Deny", False)):
        question = f"Who discovered Triton? {button}"
        tab.get_by_test_id("stChatInputTextArea").fill(question)
        tab.keyboard.press("Enter")
        tab.get_by_role("button", name=button).click()
        tab.wait_for_function("!document.querySelector('.st-key-approve-it')")
        settled(tab)
        tab.wait_for_timeout(500)
        fields = recorded(app_runs, question)
        assert len(fields) == 1
        if ran:
            assert fields[0]["rows"] == by_sqlite(fields[0]["sql"])
        else:
            assert "rows" not in fields[0] and tab.get_by_text("was not approved").is_visible()


def test_a_database_is_uploaded_and_asked(tab: Any, app_runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "my <b>shop.sqlite"
    with closing(sqlite3.connect(place)) as db:
        db.execute("CREATE TABLE knife (name TEXT, maker TEXT, price REAL)")
        db.executemany("INSERT INTO knife VALUES (?, ?, ?)", [("Opinel", "France", 12.5), ("Mora", "Sweden", 15.0)])
        db.commit()
    opened(tab)
    tab.get_by_role("button", name="Graph and options").click()
    tab.locator("input[type=file]").set_input_files(place)
    tab.wait_for_function("document.querySelector('.st-key-database input').value.includes('my-b-shop')")
    settled(tab)
    tab.keyboard.press("Escape")
    ask(tab, "Which knife has maker Sweden?")
    fields = recorded(app_runs, "Which knife has maker Sweden?")[0]
    assert '"knife"' in fields["sql"] and fields["rows"] == by_sqlite(fields["sql"], place)


@pytest.mark.parametrize("bad", ["text", "damaged", "huge", "name"])
def test_a_bad_upload_is_refused_in_a_sentence(tab: Any, app_runs: Path, tmp_path: Path, bad: str) -> None:
    place = tmp_path / ("bad.exe" if bad == "name" else "bad.sqlite")
    if bad == "huge":  # a gigabyte that takes no room
        with place.open("wb") as file:
            file.truncate(1_000_000_000)
    else:
        place.write_bytes(
            {"text": b"no database at all " * 50, "damaged": make(tmp_path / "whole").read_bytes()[:6000]}.get(bad, b"MZ")
        )
    opened(tab)
    tab.get_by_role("button", name="Graph and options").click()
    tab.locator("input[type=file]").set_input_files(place)
    refusals = {
        "text": "is not a SQLite file",
        "damaged": "malformed|damaged",
        "huge": "must be 200.0MB or smaller",
        "name": "files are not allowed",
    }
    tab.get_by_text(re.compile(refusals[bad])).first.wait_for()
    if bad in ("text", "damaged"):
        assert tab.get_by_test_id("stAlert").count() == 1
    assert not list((app_runs / "app").rglob("bad.*"))


def test_script_in_a_question_stays_text(tab: Any) -> None:
    fired: list[str] = []
    tab.on("dialog", lambda dialog: (fired.append(dialog.message), dialog.dismiss()))
    outside: list[str] = []
    tab.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
    opened(tab)
    for text in ("<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "![x](http://example.org/x.png)"):
        ask(tab, f"{text} how many moons has Saturn?")
        assert tab.get_by_text(text, exact=False).first.is_visible()
    assert tab.locator("main script, main img[src='x'], main img[src*='example.org']").count() == 0
    outside = [url for url in outside if not url.startswith(("data:", "blob:"))]
    assert fired == [] and outside == []


def test_two_people_share_the_model_and_see_no_thread_of_each_other(browser: Any, app_url: str) -> None:
    people = [browser.new_context(base_url=app_url, viewport={"width": 1280, "height": 900}) for _ in range(2)]
    tabs = [opened(person.new_page()) for person in people]
    asked = ["How many moons has Saturn?", "Which mission has agency JAXA?"]
    for tab, question in zip(tabs, asked):
        ask(tab, question)
    for tab, mine, other in zip(tabs, asked, asked[::-1]):
        opened(tab, "runs")
        tab.get_by_test_id("stDataFrame").first.wait_for()
        assert tab.get_by_text(mine, exact=True).count() >= 1
        assert other not in tab.content()
    for person in people:
        person.close()


def test_a_run_is_replayed_and_exported(tab: Any) -> None:
    opened(tab)
    ask(tab, "Who discovered Triton?")
    tab.get_by_role("link", name="Runs").click()
    tab.get_by_role("button", name="Replay").click()
    tab.get_by_text("The same again: 4 steps").wait_for()
    with tab.expect_download() as download:
        tab.get_by_role("button", name=re.compile("Export 1 as JSONL")).click()
    lines = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert lines[0]["question"] == "Who discovered Triton?" and lines[-1]["kind"] == "run_ended"


def test_a_persona_held_to_a_choice_is_tried_and_saved(tab: Any, app_runs: Path) -> None:
    opened(tab, "personas")
    tab.get_by_label("Name", exact=True).fill("judge")
    tab.keyboard.press("Tab")
    tab.get_by_test_id("stButtonGroup").get_by_text("one of").click()
    tab.get_by_label("What exactly: one answer a line").fill("yes\nno")
    tab.keyboard.press("Control+Enter")
    settled(tab)
    tab.get_by_label("Say something to it").fill("Is Titan a moon?")
    tab.keyboard.press("Control+Enter")
    settled(tab)
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.wait_for_function(
        "[...document.querySelectorAll('[data-testid=stCode]')].some(e => ['yes', 'no'].includes(e.innerText.trim()))"
    )
    tab.get_by_role("button", name="Save", exact=True).click()
    tab.get_by_text(re.compile("Saved as judge")).wait_for()
    assert len(list((app_runs / "app").glob("*/personas/judge.toml"))) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_nothing_scrolls_sideways_at_400_pixels(browser: Any, app_url: str, page: str, scheme: str) -> None:
    person = browser.new_context(base_url=app_url, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    tab = opened(person.new_page(), page)
    if page in ("", "runs"):
        opened(tab)
        ask(tab, "How many visits to Mars were by a rover?")
        if page:
            opened(tab, page)
    assert fits(tab), overlong(tab)
    assert overlong(tab) == []
    person.close()


def test_the_keyboard_is_enough(tab: Any) -> None:
    opened(tab)
    tab.get_by_test_id("stChatInputTextArea").focus()
    tab.keyboard.type("Who discovered Triton?")
    tab.keyboard.press("Enter")
    tab.get_by_text("Way taken").wait_for()
    names = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        names.add(
            tab.evaluate("(document.activeElement.innerText || document.activeElement.getAttribute('aria-label') || '').trim()")
        )
    for name in ("Timeline", "New conversation", "Graph and options"):
        assert any(name in one for one in names), name


def test_with_a_password_nothing_is_shown_before_it(browser: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with served(runs, "--server.address", "0.0.0.0", PENKNIFE_APP_PASSWORD="open sesame") as url:
        person = browser.new_context(base_url=url)
        tab = person.new_page()
        tab.goto("/")
        assert tab.get_by_label("Password").is_visible() and "Ask" not in tab.content()
        tab.get_by_label("Password").fill("wrong")
        tab.keyboard.press("Enter")
        tab.get_by_text("That is not the password.").wait_for()
        tab.get_by_label("Password").fill("open sesame")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("h1:has-text('Ask')")
        person.close()
