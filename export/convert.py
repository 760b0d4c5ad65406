"""HF model directory to GGUF, streamed, with no compiled code.

Does: prove the vocabulary first, then write F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1 a few rows at a time, merging an
adapter on the way; count what could not be stored as asked; leave nothing behind when anything fails.
Does not: write K and IQ types (`export.quants`, through llama.cpp), or measure the file (`export.gate`).

    made = convert(Source.open("runs/sql/model"), Path("sql.gguf"), "Q8_0")

The quantizers are the `gguf` package's, bit-equal to llama.cpp's.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.families import PlannedTensor
from export.gguf_writer import Announced, write_file
from export.prove import Proof, prove
from export.source import Source
from export.vocab import Vocabulary, vocabulary

if TYPE_CHECKING:
    import numpy as np

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""What `convert` writes."""
BLOCK = 32
"""Values of a row that share a scale in every quantized type above."""
_PIECE_VALUES = 1 << 20
"""Values of a tensor in memory at a time."""
_SMALL = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")

Progress = Callable[[int, int], None]
"""Called with (parameters written, parameters in all)."""


@dataclass(frozen=True)
class Fallback:
    """A tensor that is not stored as asked."""

    name: str
    wanted: str
    written: str
    columns: int


@dataclass(frozen=True)
class Converted:
    """A file that was written, and what it cost."""

    path: Path
    type: str
    bytes: int
    """of the file"""
    tensors: int
    parameters: int
    bits_per_weight: float
    """of all tensors together, norms included"""
    types: dict[str, int]
    """type -> tensors of it"""
    fallbacks: tuple[Fallback, ...]
    """rows that are no multiple of 32, kept in F16"""
    head: str
    """type of the output head, or of the embedding when it is tied; 4- and 5-bit files keep it in Q8_0"""
    context: int
    """tokens up to which the file computes what the model computes"""
    padded: int
    """rows of the embedding without a token"""
    notes: tuple[str, ...]
    """what a user must know, one sentence each: clamped context, skipped proofs, …"""
    proof: Proof
    seconds: float


