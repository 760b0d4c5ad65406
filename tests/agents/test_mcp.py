"""Tools of a real MCP server in a subprocess: called, timed, refused, and gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("mcp", reason="pip install 'penknife[agents]'")

from agents.mcp import McpTools
from agents.repair import repair_call
from agents.tools import PersonaError, Tool, ToolCall, tools_of

SERVER = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]


@pytest.fixture(scope="module")
def server() -> Iterator[McpTools]:
    with McpTools(SERVER, timeout_s=5) as tools:
        yield tools


def named(tools: McpTools, name: str) -> Tool:
    return next(one for one in tools_of([tools]) if one.name == name)


def test_its_tools_are_tools(server: McpTools) -> None:
    assert [one.name for one in server.tools()] == ["lookup", "book", "orders_fail_now", "slow", "die", "secret"]
    lookup = named(server, "lookup")
    assert lookup.spec.description == "Status of one order." and lookup.spec.parameters["required"] == ["order_id"]
    assert lookup.call({"order_id": 17}).text == "order 17 is on its way (en)"
    assert not lookup.side_effects and named(server, "book").side_effects
    booked = named(server, "book").call({"order": {"id": 3, "items": ["a", "b"]}})
    assert booked.ok and json.loads(booked.text)["items"] == 2


def test_weak_calls_are_mended_by_the_servers_schema(server: McpTools) -> None:
    book = named(server, "book")
    call, problems, _ = repair_call(ToolCall(name="book", raw="{'order': {'id': '4', 'items': 'a'},}"), [book.spec])
    assert problems == () and call.arguments == {"order": {"id": 4, "items": ["a"]}}
    assert json.loads(book.call(call.arguments).text)["booked"] == 4


def test_errors_are_messages(server: McpTools) -> None:
    failed = named(server, "orders_fail_now").call({})
    assert not failed.ok and "the printer is on fire" in failed.text and failed.traceback is None
    wrong = named(server, "lookup").call({"order_id": "many"})
    assert not wrong.ok and "order_id" in wrong.text


def test_the_servers_environment_is_not_ours_and_noise_on_its_output_does_no_harm(
    server: McpTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "classified")
    with McpTools([*SERVER, "noise"], env={"TOLD": "yes"}, only=["secret"]) as tools:
        assert [one.name for one in tools.tools()] == ["secret"]
        assert named(tools, "secret").call({"name": "MY_API_KEY"}).text == "unset"
        assert named(tools, "secret").call({"name": "TOLD"}).text == "yes"


def test_a_slow_tool_is_given_up_and_the_next_call_works() -> None:
    with McpTools(SERVER, timeout_s=0.5, prefix="shop_", needs_approval=["slow"]) as tools:
        slow = named(tools, "shop_slow")
        assert slow.needs_approval and not named(tools, "shop_lookup").needs_approval
        started = time.perf_counter()
        assert "did not answer within 0.5 s" in slow.call({"seconds": 1.2}).text
        assert time.perf_counter() - started < 3
        time.sleep(1)
        assert named(tools, "shop_lookup").call({"order_id": 1}).ok


def test_threads_share_one_server(server: McpTools) -> None:
    lookup, wrong = named(server, "lookup"), []

    def ask(n: int) -> None:
        for _ in range(10):
            if lookup.call({"order_id": n}).text != f"order {n} is on its way (en)":
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def test_a_server_that_dies_is_a_sentence_and_stays_dead() -> None:
    with McpTools(SERVER, timeout_s=5) as tools:
        for _ in range(2):
            gone = named(tools, "die").call({})
            assert not gone.ok and gone.traceback is None
            assert "has ended" in gone.text and "fatal: the server gives up" in gone.text
        assert "has ended" in named(tools, "lookup").call({"order_id": 1}).text
    assert "was closed" in named(tools, "lookup").call({"order_id": 1}).text
    tools.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/no/such/program"], "no such program|No such file"),
        ([sys.executable, "-c", "import sys; sys.exit('no licence for this server')"], "no licence for this server"),
        ([sys.executable, "-c", "import sys; sys.stdin.read()"], "did not answer within"),
        ([sys.executable, "-c", "print('hello')"], "cannot be used"),
        ("python server.py", "must be a list"),
        ([], "must be a list"),
        (None, "either by its command or by its url"),
    ],
)
def test_servers_that_cannot_be_used(command: list[str] | None, said: str) -> None:
    before = threading.active_count()
    with pytest.raises(PersonaError, match=said) as caught:
        McpTools(command, start_timeout_s=4)
    assert "\n" not in str(caught.value)
    assert threading.active_count() <= before + 1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(PersonaError, match="has no tool 'lokup'; its tools are lookup, book"):
        McpTools(SERVER, only=["lokup"])


def test_from_async_code_and_no_process_is_left() -> None:
    async def ask() -> str:
        async with McpTools(SERVER, timeout_s=5) as tools:
            return (await named(tools, "lookup").acall({"order_id": 9})).text

    before = children()
    assert asyncio.run(ask()) == "order 9 is on its way (en)"
    assert children() <= before


def children() -> set[int]:
    """Process ids of the MCP servers that this process has started."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("mcp_server" in part for part in child.cmdline()):
                found.add(child.pid)
    return found


def test_a_server_that_never_answers_is_quoted() -> None:
    program = "import sys, time; print('waiting for the licence', file=sys.stderr, flush=True); time.sleep(60)"
    with pytest.raises(PersonaError, match=r"did not answer within 2 s; it last said: waiting for the licence"):
        McpTools([sys.executable, "-c", program], start_timeout_s=2)
