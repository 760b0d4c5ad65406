"""A local server speaking the OpenAI chat protocol that fails on purpose.

Does: answer `POST /v1/chat/completions` from a function, count calls per prompt, inject faults, stop in mid-run.
Does not: run a model, or stream. Alone: `python tests/openai_server.py --latency-ms 20` prints its address as the first line;
`GET /counts` shows what it was asked.

    with OpenAIServer(lambda body: "42", faults=Faults(rate_limit=0.2, truncated=0.1)) as server:
        model = open_model(server.spec)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Fault = Literal["rate_limit", "server_error", "hang", "truncated", "drop", "bad_request"]
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
Answer = Callable[[dict[str, Any]], "str | dict[str, Any]"]


@dataclass(frozen=True)
class Faults:
    """What goes wrong. Shares are probabilities per call (seeded); `script` names the faults of a prompt in turn."""

    rate_limit: float = 0.0
    server_error: float = 0.0
    hang: float = 0.0
    truncated: float = 0.0
    drop: float = 0.0
    bad_request: float = 0.0
    script: tuple[Fault | None, ...] = ()
    """for every prompt: fault of its 1st call, 2nd call, …; None is a good answer; beyond the script the shares decide"""
    stop_after: int | None = None
    """refuse connections after this many good answers, until `resume()`"""
    retry_after_s: float = 0.02
    """what 429 says in Retry-After"""
    hang_s: float = 3600.0
    """how long a hanging call stays silent"""
    seed: int = 0

    def choose(self, dice: random.Random, attempt: int) -> Fault | None:
        """Fault of a prompt's call number `attempt` (from 0), or None."""
        if attempt < len(self.script):
            return self.script[attempt]
        at = dice.random()
        kinds: tuple[Fault, ...] = ("rate_limit", "server_error", "hang", "truncated", "drop", "bad_request")
        for kind in kinds:
            at -= getattr(self, kind)
            if at < 0:
                return kind
        return None


