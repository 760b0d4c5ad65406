from __future__ import annotations

import pytest

from agents.chat import ChatModel, Message, ModelError, Reply, Request, answer
from agents.models.scripted import Scripted


def ask(text: str) -> Request:
    return Request(messages=(Message(role="user", content=text),), id=text)


def test_answers_in_order_and_keeps_the_requests() -> None:
    model = Scripted(["four", Reply(text="5", stop_reason="length"), lambda request: request.messages[-1].content.upper()])
    requests = [ask("2+2"), ask("2+3"), ask("abc")]
    replies = answer(model, requests)
    assert [reply.text for reply in replies] == ["four", "5", "ABC"]
    assert [reply.id for reply in replies] == ["2+2", "2+3", "abc"]
    assert replies[1].stop_reason == "length"
    assert model.requests == requests
    assert isinstance(model, ChatModel)


def test_an_exception_is_an_error_reply() -> None:
    replies = answer(Scripted([ValueError("no route"), lambda request: OSError("gone")]), [ask("a"), ask("b")])
    assert [(reply.stop_reason, reply.error) for reply in replies] == [("error", "no route"), ("error", "gone")]


def test_running_out_is_loud_unless_the_last_reply_repeats() -> None:
    model = Scripted(["one"])
    with pytest.raises(ModelError, match="request 2 came, but only 1 replies are scripted"):
        answer(model, [ask("a"), ask("b")])
    assert [r.text for r in answer(Scripted(["one", "two"], repeat=True), [ask("a")] * 4)] == ["one", "two", "two", "two"]
    with pytest.raises(ModelError):
        answer(Scripted([], repeat=True), [ask("a")])
