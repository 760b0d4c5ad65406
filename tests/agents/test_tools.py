"""Tools: schemas against pydantic's own, validated arguments, errors as messages, time limits, async."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import date
from enum import Enum

import pytest
from pydantic import BaseModel, TypeAdapter

from agents.chat import ToolSpec
from agents.tools import PersonaError, Tool, ToolError, ToolResult, text_of, tool, tools_of


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


class Address(BaseModel):
    street: str
    zip: str | None = None


def order(
    item: str, count: int = 1, size: Size = Size.SMALL, to: Address | None = None, when: date | None = None, schema: str = ""
) -> str:
    """Order something.

    It is sent the same day.

    Args:
        item: what to order
        count: how many of it,
            at most ten
    """
    return f"{count} x {item} ({size.value}) to {to.street if to else '-'} on {when}"


def test_the_schema_says_what_pydantic_says_of_the_same_function_and_what_the_docstring_says() -> None:
    made = tool(order).spec
    own = TypeAdapter(order).json_schema()
    assert made.description == "Order something.\nIt is sent the same day."
    assert set(made.parameters["properties"]) == set(own["properties"])
    assert made.parameters["required"] == own["required"] == ["item"]
    assert made.parameters["additionalProperties"] is False
    assert made.parameters["properties"]["count"] == {
        "type": "integer",
        "default": 1,
        "description": "how many of it, at most ten",
    }
    assert made.parameters["properties"]["size"]["default"] == "s"
    assert "title" not in str(made.parameters)


@pytest.mark.parametrize(
    "text",
    [
        "Do it.\n\n:param n: how often\n",
        "Do it.\n\nParameters\n----------\nn : int\n    how often\n",
        "Do it.\n\nArgs:\n    n (int): how often\n",
    ],
)
def test_every_usual_docstring_style_gives_the_argument_its_text(text: str) -> None:
    def act(n: int) -> None: ...

    act.__doc__ = text
    assert tool(act).spec.parameters["properties"]["n"]["description"] == "how often"


def test_arguments_arrive_as_the_types_the_hints_promise() -> None:
    made = tool(order)
    said = made.call({"item": "lamp", "count": "2", "size": "l", "to": {"street": "Elm"}, "when": "2024-05-01"})
    assert said.ok and said.text == "2 x lamp (l) to Elm on 2024-05-01"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["item is missing"]),
        ({"item": "x", "count": "many"}, ["count cannot be 'many'", "integer"]),
        ({"item": "x", "colour": "red"}, ["colour is not an argument of order"]),
        ({"item": "x", "to": {"zip": "1"}}, ["to.street is missing"]),
    ],
)
def test_a_wrong_argument_never_reaches_the_function_and_is_named(arguments: dict[str, object], words: list[str]) -> None:
    ran: list[object] = []

    def watched(item: str, count: int = 1, to: Address | None = None) -> str:
        ran.append(item)
        return ""

    said = (
        tool(
            watched,
        ).call(arguments)
        if "colour" not in arguments
        else tool(order).call(arguments)
    )
    assert not said.ok and not ran
    assert all(word in said.text for word in words)


def test_a_user_error_is_a_message_and_a_bug_keeps_its_traceback() -> None:
    @tool
    def divide(a: int, b: int) -> float:
        if b == 0:
            raise ToolError("b must not be 0")
        return [a / b][b]

    expected = divide.call({"a": 1, "b": 0})
    bug = divide.call({"a": 1, "b": 2})
    assert (expected.ok, expected.text, expected.traceback) == (False, "b must not be 0", None)
    assert not bug.ok and bug.text.startswith("divide failed: IndexError")
    assert bug.traceback is not None and "return [a / b][b]" in bug.traceback


def test_long_results_are_cut_and_counted() -> None:
    @tool(max_result_chars=10)
    def long() -> str:
        return "x" * 25

    said = long.call({})
    assert said.cut == 15 and said.text.startswith("x" * 10 + "…") and "15 more" in said.text


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_tool_over_its_time_is_given_up(asynchronous: bool) -> None:
    if asynchronous:

        async def slow() -> str:
            await asyncio.sleep(5)
            return "late"
    else:

        def slow() -> str:  # type: ignore[misc]
            time.sleep(0.5)
            return "late"

    started = time.perf_counter()
    said = tool(timeout_s=0.05)(slow).call({})
    assert not said.ok and "longer than 0.05 s" in said.text
    assert time.perf_counter() - started < 0.4


def test_async_tools_run_on_the_callers_loop_and_sync_ones_do_not_block_it() -> None:
    where: list[int] = []

    @tool
    async def here() -> str:
        where.append(threading.get_ident())
        await asyncio.sleep(0)
        return "a"

    @tool
    def blocking() -> str:
        where.append(threading.get_ident())
        return "b"

    async def both() -> list[str]:
        return [(await here.acall({})).text, (await blocking.acall({})).text]

    assert asyncio.run(both()) == ["a", "b"]
    assert where[0] == threading.get_ident() != where[1]
    assert here.call({}).text == "a"


@pytest.mark.parametrize(
    ("value", "text"),
    [("as is", "as is"), (None, "done"), ({"a": [1, 2]}, '{"a":[1,2]}'), (Address(street="x"), '{"street":"x","zip":null}')],
)
def test_returned_values_become_text(value: object, text: str) -> None:
    assert text_of(value) == text


def unhinted(order_id):  # type: ignore[no-untyped-def]
    return order_id


def starred(*numbers: int) -> int:
    return sum(numbers)


def opaque(lock: threading.Lock) -> None: ...


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: tool(unhinted), ["'unhinted'", "'order_id'", "type hint"]),
        (lambda: tool(starred), ["'starred'", "*numbers", "own name"]),
        (lambda: tool(opaque), ["'opaque'", "JSON schema"]),
        (lambda: tool(lambda x: x), ["<lambda>", "@tool(name"]),
        (lambda: tool(timeout_s=0)(order), ["timeout_s=0"]),
        (lambda: tools_of([order, tool(order)]), ["two tools", "'order'"]),
        (lambda: tools_of([3]), ["3", "no tool"]),
        (lambda: Tool.from_schema(ToolSpec(name="m", parameters={"type": "array"}), print), ["'m'", "'array'", "object"]),
    ],
)
def test_a_bad_tool_is_one_sentence(given: object, words: list[str]) -> None:
    with pytest.raises(PersonaError) as caught:
        given()  # type: ignore[operator]
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words)


def test_a_tool_stays_a_function() -> None:
    made = tool(order)
    assert made("lamp", count=3).startswith("3 x lamp")


def test_a_time_out_of_the_tools_own_is_a_failure_with_its_traceback() -> None:
    @tool(timeout_s=5)
    def slow(x: int) -> str:
        """Ask a database."""
        raise TimeoutError("the database sleeps")

    @tool(timeout_s=5)
    async def aslow(x: int) -> str:
        """Ask a database."""
        raise TimeoutError("the database sleeps")

    for one in (slow, aslow):
        result = one.call({"x": 1})
        assert not result.ok and "the database sleeps" in result.text and "TimeoutError" in (result.traceback or "")


def test_an_async_tool_called_on_the_loop_it_is_given_does_not_wait_for_itself() -> None:
    @tool
    async def near(x: int) -> int:
        """Add one."""
        return x + 1

    async def ask() -> ToolResult:
        return near.call({"x": 1}, loop=asyncio.get_running_loop())

    done: list[ToolResult] = []
    worker = threading.Thread(target=lambda: done.append(asyncio.run(ask())), daemon=True)
    worker.start()
    worker.join(5)
    assert [one.text for one in done] == ["2"]
