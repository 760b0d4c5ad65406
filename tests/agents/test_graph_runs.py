"""A graph in time: branches that overlap, retries, limits, cancelling, asyncio, and the events of a run as it goes."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from agents import END, AgentGraph, GraphError
from agents import events as ev
from tests.agents.test_graph import State, chain


def test_slow_nodes_of_one_round_overlap() -> None:
    g = AgentGraph(State)
    g.node(start=True, name="fork")(lambda s: None)
    for i in range(8):
        g.node(name=f"slow{i}")(lambda s: time.sleep(0.1))
        g.edge("fork", f"slow{i}")
        g.edge(f"slow{i}", END)
    began = time.perf_counter()
    g.run(State())
    assert time.perf_counter() - began < 0.5


def test_retries_then_the_error_with_its_cause() -> None:
    tries: list[int] = []

    def shaky(s: State) -> dict[str, Any]:
        s.notes.append("spoilt by a failed try")
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return {"n": len(tries)}

    run = chain(shaky, retries=2).run(State())
    assert run.state.n == 3
    assert run.state.notes == ["spoilt by a failed try"]
    assert [(e.attempt, e.retried) for e in run.trace.of(ev.NodeFailed)] == [(1, True), (2, True)]
    tries.clear()
    with pytest.raises(GraphError, match="node 'shaky' failed at step 1 after 2 attempts: ValueError: not yet") as error:
        chain(shaky, retries=1).run(State())
    assert isinstance(error.value.__cause__, ValueError)
    assert error.value.run.state.notes == []


@pytest.mark.parametrize("is_async", [False, True])
def test_time_limits(is_async: bool) -> None:
    stopped = threading.Event()

    def slow(s: State) -> None:
        while not ev.cancelled():
            time.sleep(0.005)
        stopped.set()

    async def aslow(s: State) -> None:
        await asyncio.sleep(10)

    g = chain(aslow if is_async else slow, timeout_s=0.05)
    with pytest.raises(GraphError, match=r"no answer within 0.05 s"):
        g.run(State())
    assert is_async or stopped.wait(5)


def test_cancel_stops_between_steps_and_tells_the_node() -> None:
    cancel = threading.Event()

    def one(s: State) -> dict[str, Any]:
        cancel.set()
        assert ev.cancelled()
        return {"n": 1}

    def two(s: State) -> None:
        raise AssertionError("cancelled before")

    run = chain(one, two).run(State(), cancel=cancel)
    assert run.reason == "cancelled"


def test_async_nodes_under_run_arun_and_astream() -> None:
    async def one(s: State) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"notes": ["async"]}

    def two(s: State) -> dict[str, Any]:
        return {"notes": [threading.current_thread().name]}

    g = chain(one, two)
    assert g.run(State()).state.notes == ["async", "agents-awaited"]

    async def both() -> Any:
        run = await g.arun(State())
        with pytest.raises(GraphError, match=r"await g.arun"):
            g.run(State())
        return run, [event.kind async for event in g.astream(State())]

    run, kinds = asyncio.run(both())
    assert run.state.notes == ["async", "agents-awaited"]
    assert kinds == [event.kind for event in run.trace]


def test_many_runs_at_once_on_asyncio_do_not_wait_for_each_other() -> None:
    def slow(s: State) -> dict[str, Any]:
        time.sleep(0.1)
        return {"n": s.n * 2}

    g = chain(slow)

    async def many() -> list[Any]:
        return await asyncio.gather(*(g.arun(State(n=i)) for i in range(40)))

    began = time.perf_counter()
    runs = asyncio.run(many())
    assert [run.state.n for run in runs] == [2 * i for i in range(40)]
    assert time.perf_counter() - began < 2.0


@pytest.mark.parametrize("live", [True, False])
def test_stream_yields_what_the_trace_holds(live: bool) -> None:
    def one(s: State) -> dict[str, Any]:
        ev.emit(ev.Token("p", "hel"))
        ev.emit(ev.Token("p", "lo"))
        return {"n": 1}

    def two(s: State) -> None: ...

    g = chain(one, two)
    events = list(g.stream(State(), live_tokens=live))
    kinds = [event.kind for event in events]
    assert kinds == [
        "run_started", "node_started", "token", "token", "node_ended", "edge_taken",
        "node_started", "node_ended", "edge_taken", "run_ended",
    ]  # fmt: skip
    assert kinds == [event.kind for event in g.run(State()).trace]
    tokens = [event for event in events if isinstance(event, ev.Token)]
    assert [(t.text, t.node, t.step) for t in tokens] == [("hel", "one", 1), ("lo", "one", 1)]
    assert [event.at_ms for event in events] == sorted(event.at_ms for event in events)


def test_stream_shows_tokens_while_the_node_runs_and_cancels_when_left() -> None:
    go, left = threading.Event(), threading.Event()

    def talk(s: State) -> None:
        ev.emit(ev.Token("p", "first"))
        go.wait(10)
        if ev.cancelled():
            left.set()

    stream = chain(talk).stream(State())
    for event in stream:
        if isinstance(event, ev.Token):
            break
    stream.close()  # type: ignore[attr-defined]
    go.set()
    assert left.wait(10)


def test_a_failing_stream_ends_with_the_error_as_events() -> None:
    def broken(s: State) -> None:
        raise RuntimeError("boom")

    for live in (True, False):
        events = list(chain(broken).stream(State(), live_tokens=live))
        assert [event.kind for event in events[-2:]] == ["node_failed", "run_ended"]
        assert events[-1].reason == "error"  # type: ignore[attr-defined]
        assert "boom" in events[-1].detail  # type: ignore[attr-defined]
