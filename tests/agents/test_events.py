"""Events are cheap frozen values that survive JSON; code in a node reaches its run, code outside goes without."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import pytest

from agents import END, AgentGraph
from agents import events as ev
from agents.chat import Adapter, Message, Reply, Sampling, Timings, TokenLogprob, ToolCall, Usage
from tests.agents.test_graph import State, chain

EVENTS: list[ev.Event] = [
    ev.RunStarted("g", {"n": 1}, 3, at_ms=0.5, thread="t"),
    ev.Resumed({"ok": True}, 1),
    ev.NodeStarted(2, step=3, node="x"),
    ev.Token("p", "héllo\n"),
    ev.ModelCalled(
        "p", "m", (Adapter(path="a.gguf", scale=0.5),), Usage(prompt_tokens=3), Timings(decode_ms=1.5), "length", 0.25, "ab",
        Sampling(seed=0), "json", "cd", "ef", 2, (Message(role="user", content="x"),),
        Reply(text="y", logprobs=(TokenLogprob(token="y", id=1, logprob=-0.5, top=((1, "y", -0.5),)),)),
    ),
    ev.ToolCalled("p", ToolCall(id="1", name="f", arguments={"a": [1, {"b": None}]})),
    ev.ToolReturned("p", "1", "f", "17", 0.25, False),
    ev.Repaired("p", "coerce", "a: '2' -> 2"),
    ev.Guarded("p", "polite", "retry", "why"),
    ev.Escalated("p", "big", "unsure", 0.1, (Message(role="user", content="x"),), "a", "b", "sql"),
    ev.EdgeTaken("a", "b", {"b": 1.0}),
    ev.Interrupted("3.0", "send?", ["a"]),
    ev.Warned("w"),
    ev.NodeFailed("ValueError: x", 1, True),
    ev.NodeEnded({"n": 1}, {"notes": ["x"]}),
    ev.RunEnded("max_steps", "50 steps"),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_json_round_trip(event: ev.Event) -> None:
    line = ev.to_json(event)
    assert "\n" not in line
    assert ev.from_json(line) == event


def test_every_kind_is_tried_above_and_frozen() -> None:
    assert {event.kind for event in EVENTS} == set(ev.KINDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        EVENTS[0].step = 5  # type: ignore[misc]
    assert all(get_type_hints(type(event)) and not hasattr(event, "__dict__") for event in EVENTS)


def test_unknown_kinds_and_fields_are_named() -> None:
    with pytest.raises(ValueError, match="unknown event kind 'nope'"):
        ev.from_json('{"kind": "nope"}')
    with pytest.raises(ValueError, match="persona"):
        ev.from_json('{"kind": "token", "text": "x"}')


def test_values_that_json_does_not_know_become_their_text() -> None:
    line = ev.to_json(ev.NodeEnded({"x": object()}))
    assert "object object at" in line


def test_outside_a_run_nothing_happens() -> None:
    ev.emit(ev.Warned("nobody hears"))
    calls: list[int] = []
    for _ in range(2):
        assert ev.memo("k", lambda: str(calls.append(1))) == "None"
    assert len(calls) == 2
    assert not ev.cancelled()
    assert ev.time_left_s() is None
    assert ev.replayed("p", "x") is None
    assert ev.replayed_result("p", ToolCall(name="f")) is None


def test_inside_a_run_events_are_stamped_and_memos_outlive_a_retry() -> None:
    calls: list[str] = []

    def work(s: State) -> dict[str, Any]:
        left = ev.time_left_s()
        assert left is not None and 0 < left <= 5
        first = ev.memo("send", lambda: str(calls.append("first")))
        second = ev.memo("send", lambda: str(calls.append("second")))
        ev.emit(ev.Warned("stamped"))
        if len(calls) == 2:
            calls.append("retry")
            raise ValueError("once more")
        return {"notes": [first, second]}

    run = chain(work, retries=1, timeout_s=5).run(State(), thread="t")
    assert calls == ["first", "second", "retry"]
    warned = run.trace.of(ev.Warned)
    assert [(w.step, w.node, w.thread) for w in warned] == [(1, "work", "t")] * 2
    assert 0 < warned[0].at_ms <= warned[1].at_ms


def test_a_side_effect_that_failed_is_not_tried_again_in_its_step() -> None:
    calls: list[int] = []

    def fails() -> str:
        calls.append(1)
        raise OSError("wire cut")

    def work(s: State) -> dict[str, Any]:
        try:
            ev.memo("send", fails)
        except OSError:
            raise
        except ev.UnknownOutcome as outcome:
            return {"answer": str(outcome)}
        raise AssertionError

    run = chain(work, retries=1).run(State())
    assert calls == [1]
    assert "failed before with OSError: wire cut, and is not run a second time" in run.state.answer


def test_branches_keep_their_own_scope() -> None:
    g = AgentGraph(State)
    g.node(start=True, name="fork")(lambda s: None)
    for i in range(20):
        g.node(name=f"n{i}")(lambda s, i=i: ev.emit(ev.Warned(f"n{i}")))
        g.edge("fork", f"n{i}")
        g.edge(f"n{i}", END)
    run = g.run(State())
    assert all(w.node == w.text for w in run.trace.of(ev.Warned))
    assert len(run.trace.of(ev.Warned)) == 20
    assert ev.current.get() is None
