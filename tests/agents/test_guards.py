"""Guards pass, rewrite, retry and stop; each but a pass is an event and a count."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import BaseModel

from agents.answer import NoAnswer
from agents.events import Event, Guarded, Scope, current
from agents.guards import PASS, Retry, Rewrite, Stop, on_input
from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.tools import PersonaError


class Price(BaseModel):
    amount: int


def polite(text: str) -> Any:
    return Retry("say it politely") if "stupid" in text else PASS


def no_cards(text: str) -> Any:
    return text.replace("4111", "****") if "4111" in text else None


def watched(run: Any) -> tuple[Any, list[Event]]:
    seen: list[Event] = []
    token = current.set(Scope(seen.append, time.perf_counter()))
    try:
        return run(), seen
    finally:
        current.reset(token)


def test_an_input_guard_rewrites_before_the_model_reads() -> None:
    model = Scripted(["fine"])
    persona = Persona("desk", model, guards=[on_input(no_cards)])
    _, events = watched(lambda: persona("card 4111"))
    assert model.requests[0].messages[-1].content == "card ****"
    assert [(e.guard, e.verdict) for e in events if isinstance(e, Guarded)] == [("no_cards", "rewrite")]
    assert persona.totals.counts["no_cards:rewrite"] == 1


def test_an_input_guard_stops_before_any_model_runs() -> None:
    model = Scripted([])
    persona = Persona("desk", model, guards=[on_input(lambda text: Stop("not about orders"))])
    with pytest.raises(NoAnswer, match="not about orders") as caught:
        persona("tell me a joke")
    assert caught.value.reason == "guard" and not model.requests


def test_an_output_guard_has_the_model_try_again_and_tells_it_why() -> None:
    model = Scripted(["stupid question", "It is on its way."])
    persona = Persona("desk", model, guards=[polite])
    assert persona("where?").text == "It is on its way."
    assert [m.content for m in model.requests[1].messages[-2:]] == ["stupid question", "say it politely"]
    assert persona.totals.counts["polite:retry"] == 1


def test_a_guard_that_is_never_content_ends_in_no_answer() -> None:
    persona = Persona("desk", Scripted(["stupid"], repeat=True), guards=[polite])
    with pytest.raises(NoAnswer, match="say it politely") as caught:
        persona("where?")
    assert caught.value.reason == "guard" and persona.totals.counts["polite:retry"] == 3


def test_guards_on_an_output_see_the_instance_and_may_replace_it() -> None:
    def capped(price: Price) -> Any:
        return Rewrite(Price(amount=100)) if price.amount > 100 else True

    persona = Persona("pricer", Scripted(['{"amount":500}', '{"amount":7}']), output=Price, guards=[capped])
    assert persona("how much?").output == Price(amount=100)
    assert persona("how much?").value == Price(amount=7)


def test_a_stop_with_a_reply_is_the_answer_and_false_is_a_stop() -> None:
    kind = Persona("desk", Scripted(["secret"]), guards=[lambda text: Stop("leak", reply="I cannot say.")])
    assert kind("what?").text == "I cannot say."
    with pytest.raises(NoAnswer, match="refused"):
        Persona("desk", Scripted(["secret"]), guards=[lambda text: False])("what?")


def test_a_guard_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(PersonaError, match="'polite' is no guard of 'desk'"):
        Persona("desk", Scripted([]), guards=["polite"])  # type: ignore[list-item]
