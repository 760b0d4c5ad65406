"""Read a GGUF file's description without trusting it, and tell whether it is still the file that was written.

Does: parse metadata and tensor table of GGUF 2 and 3, every count, length, offset, type and text checked against the file, find
the card inside, compare the whole file with the hash that an export sealed it with.
Does not: read weights, need the gguf package or llama.cpp, or write (`export.seal`).

    verify("model.gguf").metadata["general.architecture"]       # ModelError when one byte differs from what was sealed
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from agents.card import Card
from agents.chat import ModelError

OURS: Final = "penknife."
"""Prefix of the metadata keys that an export of this program adds."""
CARD_KEY, SEAL_KEY = "penknife.card", "penknife.sha256"
SOURCE_KEY, BASE_KEY = "penknife.source.sha256", "penknife.base.sha256"
NORMALIZER_KEY, EOS_KEY = "penknife.tokenizer.normalizer", "penknife.eos_ids"
UNSEALED: Final = "0" * 64
"""The seal of a file that is still being made; the whole-file hash is taken with the seal written so."""

MAX_DESCRIPTION = 512 * 1024**2
"""Bytes before the tensor data; the longest vocabularies take a few million."""
MAX_ELEMENTS = 16 * 1024**2
"""Elements of one metadata array."""
MAX_DIMENSIONS = 4

_SCALARS: dict[int, tuple[str, int]] = {
    0: ("B", 1), 1: ("b", 1), 2: ("H", 2), 3: ("h", 2), 4: ("I", 4), 5: ("i", 4), 6: ("f", 4), 10: ("Q", 8), 11: ("q", 8),
    12: ("d", 8),
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_CHUNK = 4 * 1024**2

TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""ggml type -> (name as llama.cpp spells it, elements of a block, bytes of a block)."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file; `shape` has the fastest-varying dimension first, as GGUF stores it."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    """bytes from the beginning of the file"""
    size: int
    """bytes"""

    @property
    def type_name(self) -> str:
        """Quant type as llama.cpp spells it: "F16", "Q8_0", "Q4_K"."""
        return TENSOR_TYPES[self.type][0]

    @property
    def elements(self) -> int:
        """How many weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says about itself. Arrays of the metadata are lists."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    """where tensor data begins, bytes"""
    alignment: int
    size_bytes: int
    sealed: bool = False
    """whether `verify` found the whole file to be what its seal says; False before it was asked"""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    def value_span(self, key: str) -> tuple[int, int]:
        """(offset from the beginning of the file, length) in bytes of a string value. Raises ModelError when there is none."""
        if key not in self.spans:
            raise ModelError(f"{self.path}: has no text under {key!r} in its metadata; export it again")
        return self.spans[key]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of all tensors over all their weights; 0 without tensors."""
        weights = sum(tensor.elements for tensor in self.tensors)
        return 8 * sum(tensor.size for tensor in self.tensors) / weights if weights else 0.0


