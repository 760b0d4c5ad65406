"""Quantize through llama.cpp, in a process of its own, and compare what was written with what was predicted.

Does: check names, hand the job with its importance matrix to `export.quantize_child`, say in one sentence why it failed.
Does not: write the types that need no compiled code (`export.convert` does), predict (`export.quant_types`), or measure the file.

    quantize(Path("model-f16.gguf"), Path("model-q4_k_m.gguf"), Recipe("Q4_K_M", importance=True), importance.values)
"""

from __future__ import annotations

import difflib
import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import ModelError
from agents.models.llama_library import INSTALL
from export.apart import run
from export.errors import ExportError
from export.quant_types import BLOCKS, QUANT_TYPES, Prediction, Recipe

if TYPE_CHECKING:
    import numpy as np


def check_quant(name: str, extra: tuple[str, ...] = ()) -> str:
    """The type as llama.cpp spells it, any case given. Raises ExportError with the list."""
    if name.upper() in QUANT_TYPES:
        return name.upper()
    if name in extra:
        return name
    near = difflib.get_close_matches(name.upper(), QUANT_TYPES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ExportError(f"unknown quant type {name!r}; {hint}choose from {', '.join([*QUANT_TYPES, *extra])}")


def check_tensor_type(name: str) -> str:
    """A tensor type as ggml spells it, any case given. Raises ExportError with the list."""
    if name.upper() in BLOCKS:
        return name.upper()
    raise ExportError(f"unknown tensor type {name!r}; choose from {', '.join(BLOCKS)}")


def llama_cpp_missing() -> bool:
    """Whether llama-cpp-python cannot be imported here (looked for, not loaded)."""
    return find_spec("llama_cpp") is None


@dataclass(frozen=True)
class Quantized:
    """What llama.cpp wrote."""

    bytes: int
    """of the file"""
    warnings: tuple[str, ...]
    """llama.cpp's own, without its fall-back lines (`predict` names those)"""


def quantize(
    source: Path,
    out: Path,
    recipe: Recipe,
    importance: Mapping[str, np.ndarray] | None = None,
    threads: int = 1,
    types: Mapping[str, str] | None = None,
) -> Quantized:
    """Quantize a GGUF file in F32, F16 or BF16 to `out` through llama.cpp, in a process of its own.

    `importance`: tensor name -> (columns,) float32. `types`: tensor name -> type for every matrix, in place of llama.cpp's own
    choice. `out` is overwritten and may be half-written when this raises: give a
    temporary name. Raises ExportError when llama.cpp is missing, refuses, dies, `source` is damaged, or the disk is full.
    """
    if llama_cpp_missing():
        raise ExportError(f"{recipe.label} is written by llama.cpp. {INSTALL}; or choose one of {', '.join(our_types())}")
    import numpy as np

    try:
        tied = "output.weight" not in written(source)
    except ModelError as error:
        raise ExportError(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="penknife-quantize-") as scratch:
        job: dict[str, Any] = {"source": str(source), "out": str(out), "file_type": recipe.type.file_type, "threads": threads,
                               "head": recipe.head, "tied": tied, "importance": None, "types": dict(types or {})}  # fmt: skip
        if importance is not None and recipe.importance:
            job["importance"] = str(Path(scratch) / "importance.npz")
            names = list(importance)
            arrays: dict[str, Any] = {f"a{i}": np.ascontiguousarray(importance[n], np.float32) for i, n in enumerate(names)}
            np.savez(job["importance"], **arrays)
            job["names"] = names
        done = run("export.quantize_child", input=json.dumps(job))
    if done.returncode != 0:
        raise ExportError(_failure(done, out, recipe))
    said = json.loads(done.stdout.splitlines()[-1])
    return Quantized(out.stat().st_size, tuple(said["warnings"]))


def _failure(done: subprocess.CompletedProcess[str], out: Path, recipe: Recipe) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if any("basic_ios::clear" in line or "No space left" in line for line in lines):
        why = "the disk is full or the file larger than this process may write"
        return f"{out}: could not be written whole ({why}); free some space and give the same command again"
    said = next(
        (line for line in reversed(lines) if "fail" in line.lower() or "error" in line.lower()), lines[-1] if lines else ""
    )
    why = f"signal {-done.returncode}" if done.returncode < 0 else said or f"status {done.returncode}"
    return f"llama.cpp could not quantize to {recipe.label} ({why}); choose another --quant, for example Q8_0"


def our_types() -> list[str]:
    """Names of the types written without compiled code."""
    return [kind.name for kind in QUANT_TYPES.values() if kind.ours]


def written(path: Path) -> dict[str, str]:
    """Tensor name -> type of a GGUF file. Raises ModelError."""
    from agents.models.gguf_file import read_gguf

    return {tensor.name: tensor.type_name for tensor in read_gguf(path).tensors}


def surprises(prediction: Prediction, found: Mapping[str, str]) -> list[str]:
    """Tensors that are not what was predicted, one text each; empty when the prediction held."""
    names = sorted(prediction.types.keys() | found.keys())
    return [
        f"{name}: {found.get(name, 'absent')}, predicted {prediction.types.get(name, 'absent')}"
        for name in names
        if found.get(name) != prediction.types.get(name)
    ]


def as_json(recipe: Recipe, prediction: Prediction) -> dict[str, Any]:
    """What the report says of a recipe."""
    return {
        **asdict(recipe),
        "keep": list(recipe.keep),
        "predicted_bytes": prediction.tensor_bytes,
        "predicted_bits_per_weight": round(prediction.bits_per_weight, 4),
        "fallbacks": [asdict(fallback) for fallback in prediction.fallbacks],
    }
