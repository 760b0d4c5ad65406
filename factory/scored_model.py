"""The model that an evaluation scores: where it lies, the card beside or inside it, how large it is.

Does: find them from what somebody typed, and open it. Does not: ask it (`evaluate.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.card import ADAPTER_FILE, FILE_NAME, Card, weight_files

if TYPE_CHECKING:
    from agents.chat import ChatModel
    from factory.settings import EvaluateSettings
    from factory.teacher import TeacherPlan


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


def planned_ensemble(settings: EvaluateSettings) -> TeacherPlan | None:
    """`ensemble:DIR,DIR`, checked as a teacher is; None for any other model. Raises TeacherError."""
    if not settings.model.startswith("ensemble:"):
        return None
    from factory.settings import DistillSettings
    from factory.teacher import resolve_teacher

    return resolve_teacher(settings.model, DistillSettings(task=settings.task, teacher=settings.model))


def open_scored(settings: EvaluateSettings, several: TeacherPlan | None) -> ChatModel:
    """The model to score, ready to be asked: a planned ensemble, else by `open_model`. Raises ModelError, TeacherError."""
    from agents.models import open_model
    from factory.teacher import open_teacher

    if several is not None:
        return open_teacher(several)
    at_once = "in_flight" if settings.model.startswith(("http://", "https://")) else "batch"
    opened: ChatModel = open_model(settings.model, **{at_once: settings.batch})
    return opened
