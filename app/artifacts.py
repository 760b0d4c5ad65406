"""The models there are to ask: those shipped with the package, then those of the runs.

Does: find GGUF files, ONNX and model directories, read their cards without loading a weight, say of each whether this machine can
open it and why not.
Does not: open one (`app.wiring`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from agents.artifact import is_adapter, read_card
from agents.card import FILE_NAME, Card, CardError, weight_files
from agents.chat import ModelError

EMBEDDED = Path(__file__).resolve().parent.parent / "factory" / "data" / "embedded"
_NEEDS = {"gguf": ("llama_cpp", "gguf"), "onnx": ("onnxruntime_genai", "onnx"), "hf": ("transformers", "")}


@dataclass(frozen=True)
class Artifact:
    """One model with its card. `key` changes when the file does."""

    path: Path
    card: Card = field(compare=False)
    origin: Literal["embedded", "run"]
    kind: Literal["gguf", "onnx", "hf"]
    size_bytes: int
    key: str
    run: str = ""

    @property
    def label(self) -> str:
        """How it is offered for choice: where it comes from, its file, its size."""
        where = "embedded" if self.origin == "embedded" else self.run
        name = self.path.name if self.kind != "hf" else "model (unquantized)"
        return f"{where} / {name}, {self.size_bytes / 1e6:.1f} MB"

    @property
    def spec(self) -> str:
        """What `agents.open_model` takes."""
        return f"{self.kind}:{self.path}"

    @property
    def problem(self) -> str | None:
        """Why it cannot be opened here; None when it can."""
        module, extra = _NEEDS[self.kind]
        if importlib.util.find_spec(module) is not None:
            return None
        return f"{self.path.name} needs {module}: pip install 'penknife[{extra}]'"

    @property
    def single_table(self) -> bool:
        """Whether it learned questions about one table at a time."""
        from factory.tasks.sql.one_table import learned_form

        return self.card.task == "sql" and learned_form(self.card) == "single"


def find_artifacts(runs: Path, embedded: Path | None = None) -> tuple[list[Artifact], list[str]]:
    """(models in the order they are preferred, one sentence for each file that was left out). The newest run comes first.

    `embedded`: where the package's own lie, if elsewhere."""
    found: list[Artifact] = []
    left_out: list[str] = []
    embedded = EMBEDDED if embedded is None else embedded
    for path, run in [*((path, "") for path in sorted(embedded.rglob("*.gguf"))), *_in_runs(runs)]:
        try:
            stat = path.stat()
            artifact = _read(path, stat.st_mtime_ns, stat.st_size, run)
        except (CardError, ModelError, OSError) as error:
            left_out.append(" ".join(str(error).split()))
            continue
        if artifact is not None:
            found.append(artifact)
    return found, left_out


def adapters(runs: Path) -> list[str]:
    """Paths of adapters that exports and trainings of the runs left."""
    found = []
    for path in sorted(runs.glob("*/model/*.gguf")):
        try:
            card, _ = read_card(path)
        except (CardError, ModelError, OSError):
            continue
        if is_adapter(path, card):
            found.append(str(path))
    return found


def for_task(artifacts: list[Artifact], task: str) -> list[Artifact]:
    """Those made for a task that can be opened here, order kept."""
    return [one for one in artifacts if one.card.task == task and one.problem is None]


def three_blades(artifacts: list[Artifact]) -> tuple[Artifact, Artifact] | None:
    """The preferred models for routing and for tool calls; None until there is one of each, and one for SQL."""
    blades = [for_task(artifacts, task) for task in ("route", "tools", "sql")]
    return (blades[0][0], blades[1][0]) if all(blades) else None


def _in_runs(runs: Path) -> Iterator[tuple[Path, str]]:
    if not runs.is_dir():
        return
    models = [(run, run / "model") for run in runs.iterdir() if (run / "model").is_dir()]
    models.sort(key=lambda pair: pair[1].stat().st_mtime, reverse=True)
    for run, model in models:
        for path in sorted(model.glob("*.gguf")):
            yield path, run.name
    for run, model in models:
        for card in sorted(model.glob(f"*/{FILE_NAME}")):
            if any(card.parent.glob("*.onnx")):
                yield card.parent, run.name
    for run, model in models:
        if (model / FILE_NAME).is_file() and any(model.glob("*.safetensors")):
            yield model, run.name


@lru_cache(maxsize=256)
def _read(path: Path, mtime_ns: int, size: int, run: str) -> Artifact | None:
    """None for an adapter: it is no model by itself."""
    card, _ = read_card(path)
    if is_adapter(path, card):
        return None
    kind: Literal["gguf", "onnx", "hf"] = "gguf" if path.suffix == ".gguf" else "onnx" if any(path.glob("*.onnx")) else "hf"
    total = size if kind == "gguf" else sum(file.stat().st_size for file in weight_files(path))
    origin: Literal["embedded", "run"] = "run" if run else "embedded"
    return Artifact(path, card, origin, kind, total, f"{path}:{mtime_ns}:{total}", run)
