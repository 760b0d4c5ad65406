"""Guards: functions that look at what goes into a persona or comes out of it, and pass, rewrite, retry or stop.

Does: define the verdicts and run guards in order, with an event for everything but a pass.
Does not: retry by itself; the persona's loop does, at most `RETRIES` times an answer.

    def polite(text: str) -> Verdict:
        return Retry("say it politely") if "stupid" in text else PASS

    Persona("desk", model, guards=[polite, on_input(no_card_numbers)])

A guard may also return None or True for a pass, a text (or value) for a rewrite, or False for a stop. On a persona with `output=`
an output guard sees the pydantic instance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agents.events import Guarded, emit
from agents.tools import PersonaError

RETRIES = 2
"""Times one answer is asked for again because guards say so."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Nothing to say against it."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Go on with `value` instead."""

    value: Any


@dataclass(frozen=True, slots=True)
class Retry:
    """Ask the model again, telling it `message`. Only for what comes out."""

    message: str


@dataclass(frozen=True, slots=True)
class Stop:
    """No answer, for this reason; with `reply` that text is the answer."""

    reason: str
    reply: str | None = None


PASS = Pass()
Verdict = Pass | Rewrite | Retry | Stop
Guard = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class InputGuard:
    """A guard on what goes in. Made by `on_input`."""

    check: Guard

    def __call__(self, value: Any) -> Any:
        return self.check(value)


def on_input(guard: Guard) -> InputGuard:
    """This guard looks at the text a persona is asked, before any model runs."""
    return InputGuard(guard)


def split(guards: Sequence[Guard], owner: str) -> tuple[tuple[Guard, ...], tuple[Guard, ...]]:
    """(guards on the input, guards on the output). Raises PersonaError for what cannot be called."""
    for guard in guards:
        if not callable(guard):
            raise PersonaError(f"{guard!r} is no guard of {owner!r}: give functions of one text")
    inputs = tuple(guard for guard in guards if isinstance(guard, InputGuard))
    return inputs, tuple(guard for guard in guards if not isinstance(guard, InputGuard))


def check(guards: Sequence[Guard], value: Any, persona: str, count: Callable[[str], None]) -> tuple[Any, Retry | Stop | None]:
    """(value, possibly rewritten; the first verdict that does not let it through). `count` hears "guard:verdict"."""
    for guard in guards:
        verdict = verdict_of(guard(value))
        if isinstance(verdict, Pass):
            continue
        name = name_of(guard)
        kind = type(verdict).__name__.lower()
        detail = verdict.message if isinstance(verdict, Retry) else verdict.reason if isinstance(verdict, Stop) else ""
        count(f"{name}:{kind}")
        emit(Guarded(persona, name, kind, detail))
        if not isinstance(verdict, Rewrite):
            return value, verdict
        value = verdict.value
    return value, None


def verdict_of(said: Any) -> Verdict:
    """What a guard meant by what it returned."""
    if isinstance(said, Pass | Rewrite | Retry | Stop):
        return said
    if said is None or said is True:
        return PASS
    return Stop("refused") if said is False else Rewrite(said)


def name_of(guard: Guard) -> str:
    """What a guard is called in events and counts."""
    inner = guard.check if isinstance(guard, InputGuard) else guard
    return str(getattr(inner, "__name__", None) or type(inner).__name__)
