"""A thread on disk goes on where it was, after too few steps or an error; and grows by what changed, not by what is."""

from __future__ import annotations

import operator
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from agents import END, AgentGraph, GraphError, Persona, Scripted, Store, interrupt
from agents import events as ev
from agents.checkpoint import SCHEMA, StoreError
from tests.agents.test_graph import State, chain

ROOT = Path(__file__).resolve().parents[2]


def counter() -> AgentGraph:
    g = AgentGraph(State, name="counter")

    @g.node(start=True, goes=["count", END])
    def count(s: State) -> Any:
        return g.goto(END) if s.n == 10 else g.goto("count", {"n": s.n + 1, "notes": [f"note {s.n}"]})

    return g


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def test_a_thread_goes_on_in_another_graph_object_and_ends_as_if_never_stopped(path: Path) -> None:
    whole = counter().run(State())
    g = counter()
    assert g.run(State(), thread="u", store=path, max_steps=4).reason == "max_steps"
    g.close()
    run = counter().resume("u", store=path, max_steps=5)
    assert (run.reason, run.state.n, run.steps) == ("max_steps", 9, 5)
    run = counter().run(State(), thread="u", store=path)
    assert (run.reason, run.state) == ("end", whole.state)
    assert run.trace[0] == ev.RunStarted("counter", run.trace[0].state, 9, at_ms=run.trace[0].at_ms, thread="u")  # type: ignore[attr-defined]


def test_history_shows_every_step_and_fork_goes_another_way(path: Path) -> None:
    g = counter()
    g.run(State(), thread="u", store=path)
    past = g.history("u")
    assert [(s.step, s.kind, s.node) for s in past[:3]] == [(0, "start", None), (1, "node", "count"), (2, "node", "count")]
    assert [s.state.n for s in past] == [*range(11), 10]  # type: ignore[attr-defined]
    assert [len(s.state.notes) for s in past] == [*range(11), 10]  # type: ignore[attr-defined]
    assert past[3].next == ("count",) and past[-1].next == ()
    assert (datetime.now(UTC) - past[-1].at).total_seconds() < 60
    name = g.fork("u", step=3)
    assert [s.step for s in g.history(name)] == [0, 1, 2, 3]
    assert g.resume(name).state == g.history("u")[-1].state
    assert g.fork("u", step=0, into="again", store=path) == "again"
    assert len(g.history("again")) == 1
    with pytest.raises(GraphError, match="'again' exists already"):
        g.fork("u", step=1, into="again")
    with pytest.raises(GraphError, match="has steps 0 to 11, so it cannot be forked at step 12"):
        g.fork("u", step=12)


def test_a_thread_is_run_again_when_it_has_ended_and_refused_when_it_has_not(path: Path) -> None:
    g = counter()
    g.run(State(), thread="u", store=path)
    again = g.run(State(n=8), thread="u", store=path)
    assert (again.state.n, again.steps) == (10, 3)
    assert [s.step for s in g.history("u")][-4:] == [11, 12, 13, 14]
    assert [s.step for s in g.history(g.fork("u", step=11))][-1] == 11
    g.run(State(), thread="v", store=path, max_steps=2)
    with pytest.raises(GraphError, match=r"thread 'v' has an unfinished run of another state at step 2: g.resume\('v'\)"):
        g.run(State(n=5), thread="v", store=path)
    with pytest.raises(GraphError, match="thread 'v' belongs to graph 'counter', not to 'graph'"):
        chain(lambda s: None).run(State(), thread="v", store=path)


def test_an_error_leaves_the_thread_before_the_failed_step(path: Path) -> None:
    broken = [True]

    def one(s: State) -> dict[str, Any]:
        return {"notes": ["one"]}

    def two(s: State) -> dict[str, Any]:
        if broken:
            raise ValueError("broken")
        return {"notes": ["two"]}

    g = chain(one, two)
    with pytest.raises(GraphError, match="broken"):
        g.run(State(), thread="u", store=path)
    broken.clear()
    assert g.resume("u").state.notes == ["one", "two"]


