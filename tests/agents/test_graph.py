"""A graph runs its nodes, changes its state, follows its routes, runs branches side by side and says clearly what went wrong."""

from __future__ import annotations

import operator
import threading
import time
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, field_validator, model_validator

from agents import END, AgentGraph, GraphError
from agents import events as ev
from agents.route import Choice


class State(BaseModel):
    n: int = 0
    answer: str | None = None
    notes: Annotated[list[str], operator.add] = []
    seen: dict[str, int] = {}


class Echo:
    """A Runnable for tests: answers with its name and what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[tuple[str, Any, dict[str, Any]]] = []

    def __call__(self, text: str, *, history: Any = None, **variables: Any) -> str:
        self.asked.append((text, history, variables))
        return f"{self.name}: {text}"


def chain(*functions: Any, state: type[BaseModel] = State, **options: Any) -> AgentGraph:
    g = AgentGraph(state)
    called = [f"node{i}" if one.__name__ == "<lambda>" else one.__name__ for i, one in enumerate(functions)]
    for i, function in enumerate(functions):
        g.node(start=i == 0, name=called[i], **options)(function)
    for one, two in zip(called, (*called[1:], END), strict=True):
        g.edge(one, two)
    return g


def names(trace: Any) -> list[str]:
    return [event.node for event in trace.of(ev.NodeStarted)]


def test_every_kind_of_return_changes_the_state() -> None:
    def whole(s: State) -> State:
        return s.model_copy(update={"n": 1, "notes": [*s.notes, "whole"]})

    def changes(s: State) -> dict[str, Any]:
        return {"answer": "yes", "notes": ["dict"]}

    def in_place(s: State) -> None:
        s.n += 1
        s.notes.append("in place")
        s.seen["a"] = 1

    def same(s: State) -> State:
        s.seen["b"] = 2
        return s

    given = State(notes=["given"])
    run = chain(whole, changes, in_place, same).run(given)
    assert run.state == State(n=2, answer="yes", notes=["given", "whole", "dict", "in place"], seen={"a": 1, "b": 2})
    assert given == State(notes=["given"])
    assert (run.reason, run.steps, run.interrupted) == ("end", 4, None)
    ended = run.trace.of(ev.NodeEnded)
    assert [event.added.get("notes") for event in ended] == [["whole"], ["dict"], ["in place"], None]
    assert [event.changes for event in ended] == [{"n": 1}, {"answer": "yes"}, {"n": 2}, {}]
    assert [event.added.get("seen") for event in ended] == [None, None, {"a": 1}, {"b": 2}]


def test_goto_and_choice_override_edges_and_are_traced() -> None:
    g = AgentGraph(State)

    @g.node(start=True)
    def first(s: State) -> Any:
        return Choice("third", {"third": 0.75, "second": 0.25})

    @g.node
    def second(s: State) -> None:
        raise AssertionError("the edge was overridden")

    @g.node
    def third(s: State) -> Any:
        return g.goto(END, {"n": 3})

    g.edge(first, second)
    g.edge(second, END)
    run = g.run(State())
    assert run.state.n == 3
    taken = run.trace.of(ev.EdgeTaken)
    assert [(e.source, e.target, e.probabilities) for e in taken] == [
        ("first", "third", {"third": 0.75, "second": 0.25}),
        ("third", END, None),
    ]
    assert Choice("third", {"third": 0.75}).confidence == 0.75
    assert Choice("third") == "third"


def test_cycles_end_at_max_steps_with_a_clear_event_and_run_longer_when_told() -> None:
    g = AgentGraph(State)

    @g.node(start=True)
    def more(s: State) -> Any:
        return g.goto(END) if s.n == 200 else {"n": s.n + 1}

    g.edge(more, more)
    run = g.run(State())
    assert (run.reason, run.steps, run.state.n) == ("max_steps", 50, 50)
    last = run.trace[-1]
    assert isinstance(last, ev.RunEnded)
    assert "50 steps taken" in last.detail and "max_steps=50" in last.detail and "'more'" in last.detail
    assert g.run(State(), max_steps=201).state.n == 200


def test_fan_out_runs_side_by_side_and_the_join_waits_for_long_branches() -> None:
    g = AgentGraph(State)
    meet = threading.Barrier(2, timeout=10)

    @g.node(start=True)
    def fork(s: State) -> None: ...

    @g.node
    def short(s: State) -> dict[str, Any]:
        meet.wait()
        return {"notes": ["short"]}

    @g.node
    def long_1(s: State) -> dict[str, Any]:
        meet.wait()
        return {"notes": ["long 1"]}

    @g.node
    def long_2(s: State) -> dict[str, Any]:
        return {"notes": ["long 2"]}

    @g.node
    def join(s: State) -> dict[str, Any]:
        return {"n": len(s.notes)}

    for one, two in [(fork, short), (fork, long_1), (long_1, long_2), (short, join), (long_2, join), (join, END)]:
        g.edge(one, two)
    run = g.run(State())
    assert run.state.notes == ["short", "long 1", "long 2"]
    assert run.state.n == 3
    assert sorted(names(run.trace)) == ["fork", "join", "long_1", "long_2", "short"]


def test_the_join_waits_within_a_circle_too_and_a_single_branch_is_not_waited_for() -> None:
    g = AgentGraph(State)

    @g.node(start=True)
    def fork(s: State) -> None: ...

    @g.node
    def b(s: State) -> None: ...

    @g.node
    def b2(s: State) -> dict[str, Any]:
        return {"notes": ["b2"]}

    @g.node
    def c(s: State) -> dict[str, Any]:
        return {"notes": ["c"]}

    @g.node(goes=["fork", END])
    def join(s: State) -> Any:
        return g.goto("fork" if s.n == 0 else END, {"n": s.n + 1})

    for one, two in [(fork, b), (fork, c), (b, b2), (b2, join), (c, join)]:
        g.edge(one, two)
    run = g.run(State())
    assert run.state.notes == ["c", "b2", "c", "b2"]
    assert names(run.trace).count("join") == 2


def test_parallel_writes_without_a_reducer_are_an_error_that_says_what_to_do() -> None:
    g = AgentGraph(State)
    g.node(start=True, name="fork")(lambda s: None)
    g.node(name="one")(lambda s: {"answer": "1"})
    g.node(name="two")(lambda s: {"answer": "2"})
    for one, two in [("fork", "one"), ("fork", "two"), ("one", END), ("two", END)]:
        g.edge(one, two)
    with pytest.raises(
        GraphError, match=r"'one' and 'two' ran in parallel and both wrote State.answer: declare a reducer"
    ) as error:
        g.run(State())
    assert error.value.run.reason == "error"
    assert error.value.run.state.answer is None


def test_reducers_of_every_kind() -> None:
    class Sums(BaseModel):
        total: Annotated[int, operator.add] = 1
        best: Annotated[int, max] = 0
        table: Annotated[dict[str, int], operator.or_] = {}
        tags: Annotated[set[str], operator.or_] = set()

    g = AgentGraph(Sums)
    g.node(start=True, name="fork")(lambda s: None)
    g.node(name="one")(lambda s: {"total": 10, "best": 7, "table": {"one": 1}, "tags": {"x"}})
    g.node(name="two")(lambda s: {"total": 100, "best": 5, "table": {"two": 2}, "tags": {"y"}})
    for one, two in [("fork", "one"), ("fork", "two"), ("one", END), ("two", END)]:
        g.edge(one, two)
    assert g.run({}).state == Sums(total=111, best=7, table={"one": 1, "two": 2}, tags={"x", "y"})


def test_sends_run_one_node_over_many_inputs_and_keep_their_order() -> None:
    g = AgentGraph(State)

    @g.node(start=True, goes=["work"])
    def split(s: State) -> Any:
        return [g.send("work", n=i) for i in range(30)]

    @g.node
    def work(s: State) -> dict[str, Any]:
        return {"notes": [f"{s.n}"]}

    @g.node
    def join(s: State) -> dict[str, Any]:
        return {"answer": ",".join(s.notes)}

    g.edge(work, join)
    g.edge(join, END)
    run = g.run(State())
    assert run.state.answer == ",".join(map(str, range(30)))
    assert (run.state.n, run.steps) == (0, 32)


def test_runnables_read_and_write_fields() -> None:
    desk, sql, judge = Echo("desk"), Echo("sql"), Echo("judge")
    g = AgentGraph(State)
    g.add(desk, reads="answer", writes="notes", start=True, variables=["n"])
    g.add(sql, reads=lambda s: s.notes[-1].upper(), writes="answer", history="notes")
    g.add(judge, reads=["answer", "n"], writes="notes", variables={"count": "n"})
    g.edge(desk, sql)
    g.edge(sql, "judge")
    g.edge("judge", END)
    run = g.run(State(answer="where?", n=7))
    assert run.state.notes == ["desk: where?", "judge: answer: sql: DESK: WHERE?\nn: 7"]
    assert desk.asked == [("where?", None, {"n": 7})]
    assert sql.asked == [("DESK: WHERE?", ["desk: where?"], {})]
    assert judge.asked[0][2] == {"count": 7}


def test_a_graph_within_a_graph() -> None:
    class Inner(BaseModel):
        text: str
        words: int = 0

    inner = AgentGraph(Inner, name="count")

    @inner.node(start=True)
    def split(s: Inner) -> dict[str, Any]:
        ev.emit(ev.Token("p", "inside"))
        return {"words": len(s.text.split())}

    inner.edge(split, END)
    outer = AgentGraph(State)
    outer.add(inner, reads={"text": "answer"}, writes={"n": "words"}, start=True)
    outer.edge(inner, END)
    run = outer.run(State(answer="one two three"))
    assert run.state.n == 3
    tokens = run.trace.of(ev.Token)
    assert [(t.node, t.step) for t in tokens] == [("count/split", 1)]
    assert names(run.trace) == ["count", "count/split"]
    with pytest.raises(GraphError, match="'nope', no field of Inner"):
        outer.add(inner, name="again", reads={"nope": "answer"})


class Checked(BaseModel):
    a: int = 0
    b: str = Field("x", max_length=3)
    names: list[str] = Field([], max_length=2)

    @field_validator("b")
    @classmethod
    def lower(cls, value: str) -> str:
        return value.lower()

    @model_validator(mode="after")
    def agree(self) -> Checked:
        if self.a > 10:
            raise ValueError("a is too large")
        return self


def test_only_changes_are_validated_and_coerced_but_all_rules_of_the_class_hold() -> None:
    assert chain(lambda s: {"a": "7", "b": "ABC"}, state=Checked).run({}).state == Checked(a=7, b="abc")
    with pytest.raises(GraphError, match="Checked does not take b = 'long': String should have at most 3"):
        chain(lambda s: {"b": "long"}, state=Checked).run({})
    with pytest.raises(GraphError, match="a is too large"):
        chain(lambda s: {"a": 11}, state=Checked).run({})
    with pytest.raises(GraphError, match="at most 2 items"):
        chain(lambda s: s.names.extend("abc"), state=Checked).run({})
    with pytest.raises(GraphError, match=r"State does not take notes \+= 0 = 3: Input should be a valid string"):
        chain(lambda s: {"notes": [3]}).run({})


def test_frozen_states_and_states_with_private_attributes() -> None:
    class Frozen(BaseModel, frozen=True):
        n: int = 0

    class Private(BaseModel):
        n: int = 0
        _seen: int = 5

    assert chain(lambda s: s.model_copy(update={"n": "3"}), state=Frozen).run({}).state == Frozen(n=3)
    assert chain(lambda s: {"n": s._seen}, state=Private).run({}).state.n == 5


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({"nope": 1}, "unknown state field 'nope'; State has n, answer, notes, seen"),
        ("desk", r"returned 'desk' \(str\): return a State, a dict of changes"),
        ({"n": "many"}, "State does not take n = 'many': Input should be a valid integer"),
        (AgentGraph.goto("nowhere"), "goes to 'nowhere'"),
    ],
)
def test_wrong_returns_are_one_clear_sentence(returned: Any, said: str) -> None:
    with pytest.raises(GraphError, match=said):
        chain(lambda s: returned, retries=5).run(State())


def test_wrong_states_are_refused_before_anything_runs() -> None:
    def never(s: State) -> None:
        raise AssertionError

    g = chain(never)
    with pytest.raises(GraphError, match="the state does not fit State: n = 'x'"):
        g.run({"n": "x"})
    with pytest.raises(GraphError, match="the state does not fit State: notes"):
        g.run(State.model_construct(n=1, answer=None, notes=3, seen={}))
    with pytest.raises(GraphError, match="runs over State, not str"):
        g.run("hello")
    with pytest.raises(GraphError, match="neither a state to run over nor a thread"):
        g.run()
    with pytest.raises(GraphError, match="max_steps=0"):
        g.run(State(), max_steps=0)


def test_threads_do_not_mix() -> None:
    g = chain(lambda s: {"notes": [str(s.n)]}, lambda s: time.sleep(0.001), lambda s: {"answer": ",".join(s.notes) + str(s.n)})
    results: dict[int, str] = {}

    def work(i: int) -> None:
        results[i] = g.run(State(n=i)).state.answer

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: f"{i}{i}" for i in range(32)}


def test_what_a_node_appends_in_place_is_validated_once() -> None:
    class Short(BaseModel):
        notes: list[str] = Field(default=[], max_length=2)

    g = AgentGraph(Short)

    @g.node(start=True)
    def note(s: Short) -> None:
        s.notes.append("b")

    g.edge(note, END)
    assert g.run(Short(notes=["a"])).state.notes == ["a", "b"]
    with pytest.raises(GraphError, match="at most 2 items"):
        g.run(Short(notes=["a", "b"]))


@pytest.mark.parametrize("thread", [None, "t"])
def test_an_inner_graph_that_was_given_up_is_tried_again_when_it_has_let_go(thread: str | None) -> None:
    tries: list[int] = []
    inner = AgentGraph(State, name="inner")

    @inner.node(start=True)
    def slow(s: State) -> dict[str, Any]:
        tries.append(1)
        if len(tries) == 1:
            time.sleep(0.4)
        return {"answer": "done"}

    inner.edge(slow, END)
    g = AgentGraph(State, name="outer")
    g.add(inner, start=True, timeout_s=0.15, retries=5)
    g.edge("inner", END)
    assert g.run(State(), thread=thread).state.answer == "done"
