"""A GGUF file written in one pass: metadata and tensor table first, then the tensors as they come.

Does: put metadata into the `gguf` package's writer by Python type, announce tensors, stream their data in pieces with the padding
between them.
Does not: choose types, or keep a tensor in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Announced:
    """A tensor before its data: what the table in front of a file says of it."""

    name: str
    shape: tuple[int, ...]
    """rows first"""
    type: Any
    """gguf.GGMLQuantizationType"""
    size_bytes: int


def write_file(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Iterable[tuple[Announced, Iterable[np.ndarray]]]
) -> None:
    """Write a whole file: `tensors` are (what is announced, its data in pieces of any dtype, row by row).

    The pieces are asked for one after another, so one is in memory at a time. Raises OSError, and ValueError when a tensor's
    pieces have not the size announced.
    """
    import numpy as np
    from gguf import GGUFWriter

    announced = list(tensors)
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor, _ in announced:
        # The dtype only matters without raw_dtype; uint8 would make the writer read the shape as bytes.
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, raw_dtype=tensor.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for tensor, pieces in announced:
            written = 0
            for piece in pieces:
                written += file.write(np.ascontiguousarray(piece).data.cast("B"))
            if written != tensor.size_bytes:
                raise ValueError(f"{tensor.name}: {written} bytes of {tensor.size_bytes}")
            writer.write_padding(file, written)
        file.flush()
    finally:
        for opened in writer.fout or ():
            opened.close()


def write_vocabulary(path: Path, architecture: str, metadata: Mapping[str, Any]) -> None:
    """A file of metadata alone, which llama.cpp loads with vocab_only. Raises OSError."""
    write_file(path, architecture, {"general.type": "model", **metadata}, [])


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
