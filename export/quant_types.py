"""What a quant type makes of a model, computed from shapes: llama.cpp's names, its rules, and the fall-backs row sizes force.

Does: list the types as llama.cpp spells them, predict every tensor's type, bytes and bits per weight before anything is read.
Does not: quantize (`export.quants`) or measure what a type costs (`export.gate`).

    predict(source.plan, Recipe("Q4_K_M")).fallbacks
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from export.errors import ExportError
from export.families import Plan


@dataclass(frozen=True)
class QuantType:
    """One file type of llama.cpp."""

    name: str
    file_type: int
    """`general.file_type`, llama.cpp's llama_ftype"""
    base: str
    """tensor type most matrices get"""
    ours: bool = False
    """written without compiled code"""
    importance: bool = False
    """llama.cpp refuses it without an importance matrix"""


QUANT_TYPES: dict[str, QuantType] = {
    kind.name: kind
    for kind in (
        QuantType("F32", 0, "F32", ours=True), QuantType("F16", 1, "F16", ours=True), QuantType("BF16", 32, "BF16", ours=True),
        QuantType("Q8_0", 7, "Q8_0", ours=True), QuantType("Q5_1", 9, "Q5_1", ours=True), QuantType("Q5_0", 8, "Q5_0", ours=True),
        QuantType("Q4_1", 3, "Q4_1", ours=True), QuantType("Q4_0", 2, "Q4_0", ours=True),
        QuantType("Q6_K", 18, "Q6_K"), QuantType("Q5_K_M", 17, "Q5_K"), QuantType("Q5_K_S", 16, "Q5_K"),
        QuantType("Q4_K_M", 15, "Q4_K"), QuantType("Q4_K_S", 14, "Q4_K"), QuantType("IQ4_NL", 25, "IQ4_NL"),
        QuantType("IQ4_XS", 30, "IQ4_XS"), QuantType("Q3_K_L", 13, "Q3_K"), QuantType("Q3_K_M", 12, "Q3_K"),
        QuantType("Q3_K_S", 11, "Q3_K"), QuantType("IQ3_M", 27, "IQ3_S"), QuantType("IQ3_S", 26, "IQ3_S"),
        QuantType("IQ3_XS", 22, "IQ3_S", importance=True), QuantType("IQ3_XXS", 23, "IQ3_XXS", importance=True),
        QuantType("Q2_K", 10, "Q2_K"), QuantType("Q2_K_S", 21, "Q2_K", importance=True),
        QuantType("IQ2_M", 29, "IQ2_S", importance=True), QuantType("IQ2_S", 28, "IQ2_XS", importance=True),
        QuantType("IQ2_XS", 20, "IQ2_XS", importance=True), QuantType("IQ2_XXS", 19, "IQ2_XXS", importance=True),
        QuantType("IQ1_M", 31, "IQ1_M", importance=True), QuantType("IQ1_S", 24, "IQ1_S", importance=True),
    )
}  # fmt: skip
"""name -> type, from exact to small"""

BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_1": (32, 20),
    "Q4_0": (32, 18), "IQ4_NL": (32, 18), "Q6_K": (256, 210), "Q5_K": (256, 176), "Q4_K": (256, 144), "IQ4_XS": (256, 136),
    "Q3_K": (256, 110), "IQ3_S": (256, 110), "IQ3_XXS": (256, 98), "Q2_K": (256, 84), "IQ2_S": (256, 82), "IQ2_XS": (256, 74),
    "IQ2_XXS": (256, 66), "IQ1_M": (256, 56), "IQ1_S": (256, 50),
}  # fmt: skip
"""tensor type -> (weights in a block, bytes of a block); a row must be whole blocks (ggml's block structures)"""

