"""Models behind an OpenAI-compatible server, asked many at a time through the `openai` client.

Does: keep `in_flight` requests going per endpoint, spread them over several, retry what may pass (429, 5xx, time-outs, broken
bodies, lost connections) with backoff and Retry-After, map log-probabilities, usage and cost, stop at once when left early.
Does not: stream, log or store the API key, or check that a server obeyed a constraint: the caller verifies.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agents.chat import ModelError, Reply, Request, Timings
from agents.models.wire import BadBody, body_of, failed, read_reply

RETRIED = (408, 409, 425, 429)
"""Client errors that may pass by themselves, beside every 5xx."""

LONGEST_REST_S = 300.0
"""Seconds of a Retry-After that are waited for; after them the attempt is made anyway."""

HONOURED: dict[str, frozenset[str]] = {
    "response_format": frozenset({"json_schema"}),
    "structured_outputs": frozenset({"json_schema", "choice", "regex", "lark"}),
    "guided": frozenset({"json_schema", "choice", "regex", "lark"}),
    "none": frozenset(),
}
"""Way of sending constraints -> the kinds that can be sent so."""


class HttpOptions(BaseModel):
    """How an OpenAI-compatible endpoint is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    in_flight: int = Field(default=64, ge=1)
    """requests to each endpoint at once"""
    timeout_s: float = Field(default=120.0, gt=0)
    """seconds one attempt may take; a request's own `timeout_s` bounds all its attempts together"""
    retries: int = Field(default=6, ge=0)
    """attempts after the first"""
    backoff_s: float = Field(default=0.5, gt=0)
    """wait before the first retry; doubles each time, with jitter"""
    backoff_max_s: float = Field(default=30.0, gt=0)
    """longest wait before a retry; a server's Retry-After may be longer, up to 300"""
    api_key_env: str = "OPENAI_API_KEY"
    """environment variable that holds the key; unset means a server without one"""
    price_in: float | None = Field(default=None, ge=0)
    """dollars per million prompt tokens"""
    price_out: float | None = Field(default=None, ge=0)
    """dollars per million completion tokens"""
    constraints: Literal["response_format", "structured_outputs", "guided", "none"] = "response_format"
    """what the server takes: response_format (JSON schemas only), vLLM's structured_outputs, older vLLM's guided_*, nothing"""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """name of the limit in the request"""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """further fields sent with every request"""


class _Endpoint:
    """One server: its client, how many requests it holds, and until when it asked to be left alone."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model
        self.client: Any = None
        self.active = 0
        self.rest_until = 0.0


class _Run:
    """One call of `generate`: what is asked, what came back, and for how much more there is room."""

    def __init__(self, requests: Sequence[Request], workers: int) -> None:
        self.requests = requests
        self.next = 0
        self.done: queue.SimpleQueue[tuple[int, Reply] | BaseException] = queue.SimpleQueue()
        self.room = asyncio.Semaphore(workers)
        """one for each request that may be sent before the consumer has finished with another's reply"""


