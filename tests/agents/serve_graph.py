"""Things to serve in tests: graphs and personas on scripted models. `python -m agents.serve tests.agents.serve_graph:shop`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from agents import END, AgentGraph, Persona, Scripted, interrupt, tool
from agents.chat import Reply, Request, Usage


class Slow:
    """A streaming model: repeats the question word by word; "wait N" takes N tenths of a second for each word."""

    name = "slow"

    def __init__(self) -> None:
        self.cancelled = 0
        self.requests: list[Request] = []

    def stream(self, request: Request) -> Iterator[str | Reply]:
        self.requests.append(request)
        words = request.messages[-1].content.split()
        pause = float(words[1]) / 10 if words[0] == "wait" else 0.0
        done = False
        try:
            for i, word in enumerate(words):
                time.sleep(pause)
                yield word if i == 0 else f" {word}"
            done = True
            usage = Usage(prompt_tokens=sum(len(m.content.split()) for m in request.messages), completion_tokens=len(words))
            yield Reply(text=" ".join(words), model="slow", usage=usage)
        finally:
            self.cancelled += not done

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        for index, request in enumerate(requests):
            *_, reply = self.stream(request)
            assert isinstance(reply, Reply)
            yield index, reply

    def close(self) -> None:
        pass


slow = Slow()
echo = Persona("echo", slow, "Repeat what is said.")


@tool
def lookup(order_id: int) -> str:
    """Status of one order."""
    return f"order {order_id} is on its way"


def desk_says(request: Request) -> str:
    last = request.messages[-1].content
    if "order 17 is on its way" in last:
        return "It is on its way."
    if "21 degrees" in last:
        return "Take a hat."
    names = [spec.name for spec in request.tools] or [request.messages[0].content]
    if any("weather" in name for name in names) and "hat" in last:
        return '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
    return '<tool_call>{"name": "lookup", "arguments": {"order_id": "17"}}</tool_call>'


desk = Persona("desk", Scripted([desk_says], repeat=True), "Answer order questions.", tools=[lookup])


class State(BaseModel):
    question: str
    history: list[dict[str, Any]] = []
    notes: list[str] = []
    answer: str | None = None


shop = AgentGraph(State, name="shop")


@shop.node(start=True)
def note(s: State) -> dict[str, Any]:
    if s.question == "fail":
        raise RuntimeError("/secret/path exploded")
    return {"notes": [f"{len(s.history)} turns before"]}


shop.add(echo, reads="question", writes="notes", name="speaker")


@shop.node
def review(s: State) -> Any:
    if s.question.startswith("ask") and not interrupt("send this?", s.notes[-1]):
        return {"answer": "not sent"}
    return {"answer": s.notes[-1]}


shop.edge("note", "speaker")
shop.edge("speaker", "review")
shop.edge("review", END)
