"""An interrupt checkpoints the run, outlives the process, and gives each answer to the question it belongs to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agents import END, AgentGraph, GraphError, interrupt
from agents import events as ev
from tests.agents.test_graph import State, chain

ROOT = Path(__file__).resolve().parents[2]


def test_pause_answer_and_go_on(tmp_path: Path) -> None:
    ran: list[str] = []

    def before(s: State) -> dict[str, Any]:
        ran.append("before")
        return {"notes": ["draft"]}

    def review(s: State) -> dict[str, Any]:
        ran.append("review")
        try:
            first = interrupt("send this?", s.notes)
        except Exception:
            raise AssertionError("an interrupt is no Exception") from None
        second = interrupt("to whom?")
        return {"answer": f"{first} {second}"}

    store = tmp_path / "runs.db"
    g = chain(before, review)
    run = g.run(State(), thread="u1", store=store)
    assert run.reason == "interrupted"
    assert run.interrupted is not None
    assert (run.interrupted.prompt, run.interrupted.value, run.interrupted.id) == ("send this?", ["draft"], "2.0")
    assert run.trace[-2] is run.interrupted

    again = g.run(None, thread="u1", store=store)
    assert again.interrupted is not None and again.interrupted.id == "2.0"
    assert ran == ["before", "review"]

    run = g.resume("u1", "yes", store=store)
    assert run.interrupted is not None and (run.interrupted.prompt, run.interrupted.id) == ("to whom?", "2.1")
    run = g.resume("u1", "Ada", store=store)
    assert (run.state.answer, run.reason) == ("yes Ada", "end")
    assert ran == ["before", "review", "review", "review"]
    assert [r.value for r in run.trace.of(ev.Resumed)] == ["Ada"]


def test_wrong_answers_are_refused() -> None:
    g = chain(lambda s: None)
    with pytest.raises(GraphError, match="there is no thread 'nobody' in the store; threads: none"):
        g.resume("nobody", True)
    g.run(State(), thread="done")
    with pytest.raises(GraphError, match="has ended at step 1"):
        g.resume("done", True)
    with pytest.raises(GraphError, match="waits for no answer"):
        g.run(State(), thread="new", value=3)
    with pytest.raises(GraphError, match="outside a graph"):
        interrupt("anybody?")
    wrong = chain(lambda s: {"notes": [interrupt("what?", object())]})
    with pytest.raises(GraphError, match="cannot be written to the store"):
        wrong.run(State(), thread="x")


def test_without_a_thread_the_run_still_says_what_it_waits_for() -> None:
    run = chain(lambda s: {"answer": interrupt("well?")}).run(State())
    assert run.interrupted is not None and run.interrupted.prompt == "well?"


def test_parallel_branches_are_asked_one_after_the_other_and_finished_ones_are_not_repeated() -> None:
    g = AgentGraph(State)
    ran: list[str] = []
    g.node(start=True, name="fork")(lambda s: None)

    @g.node
    def left(s: State) -> dict[str, Any]:
        return {"notes": [interrupt("left?")]}

    @g.node
    def middle(s: State) -> dict[str, Any]:
        ran.append("middle")
        return {"notes": ["middle"]}

    @g.node
    def right(s: State) -> dict[str, Any]:
        return {"notes": [interrupt("right?")]}

    for one in (left, middle, right):
        g.edge("fork", one)
        g.edge(one, END)
    run = g.run(State(), thread="t")
    assert [i.prompt for i in run.trace.of(ev.Interrupted)] == ["left?", "right?"]
    run = g.resume("t", "L")
    assert run.interrupted is not None and run.interrupted.prompt == "right?"
    run = g.resume("t", "R")
    assert run.state.notes == ["L", "middle", "R"]
    assert ran == ["middle"]


def test_interrupts_of_a_graph_within_a_graph(tmp_path: Path) -> None:
    class Inner(BaseModel):
        answer: str | None = None
        n: int = 0

    ran: list[str] = []
    inner = AgentGraph(Inner, name="inner")

    @inner.node(start=True)
    def costly(s: Inner) -> dict[str, Any]:
        ran.append("costly")
        return {"n": 5}

    @inner.node
    def ask(s: Inner) -> dict[str, Any]:
        return {"answer": interrupt("first?") + interrupt("second?")}

    inner.edge(costly, ask)
    inner.edge(ask, END)
    outer = AgentGraph(State, name="outer")
    outer.add(inner, start=True)
    outer.node(name="last")(lambda s: {"answer": s.answer + interrupt("third?")})
    outer.edge("inner", "last")
    outer.edge("last", END)
    store = tmp_path / "runs.db"
    run = outer.run(State(), thread="t", store=store)
    for prompt, answer in [("first?", "a"), ("second?", "b"), ("third?", "c")]:
        assert run.interrupted is not None and run.interrupted.prompt == prompt
        run = outer.resume("t", answer, store=store)
    assert (run.state.answer, run.state.n) == ("abc", 5)
    assert ran == ["costly"]


PROGRAM = """
import sys
from pydantic import BaseModel
from agents import AgentGraph, END, interrupt

class State(BaseModel):
    notes: list[str] = []

g = AgentGraph(State, name="asks")

@g.node(start=True)
def ask(s):
    return {"notes": [*s.notes, interrupt("name?")]}

g.edge(ask, END)
if sys.argv[2] == "start":
    run = g.run(State(), thread="u", store=sys.argv[1])
else:
    run = g.resume("u", sys.argv[2], store=sys.argv[1])
print(run.reason, run.state.notes)
"""


def test_an_interrupt_survives_the_process(tmp_path: Path) -> None:
    def call(argument: str) -> str:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "runs.db"), argument]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    assert call("start") == "interrupted []"
    assert call("Ada") == "end ['Ada']"
