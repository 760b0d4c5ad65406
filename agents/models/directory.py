"""What a model directory on disk is, found out before anything of it is loaded.

Does: tell model from adapter directories, find an adapter's base, refuse pickled or missing weights.
Does not: read weights, or ask a hub.
"""

from __future__ import annotations

import json
from pathlib import Path

from agents.chat import ModelError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_directory(path: str) -> tuple[str, Path | None]:
    """(base directory or hub name, adapter directory or None). Raises ModelError for anything that cannot be loaded safely."""
    directory = Path(path)
    if not directory.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise ModelError(f"{path!r} is not a directory; give a model or adapter directory, or a hub name like org/name")
        return path, None
    adapter_config = directory / "adapter_config.json"
    if not adapter_config.is_file():
        if not (directory / "config.json").is_file():
            raise ModelError(f"{path}: no config.json and no adapter_config.json there; give a model or adapter directory")
        _check_weights(directory)
        return path, None
    _check_weights(directory)
    try:
        base = json.loads(adapter_config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError) as error:
        raise ModelError(f"{adapter_config}: cannot be read ({error}); train the adapter again") from None
    if not base:
        raise ModelError(f"{adapter_config}: names no base model; set base_model_name_or_path")
    beside = next((place for place in (directory / base, Path(base)) if place.is_dir()), None)
    if beside is not None:
        _check_weights(beside)
        return str(beside), directory
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelError(f"{path}: its base model {base!r} is not there; put it back, or correct {adapter_config.name}")
    return base, directory


def _check_weights(directory: Path) -> None:
    if any(directory.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in PICKLED for file in directory.glob(pattern))
    if pickled:
        raise ModelError(
            f"{directory}: {pickled[0]} is a pickle, which can run code when read; convert the weights to safetensors"
        )
    raise ModelError(f"{directory}: no weights (*.safetensors) there; give a model or adapter directory")
