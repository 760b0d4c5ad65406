"""The OpenAI chat protocol from the server's side: a request's JSON checked and read, answers, chunks and errors written.

Does: say what of a request is not honoured (`Asked.ignored`), so that the caller hears of it; refuse what would change the
answer's meaning. Does not: send, or run anything.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from agents.chat import Message, ToolCall, ToolSpec

_HONOURED = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "n",
    "thread",
    "resume",
    "metadata",
    "response_format",
}
_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


class Refused(Exception):
    """An answer with an HTTP status and OpenAI's error JSON; the sentence is for the caller."""

    def __init__(
        self, status: int, sentence: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code, self.retry_after_s = status, param, code, retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat completion request as the served thing sees it. `resume` is a one-element tuple with the answer to an interrupt."""

    text: str
    history: tuple[Message, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    results: tuple[tuple[ToolCall, str], ...] = ()
    """calls handed back to the caller earlier, with what came of them"""
    stream: bool = False
    include_usage: bool = False
    thread: str | None = None
    resume: tuple[Any, ...] = ()
    ignored: tuple[str, ...] = ()


def read_request(raw: bytes, served: str) -> Asked:
    """The request in a body. Raises Refused with a sentence about the field that is wrong."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    if b"\\ud" in raw.lower():  # JSON can spell half a character, which no text can hold
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Refused(400, "the body holds half a character (a lone surrogate); send whole ones") from None
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(400, "stream_options must be an object", param="stream_options")
    if body.get("model") not in (None, served):
        raise Refused(
            404,
            f"there is no model {str(body['model'])[:80]!r}; this server serves {served!r}",
            param="model",
            code="model_not_found",
        )
    if body.get("n") not in (None, 1):
        raise Refused(400, "only n=1 is answered", param="n")
    if (body.get("response_format") or {"type": "text"}) != {"type": "text"}:
        raise Refused(
            400, "response_format is decided by what is served, not by the caller; leave it out", param="response_format"
        )
    if body.get("tool_choice") not in (None, "auto", "none"):
        raise Refused(400, "tool_choice must be 'auto' or 'none'", param="tool_choice")
    metadata = body.get("metadata") or {}
    thread = body.get("thread") or (metadata.get("thread") if isinstance(metadata, dict) else None)
    if thread is not None and not (isinstance(thread, str) and 0 < len(thread) <= 200):
        raise Refused(400, "thread must be a text of at most 200 characters", param="thread")
    resume = (body["resume"],) if "resume" in body else ()
    if resume and thread is None:
        raise Refused(400, "resume needs the thread that waits", param="thread")
    turns, ignored = _turns(body.get("messages"), resume)
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
    if last < 0 and not resume:
        raise Refused(400, "messages holds no user message to answer", param="messages")
    after = turns[last + 1 :]
    if any(turn.role == "assistant" and not turn.calls for turn in after):
        raise Refused(400, "the last message must be the user's, or the result of a tool", param="messages")
    tools = () if body.get("tool_choice") == "none" else _tools(body.get("tools"))
    ignored += sorted(key for key, value in body.items() if key not in _HONOURED and value is not None)
    return Asked(
        text=turns[last].content if last >= 0 else "",
        history=tuple(turns[: max(last, 0)]),
        tools=tools,
        results=_results(after),
        stream=body.get("stream") is True,
        include_usage=bool(options.get("include_usage")),
        thread=thread,
        resume=resume,
        ignored=tuple(ignored),
    )


def _turns(messages: Any, resume: tuple[Any, ...]) -> tuple[list[Message], list[str]]:
    if not isinstance(messages, list) or (not messages and not resume):
        raise Refused(400, "messages must be a list of at least one message", param="messages")
    turns: list[Message] = []
    ignored: list[str] = []
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message["role"] not in _ROLES:
            raise Refused(400, f"{where} needs a role: {', '.join(sorted(_ROLES))}", param=where)
        role = message["role"]
        if role in ("system", "developer"):
            if "system messages" not in ignored:
                ignored.append("system messages")
            continue
        if role == "function":
            raise Refused(400, f"{where}: write results of tools as role 'tool' with their tool_call_id", param=where)
        asked, answered = message.get("tool_calls") or [], message.get("tool_call_id")
        if not isinstance(asked, list) or not isinstance(answered, str | None):
            raise Refused(400, f"{where}: tool_calls must be a list, and tool_call_id a text", param=where)
        calls = tuple(_call(call, where) for call in asked) if role == "assistant" else ()
        turns.append(Message(role=role, content=_content(message.get("content"), where), calls=calls, call_id=answered))
    return turns, ignored


def _content(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Refused(400, f"{where}: only text is read, no pictures or sound", param=where)
        texts.append(part["text"])
    return "".join(texts)


def _call(call: Any, where: str) -> ToolCall:
    try:
        name, written = call["function"]["name"], call["function"].get("arguments") or "{}"
        arguments = json.loads(written)
        return ToolCall(id=call.get("id") or "", name=name, arguments=arguments)
    except (TypeError, KeyError, ValueError, AttributeError):
        raise Refused(400, f"{where}: a tool call needs a function with a name and arguments in JSON", param=where) from None


def _tools(tools: Any) -> tuple[ToolSpec, ...]:
    if tools is None:
        return ()
    out = []
    for at, tool in enumerate(tools if isinstance(tools, list) else [tools]):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(400, f"tools[{at}] needs a function with a name", param="tools")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
            raise Refused(400, f"tools[{at}]: parameters must be a JSON schema of type object", param="tools")
        out.append(ToolSpec(name=function["name"], description=str(function.get("description") or ""), parameters=parameters))
    return tuple(out)


def _results(after: list[Message]) -> tuple[tuple[ToolCall, str], ...]:
    calls = {call.id: call for turn in after for call in turn.calls}
    out = []
    for turn in after:
        if turn.role == "tool":
            if turn.call_id not in calls:
                raise Refused(400, f"tool_call_id {turn.call_id!r} answers no tool call of the last turn", param="messages")
            out.append((calls[turn.call_id], turn.content))
    return tuple(out)


@dataclass(slots=True)
class Envelope:
    """What every piece of one answer repeats."""

    id: str
    model: str

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.model}

    def whole(
        self, text: str, finish: str, usage: dict[str, int], calls: list[dict[str, Any]], more: dict[str, Any]
    ) -> dict[str, Any]:
        """A chat.completion."""
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return {**self._base("chat.completion"), "choices": [choice], "usage": usage, **({"penknife": more} if more else {})}

    def chunk(self, delta: dict[str, Any], finish: str | None = None, more: dict[str, Any] | None = None) -> dict[str, Any]:
        """A chat.completion.chunk."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._base("chat.completion.chunk"), "choices": [choice], **({"penknife": more} if more else {})}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk that only counts tokens."""
        return {**self._base("chat.completion.chunk"), "choices": [], "usage": usage}


def written_call(call: ToolCall, at: int = 0) -> dict[str, Any]:
    """A tool call as the protocol writes it."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"index": at, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
