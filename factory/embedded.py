"""The models that ship inside the package, by name, and how they get there.

Does: say where they are; write a task's blade, base and adapter merged, as a model directory, to teach or to be a member of an
ensemble; store a pretrained model directory as one of them, in bfloat16, with its card.
Does not: make them (`pretrain.py`; docs/embedded.md has the commands).

Run: python -m factory.embedded blade tools runs/blades/tools
     python -m factory.embedded base|teacher runs/pretrain-base/model     (maintainers)
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
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


def blade(task: str, out: Path) -> Path:
    """Base and shipped adapter of a task as an ordinary model directory in float32, with the adapter's card; whole or not at all.

    It answers better than either embedded model, and gives every token's probabilities. Raises SettingsError (no adapter for the
    task, `out` is there already), StudentError (the files do not belong together), MergeError.
    """
    from agents.card import sha256_of_weights
    from factory.first_adapter import read_adapter, take_adapter
    from factory.merge import merge_adapter
    from factory.settings import SettingsError

    ready = [file.name.removesuffix("-lora.gguf") for file in sorted(HOME.glob("*-lora.gguf"))]
    base = embedded_dir("base")
    if task not in ready or base is None:
        raise SettingsError(f"no blade for {task!r} ships with this installation; choose from {', '.join(ready) or 'none'}")
    if out.exists():
        raise SettingsError(f"{out}: is there already; give another directory, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as place:
        found = read_adapter(HOME / f"{task}-lora.gguf")
        merged = merge_adapter(base, take_adapter(found, base, Path(place) / "adapter"), Path(place) / "model").out_dir
        (merged / "model.safetensors").chmod(0o644)
        if found.card is not None:
            own = {"file": None, "adapter_sha256": None, "weights_sha256": sha256_of_weights(merged)}
            found.card.model_copy(update=own).save(merged)
        if out.exists():
            raise SettingsError(f"{out}: somebody else wrote it meanwhile; give another directory")
        merged.rename(out)
    return out


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
    if given[:1] == ["blade"] and len(given) == 3:
        place = blade(given[1], Path(given[2]))
    elif given[:1] != ["blade"] and len(given) == 2:
        place = store(Path(given[1]), given[0])
    else:
        raise SettingsError("python -m factory.embedded takes: blade, a task and a directory to write; or a kind "
                            f"({', '.join(KINDS)}) and a model directory")  # fmt: skip
    sys.stdout.write(f"{place}: {sum(f.stat().st_size for f in place.iterdir()) / 1e6:.1f} MB\n")


if __name__ == "__main__":
    from factory.cli import run_cli

    sys.exit(run_cli(main))
