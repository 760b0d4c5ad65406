"""What is served: a graph or a persona behind one face, from a request to an answer, with its events on the way.

Does: find `module:name`, decide which fields of a graph's state take the question and give the answer, run it, hand calls of the
caller's own tools back, report an interrupt with the thread that resumes it.
Does not: speak HTTP (`agents.serve.app`).
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_origin

from pydantic import BaseModel

from agents.chat import ModelError, ToolCall, ToolSpec
from agents.drive import afinish
from agents.events import Event, Scope, current
from agents.graph import AgentGraph
from agents.repair import same_call
from agents.route import GraphError, Runnable
from agents.serve.settings import ServeError, ServeSettings
from agents.serve.wire import Asked, Refused
from agents.threads import MISSING
from agents.tools import PersonaError, Tool

log = logging.getLogger("agents.serve")
INPUTS = ("question", "input", "text", "query", "prompt")
OUTPUTS = ("answer", "output", "reply", "response", "result")
HISTORIES = ("history", "messages")


@dataclass(frozen=True, slots=True)
class Answer:
    """`finish` is OpenAI's finish_reason; `more` goes into the response's own "penknife" object."""

    text: str = ""
    finish: str = "stop"
    calls: tuple[ToolCall, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


class Target(Protocol):
    """Something that answers requests."""

    name: str
    streams: frozenset[str] | None
    """nodes whose tokens are the answer; None: all"""

    async def answer(self, asked: Asked, cancel: threading.Event, sink: Callable[[Event], None]) -> Answer: ...

    def close(self) -> None: ...


def open_target(spec: str, settings: ServeSettings) -> Target:
    """The graph or persona of "module:name", checked. Raises ServeError, one sentence."""
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise ServeError(f"{spec!r} must be module:name, such as examples.shop:graph")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise ServeError(f"there is no module {module!r} to import from {here}; check the name and the directory") from None
    try:
        found: Any = loaded
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        names = [key for key, value in vars(loaded).items() if _servable(value)]
        raise ServeError(f"module {module!r} has no {name!r}; it has {', '.join(names) or 'no graph and no persona'}") from None
    return target_of(found, settings)


def target_of(served: Any, settings: ServeSettings) -> Target:
    """A graph, or anything that a graph could have as a node. Raises ServeError."""
    if isinstance(served, AgentGraph):
        return GraphTarget(served, settings)
    if _servable(served):
        for option in ("input", "output", "history", "store", "stream_node"):
            if getattr(settings, option) is not None:
                raise ServeError(
                    f"{option}={getattr(settings, option)!r} is for graphs; {served.name!r} is a persona, so leave it out"
                )
        return PersonaTarget(served, settings)
    raise ServeError(f"{served!r:.80} cannot be served; give an AgentGraph, a Persona or a cascade")


class GraphTarget:
    """A graph: one run for each request, or for each thread when there is a store."""

    def __init__(self, graph: AgentGraph, settings: ServeSettings) -> None:
        try:
            graph.check()
        except GraphError as error:
            raise ServeError(str(error)) from None
        self.graph, self.settings = graph, settings
        self.name = settings.name or graph.name
        fields = graph.state.model_fields
        texts = [name for name, info in fields.items() if info.annotation is str and info.is_required()]
        self.input = _chosen(settings.input, INPUTS, fields, texts[0] if len(texts) == 1 else None, "input")
        self.output = _chosen(settings.output, OUTPUTS, fields, None, "output")
        lists = {name for name, info in fields.items() if _is_list(info.annotation)}
        self.history = _chosen(
            settings.history, HISTORIES, {name: fields[name] for name in fields if name in lists}, "", "history"
        )
        required = [name for name, info in fields.items() if info.is_required() and name not in (self.input, self.history)]
        if required:
            raise ServeError(
                f"field {required[0]!r} of {graph.state.__name__} has no default, but only {self.input!r} is filled; give it one"
            )
        node = settings.stream_node
        if node is not None and node not in graph._nodes:
            raise ServeError(f"stream_node={node!r} is no node of {graph.name!r}; its nodes are {', '.join(graph._nodes)}")
        self.streams: frozenset[str] | None = frozenset([node] if node is not None else [])

    async def answer(self, asked: Asked, cancel: threading.Event, sink: Callable[[Event], None]) -> Answer:
        """Run to an answer or an interrupt. Raises Refused."""
        if asked.tools:
            raise Refused(400, f"{self.name!r} is a graph and uses its own tools; leave tools out", param="tools")
        if asked.thread is not None and self.settings.store is None:
            raise Refused(400, "this server keeps no threads; it was started without --store", param="thread")
        thread = asked.thread or (uuid.uuid4().hex if self.settings.store is not None else None)
        state = None if asked.resume else self._state(asked)
        value = asked.resume[0] if asked.resume else MISSING
        try:
            loop = self.graph._begin(state, thread, self.settings.store, self.settings.max_steps, value, cancel)
        except GraphError as error:
            log.warning("thread %r refused: %s", thread, error)  # the sentence may name other people's threads
            sentence = (
                f"thread {thread!r} cannot go on like this: it is unknown, busy, has ended, or waits for an answer (resume)"
            )
            raise Refused(409, sentence if asked.thread is not None else "the question does not fit the graph's state") from None
        loop.listener = sink
        run = await afinish(loop, quiet=True)
        more: dict[str, Any] = {"reason": run.reason, **({"thread": thread} if thread is not None else {})}
        if self.history is None and asked.history:
            more["ignored_turns"] = len(asked.history)
        if run.interrupted is not None:
            if thread is None:
                raise Refused(500, "this graph asks a person on its way; the server must be started with --store to be resumed")
            pause = run.interrupted
            said = pause.prompt if pause.value is None else f"{pause.prompt}\n{_text(pause.value)}"
            return Answer(said, "stop", more={**more, "prompt": pause.prompt, "value": _plain(pause.value)})
        if run.reason == "end":
            value = getattr(run.state, self.output)
            if value is None or value == []:
                raise Refused(500, f"the graph ended without an answer in {self.output!r}")
            return Answer(_text(value[-1] if isinstance(value, list) else value), more=more)
        if run.reason == "max_steps":
            raise Refused(500, f"the graph was stopped after {self.settings.max_steps} steps without an answer")
        if run.reason == "cancelled":
            raise Refused(504, "the request was given up before there was an answer")
        raise RuntimeError(run.detail or "the graph failed")

    def _state(self, asked: Asked) -> dict[str, Any]:
        state: dict[str, Any] = {self.input: asked.text}
        if self.history is not None and asked.history:
            state[self.history] = [turn.model_dump(exclude_defaults=True) for turn in asked.history]
        return state

    def close(self) -> None:
        """Close the store."""
        self.graph.close()


class PersonaTarget:
    """A persona or a cascade: a question and the turns before it."""

    def __init__(self, persona: Any, settings: ServeSettings) -> None:
        self.persona, self.settings = persona, settings
        self.name: str = settings.name or persona.name
        self.streams: frozenset[str] | None = None
        needy = [tool.name for tool in getattr(persona, "tools", ()) if tool.needs_approval]
        if needy:
            raise ServeError(
                f"tool {needy[0]!r} of {persona.name!r} needs a person's approval; serve a graph with --store instead"
            )

    async def answer(self, asked: Asked, cancel: threading.Event, sink: Callable[[Event], None]) -> Answer:
        """One call. Raises Refused, PersonaError or ModelError."""
        if asked.thread is not None:
            raise Refused(
                400, f"{self.name!r} is a persona and keeps no threads; send the earlier messages again", param="thread"
            )
        persona = self._with(asked.tools, asked.results) if asked.tools else self.persona
        deadline = time.monotonic() + self.settings.timeout_s
        token = current.set(Scope(sink, time.perf_counter(), node=self.name, cancelled=cancel.is_set, deadline=deadline))
        try:
            result = await persona.arun(asked.text, history=list(asked.history))
        except HandedBack as back:
            return Answer(finish="tool_calls", calls=(back.call,))
        finally:
            current.reset(token)
        finish = "length" if getattr(result, "stopped", None) in ("length", "over-budget") else "stop"
        return Answer(str(result), finish)

    def _with(self, specs: Sequence[ToolSpec], results: Sequence[tuple[ToolCall, str]]) -> Any:
        """The persona with the caller's tools beside its own."""
        if not hasattr(self.persona, "replaced"):
            raise Refused(400, f"{self.name!r} takes no tools of the caller's; leave them out", param="tools")
        known = {same_call(call): text for call, text in results}
        try:
            return self.persona.replaced(tools=(*self.persona.tools, *(_handed_back(spec, known) for spec in specs)))
        except PersonaError as error:
            raise Refused(400, str(error), param="tools") from None

    def close(self) -> None:
        """Close the model."""
        model = getattr(self.persona, "model", None)
        if model is not None:
            model.close()


