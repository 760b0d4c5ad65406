"""The OpenAI chat protocol as data: a Request to a JSON body, a JSON body to a Reply.

Does: messages, tools, sampling and constraints in; text, calls, log-probabilities, usage and cost out.
Does not: send anything.
"""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from agents.chat import Message, Reply, Request, StopReason, Timings, TokenLogprob, ToolCall, Usage
from agents.constrain import Constraint

Style = Literal["response_format", "structured_outputs", "guided", "none"]
STOPS: dict[str | None, StopReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    None: "stop",
}


class BadBody(Exception):
    """A 200 whose body is not a whole chat completion."""


def body_of(
    request: Request, style: Style, limit_name: str = "max_tokens", extra: dict[str, Any] | None = None
) -> tuple[dict[str, Any], bool]:
    """(JSON body without `model`, whether the constraint is in it)."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "messages": [_message(message) for message in request.messages],
        "temperature": sampling.temperature,
        limit_name: sampling.max_tokens,
    }
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logprobs or sampling.top_logprobs:
        body["logprobs"] = True
        if sampling.top_logprobs:
            body["top_logprobs"] = sampling.top_logprobs
    if request.tools:
        body["tools"] = [{"type": "function", "function": tool.model_dump()} for tool in request.tools]
    constraint = _constraint(request.constraint, style) if request.constraint is not None else {}
    return {**body, **constraint, **(extra or {})}, bool(constraint)


def _constraint(constraint: Constraint, style: Style) -> dict[str, Any]:
    """Fields that carry a constraint in this style of server; empty when it cannot."""
    kind = constraint.kind
    value = json.loads(constraint.source) if kind in ("choice", "json_schema") else constraint.source
    if style == "response_format":
        if kind != "json_schema":
            return {}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": value, "strict": True}}}
    name = {"choice": "choice", "regex": "regex", "json_schema": "json", "lark": "grammar"}[kind]
    if style == "structured_outputs":
        return {"structured_outputs": {name: value}}
    return {f"guided_{name}": value} if style == "guided" else {}


def _message(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.raw if call.raw is not None else json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for call in message.calls
        ]
    if message.call_id is not None:
        out["tool_call_id"] = message.call_id
    return out


def read_reply(
    raw: bytes,
    request: Request,
    name: str,
    times: tuple[float, float, float],
    prices: tuple[float | None, float | None] = (None, None),
) -> Reply:
    """The reply in a 200's body. `times`: request taken up, this attempt sent, answer there (seconds). Raises BadBody."""
    try:
        body = json.loads(raw)
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        calls = tuple(_call(call) for call in message.get("tool_calls") or ())
        logprobs = _logprobs(choice.get("logprobs"))
        usage = _usage(body.get("usage") or {}, prices)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadBody(f"{error!r}"[:120]) from None
    taken, sent, there = times
    timings = Timings(queue_ms=(sent - taken) * 1e3, decode_ms=(there - sent) * 1e3, total_ms=(there - taken) * 1e3)
    reason = choice.get("finish_reason")
    if reason not in STOPS:
        said = f"{name} ended its answer with {reason!r}; ask it differently"
        return Reply(id=request.id, text=text, usage=usage, timings=timings, stop_reason="error", model=name, error=said)
    return Reply(
        id=request.id,
        text=text,
        calls=calls,
        logprobs=logprobs,
        usage=usage,
        timings=timings,
        stop_reason="tool_calls" if calls else STOPS[reason],
        model=name,
    )


def failed(request: Request, name: str, sentence: str, started: float) -> Reply:
    """The reply to a request that failed for good."""
    timings = Timings(total_ms=(time.perf_counter() - started) * 1e3)
    return Reply(id=request.id, model=name, stop_reason="error", error=sentence, timings=timings)


def _call(call: dict[str, Any]) -> ToolCall:
    written = call["function"].get("arguments") or "{}"
    name, id = call["function"]["name"], call.get("id") or ""
    try:
        arguments = json.loads(written)
    except ValueError:
        return ToolCall(id=id, name=name, raw=written)
    return (
        ToolCall(id=id, name=name, arguments=arguments)
        if isinstance(arguments, dict)
        else ToolCall(id=id, name=name, raw=written)
    )


def _logprobs(found: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    out = []
    for entry in (found or {}).get("content") or ():
        id, token = _token(entry["token"])
        top = tuple((*_token(other["token"]), other["logprob"]) for other in entry.get("top_logprobs") or ())
        out.append(TokenLogprob(token=token, id=id, logprob=entry["logprob"], top=top))
    return tuple(out)


def _token(text: str) -> tuple[int | None, str]:
    """vLLM can name tokens by id (`token_id:123`); other servers give text."""
    if text.startswith("token_id:"):
        return int(text[9:]), ""
    return None, text


def _usage(found: dict[str, Any], prices: tuple[float | None, float | None]) -> Usage:
    asked, written = int(found.get("prompt_tokens") or 0), int(found.get("completion_tokens") or 0)
    reused = int((found.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    cost = found.get("cost")
    if prices != (None, None):
        cost = (asked * (prices[0] or 0.0) + written * (prices[1] or 0.0)) / 1e6
    return Usage(prompt_tokens=asked, completion_tokens=written, reused_tokens=reused, cost_usd=cost)
