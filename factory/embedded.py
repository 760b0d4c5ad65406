"""The models that ship inside the package, by name, and how they get there.

Does: say where they are; store a pretrained model directory as one of them, in bfloat16, with its card.
Does not: make them (`pretrain.py`; docs/embedded.md has the commands).

Run (maintainers): python -m factory.embedded base|teacher runs/pretrain-base/model
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

NAME = "embedded"
"""As `--student embedded` and `--teacher embedded`."""
HOME = Path(__file__).with_name("data") / "embedded"
KINDS = ("base", "teacher")


def embedded_dir(kind: str) -> Path | None:
    """The model directory of the embedded "base" or "teacher"; None where this installation has none."""
    path = HOME / kind
    return path if (path / "config.json").is_file() else None


def embedded_files() -> list[Path]:
    """Ready GGUF files of the embedded students, by name; each has its card inside."""
    return sorted(HOME.glob("*.gguf"))


def store(model_dir: Path, kind: str, name: str | None = None, home: Path = HOME) -> Path:
    """Keep a pretrained model as an embedded one, whole or not at all; returns its directory. Its card gets the new hash.

    Raises CardError when the directory has no card of its own weights, SettingsError for an unknown kind.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from agents.card import Card, sha256_of_weights
    from factory.settings import SettingsError
    from factory.train import load_tokenizer, quiet

    if kind not in KINDS:
        raise SettingsError(f"unknown kind {kind!r}; choose from {', '.join(KINDS)}")
    card = Card.load(model_dir)
    home.mkdir(parents=True, exist_ok=True)
    partial = home / f".{kind}.{os.getpid()}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16, trust_remote_code=False).save_pretrained(partial)
        load_tokenizer(model_dir).save_pretrained(partial)
    named = {"name": name} if name is not None else {}
    (partial / "model.safetensors").chmod(0o644)
    card.model_copy(update={**named, "weights_sha256": sha256_of_weights(partial)}).save(partial)
    shutil.rmtree(home / kind, ignore_errors=True)
    partial.rename(home / kind)
    return home / kind


def main(argv: Sequence[str] | None = None) -> None:
    from factory.settings import SettingsError

    given = list(sys.argv[1:] if argv is None else argv)
    if len(given) != 2:
        raise SettingsError(f"python -m factory.embedded takes a kind ({', '.join(KINDS)}) and a model directory")
    place = store(Path(given[1]), given[0])
    sys.stdout.write(f"{place}: {sum(f.stat().st_size for f in place.iterdir()) / 1e6:.1f} MB\n")


if __name__ == "__main__":
    from factory.cli import run_cli

    sys.exit(run_cli(main))
