"""Weights of a matrix rounded to 8 or 4 bits in blocks, as onnxruntime's MatMulNBits and GatherBlockQuantized store them.

Does: choose scale and zero point of every block so that the weighted squared error is least, pack the bits.
Does not: know a graph (`export.onnx_rewrite`) or a recipe.

The error is weighted as in llama.cpp's K quants, by the block's root mean square plus the weight's own size (ggml-quants.c,
make_qkx2_quants). onnxruntime's own K-quant writer (matmul_nbits_quantizer.py) fails for an odd number of 4-bit blocks in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 32
CHUNK = 1 << 18
"""Weights worked on at once: they stay in the processor's cache."""
SHRINK = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 1.03)
"""Shares of a block's range that are tried as the range of its 4-bit codes."""


@dataclass(frozen=True)
class Blocks:
    """A matrix (rows, columns) in blocks along its columns, the last one filled up with zeros."""

    block: int
    """weights that share a scale"""

    bits: int
    codes: NDArray[np.uint8]
    """(rows, blocks, block * bits / 8), low bits first"""
    scales: NDArray[np.float32]
    """(rows, blocks)"""
    zeros: NDArray[np.uint8] | None
    """(rows, ceil(blocks * bits / 8)); None means 2^(bits - 1) everywhere"""

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + (self.zeros.nbytes if self.zeros is not None else 0)


def quantize(matrix: NDArray[np.float32], bits: int, block: int = BLOCK) -> Blocks:
    """Round `matrix` (rows, columns) to 8 bits (symmetric) or 4 bits (with a zero point); `block`: a power of two from 16 on."""
    import numpy as np

    rows, columns = matrix.shape
    blocks = -(-columns // block)
    codes = np.empty((rows, blocks, block), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = np.empty((rows, blocks), np.uint8)
    step = max(1, CHUNK // (blocks * block))
    for start in range(0, rows, step):
        part = matrix[start : start + step].astype(np.float32, copy=False)
        if blocks * block != columns:
            part = np.pad(part, ((0, 0), (0, blocks * block - columns)))
        part = part.reshape(len(part), blocks, block)
        found = _eight(part) if bits == 8 else _four(part)
        codes[start : start + step], scales[start : start + step], zeros[start : start + step] = found
    if bits == 8:
        return Blocks(block, 8, codes, scales, None)
    return Blocks(block, 4, codes[..., 0::2] | (codes[..., 1::2] << 4), scales, pack_zeros(zeros))


def dequantize(blocks: Blocks, columns: int) -> NDArray[np.float32]:
    """The matrix (rows, columns) that `blocks` stand for."""
    import numpy as np

    if blocks.bits == 8:
        whole = (blocks.codes.astype(np.float32) - 128) * blocks.scales[..., None]
        return whole.reshape(len(whole), -1)[:, :columns]
    codes = np.stack([blocks.codes & 15, blocks.codes >> 4], axis=-1).reshape(*blocks.codes.shape[:2], blocks.block)
    assert blocks.zeros is not None
    zeros = np.stack([blocks.zeros & 15, blocks.zeros >> 4], axis=-1).reshape(len(codes), -1)[:, : codes.shape[1]]
    whole = (codes.astype(np.float32) - zeros[..., None]) * blocks.scales[..., None]
    return whole.reshape(len(whole), -1)[:, :columns]


def pack_zeros(zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """4-bit zero points (rows, blocks), two to a byte in each row."""
    import numpy as np

    if zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return (zeros[:, 0::2] | (zeros[:, 1::2] << 4)).astype(np.uint8)


def _eight(part: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    import numpy as np

    scale = np.abs(part).max(axis=-1) / np.float32(127)
    safe = np.where(scale > 0, scale, np.float32(1))
    return (np.rint(part / safe[..., None]) + 128).astype(np.uint8), safe, np.full(scale.shape, 128, np.uint8)


def _four(part: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    import numpy as np

    low, high = np.minimum(part.min(axis=-1), 0), np.maximum(part.max(axis=-1), 0)
    span = high - low
    span = np.where(span > 0, span, np.float32(15))
    weight = np.abs(part) + np.sqrt((part * part).mean(axis=-1, keepdims=True))
    best: list[NDArray[np.float32]] = []
    for shrink in SHRINK:
        first = span * np.float32(shrink / 15)
        zero = np.clip(np.rint(-low * np.float32(shrink) / first), 0, 15)
        distance = np.clip(np.rint(part / first[..., None]) + zero[..., None], 0, 15) - zero[..., None]
        heavy = weight * distance
        square = (heavy * distance).sum(axis=-1)
        scale = np.where(square > 0, (heavy * part).sum(axis=-1) / np.where(square > 0, square, 1), first)
        scale = np.where(scale > 0, scale, first)
        off = scale[..., None] * distance - part
        error = (weight * off * off).sum(axis=-1)
        if not best:
            best = [error, distance, scale, zero]
            continue
        better = error < best[0]
        best = [
            np.where(better[..., None] if new.ndim == 3 else better, new, old)
            for new, old in zip((error, distance, scale, zero), best)
        ]
    _, distance, scale, zero = best
    return (distance + zero[..., None]).astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8)
