"""The page Ask under AppTest: empty, first view, answer, error, interrupt, thumbs, stop, upload."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_models import ScriptedShop, artifact

from agents.chat import Request
from app import feedback, view


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, runs: Path) -> ScriptedShop:
    made = ScriptedShop()
    monkeypatch.setattr(view, "workshop", lambda: made)
    monkeypatch.setattr("app.artifacts.EMBEDDED", runs / "nothing")
    artifact(runs)
    return made


def finished(test: Any) -> Any:
    """The page once the turn has ended, as the fragment's timer would show it."""
    for turn in test.session_state.talk.turns:
        assert turn.wait(20)
    return test.run()


def ask(test: Any, question: str) -> Any:
    test.chat_input[0].set_value(question).run()
    return finished(test)


def texts(test: Any) -> str:
    return "\n".join(str(getattr(element, "value", "")) for kind in ("markdown", "caption", "code", "text", "error")
                     for element in getattr(test, kind))  # fmt: skip


def test_without_a_model_it_says_what_to_do(page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    monkeypatch.setattr("app.artifacts.find_artifacts", lambda *_: ([], []))
    test = page("ask")
    assert not test.exception and test.code[0].value == "make quickstart"
    assert not test.chat_input


def test_it_opens_with_questions_to_take(page: Callable[..., Any], shop: ScriptedShop) -> None:
    test = page("ask")
    assert not test.exception
    assert [one.label for one in test.selectbox[:2]] == ["Database", "Model"]
    test.button(key="example-How many moons does Saturn have?").click().run()
    finished(test)
    assert "**11**" in texts(test)


def test_an_answer_shows_rows_sql_notes_and_way(page: Callable[..., Any], shop: ScriptedShop) -> None:
    test = ask(page("ask"), "visits by kind")
    assert not test.exception
    assert 'GROUP BY "visit"."kind"' in test.code[0].value
    frame = test.dataframe[0].value
    assert frame.iloc[:, 1].sum() == 64 and set(frame.iloc[:, 0]) == {"flyby", "orbiter", "lander", "rover", "probe"}
    said = texts(test)
    assert "Way taken: table → write → run → check" in said.replace("\\", "")
    assert "right in 60% of the validation questions" in said.replace("\\", "") or "no probabilities" in said


def test_a_result_that_cannot_be_had_is_one_sentence(page: Callable[..., Any], shop: ScriptedShop) -> None:
    test = ask(page("ask"), "drop everything")
    assert not test.exception and len(test.error) == 1


def test_a_statement_waits_for_a_yes(page: Callable[..., Any], shop: ScriptedShop) -> None:
    test = page("ask")
    test.toggle(key="approve").set_value(True).run()
    ask(test, "How many moons?")
    assert "Run this statement" in texts(test)
    test.button(key="approve-it").click().run()
    finished(test)
    assert "**11**" in texts(test)
    ask(test, "How many moons?")
    test.button(key="deny-it").click().run()
    finished(test)
    assert "not approved" in test.error[0].value


def test_while_it_runs_it_can_be_stopped(page: Callable[..., Any], shop: ScriptedShop) -> None:
    pressed = threading.Event()

    def slow(request: Request) -> str:
        pressed.wait(30)
        return "SELECT 1"

    shop._answer = slow
    test = page("ask")
    test.chat_input[0].set_value("anything").run()
    assert test.session_state.talk.running and "thinking" in texts(test)
    test.button(key="stop").click().run()
    pressed.set()
    finished(test)
    assert "Stopped" in test.error[0].value


def test_a_thumb_makes_a_row(page: Callable[..., Any], shop: ScriptedShop, runs: Path) -> None:
    test = ask(page("ask"), "How many moons?")
    test.feedback(key="thumbs-0").set_value(1).run() if hasattr(test, "feedback") else _thumb(test)
    files = list((runs / "app").glob("*/rows-*.jsonl"))
    assert len(files) == 1 and feedback.read(files[0])[0]["rating"] == "up"
    assert any("factory.finetune" in code.value for code in test.code)


def _thumb(test: Any) -> None:
    test.session_state["thumbs-0"] = 1
    test.run()


def test_markup_of_a_model_is_text(page: Callable[..., Any], shop: ScriptedShop) -> None:
    test = ask(page("ask"), "<script>alert(1)</script> markup")
    assert not test.exception
    for markdown in test.markdown:
        assert "<script" not in markdown.value.replace("\\<", "") and not getattr(markdown, "allow_html", False)
    frame = test.dataframe[0].value
    assert "<script>alert(1)</script>" in frame.iloc[0, 0], "a cell keeps its characters, and cells are text"


def test_a_fork_is_offered_and_taken(page: Callable[..., Any], shop: ScriptedShop) -> None:
    test = ask(page("ask"), "How many moons?")
    before = test.session_state.talk.thread
    test.button(key="fork").click().run()
    finished(test)
    assert test.session_state.talk.thread != before and len(test.session_state.talk.turns) == 2
    test.button(key="anew").click().run()
    assert test.session_state.talk.turns == []