def convert(
    source: Source,
    out: Path | str,
    type: str = "F16",
    progress: Progress | None = None,
    head: str | None = None,
    keep: Collection[str] = (),
) -> Converted:
    """Write `source` to the GGUF file `out`, whole or not at all; an adapter is merged into its base in float32.

    `head`: another type for the output head (the embedding when it is tied), where 8 bits lose most of what they lose. `keep`:
    tensors that stay in F16.

    Raises ExportError for an unknown type, a tokenizer or value that the file cannot hold, too little room; OSError.
    """
    start = time.perf_counter()
    out = Path(out)
    for given in (type, head):
        if given is not None and given not in TYPES:
            raise ExportError(f"unknown type {given!r}; choose from {', '.join(TYPES)}")
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent} is not a directory; create it, or choose another --out")
    words = vocabulary(source.tokenizer, source.config["vocab_size"], end_ids(source), str(source.tokenizer_dir))
    proof = prove(source.tokenizer, source.plan.architecture, words.metadata, str(source.tokenizer_dir))
    chosen = {tensor.name: stored_as(tensor, type, source, head, keep) for tensor in source.plan.tensors}
    announced = [_announce(tensor, chosen[tensor.name]) for tensor in source.plan.tensors]
    needed = sum(tensor.size_bytes for tensor in announced)
    _check_room(out, needed)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write_file(temporary, source.plan.architecture, _metadata(source, words, type), _stream(source, announced, progress))
        _seal(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    fallbacks = [
        Fallback(tensor.name, type, chosen[tensor.name], tensor.shape[-1])
        for tensor in source.plan.tensors
        if chosen[tensor.name] == "F16" and type not in ("F32", "F16", "BF16") and tensor.shape[-1] % BLOCK
    ]
    counts: dict[str, int] = {}
    for tensor in announced:
        counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
    parameters = sum(math.prod(tensor.shape) for tensor in announced)
    return Converted(
        path=out, type=type, bytes=out.stat().st_size, tensors=len(announced) + len(source.plan.made), parameters=parameters,
        bits_per_weight=8 * needed / parameters, types=counts, fallbacks=tuple(fallbacks),
        head=chosen.get("output.weight", chosen["token_embd.weight"]), context=source.plan.context, padded=words.padded,
        notes=(*source.plan.notes, *_notes(words), *proof.skipped), proof=proof, seconds=time.perf_counter() - start,
    )  # fmt: skip


def end_ids(source: Source) -> list[int]:
    """Ids that end an answer by the generation configuration (by config.json where there is none), as transformers reads them."""
    configured = (source.generation or source.config).get("eos_token_id")
    ids = configured if isinstance(configured, list) else [configured]
    return [int(number) for number in ids if number is not None]


def stored_as(tensor: PlannedTensor, type: str, source: Source, head: str | None = None, keep: Collection[str] = ()) -> str:
    """The type one tensor gets in a file of `type`: vectors F32, rows that are no multiple of 32 and what `keep` names F16, the
    head `head`, else Q8_0 in a 4- or 5-bit file (in 4 bits it costs most of the loss)."""
    if tensor.role == "vector":
        return "F32"
    if tensor.name in keep:
        return "F16"
    is_head = tensor.role == "head" or (tensor.role == "embedding" and bool(source.config.get("tie_word_embeddings")))
    if is_head and head is not None:
        type = head
    if type in ("F32", "F16", "BF16"):
        return type
    if tensor.shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if type in _SMALL and is_head and head is None else type


def _announce(tensor: PlannedTensor, type: str) -> Announced:
    import gguf

    kind = gguf.GGMLQuantizationType[type]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    return Announced(tensor.name, tensor.shape, kind, math.prod(tensor.shape) // values * size)


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise ExportError(
            f"{out}: needs {needed / 1e6:.0f} MB and {out.parent} has {free / 1e6:.0f} MB free; free some space, or choose "
            "another --out"
        )


def _stream(
    source: Source, announced: list[Announced], progress: Progress | None
) -> Iterator[tuple[Announced, Iterator[np.ndarray]]]:
    import gguf
    import numpy as np

    for name, values in source.plan.made.items():
        made = np.array(values, dtype=np.float32)
        yield Announced(name, made.shape, gguf.GGMLQuantizationType.F32, made.nbytes), iter([made])
    total, written = source.parameters, 0

    def pieces(tensor: PlannedTensor, kind: Any) -> Iterator[np.ndarray]:
        nonlocal written
        for rows in _rows(source, tensor):
            yield _encode(rows, kind, tensor)
            written += rows.size
            if progress is not None:
                progress(written, total)

    for tensor, place in zip(source.plan.tensors, announced, strict=True):
        yield place, pieces(tensor, place.type)


def _rows(source: Source, tensor: PlannedTensor) -> Iterator[np.ndarray]:
    """The finished values of a tensor in float32, some whole heads or rows at a time."""
    import numpy as np

    columns = math.prod(tensor.shape[1:])
    head = tensor.shape[0] // tensor.rotary_heads if tensor.rotary_heads else 1
    step = max(_PIECE_VALUES // columns // head, 1) * head
    for start in range(0, tensor.shape[0], step):
        rows = source.read(tensor.source, start, min(start + step, tensor.shape[0]))
        if not np.isfinite(rows).all():
            raise ExportError(f"{source.path}: {tensor.source} holds values that are not finite; the model is damaged")
        if tensor.add:
            rows = rows + np.float32(tensor.add)
        if tensor.scale != 1.0:
            rows = rows * np.float32(tensor.scale)
        if tensor.rotary_heads:
            # Each head's two halves turn into neighbours.
            split = rows.reshape(rows.shape[0] // head, 2, head // 2, *rows.shape[1:])
            rows = split.swapaxes(1, 2).reshape(rows.shape)
        yield rows


def _encode(rows: np.ndarray, kind: Any, tensor: PlannedTensor) -> np.ndarray:
    import gguf
    import numpy as np

    if kind == gguf.GGMLQuantizationType.F32:
        return rows
    if kind == gguf.GGMLQuantizationType.F16:
        try:
            with np.errstate(over="raise"):
                return rows.astype(np.float16)
        except FloatingPointError:
            raise ExportError(
                f"{tensor.source} holds {float(np.abs(rows).max()):.3g}, more than F16 can (65504); choose --quant BF16"
            ) from None
    return gguf.quants.quantize(rows, kind)


def _metadata(source: Source, words: Vocabulary, type: str) -> dict[str, Any]:
    import gguf

    from export.seal import reserve

    architecture = source.plan.architecture
    kind = "ALL_F32" if type == "F32" else f"MOSTLY_{type}"
    card = source.card
    keys: dict[str, Any] = {
        "general.type": "model",
        "general.name": _name(source),
        "general.file_type": int(gguf.LlamaFileType[kind]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "penknife.source.sha256": source.sha256,
    }
    if card is not None and card.license is not None:
        keys["general.license"] = card.license
    keys |= {f"{architecture}.{key}": value for key, value in source.plan.metadata.items()}
    return keys | words.metadata | reserve(card)


def _name(source: Source) -> str:
    """What llama.cpp shows. It may not look like Phi-3's: llama.cpp then expects tokens that a vocabulary need not have."""
    named = (source.card.name if source.card is not None else "") or source.path.resolve().name
    return re.sub(r"phi-?3", "phi 3", named, flags=re.IGNORECASE)


def _notes(words: Vocabulary) -> list[str]:
    notes = []
    if words.strip_after:
        notes.append(
            f"llama.cpp keeps the whitespace after {len(words.strip_after)} added tokens that this tokenizer drops; penknife "
            "drops it before it tokenizes, other programs must too"
        )
    if words.space_before is not None:
        where = "a text" if words.space_before == "first" else "each stretch of text"
        notes.append(f"this tokenizer puts a space before {where} that has none; penknife does so, other programs must too")
    if words.normalizer is not None:
        notes.append(f"this tokenizer normalizes text to {words.normalizer}; penknife does so, other programs must too")
    return notes


def _seal(path: Path) -> None:
    from export.seal import seal

    with path.open("rb+") as file:
        os.fsync(file.fileno())
    seal(path)
