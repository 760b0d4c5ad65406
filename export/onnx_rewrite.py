"""From the float32 graph a builder wrote to the one that ships: bits, one table for embedding and head, windows, last logits.

Does: quantize matrices into MatMulNBits and embeddings into GatherBlockQuantized, share what both use, give attention the sliding
window its layers have, add the optional input `logits_from`, write graph and weights streamed, one tensor in memory at a time.
Does not: build a graph (`export.onnx_builder`, `export.onnx_torch`) or add adapters (`export.lora_onnx` gives it what to insert).

The int4 recipe keeps the head, and an embedding that shares its table, in 8 bits (an embedding of its own gets 4) and, as
llama.cpp's K quants do (src/llama-quant.cpp, use_more_bits), the value and down projections of the first and last eighth of the
layers and of every third between. onnxruntime-genai leaves the embedding in float32 at int8 and the head in 4 bits at int4.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.models.onnx_graph import LOGITS_FROM
from export.onnx_quantize import BLOCK, Blocks, quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

Precision = Literal["fp32", "int8", "int4"]
FILE, DATA = "model.onnx", "model.onnx.data"
ALIGN = 64
INLINE = 1024
"""Bytes up to which a tensor stays in the graph file."""
SENSITIVE = re.compile(r"layers[./](\d+)[./].*(qkv_proj|v_proj|down_proj)")


@dataclass(frozen=True)
class Rewritten:
    """What was written."""

    bytes: int
    parameters: int
    """weights of matrices and embedding; a shared table counts once"""
    bits_per_weight: float
    bits: dict[str, int]
    """matrix -> bits"""
    kept_float: tuple[str, ...]
    """matrices that stayed in float32 although the precision is lower, and why"""


def rewrite(
    built: Path,
    out: Path,
    precision: Precision,
    windows: Mapping[int, int],
    insert: Callable[[Any, Callable[[str], NDArray[Any] | None]], None] | None = None,
) -> Rewritten:
    """Read `built`/model.onnx, write `out`/model.onnx and model.onnx.data.

    `windows`: layer -> tokens its attention sees; other layers see all. `insert` changes the graph first (adapters' inputs).
    """
    import onnx

    model = onnx.load(str(built / FILE), load_external_data=False)
    tensors = _Tensors(model.graph, built)
    if insert is not None:
        insert(model.graph, tensors.read)
    _set_windows(model.graph, windows)
    matrices = _matrices(model.graph, tensors)
    head = _head(model.graph, matrices)
    if head is not None:
        _keep_last(model.graph, head)
    layers = 1 + max((int(found[1]) for use in matrices.values() if (found := SENSITIVE.search(_label(use)))), default=-1)
    written = _Writer(out)
    result = _Result()
    tables = {use.name: use for use in _embeddings(model.graph, tensors)}
    for use in list(matrices.values()):
        shared = tables.get(use.name)
        if precision == "fp32":
            result.count(use.name, math.prod(use.shape), 32, 4 * math.prod(use.shape))
            continue
        bits = 8 if precision == "int8" or use.node is head or shared is not None else _bits(_label(use), layers)
        matrix = tensors.read(use.name)
        blocks = quantize(matrix if use.turned else matrix.T, bits, _block(precision, use.shape[0]))
        _to_nbits(use, blocks, written)
        if shared is not None and bits == 8 and blocks.codes.shape[1] * blocks.block == shared.shape[1]:
            _to_block_gather(shared, blocks, written)
            del tables[use.name]
        result.count(use.name, math.prod(use.shape), bits, blocks.nbytes)
    for table in tables.values():
        size = math.prod(table.shape)
        if precision == "fp32":
            if table.name not in result.bits:
                result.count(table.name, size, 32, 4 * size)
        elif table.shape[1] % BLOCK or (table.turned and table.name in result.bits):
            result.kept.append(f"{table.name}: {table.shape[1]} columns are no multiple of {BLOCK}")
            result.count(table.name + " (embedding)", size, 32, 4 * size)
        else:
            matrix = tensors.read(table.name)
            blocks = quantize(
                matrix.T if table.turned else matrix, 8 if precision == "int8" else 4, _block(precision, table.shape[1])
            )
            _to_block_gather(table, blocks, written)
            result.count(table.name, size, blocks.bits, blocks.nbytes)
    _drop_unused(model.graph)
    for tensor in list(model.graph.initializer):
        written.move(tensor, tensors)
    model.graph.initializer.extend(written.made)
    written.close()
    _need_contrib(model)
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # torch.onnx notes stack traces there, with this machine's paths
    (out / FILE).write_bytes(model.SerializeToString())
    return Rewritten(
        bytes=(out / FILE).stat().st_size + (out / DATA).stat().st_size,
        parameters=result.weights,
        bits_per_weight=8 * result.nbytes / max(1, result.weights),
        bits=result.bits,
        kept_float=tuple(result.kept),
    )


@dataclass
class _Result:
    bits: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    nbytes: int = 0
    kept: list[str] = field(default_factory=list)

    def count(self, name: str, weights: int, bits: int, nbytes: int) -> None:
        self.bits[name] = bits
        self.weights += weights
        self.nbytes += nbytes


@dataclass
class _Use:
    """A node that uses a constant matrix, directly or turned (Transpose)."""

    node: Any
    name: str
    """of the initializer"""
    shape: tuple[int, ...]
    """as the node sees it"""
    turned: bool

    @property
    def key(self) -> str:
        return str(self.node.output[0])


class _Tensors:
    """The initializers of a graph, read from where they are when they are wanted."""

    def __init__(self, graph: Any, directory: Path) -> None:
        self.directory = directory
        self.by_name = {tensor.name: tensor for tensor in graph.initializer}

    def read(self, name: str) -> Any:
        """The array, memory-mapped where it lies in a data file; None for no initializer."""
        import numpy as np
        from onnx import external_data_helper, helper, numpy_helper

        tensor = self.by_name.get(name)
        if tensor is None:
            return None
        if not external_data_helper.uses_external_data(tensor):
            return numpy_helper.to_array(tensor)
        where = {entry.key: entry.value for entry in tensor.external_data}
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if not math.prod(tensor.dims):
            return np.zeros(tuple(tensor.dims), kind)
        offset = int(where.get("offset", 0))
        return np.memmap(self.directory / Path(where["location"]).name, kind, "r", offset, shape=tuple(tensor.dims))


class _Writer:
    """`model.onnx.data`, written once from front to back."""

    def __init__(self, out: Path) -> None:
        self.file = (out / DATA).open("wb")
        self.made: list[Any] = []
        self.places: dict[int, tuple[int, int]] = {}
        self._arrays: list[Any] = []

    def add(self, name: str, array: NDArray[Any], dims: tuple[int, ...] | None = None) -> str:
        """A new initializer; an array given twice is stored once. Returns `name`."""
        import onnx
        from onnx import helper

        if id(array) not in self.places:
            self.places[id(array)] = self._write(array)
            self._arrays.append(array)  # its id must stay its own
        offset, length = self.places[id(array)]
        tensor = onnx.TensorProto(name=name, dims=dims or array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        _point(tensor, offset, length)
        self.made.append(tensor)
        return name

    def move(self, tensor: Any, tensors: _Tensors) -> None:
        """Copy an initializer's data over, or into the graph when it is small."""
        from onnx import numpy_helper

        array = tensors.read(tensor.name) if tensor.name in tensors.by_name else numpy_helper.to_array(tensor)
        if array.nbytes <= INLINE:
            tensor.CopyFrom(numpy_helper.from_array(array.copy(), tensor.name))
            return
        offset, length = self._write(array)
        tensor.ClearField("raw_data")
        _point(tensor, offset, length)

    def close(self) -> None:
        self._arrays.clear()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def _write(self, array: NDArray[Any]) -> tuple[int, int]:
        import numpy as np

        self.file.write(b"\0" * (-self.file.tell() % ALIGN))
        offset = self.file.tell()
        self.file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return offset, array.nbytes


def _point(tensor: Any, offset: int, length: int) -> None:
    import onnx

    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _constant(name: str, tensors: _Tensors, turns: Mapping[str, Any]) -> tuple[str, tuple[int, ...], bool] | None:
    """(initializer, shape as used, turned) of a 2-D float constant or its transpose."""
    turned = name in turns
    source = turns[name].input[0] if turned else name
    tensor = tensors.by_name.get(source)
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != 1:
        return None
    shape = tuple(tensor.dims)
    return source, shape[::-1] if turned else shape, turned


def _turns(graph: Any) -> dict[str, Any]:
    return {node.output[0]: node for node in graph.node if node.op_type == "Transpose" and len(node.input) == 1}


def _matrices(graph: Any, tensors: _Tensors) -> dict[str, _Use]:
    """Products with a constant matrix, by the name of their output."""
    turns = _turns(graph)
    found = {}
    for node in graph.node:
        constant = _constant(node.input[1], tensors, turns) if node.op_type == "MatMul" else None
        if constant is not None and not node.name.startswith("lora/"):
            found[node.output[0]] = _Use(node, *constant)
    return found


def _embeddings(graph: Any, tensors: _Tensors) -> list[_Use]:
    turns = _turns(graph)
    found = []
    for node in graph.node:
        if node.op_type == "Gather" and "input_ids" in node.input[1]:
            constant = _constant(node.input[0], tensors, turns)
            if constant is not None:
                found.append(_Use(node, *constant))
    return found


def _head(graph: Any, matrices: Mapping[str, _Use]) -> Any:
    """The product the logits come from, through elementwise nodes."""
    made = {output: node for node in graph.node for output in node.output}
    name = "logits"
    for _ in range(12):
        if name in matrices:
            return matrices[name].node
        node = made.get(name)
        if node is None:
            return None
        name = next((source for source in node.input if source in made and made[source].op_type != "Constant"), "")
    return None


def _keep_last(graph: Any, head: Any) -> None:
    """Logits from position `logits_from` on: 0, all of them, unless the caller says otherwise."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    for name, value in ((LOGITS_FROM, 0), ("logits_until", 2**62), ("logits_axis", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    graph.input.append(helper.make_tensor_value_info(LOGITS_FROM, TensorProto.INT64, [1]))
    inputs = [head.input[0], LOGITS_FROM, "logits_until", "logits_axis"]
    node = helper.make_node("Slice", inputs, ["logits_hidden"], name="/logits/Slice")
    place = next(i for i, other in enumerate(graph.node) if other.output[0] == head.output[0])
    head.input[0] = "logits_hidden"
    graph.node.insert(place, node)


def _set_windows(graph: Any, windows: Mapping[int, int]) -> None:
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        found = re.search(r"layers\.(\d+)", node.name)
        window = windows.get(int(found[1]), -1) if found is not None else -1
        for attribute in node.attribute:
            if attribute.name == "local_window_size":
                attribute.i = window
            elif attribute.name == "sliding_window_cache":
                attribute.i = 0


def _label(use: _Use) -> str:
    """Where in the model a product is: the builder names its nodes so, torch.onnx notes the modules a node comes from."""
    scopes = " ".join(entry.value for entry in use.node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes")
    return f"{use.node.name} {use.name} {scopes}"


def _bits(label: str, layers: int) -> int:
    """4, or 8 for the products whose rounding costs most."""
    found = SENSITIVE.search(label)
    if found is None:
        return 4
    layer = int(found[1])
    return 8 if 8 * layer < layers or 8 * layer >= 7 * layers or (layer - layers // 8) % 3 == 2 else 4


def _block(precision: Precision, columns: int) -> int:
    """Weights to a scale: onnxruntime multiplies longer blocks faster, and in 4 bits they cost little."""
    return 2 * BLOCK if precision == "int4" and columns % (2 * BLOCK) == 0 else BLOCK


def _to_nbits(use: _Use, blocks: Blocks, written: _Writer) -> None:
    from onnx import helper

    columns, rows = use.shape
    inputs = [use.node.input[0], written.add(f"{use.key}.codes", blocks.codes), written.add(f"{use.key}.scales", blocks.scales)]
    if blocks.zeros is not None:
        inputs.append(written.add(f"{use.key}.zeros", blocks.zeros))
    made = helper.make_node("MatMulNBits", inputs, list(use.node.output), name=use.node.name, domain="com.microsoft",
                            K=columns, N=rows, bits=blocks.bits, block_size=blocks.block, accuracy_level=4)  # fmt: skip
    use.node.CopyFrom(made)


def _to_block_gather(use: _Use, blocks: Blocks, written: _Writer) -> None:
    from onnx import helper

    rows = blocks.codes.shape[0]
    width = blocks.codes.shape[1] * blocks.codes.shape[2]
    inputs = [written.add(f"{use.key}.codes", blocks.codes, (rows, width)), use.node.input[1],
              written.add(f"{use.key}.scales", blocks.scales)]  # fmt: skip
    if blocks.zeros is not None:
        inputs.append(written.add(f"{use.key}.zeros", blocks.zeros))
    made = helper.make_node("GatherBlockQuantized", inputs, list(use.node.output), name=use.node.name, domain="com.microsoft",
                            bits=blocks.bits, block_size=blocks.block, gather_axis=0, quantize_axis=1)  # fmt: skip
    use.node.CopyFrom(made)


def _drop_unused(graph: Any) -> None:
    """Take out nodes and initializers nothing uses any more."""
    outputs = {output.name for output in graph.output}
    while True:
        used = Counter(name for node in graph.node for name in node.input)
        idle = [node for node in graph.node if not any(used[name] or name in outputs for name in node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    inputs = {entry.name for entry in graph.input}
    for tensor in [tensor for tensor in graph.initializer if not used[tensor.name] and tensor.name not in inputs]:
        graph.initializer.remove(tensor)


def _need_contrib(model: Any) -> None:
    from onnx import helper

    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
