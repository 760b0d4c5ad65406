"""Malformed calls are mended, or sent back with the field, the value and the type; checked against jsonschema and by hand."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from pydantic import ValidationError

from agents.chat import Message, Reply, Request, ToolCall, ToolSpec, answer
from agents.json_text import Unreadable, parse
from agents.models import open_model
from agents.repair import Repaired, problems_of, repair, repair_call, repair_value, retry_message, same_call, without_progress
from tests.agents.malformed import ELEVEN, Malformed, called
from tests.agents.test_coerce import INTEGER, SCHEMA, Invoice
from tests.openai_server import OpenAIServer

ADD = ToolSpec(name="add", parameters={"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "required": ["a", "b"]})
LOOKUP = ToolSpec(
    name="lookup",
    parameters={"type": "object", "properties": {"order_id": INTEGER}, "required": ["order_id"], "additionalProperties": False},
)
TOOLS = (ADD, LOOKUP)
SUM = {"a": 2, "b": 3}


def one(mended: Repaired) -> ToolCall:
    assert mended.problems == () and len(mended.calls) == 1
    return mended.calls[0]


@pytest.mark.parametrize("case", ELEVEN, ids=lambda case: case.name)
def test_the_eleven_over_http(case: Malformed) -> None:
    with OpenAIServer(lambda body: case.message) as server:
        model = open_model(server.spec)
        (reply,) = answer(model, [Request(messages=(Message(role="user", content="2 + 3?"),), tools=TOOLS)])
        model.close()
    mended = repair(reply, TOOLS)
    if case.rung == "retry":
        assert mended.calls == ()
        said = retry_message(mended.problems)
        assert all(part in said for part in case.named), said
    else:
        call = one(mended)
        assert (call.name, call.arguments, call.raw) == ("add", SUM, None)
        assert case.rung in {rung for rung, _ in mended.rungs} or case.rung == "stop-repeat"


WRITTEN = [
    '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}',
    '<tool_call>{"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": 3}"}</tool_call>',
    "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n<parameter=b>\n3\n</parameter>\n</function>\n</tool_call>",
    '<function=add>{"a": 2, "b": 3}</function>',
    '<function="add">{"a": 2, "b": 3}',
    '<|python_tag|>{"name": "add", "parameters": {"a": 2, "b": 3}}<|eom_id|>',
    "<|python_tag|>add.call(a=2, b=3)",
    '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 2, "b": 3}}]</s>',
    '[TOOL_CALLS]add[ARGS]{"a": 2, "b": 3}',
    '<|tool_call|>[{"name": "add", "arguments": {"a": 2, "b": 3}}]<|/tool_call|>',
    'functools[{"name": "add", "arguments": {"a": 2, "b": 3}}]',
    '<invoke name="add"><parameter name="a">2</parameter><parameter name="b">3</parameter></invoke>',
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 2, "b": 3}\n```<｜tool▁call▁end｜>',
    '>>>add\n{"a": 2, "b": 3}',
    'I will add.\n```json\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n```\nThat gives the sum.',
    '```json\n{"tool": "add", "args": {"a": 2, "b": 3}}\n```',
    "```tool_code\nprint(add(a=2, b=3))\n```",
    "```python\nresult = add(2, 3)\n```",
    '{"name": "add", "parameters": {"a": 2, "b": 3}}',
    '{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}',
    '{"tool_calls": [{"id": "1", "function": {"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": 3}"}}]}',
    '{"action": "add", "action_input": {"a": 2, "b": 3}}',
    '{"add": {"a": 2, "b": 3}}',
    "{'name': 'add', 'arguments': {'a': 2, 'b': 3}}",
    '{"name": "add", "a": 2, "b": 3}',
    "add(2, 3)",
    "add(a=2, b=3)",
    "[add(a=2, b=3)]",
    "I need the sum.\nadd(2, b=3)",
    'Thought: a sum.\nAction: add\nAction Input: {"a": 2, "b": 3}\nObservation: 6\nThought: done\nFinal Answer: 6',
    '**Action:** `add`\n**Action Input:** ```json\n{"a": 2, "b": 3}\n```',
    "Action: add(2, 3)",
    "<think>Should I call add(9, 9)?</think>\nadd(2, 3)",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_calls_written_as_text_are_found_once_and_whole(text: str) -> None:
    mended = repair(text, TOOLS)
    call = one(mended)
    assert (call.name, call.arguments) == ("add", SUM)
    assert "text-call" in {rung for rung, _ in mended.rungs}
    assert "add" not in mended.text or "add." in mended.text


@pytest.mark.parametrize(
    "text",
    [
        "The sum is 5.",
        "You can call add(2, 3) to get it.",
        "add(2, 3)\nThis line would return 5.",
        "<think>add(2, 3)</think>The sum is 5.",
        "<think>Maybe <tool_call>{}</tool_call> add(2, 3)",
        '{"a": 2, "b": 3}',
        '{"name": "add"} is the function, in words',
        "```python\nfor i in range(3):\n    add(i, 3)\n```",
        "```python\nadd(len('ab'), 3)\n```",
        '{"name": "Ada", "age": 36}',
        "Final Answer: add two and three",
        "[1](http://x) add [2]",
        "def add(a, b): return a + b",
    ],
)
def test_words_code_and_data_are_no_calls(text: str) -> None:
    mended = repair(text, TOOLS)
    assert mended.calls == () and mended.problems == () and mended.rungs == ()


def test_several_calls_keep_their_order_and_a_bad_one_does_not_take_the_others_along() -> None:
    mended = repair('[add(a=2, b=3), lookup(order_id="x"), add(a=4, b=5)]', TOOLS)
    assert [call.arguments for call in mended.calls] == [SUM, {"a": 4, "b": 5}]
    assert [(problem.field, problem.value) for problem in mended.problems] == [("order_id", "x")]


def test_what_was_cut_off_is_asked_for_again_never_guessed() -> None:
    cut = Reply(calls=(ToolCall(name="lookup", raw='{"order_id": 17'),), stop_reason="length")
    (problem,) = repair(cut, TOOLS).problems
    assert problem.kind == "cut-off" and "order_id (an integer)" in retry_message(problem)
    whole = cut.model_copy(update={"stop_reason": "tool_calls"})
    assert one(repair(whole, TOOLS)).arguments == {"order_id": 17}
    text = Reply(text='<tool_call>{"name": "lookup", "arguments": {"order_id": 17', stop_reason="length")
    assert repair(text, TOOLS).problems[0].kind == "cut-off"
    assert repair(Reply(text="A long answer in wor", stop_reason="length"), TOOLS).problems == ()


@pytest.mark.parametrize(
    "broken", ['{"city": "Par', '{"city": "Par\\', "{'city': 'Par", '{"city": "Paris", "zip": "7500', "{'city': 'it's'}"]
)
def test_a_text_that_ends_within_a_word_is_unreadable(broken: str) -> None:
    with pytest.raises(Unreadable):
        parse(broken)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('{"a": 1, "b": {"c": [1, 2', {"a": 1, "b": {"c": [1, 2]}}),
        ('{"a": 1, "b":', {"a": 1}),
        ('{"a": 1,', {"a": 1}),
        ('{"a": }', {}),
        ('{"a": 1}{"a": 1}', {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ("{'a': True, 'b': None,}", {"a": True, "b": None}),
        ("{a: 1}", {"a": 1}),
        ('{"a": 1 "b": 2}', {"a": 1, "b": 2}),
        ('{"a": 1 // one\n}', {"a": 1}),
        ('{"a": "x\ny"}', {"a": "x\ny"}),
        ('Here: {"a": 1}. Done', {"a": 1}),
        ('{"a": 1}}', {"a": 1}),
        ('{"q": "it\'s {not} a [bracket"', {"q": "it's {not} a [bracket"}),
    ],
)
def test_broken_json(text: str, value: Any) -> None:
    assert parse(text).value == value


@pytest.mark.parametrize(
    "text", ["", "hello", "{", "[", '{"a": 1}{"a": 2}', "[" * 3000, "{'a': " * 3000, '{"a": ' * 3000, "\0", "{]}"]
)
def test_what_is_not_json_is_refused_or_empty(text: str) -> None:
    with contextlib.suppress(Unreadable):
        assert parse(text).value in ({}, [])


def test_every_prefix_and_every_dropped_character_of_a_call_is_right_or_sent_back() -> None:
    """None lost, none wrong: whatever is called carries the values that were written."""
    whole = '{"sku": "ab-7", "n": 25, "note": "it is, {so}: good", "tags": ["x", "y"]}'
    truth = json.loads(whole)
    properties = {"sku": {"type": "string"}, "n": INTEGER, "note": {"type": "string"}, "tags": SCHEMA["properties"]["tags"]}
    tool = ToolSpec(
        name="book", parameters={"type": "object", "properties": properties, "required": ["sku", "n", "note", "tags"]}
    )
    for end in range(len(whole)):
        call, problems, _ = repair_call(ToolCall(name="book", raw=whole[:end]), [tool], cut_off=True)
        assert problems or call.arguments == truth or call.arguments["tags"] == truth["tags"][: len(call.arguments["tags"])]
        assert problems or {k: v for k, v in call.arguments.items() if k != "tags"} == {
            k: v for k, v in truth.items() if k != "tags"
        }
        if problems:
            assert "book" in retry_message(problems)


def test_one_wrong_mark_anywhere_never_changes_a_value() -> None:
    """Each bracket, comma, colon and quote of the syntax dropped, doubled, or a quote written single: right, or asked again."""
    whole = '{"sku": "ab-7", "n": 25, "note": "it is good", "tags": ["x", "y"], "to": {"zip": "75001", "far": true}}'
    truth = json.loads(whole)
    text: dict[str, Any] = {"type": "string"}
    to = {"type": "object", "properties": {"zip": text, "far": {"type": "boolean"}}, "required": ["zip", "far"]}
    properties = {"sku": text, "n": INTEGER, "note": text, "tags": {"type": "array", "items": text}, "to": to}
    tool = ToolSpec(name="book", parameters={"type": "object", "properties": properties, "required": list(properties)})
    right = 0
    for at, mark in enumerate(whole):
        for written in ("", mark * 2, "'" if mark == '"' else "") if mark in '{}[],:"' else ():
            call, problems, _ = repair_call(ToolCall(name="book", raw=whole[:at] + written + whole[at + 1 :]), [tool])
            assert problems or call.arguments == truth, whole[:at] + written + whole[at + 1 :]
            right += not problems
    assert right > 30


def test_names_and_wrapping_that_can_only_mean_one_thing() -> None:
    for name in ("functions.add", "Add", "add()", "tools.add"):
        mended = repair(Reply(calls=(ToolCall(name=name, arguments=SUM),)), TOOLS)
        assert one(mended).name == "add" and mended.rungs[0][0] == "coerce"
    for wrapped in ({"arguments": SUM}, {"name": "add", "parameters": SUM}):
        assert one(repair(Reply(calls=(ToolCall(name="add", arguments=wrapped),)), TOOLS)).arguments == SUM
    assert one(repair(Reply(calls=(ToolCall(name="lookup", raw="17"),)), TOOLS)).arguments == {"order_id": 17}
    assert one(repair(Reply(calls=(ToolCall(name="lookup", raw="[17]"),)), TOOLS)).arguments == {"order_id": 17}
    nothing = ToolSpec(name="now", parameters={"type": "object", "properties": {}})
    assert one(repair(Reply(calls=(ToolCall(name="now", raw="null"),)), [nothing])).arguments == {}
    assert repair(Reply(calls=(ToolCall(name="add", raw="[1, 2, 3]"),)), TOOLS).problems[0].kind == "wrong-value"


def test_a_call_that_is_right_comes_back_as_it_is() -> None:
    call = ToolCall(id="c9", name="add", arguments=SUM)
    mended = repair(Reply(calls=(call,), text="so"), TOOLS)
    assert mended == Repaired(calls=(call,), text="so") and mended.calls[0] is call


def test_an_empty_answer_is_a_problem_and_an_error_is_not() -> None:
    assert "add, lookup" in retry_message(repair(Reply(), TOOLS).problems)
    assert repair(Reply(stop_reason="error", error="gone"), TOOLS).problems == ()


def test_the_third_call_without_progress() -> None:
    call, same = ToolCall(id="1", name="add", arguments=SUM), ToolCall(id="2", name="add", arguments={"b": 3, "a": 2})
    assert same_call(call) == same_call(same)
    assert not without_progress([], call)
    assert not without_progress([(call, "5")], same)
    assert without_progress([(call, "5"), (same, "5")], call)
    assert without_progress([(call, "5"), (ToolCall(name="lookup"), "x"), (same, "5")], call)
    assert not without_progress([(call, "40 %"), (same, "60 %")], call)  # it waits for something that moves
    assert without_progress([(call, "40 %"), (same, "60 %"), (call, "60 %")], call)


def test_answers_as_values() -> None:
    schema = Invoice.model_json_schema()
    mended = repair_value("<think>hm {</think>Here you are:\n```json\n{'number': '7', 'lines': {'sku': 'a'}}\n```", schema)
    assert mended.value == {"number": 7, "lines": [{"sku": "a"}]} and mended.problems == ()
    assert Invoice.model_validate(mended.value).number == 7
    assert [rung for rung, _ in mended.rungs] == ["json-repair", "coerce", "coerce"]
    assert repair_value("7", INTEGER).value == 7
    assert repair_value(" Paris\n", {"enum": ["paris"]}).value == "paris"
    (problem,) = repair_value("no idea", schema).problems
    assert "answer" in retry_message(problem) and "number (an integer)" in retry_message(problem)
    (missing,) = repair_value('{"lines": []}', schema, name="invoice").problems
    assert retry_message(missing) == "invoice: number is missing; expected an integer. Write invoice again with this put right."


def test_what_pydantic_refuses_becomes_a_problem_too() -> None:
    call = ToolCall(name="invoice", arguments={"number": 1, "lines": [{"sku": 3}]})
    with pytest.raises(ValidationError) as caught:
        Invoice.model_validate(call.arguments, strict=True)
    (problem,) = problems_of(call, caught.value)
    assert (problem.field, problem.value) == ("lines[0].sku", 3)
    assert "lines[0].sku is 3" in retry_message(problem)


def test_arguments_over_http_that_json_repair_would_guess_at() -> None:
    """The server's own stop word cut the value: it is asked for again, not called with half of it."""
    spec = ToolSpec(name="find", parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    with OpenAIServer(lambda body: called('{"city": "Par', "find")) as server:
        model = open_model(server.spec)
        (reply,) = answer(model, [Request(messages=(Message(role="user", content="?"),), tools=(spec,))])
        model.close()
    assert repair(reply, [spec]).calls == ()
