"""One llama.cpp context: what is decoded together, and the token each sequence goes on with.

Does: own the context and its KV memory, lay tokens out as llama.cpp's batch, choose tokens (greedy or by the C samplers, under
bit masks) and work out their log-probabilities. Does not: know requests, time or threads (`agents.models.llama_engine`).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.chat import ModelError
from agents.models.llama_library import library
from agents.models.llama_weights import Weights

_F32 = 0
"""ggml's number of the type"""

Top = list[tuple[int, float]]


class DecodeError(Exception):
    """llama.cpp could not decode a batch; `full` when there was no room for it in the KV memory."""

    def __init__(self, sentence: str, full: bool = False) -> None:
        super().__init__(sentence)
        self.full = full


class Batch:
    """A context for `sequences` sequences that share `cells` places of KV memory, and the tokens to be decoded next in it."""

    def __init__(
        self,
        weights: Weights,
        *,
        cells: int,
        sequences: int,
        tokens: int,
        threads: int,
        outputs: int,
        flash: bool | None = None,
        full_kv: bool = False,
    ) -> None:
        """`tokens`: most in one batch; `outputs`: most of them that give logits; `full_kv`: keys and values in 32 bits.

        Raises ModelError when memory is out.
        """
        self._lib = library()
        api = self._lib.api
        self.weights, self.width = weights, weights.width
        self.capacity, self.outputs = tokens, max(outputs, sequences)
        parameters = api.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = cells, tokens, tokens
        parameters.n_seq_max, parameters.kv_unified = sequences, True
        parameters.n_outputs_max = self.outputs
        parameters.n_threads = parameters.n_threads_batch = threads
        if flash is not None:
            parameters.flash_attn_type = 1 if flash else 0
        if full_kv:
            parameters.type_k = parameters.type_v = _F32
        self.context = api.llama_init_from_model(weights.pointer, parameters)
        if not self.context:
            why = self._lib.why("out of memory")
            raise ModelError(f"{weights.path}: no context of {cells} tokens ({why}); open it with a smaller kv_tokens or context")
        self.memory = api.llama_get_memory(self.context)
        self._decode, self._logits_at = api.llama_decode, self._lib.logits_at
        self._context_address = _address(self.context)
        self._memory_address = _address(self.memory)
        self._token = np.zeros(tokens, np.int32)
        self._pos = np.zeros(tokens, np.int32)
        self._seq = np.zeros(tokens, np.int32)
        self._wanted = np.zeros(tokens, np.int8)
        ones = np.ones(tokens, np.int32)
        places = self._seq.ctypes.data + 4 * np.arange(tokens, dtype=np.uint64)
        self._keep = (ones, places)
        self._raw = api.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            embd=None,
            pos=self._pos.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=ones.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=places.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        self.size = 0
        self._views: dict[int, NDArray[np.float32]] = {}

    def clear(self) -> None:
        """Begin a new batch."""
        self.size = 0

    def add(self, sequence: int, ids: Sequence[int], position: int, wanted: bool) -> int:
        """Put tokens that stand at `position` of a sequence into the batch; returns the last one's place.

        `wanted`: whether its logits are. The caller sees to it that they fit.
        """
        start, count = self.size, len(ids)
        if count == 1:
            self._token[start], self._pos[start], self._seq[start], self._wanted[start] = ids[0], position, sequence, wanted
        else:
            end = start + count
            self._token[start:end] = ids
            self._pos[start:end] = np.arange(position, position + count, dtype=np.int32)
            self._seq[start:end] = sequence
            self._wanted[start:end] = 0
            self._wanted[end - 1] = wanted
        self.size = start + count
        return self.size - 1

    def want_all(self) -> None:
        """Ask for the logits of every token of the batch."""
        self._wanted[: self.size] = 1

    def decode(self) -> None:
        """Run the model over the batch; other threads run meanwhile. Raises DecodeError; the batch has then not been decoded."""
        self._raw.n_tokens = self.size
        code = self._decode(self.context, self._raw)
        if code:
            full = code == 1
            reason = "no room in the KV memory" if full else self._lib.why(f"llama_decode returned {code}")
            raise DecodeError(f"{self.weights.path}: {reason}", full)

    def logits(self, place: int) -> NDArray[np.float32]:
        """The logits (V,) float32 at a place of the batch decoded last; they are llama.cpp's own until the next decode."""
        address = self._logits_at(self._context_address, place)
        view = self._views.get(address)
        if view is None:
            if not address:
                raise DecodeError(f"{self.weights.path}: {self._lib.why('no logits at this place')}")
            if len(self._views) > 4 * self.outputs:
                self._views.clear()
            view = self._views[address] = np.ctypeslib.as_array((ctypes.c_float * self.width).from_address(address))
        return view

    def copy(self, source: int, target: int, count: int) -> None:
        """Let sequence `target`, which is empty, begin with the first `count` tokens of `source`: nothing is computed."""
        self._lib.copy(self._memory_address, source, target, 0, count)

    def remove(self, sequence: int, start: int = 0) -> None:
        """Forget a sequence from position `start` on."""
        self._lib.remove(self._memory_address, sequence, start, -1)

    def use(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """Add these adapters, as strongly as said, to the weights of what is decoded from now on."""
        api = self._lib.api
        pointers = (api.llama_adapter_lora_p_ctypes * max(1, len(adapters)))(*[pointer for pointer, _ in adapters])
        scales = (ctypes.c_float * max(1, len(adapters)))(*[scale for _, scale in adapters])
        if api.llama_set_adapters_lora(self.context, pointers, len(adapters), scales):
            raise DecodeError(f"{self.weights.path}: {self._lib.why('the adapters cannot be used together')}")

    def sampler(self, temperature: float, top_p: float, seed: int) -> Sampler:
        """A chain of llama.cpp's samplers for one sequence."""
        return Sampler(self._lib, temperature, top_p, seed)

    def sample(self, sampler: Sampler, place: int) -> int:
        """A token drawn from the logits at `place`, as they now stand in llama.cpp's memory."""
        return int(self._lib.sample(sampler.pointer, self._context_address, place))

    def close(self) -> None:
        """Free the context; the weights stay."""
        if self.context:
            self._views.clear()
            self._lib.api.llama_free(self.context)
            self.context = None


class Sampler:
    """Temperature, then the smallest set of tokens that holds `top_p`, then a draw with a generator of its own."""

    def __init__(self, lib: Any, temperature: float, top_p: float, seed: int) -> None:
        api = lib.api
        self._api = api
        self.pointer = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        api.llama_sampler_chain_add(self.pointer, api.llama_sampler_init_temp(temperature))
        if top_p < 1.0:
            api.llama_sampler_chain_add(self.pointer, api.llama_sampler_init_top_p(top_p, 1))
        api.llama_sampler_chain_add(self.pointer, api.llama_sampler_init_dist(seed))

    def close(self) -> None:
        """Free the chain; calling it twice is harmless."""
        if self.pointer:
            self._api.llama_sampler_free(self.pointer)
            self.pointer = None


def allowed_ids(bits: NDArray[np.int32], width: int) -> NDArray[np.intp]:
    """Ids whose bit is set in one row of a mask (ceil(V/32),) int32, ascending."""
    if not _dense(bits):  # few words hold anything: unpack only those
        words = np.flatnonzero(bits)
        spread = np.unpackbits(bits[words].view(np.uint8), bitorder="little").reshape(-1, 32)
        row, bit = np.nonzero(spread)
        ids = words[row] * 32 + bit
        return ids[ids < width] if len(words) and words[-1] * 32 + 32 > width else ids
    return np.flatnonzero(_spread(bits, width))


def may_come(bits: NDArray[np.int32], token: int) -> bool:
    """Whether the token's bit is set in one row of a mask."""
    return bool(int(bits[token >> 5]) >> (token & 31) & 1)


def greedy(logits: NDArray[np.float32], bits: NDArray[np.int32] | None) -> int:
    """The most likely token that `bits` allows; the smallest id of equals."""
    best = int(logits.argmax())
    if bits is None or may_come(bits, best):
        return best
    if _dense(bits):
        return int(np.where(_spread(bits, len(logits)), logits, -np.inf).argmax())
    ids = allowed_ids(bits, len(logits))
    return int(ids[logits[ids].argmax()])


def score(logits: NDArray[np.float32], bits: NDArray[np.int32] | None, token: int, top: int) -> tuple[float, Top]:
    """Log-probability of `token`, and the `top` most likely tokens, in the distribution that `bits` leaves, at temperature 1."""
    if bits is not None and not top and _dense(bits):
        with np.errstate(over="ignore", invalid="ignore"):
            weights = np.exp(logits - logits[token])
            weights *= _spread(bits, len(logits))
            total = float(weights.sum())
        if math.isfinite(total):  # where all that is likely is forbidden, more care is needed
            return min(0.0, -math.log(total)), []
    ids = allowed_ids(bits, len(logits)) if bits is not None else None
    if ids is not None and len(ids) == 1:
        return 0.0, [(token, 0.0)][:top]
    left = logits if ids is None else logits[ids]
    peak = left.max()
    total = float(peak) + math.log(float(np.exp(left - peak).sum(dtype=np.float64)))
    best: Top = []
    if top:
        count = min(top, len(left))
        order = np.argpartition(-left, count - 1)[:count]
        order = order[np.lexsort((order, -left[order]))]
        best = [(int(i if ids is None else ids[i]), float(left[i]) - total) for i in order]
    return min(0.0, float(logits[token]) - total), best


def forbid(logits: NDArray[np.float32], bits: NDArray[np.int32]) -> None:
    """Write -inf over the logits of every token that `bits` does not allow, in place."""
    logits[_spread(bits, len(logits)) == 0] = -np.inf


def _dense(bits: NDArray[np.int32]) -> bool:
    """Whether so much is allowed that going through the whole vocabulary is quicker than listing it."""
    return int(np.count_nonzero(bits)) * 8 >= len(bits)


def _spread(bits: NDArray[np.int32], width: int) -> NDArray[np.uint8]:
    """A mask's row as one byte, 0 or 1, per token."""
    return np.unpackbits(bits.view(np.uint8), bitorder="little", count=width)


def _address(pointer: Any) -> int:
    return int(ctypes.cast(pointer, ctypes.c_void_p).value or 0) if not isinstance(pointer, int) else pointer
