"""One question to one persona, answered in a thread of its own with its events kept: what the page Personas tries.

Does: make a graph of a single persona, so that tokens, tool calls and refusals come as events like everywhere else.
Does not: keep a thread or a record.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from agents import END, AgentGraph
from agents import events as ev
from agents.chat import ChatModel
from agents.checkpoint import Store
from app.persona_form import Draft, made
from app.turns import Turn


class TryoutState(BaseModel):
    question: str
    answer: str = ""


class Tryout:
    """`model` is called in the worker, where opening one may take its time."""

    def __init__(self, model: Callable[[], ChatModel], draft: Draft, question: str) -> None:
        self.draft, self.question = draft, question

        def graph() -> AgentGraph:
            one = AgentGraph(TryoutState, name="tryout")
            one.add(made(draft, model()), reads="question", writes="answer", start=True, name="persona")
            one.edge("persona", END)
            return one

        self._turn = Turn(
            question, graph, thread="tryout", store=lambda: Store(":memory:"), state={"question": question}
        )  # fmt: skip

    def start(self) -> Tryout:
        if not self.question.strip():
            self._turn.refuse("Say something first; the question is empty.")
            return self
        self._turn.start()
        return self

    def stop(self) -> None:
        self._turn.stop()

    def wait(self, timeout_s: float | None = None) -> bool:
        return self._turn.wait(timeout_s)

    @property
    def running(self) -> bool:
        return self._turn.status == "running"

    @property
    def problem(self) -> str:
        if self._turn.status == "waiting":
            return "It wants to call a tool that needs a person's yes; graphs on the page Ask can give it."
        return self._turn.problem

    @property
    def text(self) -> str:
        """What it has said so far, or its answer."""
        return str(self._turn.state.get("answer") or self._turn.text)

    @property
    def events(self) -> list[ev.Event]:
        return self._turn.events
