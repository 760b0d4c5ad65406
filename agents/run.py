"""What a run leaves behind: its state, its trace, what it cost, what it waits for; and a thread's past, step by step.

Does not: run anything (`agents.graph`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from agents import events as ev
from agents.stored_events import unpack
from agents.trace import PersonaUsage, Trace


@dataclass(frozen=True, slots=True)
class Run:
    """`reason` says why it stopped: "end", "interrupted", "max_steps", "cancelled", "error". `steps` counts this run's."""

    state: Any
    trace: Trace
    reason: ev.EndReason
    detail: str = ""
    thread: str | None = None
    steps: int = 0
    interrupted: ev.Interrupted | None = None
    """What the run waits for (`g.resume(thread, answer)`); the first, when parallel branches ask."""

    @property
    def usage(self) -> dict[str, PersonaUsage]:
        """Tokens, milliseconds, tool calls and escalations per persona."""
        return self.trace.usage()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A thread after one of its rows. `kind`: "start", "node", "interrupt", "answer", "error". Step 0 is before the first node.

    Steps that ran in parallel show the state from before their round until the last of them is done.
    """

    step: int
    kind: str
    node: str | None
    state: BaseModel
    next: tuple[str, ...]
    at: datetime
    kept: bytes | str | None = None

    @property
    def events(self) -> list[ev.Event]:
        """The step's kept events: model and tool calls, repairs, guards, escalations, warnings, failures."""
        return unpack(self.kept)


def moment(at_ms: int) -> datetime:
    """Unix milliseconds as an aware time."""
    return datetime.fromtimestamp(at_ms / 1000.0, UTC)