def test_finished_branches_of_a_round_are_not_repeated(path: Path) -> None:
    ran: list[str] = []
    broken = [True]
    g = AgentGraph(State)
    g.node(start=True, name="split", goes=["work"])(lambda s: [g.send("work", n=i) for i in range(4)])

    @g.node
    def work(s: State) -> dict[str, Any]:
        if s.n == 2 and broken:
            raise ValueError("branch 2")
        ran.append(str(s.n))
        return {"notes": [str(s.n)]}

    g.node(name="join")(lambda s: {"answer": "".join(s.notes)})
    g.edge(work, "join")
    g.edge("join", END)
    with pytest.raises(GraphError, match="branch 2"):
        g.run(State(), thread="u", store=path)
    assert sorted(ran) == ["0", "1", "3"]
    broken.clear()
    assert g.resume("u").state.answer == "0123"
    assert sorted(ran) == ["0", "1", "2", "3"]


class Color(Enum):
    red = 1


class Part(BaseModel):
    size: Decimal
    made: date


class Rich(BaseModel):
    color: Color = Color.red
    parts: list[Part] = []
    by_name: dict[str, Part] = {}
    tags: set[int] = set()
    pair: tuple[int, str] = (0, "")
    when: datetime | None = None
    raw: bytes = b""
    ratio: float = 0.0
    table: Annotated[dict[str, int], operator.or_] = {}
    total: Annotated[int, operator.add] = 0


def test_values_of_every_kind_come_back_as_they_were(path: Path) -> None:
    part = Part(size=Decimal("1.10"), made=date(2020, 2, 29))

    def more(s: Rich) -> None:
        s.parts.append(part)
        s.tags.add(9)
        s.by_name["b"] = part

    g = chain(
        lambda s: {"parts": [part], "by_name": {"a": part}, "tags": {1, 2}, "pair": (3, "ü\x00"), "total": 4},
        lambda s: {"when": datetime(2024, 1, 1, tzinfo=UTC), "raw": b"abc", "ratio": float("inf"), "table": {"x": 1}, "total": 5},
        more,
        state=Rich,
    )
    run = g.run({}, thread="u", store=path)
    assert run.state.total == 9
    stored = g.history("u")[-1].state
    assert stored == run.state
    assert stored.parts[1].size == Decimal("1.10")  # type: ignore[attr-defined]


def test_growth_is_that_of_the_changes(path: Path) -> None:
    g = AgentGraph(State)

    @g.node(start=True)
    def note(s: State) -> Any:
        s.notes.append(f"{s.n:03d}" + "x" * 497)
        return g.goto(END if s.n == 199 else "note", {"n": s.n + 1})

    run = g.run(State(), thread="u", store=path, max_steps=200)
    payload = sum(map(len, run.state.notes))
    assert payload == 100_000
    g.close()
    assert path.stat().st_size <= 2 * payload
    assert g.history("u", store=path)[-1].state == run.state


def test_a_newer_store_and_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"written by a newer version \(schema {SCHEMA + 1}; this one reads up to {SCHEMA}\)"):
        counter().run(State(), thread="u", store=path)
    assert path.read_bytes() == before
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(StoreError, match="another program's SQLite file"):
        Store(other)
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot be used as a store: file is not a database"):
        Store(junk)
    with pytest.raises(StoreError, match="there is no directory"):
        Store(tmp_path / "no" / "runs.db")


def test_a_changed_graph_or_state_is_noticed(path: Path) -> None:
    counter().run(State(), thread="u", store=path, max_steps=3)
    g = AgentGraph(State, name="counter")
    g.node(start=True, name="other")(lambda s: None)
    g.edge("other", END)
    with pytest.raises(GraphError, match="the stored thread ran node 'count' at step 1, where 'counter' now has 1 'other'"):
        g.resume("u", store=path)

    class Smaller(BaseModel):
        n: int = 0

    h = AgentGraph(Smaller, name="counter")
    h.node(start=True, name="count")(lambda s: None)
    h.edge("count", END)
    with pytest.raises(GraphError, match="has a field 'answer' that Smaller lacks"):
        h.resume("u", store=path)


def test_two_at_once_on_one_thread_are_kept_apart(path: Path) -> None:
    inside, go = threading.Event(), threading.Event()

    def wait(s: State) -> None:
        inside.set()
        go.wait(30)

    g = chain(wait)
    runner = threading.Thread(target=g.run, args=(State(), "u", path))
    runner.start()
    assert inside.wait(10)
    with pytest.raises(StoreError, match=r"thread 'u' in .* is being run elsewhere"):
        g.run(State(), thread="u", store=path)
    program = "from tests.agents.test_checkpoint import *\nchain(lambda s: None).resume('u', store=sys.argv[1])"
    command = [sys.executable, "-c", program, str(path)]
    other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "is being run elsewhere: wait for it, or use another thread name" in other.stderr
    assert chain(lambda s: None).run(State(), thread="v", store=path).reason == "end"
    go.set()
    runner.join()
    with pytest.raises(GraphError, match="has ended"):
        g.resume("u", store=path)


