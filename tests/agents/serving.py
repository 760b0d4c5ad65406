"""A real server in a thread of this process, and what tests say to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import uvicorn

from agents.serve.app import make_app
from agents.serve.settings import ServeSettings
from agents.serve.target import target_of

KEY = "a-key-of-many-characters"


@contextmanager
def serving(served: Any, key: str | None = KEY, **options: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    settings = ServeSettings(port=0, **options)
    config = uvicorn.Config(make_app(target_of(served, settings), settings, key), port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


def client(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=20)


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def post(url: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
    port = int(url.split(":")[2].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {KEY}",
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    connection.request("POST", "/v1/chat/completions", data, sent)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    try:
        return response.status, json.loads(text), dict(response.headers)
    except ValueError:
        return response.status, text.decode(), dict(response.headers)


def metrics(url: str, key: str = KEY) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", int(url.split(":")[2].split("/")[0]), timeout=20)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {key}"})
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def wait_for(true: Any, seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)
