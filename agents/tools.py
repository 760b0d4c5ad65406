"""Typed functions as tools: schema from hints and docstring, validated arguments, time limit, errors as messages.

Does: build a tool's JSON schema and validator once, call the function with validated arguments only (sync or async), turn what it
returns or raises into the text a model reads.
Does not: ask a model, ask a person (`needs_approval` is for the persona's loop) or remember results (`agents.events.memo`).

    @tool(side_effects=True, timeout_s=5)
    def refund(order_id: int, reason: str = "") -> str:
        '''Give the money of one order back.

        Args:
            order_id: number printed on the receipt
            reason: shown to the customer
        '''
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, Protocol, get_type_hints, overload, runtime_checkable

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import TypedDict

from agents.chat import ToolCall, ToolSpec

if TYPE_CHECKING:
    import asyncio

MAX_RESULT_CHARS = 8000
"""Longest text a tool gives back to a model, unless the tool says otherwise."""
Validate = Callable[[dict[str, Any]], dict[str, Any]]


class PersonaError(Exception):
    """A tool or persona cannot be made or asked as wanted: one sentence with the value, the choices and the next step."""


class ToolError(Exception):
    """Raised by a tool: its text goes to the model as the result, without a traceback. For what the model can mend itself."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call came to. `text` is what the model reads; `ok` False: it failed, and `text` says how."""

    text: str
    ok: bool = True
    value: Any = None
    """what the function returned, before it became text; None after a failure or when it was recorded earlier"""
    ms: float = 0.0
    traceback: str | None = None
    """of an exception that is not a ToolError: a bug"""
    cut: int = 0
    """characters left out of `text`"""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function a model may call. Made by `@tool`, `tool(function)`, or from a schema (`Tool.from_schema`)."""

    spec: ToolSpec
    fn: Callable[..., Any]
    validate: Validate
    """arguments as the model wrote them -> what `fn` is called with; raises ValidationError or ToolError"""
    side_effects: bool = False
    """its result is recorded before the step ends, so that a step done again does not do it twice"""
    needs_approval: bool = False
    """a person is asked before each call"""
    timeout_s: float | None = None
    max_result_chars: int = MAX_RESULT_CHARS
    is_async: bool = field(default=False)

    @property
    def name(self) -> str:
        return self.spec.name

    @classmethod
    def from_schema(
        cls,
        spec: ToolSpec,
        fn: Callable[[dict[str, Any]], Any],
        *,
        validate: Validate | None = None,
        **options: Any,
    ) -> Tool:
        """A tool whose schema is known already (MCP): `fn` takes the arguments as one dict. Raises PersonaError."""
        if spec.parameters.get("type", "object") != "object":
            raise PersonaError(f"tool {spec.name!r}: its parameters are {spec.parameters['type']!r}; they must be a JSON object")

        def call(**arguments: Any) -> Any:
            return fn(arguments)

        async def acall(**arguments: Any) -> Any:
            return await fn(arguments)

        is_async = inspect.iscoroutinefunction(fn)
        return cls(spec, acall if is_async else call, validate if validate is not None else dict, is_async=is_async, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, unchecked: a tool stays usable as what it was."""
        return self.fn(*args, **kwargs)

    def call(self, arguments: Mapping[str, Any], *, loop: asyncio.AbstractEventLoop | None = None) -> ToolResult:
        """Validate, run, and say what came of it; never raises an Exception of the tool's own.

        An async tool runs on `loop` when one is given (and this thread is not it), else on a loop of its own. A sync tool that
        is over its time limit is left behind in its thread: Python cannot stop it.
        """
        started = time.perf_counter()
        try:
            ready = self.validate(dict(arguments))
        except ValidationError as error:
            return ToolResult(argument_errors(self.name, error), False, ms=(time.perf_counter() - started) * 1e3)
        except ToolError as error:
            return ToolResult(str(error), False, ms=(time.perf_counter() - started) * 1e3)
        try:
            value = self._run(ready, loop)
            text = text_of(value)
        except _OverTime:
            said = f"{self.name} took longer than {self.timeout_s:g} s and was given up"
            return ToolResult(said, False, ms=(time.perf_counter() - started) * 1e3)
        except ToolError as error:
            return ToolResult(str(error) or f"{self.name} failed", False, ms=(time.perf_counter() - started) * 1e3)
        except Exception as error:
            said = f"{self.name} failed: {type(error).__name__}: {error}"[: self.max_result_chars]
            return ToolResult(said, False, ms=(time.perf_counter() - started) * 1e3, traceback=traceback.format_exc())
        cut = max(0, len(text) - self.max_result_chars)
        if cut:
            text = f"{text[: self.max_result_chars]}… ({cut} more characters left out)"
        return ToolResult(text, True, value, (time.perf_counter() - started) * 1e3, cut=cut)

    async def acall(self, arguments: Mapping[str, Any]) -> ToolResult:
        """`call` without holding up the event loop: async tools run on it, others in a thread."""
        import asyncio

        return await asyncio.to_thread(self.call, arguments, loop=asyncio.get_running_loop())

    def _run(self, arguments: dict[str, Any], loop: asyncio.AbstractEventLoop | None) -> Any:
        if self.is_async:
            import asyncio

            timed = _timed(self.fn(**arguments), self.timeout_s)
            here = asyncio._get_running_loop()
            if loop is not None and loop is not here and loop.is_running():
                return asyncio.run_coroutine_threadsafe(_with(timed, contextvars.copy_context()), loop).result()
            if here is None:
                return asyncio.run(timed)
            return _in_thread(lambda: asyncio.run(timed), None)
        if self.timeout_s is None:
            return self.fn(**arguments)
        return _in_thread(lambda: self.fn(**arguments), self.timeout_s)


