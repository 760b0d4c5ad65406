"""A cascade: a small persona answers, a larger one when the small one is unsure, invalid, repeating or over its budget.

Does: measure confidence by the model's own probabilities (or the agreement of several samples), compare it with a threshold given
or taken from the card's calibration, go on to the next model, record every escalation as an event that `agents.harvest` reads.
Does not: catch a model that fails (ModelError), or cause a side effect again that the first attempt had already caused.

    desk = desk | big                                   # a persona, or the same persona on another model
    desk = Cascade(desk, big, threshold=0.8, measure="margin")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

from agents.answer import NoAnswer, Reason, Result
from agents.awaited import in_thread
from agents.budget import Totals
from agents.chat import ChatModel, Message, ToolCall
from agents.confidence import Measure, agreement, margin, threshold_for
from agents.events import Escalated, emit
from agents.persona import Persona
from agents.tools import PersonaError, ToolResult

if TYPE_CHECKING:
    import asyncio

    from agents.route import Choice

THRESHOLD = 0.5
"""Confidence below which an answer counts as unsure where neither the caller nor a card says otherwise."""
ACCURACY = 0.9
"""Share of kept answers that should be right, for reading a threshold off a calibration."""
SAMPLES = 5
HEAT = 0.8
"""Temperature of the further samples that agreement is measured on."""
ESCALATING: frozenset[Reason] = frozenset(("invalid", "repeating", "over-budget", "rounds", "unsure"))


class Cascade:
    """`first | second`, with the name of the first. It can be called, awaited, asked to choose and chained, as a persona."""

    def __init__(
        self,
        first: Persona | Cascade,
        second: Persona | Cascade | ChatModel,
        *,
        threshold: float | None = None,
        measure: Measure = "mean",
        samples: int = SAMPLES,
        accuracy: float = ACCURACY,
    ) -> None:
        """`threshold`: 0-1; default: from the card's calibration, so that kept answers are right with `accuracy`, else 0.5.

        `measure`: "mean" (length-normalised probability, what cards calibrate), "margin" (smallest lead over a rival), or
        "agreement" (share of `samples` answers equal to the first). Raises PersonaError for values out of range.
        """
        self.name: str = first.name
        self.description: str = first.description
        self.totals: Totals = first.totals
        self.routes: tuple[str, ...] = first.routes
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise PersonaError(f"{first.name!r}: threshold {threshold!r} must lie between 0 and 1")
        if measure not in ("mean", "margin", "agreement"):
            raise PersonaError(f"{first.name!r}: unknown measure {measure!r}; choose from mean, margin, agreement")
        if samples < 2:
            raise PersonaError(f"{first.name!r}: agreement of {samples} samples says nothing; give at least 2")
        head = first if isinstance(first, Persona) else None
        self.measure: Measure = measure if head is not None else "mean"
        self.samples = samples
        if head is not None:
            tops = {"mean": 0, "margin": 2, "agreement": 0}[measure]
            sampling = head.sampling.model_copy(update={"logprobs": True, "top_logprobs": max(tops, head.sampling.top_logprobs)})
            if sampling != head.sampling:
                head = head.replaced(sampling=sampling)
            risky = [tool.name for tool in head.tools if tool.side_effects]
            if measure == "agreement" and risky:
                raise PersonaError(f"{first.name!r}: agreement asks several times, and {risky[0]!r} has side effects; use 'mean'")
        self.first: Persona | Cascade = head if head is not None else first
        self.second: Persona | Cascade = _persona(second, first)
        calibrated = None
        if threshold is None and measure == "mean" and head is not None and head.task is not None:
            calibrated = threshold_for(head.task.calibration, accuracy)
        self.threshold = threshold if threshold is not None else calibrated if calibrated is not None else THRESHOLD

    def __call__(self, text: str, *, history: Any = None, **variables: Any) -> Result:
        """The first answer that is good enough; `result.persona` says whose, `result.escalated` why it is not the first's.

        Raises as a persona does; NoAnswer is then the last one's.
        """
        return self.run(text, history, variables)

    async def arun(self, text: str, *, history: Any = None, **variables: Any) -> Result:
        """The same without holding up the event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        result: Result = await in_thread(lambda: self.run(text, history, variables, loop=loop), f"persona-{self.name}")
        return result

    def run(
        self,
        text: str,
        history: Any,
        variables: Mapping[str, Any],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        known: Sequence[tuple[ToolCall, ToolResult]] = (),
    ) -> Result:
        """See `Persona.run`."""
        earlier = list(history) if isinstance(history, MutableSequence) else history
        try:
            result = self.first.run(text, earlier, variables, loop=loop, known=known)
        except NoAnswer as none:
            if none.reason not in ESCALATING:
                raise
            reason, said, calls, confidence = none.reason, none.text, none.calls, none.confidence
            asked = none.messages[: _questions(none.messages)]
        else:
            confidence = self._confidence(result, text, earlier, variables)
            if result.stopped == "over-budget":
                reason = "over-budget"
            elif confidence is not None and confidence < self.threshold and result.escalated is None:
                reason = "unsure"
            else:
                _extend(history, result)
                return result
            said, calls = result.text, result.calls
            asked = tuple(earlier or ()) + result.messages[:1] if isinstance(earlier, list) else result.messages[:1]
        self.totals.count("escalated")
        task = self._task()
        question = (Message(role="user", content=text),) if task is not None else _as_messages(asked)
        try:
            better = self.second.run(text, history, variables, loop=loop, known=[*known, *calls])
        except NoAnswer:
            emit(Escalated(self.name, self.second_name, reason, confidence, question, said, None, task))
            raise
        emit(Escalated(self.name, self.second_name, reason, confidence, question, said, better.text, task))
        better.escalated = reason
        return better

    def choose(self, text: str, options: Mapping[str, Any] | Iterable[Any], *, history: Any = None, **variables: Any) -> Choice:
        """The first's choice where it is sure of it (by its probability), else the second's."""
        given = options if isinstance(options, Mapping) else list(options)
        confidence: float | None = None
        reason: Reason = "unsure"
        said = ""
        try:
            choice = self.first.choose(text, given, history=history, **variables)
        except NoAnswer as none:
            if none.reason not in ESCALATING:
                raise
            reason, said = none.reason, none.text
        else:
            confidence, said = choice.confidence, choice.target
            if confidence is None or confidence >= self.threshold:
                return choice
        self.totals.count("escalated")
        question = (Message(role="user", content=text),)
        try:
            better = self.second.choose(text, given, history=history, **variables)
        except NoAnswer:
            emit(Escalated(self.name, self.second_name, reason, confidence, question, said, None, None))
            raise
        emit(Escalated(self.name, self.second_name, reason, confidence, question, said, better.target, None))
        return better

    async def achoose(
        self, text: str, options: Mapping[str, Any] | Iterable[Any], *, history: Any = None, **variables: Any
    ) -> Choice:
        """`choose` without holding up the event loop."""
        made: Choice = await in_thread(lambda: self.choose(text, options, history=history, **variables), self.name)
        return made

    def __or__(self, other: Persona | Cascade | ChatModel) -> Cascade:
        """Where the second is not good enough either, `other`: `a | b | c` is `a | (b | c)`."""
        return Cascade(self.first, self.second | other, threshold=self.threshold, measure=self.measure, samples=self.samples)

    def on(self, model: ChatModel) -> Persona:
        """The first persona on another model."""
        return self.first.on(model)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names that every call must fill in the first's prompt."""
        return self.first.variables

    @property
    def second_name(self) -> str:
        """Whom it escalates to: its name, or its model's where that is the same persona."""
        head: Any = self.second
        while isinstance(head, Cascade):
            head = head.first
        return str(head.model.name if head.name == self.name else head.name)

    def _confidence(self, result: Result, text: str, history: Any, variables: Mapping[str, Any]) -> float | None:
        if self.measure == "margin":
            return margin(result.logprobs)
        if self.measure == "mean" or not isinstance(self.first, Persona):
            return result.confidence
        others = []
        for number in range(1, self.samples):
            hot = self.first.sampling.model_copy(update={"temperature": HEAT, "seed": number})
            try:
                others.append(self.first.replaced(sampling=hot).run(text, list(history or ()), variables).value)
            except NoAnswer:
                others.append(None)
        return agreement(result.value, others)

    def _task(self) -> str | None:
        head: Any = self.first
        while isinstance(head, Cascade):
            head = head.first
        return head.task.name if head.task is not None else None

    def __repr__(self) -> str:
        return f"{self.first!r} | {self.second!r}"


def _persona(second: Any, first: Persona | Cascade) -> Persona | Cascade:
    if isinstance(second, Persona | Cascade):
        return second
    if callable(getattr(second, "generate", None)):
        model: ChatModel = second
        return first.on(model)
    raise PersonaError(f"{first.name!r} | {second!r}: the right side must be a persona or a model")


def _questions(messages: Sequence[Message]) -> int:
    """How many messages there are up to the last question before the first answer of this call."""
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    return last + 1


def _as_messages(turns: Sequence[Any]) -> tuple[Message, ...]:
    return tuple(turn if isinstance(turn, Message) else Message.model_validate(turn) for turn in turns)


def _extend(history: Any, result: Result) -> None:
    if isinstance(history, MutableSequence):
        dicts = bool(history) and isinstance(history[0], dict)
        new = result.messages
        history.extend([message.model_dump(exclude_defaults=True) for message in new] if dicts else new)
