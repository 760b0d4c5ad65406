"""Where a graph goes next: END, Goto, Choice, and what g.add takes besides functions (Runnable).

Does: name a target by string, plain function or anything with a `name`; keep the probabilities a model gave to its choice.
Does not: know nodes or edges (`agents.graph`) or ask a model (`Persona.choose` makes the Choice).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable


class GraphError(Exception):
    """A graph cannot be built, checked, run or continued as wanted: one sentence with the value, the choices and the next step.

    `run` holds what there is of a run that failed on its way (`agents.graph.Run`), None when nothing was run.
    """

    run: Any = None


class _End(str):
    """The end of a graph: a string that no node may be called, so that it prints, compares and is stored like a name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "END"


END: Final = _End("__end__")


@runtime_checkable
class Result(Protocol):
    """What a Runnable answers: the text, and the value behind it (a pydantic instance when one was asked for, else the text)."""

    text: str

    @property
    def value(self) -> Any: ...


@runtime_checkable
class Runnable(Protocol):
    """What `g.add` takes besides functions: a persona, a cascade, or anything else that has a name and answers a text.

    One that also has `async def arun(text, *, history=None, **variables)` is awaited by `g.arun` instead of held in a thread.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, text: str, *, history: Any = None, **variables: Any) -> Any: ...


def name_of(place: Any) -> str:
    """The node name of a string, function, persona or graph. Raises GraphError for anything without a name."""
    if isinstance(place, str):
        return place
    name = getattr(place, "name", None) or getattr(place, "__name__", None)
    if not isinstance(name, str):
        raise GraphError(f"{place!r} names no node: give a node's name, its function, its persona or END")
    return name


class Goto:
    """Go to `target` instead of along the node's own edges.

    `state_update` (field -> value) is written to the state as if the node had returned it. `input` (field -> value) is seen by
    the target alone: several Gotos with their own inputs are one node run over several inputs at once. `probabilities`
    (target -> p) are kept in the trace.
    """

    __slots__ = ("input", "probabilities", "state_update", "target")

    def __init__(
        self,
        target: Any,
        state_update: Mapping[str, Any] | None = None,
        probabilities: Mapping[str, float] | None = None,
        input: Mapping[str, Any] | None = None,
    ) -> None:
        self.target = name_of(target)
        self.state_update = dict(state_update) if state_update is not None else None
        self.probabilities = dict(probabilities) if probabilities is not None else None
        self.input = dict(input) if input is not None else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self.target == other
        if isinstance(other, Goto):
            return all(getattr(self, slot) == getattr(other, slot) for slot in Goto.__slots__)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.target)


class Choice(Goto):
    """What a model picked among given keys: `.target` is the key, `.confidence` its probability, None where there is none.

    `Choice == "desk"` compares the key, so that plain code may ask for it; returned from a node, the graph goes there.
    """

    __slots__ = ("confidence",)

    def __init__(
        self,
        target: Any,
        probabilities: Mapping[str, float] | None = None,
        confidence: float | None = None,
        state_update: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(target, state_update, probabilities)
        if confidence is None and self.probabilities is not None:
            confidence = self.probabilities.get(self.target)
        self.confidence = confidence

    def __str__(self) -> str:
        return self.target
