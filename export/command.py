"""What `export.gguf` and `export.onnx` share as commands.

Does: find the model directory meant, check --json before anything costly, run a command and print its result, make a module
callable.
Does not: know a format, or export anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from export.errors import ExportError
from export.gate import GateSettings
from export.result import ExportResult, print_result
from factory.events import Listener
from factory.settings import parse

Settings = TypeVar("Settings", bound=GateSettings)


def directory_of(place: Path, lora: Literal["merge", "adapter"]) -> Path:
    """The model directory meant: a run's is its model/, and with --lora adapter the adapter/ inside."""
    if not (place / "config.json").is_file() and not (place / "adapter_config.json").is_file() and (place / "model").is_dir():
        place = place / "model"
    if lora == "adapter" and not (place / "adapter_config.json").is_file():
        if not (place / "adapter" / "adapter_config.json").is_file():
            raise ExportError(f"{place}: holds no adapter (adapter_config.json); give an adapter directory, or leave --lora away")
        place = place / "adapter"
    return place


def check_json(file: Path | None) -> None:
    """Raises ExportError when --json cannot be written there."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ExportError(f"--json {file}: cannot be written there; give a file in a directory that exists")


def run_command(
    run: Callable[[Settings, Listener], ExportResult], settings: type[Settings], argv: Sequence[str] | None, name: str, about: str
) -> None:
    """Parse, export, print; exit status 1 for a file that was rejected."""
    from factory.progress import ProgressView

    given = parse(settings, argv, f"python -m {name}", about)
    with ProgressView() as view:
        result = run(given, view)
    print_result(result)
    if not result.kept:
        raise SystemExit(1)


def make_callable(name: str, export: Callable[..., ExportResult]) -> None:
    """Lets `export.gguf(CKPT, quant="Q8_0", …)` stand beside the command: the module `name` called is `export`."""

    class Callable(ModuleType):
        def __call__(self, ckpt: Path | str, listener: Listener | None = None, **settings: Any) -> ExportResult:
            return export(ckpt, listener, **settings)

    sys.modules[name].__class__ = Callable
