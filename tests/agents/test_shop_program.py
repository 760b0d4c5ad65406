"""The program of the README: three personas, a cascade, a graph with an interrupt, threads on disk; its models are scripted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agents import END, AgentGraph, Budget, Persona, Scripted, interrupt, tool
from agents import events as ev
from agents.chat import Reply, Request, ToolCall

ORDERS = {17: "shipped on Monday"}


class State(BaseModel):
    question: str
    notes: list[str] = []
    answer: str | None = None


@tool
def lookup(order_id: int) -> str:
    """Status of one order.

    Args:
        order_id: number printed on the receipt
    """
    return ORDERS[order_id]


def small_says(request: Request) -> Reply:
    system = request.messages[0].content
    if "Pick who should answer" in system:
        return Reply(text="desk")
    if request.messages[-1].role == "tool":
        return Reply(text=f"Order 17 was {request.messages[-1].content}.")
    if request.tools:
        return Reply(calls=(ToolCall(id="1", name="lookup", arguments={"order_id": 17}),), stop_reason="tool_calls")
    return Reply(text="SELECT 1")


def shop(small: Any, big: Any) -> tuple[AgentGraph, Any]:
    triage = Persona("triage", small, "Pick who should answer.")
    desk: Any = Persona(
        "desk", small, "Answer order questions.", tools=[lookup], adapter="desk.gguf", budget=Budget(ms=1500, tokens=128)
    )
    sql = Persona("sql", small, "Write SQL.")
    desk = desk | big

    g = AgentGraph(State, name="shop")

    @g.node(start=True)
    def route(s: State):  # type: ignore[no-untyped-def]
        return triage.choose(s.question, {"desk": desk, "sql": sql})

    g.add(desk, reads="question", writes="notes")
    g.add(sql, reads="question", writes="notes")
    g.edge(desk, "review")
    g.edge(sql, "review")

    @g.node(retries=2, timeout_s=20)
    def review(s: State):  # type: ignore[no-untyped-def]
        if not interrupt("send this?", s.notes):
            return g.goto("route")
        return s.model_copy(update={"answer": s.notes[-1]})

    g.edge("review", END)
    return g, desk


@pytest.fixture
def program() -> tuple[AgentGraph, Any, Scripted]:
    small = Scripted([small_says], repeat=True)
    g, desk = shop(small, Scripted(["the big model says so"], repeat=True, name="big"))
    return g, desk, small


def test_the_program_runs_as_it_is(program: tuple[AgentGraph, Any, Scripted], tmp_path: Path) -> None:
    g, desk, _ = program
    store = str(tmp_path / "runs.db")
    assert g.check() == []
    run = g.run(State(question="where is 17?"), thread="u1", store=store)
    assert run.interrupted is not None and run.interrupted.prompt == "send this?"
    assert run.state.notes == ["Order 17 was shipped on Monday."]
    assert {"triage", "desk"} <= run.usage.keys()
    assert [e.target for e in run.trace.of(ev.EdgeTaken)] == ["desk", "review"]

    done = g.resume("u1", True, store=store)
    assert (done.reason, done.state.answer) == ("end", "Order 17 was shipped on Monday.")
    assert [s.node for s in g.history("u1") if s.kind == "node"] == ["route", "desk", "review"]
    assert g.history(g.fork("u1", step=2))[-1].next == ("review",)
    forked = g.history(g.fork("u1", step=3))[-1]
    assert forked.next == () and forked.state == done.state
    drawn = g.mermaid()
    assert "n0 -.-> n1" in drawn and "n0 -.-> n2" in drawn and "n3 -.-> n0" in drawn
    assert str(desk("where is 17?")) == "Order 17 was shipped on Monday."


def test_a_refusal_goes_round_again_and_the_run_replays(program: tuple[AgentGraph, Any, Scripted], tmp_path: Path) -> None:
    g, _, small = program
    g.run(State(question="where is 17?"), thread="u1", store=tmp_path / "runs.db")
    again = g.resume("u1", False)
    assert again.interrupted is not None
    assert len(again.state.notes) == 2
    trace = g.run(State(question="where is 17?")).trace
    asked = len(small.requests)
    replayed = g.replay(trace)
    assert replayed.state.notes == ["Order 17 was shipped on Monday."]
    assert len(small.requests) == asked


def test_tokens_and_tool_calls_are_in_the_stream(program: tuple[AgentGraph, Any, Scripted]) -> None:
    g, _, _ = program
    kinds = [event.kind for event in g.stream(State(question="where is 17?"))]
    for wanted in (
        "run_started",
        "node_started",
        "model_called",
        "tool_called",
        "tool_returned",
        "edge_taken",
        "interrupted",
        "run_ended",
    ):
        assert wanted in kinds
