"""A persona on the tools task: it answers with calls, or runs them with its own tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.answer import NoAnswer
from agents.card import BaseEntry, Card
from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.tools import tool
from factory.tasks.runtime import answerer
from factory.tasks.task import TaskError

rung: list[tuple[str, int]] = []


@tool
def ring(bell: str, times: int = 1) -> str:
    """Ring a bell."""
    rung.append((bell, times))
    return f"{bell} rang {times} times"


@tool(needs_approval=True)
def break_bell(bell: str) -> str:
    """Break a bell."""
    raise AssertionError("nobody approved this")


def card(tmp_path: Path) -> Path:
    Card(
        name="bells", task="tools", task_version=1, dialect="compact", prompt_template="tools/compact/1", constraint="lark",
        parser="tools/compact", max_tokens=96, base=BaseEntry(id="scratch:tiny"), created_by="penknife",
    ).save(tmp_path)  # fmt: skip
    return tmp_path


def test_an_artifact_answers_about_the_functions_it_is_given(tmp_path: Path) -> None:
    model = Scripted(["<call><t0><c0><v0><c1><v1>"])
    persona = Persona.from_artifact(card(tmp_path), model=model, task=answerer, functions=[ring], today="2020-01-01")
    result = persona("ring Big Ben three times")
    assert json.loads(result.text) == [{"name": "ring", "arguments": {"bell": "Big Ben", "times": 3}}]
    assert (
        model.requests[0].messages[0].content == " ring<t0> bell<c0><req> times<int><c1><q><usr>"
        "<t0> ring<v0> big ben<v1> three<c1> times"
    )
    assert not result.calls and not rung


def test_with_tools_the_calls_are_run_and_their_results_are_the_answer(tmp_path: Path) -> None:
    rung.clear()
    replies = ["<call><t0><c0><v0><c1><v1>", "<none>", "<call><t0><c0><v0><call><t0><c0><v1><c1><v2>"]
    persona = Persona.from_artifact(card(tmp_path), model=Scripted(replies), task=answerer, tools=[ring])
    result = persona("ring Big Ben three times")
    assert result.text == "Big Ben rang 3 times" and [c.arguments for c, _ in result.calls] == [{"bell": "Big Ben", "times": 3}]
    assert persona("hello").text == "[]"
    assert persona("ring Big Ben, then Old Tom 4 times").text == "ring: Big Ben rang 1 times\nring: Old Tom rang 4 times"
    assert rung == [("Big Ben", 3), ("Big Ben", 1), ("Old Tom", 4)]


def test_functions_given_go_before_tools_and_may_come_with_the_question(tmp_path: Path) -> None:
    persona = Persona.from_artifact(card(tmp_path), model=Scripted(["<none>"]), task=answerer)
    spec = {"name": "fly", "parameters": {"type": "object", "properties": {}}}
    assert persona("hello", functions=[spec]).text == "[]"
    with pytest.raises(TaskError, match="answers about functions, and none is given"):
        persona("hello")
    with pytest.raises(TaskError, match="knows no 'db'"):
        persona("hello", db="x.sqlite")


def test_calls_that_need_approval_ask_for_it(tmp_path: Path) -> None:
    asked = []
    persona = Persona.from_artifact(
        card(tmp_path), model=Scripted(["<call><t0><c0><v0>"]), task=answerer, tools=[break_bell],
        approve=lambda call: bool(asked.append(call.name)),
    )  # fmt: skip
    result = persona("break Big Ben")
    assert asked == ["break_bell"] and not result.calls[0][1].ok


def test_what_is_no_answer_runs_nothing(tmp_path: Path) -> None:
    rung.clear()
    persona = Persona.from_artifact(card(tmp_path), model=Scripted(["ring the bell"]), task=answerer, tools=[ring])
    with pytest.raises(NoAnswer, match="cannot read"):
        persona("ring Big Ben")
    assert not rung


def test_a_larger_model_is_asked_plainly(tmp_path: Path) -> None:
    rung.clear()
    model = Scripted(['[{"name":"ring","arguments":{"bell":"Big Ben"}}]'])
    small = Persona.from_artifact(card(tmp_path), model=Scripted([]), task=answerer, tools=[ring])
    assert small.on(model)("ring Big Ben").text == "Big Ben rang 1 times"
    assert model.requests[0].messages[0].role == "system" and '"name":"ring"' in model.requests[0].messages[1].content
