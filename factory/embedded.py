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
    """Base and shipped adapter of a task as an ordinary model directory in float32, with a card; whole or not at all.

    Raises SettingsError: no adapter for the task, one that does not belong to the base, `out` is there already.
    """
    from agents.card import Card, sha256_of_weights
    from factory.first_adapter import read_adapter, take_adapter
    from factory.merge import merge_adapter
    from factory.settings import SettingsError
    from factory.student import StudentError

    base = embedded_dir("base")
    if task not in blades() or base is None:
        there = ", ".join(blades()) if base is not None else "none: there is no base"
        raise SettingsError(f"no blade for {task!r} ships with this installation; choose from {there or 'none'}")
    if out.exists():
        raise SettingsError(f"{out}: is there already; give another directory, or remove it")
    try:
        found = read_adapter(adapter_file(task))
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as place:
            merged = merge_adapter(base, take_adapter(found, base, Path(place) / "adapter"), Path(place) / "model").out_dir
            (merged / "model.safetensors").chmod(0o644)
            if found.card is not None:
                of_base = Card.load(base)
                known = {(entry.name, entry.split, entry.sha256) for entry in found.card.data}
                more = tuple(one for one in of_base.data if (one.name, one.split, one.sha256) not in known)
                found.card.model_copy(
                    update={
                        "name": f"{NAME}-{task}",
                        "license": found.card.license or of_base.license,
                        "data": (*found.card.data, *more),
                        "file": None,
                        "adapter_sha256": None,
                        "weights_sha256": sha256_of_weights(merged),
                    }
                ).save(merged)
            if out.exists():
                raise SettingsError(f"{out}: somebody else wrote it meanwhile; give another directory")
            merged.rename(out)
    except StudentError as error:
        why = str(error).removeprefix("--adapter-from ")
        raise SettingsError(f"the files of {task!r} do not belong together, install this package again ({why})") from None
    return out


def adapter_file(task: str) -> Path:
    """The adapter that ships for a task, or would."""
    return HOME / f"{task}-lora.gguf"


def blades() -> list[str]:
    """Tasks that an adapter ships for."""
    return [file.name.removesuffix("-lora.gguf") for file in sorted(HOME.glob("*-lora.gguf"))]


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
        raise SettingsError(f"unknown kind {kind!r}; choose from {', '.join(KINDS)}, or give: blade, a task and a directory")
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