def read_gguf(path: Path | str) -> GgufFile:
    """Metadata and tensor table of a GGUF file; its weights are not read.

    Raises ModelError, one sentence, for a file that is absent, no GGUF, cut short, or not as the format wants it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Description(path, file, os.fstat(file.fileno()).st_size).read()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); give a GGUF file") from None


def verify(path: Path | str) -> GgufFile:
    """`read_gguf`, and the whole file compared with the hash it was sealed with, where it has one (`sealed` tells).

    Reads every byte of a sealed file. Raises ModelError for a damaged or changed one, and for an export of ours without its seal.
    """
    path = Path(path)
    file = read_gguf(path)
    seal = file.metadata.get(SEAL_KEY)
    if seal is None:
        if any(key.startswith(OURS) for key in file.metadata):
            raise ModelError(
                f"{path}: says that this program exported it but has lost its seal ({SEAL_KEY}); copy or export it again"
            )
        return file
    if not isinstance(seal, str) or len(seal) != len(UNSEALED) or file.spans.get(SEAL_KEY, (0, 0))[1] != len(UNSEALED):
        raise ModelError(f"{path}: its seal is damaged ({SEAL_KEY} is no SHA-256); copy or export it again")
    if seal == UNSEALED:
        return file
    found = sealed_hash(file)
    if found != seal:
        raise ModelError(
            f"{path}: is not the file that was exported (sha256 {found[:12]}…, sealed as {seal[:12]!r}…): damaged or changed; "
            "copy or export it again"
        )
    return replace(file, sealed=True)


def sealed_hash(file: GgufFile) -> str:
    """Hex SHA-256 of the whole file with its seal read as zeros: what the seal must be. Raises ModelError without a seal."""
    start, length = file.value_span(SEAL_KEY)
    digest = hashlib.sha256()
    try:
        with file.path.open("rb") as opened:
            _hash(digest, opened, start)
            digest.update(UNSEALED.encode())
            opened.seek(start + length)
            _hash(digest, opened, None)
    except OSError as error:
        raise ModelError(f"{file.path}: cannot be read ({error.strerror or error}); copy it again") from None
    return digest.hexdigest()


def card_of(path: Path | str | GgufFile) -> Card | None:
    """The card inside a GGUF file; None when there is none.

    Only `verify` tells whether it is the card that was written. Raises CardError for a damaged or newer card, ModelError for a
    file that is no GGUF.
    """
    file = path if isinstance(path, GgufFile) else read_gguf(path)
    text = file.metadata.get(CARD_KEY)
    if text is None:
        return None
    try:
        raw = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raw = None
    return Card.from_json(raw, str(file.path))


def _hash(digest: Any, file: IO[bytes], length: int | None) -> None:
    """Feed `length` bytes (None: all that are left) of `file`."""
    left = length
    while left is None or left > 0:
        chunk = file.read(_CHUNK if left is None else min(_CHUNK, left))
        if not chunk:
            return
        digest.update(chunk)
        left = None if left is None else left - len(chunk)


class _Description:
    """A cursor over the beginning of the file that never reads past its end or allocates by a number it has not checked."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.limit = min(size, MAX_DESCRIPTION)
        self.buffer = b""
        self.at = 0

    def read(self) -> GgufFile:
        if self.size < 24 or self.take(4, "magic") != b"GGUF":
            raise ModelError(f"{self.path}: not a GGUF file (it does not begin with GGUF); give a .gguf file")
        version = self.number("I", 4, "version")
        if version not in (2, 3):
            if version and version % 65536 == 0:
                raise ModelError(f"{self.path}: a big-endian GGUF file; convert the model again on this kind of machine")
            raise ModelError(f"{self.path}: GGUF version {version}, this program reads 2 and 3; convert the model again")
        tensor_count = self.count(self.number("Q", 8, "tensor count"), 24, "tensors")
        pair_count = self.count(self.number("Q", 8, "metadata count"), 13, "metadata pairs")
        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(pair_count):
            key = self.text("a metadata key")
            if key in metadata:
                self.bad(f"the metadata key {key!r} stands there twice")
            kind = self.number("I", 4, f"the type of {key!r}")
            if kind == _STRING:
                metadata[key] = self.text(f"the value of {key!r}")
                length = len(metadata[key].encode())
                spans[key] = (self.at - length, length)
            else:
                metadata[key] = self.value(kind, key)
        alignment = metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or not 8 <= alignment <= 2**20
            or alignment & (alignment - 1)
        ):
            self.bad(f"general.alignment is {alignment!r}, not a power of two from 8 to 1048576")
        waiting = [self.tensor() for _ in range(tensor_count)]
        data_offset = -(-self.at // alignment) * alignment
        tensors = self.placed(waiting, data_offset, alignment)
        return GgufFile(self.path, version, metadata, tensors, data_offset, alignment, self.size, spans=spans)

    def tensor(self) -> TensorInfo:
        """An entry of the tensor table, with its offset still counted from where the data begins."""
        name = self.text("a tensor name")
        dimensions = self.number("I", 4, f"the dimensions of {name!r}")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            self.bad(f"tensor {name!r} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        shape = tuple(self.number("Q", 8, f"the shape of {name!r}") for _ in range(dimensions))
        if min(shape) < 1 or math.prod(shape) >= 2**60:
            self.bad(f"tensor {name!r} has the impossible shape {list(shape)}")
        kind = self.number("I", 4, f"the type of {name!r}")
        if kind not in TENSOR_TYPES:
            self.bad(f"tensor {name!r} has the unknown type {kind}")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if shape[0] % block:
            self.bad(f"tensor {name!r} has rows of {shape[0]}, which {type_name} cannot store (blocks of {block})")
        return TensorInfo(
            name, shape, kind, self.number("Q", 8, f"the offset of {name!r}"), math.prod(shape) // block * block_bytes
        )

    def placed(self, tensors: list[TensorInfo], data_offset: int, alignment: int) -> tuple[TensorInfo, ...]:
        """The table with offsets from the beginning of the file, once every tensor lies inside it and on no other."""
        if len({tensor.name for tensor in tensors}) < len(tensors):
            self.bad("two tensors have one name")
        out = []
        for tensor in tensors:
            if tensor.offset % alignment:
                self.bad(f"tensor {tensor.name!r} begins at {tensor.offset}, not on a multiple of {alignment}")
            if data_offset + tensor.offset + tensor.size > self.size:
                self.bad(
                    f"tensor {tensor.name!r} ends at byte {data_offset + tensor.offset + tensor.size} of a file of {self.size}"
                )
            out.append(replace(tensor, offset=data_offset + tensor.offset))
        end = 0
        for tensor in sorted(out, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                self.bad(f"tensor {tensor.name!r} lies on top of another")
            end = tensor.offset + tensor.size
        return tuple(out)

    def value(self, kind: int, key: str) -> Any:
        if kind == _BOOL:
            return self.flag(self.take(1, key), key)
        if kind in _SCALARS:
            return self.number(*_SCALARS[kind], key)
        if kind != _ARRAY:
            self.bad(f"{key!r} has the unknown value type {kind}")
        of = self.number("I", 4, f"the element type of {key!r}")
        length = self.number("Q", 8, f"the length of {key!r}")
        if of == _STRING:
            return [self.text(key) for _ in range(self.count(length, 8, f"texts in {key!r}"))]
        if of == _BOOL:
            return [self.flag(bytes([byte]), key) for byte in self.take(self.count(length, 1, f"elements of {key!r}"), key)]
        if of not in _SCALARS:
            self.bad(f"{key!r} is an array of the unknown or nested type {of}")
        code, width = _SCALARS[of]
        length = self.count(length, width, f"elements of {key!r}")
        return list(struct.unpack(f"<{length}{code}", self.take(length * width, key)))

    def flag(self, byte: bytes, what: str) -> bool:
        if byte not in (b"\0", b"\1"):
            self.bad(f"{what!r} is a truth value of {byte[0]}")
        return byte == b"\1"

    def text(self, what: str) -> str:
        length = self.number("Q", 8, f"the length of {what}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            self.bad(f"{what} is not UTF-8")

    def number(self, code: str, width: int, what: str) -> Any:
        return struct.unpack("<" + code, self.take(width, what))[0]

    def count(self, number: int, least_bytes: int, what: str) -> int:
        """A count that the rest of the file has room for."""
        if number > MAX_ELEMENTS or number * least_bytes > self.limit - self.at:
            self.bad(f"says it has {number} {what}, more than its {self.size} bytes can hold")
        return number

    def take(self, length: int, what: str) -> bytes:
        """The next `length` bytes."""
        if length > self.limit - self.at:
            self.bad(
                f"ends inside {what}" if self.limit == self.size else f"its description is longer than {MAX_DESCRIPTION} bytes"
            )
        while len(self.buffer) < self.at + length:
            more = self.file.read(max(_CHUNK, self.at + length - len(self.buffer)))
            if not more:
                self.bad(f"ends inside {what}")
            self.buffer += more
        self.at += length
        return self.buffer[self.at - length : self.at]

    def bad(self, what: str) -> NoReturn:
        raise ModelError(f"{self.path}: a damaged GGUF file: {what}; copy or export it again")
