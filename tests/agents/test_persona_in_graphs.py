"""Personas as nodes of a graph: approval, conversations that grow, ways to go, permissions, replays."""

from __future__ import annotations

import operator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, create_model

from agents.chat import Message, Reply, ToolCall
from agents.graph import AgentGraph
from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.route import END, GraphError
from agents.tools import tool


class Order(BaseModel):
    question: str
    notes: list[str] = []


@pytest.mark.parametrize("yes", [True, False])
def test_in_a_graph_a_person_is_asked_and_the_side_effect_happens_once(tmp_path: Any, yes: bool) -> None:
    ran: list[int] = []

    @tool(needs_approval=True, side_effects=True)
    def refund(order_id: int) -> str:
        ran.append(order_id)
        return "refunded"

    said = Reply(calls=(ToolCall(id="1", name="refund", arguments={"order_id": 17}),))
    persona = Persona(
        "desk", Scripted([lambda r: "done" if r.messages[-1].role == "tool" else said], repeat=True), tools=[refund]
    )
    g = AgentGraph(Order, name="refunds")
    g.add(persona, reads="question", writes="notes", start=True)
    g.edge(persona, END)
    store = str(tmp_path / "runs.db")
    waiting = g.run(Order(question="refund 17"), thread="u", store=store)
    assert not ran and not waiting.state.notes
    done = g.resume("u", yes, store=store)
    assert done.state.notes == ["done"] and ran == ([17] if yes else [])


class Talk(BaseModel):
    question: str
    turns: list[Message] = []
    answer: str | None = None


def test_in_a_graph_a_conversation_grows_and_a_way_to_go_is_taken() -> None:
    desk = Persona("desk", Scripted(["Hello.", '{"goto":"billing"}']), routes=["billing"])
    billing = Persona("billing", Scripted(["You owe 3 EUR."]))
    g = AgentGraph(Talk, name="talk")
    g.add(desk, reads="question", writes="answer", history="turns", start=True)
    g.add(billing, reads="question", writes="answer", history="turns")
    g.edge(desk, END)
    g.edge(billing, END)
    first = g.run(Talk(question="I am Ann")).state
    assert [m.content for m in first.turns] == ["I am Ann", "Hello."]
    second = g.run(first.model_copy(update={"question": "what do I owe?"})).state
    assert second.answer == "You owe 3 EUR." and len(second.turns) == 6
    assert [m.content for m in desk.model.requests[1].messages[1:3]] == ["I am Ann", "Hello."]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [list[dict[str, Any]], list[Message], Annotated[list[Message], operator.add]])
def test_a_conversation_is_written_back_in_the_form_of_its_field(kind: Any) -> None:
    state = create_model("Chat", question=(str, "hi"), answer=(str | None, None), turns=(kind, []))
    desk = Persona("desk", Scripted(["Hello.", "Again.", '{"goto":"fin"}']), routes=["fin"])
    g = AgentGraph(state)
    g.add(desk, reads="question", writes="answer", history="turns", start=True)
    g.node(name="fin")(lambda s: None)
    g.edge(desk, END)
    g.edge("fin", END)
    first = g.run(state()).state
    second = g.run(first).state
    third = g.run(second).state
    assert [len(s.turns) for s in (first, second, third)] == [2, 4, 6]
    said = [turn["content"] if isinstance(turn, dict) else turn.content for turn in second.turns]
    assert said == ["hi", "Hello.", "hi", "Again."]


def test_a_permission_holds_for_the_call_it_was_given_for() -> None:
    paid: list[int] = []

    @tool(needs_approval=True)
    def pay(order_id: int) -> str:
        """Pay an order."""
        paid.append(order_id)
        return "paid"

    orders = iter([1, 2, 2])

    def say(request: Any) -> Reply:
        if request.messages[-1].role == "tool":
            return Reply(text=request.messages[-1].content)
        return Reply(calls=(ToolCall(id="1", name="pay", arguments={"order_id": next(orders)}),), stop_reason="tool_calls")

    g = AgentGraph(Talk)
    g.add(Persona("desk", Scripted([say], repeat=True), tools=[pay]), reads="question", writes="answer", start=True)
    g.edge("desk", END)
    asked = g.run(Talk(question="pay"), thread="t").interrupted
    assert asked is not None and asked.value["arguments"] == {"order_id": 1}
    again = g.resume("t", True).interrupted
    assert again is not None and again.value["arguments"] == {"order_id": 2} and not paid
    assert g.resume("t", True).state.answer == "paid" and paid == [2]


def test_the_replay_of_a_run_that_waits_for_permission_waits_too() -> None:
    @tool(needs_approval=True)
    def pay(order_id: int) -> str:
        """Pay an order."""
        raise AssertionError("a replay calls nothing")

    call = Reply(calls=(ToolCall(id="1", name="pay", arguments={"order_id": 1}),), stop_reason="tool_calls")
    model = Scripted([call])
    g = AgentGraph(Talk)
    g.add(Persona("desk", model, tools=[pay]), reads="question", writes="answer", start=True)
    g.edge("desk", END)
    assert g.replay(g.run(Talk(question="pay")).trace).reason == "interrupted"
    assert len(model.requests) == 1


def test_a_prompt_that_a_graph_leaves_unset_is_refused_before_any_model_runs() -> None:
    greeter = Persona("greeter", Scripted(["Hello."]), "Greet in {language}.")
    g = AgentGraph(Talk)
    for persona in (greeter, greeter | Scripted([])):
        with pytest.raises(GraphError, match="its prompt needs 'language', which is not set"):
            g.add(persona, reads="question", writes="answer", start=True)
    g.add(greeter, reads="question", writes="answer", variables={"language": "question"}, start=True)
    g.edge(greeter, END)
    assert g.run(Talk(question="hi")).state.answer == "Hello."
