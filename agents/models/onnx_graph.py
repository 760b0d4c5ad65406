"""An ONNX decoder in an onnxruntime session, with keys and values in buffers of our own: rows of any length side by side.

Does: find what a graph takes and gives, keep every layer's cache in one array that the graph reads and writes in place, run one
prompt into one row of it or one step over many rows, with LoRA matrices as inputs.
Does not: know text, grammars or requests (`agents.models.onnx`), or choose tokens (`agents.models.onnx_choice`).

Two kinds of graph run here. With GroupQueryAttention (onnxruntime-genai's builder) past and present are the same memory. A graph
of `export.onnx_torch` gives only the new positions (outputs `new.*`), which are then written into the buffer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INSTALL = "ONNX directories need onnxruntime: pip install 'penknife[onnx]'"
LOGITS_FROM = "logits_from"
"""Optional input of our graphs: the first position whose logits are wanted (negative counts from the end)."""
ROUND = 64
"""Cache positions are allocated in multiples of this."""

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")


class Cache:
    """Keys and values of every layer: arrays (rows, heads, capacity, head size) float32, in the order of the graph's inputs."""

    def __init__(self, graph: OnnxGraph, rows: int, capacity: int) -> None:
        import numpy as np

        self.rows, self.capacity = rows, -(-capacity // ROUND) * ROUND
        self.arrays = [np.zeros((rows, heads, self.capacity, size), np.float32) for heads, size in graph.shapes]
        self.step: _Step | None = None

    def copy_row(self, source: int, target: int, length: int) -> None:
        """The first `length` positions of one row into another."""
        for array in self.arrays:
            array[target, :, :length] = array[source, :, :length]

    def take(self, row: int, length: int) -> list[NDArray[np.float32]]:
        """Copies (heads, length, head size) of a row's first positions."""
        return [array[row, :, :length].copy() for array in self.arrays]

    def put(self, row: int, parts: Sequence[NDArray[np.float32]]) -> None:
        """Write what `take` gave into a row."""
        for array, part in zip(self.arrays, parts):
            array[row, :, : part.shape[1]] = part


class OnnxGraph:
    """A session and what it is fed. Threads may share it; a cache belongs to one of them."""

    def __init__(self, file: Path, heads: tuple[int, int] | None, threads: int | None) -> None:
        """`heads`: (key/value heads, head size) where the graph leaves them open. Raises ModelError for a file that fails."""
        try:
            import onnxruntime as ort
        except ImportError:
            raise ModelError(INSTALL) from None
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self.session: Any = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for every status
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{file}: onnxruntime cannot load it ({reason}); export the model again") from None
        inputs = {entry.name: entry for entry in self.session.get_inputs()}
        outputs = {entry.name: entry for entry in self.session.get_outputs()}
        self.optional = {entry.name: tuple(entry.shape) for entry in self.session.get_overridable_initializers()}
        """inputs that have a default: name -> shape"""
        self.past = sorted((name for name in inputs if _PAST.fullmatch(name)), key=_order)
        self.in_place = f"new.{_index(self.past[0])}" not in outputs if self.past else True
        self.present = [name.replace("past_key_values", "present" if self.in_place else "new") for name in self.past]
        needed = {"input_ids", *self.past} | ({"attention_mask"} if self.in_place else {"position_ids"})
        strange = sorted(set(inputs) - needed - {"position_ids", "attention_mask"})
        if not self.past or "logits" not in outputs or strange or needed - set(inputs) or set(self.present) - set(outputs):
            raise ModelError(
                f"{file}: is no text decoder this program can run (inputs {', '.join(list(inputs)[:4])}…); "
                "export it with export.onnx"
            )
        self.shapes = [_heads(inputs[name].shape, heads, file) for name in self.past]
        """(heads, head size) of every cache array"""
        self.has_mask, self.has_positions = "attention_mask" in inputs, "position_ids" in inputs
        width = outputs["logits"].shape[-1]
        if not isinstance(width, int):
            raise ModelError(f"{file}: its logits have no fixed width; export it with export.onnx")
        self.vocab_size: int = width

    @property
    def bytes_per_token(self) -> int:
        """Bytes of cache for one position of one row."""
        return sum(4 * heads * size for heads, size in self.shapes)

    def prefill(
        self,
        ids: Sequence[int],
        cache: Cache,
        row: int,
        past: int = 0,
        *,
        every: bool = False,
        extra: Mapping[str, NDArray[Any]] | None = None,
    ) -> NDArray[np.float32]:
        """Run `ids` behind the first `past` positions of a row. Logits (1, V) of the last token, or (T, V) of all (`every`).

        `extra`: values of optional inputs (an adapter's matrices).
        """
        import numpy as np

        length = len(ids)
        kept = length if every or LOGITS_FROM not in self.optional else 1
        feeds: dict[str, NDArray[Any]] = {"input_ids": np.array([ids], np.int64), **(extra or {})}
        if self.has_mask:
            feeds["attention_mask"] = np.ones((1, past + length), np.int64)
        if self.has_positions:
            feeds["position_ids"] = np.arange(past, past + length, dtype=np.int64)[None]
        if LOGITS_FROM in self.optional:
            feeds[LOGITS_FROM] = np.array([length - kept], np.int64)
        logits = np.empty((1, kept, self.vocab_size), np.float32)
        binding = self.session.io_binding()
        news = self._bind_cache(binding, cache, row, row + 1, length, past)
        self._bind(binding, feeds)
        _bind_output(binding, "logits", logits)
        self.session.run_with_iobinding(binding)
        for array, new in zip(cache.arrays, news):
            array[row, :, past : past + length] = new[0]
        return logits[0] if every else logits[0, -1:]

    def step(
        self, tokens: Sequence[int], lengths: Sequence[int], cache: Cache, extra: Mapping[str, NDArray[Any]] | None = None
    ) -> NDArray[np.float32]:
        """One new token behind each of the first rows, which hold `lengths` positions. Logits (B, V), valid until the next."""
        import numpy as np

        count, longest = len(tokens), max(lengths)
        state = cache.step
        if state is None or state.count != count or state.extra is not extra:
            state = cache.step = _Step(self, count, cache, extra)
        state.ids[:, 0] = tokens
        places = np.asarray(lengths, np.int64)
        if self.has_mask:
            mask = (np.arange(longest + 1) <= places[:, None]).astype(np.int64)
            self._bind(state.binding, {"attention_mask": mask})
        if self.has_positions:
            state.positions[:, 0] = places
        if not self.in_place:
            self._bind_past(state.binding, cache, 0, count)
        self.session.run_with_iobinding(state.binding)
        for array, new in zip(cache.arrays, state.news):
            array[np.arange(count), :, places] = new[:, :, 0]
        logits: NDArray[np.float32] = state.logits[:, 0]
        return logits

    def _bind(self, binding: Any, feeds: Mapping[str, NDArray[Any]]) -> None:
        for name, value in feeds.items():
            binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)

    def _bind_past(self, binding: Any, cache: Cache, start: int, stop: int) -> None:
        self._bind(binding, {name: array[start:stop] for name, array in zip(self.past, cache.arrays)})

    def _bind_cache(self, binding: Any, cache: Cache, start: int, stop: int, length: int, past: int) -> list[NDArray[np.float32]]:
        """Bind rows of the cache; the arrays that new positions arrive in, none where the graph writes in place."""
        import numpy as np

        if self.in_place:
            for name, out, array in zip(self.past, self.present, cache.arrays):
                rows = array[start:stop]
                binding.bind_input(name, "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
                binding.bind_output(out, "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
            return []
        self._bind_past(binding, cache, start, stop)
        news = [np.empty((stop - start, heads, length, size), np.float32) for heads, size in self.shapes]
        for out, new in zip(self.present, news):
            _bind_output(binding, out, new)
        return news


class _Step:
    """Buffers and bindings of a step over a given number of rows, used again while nothing but the tokens changes."""

    def __init__(self, graph: OnnxGraph, count: int, cache: Cache, extra: Mapping[str, NDArray[Any]] | None) -> None:
        import numpy as np

        self.count, self.extra = count, extra
        self.binding = graph.session.io_binding()
        self.ids, self.positions = np.empty((count, 1), np.int64), np.empty((count, 1), np.int64)
        self.logits = np.empty((count, 1, graph.vocab_size), np.float32)
        self.news = graph._bind_cache(self.binding, cache, 0, count, 1, 0)
        feeds: dict[str, NDArray[Any]] = {"input_ids": self.ids, **(extra or {})}
        if graph.has_positions:
            feeds["position_ids"] = self.positions
        graph._bind(self.binding, feeds)
        _bind_output(self.binding, "logits", self.logits)


def _bind_output(binding: Any, name: str, value: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)


def _index(name: str) -> str:
    return name.removeprefix("past_key_values.")


def _order(name: str) -> tuple[int, str]:
    match = _PAST.fullmatch(name)
    assert match is not None
    return int(match[1]), match[2]


def _heads(shape: Sequence[int | str], given: tuple[int, int] | None, file: Path) -> tuple[int, int]:
    heads, size = shape[1], shape[3]
    if isinstance(heads, int) and isinstance(size, int):
        return heads, size
    if given is None:
        raise ModelError(f"{file}: says nowhere how many key/value heads it has; export it with export.onnx")
    return given
