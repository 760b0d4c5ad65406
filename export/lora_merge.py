"""A LoRA adapter added to its base's weights in float32, rows at a time.

Does: read a peft adapter directory, check that every tensor of it has a place in the base and that its kind can be merged
exactly, give the merged rows of a weight (rank-stabilized scaling, DoRA, replaced modules, patterns of rank and alpha).
Does not: load the base or peft; `factory.merge` merges the kinds refused here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.card import ADAPTER_FILE
from export.errors import ExportError
from export.weights import ITEM_BYTES, Stored, read_header, read_rows

if TYPE_CHECKING:
    import numpy as np

_PREFIX = "base_model.model."
_WAY_OUT = "merge it into its base with factory.merge, and give the merged directory"
_PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?")


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one weight W (rows, columns): scale · B A, and with DoRA then a length for every row."""

    a: Stored
    """(rank, columns); of an embedding (rank, rows)"""
    b: Stored
    """(rows, rank); of an embedding (columns, rank)"""
    scale: float
    magnitude: Stored | None = None
    embedding: bool = False

    def merged(self, weight: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the merged weight, from the same rows of the base's: (n, columns) float32 both."""
        import numpy as np

        if self.embedding:
            added = read_rows(self.a)[:, start:stop].T @ read_rows(self.b).T
        else:
            added = read_rows(self.b, start, stop) @ read_rows(self.a)
        whole: np.ndarray = weight + np.float32(self.scale) * added
        if self.magnitude is None:
            return whole
        length = np.linalg.norm(whole, axis=1)
        turned: np.ndarray = (read_rows(self.magnitude).reshape(-1)[start:stop] / length)[:, None] * whole
        return turned


@dataclass(frozen=True)
class Adapter:
    """A peft adapter directory: what it adds to weights of its base, and which it replaces."""

    directory: Path
    config: dict[str, Any]
    deltas: dict[str, Delta]
    """name of a weight of the base -> what is added"""
    replaced: dict[str, Stored]
    """name of a weight of the base -> what stands for it (modules_to_save)"""

    @classmethod
    def open(cls, directory: Path, base: Mapping[str, Stored]) -> Adapter:
        """Read and check an adapter against its base's tensors. Raises ExportError; reads no weights."""
        try:
            config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ExportError(f"{directory / 'adapter_config.json'}: cannot be read ({error}); train the adapter again") from None
        _check_config(directory, config)
        if not (directory / ADAPTER_FILE).is_file():
            raise ExportError(f"{directory}: no {ADAPTER_FILE} there; give the directory that training wrote")
        parts: dict[str, dict[str, Stored]] = {}
        replaced: dict[str, Stored] = {}
        for name, stored in read_header(directory / ADAPTER_FILE).items():
            if stored.dtype not in ITEM_BYTES:
                raise ExportError(f"{stored.file}: {name} is stored as {stored.dtype}; {_WAY_OUT}")
            bare = name.removeprefix(_PREFIX)
            match = _PART.fullmatch(bare)
            if match is not None:
                parts.setdefault(match["module"], {})[match["part"]] = stored
            else:
                replaced[bare.replace(".modules_to_save.default", "").replace(".base_layer", "")] = stored
        stray = sorted([f"{module}.weight" for module in parts] + list(replaced))
        for weight in stray:
            if weight not in base:
                raise ExportError(f"{directory}: changes {weight}, which its base does not have; give the base it was trained on")
        deltas = {f"{module}.weight": _delta(directory, config, module, found, base) for module, found in parts.items()}
        return cls(directory, config, deltas, replaced)


def _check_config(directory: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ExportError(f"{directory}: an adapter of type {kind!r} cannot be merged here; {_WAY_OUT}")
    # These change the base when they are loaded; the saved A and B are relative to that changed base.
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise ExportError(f"{directory}: init_lora_weights {start!r} changes the base itself; {_WAY_OUT}")
    for key in ("lora_bias", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "layer_replication"):
        if config.get(key):
            raise ExportError(f"{directory}: {key} cannot be merged here; {_WAY_OUT}")
    if config.get("bias", "none") != "none":
        raise ExportError(f"{directory}: it trains biases (bias={config['bias']!r}); {_WAY_OUT}")


def _delta(directory: Path, config: dict[str, Any], module: str, found: dict[str, Stored], base: Mapping[str, Stored]) -> Delta:
    embedding = "lora_embedding_A" in found
    a, b = (found.get("lora_embedding_A" if embedding else "lora_A"), found.get("lora_embedding_B" if embedding else "lora_B"))
    if a is None or b is None:
        raise ExportError(f"{directory}: of {module} only one of lora_A and lora_B is there; train the adapter again")
    rows, columns = base[f"{module}.weight"].shape if len(base[f"{module}.weight"].shape) == 2 else (-1, -1)
    shapes = ((a.shape[0], rows), (columns, a.shape[0])) if embedding else ((a.shape[0], columns), (rows, a.shape[0]))
    if (a.shape, b.shape) != shapes:
        raise ExportError(
            f"{directory}: lora_A {list(a.shape)} and lora_B {list(b.shape)} of {module} do not fit its base's "
            f"{list(base[f'{module}.weight'].shape)}; give the base it was trained on"
        )
    magnitude = found.get("lora_magnitude_vector")
    if magnitude is not None and embedding:
        raise ExportError(f"{directory}: DoRA on {module}; {_WAY_OUT}")
    return Delta(a, b, scaling(config, module, a.shape[0]), magnitude, embedding)


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What B A of a module is multiplied by: alpha / rank, or alpha / sqrt(rank) when rank-stabilized (rsLoRA)."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
