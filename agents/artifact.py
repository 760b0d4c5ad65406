"""From a trained file to a persona: the card says prompt, constraint, parser and stops, the task's own code carries them out.

Does: read the card of a GGUF file, an ONNX or a model directory, find the task it was made for, refuse an artifact or adapter of
another base, hand `Persona` what it needs.
Does not: know a task. A package that brings tasks announces them as entry points of the group `penknife.tasks`: a function
`answerer(name, card, **context)` that returns an Answerer. So what training constrained is what runtime constrains.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from agents.card import ADAPTER_FILE, FILE_NAME, CalibrationEntry, Card, CardError
from agents.chat import Adapter, ChatModel, Message, ModelError, Sampling, TokenLogprob, ToolCall, ToolSpec
from agents.constrain import Constraint
from agents.tools import PersonaError

GROUP = "penknife.tasks"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as the task asks it. `decode` turns a completion into the answer, or raises an error with a `reason`; `calls`,
    for a task whose answers are calls of functions, reads them from an answer."""

    messages: tuple[Message, ...]
    constraint: Constraint | None
    decode: Callable[[str], str]
    calls: Callable[[str], tuple[ToolCall, ...]] | None = None
    confidence: Callable[[Sequence[TokenLogprob]], float | None] | None = None
    """how sure a completion was, by its log-probabilities; None: their mean"""
    reliability: tuple[tuple[float, float], ...] = ()
    """points of the card that turn this into a probability"""
    overrule: Callable[[str, Sequence[TokenLogprob]], tuple[str, float] | None] | None = None
    """(answer, its log-probabilities) -> the answer to give instead and how sure that is, None to keep it"""
    alternatives: int = 0
    """other tokens `overrule` needs to know the log-probability of, at every step"""


@runtime_checkable
class Answerer(Protocol):
    """A task's face at run time, bound to what it answers about (sql: a database)."""

    name: str
    card_sha256: str | None

    @property
    def calibration(self) -> tuple[CalibrationEntry, ...]: ...

    def ask(self, text: str, **variables: Any) -> Asked:
        """Prompt, constraint and parser for one question; raises a one-sentence error when something to ask about is missing."""
        ...

    def plain(self) -> Answerer:
        """The same for a model that was not trained on the card's dialect."""
        ...

    def verify(self, question: str, answer: str) -> str:
        """ "ok", or why this answer may not be learned from, as one kebab-case word."""
        ...


@runtime_checkable
class CallsTools(Protocol):
    """An Answerer that may answer about a persona's own tools; its calls are then run."""

    def with_tools(self, specs: Sequence[ToolSpec]) -> Answerer:
        """The same about these, where its task calls functions and was given no others."""
        ...


def open_artifact(path: str | Path, model: ChatModel | None, context: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the persona in `path` (a .gguf file, a directory with card.json, or the card itself).

    `model` None opens the artifact itself; a model that is given must be it, or the base of an adapter. `context` holds what the
    task answers about and settings of Persona. Raises PersonaError, CardError or ModelError, before weights are read if it can.
    """
    path = Path(path)
    card, base = read_card(path)
    adapter = is_adapter(path, card)
    settings, rest = _divided(context)
    task = rest.pop("task", None)
    answerer = task if isinstance(task, Answerer) else _answerer(path, card, task)(card.task, card, **rest)
    if model is None:
        if adapter and path.suffix == ".gguf":
            raise PersonaError(f"{path}: is an adapter; give model=open_model(FILE) with its base, {card.base.id}")
        from agents.models import open_model

        model, adapter = open_model(str(path.parent if path.name == FILE_NAME else path)), False
    elif adapter:
        check_base(path, base, model, "an adapter")
    else:
        _check_same(path, card, model)
    return {
        "name": settings.pop("name", card.name or card.task),
        "model": model,
        "description": settings.pop("description", f"answers {card.task} questions"),
        "sampling": settings.pop("sampling", Sampling(max_tokens=card.max_tokens, stop=card.stop, logprobs=True)),
        "adapter": str(path) if adapter else None,
        "task": answerer,
        **settings,
    }


def read_card(path: Path) -> tuple[Card, str | None]:
    """(card, hash of the base an adapter belongs to or None). Raises CardError, ModelError."""
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path}: no such file; give a .gguf file or a directory that training or an export wrote")
        from agents.models.gguf_file import card_of, read_gguf

        file = read_gguf(path)
        card = card_of(file)
        if card is None:
            raise CardError(
                f"{path}: has no card inside, so nothing says how it is asked; use Persona(name, open_model(…)) instead"
            )
        base = file.metadata.get("penknife.base.sha256") or (card.file.base_sha256 if card.file is not None else None)
        return card, base if isinstance(base, str) else None
    card = Card.load(path, check_weights=False)
    return card, (card.file.base_sha256 if card.file is not None else None) or card.base.sha256


def is_adapter(path: Path, card: Card) -> bool:
    """Whether an artifact is an adapter rather than a whole model."""
    if card.file is not None and path.suffix == ".gguf":
        return card.file.kind == "adapter"
    return path.is_dir() and (path / ADAPTER_FILE).is_file()


def card_hash(card: Card) -> str:
    """SHA-256 of a card's JSON, as traces carry it."""
    return hashlib.sha256(card.model_dump_json().encode()).hexdigest()


def weights_of(model: Any) -> str | None:
    """The hash of the weights a loaded model came from (of the directory, for an exported file); None when nothing says so."""
    found = getattr(model, "source_sha256", None)
    if isinstance(found, str):
        return found
    card = getattr(model, "card", None)
    if isinstance(card, Card):
        return card.file.source_sha256 if card.file is not None else card.weights_sha256
    place = Path(str(getattr(model, "name", "")))
    if (place / FILE_NAME).is_file():
        return Card.load(place, check_weights=False).weights_sha256
    return None


def check_base(path: Path | str, base: str | None, model: Any, what: str) -> None:
    """Raises PersonaError when an adapter was trained on other weights than `model` has; unknown on either side passes."""
    found = weights_of(model)
    if base is not None and found is not None and base != found:
        raise PersonaError(
            f"{path}: is {what} for the base with weights {base[:12]}…, but {model.name} has {found[:12]}…; open the base it "
            "was trained on"
        )


def adapters_of(given: Any, owner: str) -> tuple[Adapter, ...]:
    """What somebody gave as adapter=: None, a path, (path, scale), an Adapter, or a list of those. Raises PersonaError."""
    if given is None:
        return ()
    several = given if isinstance(given, list) or (isinstance(given, tuple) and not _is_pair(given)) else [given]
    out = []
    for one in several:
        if isinstance(one, Adapter):
            out.append(one)
        elif _is_pair(one):
            out.append(Adapter(path=str(one[0]), scale=float(one[1])))
        elif isinstance(one, str | Path):
            out.append(Adapter(path=str(one)))
        else:
            raise PersonaError(f"{owner!r}: adapter {one!r} is neither a path nor (path, scale)")
    return tuple(out)


def _is_pair(one: Any) -> bool:
    return isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], int | float)


