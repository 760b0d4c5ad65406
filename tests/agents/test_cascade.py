"""Cascades: escalate when unsure, invalid, repeating, over budget; what was caused once is not caused again."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import BaseModel

from agents.answer import NoAnswer
from agents.budget import Budget
from agents.card import CalibrationEntry
from agents.cascade import THRESHOLD, Cascade
from agents.chat import Reply, TokenLogprob, ToolCall, Usage
from agents.confidence import agreement, majority, margin, mean_probability, threshold_for
from agents.events import Escalated
from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.tools import PersonaError, tool
from tests.agents.shop_tools import lookup
from tests.agents.test_guards import watched


def sure(text: str, *probabilities: float, runner_up: float | None = None) -> Reply:
    top = ((None, "other", math.log(runner_up)),) if runner_up is not None else ()
    return Reply(
        text=text,
        logprobs=tuple(
            TokenLogprob(token=text, logprob=math.log(p), top=((None, text, math.log(p)), *top) if top else ())
            for p in probabilities
        ),
    )


class Number(BaseModel):
    value: int


def test_a_sure_answer_stays_and_an_unsure_one_goes_on() -> None:
    small = Scripted([sure("17", 0.99, 0.9), sure("maybe", 0.5, 0.4)])
    big = Scripted(["eighteen"])
    cascade = Persona("desk", small) | big
    assert cascade.name == "desk" and cascade.threshold == THRESHOLD
    first, events = watched(lambda: cascade("?"))
    assert first.text == "17" and first.escalated is None and not [e for e in events if isinstance(e, Escalated)]
    second, events = watched(lambda: cascade("and?"))
    assert second.text == "eighteen" and second.escalated == "unsure" and second.persona == "desk"
    gone = [e for e in events if isinstance(e, Escalated)]
    assert [(e.reason, e.answer, e.better, e.to) for e in gone] == [("unsure", "maybe", "eighteen", "scripted")]
    assert gone[0].confidence == pytest.approx(math.sqrt(0.2)) and gone[0].messages[-1].content == "and?"
    assert cascade.totals.counts["escalated"] == 1


@pytest.mark.parametrize(
    ("small", "settings", "reason"),
    [
        (["not a number", "still not"], {"output": Number}, "invalid"),
        ([Reply(calls=(ToolCall(id="1", name="lookup", arguments={"order_id": 17}),))] * 3, {"tools": [lookup]}, "repeating"),
        ([Reply(text="a long", stop_reason="timeout")], {"budget": Budget(ms=50)}, "over-budget"),
        (
            [Reply(text="a long", stop_reason="length", usage=Usage(completion_tokens=9))],
            {"budget": Budget(tokens=9)},
            "over-budget",
        ),
    ],
)
def test_each_reason_escalates_and_is_recorded(small: list[Any], settings: dict[str, Any], reason: str) -> None:
    cascade = Persona("desk", Scripted(small), **settings) | Scripted(['{"value":4}'])
    result, events = watched(lambda: cascade("2+2?"))
    assert result.escalated == reason
    assert [e.reason for e in events if isinstance(e, Escalated)] == [reason]


def test_a_guards_refusal_is_no_reason_to_ask_somebody_else() -> None:
    big = Scripted([])
    with pytest.raises(NoAnswer, match="refused"):
        (Persona("desk", Scripted(["x"]), guards=[lambda text: False]) | big)("?")
    assert not big.requests


def test_a_side_effect_of_the_first_attempt_is_not_caused_again() -> None:
    paid: list[int] = []

    @tool(side_effects=True)
    def refund(order_id: int) -> str:
        paid.append(order_id)
        return "refunded"

    call = Reply(calls=(ToolCall(id="1", name="refund", arguments={"order_id": 17}),))
    big = Scripted([call, "Your money is back."])
    cascade = Persona("desk", Scripted([call, sure("hm", 0.1)]), tools=[refund]) | big
    assert cascade("refund 17").text == "Your money is back."
    assert paid == [17]
    assert big.requests[1].messages[-1].content == "refunded"


def test_margin_and_agreement_are_measures_too() -> None:
    close = Cascade(Persona("a", Scripted([sure("x", 0.55, runner_up=0.45)])), Scripted(["y"]), threshold=0.3, measure="margin")
    assert close("?").text == "y"
    clear = Cascade(Persona("a", Scripted([sure("x", 0.9, runner_up=0.1)])), Scripted([]), threshold=0.3, measure="margin")
    assert clear("?").text == "x"
    split = Scripted(["x", "x", "y", "z"])
    voted = Cascade(Persona("a", split), Scripted(["big"]), threshold=0.6, measure="agreement", samples=4)
    assert voted("?").text == "big"
    assert [r.sampling.temperature > 0 for r in split.requests] == [False, True, True, True]
    assert len({r.sampling.seed for r in split.requests}) == 4


def test_cascades_chain_and_choose() -> None:
    chain = Persona("a", Scripted([sure("x", 0.1)])) | Persona("b", Scripted([sure("y", 0.9)])) | Scripted([])
    assert chain("?").text == "y"
    deep = Persona("a", Scripted([sure("x", 0.1)])) | (Persona("b", Scripted([sure("y", 0.2)])) | Scripted(["z"]))
    assert deep("?").text == "z"
    unsure = Reply(
        text="desk",
        logprobs=(
            TokenLogprob(token="desk", logprob=math.log(0.4), top=((None, "sql", math.log(0.35)), (None, "hr", math.log(0.25)))),
        ),
    )
    router = Persona("t", Scripted([unsure])) | Scripted(["sql"])
    assert router.choose("?", ["desk", "sql", "hr"]) == "sql"


def test_history_grows_by_the_answer_that_was_given() -> None:
    history: list[Any] = []
    cascade = Persona("a", Scripted([sure("x", 0.1)])) | Scripted(["y"])
    cascade("q", history=history)
    assert [(m.role, m.content) for m in history] == [("user", "q"), ("assistant", "y")]


def test_measures_by_hand() -> None:
    tokens = sure("x", 0.5, 0.25).logprobs
    assert mean_probability(tokens) == pytest.approx(math.sqrt(0.125))
    assert mean_probability(()) is None and margin(tokens) is None
    assert margin(sure("x", 0.6, runner_up=0.3).logprobs) == pytest.approx(0.3)
    assert agreement("a", ["a", "b", "a"]) == 0.75
    assert majority(["a", "b", "b"]) == ("b", pytest.approx(2 / 3))
    entries = [CalibrationEntry(threshold=t, kept=1 - t, accuracy=a) for t, a in ((0.1, 0.5), (0.5, 0.9), (0.8, 0.97))]
    assert threshold_for(entries, 0.9) == 0.5 and threshold_for(entries, 0.99) == 0.8 and threshold_for([], 0.9) is None


def test_bad_settings_are_one_sentence() -> None:
    a, b = Persona("a", Scripted([])), Scripted([])
    with pytest.raises(PersonaError, match=r"threshold 1\.5"):
        Cascade(a, b, threshold=1.5)
    with pytest.raises(PersonaError, match="unknown measure 'luck'"):
        Cascade(a, b, measure="luck")  # type: ignore[arg-type]
    with pytest.raises(PersonaError, match="must be a persona or a model"):
        a | 3  # type: ignore[operator]
    risky = Persona("a", Scripted([]), tools=[tool(side_effects=True)(lookup.fn)])
    with pytest.raises(PersonaError, match="has side effects"):
        Cascade(risky, b, measure="agreement")


def test_a_chain_goes_on_as_long_as_answers_are_unsure() -> None:
    third = Scripted(["z"], name="third")
    chain = Persona("a", Scripted([sure("x", 0.1)])) | Scripted([sure("y", 0.2)], name="second") | third
    result, events = watched(lambda: chain("?"))
    assert result.text == "z" and result.escalated == "unsure"
    assert [(e.to, e.answer) for e in events if isinstance(e, Escalated)] == [("third", "y"), ("second", "x")]


def test_a_choice_that_nobody_makes_is_still_an_escalation() -> None:
    vague = Scripted(["hm"], repeat=True)
    vague.constrains = frozenset()  # type: ignore[attr-defined]

    def choose() -> None:
        with pytest.raises(NoAnswer):
            (Persona("t", vague) | vague).choose("?", ["desk", "sql"])

    _, events = watched(choose)
    assert [(e.reason, e.better) for e in events if isinstance(e, Escalated)] == [("invalid", None)]
