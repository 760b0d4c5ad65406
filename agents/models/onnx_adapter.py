"""LoRA adapters as values of an ONNX graph's optional inputs: loaded once, blended, swapped from one request to the next.

Does: read .onnx_adapter files that `export.onnx --lora adapter` wrote, check that each belongs to this base and fits the graph,
scale them and put several side by side.
Does not: write them (`export.lora_onnx`), or touch the base's weights.

Beside NAME.onnx_adapter lies NAME.onnx_adapter.json with sha256 (of the file), base_sha256, source_sha256 and the adapter's card.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import Adapter, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from agents.models.onnx_graph import OnnxGraph

SUFFIX = ".onnx_adapter"
Key = tuple[tuple[str, float, int, int], ...]
"""(path, scale, size, time of change) of each adapter of a set: a file that was replaced makes another set."""
BLENDS = 64
"""Sets kept ready; the longest unused goes."""
DOWN, UP = ".lora_a", ".lora_b"
"""Ends of a graph's inputs: (columns, rank) and (rank, rows) float32, the scale already in the second."""


class LoadedAdapters:
    """Adapters of one open graph."""

    def __init__(self, graph: OnnxGraph, base_sha256: str | None, name: str) -> None:
        self._shapes = {name: shape for name, shape in graph.optional.items() if name.endswith((DOWN, UP))}
        self._base, self._name = base_sha256, name
        self._files: dict[str, tuple[tuple[int, int], dict[str, NDArray[np.float32]]]] = {}
        self._blends: OrderedDict[Key, dict[str, NDArray[np.float32]]] = OrderedDict()
        self._lock = threading.Lock()

    def inputs(self, adapters: tuple[Adapter, ...]) -> tuple[Key, dict[str, NDArray[np.float32]]]:
        """What names this set, and input -> value for it. Raises ModelError for an adapter that does not fit."""
        key = tuple((adapter.path, adapter.scale, *_stamp(Path(adapter.path))) for adapter in adapters)
        with self._lock:
            found = self._blends.pop(key, None)
            if found is None:
                found = self._blend(key)
            self._blends[key] = found
            while len(self._blends) > BLENDS:
                self._blends.popitem(last=False)
            return key, found

    def _blend(self, key: Key) -> dict[str, NDArray[np.float32]]:
        import numpy as np

        parts: dict[str, list[NDArray[np.float32]]] = {}
        for path, scale, size, changed in key:
            for name, value in self._file(path, (size, changed)).items():
                parts.setdefault(name, []).append(value * np.float32(scale) if name.endswith(UP) else value)
        return {
            name: np.ascontiguousarray(np.concatenate(values, axis=1 if name.endswith(DOWN) else 0))
            for name, values in parts.items()
        }

    def _file(self, path: str, stamp: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
        known = self._files.get(path)
        if known is None or known[0] != stamp:
            known = self._files[path] = stamp, self._read(Path(path))
        return known[1]

    def _read(self, path: Path) -> dict[str, NDArray[np.float32]]:
        import numpy as np
        import onnxruntime as ort

        if not self._shapes:
            raise ModelError(f"{self._name}: takes no adapters; export its base with export.onnx ADAPTER --lora adapter")
        about = read_about(path)
        if self._base is not None and about.get("base_sha256") != self._base:
            raise ModelError(
                f"{path}: belongs to another base (sha256 {str(about.get('base_sha256'))[:12]}…) than {self._name} "
                f"({self._base[:12]}…); export it for this base"
            )
        try:
            values = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
            found = {name: np.array(value.numpy(), np.float32) for name, value in values.items()}
        except Exception as error:  # onnxruntime has a class for every status
            raise ModelError(
                f"{path}: onnxruntime cannot read it ({' '.join(str(error).split())[:120]}); export it again"
            ) from None
        for name, value in found.items():
            wanted = self._shapes.get(name)
            fixed = 0 if name.endswith(DOWN) else 1
            if wanted is None or value.ndim != 2 or (isinstance(wanted[fixed], int) and value.shape[fixed] != wanted[fixed]):
                raise ModelError(f"{path}: {name} {list(value.shape)} has no place in {self._name}; export it for this base")
        return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:
        raise ModelError(f"{path}: is not there; copy NAME{SUFFIX} and NAME{SUFFIX}.json together") from None
    return state.st_size, state.st_mtime_ns


def read_about(path: Path) -> dict[str, Any]:
    """What lies beside an adapter file, the file's hash checked. Raises ModelError."""
    beside = path.with_name(path.name + ".json")
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ModelError(f"{error.filename}: is not there; copy NAME{SUFFIX} and NAME{SUFFIX}.json together") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{beside}: cannot be read ({error}); export the adapter again") from None
    if not isinstance(about, dict) or about.get("sha256") != digest:
        raise ModelError(f"{path}: is not the file {beside.name} describes (sha256 {digest[:12]}…); export the adapter again")
    return about