def check_adapters(adapters: Sequence[Adapter], model: Any, owner: str) -> None:
    """Raises PersonaError for an adapter that is not there or belongs to another base. A model without weights of its own (a
    server, a test double) is not checked."""
    if not (hasattr(model, "source_sha256") or hasattr(model, "prompt_ids")):
        return
    for adapter in adapters:
        path = Path(adapter.path)
        if not path.exists():
            raise PersonaError(f"{owner!r}: adapter {adapter.path} does not exist; give the file or directory export.lora wrote")
        base: Any = None
        if path.suffix == ".gguf":
            from agents.models.gguf_file import read_gguf

            metadata = read_gguf(path).metadata
            if metadata.get("general.type") != "adapter":
                raise PersonaError(f"{owner!r}: {adapter.path} is a whole model, not an adapter; open it with open_model")
            base = metadata.get("penknife.base.sha256")
        elif (path / FILE_NAME).is_file():
            base = Card.load(path, check_weights=False).base.sha256
        check_base(adapter.path, base if isinstance(base, str) else None, model, "an adapter")


def _check_same(path: Path, card: Card, model: Any) -> None:
    expected = card.file.source_sha256 if card.file is not None else card.weights_sha256
    found = weights_of(model)
    if expected is not None and found is not None and expected != found:
        raise PersonaError(
            f"{path}: its weights ({expected[:12]}…) are not those of {model.name} ({found[:12]}…): it is an artifact of another "
            "base; leave model out, or open this file"
        )


def _divided(context: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of Persona, what the task answers about)."""
    from agents.persona import Persona

    known = set(inspect.signature(Persona.__init__).parameters) - {
        "self",
        "model",
        "prompt",
        "task",
        "constraint",
        "output",
        "adapter",
    }
    return {k: v for k, v in context.items() if k in known}, {k: v for k, v in context.items() if k not in known}


def _answerer(path: Path, card: Card, given: Any) -> Callable[..., Answerer]:
    if given is not None:
        if not callable(given):
            raise PersonaError(f"{path}: task={given!r} is neither an Answerer nor a function that makes one")
        made: Callable[..., Answerer] = given
        return made
    return find_task(card.task, str(path))


def find_task(name: str, where: str) -> Callable[..., Answerer]:
    """The function that makes answerers for a task. Raises PersonaError with the tasks that are installed."""
    from importlib.metadata import entry_points

    points = entry_points(group=GROUP)
    for point in points:
        if point.name == name:
            found: Callable[..., Answerer] = point.load()
            return found
    known = ", ".join(sorted({point.name for point in points})) or "none"
    raise PersonaError(
        f"{where}: made for the task {name!r}, which no installed package brings (there are: {known}); "
        "install penknife whole, or give task=…"
    )