_SMALLER_BLOCK = {
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""what llama.cpp takes where a row is no multiple of 256 (tensor_type_fallback)"""
_SAME_BITS = {**_SMALLER_BLOCK, "Q4_K": "IQ4_NL"}
"""the same, but what was 4.5 bits stays 4.5: on SmolLM2-135M's shape Q5_0 makes Q4_K_M a third slower than Q4_0 (LOG.md)"""

_HEAD_Q5 = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ1_S", "IQ1_M")
"""types whose head llama.cpp stores in Q5_K, not Q6_K"""


@dataclass(frozen=True)
class Recipe:
    """How a file is quantized."""

    quant: str
    """a name of QUANT_TYPES"""
    head: str | None = None
    """tensor type of the output head (of the embedding, where both are one); None leaves it to the type's own rule"""
    importance: bool = False
    """rounded with an importance matrix"""
    keep: tuple[str, ...] = ()
    """tensors left in F16 because rounding them costs most (`export.mixed`)"""
    fallback: Literal["same", "larger"] = "same"
    """where rows are no multiple of 256, Q4_K becomes IQ4_NL, of as many bits, or Q5_0, as llama.cpp has it"""

    @property
    def type(self) -> QuantType:
        return QUANT_TYPES[self.quant]

    @property
    def needs_llama_cpp(self) -> bool:
        """Whether llama.cpp must write it; our own writer knows neither K and IQ types nor importance, and one head per type."""
        return not self.type.ours or self.importance or self.head is not None

    @property
    def label(self) -> str:
        """Its name in tables and messages: "Q4_0", "IQ4_XS, head Q8_0", "Q8_0, 2 tensors in F16"."""
        kept = f", {len(self.keep)} {'tensor' if len(self.keep) == 1 else 'tensors'} in F16" if self.keep else ""
        larger = ", larger fall-backs" if self.fallback == "larger" else ""
        return (self.quant if self.head is None else f"{self.quant}, head {self.head}") + kept + larger

    @property
    def options(self) -> str:
        """What to type for it, with every choice spelt out."""
        head = "" if self.head is None else f" --head {self.head}"
        larger = " --fallback larger" if self.fallback == "larger" else ""
        return f"--quant {self.quant}{head} --{'' if self.importance else 'no-'}importance{larger}"


@dataclass(frozen=True)
class Fallback:
    """A tensor that cannot have the type its file type means: its rows are no whole blocks."""

    tensor: str
    columns: int
    wanted: str
    got: str


@dataclass(frozen=True)
class Prediction:
    """What a recipe makes of a model, computed from shapes alone."""

    types: dict[str, str]
    """tensor name -> tensor type"""
    fallbacks: tuple[Fallback, ...]
    tensor_bytes: int
    """of all tensors; a file has metadata and vocabulary beside them"""
    weights: int

    @property
    def chosen(self) -> bool:
        """Whether a fall-back is not llama.cpp's own, so that it must be told the types."""
        return any(_SMALLER_BLOCK.get(f.wanted) != f.got != "F16" for f in self.fallbacks)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / self.weights

    def say(self, recipe: Recipe) -> str | None:
        """One sentence about fall-backs, None when there are none."""
        if not self.fallbacks:
            return None
        kinds = sorted({(f.wanted, f.got, f.columns) for f in self.fallbacks})
        how = ", ".join(f"{wanted} -> {got} in rows of {columns}" for wanted, got, columns in kinds)
        return (
            f"{len(self.fallbacks)} of {len(self.types)} tensors cannot be what {recipe.quant} means ({how}: rows must be "
            f"multiples of {max(BLOCKS[f.wanted][0] for f in self.fallbacks)}): {self.bits_per_weight:.2f} bits per weight in all"
        )


def predict(plan: Plan, recipe: Recipe) -> Prediction:
    """Every tensor's type as our writer (types it writes) or llama.cpp (the others) will choose it, dense models only.

    The rules are those of llama_tensor_get_type in llama.cpp's src/llama-quant.cpp (0c1e57098); `surprises` says if they held.
    Raises ExportError when the head's rows are no whole blocks of the type asked for it.
    """
    rule = _Rule(plan, recipe)
    if recipe.head is not None and (columns := plan.metadata["embedding_length"]) % BLOCKS[recipe.head][0] != 0:
        block = BLOCKS[recipe.head][0]
        raise ExportError(
            f"--head {recipe.head} needs rows of a multiple of {block} and the head's have {columns}; choose Q8_0 or F16"
        )
    types: dict[str, str] = {}
    fallbacks: list[Fallback] = []
    tensor_bytes = weights = 0
    # llama.cpp counts its layers' tensors in the order of their names, as its loader sorts them.
    for tensor in sorted(plan.tensors, key=lambda tensor: _layer_order(tensor.name)):
        columns, count = tensor.shape[-1], math.prod(tensor.shape)
        wanted = "F32" if len(tensor.shape) < 2 else rule.wanted(tensor.name)
        wanted = "F16" if tensor.name in recipe.keep else wanted
        got = wanted
        if columns % BLOCKS[wanted][0] != 0:
            got = (_SAME_BITS if recipe.fallback == "same" else _SMALLER_BLOCK).get(wanted, wanted)
            got = got if columns % BLOCKS[got][0] == 0 else "F16"
            fallbacks.append(Fallback(tensor.name, columns, wanted, got))
        types[tensor.name] = got
        block, size = BLOCKS[got]
        tensor_bytes += count // block * size
        weights += count
    for name, values in plan.made.items():
        types[name] = "F32"
        tensor_bytes += 4 * len(values)
        weights += len(values)
    return Prediction(types, tuple(fallbacks), tensor_bytes, weights)


def _layer_order(name: str) -> tuple[int, str]:
    parts = name.split(".")
    return (int(parts[1]), name) if parts[0] == "blk" else (-1, name)


class _Rule:
    """The type that a recipe means for each tensor, asked in the order llama.cpp goes through them."""

    def __init__(self, plan: Plan, recipe: Recipe) -> None:
        self.recipe, self.quant = recipe, recipe.quant
        self.base = recipe.type.base
        self.tied = all(tensor.name != "output.weight" for tensor in plan.tensors)
        self.columns = plan.metadata["embedding_length"]
        self.layers = int(plan.metadata["block_count"])
        self.grouped = plan.metadata["attention.head_count"] // plan.metadata["attention.head_count_kv"] >= 4
        self.seen = {"v": 0, "down": 0, "gate": 0, "up": 0}

    def wanted(self, name: str) -> str:
        if name == "output.weight" or (name == "token_embd.weight" and self.tied):
            return self.recipe.head if self.recipe.head is not None else self._head()
        if not self.recipe.needs_llama_cpp:
            return self.base
        if name == "token_embd.weight":
            return self._embedding()
        part = name.split(".")[2]
        if part in ("attn_v", "attn_qkv"):
            return self._value(fused=part == "attn_qkv")
        if part in ("ffn_gate", "ffn_up"):
            return self._wide("gate" if part == "ffn_gate" else "up")
        return {"attn_q": self._query, "attn_k": self._query, "attn_output": self._output, "ffn_down": self._down}[part]()

    def _next(self, kind: str) -> int:
        self.seen[kind] += 1
        return self.seen[kind] - 1

    def _more_bits(self, i: int) -> bool:
        return i < self.layers // 8 or i >= 7 * self.layers // 8 or (i - self.layers // 8) % 3 == 2

    def _head(self) -> str:
        if self.base in ("F32", "F16", "BF16", "Q8_0"):
            return self.base
        if not self.recipe.needs_llama_cpp:
            return "Q8_0"  # our writer's rule
        if self.columns % BLOCKS[self.base][0] != 0:
            return "Q8_0" if self.quant in _HEAD_Q5 else "Q6_K"  # llama.cpp goes to Q8_0 at once, which Q6_K falls back to
        return "Q5_K" if self.quant in _HEAD_Q5 else "Q6_K"

    def _embedding(self) -> str:
        if self.quant in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
            return "Q2_K"
        return "IQ3_S" if self.quant in ("IQ2_S", "IQ2_M", "IQ3_XXS") else self.base

    @property
    def _tiny(self) -> bool:
        return self.quant in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")

    def _value(self, fused: bool) -> str:
        i = self._next("v")
        if self._tiny:
            return "Q4_K" if self.grouped else "IQ3_S" if self.quant in ("IQ2_S", "IQ2_M") else "Q2_K"
        match self.quant:
            case "Q2_K":
                return "Q4_K" if self.grouped else "Q3_K"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if self.grouped:
                return "Q4_K"
            case "IQ3_XXS":
                return "Q4_K" if self.grouped else "IQ3_XXS" if self.recipe.importance else "IQ3_S"
            case "IQ3_M":
                return "Q4_K"
            case "Q3_K_M":
                return "Q5_K" if i < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if self.grouped:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if self._more_bits(i):
                return "Q6_K"
            case "Q4_K_S" if i < 4:
                return "Q5_K"
        return self.base

    def _query(self) -> str:
        if self._tiny:
            return self.base
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.quant, self.base)

    def _output(self) -> str:
        special = {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S", "Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S",
                   "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}  # fmt: skip
        return special.get(self.quant, self.base)

    def _down(self) -> str:
        i = self._next("down")
        first = i < self.layers // 8
        if self._tiny:
            return ("IQ3_S" if self.quant in ("IQ2_S", "IQ2_M") else "Q2_K") if first else self.base
        match self.quant:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if first:
                return "Q4_K"
            case "IQ3_XXS" if not self.recipe.importance:
                return "Q4_K" if first else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if i < self.layers // 16 else "Q4_K"
            case "IQ3_M" if first:
                return "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if self._more_bits(i):
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if first and not self.recipe.importance:
                return "Q5_K"
            case "Q4_K_S" if first:
                return "Q5_K"
            case "Q4_0" | "Q5_0" if first and self.recipe.importance:
                return "Q4_1" if self.quant == "Q4_0" else "Q5_1"
        return self.base

    def _wide(self, kind: str) -> str:
        i = self._next(kind)
        middle = self.layers // 8 <= i < 7 * self.layers // 8
        return "IQ3_XXS" if self.quant == "IQ3_XS" and middle else self.base
