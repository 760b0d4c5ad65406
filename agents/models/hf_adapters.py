"""LoRA adapters put on an open transformers model for single requests: loaded once, switched between forward passes.

Does: check a peft directory against the model before anything of it is loaded, load it beside the others, add the wanted set as
strongly as asked, take up a directory anew when its files were replaced.
Does not: take adapters that do more than add A and B to linear layers (saved modules, biases, DoRA): such a directory is opened
as a model of its own. Its caller sees to it that no other thread runs the model while a set is in use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.card import FILE_NAME, Card, CardError, sha256_of_weights
from agents.chat import Adapter, ModelError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_START, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_WAY_OUT = "open its directory as a model instead"
Stamp = tuple[tuple[int, int], ...]
Names = tuple[tuple[str, float], ...]
"""Adapters as peft has them, by name, and how strongly each is added."""


class PeftAdapters:
    """The adapters of one model. Its modules get peft's layers when the first adapter is loaded; with none in use they compute
    what they did before."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name
        self._own: list[str] = list(model.active_adapters) if hasattr(model, "peft_config") else []
        self._peft: Any = model if self._own else None
        self._loaded: dict[str, tuple[str, Stamp]] = {}
        self._scales: dict[str, list[tuple[Any, float]]] = {}
        self._in_use: Names = ()
        self._count = 0
        self._base_sha256: str | None = None

    def load(self, adapters: tuple[Adapter, ...]) -> Names:
        """Have this set ready for `use`; one named twice is added twice as strongly.

        Raises ModelError for one that is missing, damaged, of another base or of another kind.
        """
        wanted: dict[str, float] = {}
        for adapter in adapters:
            name = self._name_of(Path(adapter.path))
            wanted[name] = wanted.get(name, 0.0) + adapter.scale
        return tuple(wanted.items())

    def use(self, names: Names) -> None:
        """Add these to what is run from now on."""
        if names == self._in_use or self._peft is None:
            return
        for name, scale in names:
            for layer, usual in self._scales[name]:
                layer.scaling[name] = usual * scale
        self._peft.base_model.set_adapter([*self._own, *(name for name, _ in names)], inference_mode=True)
        self._in_use = names

    def _name_of(self, path: Path) -> str:
        """The adapter now in this directory, loaded once. A replaced one stays: requests that began with it end with it."""
        place, stamp = str(path.resolve()), stamp_of(path)
        name, known = self._loaded.get(place, ("", ()))
        if known != stamp:
            self._check(path)
            self._count += 1
            name = f"request-{self._count}"
            self._load(path, name)
            self._loaded[place] = name, stamp
        return name

    def _load(self, path: Path, name: str) -> None:
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer

        trained = [(parameter, parameter.requires_grad) for parameter in self._model.parameters()]
        training = self._model.training
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._model, str(path), adapter_name=name)
            else:
                self._peft.load_adapter(str(path), adapter_name=name)
            self._peft.base_model.set_adapter(self._own, inference_mode=True)
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ModelError(f"{path}: peft cannot load it ({reason}); train the adapter again") from None
        finally:  # peft freezes what it wraps, and a model being trained may be asked meanwhile
            for parameter, wanted in trained:
                parameter.requires_grad_(wanted)
            self._model.train(training)
        self._in_use = ()
        layers = [module for module in self._model.modules() if isinstance(module, LoraLayer) and name in module.scaling]
        self._scales[name] = [(layer, layer.scaling[name]) for layer in layers]

    def _check(self, path: Path) -> None:
        """Raises ModelError unless every tensor of the adapter is a factor of a linear layer there is."""
        try:
            config = json.loads((path / CONFIG).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path / CONFIG}: cannot be read ({error}); train the adapter again") from None
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise ModelError(f"{path}: not a LoRA adapter; give a peft LoRA directory")
        more = [key for key in ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias") if config.get(key)]
        more += ["bias"] if config.get("bias", "none") != "none" else []
        if more:
            raise ModelError(f"{path}: does more than add A and B ({', '.join(more)}), which one request cannot have; {_WAY_OUT}")
        self._check_base(path)
        base = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        modules = dict(base.named_modules())
        for tensor, shape in _shapes(path).items():
            module, side = next(
                ((tensor.removesuffix(end).removeprefix(_START), end) for end in (_A, _B) if tensor.endswith(end)), ("", "")
            )
            found = modules.get(module)
            size = getattr(found, "in_features" if side == _A else "out_features", None)
            if not side or size is None or len(shape) != 2 or shape[1 if side == _A else 0] != size:
                raise ModelError(f"{path}: {tensor} {list(shape)} has no place in {self._name}; open the base it was trained on")

    def _check_base(self, path: Path) -> None:
        if not (path / FILE_NAME).is_file() or not Path(self._name).is_dir() or self._own:
            return
        try:
            wanted = Card.load(path, check_weights=False).base.sha256
            if wanted is not None and self._base_sha256 is None:
                self._base_sha256 = sha256_of_weights(self._name)
        except CardError as error:
            raise ModelError(str(error)) from None
        if wanted is not None and wanted != self._base_sha256:
            raise ModelError(
                f"{path}: made for another base (sha256 {wanted[:12]}…) than {self._name} ({str(self._base_sha256)[:12]}…); "
                "open its own base, or train it on this one"
            )


def stamp_of(path: Path) -> Stamp:
    """Size and time of an adapter's files: what tells a replaced one. Raises ModelError when one is not there."""
    try:
        return tuple((state.st_size, state.st_mtime_ns) for state in ((path / name).stat() for name in (CONFIG, WEIGHTS)))
    except OSError:
        raise ModelError(f"{path}: no {CONFIG} and {WEIGHTS} there; give a peft adapter directory") from None


def _shapes(path: Path) -> Mapping[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / WEIGHTS, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path / WEIGHTS}: cannot be read ({error}); train the adapter again") from None
