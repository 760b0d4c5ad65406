"""The model that an evaluation scores: where it lies, the card beside or inside it, how large it is.

Does: find them from what somebody typed, and open it. Does not: ask it (`evaluate.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.card import ADAPTER_FILE, ANY_TASK, FILE_NAME, Card, CardError, weight_files

if TYPE_CHECKING:
    from agents.chat import ChatModel
    from factory.tasks.task import Dialect, Example, Reliability, Task
    from factory.teacher import TeacherError, TeacherPlan


def model_path(spec: str) -> Path | None:
    """The file or directory of a model spec; None for an endpoint or a hub name."""
    kind, colon, rest = spec.partition(":")
    path = Path(rest if colon and kind in ("hf", "gguf", "onnx") else spec)
    return None if spec.startswith(("http://", "https://")) or not path.exists() else path


def card_beside(path: Path | None) -> Card | None:
    """The checked card of a model; None when there is none. Raises CardError for one that is damaged, newer or another's.

    Of a GGUF file it is the card inside, whatever lies beside it; of an export in a directory the card there, which describes the
    weights it was made from. Opening such a model checks that it is what was exported.
    """
    if path is None:
        return None
    if path.suffix == ".gguf" and path.is_file():
        from agents.models.gguf_file import card_of

        return card_of(path)
    directory = path if path.is_dir() else path.parent
    if not (directory / FILE_NAME).is_file():
        return None
    card = Card.load(path, check_weights=False)
    if card.file is None:
        card.check(directory)
    return card


def model_bytes(path: Path | None) -> int | None:
    """Bytes of weights that running the model needs, an adapter's local base included; None when they are not on this machine."""
    if path is None:
        return None
    total = sum(file.stat().st_size for file in weight_files(path))
    if path.is_dir() and (path / ADAPTER_FILE).is_file():
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        total += sum(file.stat().st_size for file in weight_files(base)) if base else 0
    return total


def stamp(path: Path | None) -> list[Any]:
    """What tells the weights of a model from others without reading them: names, sizes, times."""
    stats = [(file.name, file.stat()) for file in weight_files(path)] if path is not None else []
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


@dataclass(frozen=True)
class Scored:
    """What there is to know of a model before it is opened."""

    spec: str
    path: Path | None
    card: Card | None
    """of an ensemble: of its first member that learned the task, else of the first that has one"""
    several: TeacherPlan | None
    """an ensemble, checked as a teacher is"""

    @property
    def dialect(self) -> Dialect:
        if self.several is not None:
            return self.several.dialect
        return self.card.dialect if self.card is not None else "plain"

    @property
    def reliability(self) -> Reliability:
        """The card's own; of an ensemble none was measured."""
        return self.card.reliability if self.card is not None and self.several is None else ()

    @property
    def weights(self) -> object:
        """What tells them from others."""
        return self.several.revision if self.several is not None else stamp(self.path)

    @property
    def size_bytes(self) -> int | None:
        if self.several is not None:
            return sum(model_bytes(Path(member)) or 0 for member in self.several.members)
        return model_bytes(self.path)

    def check_examples(self, task: Task, examples: Sequence[Example]) -> None:
        """That an ensemble's n-grams know these examples' prompts and answers. Raises TeacherError."""
        from factory.ngrams import check_members

        check_members(self.several.members if self.several is not None else (), task, examples)

    def open(self, batch: int) -> ChatModel:
        """The model, ready to be asked. Raises ModelError, TeacherError."""
        from agents.models import open_model
        from factory.teacher import TeacherError, open_teacher

        if self.several is not None:
            try:
                whole: Any = open_teacher(self.several)
            except TeacherError as error:
                raise _as_model(error) from None
            whole.batch = batch
            opened: ChatModel = whole
        else:
            at_once = "in_flight" if self.spec.startswith(("http://", "https://")) else "batch"
            opened = open_model(self.spec, **{at_once: batch})
        return opened


def look_up(spec: str, task: Task) -> Scored:
    """What a spec names, a model of `open_model`'s or `ensemble:DIR,DIR`. Raises SettingsError, CardError, TeacherError."""
    if not spec.startswith("ensemble:"):
        path = model_path(spec)
        card = card_beside(path)
        _check_task(spec, card, task)
        return Scored(spec, path, card, None)
    from factory.settings import DistillSettings
    from factory.teacher import TeacherError, resolve_teacher

    try:
        several = resolve_teacher(spec, DistillSettings(task=task.name, teacher=spec))
    except TeacherError as error:
        raise _as_model(error) from None
    cards = []
    for member in several.members:
        card = card_beside(Path(member))
        _check_task(member, card, task)
        cards += [card] if card is not None else []
    own = next((card for card in cards if card.task == task.name and card.task_data), cards[0] if cards else None)
    return Scored(spec, None, own, several)


def _as_model(error: TeacherError) -> TeacherError:
    """The same of a model that is scored, where there is no --teacher to give."""
    from factory.teacher import WAYS_ON, TeacherError

    return TeacherError(str(error).removeprefix("--teacher ").replace(f": {WAYS_ON}", "; give fewer or smaller members"))


def _check_task(spec: str, card: Card | None, task: Task) -> None:
    from factory.settings import SettingsError

    if card is not None and card.task not in (task.name, ANY_TASK):
        raise SettingsError(f"{spec}: made for the task {card.task!r}, not {task.name!r}; give --task {card.task}")
    if card is not None and card.task == task.name and card.task_version > task.version:
        raise CardError(f"{spec}: made for version {card.task_version} of the task {task.name!r}, newer than the "
                        f"{task.version} of this program; update penknife")  # fmt: skip
