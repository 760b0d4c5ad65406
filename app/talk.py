"""A conversation: questions asked one after another in one thread, some of them forked off an earlier one.

Does: start turns on the graph of a setup, fork a thread after one of its steps, rate answers; one turn at a time.
Does not: show anything; a page keeps one `Talk` for each session.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents import events as ev
from agents.graph import AgentGraph
from app import feedback
from app.turns import Turn
from app.wiring import Setup, Workshop

QUESTION_CHARS = 2000
NAMES = {"analyst": "Analyst: question → SQL → rows → check", "blades": "Three blades: route → SQL or tools"}


class TalkError(Exception):
    """A question that cannot be asked now: one sentence."""


@dataclass
class Talk:
    """`own` is the browser's directory; its threads, records and rated answers lie there."""

    shop: Workshop
    own: Path
    thread: str = field(default_factory=lambda: os.urandom(6).hex())
    turns: list[Turn] = field(default_factory=list)
    shown: int = -1
    """which turn stands on top with its way drawn; -1 is the latest"""

    @property
    def running(self) -> bool:
        return any(turn.status == "running" for turn in self.turns)

    @property
    def waiting(self) -> Turn | None:
        """The turn that a person has to answer."""
        return next((turn for turn in self.turns if turn.status == "waiting"), None)

    @property
    def chosen(self) -> Turn:
        """The turn that stands on top. Raises IndexError before the first."""
        return self.turns[self.shown if -1 <= self.shown < len(self.turns) else -1]

    def ask(self, question: str, setup: Setup) -> Turn:
        """Begin a turn; returns at once. Raises TalkError."""
        question = question.strip()
        if not question:
            raise TalkError("The question is empty; write one.")
        if len(question) > QUESTION_CHARS:
            raise TalkError(f"The question has {len(question):,} characters; at most {QUESTION_CHARS:,} are asked.")
        self._free()
        return self._begin(question, setup, self.thread, setup.first_state(question))

    def fork(self, turn: Turn, step: int, setup: Setup) -> Turn:
        """Go on from after `step` of an earlier turn in a thread of its own, with the present setup.

        Raises TalkError, GraphError."""
        self._free()
        if turn.about.get("graph") != setup.graph:
            raise TalkError("This answer came from another graph; choose that one first.")
        graph = self.shop.graph(setup)
        self.thread = graph.fork(turn.thread, step, store=self._store())
        return self._begin(turn.question, setup, self.thread, None, forked_from=[turn.thread, step])

    def forkable(self, turn: Turn) -> dict[int, str]:
        """Steps of a turn that something followed: number -> node."""
        ended = {event.step: event.node or "" for event in turn.events if isinstance(event, ev.NodeEnded)}
        return {step: node for step, node in sorted(ended.items()) if step != max(ended)}

    def rate(self, turn: Turn, rating: feedback.Rating, correction: str = "") -> tuple[Path, int]:
        """(file, rows in it) after keeping a rating. Raises FeedbackError."""
        database, state = Path(str(turn.about["database"])), turn.state
        path = feedback.rows_file(self.own, database)
        about = {"model": Path(str(turn.about["artifact"])).name, "confidence": state.get("confidence")}
        return path, feedback.rate(
            path, self.id_of(turn), turn.question, str(state.get("sql", "")), rating,
            database=database, correction=correction, **about,
        )  # fmt: skip

    def rating_of(self, turn: Turn) -> feedback.Rating | None:
        """How a turn was rated last."""
        return feedback.rating_of(feedback.rows_file(self.own, Path(str(turn.about["database"]))), self.id_of(turn))

    @staticmethod
    def id_of(turn: Turn) -> str:
        return f"{turn.thread}:{int(turn.asked_at * 1000)}"

    def anew(self) -> None:
        """Leave this thread; what it holds stays on record."""
        for turn in self.turns:
            turn.stop()
        self.thread, self.turns, self.shown = os.urandom(6).hex(), [], -1

    def _free(self) -> None:
        if self.running:
            raise TalkError("The last question is still being answered; wait for it, or stop it.")
        if self.waiting is not None:
            raise TalkError("The last question waits for your yes or no; answer it first.")

    def _begin(self, question: str, setup: Setup, thread: str, state: Any, **more: Any) -> Turn:
        about = {"graph": setup.graph, **setup.described(), **more}
        make: Callable[[], AgentGraph] = lambda: self.shop.graph(setup)  # noqa: E731
        turn = Turn(question, make, thread=thread, store=self._store, state=state, record=self.own / "turns", about=about)
        self.turns.append(turn.start())
        self.shown = -1
        return turn

    def _store(self) -> Any:
        return self.shop.store(self.own / "threads.db")
