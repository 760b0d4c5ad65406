"""One question of a conversation, answered by a graph in a thread of its own while a page looks on.

Does: run the graph's event stream beside the script, keep its events, stop it, go on after an interrupt, and put the finished
turn on record (a trace file, and beside it what it was asked with).
Does not: know Streamlit, or what the events mean (`app.timeline`, `app.picture`).

    turn = Turn("who discovered Triton?", make_graph, thread="t1", store=store)
    turn.start(); turn.wait(); turn.state["answer"]
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from agents import events as ev
from agents.card import CardError
from agents.chat import ModelError
from agents.checkpoint import Store
from agents.constrain import ConstraintError
from agents.graph import AgentGraph
from agents.route import GraphError
from agents.threads import MISSING
from agents.tools import PersonaError
from agents.trace import Trace
from factory.tasks.task import TaskError

SAID = (ModelError, PersonaError, GraphError, CardError, ConstraintError, TaskError, OSError)
"""Errors that are one sentence for the reader; anything else is a bug."""
Status = Literal["running", "waiting", "done", "stopped", "failed"]


class Turn:
    """A question and everything that happened on the way to its answer. Read from any thread."""

    def __init__(
        self,
        question: str,
        graph: Callable[[], AgentGraph],
        *,
        thread: str,
        store: Callable[[], Store],
        state: Mapping[str, Any] | None = None,
        record: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """`state` begins a run of `thread` with it; None goes on with the thread where it stands (a fork). `record`: directory of
        finished turns; `about`: what is kept beside them."""
        self.question, self.thread = question, thread
        self.about = dict(about or {})
        self._graph, self._store, self._given, self._record = graph, store, state, record
        self._events: list[ev.Event] = []
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._worker: threading.Thread | None = None
        self.problem = ""
        self.asked_at = time.time()
        self.first_token_ms: float | None = None
        self.mermaid = ""
        self._status: Status = "running"
        self.saved: Path | None = None

    # --- what a page does

    def start(self) -> Turn:
        """Begin; returns at once."""
        self._go(MISSING)
        return self

    def answer(self, value: Any) -> None:
        """Answer the interrupt that waits, and go on."""
        if self.status == "waiting":
            self._given = None
            self._go(value)

    def stop(self) -> None:
        """Ask the run to end at its next token or step."""
        self._cancel.set()

    def refuse(self, why: str) -> None:
        """End before it began."""
        self.problem, self._status = why, "failed"

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it ended in time; for scripts and tests, never for a page."""
        if self._worker is not None:
            self._worker.join(timeout_s)
            return not self._worker.is_alive()
        return True

    # --- what a page reads

    @property
    def status(self) -> Status:
        return self._status

    @property
    def events(self) -> list[ev.Event]:
        with self._lock:
            return list(self._events)

    @property
    def text(self) -> str:
        """What the model has written in its latest step."""
        pieces: list[str] = []
        step = None
        for event in self.events:
            if isinstance(event, ev.Token):
                if event.step != step:
                    pieces, step = [], event.step
                pieces.append(event.text)
        return "".join(pieces)

    @property
    def state(self) -> dict[str, Any]:
        """The state's fields as the events set them."""
        return state_of(self.events)

    @property
    def waiting_for(self) -> ev.Interrupted | None:
        """The interrupt that a person has to answer."""
        if self.status != "waiting":
            return None
        return next((event for event in reversed(self.events) if isinstance(event, ev.Interrupted)), None)

    # --- the worker

    def _go(self, value: Any) -> None:
        self._status = "running"
        self._cancel = threading.Event()
        self._worker = threading.Thread(target=self._work, args=(value,), daemon=True, name="app-turn")
        self._worker.start()

    def _work(self, value: Any) -> None:
        began = time.perf_counter()
        status: Status = "failed"
        try:
            graph = self._graph()
            self.mermaid = graph.mermaid()
            for event in graph.stream(self._given, self.thread, self._store(), value=value, cancel=self._cancel):
                if self.first_token_ms is None and isinstance(event, ev.Token):
                    self.first_token_ms = (time.perf_counter() - began) * 1e3
                with self._lock:
                    self._events.append(event)
                if isinstance(event, ev.RunEnded):
                    status = _status(event)
                    self.problem = event.detail if status == "failed" else ""
        except SAID as error:
            self.problem = " ".join(str(error).split())
        except Exception:
            logging.getLogger("penknife.app").exception("a turn failed")
            self.problem = "This question ran into a bug; the details are in the terminal the app was started from."
        if status == "failed" and self._cancel.is_set():  # a model call that was cut off ends its node with an error
            status = "stopped"
        if status == "stopped":
            self.problem = "Stopped."
        try:
            self._keep(status)
        except OSError as error:
            self.problem = self.problem or f"The run could not be put on record: {error.strerror}."
        self._status = status

    def _keep(self, status: Status) -> None:
        if self._record is None or status == "waiting" or not self._events:
            return
        self._record.mkdir(parents=True, exist_ok=True)
        name = f"{int(self.asked_at * 1000)}-{self.thread}"
        path = self._record / f"{name}.jsonl"
        about = {**self.about, "question": self.question, "thread": self.thread, "status": status, "at": self.asked_at,
                 "mermaid": self.mermaid, "problem": self.problem}  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        Trace(event for event in self.events if not isinstance(event, ev.Token)).save(path)
        self.saved = path


def state_of(events: list[ev.Event]) -> dict[str, Any]:
    """The fields of a run's state after these events."""
    state: dict[str, Any] = {}
    for event in events:
        if isinstance(event, ev.RunStarted):
            state.update(event.state)
        elif isinstance(event, ev.NodeEnded):
            state.update(event.changes)
            for name, added in event.added.items():
                before = state.get(name)
                state[name] = [*(before or []), *added] if isinstance(added, list) else {**(before or {}), **added}
    return state


def _status(event: ev.RunEnded) -> Status:
    named: dict[str, Status] = {"end": "done", "interrupted": "waiting", "cancelled": "stopped"}
    return named.get(event.reason, "failed")
