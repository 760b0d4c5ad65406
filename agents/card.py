"""The card that travels with every artifact: what it was made for, from what, how it is run and how good it is.

Does: hold the card's fields, read and write `card.json`, hash weights, refuse a newer card or other weights.
Does not: open a model, score one, or know a task.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

FORMAT_VERSION = 3
"""2 added `file`, 3 `reliability` and `task_data`; older cards read as before"""
ANY_TASK = "any"
"""Task of a base model that learned several: it is asked in its dialect about any of them."""
FILE_NAME = "card.json"
ADAPTER_FILE = "adapter_model.safetensors"
TASK_DATA_BYTES = 256 * 1024
"""Most that `task_data` may take as JSON: a card is read before anything else is, and travels in every file."""


class CardError(Exception):
    """A card that cannot be used: one sentence with the file, what is wrong and the next step."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BaseEntry(_Part):
    """The model training began from."""

    id: str
    """hub name, directory name, or scratch:tiny and the like"""
    revision: str | None = None
    """hub commit; None for a local or from-scratch base"""
    sha256: str | None = None
    """`sha256_of_weights` of the base; None for random weights"""


class DataEntry(_Part):
    """One set of rows the model saw or was scored on."""

    name: str
    split: str
    license: str
    source: str = ""
    sha256: str
    n: int = Field(ge=0)


class ScoreEntry(_Part):
    """One measured score, 0-1, with its 95 % Wilson interval."""

    split: str
    n: int = Field(ge=0)
    score: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    metric: str
    decoding: str
    """how it was decoded, in words: "greedy, constrained" """


class CalibrationEntry(_Part):
    """Answers with confidence >= `threshold` are the share `kept` of all, and `accuracy` of them are right."""

    threshold: float
    kept: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1)


class FileEntry(_Part):
    """The exported file a card is inside of: what was done to the weights, and what that cost."""

    name: str
    """file or directory name when it was written"""
    format: Literal["gguf", "onnx"]
    precision: str
    """quant type as llama.cpp spells it (Q8_0, Q4_K_M, ...), or fp32, int8, int4"""
    kind: Literal["model", "adapter"] = "model"
    bits_per_weight: float = Field(gt=0)
    kept_f16: tuple[str, ...] = ()
    """tensors a Q8_0 file has in F16, because it would be too far from its source otherwise"""
    source_sha256: str
    """`sha256_of_weights` of the directory it was converted from"""
    sha256: str | None = None
    """`sha256_of_weights` of an ONNX directory itself; a GGUF file carries its own seal"""
    base_sha256: str | None = None
    """for an adapter: `sha256_of_weights` of the base it was trained on"""
    kld: float | None = None
    """mean Kullback-Leibler divergence of its next-token distributions from the source's in float32, nats per token"""
    top1: float | None = None
    """share of tokens on which its most likely next token is the source's"""
    tokens: int = 0
    """tokens `kld` and `top1` were measured on"""


