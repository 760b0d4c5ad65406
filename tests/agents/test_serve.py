"""The official client talks to a real server on a real socket; what is refused, limited, cut off and shut down."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="pip install 'penknife[agents]'")
pytest.importorskip("uvicorn", reason="pip install 'penknife[agents]'")

import openai

from agents.serve.limits import Rate
from agents.serve.settings import ServeSettings
from agents.serve.target import target_of
from agents.serve.wire import Refused, read_request
from tests.agents import serve_graph
from tests.agents.serving import KEY, client, metrics, post, say, serving, wait_for


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with serving(serve_graph.echo) as url:
        yield url


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = str(tmp_path_factory.mktemp("serve") / "runs.db")
    with serving(serve_graph.shop, store=store, stream_node="speaker") as url:
        yield url


def test_a_persona_whole_and_streamed(echo: str) -> None:
    talk = client(echo)
    assert [model.id for model in talk.models.list()] == ["echo"] and talk.models.retrieve("echo").owned_by == "penknife"
    answer = talk.chat.completions.create(model="echo", messages=say("one two three"))
    assert answer.choices[0].message.content == "one two three" and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == 3 and answer.usage.prompt_tokens > 3
    chunks = list(
        talk.chat.completions.create(
            model="echo", messages=say("one two three"), stream=True, stream_options={"include_usage": True}
        )
    )
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert words == ["one", " two", " three"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3


def test_words_come_while_they_are_decided(echo: str) -> None:
    began, at = time.perf_counter(), []
    for chunk in client(echo).chat.completions.create(model="echo", messages=say("wait 2 a b c d"), stream=True):
        if chunk.choices[0].delta.content:
            at.append(time.perf_counter() - began)
    assert len(at) == 6 and at[-1] - at[0] > 0.8


def test_earlier_turns_reach_the_model_and_what_is_not_honoured_is_said(echo: str) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "Be rude."},
        *say("a"),
        {"role": "assistant", "content": "b"},
        *say("last one"),
    ]
    raw = client(echo).chat.completions.with_raw_response.create(model="echo", messages=turns, temperature=1.5, max_tokens=1)
    assert raw.parse().choices[0].message.content == "last one"
    assert raw.headers["x-penknife-ignored"] == "system messages, max_tokens, temperature"
    seen = [(m.role, m.content) for m in serve_graph.slow.requests[-1].messages]
    assert seen == [("system", "Repeat what is said."), ("user", "a"), ("assistant", "b"), ("user", "last one")]


def test_its_own_tools_and_the_callers(echo: str) -> None:
    weather: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    with serving(serve_graph.desk) as url:
        talk = client(url)
        assert (
            talk.chat.completions.create(model="desk", messages=say("where is 17?")).choices[0].message.content
            == "It is on its way."
        )
        first = talk.chat.completions.create(model="desk", messages=say("a hat?"), tools=[weather]).choices[0]
        assert first.finish_reason == "tool_calls" and first.message.tool_calls is not None
        call = first.message.tool_calls[0]
        assert (
            call.type == "function" and call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Ulm"}
        )
        told: list[Any] = [*say("a hat?"), first.message, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
        second = talk.chat.completions.create(model="desk", messages=told, tools=[weather])
        assert second.choices[0].message.content == "Take a hat."
        streamed = list(talk.chat.completions.create(model="desk", messages=say("a hat?"), tools=[weather], stream=True))
        calls = [chunk.choices[0].delta.tool_calls for chunk in streamed if chunk.choices[0].delta.tool_calls]
        assert calls[0] is not None and calls[0][0].function is not None and calls[0][0].function.name == "weather"
        assert streamed[-1].choices[0].finish_reason == "tool_calls"
        text = metrics(url)
        assert 'penknife_tool_calls_total{outcome="ok",persona="desk",tool="lookup"} 1' in text
        assert 'penknife_model_calls_total{ended="stop",persona="desk"}' in text


def test_a_graph_with_history_and_one_streaming_node(shop: str) -> None:
    talk = client(shop)
    turns: list[Any] = [*say("x"), {"role": "assistant", "content": "y"}, *say("hello there")]
    answer = talk.chat.completions.create(model="shop", messages=turns)
    assert answer.choices[0].message.content == "hello there"
    chunks = [c.choices[0] for c in talk.chat.completions.create(model="shop", messages=say("hello there"), stream=True)]
    assert [c.delta.content for c in chunks if c.delta.content] == ["hello", " there"]


def test_an_interrupt_is_reported_and_resumed_on_its_thread(shop: str) -> None:
    talk = client(shop)
    paused = talk.chat.completions.create(model="shop", messages=say("ask me"), extra_body={"thread": "u1"})
    assert paused.choices[0].message.content == "send this?\nask me" and paused.choices[0].finish_reason == "stop"
    more = (paused.model_extra or {})["penknife"]
    assert more["reason"] == "interrupted" and more["thread"] == "u1" and more["value"] == "ask me"
    done = talk.chat.completions.create(model="shop", messages=[], extra_body={"thread": "u1", "resume": True})
    assert done.choices[0].message.content == "ask me" and (done.model_extra or {})["penknife"]["reason"] == "end"
    for body in ({"thread": "u1", "resume": True}, {"thread": "nobody", "resume": True}):
        with pytest.raises(openai.ConflictError) as caught:
            talk.chat.completions.create(model="shop", messages=[], extra_body=body)
        assert "cannot go on" in caught.value.message and "u1" not in caught.value.message.replace(
            f"thread {body['thread']!r}", ""
        )


def test_without_a_store_an_interrupt_says_what_is_missing() -> None:
    with serving(serve_graph.shop) as url:
        with pytest.raises(openai.InternalServerError, match="--store"):
            client(url).chat.completions.create(model="shop", messages=say("ask me"))
        with pytest.raises(openai.BadRequestError, match="keeps no threads"):
            client(url).chat.completions.create(model="shop", messages=say("x"), extra_body={"thread": "u1"})


def test_a_bug_is_told_to_the_log_and_not_to_the_caller(shop: str, caplog: pytest.LogCaptureFixture) -> None:
    for stream in (False, True):
        caplog.clear()
        with pytest.raises(openai.APIError) as caught:
            for _ in client(shop).chat.completions.create(model="shop", messages=say("fail"), stream=stream):
                pass
        said = str(caught.value)
        assert "secret" not in said and "Traceback" not in said
        id = re.search(r"under (\w{12})", said)
        assert id is not None and id.group(1) in caplog.text and "exploded" in caplog.text


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "JSON object"),
        ({"model": "gpt"}, 404, "there is no model 'gpt'; this server serves 'echo'"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": "hi"}, 400, "must be a list"),
        ({"messages": [{"role": "robot"}]}, 400, "needs a role"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "no user message"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, 400, "last message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 2}, 400, "n=1"),
        ({"messages": [{"role": "user", "content": "x"}], "thread": "t"}, 400, "keeps no threads"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {}}]}, 400, "tools[0]"),
        ({"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}, 400, "tool_choice"),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, 413, "larger than"),
        (b"[" * 100_000, 400, "not JSON"),
    ],
)
def test_what_is_refused_is_openais_error_json(body: Any, status: int, said: str) -> None:
    with serving(serve_graph.echo, body_bytes=150_000) as url:
        got, answer, _ = post(url, body)
    assert got == status and said in answer["error"]["message"] and set(answer["error"]) == {"message", "type", "param", "code"}


def test_keys_types_and_hosts(echo: str) -> None:
    body = {"messages": say("x")}
    for wrong in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \u00fc"):
        status, answer, headers = post(echo, body, Authorization=wrong)
        assert status == 401 and answer["error"]["code"] == "invalid_api_key" and headers["www-authenticate"] == "Bearer"
    assert post(echo, body, Content_Type="text/plain")[0] == 415
    assert "penknife_requests_total" not in metrics(echo, "wrong")
    with serving(serve_graph.echo, key=None) as url:
        assert post(url, body)[0] == 200
        assert post(url, body, Host="evil.example")[0] == 400


def test_health_metrics_and_unknown_paths(echo: str) -> None:
    port = int(echo.split(":")[2].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for path, status in (("/health", 200), ("/nothing", 404), ("/v1/chat/completions", 405)):
        connection.request("GET", path)
        response = connection.getresponse()
        body = json.loads(response.read())
        assert response.status == status and (body == {"status": "ok"}) == (status == 200)
    connection.close()
    post(echo, {"messages": say("count me")})
    text = metrics(echo)
    sample = re.compile(r'[a-z_]+(\{([a-z]+="[^"\n]*",?)+\})? [0-9.e+-]+|# (HELP|TYPE) [a-z_]+ .+')
    assert all(sample.fullmatch(line) for line in text.splitlines()) and text.endswith("\n")
    assert re.search(r'penknife_requests_total\{route="/v1/chat/completions",status="200"\} \d', text)
    assert re.search(r'penknife_tokens_total\{kind="completion",persona="echo"\} \d', text)
    assert "penknife_requests_in_flight 0" in text


def test_a_full_server_says_come_back_later() -> None:
    with serving(serve_graph.echo, concurrent=1, waiting=1) as url:
        out: list[tuple[int, Any, dict[str, str]]] = []
        threads = [threading.Thread(target=lambda: out.append(post(url, {"messages": say("wait 3 x")}))) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sorted(status for status, *_ in out) == [200, 200, 429, 429]
        assert all(headers["retry-after"] == "1" for status, _, headers in out if status == 429)


def test_rates() -> None:
    now = [0.0]
    rate = Rate(60, lambda: now[0])
    for _ in range(60):
        rate.check("a")
    with pytest.raises(Refused) as caught:
        rate.check("a")
    assert caught.value.status == 429 and caught.value.retry_after_s == pytest.approx(1.0)
    rate.check("b")
    now[0] = 1.01
    rate.check("a")
    with serving(serve_graph.echo, rate=2) as url:
        assert [post(url, {"messages": say("x")})[0] for _ in range(3)] == [200, 200, 429]


def test_a_request_that_takes_too_long_is_given_up() -> None:
    with serving(serve_graph.echo, timeout_s=0.5) as url:
        before = serve_graph.slow.cancelled
        status, answer, _ = post(url, {"messages": say("wait 2 a b c d e f g h")})
        assert status == 504 and "within 0.5 s" in answer["error"]["message"]
        wait_for(lambda: serve_graph.slow.cancelled == before + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_goes_away_stops_the_model(echo: str, stream: bool) -> None:
    before = serve_graph.slow.cancelled
    port = int(echo.split(":")[2].split("/")[0])
    data = json.dumps({"messages": say("wait 1 " + "word " * 80), "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", port)) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        raw.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        time.sleep(0.5)
    wait_for(lambda: serve_graph.slow.cancelled == before + 1)
    wait_for(lambda: "penknife_requests_in_flight 0" in metrics(echo))


@pytest.mark.parametrize(
    "odd",
    [
        {"messages": [{"role": [], "content": "x"}]},
        {"messages": [*say("x"), {"role": "assistant", "tool_calls": 5}]},
        {"messages": [*say("x"), {"role": "tool", "tool_call_id": 5, "content": "y"}]},
        {"messages": say("x"), "stream_options": ["include_usage"]},
        {"messages": say("half \ud83d of one")},
    ],
)
def test_odd_fields_are_the_callers_mistake(odd: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        read_request(json.dumps(odd).encode(), "echo")
    assert refused.value.status == 400
    assert read_request(json.dumps({"messages": say("whole \U0001f600")}).encode(), "echo").text == "whole \U0001f600"


def test_names_a_caller_made_up_cannot_break_a_header(echo: str) -> None:
    made_up = {"x\r\nset-cookie: a=b": 1, "größe☂": 1, "long" * 1000: 1}
    status, body, headers = post(echo, {"messages": say("hi"), **made_up})
    told = {name.lower(): value for name, value in headers.items()}
    assert status == 200 and body["penknife"]["ignored"] == sorted(made_up)
    assert "set-cookie" not in told and len(told["x-penknife-ignored"]) <= 1000 and "\n" not in told["x-penknife-ignored"]


def test_a_stream_given_up_before_it_began_is_not_in_flight() -> None:
    import asyncio

    from agents.serve.app import _Server

    settings = ServeSettings()
    server = _Server(target_of(serve_graph.echo, settings), settings, KEY)

    async def given_up() -> None:
        pieces = server._pieces(read_request(json.dumps({"messages": say("hi"), "stream": True}).encode(), "echo"))
        assert await anext(pieces) is None
        await pieces.aclose()

    asyncio.run(given_up())
    in_flight = [line for line in server.metrics.text().splitlines() if line.startswith("penknife_requests_in_flight")]
    assert in_flight in ([], ["penknife_requests_in_flight 0"])


def test_made_up_labels_do_not_fill_the_memory() -> None:
    from agents.serve.metrics import MOST_SERIES, Metrics

    metrics = Metrics()
    for n in range(3 * MOST_SERIES):
        metrics.add("penknife_tool_calls_total", persona="desk", tool=f"made up {n}", outcome="failed")
    lines = [line for line in metrics.text().splitlines() if line.startswith("penknife_tool_calls_total{")]
    assert len(lines) == MOST_SERIES + 1
    assert f'outcome="other",persona="other",tool="other"}} {2 * MOST_SERIES}' in lines[-1] or any(
        f'tool="other"}} {2 * MOST_SERIES}' in line for line in lines
    )