@runtime_checkable
class ToolSource(Protocol):
    """Something that brings several tools along (an MCP server). A persona asks it once, when it is made."""

    def tools(self) -> Sequence[Tool]: ...


@overload
def tool(fn: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    side_effects: bool = False,
    needs_approval: bool = False,
    timeout_s: float | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(fn: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    """A tool from a function with type hints and a docstring, as decorator with or without options.

    Raises PersonaError, one sentence, for an argument without a hint, `*args`, `**kwargs`, a type without a JSON schema, or a
    time limit that is not positive.
    """
    if fn is None:
        return functools.partial(_made, name=name, **options)
    return _made(fn, name=name, **options)


def tools_of(given: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools from tools, functions and sources, in order. Raises PersonaError for two of one name or what is none of these."""
    found: list[Tool] = []
    for one in given:
        if isinstance(one, Tool):
            found.append(one)
        elif hasattr(one, "as_tool"):
            found.append(one.as_tool())
        elif isinstance(one, ToolSource):
            found.extend(one.tools())
        elif callable(one):
            found.append(tool(one))
        else:
            raise PersonaError(f"{one!r} is no tool: give functions, @tool functions or a source of tools")
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise PersonaError(f"two tools are called {name!r}; rename one with @tool(name=…)")
    return tuple(found)


def text_of(value: Any) -> str:
    """What a model reads of a returned value: texts as they are, None as "done", the rest as compact JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return "done"
    try:
        return to_json(value).decode()
    except PydanticSerializationError:
        return str(value)


def argument_errors(name: str, error: ValidationError) -> str:
    """Every wrong argument with what was given and what is wanted, for the model."""
    said = []
    for one in error.errors(include_url=False, include_context=False):
        where = ".".join(map(str, one["loc"])) or "arguments"
        if one["type"] == "missing":
            said.append(f"{where} is missing")
        elif one["type"] == "extra_forbidden":
            said.append(f"{where} is not an argument of {name}")
        else:
            said.append(f"{where} cannot be {one['input']!r:.80}: {one['msg'][:1].lower()}{one['msg'][1:]}")
    return f"{name} was not called: {'; '.join(said)}"


def call_of(name: str, arguments: Mapping[str, Any], id: str = "") -> ToolCall:
    """A ToolCall with these arguments."""
    return ToolCall(id=id, name=name, arguments=dict(arguments))


def _made(fn: Callable[..., Any], *, name: str | None = None, timeout_s: float | None = None, **options: Any) -> Tool:
    called = name if name is not None else getattr(fn, "__name__", "")
    if not callable(fn) or not called.isidentifier():
        raise PersonaError(f"{fn!r} cannot be a tool under the name {called!r}: give a named function, or @tool(name=…)")
    if timeout_s is not None and not timeout_s > 0:
        raise PersonaError(f"tool {called!r}: timeout_s={timeout_s!r} must be above 0")
    summary, told = _documented(fn)
    hints = _hints(fn, called)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise PersonaError(f"tool {called!r}: {str(parameter)!r} cannot be filled by name; give each argument its own name")
        if parameter.name not in hints:
            raise PersonaError(
                f"tool {called!r}: argument {parameter.name!r} has no type hint; write {parameter.name}: int, str or another type"
            )
        fields[parameter.name] = _field(parameter, hints[parameter.name], told.get(parameter.name))
    try:
        typed: Any = TypedDict
        made = typed(called, fields)
        made.__pydantic_config__ = ConfigDict(extra="forbid")
        adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(made)
        schema = adapter.json_schema()
    except PydanticUserError as error:
        reason = str(error).split("\n", 1)[0]
        raise PersonaError(f"tool {called!r}: a type of its arguments has no JSON schema ({reason}); use plain types") from None
    spec = ToolSpec(name=called, description=summary, parameters=untitled(schema))
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
    return Tool(spec, fn, adapter.validate_python, timeout_s=timeout_s, is_async=is_async, **options)


def _hints(fn: Callable[..., Any], called: str) -> dict[str, Any]:
    """Resolved type hints; names of the function that the tool is defined in count too."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals is globals():
        frame = frame.f_back
    inner = fn if inspect.isroutine(fn) else type(fn).__call__
    try:
        try:
            return get_type_hints(inner, include_extras=True)
        except NameError:
            return get_type_hints(inner, localns=dict(frame.f_locals), include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise PersonaError(f"tool {called!r}: its type hints cannot be read ({error}); import what they name") from None


def _field(parameter: inspect.Parameter, hint: Any, told: str | None) -> Any:
    """The TypedDict entry of one argument: a docstring's text where the hint brings none; a default is named in the schema."""
    notes: dict[str, Any] = {}
    if told:
        notes["description"] = told
    if parameter.default is not parameter.empty:
        try:
            notes["json_schema_extra"] = {"default": _plain(parameter.default)}
        except PydanticSerializationError:
            notes.pop("json_schema_extra", None)
    entry = Annotated[hint, Field(**notes)] if notes else hint
    return entry if parameter.default is parameter.empty else NotRequired[entry]


def _plain(value: Any) -> Any:
    import json

    return json.loads(to_json(value))


def untitled(schema: Any) -> Any:
    """A JSON schema without pydantic's titles and its own class docstrings, which only cost prompt tokens."""
    if isinstance(schema, list):
        return [untitled(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
            out[key] = {name: untitled(one) for name, one in value.items()}
        elif key in ("const", "enum", "default", "examples"):
            out[key] = value
        else:
            out[key] = untitled(value)
    return out


def _documented(fn: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """(what the function does, argument -> its text) from the docstring, in any of the usual styles."""
    text = inspect.getdoc(fn)
    if not text:
        return "", {}
    from docstring_parser import parse

    parsed = parse(text)
    parts = [part for part in (parsed.short_description, parsed.long_description) if part]
    told = {one.arg_name: " ".join(one.description.split()) for one in parsed.params if one.description}
    return "\n".join(parts), told


class _OverTime(Exception):
    """A tool did not end within its own time limit; a TimeoutError is one that the tool raised."""


async def _timed(made: Coroutine[Any, Any, Any], timeout_s: float | None) -> Any:
    import asyncio

    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await made
    except TimeoutError:
        if limit.expired():
            raise _OverTime from None
        raise


async def _with(timed: Coroutine[Any, Any, Any], context: contextvars.Context) -> Any:
    import asyncio

    return await asyncio.get_running_loop().create_task(timed, context=context)


def _in_thread(run: Callable[[], Any], timeout_s: float | None) -> Any:
    """`run()` in a thread that keeps this context. Raises _OverTime when it is not done in time."""
    context, done = contextvars.copy_context(), threading.Event()
    out: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            out.append(context.run(run))
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="tool", daemon=True).start()
    if not done.wait(timeout_s):
        raise _OverTime
    if failed:
        raise failed[0]
    return out[0]
