"""The ASGI application: /v1/chat/completions, /v1/models, /health, /metrics.

Does: check key, rate and size before anything runs; answer whole or as server-sent events; give a request up when its caller goes
away or its time is over; turn every failure into OpenAI's error JSON, with an id instead of a traceback.
Does not: listen (`python -m agents.serve` does, through uvicorn).
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agents.drive import alive
from agents.events import Event, ModelCalled, Token
from agents.serve.limits import Key, Rate, Turns, body_of
from agents.serve.metrics import Metrics
from agents.serve.settings import ServeSettings
from agents.serve.target import Answer, Target, errors
from agents.serve.wire import Asked, Envelope, Refused, read_request, written_call

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

log = logging.getLogger("agents.serve")
QUIET_S = 10.0
"""After this long without a word a stream gets a comment, so that no proxy takes it for dead."""


def make_app(target: Target, settings: ServeSettings, key: str | None) -> Starlette:
    """The application; it closes `target` when it shuts down. Raises ImportError without starlette."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    server = _Server(target, settings, key)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(target.close)

    routes = [
        Route("/v1/chat/completions", server.guarded(server.chat), methods=["POST"]),
        Route("/v1/models", server.guarded(server.models)),
        Route("/v1/models/{name:path}", server.guarded(server.models)),
        Route("/metrics", server.guarded(server.metrics_text)),
        Route("/health", server.health),
    ]
    # Without a key only this machine may ask: no web page that has this machine's name pointed at itself (DNS rebinding).
    hosts = [] if key is not None else [Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])]
    return Starlette(routes=routes, lifespan=life, middleware=hosts, exception_handlers={404: _lost, 405: _lost})


