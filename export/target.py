"""Where a file shall run: a class of devices (`factory.devices`) or a size, and what a file would do there.

Does: refuse a file that does not fit, predict decode speed from the bytes a token streams.
Does not: measure anything; every speed here is a prediction and says so.

Decoding one token reads every weight once, so tokens/s is at most (bytes/s) / (bytes a token streams). The published pairs (file,
tokens/s) give the bytes/s such devices really reached, overhead of the runtime included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from export.errors import ExportError
from export.families import Plan
from export.quant_types import BLOCKS
from factory.devices import DEVICE_CLASSES, GB, RUNTIME_MB, DeviceClass


@dataclass(frozen=True)
class Target:
    """What `--target` asked for."""

    name: str
    device: DeviceClass | None
    """None when a size was given"""
    limit_bytes: int
    """of the file, and of what running it takes for a device class"""

    def excess(self, file_bytes: int, cache_bytes: int) -> str | None:
        """Why a file of this size does not fit, or None. `cache_bytes` is its full context's."""
        if self.device is None:
            over = file_bytes > self.limit_bytes
            return f"{_mb(file_bytes)} is more than the {_mb(self.limit_bytes)} asked for" if over else None
        need = file_bytes + cache_bytes + RUNTIME_MB * 1_000_000
        if need <= self.limit_bytes:
            return None
        return (
            f"{_mb(file_bytes)} of weights, {_mb(cache_bytes)} of cache and {RUNTIME_MB} MB of runtime are more than the "
            f"{self.device.memory_mb} MB of a {self.name} ({self.device.memory_reason})"
        )


@dataclass(frozen=True)
class SpeedPrediction:
    """Decode speed on a device class, not measured."""

    device: str
    slow: float
    """tokens/s"""
    fast: float
    capped: bool
    """held down to this machine's measured speed: a file this small is bound by computing, not by memory"""

    def say(self) -> str:
        span = (
            f"{_rate(self.slow)} to {_rate(self.fast)}" if _rate(self.slow) != _rate(self.fast) else f"about {_rate(self.fast)}"
        )
        how = "no faster than measured here" if self.capped else "from bytes and published speeds"
        return f"predicted on a {self.device}, not measured: {span} tokens/s ({how})"


def parse_target(text: str) -> Target:
    """phone, pi, laptop, or a size in megabytes. Raises ExportError with the choices."""
    if text in DEVICE_CLASSES:
        device = DEVICE_CLASSES[text]
        return Target(text, device, device.memory_mb * 1_000_000)
    try:
        size = float(text.lower().removesuffix("mb"))
    except ValueError:
        size = math.nan
    if not (0 < size < math.inf):
        raise ExportError(
            f"--target cannot be {text!r}; give {', '.join(DEVICE_CLASSES)}, or the largest file in megabytes, like 20"
        )
    return Target(text, None, int(size * 1e6))


def streamed_bytes(types: dict[str, str], plan: Plan) -> int:
    """Bytes of weights read for one token: all but an untied embedding, of which one row is read."""
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    tied = "output.weight" not in shapes
    total = 0
    for name, kind in types.items():
        block, size = BLOCKS[kind]
        shape = shapes.get(name, (len(plan.made.get(name, ())),))
        count = math.prod(shape) if tied or name != "token_embd.weight" else shape[-1]
        total += count // block * size
    return total


def cache_bytes(plan: Plan, context: int | None = None) -> int:
    """Bytes of keys and values of `context` tokens (default: the file's), two bytes each."""
    data = plan.metadata
    width = data["attention.head_count_kv"] * (data["attention.key_length"] + data["attention.value_length"])
    return int(2 * data["block_count"] * width * (plan.context if context is None else context))


def predict_speed(device: DeviceClass, bytes_per_token: int, measured: float | None = None) -> SpeedPrediction:
    """Tokens/s from the bytes a token streams; `measured`: one thread's on this machine, which small files cannot beat."""
    slow, fast = device.slow_gb_s * GB / bytes_per_token, device.fast_gb_s * GB / bytes_per_token
    if measured is None or fast <= measured:
        return SpeedPrediction(device.name, slow, fast, False)
    return SpeedPrediction(device.name, min(slow, measured), measured, True)


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"


def _rate(value: float) -> str:
    """Two digits that mean something."""
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}"
