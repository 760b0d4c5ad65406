"""A LoRA adapter as a GGUF adapter, which llama.cpp adds to a base file while it runs.

Does: write lora_A and lora_B of a peft adapter in float32 or float16 with llama.cpp's names, row order and scaling
(rank-stabilized too, which llama.cpp's own converter gets wrong), the base's hash and the card inside; refuse what such a file
cannot hold.
Does not: convert the base (`export.gguf BASE` does) or merge (`export.convert` does).

    write_adapter(Source.open("runs/sql/model/adapter"), Path("sql-adapter.gguf"))

llama.cpp multiplies B A by `adapter.lora.alpha` / rank (src/llama-adapter.h, get_scale).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.card import FileEntry
from export.errors import ExportError
from export.families import PlannedTensor
from export.lora_merge import Delta
from export.source import Source

if TYPE_CHECKING:
    import numpy as np

AdapterType = Literal["F32", "F16"]
_SIZES: dict[AdapterType, int] = {"F32": 4, "F16": 2}
"""bytes of a value"""
_WAY_OUT = "use --lora merge"


@dataclass(frozen=True)
class AdapterFile:
    """A GGUF adapter that was written."""

    path: Path
    bytes: int
    ranks: tuple[int, ...]
    """every rank in it"""
    alpha: float
    """`adapter.lora.alpha`"""
    matrices: int
    """weights of the base it changes"""
    folded: int
    """matrices whose scale is not alpha / rank, carried in their lora_B"""
    bits: float = 32.0
    """of a value"""


def check_adapter(source: Source) -> None:
    """Raises ExportError, with the way out, for what a GGUF adapter cannot hold; reads no more than what it brings whole."""
    if source.adapter is None:
        raise ExportError(f"{source.path}: is no adapter directory; give the one with adapter_config.json, or leave --lora away")
    where = source.adapter.directory
    changed = sorted(name for name in source.adapter.replaced if not _unchanged(source, name))
    if changed:
        names = ", ".join(changed)
        raise ExportError(f"{where}: brings {names} whole (modules_to_save), which a GGUF adapter cannot hold; {_WAY_OUT}")
    planned = {tensor.source: tensor for tensor in source.plan.tensors}
    for name, delta in source.adapter.deltas.items():
        if delta.magnitude is not None:
            raise ExportError(f"{where}: {name} is DoRA, which llama.cpp does not compute; {_WAY_OUT}")
        if delta.embedding or (name in planned and planned[name].role == "embedding"):
            raise ExportError(f"{where}: changes the embedding {name}, which a GGUF adapter cannot hold here; {_WAY_OUT}")
        if name not in planned:
            raise ExportError(f"{where}: changes {name}, which the file shares with the embedding; {_WAY_OUT}")


def file_entry(source: Source, name: str, type_name: AdapterType) -> FileEntry:
    """What the card inside an adapter's file says of it."""
    return FileEntry(name=name, format="gguf", precision=type_name, kind="adapter", bits_per_weight=8.0 * _SIZES[type_name],
                     source_sha256=source.sha256, base_sha256=source.base_sha256)  # fmt: skip


def write_adapter(source: Source, out: Path, name: str | None = None, type_name: AdapterType = "F32") -> AdapterFile:
    """Write the adapter of `source` to `out`, whole or not at all. `name`: what the card calls the file (default: that of `out`).

    Raises ExportError as `check_adapter` does, OSError.
    """
    import gguf

    from export.gguf_writer import Announced, write_file
    from export.seal import reserve, seal

    check_adapter(source)
    assert source.adapter is not None
    deltas = source.adapter.deltas
    if not deltas:
        raise ExportError(f"{source.adapter.directory}: holds no lora_A and lora_B; train the adapter again")
    alpha = _alpha(list(deltas.values()))
    card = source.card
    if card is not None:
        entry = file_entry(source, name or out.name, type_name)
        card = card.model_copy(update={"file": entry})
    metadata: dict[str, Any] = {
        "general.type": "adapter",
        "general.name": (source.card.name if source.card is not None else "") or source.path.resolve().parent.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
        "penknife.source.sha256": source.sha256,
        "penknife.base.sha256": source.base_sha256,
        **reserve(card),
    }
    kind = gguf.GGMLQuantizationType[type_name]
    size = _SIZES[type_name]
    tensors = []
    folded = 0
    for tensor in source.plan.tensors:
        delta = deltas.get(tensor.source)
        if delta is None:
            continue
        a, b = f"{tensor.name}.lora_a", f"{tensor.name}.lora_b"
        factor = delta.scale * delta.a.shape[0] / alpha * tensor.scale
        factor = 1.0 if abs(factor - 1.0) < 1e-9 else factor
        folded += factor != 1.0
        for part, shape, pieces in ((a, delta.a.shape, _whole(delta)), (b, delta.b.shape, _turned(delta, tensor, factor))):
            tensors.append((Announced(part, shape, kind, size * math.prod(shape)), _typed(pieces, part, type_name)))
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write_file(temporary, source.plan.architecture, metadata, tensors)
        seal(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    ranks = tuple(sorted({delta.a.shape[0] for delta in deltas.values()}))
    return AdapterFile(out, out.stat().st_size, ranks, alpha, len(deltas), folded, 8.0 * size)


def _unchanged(source: Source, name: str) -> bool:
    """Whether what an adapter brings whole is what its base has: peft saves an adapted head or embedding beside its A and B."""
    import numpy as np

    from export.weights import read_rows

    assert source.adapter is not None
    brought, base = source.adapter.replaced[name], source.weights[name]
    return brought.shape == base.shape and all(
        np.array_equal(read_rows(brought, start, end), read_rows(base, start, end))
        for start in range(0, base.shape[0], 4096)
        for end in (min(start + 4096, base.shape[0]),)
    )


def _alpha(deltas: list[Delta]) -> float:
    """`adapter.lora.alpha` so that most matrices need nothing folded into their lora_B: the commonest scale * rank."""
    from collections import Counter

    return Counter(delta.scale * delta.a.shape[0] for delta in deltas).most_common(1)[0][0]


def _typed(pieces: Iterator[np.ndarray], name: str, type_name: AdapterType) -> Iterator[np.ndarray]:
    import numpy as np

    for piece in pieces:
        with np.errstate(over="ignore"):
            made = piece.astype({"F32": np.float32, "F16": np.float16}[type_name], copy=False)
        if not np.isfinite(made).all():
            raise ExportError(
                f"{name}: has values that {type_name} cannot hold (or none that are numbers); give --adapter-type F32"
            )
        yield made


def _whole(delta: Delta) -> Iterator[np.ndarray]:
    from export.weights import read_rows

    yield read_rows(delta.a)


def _turned(delta: Delta, tensor: PlannedTensor, factor: float) -> Iterator[np.ndarray]:
    """lora_B with its rows in the order of the base's: they are the base's output rows."""
    import numpy as np

    from export.weights import read_rows

    rows = read_rows(delta.b)
    if factor != 1.0:
        rows = rows * np.float32(factor)
    if tensor.rotary_heads:
        head = rows.shape[0] // tensor.rotary_heads
        rows = rows.reshape(tensor.rotary_heads, 2, head // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    yield rows
