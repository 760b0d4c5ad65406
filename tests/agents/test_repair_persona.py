"""The eleven malformed calls against a persona on an HTTP server that cannot constrain: none lost, none wrong, none endless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agents import Persona, open_model, tool
from agents.answer import NoAnswer
from tests.agents.malformed import ELEVEN, GOOD, Malformed, called
from tests.openai_server import OpenAIServer


def desk(server: OpenAIServer, done: list[tuple[Any, Any]]) -> Persona:
    @tool
    def add(a: int, b: int) -> int:
        """The sum of two whole numbers."""
        done.append((a, b))
        return a + b

    @tool
    def lookup(order_id: int) -> str:
        """Status of one order."""
        raise AssertionError("nobody asked for an order")

    return Persona("desk", open_model(server.spec), "Use the tools.", tools=[add, lookup])


def script(case: Malformed, *, learns: bool = True) -> Callable[[dict[str, Any]], Any]:
    """A model that makes the malformed call first, the right one when told (if it `learns`), and then says the last result."""

    def reply(body: dict[str, Any]) -> Any:
        last = body["messages"][-1]
        if case.rung == "stop-repeat" or last["content"] == "2 + 3?":
            return case.message
        if last["content"] == "5" or "Result of add: 5" in last["content"]:
            return "It is 5."
        return called(GOOD) if learns else case.message

    return reply


@pytest.mark.parametrize("case", ELEVEN, ids=lambda case: case.name)
def test_the_eleven(case: Malformed) -> None:
    done: list[tuple[Any, Any]] = []
    with OpenAIServer(script(case)) as server:
        persona = desk(server, done)
        if case.rung == "stop-repeat":
            with pytest.raises(NoAnswer, match="3 times without getting further") as caught:
                persona("2 + 3?")
            assert caught.value.reason == "repeating" and done == [(2, 3), (2, 3)] and len(server.bodies) == 3
        else:
            assert persona("2 + 3?").text == "It is 5."
            assert done == [(2, 3)] and all(type(number) is int for pair in done for number in pair)
            assert len(server.bodies) == (3 if case.rung == "retry" else 2)
        assert persona.totals.counts[case.rung] == (2 if case.rung == "coerce" else 1)
        if case.rung == "retry":
            told = server.bodies[1]["messages"][-1]["content"]
            assert all(part in told for part in case.named), told
        persona.model.close()


@pytest.mark.parametrize("case", [case for case in ELEVEN if case.rung == "retry"], ids=lambda case: case.name)
def test_one_that_does_not_learn_is_told_once(case: Malformed) -> None:
    done: list[tuple[Any, Any]] = []
    with OpenAIServer(script(case, learns=False)) as server:
        persona = desk(server, done)
        with pytest.raises(NoAnswer) as caught:
            persona("2 + 3?")
        persona.model.close()
        assert caught.value.reason == "invalid" and done == [] and len(server.bodies) == 2
        assert persona.totals.counts["retry"] == persona.totals.counts["escalate"] == 1
