"""Take tools from an MCP server (Model Context Protocol): its tools become a persona's, over stdio or HTTP.

Does: start the server as a subprocess, or reach it at a URL; list its tools; call them with a time limit; turn its errors, its
silence and its death into sentences that a model or a person can use. Several threads may call at once.
Does not: resources, prompts, sampling, or restarting a server that ended: what it knew is gone with it.

    with McpTools(["python", "-m", "weather_server"]) as weather:            # or McpTools(url="http://localhost:9000/mcp")
        desk = Persona("desk", model, "Answer.", tools=[weather])
        desk("Will it rain in Ulm?")

What a server says about its tools (descriptions, "read-only") is its own word: give `only` and `needs_approval` where that is not
enough. Needs the `mcp` package: pip install "penknife[agents]".
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agents.chat import ToolSpec
from agents.tools import PersonaError, Tool, ToolError

MAX_TOOLS = 500
"""Tools taken from one server; a persona wants far fewer."""
_NAME = re.compile(r"[^A-Za-z0-9_-]")


class McpTools:
    """The tools of one MCP server; a source of tools for personas. Starts on construction, ends with `close` or `with`."""

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        url: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        only: Collection[str] | None = None,
        prefix: str = "",
        needs_approval: bool | Collection[str] = False,
        timeout_s: float = 30.0,
        start_timeout_s: float = 30.0,
    ) -> None:
        """`command` starts a server on its standard input and output (`env` is added to a small environment: PATH, HOME, …; no
        other variable of this process is handed on); `url` reaches one that runs. `only` names the tools that are wanted,
        `needs_approval` those a person must allow (or True for all), `prefix` goes before every name.

        Raises PersonaError, one sentence, when the server cannot be started or reached in `start_timeout_s`, or a name of `only`
        or `needs_approval` is not one of its tools."""
        if (command is None) == (url is None):
            raise PersonaError("an MCP server is given either by its command or by its url; give one of them")
        if command is not None and (isinstance(command, str) or not command):
            raise PersonaError(f"command={command!r} must be a list: the program and its arguments")
        self.name = url if url is not None else " ".join(command or ())
        self.timeout_s = timeout_s
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in `close`
        self._server = (command, url, dict(env or {}), cwd)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self._client: Any = None
        self._stop: asyncio.Event | None = None
        self._ended = False
        self._thread.start()
        ready: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
        self._life = asyncio.run_coroutine_threadsafe(self._live(ready), self._loop)
        try:
            listed = ready.result(start_timeout_s)
        except concurrent.futures.TimeoutError:
            said = self._last_words()
            self.close()
            raise PersonaError(f"MCP server {self.name}: did not answer within {start_timeout_s:g} s{said}") from None
        except Exception as error:
            said = self._last_words()
            self.close()
            raise PersonaError(f"MCP server {self.name}: cannot be used ({_reason(error)}){said}") from None
        try:
            self._tools = self._taken(listed, only, prefix, needs_approval)
        except PersonaError:
            self.close()
            raise

    def tools(self) -> Sequence[Tool]:
        """The server's tools, as listed when it was started."""
        return self._tools

    def close(self) -> None:
        """End the server (its input is closed; it is killed when it does not go); twice is harmless."""
        loop, stop = self._loop, self._stop
        if loop.is_closed():
            return
        self._ended = True
        if stop is not None:
            loop.call_soon_threadsafe(stop.set)
        else:
            self._life.cancel()
        with contextlib.suppress(Exception, concurrent.futures.CancelledError):  # how it ended no longer matters to anybody
            self._life.result(10)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(10)
        if not self._thread.is_alive():
            loop.close()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.to_thread(self.close)

    async def _live(self, ready: concurrent.futures.Future[list[Any]]) -> None:
        """Hold the connection open from start to `close`, all in one task, as the client's scopes demand."""
        try:
            from mcp import Client, StdioServerParameters, stdio_client
        except ImportError as error:
            ready.set_exception(PersonaError(f"{error}; install it with: pip install 'penknife[agents]'"))
            return
        command, url, env, cwd = self._server
        try:
            if command is None:
                transport: Any = url
            else:
                parameters = StdioServerParameters(command=command[0], args=list(command[1:]), env=env, cwd=cwd)
                transport = stdio_client(parameters, errlog=self._said)
            async with Client(transport, read_timeout_seconds=self.timeout_s, cache=None) as client:
                listed = await _every_tool(client)
                self._client, self._stop = client, asyncio.Event()
                ready.set_result(listed)
                await self._stop.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error if isinstance(error, Exception) else RuntimeError("it was stopped"))

    def _taken(
        self, listed: list[Any], only: Collection[str] | None, prefix: str, needs_approval: bool | Collection[str]
    ) -> tuple[Tool, ...]:
        names = [tool.name for tool in listed]
        asked = needs_approval if not isinstance(needs_approval, bool) else ()
        for wanted in [*(only or ()), *asked]:
            if wanted not in names:
                raise PersonaError(f"MCP server {self.name}: has no tool {wanted!r}; its tools are {', '.join(names) or 'none'}")
        return tuple(
            self._tool(tool, prefix, needs_approval if isinstance(needs_approval, bool) else tool.name in asked)
            for tool in listed
            if only is None or tool.name in only
        )

    def _tool(self, listed: Any, prefix: str, approval: bool) -> Tool:
        """A tool that changes something, or does not say, is done at most once per step."""
        hints = listed.annotations
        schema = {"type": "object", "properties": {}, **listed.input_schema}
        spec = ToolSpec(name=_NAME.sub("_", prefix + listed.name)[:64], description=listed.description or "", parameters=schema)
        harmless = hints is not None and hints.read_only_hint is True
        return Tool.from_schema(spec, self._caller(listed.name), side_effects=not harmless, needs_approval=approval)

    def _caller(self, name: str) -> Callable[[dict[str, Any]], str]:
        def call(arguments: dict[str, Any]) -> str:
            return self._call(name, arguments)

        return call

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        """The text of a result. Raises ToolError with what the server said, or that it is silent or gone."""
        if self._ended or self._loop.is_closed():
            raise ToolError(f"the server of {name} was closed; it cannot be called any more")
        future = asyncio.run_coroutine_threadsafe(self._client.call_tool(name, arguments, self.timeout_s), self._loop)
        try:
            result = future.result(self.timeout_s + 5)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, TimeoutError):
            future.cancel()
            raise ToolError(f"{name} did not answer within {self.timeout_s:g} s") from None
        except Exception as error:
            raise ToolError(self._why(name, error)) from None
        text = _text(result)
        if result.is_error:
            raise ToolError(text or f"{name} failed without saying why")
        return text

    def _why(self, name: str, error: Exception) -> str:
        reason = _reason(error)
        if "timed out" in reason.lower() or isinstance(error, TimeoutError):
            return f"{name} did not answer within {self.timeout_s:g} s"
        if "closed" in reason.lower() or type(error).__module__.startswith("anyio"):
            return f"the server of {name} has ended and cannot be called any more{self._last_words()}"
        return f"{name} failed: {reason}"

    def _last_words(self) -> str:
        """The last line a subprocess wrote to its standard error."""
        if self._said.closed:
            return ""
        self._said.flush()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read()[-4000:].splitlines() if line.strip()]
        return f"; it last said: {lines[-1][:300]}" if lines else ""


async def _every_tool(client: Any) -> list[Any]:
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None or len(found) >= MAX_TOOLS:
            return found[:MAX_TOOLS]


def _text(result: Any) -> str:
    """What a model reads of a result: its texts; of pictures and the like only that they are there."""
    parts = []
    for block in result.content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and getattr(block.resource, "text", None) is not None:
            parts.append(block.resource.text)
        elif block.type == "resource_link":
            parts.append(f"({block.name}: {block.uri})")
        else:
            parts.append(f"({block.type}{', ' + block.mime_type if getattr(block, 'mime_type', None) else ''}, left out)")
    if not parts and result.structured_content is not None:
        from pydantic_core import to_json

        return to_json(result.structured_content).decode()
    return "\n".join(parts)


def _reason(error: BaseException) -> str:
    """One line; of a group of errors, its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError):
        return f"no such program: {error.filename}"
    return " ".join(str(error).split())[:300] or type(error).__name__
