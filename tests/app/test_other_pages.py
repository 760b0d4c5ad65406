"""The pages Personas and Runs under AppTest, and the persona form without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_models import ScriptedShop, artifact

from agents import Persona, Scripted
from agents.tools import PersonaError
from app import persona_form, view
from app.persona_form import Draft
from app.places import PlaceError
from app.talk import Talk
from app.tryout import Tryout
from app.wiring import BUNDLED, Setup


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, runs: Path) -> ScriptedShop:
    made = ScriptedShop(lambda request: "yes")
    monkeypatch.setattr(view, "workshop", lambda: made)
    monkeypatch.setattr("app.artifacts.EMBEDDED", runs / "nothing")
    return made


OWNER = "0123456789abcdef" * 2


def test_personas_without_a_model_says_what_to_do(page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.artifacts.find_artifacts", lambda *_: ([], []))
    test = page("personas")
    assert not test.exception and test.code[0].value == "make quickstart" and not test.text_input


def test_a_persona_is_tried_saved_and_read_again(page: Callable[..., Any], shop: ScriptedShop, runs: Path) -> None:
    artifact(runs)
    test = page("personas", owner=OWNER)
    assert not test.exception
    test.text_input(key="-name").set_value("greeter").run()
    test.text_area(key="said").set_value("hello?").run()
    test.button(key="try").click().run()
    assert test.session_state.tryout.wait(20)
    test.run()
    assert "yes" in [code.value for code in test.code]
    test.button(key="save").click().run()
    file = runs / "app" / OWNER / "personas" / "greeter.toml"
    assert test.success and file.is_file()
    persona = Persona.from_file(file, model=Scripted(["hi"]))
    assert persona.name == "greeter" and persona("hello?").text == "hi"
    assert test.selectbox(key="which").options == ["a new one", "greeter"]


def test_a_form_that_cannot_work_is_one_sentence(page: Callable[..., Any], shop: ScriptedShop, runs: Path) -> None:
    artifact(runs)
    test = page("personas")
    test.text_input(key="-name").set_value("../../etc/passwd").run()
    test.button(key="save").click().run()
    assert not test.exception and any("no file name" in error.value.replace("\\", "") for error in test.error)
    assert not list(runs.rglob("*.toml")) and not list(runs.parent.glob("*.toml"))
    test.button(key="try").click().run()
    test.run()
    assert any("empty" in error.value for error in test.error)


DRAFTS = [
    Draft(),
    Draft("judge", 'Say "yes" or no.\nNothing else.', "gguf:m.gguf", constraint="one of", held_to="yes\nno", ms=1500, tokens=9),
    Draft("code", constraint="pattern", held_to="[A-Z]{3}-[0-9]+", max_tokens=12, temperature=0.5),
    Draft(
        "form", constraint="JSON schema", held_to='{"type":"object","properties":{"a":{"type":"integer"}}}', tools=("calculator",)
    ),
]


@pytest.mark.parametrize("draft", DRAFTS, ids=[draft.name for draft in DRAFTS])
def test_file_and_snippet_make_the_persona_of_the_form(draft: Draft, tmp_path: Path) -> None:
    path = persona_form.save(tmp_path, draft)
    model = Scripted(["yes"])
    read, shown = Persona.from_file(path, model=model), persona_form.made(draft, model)
    space: dict[str, Any] = {}
    code = (
        persona_form.snippet(draft).replace("open_model(", "Scripted([] and ").replace("import Budget", "import Scripted, Budget")
    )
    code = code.replace("import Persona", "import Scripted, Persona").rsplit("print(", 1)[0]
    exec(code, space)
    for one in (read, space["persona"]):
        for name in ("name", "prompt", "budget", "sampling", "specs", "_constraint"):
            assert getattr(one, name) == getattr(shown, name), name
    again = persona_form.read(path)
    assert persona_form.to_file(again) == persona_form.to_file(draft)


@pytest.mark.parametrize(
    ("draft", "why"),
    [
        (Draft(name=" "), "needs a name"),
        (Draft(tools=("os.system",)), "no tool"),
        (Draft(constraint="one of", held_to=" \n "), "constraint"),
        (Draft(constraint="pattern", held_to="(["), "constraint"),
        (Draft(constraint="JSON schema", held_to="{"), "not valid JSON"),
        (Draft(constraint="JSON schema", held_to="[1]"), "write an object"),
    ],
)
def test_what_cannot_work_is_said(draft: Draft, why: str) -> None:
    with pytest.raises(PersonaError, match=why):
        persona_form.to_file(draft)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "x" * 90, "a\\b", "a\0b", "con\nb"])
def test_names_stay_in_their_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises((PlaceError, PersonaError)):
        persona_form.save(tmp_path / "in", Draft(name=name))
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["in"])


def test_a_saved_file_with_a_foreign_tool_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "bad"\ntools = ["os:system"]\n')
    with pytest.raises(PersonaError, match="does not offer"):
        persona_form.read(path)


def test_a_tryout_shows_its_events(runs: Path) -> None:
    tried = Tryout(lambda: Scripted(["four"]), Draft(), "two and two?").start()
    assert tried.wait(20) and tried.text == "four" and tried.problem == ""
    assert tried.events[0].kind == "run_started"


def test_runs_without_a_run_says_what_to_do(page: Callable[..., Any], shop: ScriptedShop) -> None:
    test = page("runs")
    assert not test.exception and "No runs yet" in test.markdown[-2].value + test.markdown[-1].value


def test_runs_are_listed_filtered_and_replayed(page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    made = ScriptedShop()
    monkeypatch.setattr(view, "workshop", lambda: made)
    monkeypatch.setattr("app.artifacts.EMBEDDED", runs / "nothing")
    own = runs / "app" / OWNER
    own.mkdir(parents=True)
    talk = Talk(made, own)
    for question in ("How many moons?", "visits by kind"):
        talk.ask(question, Setup(artifact(runs), BUNDLED)).wait(20)
    test = page("runs", owner=OWNER)
    assert not test.exception
    assert list(test.dataframe[0].value["question"]) == ["visits by kind", "How many moons?"]
    test.button(key="replay").click().run()
    assert "The same again" in test.success[0].value.replace("\\", "")
    test.text_input(key="filter").set_value("moons").run()
    assert list(test.dataframe[0].value["question"]) == ["How many moons?"]
    test.text_input(key="filter").set_value("zebra").run()
    assert "No run fits" in test.info[0].value
    other = page("runs", owner="f" * 32)
    assert not other.dataframe, "another browser sees none of them"