async def _lost(request: HttpRequest, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    status = getattr(error, "status_code", 404)
    said = f"no such path {request.url.path}" if status == 404 else f"{request.method} is not for {request.url.path}"
    return JSONResponse(Refused(status, said).body(), status)


class _Server:
    def __init__(self, target: Target, settings: ServeSettings, key: str | None) -> None:
        self.target, self.settings = target, settings
        self.metrics = Metrics()
        self.key, self.rate = Key(key), Rate(settings.rate)
        self.turns = Turns(settings.concurrent, settings.waiting)
        self.started = int(time.time())

    def guarded(self, act: Callable[[HttpRequest], Awaitable[Response]]) -> Callable[[HttpRequest], Awaitable[Response]]:
        """Key and rate first; what is refused or fails becomes OpenAI's error JSON."""

        async def endpoint(request: HttpRequest) -> Response:
            from starlette.responses import JSONResponse

            try:
                self.key.check(request.headers.get("authorization", ""))
                self.rate.check(request.client.host if request.client is not None else "")
                response = await act(request)
            except Exception as error:
                refused = self.refused(error)
                wait = refused.retry_after_s
                headers = {"Retry-After": str(max(1, round(wait)))} if wait is not None else {}
                if refused.status == 401:
                    headers["WWW-Authenticate"] = "Bearer"
                response = JSONResponse(refused.body(), refused.status, headers=headers)
            self.metrics.add("penknife_requests_total", route=request.scope["route"].path, status=str(response.status_code))
            return response

        return endpoint

    def refused(self, error: BaseException) -> Refused:
        """What the caller is told of an exception; a bug is told to the log, and to the caller by an id alone."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, errors()):
            return Refused(500, " ".join(str(error).split()), code=getattr(error, "reason", None))
        id = uuid.uuid4().hex[:12]
        log.error("request failed (%s)", id, exc_info=error)
        return Refused(500, f"the server failed; its log says why under {id}", code="internal_error")

    async def health(self, request: HttpRequest) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse({"status": "ok"})

    async def metrics_text(self, request: HttpRequest) -> Response:
        from starlette.responses import PlainTextResponse

        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: HttpRequest) -> Response:
        from starlette.responses import JSONResponse

        model = {"id": self.target.name, "object": "model", "created": self.started, "owned_by": "penknife"}
        name = request.path_params.get("name")
        if name is not None and name != self.target.name:
            raise Refused(
                404, f"there is no model {name[:80]!r}; this server serves {self.target.name!r}", code="model_not_found"
            )
        return JSONResponse(model if name is not None else {"object": "list", "data": [model]})

    async def chat(self, request: HttpRequest) -> Response:
        from starlette.responses import JSONResponse, StreamingResponse

        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a web page may send anywhere without being asked is not JSON
            raise Refused(415, f"the body must be application/json, not {kind or 'nothing'}")
        raw = await body_of(request.stream(), request.headers.get("content-length"), self.settings.body_bytes)
        asked = read_request(raw, self.target.name)
        envelope = Envelope(f"chatcmpl-{uuid.uuid4().hex}", self.target.name)
        headers = {"x-penknife-ignored": _header(asked.ignored)} if asked.ignored else {}
        pieces = self._pieces(asked)
        if asked.stream:
            try:
                first = await anext(pieces)  # what is refused at once is refused with its own status
            except BaseException:
                await pieces.aclose()
                raise
            events = self._sent(envelope, asked, first, pieces)
            return StreamingResponse(events, media_type="text/event-stream", headers={**headers, "Cache-Control": "no-store"})
        usage = _Usage()
        watch = asyncio.create_task(_gone(request))
        try:
            answer = await self._whole(pieces, usage, watch)
        finally:
            watch.cancel()
        calls = [{key: part for key, part in written_call(call).items() if key != "index"} for call in answer.calls]
        more = {**answer.more, **({"ignored": list(asked.ignored)} if asked.ignored else {})}
        return JSONResponse(envelope.whole(answer.text, answer.finish, usage.counts(), calls, more), headers=headers)

    async def _whole(self, pieces: AsyncIterator[Event | Answer | None], usage: _Usage, gone: asyncio.Task[None]) -> Answer:
        async def last() -> Answer:
            async for piece in pieces:
                usage.see(piece)
                if isinstance(piece, Answer):
                    return piece
            raise RuntimeError("the run ended without an answer")

        work = asyncio.create_task(last())
        done, _ = await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        work.cancel()
        await asyncio.wait({work})
        raise Refused(499, "the caller went away")

    async def _pieces(self, asked: Asked) -> Any:
        """Events of the run as they happen (at first None), then its Answer. Raises Refused and what the run raises."""
        began, cancel = time.perf_counter(), threading.Event()
        found: list[Answer] = []
        async with self.turns.taken():
            yield None
            self.metrics.add("penknife_requests_in_flight", 1)

            async def work(sink: Callable[[Event], None]) -> None:
                try:
                    async with asyncio.timeout(self.settings.timeout_s):
                        found.append(await self.target.answer(asked, cancel, sink))
                except TimeoutError:
                    cancel.set()
                    raise Refused(504, f"there was no answer within {self.settings.timeout_s:g} s", code="timeout") from None

            events = alive(work, cancel.set)
            try:
                async for event in events:
                    self.metrics.see(event)
                    yield event
                yield found[0]
            finally:
                cancel.set()
                await events.aclose()  # type: ignore[attr-defined]
                self.metrics.add("penknife_requests_in_flight", -1)
                self.metrics.took(time.perf_counter() - began)

    async def _sent(self, envelope: Envelope, asked: Asked, first: Any, pieces: Any) -> AsyncIterator[bytes]:
        """Server-sent events of one answer."""
        usage, shown = _Usage(), ""
        yield _event(envelope.chunk({"role": "assistant", "content": ""}))
        try:
            async for piece in _with_pauses(pieces):
                if piece is None:
                    yield b": still at it\n\n"
                    continue
                usage.see(piece)
                if isinstance(piece, Token) and (self.target.streams is None or piece.node in self.target.streams):
                    shown += piece.text
                    yield _event(envelope.chunk({"content": piece.text}))
                elif isinstance(piece, Answer):
                    rest = piece.text[len(shown) :] if piece.text.startswith(shown) else f"\n\n{piece.text}"
                    if rest:
                        yield _event(envelope.chunk({"content": rest}))
                    if piece.calls:
                        yield _event(
                            envelope.chunk({"tool_calls": [written_call(call, i) for i, call in enumerate(piece.calls)]})
                        )
                    more = {**piece.more, **({"ignored": list(asked.ignored)} if asked.ignored else {})}
                    yield _event(envelope.chunk({}, piece.finish, more))
            if asked.include_usage:
                yield _event(envelope.usage(usage.counts()))
        except Exception as error:
            yield _event(self.refused(error).body())
        finally:
            await pieces.aclose()
        yield b"data: [DONE]\n\n"


def _header(names: tuple[str, ...]) -> str:
    """Names a caller chose, fit for a header: no line ends, nothing beyond ASCII, not long."""
    return ", ".join(ascii(name)[1:-1][:80] for name in names)[:1000]


class _Usage:
    """Tokens of all model calls behind one answer."""

    def __init__(self) -> None:
        self.prompt = self.completion = self.reused = 0

    def see(self, piece: Any) -> None:
        if isinstance(piece, ModelCalled):
            self.prompt += piece.usage.prompt_tokens
            self.completion += piece.usage.completion_tokens
            self.reused += piece.usage.reused_tokens

    def counts(self) -> dict[str, Any]:
        total = self.prompt + self.completion
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        }


async def _gone(request: HttpRequest) -> None:
    """Returns when the caller has closed the connection."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


async def _with_pauses(pieces: Any) -> AsyncIterator[Any]:
    """The same pieces, and None whenever none came for a while."""
    coming: asyncio.Task[Any] | None = None
    try:
        while True:
            coming = coming if coming is not None else asyncio.ensure_future(anext(pieces))
            done, _ = await asyncio.wait({coming}, timeout=QUIET_S)
            if not done:
                yield None
                continue
            finished, coming = coming, None
            try:
                piece = finished.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
