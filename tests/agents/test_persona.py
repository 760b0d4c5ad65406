"""Personas: prompts, tools, outputs, budgets, conversations, streams; on Scripted and real models."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from agents.answer import NoAnswer
from agents.budget import Budget
from agents.chat import Message, ModelError, Reply, Request, Sampling, ToolCall, Usage
from agents.constrain import accepts, choice, json_schema, lark
from agents.events import ModelCalled, Repaired, Token, ToolCalled, ToolReturned, Warned
from agents.models import open_model
from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.tools import PersonaError, tool
from tests.agents.shop_tools import Invoice, lookup
from tests.agents.test_guards import watched
from tests.openai_server import OpenAIServer

CALL = '{"name":"lookup","arguments":{"order_id":17}}'


def call(order_id: Any = 17, name: str = "lookup") -> Reply:
    return Reply(calls=(ToolCall(id="c1", name=name, arguments={"order_id": order_id}),))


def desk(replies: list[Any], **settings: Any) -> Persona:
    return Persona("desk", Scripted(replies), "Answer order questions.", **{"tools": [lookup], **settings})


def test_a_persona_is_a_plain_function() -> None:
    persona = Persona("desk", Scripted(["It is on its way."]), "Answer order questions.")
    result = persona("where is 17?")
    assert str(result) == result.text == result.value == "It is on its way."
    request = persona.model.requests[0]  # type: ignore[attr-defined]
    assert [(m.role, m.content) for m in request.messages] == [("system", "Answer order questions."), ("user", "where is 17?")]
    assert request.static_messages == 1


@pytest.mark.parametrize("said", [CALL, call()])
def test_a_call_is_run_and_its_result_goes_back(said: Any) -> None:
    persona = desk([said, "It is on its way."])
    result, events = watched(lambda: persona("where is 17?"))
    assert result.text == "It is on its way."
    assert [(c.name, c.arguments, r.text) for c, r in result.calls] == [("lookup", {"order_id": 17}, "on its way")]
    second = persona.model.requests[1].messages  # type: ignore[attr-defined]
    assert second[-2].calls[0].arguments == {"order_id": 17}
    assert (second[-1].role, second[-1].content, second[-1].call_id) == ("tool", "on its way", second[-2].calls[0].id)
    assert [type(e) for e in events] == [ModelCalled, ToolCalled, ToolReturned, ModelCalled]


def test_a_bug_in_a_tool_reaches_the_model_as_a_message_and_the_trace_with_its_traceback() -> None:
    persona = desk([call(99), "There is no order 99."])
    _, events = watched(lambda: persona("where is 99?"))
    returned = next(e for e in events if isinstance(e, ToolReturned))
    assert not returned.ok and returned.result == "lookup failed: KeyError: 99"
    assert returned.traceback is not None and "ORDERS[order_id]" in returned.traceback


def test_the_grammar_takes_calls_and_text_and_nothing_between() -> None:
    persona = desk(["x"], routes=["billing"])
    persona("?")
    grammar = persona.model.requests[0].constraint  # type: ignore[attr-defined]
    for text, fine in [
        (CALL, True),
        (f"<tool_call>\n{CALL}\n</tool_call>", True),
        ('{"goto":"billing"}', True),
        ("It is on its way.\nReally.", True),
        (CALL.replace(":17", ":1.5"), False),
        (CALL.replace("lookup", "delete"), False),
        ('{"name": "lookup", "arguments": {"order_id": 17}}', False),
        ('{"goto":"nowhere"}', False),
        ("{}", False),
    ]:
        assert accepts(grammar, text) is fine, text


def test_a_way_to_go_is_a_result_too() -> None:
    assert desk(['{"goto":"billing"}'], routes=["billing"])("money back").goto == "billing"
    persona = desk(['{"goto":"moon"}', "fine"], routes=["billing"])
    assert persona("?").text == "fine" and persona.totals.counts["retry"] == 1


def test_an_output_is_a_validated_instance_and_told_what_is_wrong_once() -> None:
    persona = Persona(
        "reader", Scripted(['{"number":1,"total":9.5}', '{"number":1,"total":-2}', '{"number":1,"total":2}']), output=Invoice
    )
    assert persona("read").output == Invoice(number=1, total=9.5)
    fixed, events = watched(lambda: persona("read"))
    assert fixed.value == Invoice(number=1, total=2)
    rungs = [(e.rung, e.detail) for e in events if isinstance(e, Repaired)]
    assert rungs[-1][0] == "retry" and "total" in rungs[-1][1] and "-2" in rungs[-1][1]
    assert "total" in persona.model.requests[0].messages[0].content  # type: ignore[attr-defined]
    broken = Persona("reader", Scripted(["no", "no"]), output=Invoice)
    with pytest.raises(NoAnswer) as caught:
        broken("read")
    assert caught.value.reason == "invalid"


def test_an_output_beside_tools_is_wrapped() -> None:
    persona = desk([CALL, '{"answer":{"number":17,"total":3}}'], output=Invoice)
    assert persona("what do I owe for 17?").output == Invoice(number=17, total=3)


def test_the_same_call_a_third_time_without_progress_is_stopped() -> None:
    persona = desk([CALL], max_rounds=50)
    persona.model = persona.model.__class__([CALL], repeat=True)  # type: ignore[call-arg]
    with pytest.raises(NoAnswer, match="3 times") as caught:
        persona("where is 17?")
    assert caught.value.reason == "repeating" and len(caught.value.calls) == 2


def test_an_unknown_tool_is_answered_with_the_list_of_tools() -> None:
    persona = desk([call(name="look_for"), "Sorry."])
    _, events = watched(lambda: persona("where is 17?"))
    told = persona.model.requests[1].messages[-1].content  # type: ignore[attr-defined]
    assert "'look_for'" in told and "lookup" in told
    assert [e.rung for e in events if isinstance(e, Repaired)] == ["retry"]


@pytest.mark.parametrize("said", ['{"name": "lookup", "arguments": {"order_id": "17",}', "lookup(order_id=17)", call("17")])
def test_a_slip_is_mended_without_another_question(said: Any) -> None:
    model = Scripted([said, "ok"])
    model.constrains = frozenset()  # type: ignore[attr-defined]
    result = Persona("desk", model, tools=[lookup])("where is 17?")
    assert [(c.arguments, r.text) for c, r in result.calls] == [({"order_id": 17}, "on its way")]
    assert model.requests[0].constraint is None


def test_an_endless_talker_with_tools_runs_out_of_rounds() -> None:
    replies = [call(n) for n in range(40)]
    with pytest.raises(NoAnswer) as caught:
        desk(replies, max_rounds=5)("?")
    assert caught.value.reason == "rounds" and len(caught.value.calls) == 5


def test_variables_fill_the_prompt_and_unset_ones_stop_before_the_model() -> None:
    model = Scripted(["a"] * 3)
    persona = Persona("desk", model, "Answer as {role}. {{literal}}")
    persona("?", role="clerk")
    assert model.requests[0].messages[0].content == "Answer as clerk. {literal}"
    for variables, words in [({}, "needs 'role'"), ({"role": None}, "needs 'role'"), ({"role": "x", "rolle": "y"}, "'rolle'")]:
        with pytest.raises(PersonaError, match=words):
            persona("?", **variables)
    assert len(model.requests) == 1


def test_a_changing_variable_before_fixed_text_is_warned_about_once() -> None:
    persona = Persona("desk", Scripted(["a"] * 5), "Today is {date}. " + "Answer kindly and in full sentences, always.")
    _, events = watched(lambda: [persona("?", date=day) for day in ("Monday", "Monday", "Tuesday", "Friday")])
    warned = [e.text for e in events if isinstance(e, Warned)]
    assert len(warned) == 1 and "{date}" in warned[0]
    assert [r.static_messages for r in persona.model.requests] == [0, 1, 0, 0]  # type: ignore[attr-defined]
    last = Persona("desk", Scripted(["a"] * 3), "Answer kindly and in full sentences, always. Today is {date}")
    _, events = watched(lambda: [last("?", date=day) for day in ("Monday", "Tuesday")])
    assert not [e for e in events if isinstance(e, Warned)]


def test_history_makes_a_conversation() -> None:
    history: list[Message] = []
    persona = Persona("desk", Scripted(["Hello.", "Ann."]))
    persona("I am Ann", history=history)
    persona("who am I?", history=history)
    assert [m.content for m in persona.model.requests[1].messages] == ["I am Ann", "Hello.", "who am I?"]  # type: ignore[attr-defined]
    assert [m.role for m in history] == ["user", "assistant"] * 2
    dicts = [{"role": "user", "content": "I am Bo"}, {"role": "assistant", "content": "Hi."}]
    Persona("desk", Scripted(["Bo."]))("who am I?", history=dicts)
    assert dicts[-1] == {"role": "assistant", "content": "Bo."}
    with pytest.raises(PersonaError, match="cannot read its history"):
        persona("?", history=[3])


class Counting(Scripted):
    """Counts a token a word, with a context of `context`."""

    def __init__(self, replies: Any, context: int) -> None:
        super().__init__(replies)
        self.context = context

    def prompt_ids(self, messages: Any, tools: Any = ()) -> list[int]:
        return [0] * sum(len(m.content.split()) for m in messages)


def test_overflow_is_counted_before_the_call_and_handled_as_said() -> None:
    history = [Message(role=role, content=f"{role} {i} " + "word " * 100) for i in range(4) for role in ("user", "assistant")]
    tight = {"sampling": Sampling(max_tokens=50)}
    with pytest.raises(PersonaError, match="room for 450") as caught:
        Persona("a", Counting([], 500), **tight)("now?", history=list(history))
    assert "817 tokens" in str(caught.value)
    dropping = Persona("a", Counting(["ok"], 500), overflow="drop_oldest", **tight)
    result, events = watched(lambda: dropping("now?", history=list(history)))
    assert result.dropped_turns == 4 and "4 of the oldest turns" in next(e.text for e in events if isinstance(e, Warned))
    assert dropping.model.requests[0].messages[0].content.startswith("user 2")  # type: ignore[attr-defined]
    summing = Persona("a", Counting(["They talked.", "ok"], 500), overflow="summarize", **tight)
    assert summing("now?", history=list(history)).dropped_turns == 4
    asked = summing.model.requests[1].messages  # type: ignore[attr-defined]
    assert asked[0].content == "Summary of the conversation so far: They talked." and asked[2].content.startswith("user 2")
    with pytest.raises(PersonaError, match="last turn alone makes 600 tokens"):
        Persona("a", Counting([], 500), overflow="drop_oldest", **tight)("word " * 600, history=list(history))


def test_a_budget_is_the_whole_calls() -> None:
    model = Scripted([Reply(text=CALL, usage=Usage(completion_tokens=30)), Reply(text="ok", usage=Usage(completion_tokens=5))])
    persona = Persona("desk", model, tools=[lookup], budget=Budget(tokens=40, ms=60_000))
    persona("where is 17?")
    assert [r.sampling.max_tokens for r in model.requests] == [40, 10]
    assert all(0 < r.timeout_s <= 60 for r in model.requests)
    assert (persona.totals.completion_tokens, persona.totals.counts["calls"]) == (35, 1)
    spent = Persona(
        "desk", Scripted([Reply(text=CALL, usage=Usage(completion_tokens=40))]), tools=[lookup], budget=Budget(tokens=40)
    )
    with pytest.raises(NoAnswer, match="40 of 40 tokens") as caught:
        spent("where is 17?")
    assert caught.value.reason == "over-budget" and spent.totals.counts["over-budget"] == 1


def test_approval_is_asked_and_refused_calls_are_not_run() -> None:
    ran: list[int] = []

    @tool(needs_approval=True)
    def cancel(order_id: int) -> str:
        ran.append(order_id)
        return "cancelled"

    said = Reply(calls=(ToolCall(id="1", name="cancel", arguments={"order_id": 17}),))
    asked: list[ToolCall] = []
    with pytest.raises(PersonaError, match="'cancel' needs a person's approval"):
        Persona("desk", Scripted([]), tools=[cancel])("cancel 17")
    no = Persona("desk", Scripted([said, "ok"]), tools=[cancel], approve=lambda c: bool(asked.append(c)))
    assert "a person said no" in no("cancel 17").calls[0][1].text and not ran and asked[0].arguments == {"order_id": 17}
    assert Persona("desk", Scripted([said, "ok"]), tools=[cancel], approve=lambda c: True)("cancel 17").calls[0][
        1
    ].ok and ran == [17]


def test_a_constraint_a_server_cannot_take_is_checked_afterwards() -> None:
    model = Scripted(["perhaps", "yes"])
    model.constrains = frozenset()  # type: ignore[attr-defined]
    persona = Persona("judge", model, constraint=choice(["yes", "no"]))
    assert persona("is it?").text == "yes" and persona.totals.counts["retry"] == 1
    never = Scripted(["perhaps"], repeat=True)
    never.constrains = frozenset()  # type: ignore[attr-defined]
    with pytest.raises(NoAnswer, match="'perhaps'"):
        Persona("judge", never, constraint=choice(["yes", "no"]))("is it?")


def test_async_tools_run_on_the_callers_loop() -> None:
    threads: list[int] = []

    @tool
    async def fetch(order_id: int) -> str:
        threads.append(threading.get_ident())
        await asyncio.sleep(0.001)
        return "fetched"

    replies = [Reply(calls=(ToolCall(id="1", name="fetch", arguments={"order_id": 1}),)), "ok"]
    persona = Persona("desk", Scripted(replies * 2), tools=[fetch])
    assert asyncio.run(persona.arun("?")).text == "ok" and threads == [threading.get_ident()]
    assert persona("?").text == "ok"


class Streaming(Scripted):
    def stream(self, request: Request) -> Iterator[str | Reply]:
        reply = next(iter(self.generate([request])))[1]
        yield from (reply.text[i : i + 3] for i in range(0, len(reply.text), 3))
        yield reply


def test_words_are_shown_as_they_come_and_calls_are_not() -> None:
    persona = Persona("desk", Streaming([CALL, "It is on its way."]), tools=[lookup])
    _, events = watched(lambda: persona("where is 17?"))
    tokens = [e.text for e in events if isinstance(e, Token)]
    assert len(tokens) > 3 and "".join(tokens) == "It is on its way."


def test_a_failing_model_and_a_grammar_that_does_not_compile_raise(llama: Any) -> None:
    with pytest.raises(ModelError, match="no route"):
        Persona("desk", Scripted([ValueError("no route")]))("?")
    with pytest.raises(ModelError, match=r"desk: .*constraint"):
        Persona("desk", llama, constraint=lark("start: nothing"))("?")


def test_a_real_model_answers_by_schema_and_may_think_first(llama: Any) -> None:
    class Flag(BaseModel):
        on: bool

    assert isinstance(Persona("f", llama, output=Flag)("?").output, Flag)
    thought = Persona("f", llama, output=Flag, think=8)("?")
    assert isinstance(thought.output, Flag) and accepts(json_schema(Flag), thought.text)
    assert len(thought.thought) > 0


def test_a_persona_is_a_tool_of_another() -> None:
    expert = Persona("expert", Scripted(["42"]), description="Knows numbers.")
    asked = Reply(calls=(ToolCall(id="1", name="expert", arguments={"question": "how many?"}),))
    assert Persona("desk", Scripted([asked, "It is 42."]), tools=[expert])("?").calls[0][1].text == "42"


def test_a_persona_file_reads_as_it_was_written(tmp_path: Any) -> None:
    model = Scripted(["x"], name="hf:some/model")
    persona = Persona("desk", model, 'Answer "orders".\n{when}', tools=[lookup], output=Invoice, budget=Budget(ms=1500),
                      sampling=Sampling(max_tokens=64, stop=("\n",)), routes=["billing"])  # fmt: skip
    file = persona.save(tmp_path / "desk.toml")
    again = Persona.from_file(file, model=model)
    assert (again.name, again.prompt, again.budget, again.sampling, again.routes) == (
        persona.name, persona.prompt, persona.budget, persona.sampling, persona.routes)  # fmt: skip
    assert again.tools[0].spec == lookup.spec and again.output is Invoice
    file.write_text('name = "x"\npromt = "y"\n')
    with pytest.raises(PersonaError, match="unknown setting 'promt'; did you mean 'prompt'"):
        Persona.from_file(file, model=model)
    with pytest.raises(PersonaError, match="guards, which a file cannot say"):
        Persona("desk", model, guards=[str]).save(file)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Persona("", Scripted([])), "give it a name"),
        (lambda: Persona("a", "gguf:x"), "'gguf:x' is no model"),
        (lambda: Persona("a", Scripted([]), "Answer {1}"), "no variable"),
        (lambda: Persona("a", Scripted([]), "Answer {"), "brace"),
        (lambda: Persona("a", Scripted([]), output=Invoice, constraint=lark("start: x")), "one of the two"),
        (lambda: Persona("a", Scripted([]), tools=[lookup], constraint=lark("start: x")), "stands alone"),
        (lambda: Persona("a", Scripted([]), overflow="forget"), "choose from refuse"),
        (lambda: Persona("a", Scripted([]), tools=[tool(side_effects=True)(lookup.fn)], read_only=True), "read-only"),
        (lambda: Persona("a", Scripted([]))("  "), "give it a text"),
    ],
)
def test_bad_personas_are_one_sentence(make: Any, words: str) -> None:
    with pytest.raises(PersonaError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_threads_share_a_persona() -> None:
    persona = Persona("desk", Scripted([lambda r: r.messages[-1].content], repeat=True))
    out: list[bool] = []

    def ask(n: int) -> None:
        out.extend(persona(f"q{n}-{i}").text == f"q{n}-{i}" for i in range(50))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(out) == 400 and all(out) and persona.totals.counts["calls"] == 400
    assert time.perf_counter() - started < 20


def test_thinking_that_a_server_drops_is_said() -> None:
    refuses = Scripted(["4"])
    refuses.constrains = frozenset()  # type: ignore[attr-defined]
    ignores = Scripted(["4"])
    for model, words in ((refuses, "takes no grammar, so think=8 is left out"), (ignores, "did not keep to the grammar")):
        persona = Persona("desk", model, think=8)
        result, events = watched(lambda: persona("2+2?"))  # noqa: B023
        assert result.text == "4" and persona.totals.counts["think-dropped"] == 1
        assert [words in event.text for event in events if isinstance(event, Warned)] == [True]


def test_the_time_budget_bounds_a_call_over_http() -> None:
    with OpenAIServer(latency_s=5.0) as server:
        model = open_model(server.spec)
        persona = Persona("desk", model, budget=Budget(ms=200))
        began = time.perf_counter()
        with pytest.raises(NoAnswer, match="used up its budget") as none:
            persona("where is 17?")
        assert time.perf_counter() - began < 2.0 and none.value.reason == "over-budget"
        assert (persona | Scripted(["on its way"]))("where is 17?").escalated == "over-budget"
        model.close()
