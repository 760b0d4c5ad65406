"""A trace survives its file, adds up per persona, and plays again: the same replies give the same run, a change is located."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agents import END, AgentGraph, GraphError, ReplayError, Trace, interrupt
from agents import events as ev
from agents.chat import Message, Reply, Request, Timings, ToolCall, Usage, answer
from agents.models.scripted import Scripted
from agents.trace import PersonaUsage, usage_rows
from tests.agents.test_graph import State, chain


class Speaker:
    """The least a persona does for its trace: asks its model unless the run is a replay, calls a tool, and says so."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model

    def __call__(self, text: str, *, history: Any = None, **variables: Any) -> str:
        digest = hashlib.sha256(text.encode()).hexdigest()
        reply = ev.replayed(self.name, digest)
        if reply is None:
            reply = answer(self.model, [Request(messages=(Message(role="user", content=text),))])[0]
        ev.emit(
            ev.ModelCalled(self.name, "scripted", usage=reply.usage, timings=reply.timings, prompt_sha256=digest, reply=reply)
        )
        call = ToolCall(id="1", name="shout", arguments={"text": reply.text})
        ev.emit(ev.ToolCalled(self.name, call))
        result = ev.replayed_result(self.name, call)
        if result is None:
            result = self.shout(reply.text)
        ev.emit(ev.ToolReturned(self.name, "1", "shout", result, 1.5))
        return result

    def shout(self, text: str) -> str:
        return text.upper()


def graph(model: Any, review: Any = None) -> AgentGraph:
    g = AgentGraph(State, name="speakers")
    g.add(Speaker("one", model), reads="answer", writes="answer", start=True)
    g.add(Speaker("two", model), reads="answer", writes="notes")
    g.node(name="review")(review if review is not None else lambda s: {"n": len(s.notes[-1])})
    g.edge("one", "two")
    g.edge("two", "review")
    g.edge("review", END)
    return g


def replies() -> Scripted:
    usage, timings = Usage(prompt_tokens=10, completion_tokens=4, reused_tokens=6), Timings(prefill_ms=2.0, decode_ms=3.0)
    return Scripted([Reply(text="hello", usage=usage, timings=timings), Reply(text="world", usage=usage, timings=timings)])


def test_file_round_trip(tmp_path: Path) -> None:
    run = graph(replies()).run(State(answer="hi"))
    path = tmp_path / "run.jsonl"
    run.trace.save(path)
    assert [path.name] == [one.name for one in tmp_path.iterdir()]
    again = Trace.load(path)
    assert [event.kind for event in again] == [event.kind for event in run.trace]
    assert again.usage() == run.usage
    assert list(again)[1:] == list(run.trace)[1:]
    path.write_text(path.read_text("utf-8").replace("model_called", "model_cold"), "utf-8")
    with pytest.raises(GraphError, match=r"line \d+ of .* is not an event of a trace: unknown event kind 'model_cold'"):
        Trace.load(path)
    with pytest.raises(GraphError, match="cannot be read"):
        Trace.load(tmp_path / "none.jsonl")


def test_usage_per_persona() -> None:
    usage = graph(replies()).run(State(answer="hi")).usage
    one = PersonaUsage(
        calls=1, prompt_tokens=10, reused_tokens=6, completion_tokens=4, prefill_ms=2.0, decode_ms=3.0, tool_calls=1, tool_ms=1.5
    )
    assert usage == {"one": one, "two": one}
    assert [row["persona"] for row in usage_rows(usage)] == ["one", "two"]
    events: list[ev.Event] = [
        ev.Repaired("p", "coerce"), ev.Repaired("p", "coerce"), ev.Guarded("p", "polite", "retry"),
        ev.Escalated("p", "big", "unsure"), ev.ToolReturned("p", "1", "f", "", 2.0, False),
        ev.ModelCalled("p", "m", usage=Usage(cost_usd=0.5), truncated_prompt_tokens=3),
        ev.ModelCalled("p", "m", usage=Usage(cost_usd=0.25)),
    ]  # fmt: skip
    p = Trace(events).usage()["p"]
    assert (p.repairs, p.guards, p.escalations) == ({"coerce": 2}, {"polite: retry": 1}, 1)
    assert (p.tool_failures, p.truncated_prompt_tokens, p.cost_usd) == (1, 3, 0.75)


def test_replay_asks_no_model_and_gives_the_same_run(tmp_path: Path) -> None:
    run = graph(replies()).run(State(answer="hi"))
    path = tmp_path / "run.jsonl"
    run.trace.save(path)
    silent = Scripted([])
    again = graph(silent).replay(path)
    assert again.state == run.state == State(answer="HELLO", notes=["WORLD"], n=5)
    assert len(silent.requests) == 0


def test_replay_says_where_it_differs(tmp_path: Path) -> None:
    trace = graph(replies()).run(State(answer="hi")).trace
    with pytest.raises(
        ReplayError, match=r"differs at step 3, node 'review': recorded changes \[\{'n': 5\}.*now changes \[\{'n': 6"
    ):
        graph(Scripted([]), lambda s: {"n": len(s.notes[-1]) + 1}).replay(trace)
    g = graph(Scripted([]))
    g._nodes["two"].call = lambda s: Speaker("two", Scripted([]))("another prompt")
    with pytest.raises(ReplayError, match="differs at step 2, node 'two': persona 'two' sends another prompt"):
        g.replay(trace)
    g = graph(Scripted([]))
    g._nodes["review"].call = lambda s: {"notes": [Speaker("two", Scripted([]))("HELLO")]}
    with pytest.raises(ReplayError, match="step 3, node 'review': persona 'two' asks its model once more than in the record"):
        g.replay(trace)


def test_replay_of_failures_interrupts_and_inner_graphs() -> None:
    def review(s: State) -> dict[str, Any]:
        return {"notes": [interrupt("fine?")]}

    run = graph(replies(), review).run(State(answer="hi"))
    assert run.reason == "interrupted"
    again = graph(Scripted([]), review).replay(run.trace)
    assert again.interrupted is not None and again.interrupted.prompt == "fine?"

    def broken(s: State) -> None:
        raise ValueError("always")

    with pytest.raises(GraphError, match="always") as error:
        graph(replies(), broken).run(State(answer="hi"))
    assert graph(Scripted([]), broken).replay(error.value.run.trace).reason == "error"

    class Outer(BaseModel):
        answer: str = "hi"
        notes: list[str] = []

    def nested(model: Any) -> AgentGraph:
        outer = AgentGraph(Outer)
        outer.add(graph(model), writes=["notes"], reads=["answer"], start=True)
        outer.edge("speakers", END)
        return outer

    run = nested(replies()).run({})
    assert nested(Scripted([])).replay(run.trace).state == run.state == Outer(notes=["WORLD"])
    assert set(run.usage) == {"one", "two"}


def test_a_trace_from_the_middle_of_a_thread_cannot_be_replayed() -> None:
    g = chain(lambda s: None, lambda s: None)
    g.run(State(), thread="u", max_steps=1)
    run = g.resume("u")
    with pytest.raises(GraphError, match="begins in the middle of a thread"):
        g.replay(run.trace)