def test_many_threads_write_one_store(path: Path) -> None:
    g = counter()
    with_store = [threading.Thread(target=g.run, args=(State(n=i % 7), f"u{i}", path)) for i in range(32)]
    for one in with_store:
        one.start()
    for one in with_store:
        one.join()
    assert [len(g.history(f"u{i}", store=path)) for i in range(32)] == [12 - i % 7 for i in range(32)]
    assert len(Store(path).threads()) == 32


def test_a_claim_without_a_result_is_an_unknown_outcome(path: Path) -> None:
    store = Store(path)
    g = chain(lambda s: {"answer": ev.memo("pay", lambda: "paid")})
    number = store.number("u", "graph")
    store._db.execute("INSERT INTO memos VALUES (?, 1, 'node0:pay#0', NULL)", (number,))
    with pytest.raises(GraphError, match="its result is unknown; it is not run a second time"):
        g.run(State(), thread="u", store=store)
    assert g.run(State(), thread="v", store=store).state.answer == "paid"


def test_events_worth_keeping_are_in_the_store(path: Path) -> None:
    def talk(s: State) -> None:
        ev.emit(ev.Token("p", "not kept"))
        ev.emit(ev.Escalated("p", "big", "unsure", 0.2))

    g = chain(talk)
    g.run(State(), thread="u", store=path)
    kept = g.history("u")[-1].events
    assert [(e.kind, e.step, e.node, e.thread) for e in kept] == [("escalated", 1, "talk", "u")]


def test_the_journal_stays_small_while_the_store_is_open(path: Path) -> None:
    g = AgentGraph(State)

    @g.node(start=True)
    def note(s: State) -> Any:
        s.notes.append(f"{s.n:03d}" + "x" * 497)
        return g.goto(END if s.n == 399 else "note", {"n": s.n + 1})

    g.run(State(), thread="u", store=path, max_steps=400)
    assert path.with_name(path.name + "-wal").stat().st_size <= 1_200_000
    g.close()


def test_threads_that_begin_at_once_share_one_store_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Store._prepare
    monkeypatch.setattr(Store, "_prepare", lambda self, path: (time.sleep(0.02), prepare(self, path))[1])
    g = chain(lambda s: None)
    ready = threading.Barrier(8)

    def begin(name: str) -> None:
        ready.wait()
        g.run(State(), thread=name)

    workers = [threading.Thread(target=begin, args=(f"t{i}",)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(g.history(f"t{i}") for i in range(8))


def test_a_side_effect_that_asks_a_person_first_runs_when_there_is_an_answer(path: Path) -> None:
    sent: list[str] = []

    def send(s: State) -> dict[str, Any]:
        def compute() -> str:
            if interrupt("send?"):
                sent.append("mail")
            return "sent"

        return {"answer": ev.memo("send", compute)}

    for store in (path, ":memory:"):
        g = chain(send)
        assert g.run(State(), thread="u", store=store).reason == "interrupted"
        assert g.resume("u", True, store=store).state.answer == "sent"
    g = chain(send)
    assert g.run(State()).reason == "interrupted"
    assert sent == ["mail", "mail"]


def test_a_failed_step_keeps_its_events_and_the_thread_stands_before_it(path: Path) -> None:
    persona = Persona("p", Scripted(["a", "b"]))
    failed: list[int] = []

    def ask(s: State) -> dict[str, Any]:
        said = persona("?").text
        if not failed:
            failed.append(1)
            raise ValueError("no")
        return {"answer": said}

    g = chain(ask)
    with pytest.raises(GraphError):
        g.run(State(), thread="u", store=path)
    assert g.history("u")[-1].next == ("ask",)
    assert chain(ask).resume("u", store=path).state.answer == "b"
    kept = [(shot.kind, event.kind) for shot in g.history("u") for event in shot.events]
    assert kept == [("error", "model_called"), ("error", "node_failed"), ("node", "model_called")]
