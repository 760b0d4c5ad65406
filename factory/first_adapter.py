"""The adapter that training goes on from: one trained before, as a peft directory or as a GGUF adapter file.

Does: find it, check that it belongs to the student before any cost, write it down as a peft directory of the run.
Does not: train (`train.py`), or write GGUF adapters (`export.lora`, whose row order is undone here).

    python -m factory.finetune --task tools --functions shop.json --student embedded --adapter-from embedded
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.card import ADAPTER_FILE, Card, CardError, sha256_of_weights
from factory.embedded import NAME, adapter_file, blades
from factory.merge import name_base
from factory.settings import Adapter, StudentSettings
from factory.student import StudentError, StudentPlan, adapter_gb
from factory.tasks.task import DatasetCard

if TYPE_CHECKING:
    from factory.rundir import RunDir

_PREFIX = "base_model.model."
_TYPES = {"F32": "<f4", "F16": "<f2"}
"""Types of a GGUF adapter that are read, as numpy names them."""
_ROTATED = ("llama", "mistral")
"""Model types whose query and key rows llama.cpp wants in another order; GGUF adapters of others are not taken back."""
_TENSOR = re.compile(r"blk\.(?P<layer>\d+)\.(?P<module>\w+)\.weight\.lora_(?P<part>[ab])")
_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class FirstAdapter:
    """An adapter that fits the student. Nothing has been written."""

    path: Path
    kind: Literal["lora", "dora"]
    rank: int
    """its largest"""
    base_sha256: str | None
    """`sha256_of_weights` of the base it was trained on, where it says"""
    card: Card | None
    shapes: dict[str, tuple[int, int]]
    """weight of the base that it changes -> (rows, columns)"""

    def more(self) -> list[str]:
        """What a peft directory does beyond adding B A to weights, by the names of its settings and tensors."""
        if self.path.is_file():
            return []
        config = json.loads((self.path / "adapter_config.json").read_text(encoding="utf-8"))
        keys = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias", "fan_in_fan_out")
        found = [key for key in keys if config.get(key)] + (["bias"] if config.get("bias", "none") != "none" else [])
        return (
            found
            + [name for name in _shapes(self.path / ADAPTER_FILE) if not name.endswith((".lora_A.weight", ".lora_B.weight"))][:1]
        )

    def need_gb(self, student: StudentPlan, rank: int) -> float:
        """Memory to train it on a student that was planned with a fresh adapter of `rank`."""
        more = adapter_gb(student.layers, student.hidden, self.rank) - adapter_gb(student.layers, student.hidden, rank)
        return student.need_gb + more

    def read_before(self, cards: Sequence[DatasetCard]) -> list[DatasetCard]:
        """The data its card names beyond `cards`."""
        if self.card is None:
            return []
        known = {(card.name, card.split, card.sha256) for card in cards}
        return [DatasetCard(**entry.model_dump(), skipped={}) for entry in self.card.data
                if (entry.name, entry.split, entry.sha256) not in known]  # fmt: skip


def find_adapter(settings: StudentSettings, student: StudentPlan, run: Path, earlier: RunDir | None) -> FirstAdapter | None:
    """The adapter that --adapter-from names, checked against the student; None without the setting. A run in `run` that was
    stopped (`earlier`) goes on from the copy it began with, whatever has become of the original.

    Raises StudentError: none there, damaged, of another kind than is to be trained, or of another base (a hub student's is
    compared by `take_adapter`, once it is here). Reads the base's weights once where the adapter names their hash.
    """
    spec = settings.adapter_from
    if spec is None:
        return None
    if earlier is not None and earlier.first_adapter.is_dir():
        return _of_directory(earlier.first_adapter)
    path = adapter_file(settings.task) if spec == NAME else Path(spec)
    if not path.exists():
        raise StudentError(f"--adapter-from {spec!r}: {path} does not exist; give an adapter directory, a GGUF adapter, or "
                           f"{NAME} (there for: {', '.join(blades()) or 'none'})")  # fmt: skip
    if path.resolve().is_relative_to(run.resolve()):
        raise StudentError(f"--adapter-from {spec!r} lies in {run}, where this run would be written; give another --out")
    found = read_adapter(path)
    if student.kind == "scratch":
        raise StudentError(f"--adapter-from {spec!r} belongs to a model, and --student {student.spec} begins from random "
                           "weights; give the student it was trained on")  # fmt: skip
    fits: tuple[Adapter, ...] = ("dora",) if found.kind == "dora" else ("lora", "qlora")
    if student.adapter not in fits:
        raise StudentError(f"--adapter-from {spec!r} is {found.kind}, and {student.adapter!r} is to be trained; "
                           f"give --adapter {fits[0]}")  # fmt: skip
    if settings.rank not in (StudentSettings.model_fields["rank"].default, found.rank):
        raise StudentError(
            f"--rank {settings.rank} beside --adapter-from {spec!r}, which has rank {found.rank}; leave --rank out"
        )
    if (need := found.need_gb(student, settings.rank)) > student.have_gb:
        raise StudentError(f"student {student.spec!r} with the adapter {spec!r} of rank {found.rank} needs about {need:.1f} GB "
                           f"to train, {student.have_gb:.1f} GB are free; choose a smaller --batch or --max-length")  # fmt: skip
    if student.kind == "directory":
        _check_base(found, Path(student.model_id))
    return found


def read_adapter(path: Path) -> FirstAdapter:
    """What a peft directory or a GGUF adapter holds. Raises StudentError for one that is damaged or of another kind."""
    return _of_file(path) if path.is_file() else _of_directory(path)


def take_adapter(found: FirstAdapter, base: Path, out_dir: Path) -> Path:
    """The adapter as a peft directory `out_dir` that names its base, with its card; whole or not at all. Raises StudentError
    (another base)."""
    _check_base(found, base)
    partial = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if found.path.is_file():
        _write_peft(found.path, base, partial)
    else:
        for name in ("adapter_config.json", ADAPTER_FILE):
            shutil.copyfile(found.path / name, partial / name)
    name_base(partial, str(base.resolve()))
    if found.card is not None:
        own = {"file": None, "weights_sha256": None, "adapter_sha256": sha256_of_weights(partial)}
        found.card.model_copy(update=own).save(partial)
    shutil.rmtree(out_dir, ignore_errors=True)
    partial.rename(out_dir)
    return out_dir


def _check_base(found: FirstAdapter, base: Path) -> None:
    """Its hash where the adapter names one; and every weight that the adapter changes must be there, in its shape: peft skips
    what it does not find."""
    if found.base_sha256 is not None and found.base_sha256 != sha256_of_weights(base):
        raise StudentError(f"--adapter-from {str(found.path)!r} was trained on other weights than {base} holds; "
                           "give the student it was trained on")  # fmt: skip
    there = {name: shape for file in sorted(base.glob("*.safetensors")) for name, shape in _shapes(file).items()}
    for name, shape in found.shapes.items():
        if there.get(name) != shape:
            has = f"has it as {list(there[name])}" if name in there else "has no such weight"
            raise StudentError(f"--adapter-from {str(found.path)!r} changes {name} of {list(shape)}, and {base} {has}; "
                               "give the student it was trained on")  # fmt: skip


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape, from a safetensors file's header. Raises SafetensorError, OSError."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def _of_directory(path: Path) -> FirstAdapter:
    from safetensors import SafetensorError

    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        if config.get("peft_type") != "LORA":
            raise ValueError(f"an adapter of type {config.get('peft_type')!r}, not LoRA")
        card = Card.load(path) if (path / "card.json").is_file() else None
        tensors = {name.removeprefix(_PREFIX): shape for name, shape in _shapes(path / ADAPTER_FILE).items()}
        ranks = {int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())}
        shapes: dict[str, tuple[int, int]] = {}
        rank = 0
        for name, shape in tensors.items():
            if not name.endswith(".lora_A.weight"):
                continue
            module = name.removesuffix(".lora_A.weight")
            rows, own = tensors[f"{module}.lora_B.weight"]
            if shape[0] != own or own not in ranks:
                raise ValueError(f"{module} has rank {shape[0]} and {own}, its configuration says {min(ranks)}")
            shapes[f"{module}.weight"] = (rows, shape[1])
            rank = max(rank, own)
        if not shapes:
            raise ValueError(f"no lora_A in {ADAPTER_FILE}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, CardError) as error:
        raise StudentError(f"--adapter-from {str(path)!r} cannot be used ({error}); give a directory with adapter_config.json "
                           f"and {ADAPTER_FILE}, or a GGUF adapter") from None  # fmt: skip
    sha256 = card.base.sha256 if card is not None else None
    return FirstAdapter(path, "dora" if config.get("use_dora") else "lora", rank, sha256, card, shapes)


def _of_file(path: Path) -> FirstAdapter:
    from agents.chat import ModelError
    from agents.models.gguf_file import card_of, verify

    try:
        file = verify(path)
        card = card_of(file)
    except (ModelError, CardError, OSError) as error:
        raise StudentError(f"--adapter-from {str(path)!r}: {error}") from None
    if file.metadata.get("adapter.type") != "lora" or "adapter.lora.alpha" not in file.metadata:
        raise StudentError(f"--adapter-from {str(path)!r} is a GGUF file but no adapter; give an adapter directory or file")
    places = {_place(tensor.name): tensor.shape for tensor in file.tensors}
    modules = {place[0] for place in places if place is not None}
    whole = places.keys() == {(module, part) for module in modules for part in "AB"}
    plain = all(tensor.type_name in _TYPES for tensor in file.tensors)
    if file.metadata.get("general.architecture") != "llama" or not (modules and whole and plain):
        raise StudentError(f"--adapter-from {str(path)!r}: only float32 and float16 GGUF adapters of Llama models can be trained "
                           "on; give the adapter directory it was written from")  # fmt: skip
    shapes = {f"{module}.weight": (places[module, "B"][1], places[module, "A"][0]) for module in modules}
    rank = max(places[module, "B"][0] for module in modules)
    return FirstAdapter(path, "lora", rank, file.metadata.get("penknife.base.sha256"), card, shapes)


def _place(name: str) -> tuple[str, str] | None:
    """Where a tensor of a GGUF adapter goes in the model: (module, "A" or "B")."""
    match = _TENSOR.fullmatch(name)
    if match is None or match["module"] not in _MODULES:
        return None
    return f"model.layers.{match['layer']}.{_MODULES[match['module']]}", match["part"].upper()


def _write_peft(path: Path, base: Path, out: Path) -> None:
    """adapter_config.json and safetensors of a GGUF adapter (both scale by alpha / rank, the module's own)."""
    import numpy as np

    from agents.models.gguf_file import read_gguf

    model = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if model.get("model_type") not in _ROTATED:
        raise StudentError(f"--adapter-from {str(path)!r} is of a Llama model and {base} is {model.get('model_type')!r}; "
                           "give the student it was trained on")  # fmt: skip
    heads = {"q_proj": model["num_attention_heads"], "k_proj": model.get("num_key_value_heads", model["num_attention_heads"])}
    tensors: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    file = read_gguf(path)
    for tensor in file.tensors:
        place = _place(tensor.name)
        assert place is not None  # find_adapter has seen to it
        module, part = place
        rows: Any = np.memmap(path, np.dtype(_TYPES[tensor.type_name]), "r", tensor.offset, tuple(reversed(tensor.shape)))
        if part == "B":
            ranks[module] = rows.shape[1]
            turned = heads.get(module.rsplit(".", 1)[1])
            if turned is not None:
                half = rows.shape[0] // turned // 2
                rows = rows.reshape(turned, half, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        tensors[f"{_PREFIX}{module}.lora_{part}.weight"] = np.array(rows, np.float32)
    store_lora(out, tensors, {name.rsplit(".", 1)[1] for name in ranks}, ranks, float(file.metadata["adapter.lora.alpha"]))


def store_lora(out: Path, tensors: dict[str, Any], targets: Collection[str], ranks: Mapping[str, int], alpha: float) -> None:
    """adapter_config.json and safetensors of a plain LoRA adapter into a directory that is there.

    `tensors`: numpy arrays by peft's names, lora_A (rank, columns) and lora_B (rows, rank) float32; `targets`: modules by peft's
    rule, whole names or their last parts; `ranks`: module -> rank; B A is scaled by `alpha` / rank. (peft's own writer puts
    modules in another order each time.)
    """
    from safetensors.numpy import save_file

    rank = max(ranks.values())
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none", "use_dora": False,
        "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": sorted(targets),
        "rank_pattern": {name: one for name, one in ranks.items() if one != rank},
        "alpha_pattern": {},
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    save_file(tensors, out / ADAPTER_FILE)
    (out / ADAPTER_FILE).chmod(0o644)
