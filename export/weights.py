"""Safetensors files read a few rows at a time, checked before the first weight is read.

Does: read and check headers (length, JSON, bounds, gaps, element counts) of one file or of a sharded checkpoint, read rows of a
tensor as float32.
Does not: map files into memory (pages of a mapped file count as the process's own), or know what a tensor is for.

    stored = open_weights(Path("model/"))                       # name -> Stored; raises ExportError
    read_rows(stored["model.embed_tokens.weight"], 0, 256)      # (256, hidden) float32
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ExportError

if TYPE_CHECKING:
    import numpy as np

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Element types weights may have."""
_OTHER_BYTES = {
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
_LONGEST_HEADER = 100_000_000
"""bytes; what the safetensors library itself allows"""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies."""

    file: Path
    name: str
    dtype: str
    """as safetensors spells it: F32, F16, BF16, …"""
    shape: tuple[int, ...]
    offset: int
    """bytes from the start of the file"""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def open_weights(directory: Path) -> dict[str, Stored]:
    """Every tensor of a model directory: of `model.safetensors`, or of all files its index names. Raises ExportError."""
    single, index = directory / "model.safetensors", directory / INDEX
    if not index.is_file():
        if not single.is_file():
            raise ExportError(f"{directory}: no model.safetensors and no {INDEX} there; give a model directory")
        return read_header(single)
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(f"{index}: cannot be read ({error}); copy the checkpoint again") from None
    found: dict[str, Stored] = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or not (directory / name).is_file():
            raise ExportError(f"{directory}: {name!r}, which {INDEX} names, is not there; copy the whole checkpoint")
        found |= read_header(directory / name)
    missing = sorted(set(places) - set(found))
    if missing:
        raise ExportError(f"{directory}: {missing[0]}, which {INDEX} names, is in none of its files; copy the checkpoint again")
    return found


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file by name. Raises ExportError for a file that is cut short or damaged."""
    total = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if total < 8 or not 2 <= length <= min(total - 8, _LONGEST_HEADER):
            raise _damaged(file, f"its header of {length} bytes is not in its {total}")
        try:
            header = json.loads(opened.read(length))
        except ValueError:
            raise _damaged(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header lists no tensors")
    header.pop("__metadata__", None)
    start = 8 + length
    found = {name: _entry(file, name, entry, start) for name, entry in header.items()}
    end = start
    for begin, stop, name in sorted((*header[name]["data_offsets"], name) for name in header):
        if start + begin != end:
            raise _damaged(file, f"{name} does not begin where the tensor before it ends")
        end = start + stop
    if end != total:
        raise _damaged(file, f"it has {total} bytes, its header says {end}")
    return found


def _entry(file: Path, name: str, entry: Any, start: int) -> Stored:
    try:
        dtype, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sizes = [*shape, begin, stop]
    except (KeyError, TypeError, ValueError):
        raise _damaged(file, f"its entry for {name} is incomplete") from None
    if not all(isinstance(size, int) and 0 <= size < 2**48 for size in sizes) or not isinstance(dtype, str):
        raise _damaged(file, f"its entry for {name} has impossible numbers")
    item = ITEM_BYTES.get(dtype) or _OTHER_BYTES.get(dtype)
    if item is not None and stop - begin != math.prod(shape) * item:
        raise _damaged(file, f"{name} of shape {list(shape)} has {stop - begin} bytes")
    return Stored(file, name, dtype, shape, start + begin)


def _damaged(file: Path, what: str) -> ExportError:
    return ExportError(f"{file}: cut short or damaged ({what}); copy the file again")


def read_rows(stored: Stored, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows `start` to `stop` (default all) of a tensor as float32, whatever they are stored in. Raises ExportError.

    (rows, …) -> (stop - start, …) float32; of a vector, its values.
    """
    import numpy as np

    stop = stored.shape[0] if stop is None else stop
    row = math.prod(stored.shape[1:])
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}[stored.dtype]
    offset = stored.offset + start * row * ITEM_BYTES[stored.dtype]
    raw = np.fromfile(stored.file, dtype=kind, count=(stop - start) * row, offset=offset)
    if raw.size != (stop - start) * row:
        raise _damaged(stored.file, f"{stored.name} ends early")
    if stored.dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        raw = wide.view(np.float32)
    return raw.astype(np.float32, copy=False).reshape(stop - start, *stored.shape[1:])