class Card(_Part):
    """Everything a persona needs to run an artifact as it was trained."""

    format_version: int = FORMAT_VERSION
    name: str = ""
    """what to call the artifact"""
    task: str
    task_version: int
    dialect: Literal["plain", "compact"]
    """how prompt and answer are written; see factory.tasks.task"""
    prompt_template: str
    """name or text of the prompt template the task fills"""
    constraint: str | None
    """kind of constraint decoding runs under; None is free text"""
    parser: str
    """name of the parser that turns a completion into an answer"""
    stop: tuple[str, ...] = ()
    """texts that end an answer"""
    max_tokens: int = Field(default=192, ge=1)
    """longest completion it was scored with"""
    base: BaseEntry
    weights_sha256: str | None = None
    """`sha256_of_weights` of the whole (merged) model this card lies beside"""
    adapter_sha256: str | None = None
    """`sha256_of_weights` of the adapter directory, when one was trained"""
    teacher: str | None = None
    license: str | None = None
    """SPDX name of the artifact's own licence"""
    data: tuple[DataEntry, ...] = ()
    scores: dict[str, ScoreEntry] = Field(default_factory=dict)
    """who was scored ("teacher", "untrained", "student", an exported file's name) -> score"""
    calibration: tuple[CalibrationEntry, ...] = ()
    calibration_error: float | None = None
    """expected calibration error of the student's confidence as it comes, 0-1"""
    reliability: tuple[tuple[float, float], ...] = ()
    """(confidence, share of right answers) points, both rising: straight lines between them turn a confidence into a probability
    (`agents.confidence.probability`)"""
    reliability_error: float | None = None
    """expected calibration error of those probabilities, each on answers the points were not fitted to, 0-1"""
    task_data: dict[str, Any] = Field(default_factory=dict)
    """JSON that the task needs to ask the model as it was trained (route: its label sets); {} for most"""
    file: FileEntry | None = None
    """set in the card that an export puts into a file; its score is `scores[file.name]`"""
    created_by: str
    """program and version, "penknife 0.1.0" """

    @field_validator("task_data")
    @classmethod
    def _small(cls, value: dict[str, Any]) -> dict[str, Any]:
        size = len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if size > TASK_DATA_BYTES:
            raise ValueError(f"{size:,} bytes of task data; at most {TASK_DATA_BYTES:,}")
        return value

    @classmethod
    def load(cls, path: Path | str, check_weights: bool = True) -> Self:
        """The card of a model directory, of a weights file (the card beside it), or a card file itself.

        Raises CardError when it is absent, damaged, newer than this program, or does not belong to the weights beside it
        (`check_weights`; reads all their bytes). A directory without weights, like a run's, has nothing to check.
        """
        path = Path(path)
        file = path if path.suffix == ".json" else (path / FILE_NAME if path.is_dir() else path.parent / FILE_NAME)
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CardError(f"{file}: there is no card; give a directory that factory.distill or an export wrote") from None
        except OSError as error:
            raise CardError(f"{file}: cannot be read ({error.strerror})") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CardError(f"{file}: not valid JSON ({error}); write the model again") from None
        card = cls.from_json(raw, str(file))
        if check_weights:
            card.check(file.parent)
        return card

    @classmethod
    def from_json(cls, raw: Any, where: str) -> Self:
        """A card from parsed JSON; `where` names it in the CardError of a newer or damaged one."""
        found = raw.get("format_version") if isinstance(raw, dict) else None
        if not isinstance(found, int):
            raise CardError(f"{where}: not a card (format_version is {found!r}); write the model again")
        if found > FORMAT_VERSION:
            raise CardError(
                f"{where}: card format {found} is newer than the {FORMAT_VERSION} this program reads; update penknife"
            )
        try:
            return cls.model_validate_json(json.dumps(raw))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise CardError(f"{where}: {field or 'the card'}: {first['msg'].lower()}; write the model again") from None

    def check(self, model_dir: Path) -> None:
        """Raises CardError when weights in `model_dir` are not those this card was written for."""
        if self.file is not None:
            expected = self.file.sha256
        else:
            expected = self.adapter_sha256 if (model_dir / ADAPTER_FILE).is_file() else self.weights_sha256
        if expected is None or not weight_files(model_dir):
            return
        found = sha256_of_weights(model_dir)
        if found != expected:
            raise CardError(
                f"{model_dir}: the weights (sha256 {found[:12]}…) are not those of its card ({expected[:12]}…); "
                "copy the whole directory again, or write it anew"
            )

    def save(self, directory: Path | str) -> Path:
        """Write `card.json` into `directory` whole or not at all; returns its path. Raises OSError."""
        target = Path(directory) / FILE_NAME
        handle, name = tempfile.mkstemp(prefix=".card-", suffix=".tmp", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return target


def program() -> str:
    """Name and version of this program, as cards and results carry it: "penknife 0.1.0"."""
    try:
        return f"penknife {version('penknife')}"
    except PackageNotFoundError:
        return "penknife (not installed)"


def weight_files(path: Path | str) -> list[Path]:
    """The files that hold weights, by name: a file is itself; a directory's safetensors, else its ONNX, else its GGUF files.

    Only the first kind present counts, so exports written into a model directory later do not change what it is.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    for patterns in (("*.safetensors",), ("*.onnx", "*.onnx.data", "*.onnx_data"), ("*.gguf",)):
        found = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
        if found:
            return found
    return []


def sha256_of_weights(path: Path | str) -> str:
    """Hex SHA-256 of a weights file, or of a directory's weights: of one file its own hash, of several the hash of the
    lines `sha256sum` prints for them. Raises CardError when there are none."""
    files = weight_files(path)
    if not files:
        raise CardError(f"{path}: no weights there (*.safetensors, *.onnx or *.gguf); give a model directory or file")
    sums = [(_sha256(file), file.name) for file in files]
    if len(sums) == 1:
        return sums[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in sums).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