class HandedBack(BaseException):
    """The model called a tool of the caller's: the call goes to the caller. No Exception: nothing has failed."""

    def __init__(self, call: ToolCall) -> None:
        super().__init__(call.name)
        self.call = call


def _handed_back(spec: ToolSpec, known: dict[str, str]) -> Tool:
    def run(arguments: dict[str, Any]) -> str:
        call = ToolCall(id=f"call_{uuid.uuid4().hex[:20]}", name=spec.name, arguments=arguments)
        result = known.get(same_call(call))
        if result is None:
            raise HandedBack(call)
        return result

    return Tool.from_schema(spec, run)


def errors() -> tuple[type[Exception], ...]:
    """Exceptions whose sentence a caller may read."""
    return (PersonaError, ModelError)


def _servable(value: Any) -> bool:
    return isinstance(value, AgentGraph) or (
        isinstance(value, Runnable) and hasattr(value, "arun") and not isinstance(value, type)
    )


def _chosen(given: str | None, usual: Sequence[str], fields: Any, otherwise: str | None, what: str) -> Any:
    """The field that is given, the first of the usual ones there is, or `otherwise` ("" for none). Raises ServeError."""
    if given is not None:
        if given not in fields:
            raise ServeError(f"{what}={given!r} is no fitting field of the state; choose from {', '.join(fields) or 'none'}")
        return given
    found = next((name for name in usual if name in fields), otherwise)
    if found is None:
        raise ServeError(f"which field of the state is the {what}? give --{what} one of {', '.join(fields)}")
    return found or None


def _is_list(annotation: Any) -> bool:
    return annotation is list or get_origin(annotation) is list


def _plain(value: Any) -> Any:
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, serialize_unknown=True)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(_plain(value), ensure_ascii=False)