class OpenAIServer:
    """The server in a thread of this process. Everything it counts can be read while it runs."""

    def __init__(
        self,
        answer: Answer = lambda body: "ok",
        *,
        model: str = "tiny",
        faults: Faults = Faults(),
        latency_s: float = 0.0,
        port: int = 0,
        keep_bodies: bool = True,
    ) -> None:
        """`answer(body)` gives the text, or a dict that replaces keys of the response's message; it may raise to make a 500."""
        self.model, self.faults, self.latency_s, self.port = model, faults, latency_s, port
        self.calls: Counter[str] = Counter()
        """calls by prompt (content of the last message), failed ones too"""
        self.answered: Counter[str] = Counter()
        """good answers written, by prompt"""
        self.injected: Counter[str] = Counter()
        """faults by kind"""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.keys: dict[str, set[str]] = {}
        """Idempotency-Key values seen, by prompt"""
        self.in_flight = 0
        self.max_in_flight = 0
        self.connections = 0
        self._answer, self._keep = answer, keep_bodies
        self._dice = random.Random(faults.seed)
        self._good = 0
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT/v1`"""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def spec(self) -> str:
        """What `open_model` takes."""
        return f"{self.url}#{self.model}"

    def start(self) -> OpenAIServer:
        """Listen; returns itself. The port stays the same over `stop` and `start`."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait(10)
        return self

    def stop(self) -> None:
        """Close the listener and every connection; twice is harmless."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        self._loop = self._thread = None

    def resume(self) -> None:
        """Answer again after `stop_after` was reached; the count is not applied a second time."""
        self._stopped, self._good = False, -(10**9)

    def __enter__(self) -> OpenAIServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self, ready: threading.Event) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._loop = loop
        self._server = loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=512))
        self.port = self._server.sockets[0].getsockname()[1]
        ready.set()
        try:
            loop.run_forever()
        finally:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while not self._stopped:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ", 2)
                self.in_flight += 1
                self.max_in_flight = max(self.max_in_flight, self.in_flight)
                try:
                    if not await self._serve(writer, method, path, headers, body):
                        return
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str], body: bytes) -> bool:
        """Answer one call; False closes the connection."""
        if method == "GET":
            known: dict[str, Any] = {
                "/v1/models": {"object": "list", "data": [{"id": self.model, "object": "model"}]},
                "/counts": {"calls": self.calls, "answered": self.answered, "injected": self.injected},
            }
            return self._write(writer, 200 if path in known else 404, known.get(path, {"error": {"message": "no such path"}}))
        if path != "/v1/chat/completions":
            return self._write(writer, 404, {"error": {"message": f"no such path {path}"}})
        if self._stopped:
            return False
        asked = json.loads(body)
        prompt = asked["messages"][-1]["content"]
        fault = self.faults.choose(self._dice, self.calls[prompt])
        self.calls[prompt] += 1
        self.keys.setdefault(prompt, set()).add(headers.get("idempotency-key", ""))
        if self._keep:
            self.bodies.append(asked)
            self.headers.append(headers)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if fault is not None:
            self.injected[fault] += 1
        if fault == "hang":
            await asyncio.sleep(self.faults.hang_s)
            return False
        if fault == "drop":
            return False
        if fault == "rate_limit":
            error = {"error": {"message": "slow down", "type": "rate_limit"}}
            return self._write(writer, 429, error, {"Retry-After": str(self.faults.retry_after_s)})
        if fault == "server_error":
            return self._write(writer, 500, {"error": {"message": "it broke", "type": "server_error"}})
        if fault == "bad_request":
            return self._write(writer, 400, {"error": {"message": "unknown field 'x'", "type": "invalid_request_error"}})
        try:
            payload = completion(asked, self._answer(asked), self.model)
        except Exception as error:
            return self._write(writer, 500, {"error": {"message": repr(error)}})
        data = json.dumps(payload).encode()
        if fault == "truncated":
            return self._write(writer, 200, data[: len(data) // 2])
        keep = self._write(writer, 200, data)
        await writer.drain()
        self.answered[prompt] += 1
        self._good += 1
        if self.faults.stop_after is not None and self._good >= self.faults.stop_after:
            self._stopped = True
            return False
        return keep

    @staticmethod
    def _write(writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None) -> bool:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        writer.write(f"HTTP/1.1 {status} {REASONS[status]}\r\n{lines}\r\n".encode() + data)
        return True


def completion(asked: dict[str, Any], answer: str | dict[str, Any], model: str) -> dict[str, Any]:
    """A chat.completion object; words stand for tokens in usage and log-probabilities."""
    message: dict[str, Any] = (
        {"role": "assistant", "content": answer} if isinstance(answer, str) else {"role": "assistant", **answer}
    )
    text = message.get("content") or ""
    words = [word if i == 0 else " " + word for i, word in enumerate(text.split(" "))] if text else []
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
    }
    limit = asked.get("max_tokens") or asked.get("max_completion_tokens")
    if limit is not None and len(words) > limit:
        words = words[:limit]
        message["content"], choice["finish_reason"] = "".join(words), "length"
    if asked.get("logprobs"):
        top = [{"token": f"alt{i}", "logprob": -2.0 - i, "bytes": None} for i in range(asked.get("top_logprobs", 0) - 1)]
        choice["logprobs"] = {
            "content": [
                {
                    "token": word,
                    "logprob": -0.125,
                    "bytes": list(word.encode()),
                    "top_logprobs": [{"token": word, "logprob": -0.125, "bytes": None}, *top]
                    if asked.get("top_logprobs")
                    else [],
                }
                for word in words
            ]
        }
    prompt_tokens = sum(len(str(m.get("content") or "").split()) for m in asked["messages"])
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(words), "total_tokens": prompt_tokens + len(words)}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until killed; the first line printed is the address."""
    parser = argparse.ArgumentParser(description="OpenAI-protocol server for tests")
    parser.add_argument("--text", default="ok", help="what every answer says")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(argv)
    server = OpenAIServer(
        lambda body: options.text, latency_s=options.latency_ms / 1000, port=options.port, keep_bodies=False
    ).start()
    print(server.spec, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