class HttpModel:
    """`HttpModel("http://host/v1#name")`, or several specs joined by commas."""

    def __init__(self, spec: str, options: HttpOptions | None = None) -> None:
        """Opens no connection. Raises ModelError for a spec that is not `http(s)://host/path#model`."""
        self.name = spec
        self.options = options if options is not None else HttpOptions()
        self._endpoints = [_endpoint(part.strip()) for part in spec.split(",")]
        self.retries: Counter[str] = Counter()
        """attempts made again, by reason: "429", "5xx", "timeout", "connection", "body" """
        self.unconstrained: Counter[str] = Counter()
        """requests whose constraint the server cannot take, by kind"""
        self.constrains: frozenset[str] = HONOURED[self.options.constraints]
        """kinds of constraint that are sent; whether the server obeys is the caller's to verify"""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._dice = random.Random()
        self._starting = threading.Lock()

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies as they arrive; leaving early cancels the rest.

        A request is sent only while fewer than `in_flight` per endpoint are without a reply that the consumer has finished with
        (has come back for the next one): a process killed at any moment has lost at most those.

        A request that keeps failing gets a Reply with stop_reason "error" and the last reason in `error`.
        """
        if not requests:
            return
        loop = self._start()
        workers = min(len(requests), self.options.in_flight * len(self._endpoints))
        run = _Run(requests, workers)
        future = asyncio.run_coroutine_threadsafe(self._work(run, workers), loop)
        try:
            for _ in requests:
                item = run.done.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                with suppress(RuntimeError):  # closed in between: the next item says so
                    loop.call_soon_threadsafe(run.room.release)
        finally:
            future.cancel()  # the loop then closes the connections of what is still in flight by itself

    def close(self) -> None:
        """Cancel what is in flight and close every connection; twice is harmless."""
        with self._starting:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                return
            self._loop = self._thread = None
        asyncio.run_coroutine_threadsafe(self._shut(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                for endpoint in self._endpoints:
                    endpoint.client = self._client(endpoint)
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="http-model", daemon=True)
                self._thread.start()
            return self._loop

    def _client(self, endpoint: _Endpoint) -> Any:
        import httpx2
        from openai import AsyncOpenAI

        limits = httpx2.Limits(max_connections=self.options.in_flight, max_keepalive_connections=self.options.in_flight)
        return AsyncOpenAI(
            base_url=endpoint.url,
            api_key=os.environ.get(self.options.api_key_env) or "none",
            max_retries=0,
            timeout=self.options.timeout_s,
            http_client=httpx2.AsyncClient(limits=limits, timeout=self.options.timeout_s, follow_redirects=True),
        )

    async def _shut(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.client.close()
            endpoint.client = None

    async def _work(self, run: _Run, workers: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._worker(run))
        except BaseExceptionGroup as errors:
            run.done.put(errors.exceptions[0])
        except asyncio.CancelledError:
            run.done.put(ModelError(f"{self.name} was closed while it was being asked; open it again"))
            raise

    async def _worker(self, run: _Run) -> None:
        while run.next < len(run.requests):
            await run.room.acquire()
            if run.next >= len(run.requests):
                run.room.release()
                return
            index = run.next
            run.next += 1
            run.done.put((index, await self._answered(run.requests[index])))

    async def _answered(self, request: Request) -> Reply:
        """One request to its end, or to its own time limit: all attempts and waits together, with nothing to show for them."""
        started = time.perf_counter()
        if request.adapters:
            sentence = (
                f"{self.name}: adapter {request.adapters[0].path!r} cannot be sent to a server; "
                "ask for a model that has it, or leave it away"
            )
            return Reply(id=request.id, model=self.name, stop_reason="error", error=sentence)
        try:
            async with asyncio.timeout(request.timeout_s):
                return await self._ask(request, started)
        except TimeoutError:
            timings = Timings(total_ms=(time.perf_counter() - started) * 1e3)
            return Reply(id=request.id, model=self.name, stop_reason="timeout", timings=timings)

    async def _ask(self, request: Request, started: float) -> Reply:
        """One request to its end: an answer, or an error reply when attempts are used up."""
        options = self.options
        body, sent = body_of(request, options.constraints, options.max_tokens_field, options.extra_body)
        if request.constraint is not None and not sent:
            self.unconstrained[request.constraint.kind] += 1
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        last: _Endpoint | None = None
        for attempt in range(options.retries + 1):
            endpoint = await self._choose(last)
            asked = time.perf_counter()
            endpoint.active += 1
            try:
                raw = await self._post(endpoint, {"model": endpoint.model, **body}, headers)
                return read_reply(
                    raw, request, self.name, (started, asked, time.perf_counter()), (options.price_in, options.price_out)
                )
            except Exception as error:
                reason, sentence, wait = _judge(error, endpoint.url)
                if reason is None:
                    return failed(request, self.name, sentence, started)
            finally:
                endpoint.active -= 1
            if attempt == options.retries:
                return failed(
                    request, self.name, f"{sentence}, after {attempt + 1} attempts; check the server, then run again", started
                )
            self.retries[reason] += 1
            last = endpoint
            pause = min(options.backoff_max_s, options.backoff_s * 2**attempt) * self._dice.uniform(0.5, 1.0)
            if wait is not None:
                # Everybody leaves this endpoint alone that long; where there is another, this request goes there now.
                endpoint.rest_until = max(endpoint.rest_until, time.monotonic() + min(max(wait, 0.0), LONGEST_REST_S))
                continue
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns")

    async def _post(self, endpoint: _Endpoint, body: dict[str, Any], headers: dict[str, str]) -> bytes:
        """The body of a 200 as sent. The client's own post() costs a third less than its typed call."""
        import httpx2

        response = await endpoint.client.post(
            "/chat/completions", cast_to=httpx2.Response, body=body, options={"headers": headers}
        )
        content: bytes = response.content
        return content

    async def _choose(self, last: _Endpoint | None) -> _Endpoint:
        """The least busy endpoint that is not resting; another than `last` where there is one."""
        while True:
            now = time.monotonic()
            awake = [endpoint for endpoint in self._endpoints if endpoint.rest_until <= now]
            if awake:
                others = [endpoint for endpoint in awake if endpoint is not last]
                return min(others or awake, key=lambda endpoint: endpoint.active)
            rest = min(endpoint.rest_until for endpoint in self._endpoints) - now
            await asyncio.sleep(rest * self._dice.uniform(1.0, 1.25))


def _endpoint(spec: str) -> _Endpoint:
    url, mark, model = spec.partition("#")
    host = url.partition("://")[2].split("/")[0]
    if not url.startswith(("http://", "https://")) or not host or not mark or not model:
        raise ModelError(f"{spec!r} does not name a model on a server; write it like http://localhost:8000/v1#name")
    return _Endpoint(url.rstrip("/"), model)


def _judge(error: Exception, url: str) -> tuple[str | None, str, float | None]:
    """(reason to try again or None, sentence, seconds the server asks to wait or None). Raises what is no server's failure."""
    import openai

    if isinstance(error, BadBody):
        return "body", f"{url} answered with a broken body ({error})", None
    if isinstance(error, openai.APITimeoutError):
        return "timeout", f"{url} did not answer in time", None
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        said = f"{url} answered {status} ({_said(error)})"
        if status >= 500:
            return "5xx", said, _retry_after(error)
        if status in RETRIED:
            return str(status), said, _retry_after(error)
        return None, said, None
    if isinstance(error, openai.APIConnectionError):
        return "connection", f"{url} cannot be reached ({error.__cause__ or error})", None
    raise error


def _said(error: Any) -> str:
    """The server's own message, cut to a readable length."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or (body.get("error") or {}).get("message") or body
    return str(body if body is not None else error.message).replace("\n", " ")[:200]


def _retry_after(error: Any) -> float | None:
    """Seconds from a Retry-After header (a number or an HTTP date); None when there is none."""
    header = error.response.headers.get("retry-after")
    if header is None:
        return None
    try:
        return float(header)
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
        except ValueError:
            return None
