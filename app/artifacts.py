"""The models there are to ask: those shipped with the package, then those of the runs.

Does: find GGUF files, ONNX and model directories, read their cards without loading a weight, say of each whether this machine can
open it and why not.
Does not: open one (`app.wiring`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
    """One model with its card. `key` changes when the file does. `base`: the whole model an adapter is laid on."""

    path: Path
    card: Card = field(compare=False)
    origin: Literal["embedded", "run"]
    kind: Literal["gguf", "onnx", "hf"]
    size_bytes: int
    key: str
    run: str = ""
    base: Artifact | None = None

    @property
    def opened(self) -> Artifact:
        """What is loaded to ask it: itself, or the base that several adapters share."""
        return self.base or self

    @property
    def label(self) -> str:
        """How it is offered for choice: where it comes from, its file, its size."""
        where = "embedded" if self.origin == "embedded" else self.run
        name = self.path.name if self.kind != "hf" else "model (unquantized)"
        name += f" on {self.base.path.name}" if self.base is not None else ""
        return f"{where} / {name}, {self.size_bytes / 1e6:.1f} MB"

    @property
    def spec(self) -> str:
        """What `agents.open_model` takes: the base's file, for an adapter."""
        return f"{self.kind}:{self.opened.path}"

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

    An adapter is a model where a GGUF file of its base is among them. `embedded`: where the package's own lie, if elsewhere."""
    read: list[tuple[Artifact, str | None]] = []
    left_out: list[str] = []
    embedded = EMBEDDED if embedded is None else embedded
    for path, run in [*((path, "") for path in sorted(embedded.rglob("*.gguf"))), *_in_runs(runs)]:
        try:
            stat = path.stat()
            artifact, base = _read(path, stat.st_mtime_ns, stat.st_size, run)
        except (CardError, ModelError, OSError) as error:
            left_out.append(" ".join(str(error).split()))
            continue
        if artifact is not None:
            read.append((artifact, base))
    bases: dict[str, Artifact] = {}
    for artifact, base in read:
        if base is None and artifact.kind == "gguf" and artifact.card.file is not None:
            bases.setdefault(artifact.card.file.source_sha256, artifact)
    found = [artifact if base is None else replace(artifact, base=bases[base]) for artifact, base in read
             if base is None or base in bases]  # fmt: skip
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


def on_one_base(sql: Path | None = None) -> dict[str, Artifact] | None:
    """{"sql", "route", "tools"}: adapters shipped with the package on the one base they share; None where not all can be opened.

    `sql`: another adapter of that base instead. Raises CardError, ModelError where it is none."""
    shipped = [one for one in find_artifacts(EMBEDDED / "none", EMBEDDED)[0] if one.base is not None and one.problem is None]
    chosen = {task: next((one for one in shipped if one.card.task == task), None) for task in ("route", "tools", "sql")}
    found = {task: one for task, one in chosen.items() if one is not None}
    if len(found) < 3 or len({one.opened.key for one in found.values()}) > 1:
        return None
    if sql is not None:
        stat = sql.stat()
        own, base = _read(sql, stat.st_mtime_ns, stat.st_size, sql.parent.name)
        under = found["sql"].opened
        if own is None or base is None or under.card.file is None or base != under.card.file.source_sha256:
            raise ModelError(f"{sql}: is no adapter for {under.path.name}; write one with export.gguf --lora adapter")
        found["sql"] = replace(own, base=under)
    return found


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
def _read(path: Path, mtime_ns: int, size: int, run: str) -> tuple[Artifact | None, str | None]:
    """(the model, hash of the weights it must be laid on: None for a whole model). No model for a directory's adapter."""
    card, base = read_card(path)
    kind: Literal["gguf", "onnx", "hf"] = "gguf" if path.suffix == ".gguf" else "onnx" if any(path.glob("*.onnx")) else "hf"
    adapter = is_adapter(path, card)
    if adapter and (kind != "gguf" or base is None):
        return None, None
    total = size if kind == "gguf" else sum(file.stat().st_size for file in weight_files(path))
    origin: Literal["embedded", "run"] = "run" if run else "embedded"
    made = Artifact(path, card, origin, kind, total, f"{path}:{mtime_ns}:{total}", run)
    return made, base if adapter else None
