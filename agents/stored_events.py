"""What a store keeps of a step's events: enough to read what happened and to harvest from, in a few hundred bytes.

Does: leave out defaults, the turns of a prompt before its last one (its hash stays), log-probabilities of text that no grammar
held, and what a reply only repeats; round milliseconds to microseconds; compress; read all of this back as events.
Does not: shorten a trace: `run.trace` and the JSON Lines it saves have every event whole, and are what a replay is made from.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

from agents.chat import Reply
from agents.events import Event, ModelCalled, adapter_of, event_of, from_json

_USUAL = (
    b'{"kind":"warned","kind":"escalated","reason":"unsure","kind":"repaired","rung":"kind":"tool_called","kind":"tool_returned",'
    b'"call_id":"call-1","name":"result":"ms":"call":{"id":"call-1","arguments":{"top":[[0.0,"logprobs":"reply":{"text":"'
    b'"},"messages":[{"role":"user","content":""}],"constraint_kind":"json_schema","card_sha256":"model_sha256":"sampling":{'
    b'"logprobs":true,"top_logprobs":"max_tokens":"stop_reason":"length","confidence":0.9,"prompt_sha256":"timings":{"queue_ms":0.0'
    b',"prefill_ms":1.0,"decode_ms":10.0,"total_ms":11.0},"usage":{"prompt_tokens":1,"completion_tokens":2,"reused_tokens":3},'
    b'"adapters":[{"path":"{"kind":"model_called","at_ms":1.0,"step":1,"node":"thread":"persona":"model":"'
)
"""Text that most steps contain, likeliest last: zlib refers to it instead of storing it. Part of the format of schema 2."""
_REPEATED = ("usage", "timings", "stop_reason", "model", "truncated_prompt_tokens")
"""Fields of a reply that its event has too."""
_LOGPROB = ("token", "id", "logprob", "top")


def pack(events: Iterable[Event]) -> bytes | None:
    """The events as one value of a store; None for none."""
    lines = [json.dumps(_lean(event), ensure_ascii=False, separators=(",", ":")) for event in events]
    if not lines:
        return None
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -12, 5, zdict=_USUAL)  # 32 KB of memory instead of 256
    return squeeze.compress("\n".join(lines).encode("utf-8", "surrogatepass")) + squeeze.flush()


def unpack(kept: bytes | str | None) -> list[Event]:
    """The events of a store's value; those of schema 1 are plain lines. Raises ValueError for a damaged value."""
    if kept is None:
        return []
    if isinstance(kept, str):
        return [from_json(line) for line in kept.splitlines()]
    try:
        text = zlib.decompressobj(-12, zdict=_USUAL).decompress(kept).decode("utf-8", "surrogatepass")
    except (zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"the events of a step cannot be read: {error}") from None
    return [event_of(_whole(json.loads(line))) for line in text.split("\n")]


def _lean(event: Event) -> dict[str, Any]:
    body: dict[str, Any] = adapter_of(event.kind).dump_python(
        event, mode="json", exclude_defaults=True, warnings=False, fallback=repr
    )
    for place in (body, body.get("timings", {})):
        for name, value in place.items():
            if isinstance(value, float) and (name == "ms" or name.endswith("_ms")):
                place[name] = round(value, 3)
    if isinstance(event, ModelCalled):
        body["messages"] = body.get("messages", [])[-1:]
        if event.reply is not None:
            body["reply"] = _lean_reply(event, event.reply, body["reply"])
    return {"kind": event.kind, **body}


def _lean_reply(event: ModelCalled, reply: Reply, dumped: dict[str, Any]) -> dict[str, Any]:
    left = {name: value for name, value in dumped.items() if name not in (*_REPEATED, "logprobs")}
    if event.constraint_kind is not None and reply.logprobs:
        left["logprobs"] = [[one.get(name) for name in _LOGPROB] for one in dumped["logprobs"]]
    differ = {name for name in _REPEATED if getattr(reply, name) != getattr(event, name)}
    return {**left, **reply.model_dump(mode="json", include=differ)} if differ else left


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    reply = body.get("reply")
    if reply is not None:
        for name in _REPEATED:
            if name in body:
                reply.setdefault(name, body[name])
        if "logprobs" in reply:
            reply["logprobs"] = [
                {name: value for name, value in zip(_LOGPROB, row) if value is not None} for row in reply["logprobs"]
            ]
    return body
