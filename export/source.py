"""What is exported: a merged model directory, or an adapter directory and its base, checked before a weight is read.

Does: find configuration, tokenizer, weights, card and run of a directory, refuse what cannot be exported with one sentence,
give its tensors a few rows at a time in float32, an adapter's already merged.
Does not: write a file, or ask a hub; a base that is only a hub name must be in the hub's cache on this machine.

    source = Source.open("runs/sql/model")
    for name, rows in source.tensors():          # (rows, columns) float32, one tensor in memory at a time
        …
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.card import FILE_NAME, Card, CardError, sha256_of_weights
from agents.chat import ModelError
from agents.models.directory import check_directory
from export.errors import ExportError
from export.families import Family, Plan, family_of, plan_of
from export.lora_merge import Adapter
from export.weights import ITEM_BYTES, Stored, open_weights, read_rows

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Source:
    """A model that can be exported. Open it with `Source.open`."""

    path: Path
    """what was asked for: a model directory or an adapter directory"""
    model_dir: Path
    """where config.json and the (base's) weights are; `path` itself when it is no adapter"""
    adapter: Adapter | None
    """None for a merged model"""
    config: dict[str, Any]
    """config.json as transformers reads it, every field present"""
    family: Family
    plan: Plan
    """what a GGUF file of it consists of"""
    generation: dict[str, Any]
    """generation_config.json, or empty"""
    card: Card | None
    """its card, which belongs to these weights"""
    weights: dict[str, Stored]
    """tensors on disk by checkpoint name, the base's of an adapter"""
    tokenizer_dir: Path
    """where the tokenizer is: the adapter's directory when it has one, else the model's"""

    @classmethod
    def open(cls, path: Path | str) -> Source:
        """Everything but the weights of a directory, checked. Raises ExportError, or CardError for a card of other weights."""
        directory = Path(path)
        if directory.is_file():
            raise ExportError(f"{path}: is a file; give the model or adapter directory it is in")
        model_dir, adapter_dir = _directories(directory)
        raw = _read_json(model_dir / "config.json")
        family = family_of(raw.get("architectures"), str(model_dir))
        generation = _read_json(model_dir / "generation_config.json", optional=True)
        tokenizer_dir = _tokenizer_dir(model_dir, adapter_dir)
        weights = open_weights(model_dir)
        adapter = Adapter.open(adapter_dir, weights) if adapter_dir is not None else None
        config = _configuration(model_dir)
        config["vocab_size"] = _rows(weights, adapter, config)
        if "lm_head.weight" in (adapter.replaced if adapter else {}) and config.get("tie_word_embeddings"):
            raise ExportError(
                f"{directory}: unties the head of its base; merge it into its base with factory.merge, and give that directory"
            )
        plan = plan_of(family, config, str(model_dir))
        source = cls(directory, model_dir, adapter, config, family, plan, generation, _card(directory), weights, tokenizer_dir)
        source._check_tensors()
        if source.card is not None:
            expected = source.card.weights_sha256 if adapter is None else source.card.adapter_sha256
            if expected is not None and expected != source.sha256:
                raise CardError(
                    f"{directory}: the weights (sha256 {source.sha256[:12]}…) are not those of its card ({expected[:12]}…); "
                    "copy the whole directory again, or write it anew"
                )
        return source

    @property
    def kind(self) -> str:
        """ "merged" or "adapter" """
        return "merged" if self.adapter is None else "adapter"

    @cached_property
    def sha256(self) -> str:
        """`sha256_of_weights` of `path`; reads all its bytes once."""
        return sha256_of_weights(self.path)

    @cached_property
    def base_sha256(self) -> str | None:
        """`sha256_of_weights` of an adapter's base; None for a merged model."""
        return sha256_of_weights(self.model_dir) if self.adapter is not None else None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as transformers loads it, which for some model types is not what tokenizer.json says."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_dir, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # the library raises whatever a damaged file makes it raise
            raise ExportError(f"{self.tokenizer_dir}: transformers cannot load its tokenizer ({_first_line(error)})") from None
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ExportError(
                f"{self.tokenizer_dir}: its tokenizer has no tokenizer.json form; save it with a current transformers"
            )
        return tokenizer

    @property
    def run_dir(self) -> Path | None:
        """The run directory it lies in (the one with config.toml), or None."""
        resolved = self.path.resolve()
        return next((place for place in list(resolved.parents)[:2] if (place / "config.toml").is_file()), None)

    @property
    def parameters(self) -> int:
        """Weights of the exported model; a tied head counts once."""
        import math

        return sum(math.prod(tensor.shape) for tensor in self.plan.tensors)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of a tensor by checkpoint name, as float32, the adapter merged in: (stop - start, …)."""
        stored = self.weights[name]
        if self.adapter is None:
            return read_rows(stored, start, stop)
        stored = self.adapter.replaced.get(name, stored)
        rows = read_rows(stored, start, stop)
        delta = self.adapter.deltas.get(name)
        return rows if delta is None else delta.merged(rows, start, start + rows.shape[0])

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor of the model by checkpoint name, as float32, an adapter merged in; one is in memory at a time."""
        for tensor in self.plan.tensors:
            yield tensor.source, self.read(tensor.source)

    def _check_tensors(self) -> None:
        """Raises ExportError when the weights on disk are not those the configuration describes."""
        replaced = self.adapter.replaced if self.adapter is not None else {}
        for tensor in self.plan.tensors:
            stored = replaced.get(tensor.source, self.weights.get(tensor.source))
            if stored is None:
                raise ExportError(
                    f"{self.model_dir}: {tensor.source} is missing from its weights; copy the whole checkpoint again"
                )
            if stored.shape != tensor.shape:
                raise ExportError(
                    f"{stored.file}: {tensor.source} is {list(stored.shape)} where config.json means {list(tensor.shape)}; "
                    "the two are not of the same model"
                )
            if stored.dtype not in ITEM_BYTES:
                raise ExportError(
                    f"{stored.file}: {tensor.source} is stored as {stored.dtype}; give the checkpoint in F32, F16 or BF16"
                )
        known = {tensor.source for tensor in self.plan.tensors} | {"lm_head.weight"}
        strange = sorted(name for name in self.weights if name not in known and not name.endswith("rotary_emb.inv_freq"))
        if strange:
            more = f" and {len(strange) - 1} more tensors have" if len(strange) > 1 else " has"
            raise ExportError(
                f"{self.model_dir}: {strange[0]}{more} no place in a {self.family.name} model as config.json describes it; "
                "llama.cpp would leave such weights out"
            )


def _directories(directory: Path) -> tuple[Path, Path | None]:
    try:
        base, adapter_dir = check_directory(str(directory))
    except ModelError as error:
        raise ExportError(str(error)) from None
    if not directory.is_dir():
        raise ExportError(f"{directory} is not a directory; give a model or adapter directory")
    if Path(base).is_dir():
        return Path(base), adapter_dir
    return _downloaded(directory, base), adapter_dir


def _downloaded(directory: Path, base: str) -> Path:
    """Where the hub's cache on this machine keeps an adapter's base. Raises ExportError; asks no hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        revision = _read_json(directory / "adapter_config.json").get("revision")
        return Path(snapshot_download(base, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise ExportError(
            f"{directory}: its base {base!r} is not on this machine; download it, or put its directory into adapter_config.json"
        ) from None


def _read_json(file: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{file}: is not there; give a model directory") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: cannot be read ({_first_line(error)}); copy the directory again") from None
    if not isinstance(read, dict):
        raise ExportError(f"{file}: holds no JSON object; copy the directory again")
    return read


def _tokenizer_dir(model_dir: Path, adapter_dir: Path | None) -> Path:
    for place in (adapter_dir, model_dir):
        if place is not None and (place / "tokenizer.json").is_file():
            return place
    raise ExportError(
        f"{model_dir}: no tokenizer.json there; save the tokenizer beside the weights: "
        "AutoTokenizer.from_pretrained(base).save_pretrained(directory)"
    )


def _configuration(model_dir: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        return dict(AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True).to_dict())
    except Exception as error:  # the library raises whatever a damaged file makes it raise
        raise ExportError(f"{model_dir / 'config.json'}: transformers cannot read it ({_first_line(error)})") from None


def _rows(weights: dict[str, Stored], adapter: Adapter | None, config: dict[str, Any]) -> int:
    """Rows of the embedding: an adapter may bring one with rows for added tokens."""
    brought = adapter.replaced.get("model.embed_tokens.weight") if adapter is not None else None
    return brought.shape[0] if brought is not None else int(config["vocab_size"])


def _card(directory: Path) -> Card | None:
    return Card.load(directory, check_weights=False) if (directory / FILE_NAME).is_file() else None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
