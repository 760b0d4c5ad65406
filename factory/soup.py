"""The mean of several adapters of one base, as one adapter of their rank.

Does: check that they belong together, average what they add to the weights, keep its largest directions (singular values), say
how much of it that keeps, write a peft directory that `--adapter-from` takes.
Does not: train, score or merge: what it was scored with no longer holds, so the card comes without scores.

Run: python -m factory.soup runs/route2/model/adapter embedded --task route --weights 0.7,0.3 --out runs/mean

Models trained on from one point lie in one basin, and their mean is often better than each (Wortsman et al. 2022, "model soups").
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from agents.card import sha256_of_weights
from factory.embedded import HOME, NAME, embedded_dir
from factory.first_adapter import FirstAdapter, read_adapter, take_adapter
from factory.settings import SettingsError, parse
from factory.student import StudentError


class SoupSettings(BaseModel):
    """`python -m factory.soup ADAPTER ADAPTER …`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    adapters: tuple[str, ...] = ()
    """two or more: directories or GGUF files of adapters, or embedded, the one that ships for --task"""
    task: str = "sql"
    """whose adapter embedded is"""
    base: str = NAME
    """directory of the model that they were trained on, or embedded"""
    weights: str | None = None
    """share of each, joined by commas; default: the same for all"""
    rank: int | None = Field(None, ge=1, le=1024)
    """rank of the mean; default: the largest of theirs"""
    out: Path = Path("runs/soup")
    """directory to write; it must not be there yet"""


def run(settings: SoupSettings) -> float:
    """Write the mean; returns the share of it that the rank keeps, 0-1, by squared size over all weights.

    Raises SettingsError and StudentError before anything costly.
    """
    if len(settings.adapters) < 2:
        raise SettingsError(f"{len(settings.adapters)} adapters given; give two or more, directories or GGUF files, or {NAME}")
    shares = _shares(settings)
    base = embedded_dir("base") if settings.base == NAME else Path(settings.base).expanduser()
    if base is None or not (base / "config.json").is_file():
        raise SettingsError(f"--base {settings.base}: is no model directory; give the one that the adapters were trained on")
    if settings.out.exists():
        raise SettingsError(f"--out {settings.out}: is there already; give another directory, or remove it")
    found = [_read(spec, settings.task) for spec in settings.adapters]
    if kinds := [one for one in found if one.kind != "lora"]:
        raise SettingsError(f"{kinds[0].path}: is {kinds[0].kind}; only plain LoRA adapters have a mean")
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{settings.out.name}.", suffix=".tmp", dir=settings.out.parent) as name:
        place = Path(name)
        try:
            parts = [take_adapter(one, base, place / f"part{i}") for i, one in enumerate(found)]
        except StudentError as error:
            raise SettingsError(str(error).removeprefix("--adapter-from ")) from None
        kept = _mean(base, parts, shares, settings.rank or max(one.rank for one in found), place / "mean")
        _card(found, settings.out.name, place / "mean")
        if settings.out.exists():
            raise SettingsError(f"--out {settings.out}: somebody else wrote it meanwhile; give another directory")
        (place / "mean").rename(settings.out)
    return kept


def _shares(settings: SoupSettings) -> list[float]:
    count = len(settings.adapters)
    if settings.weights is None:
        return [1 / count] * count
    try:
        shares = [float(part) for part in settings.weights.split(",")]
    except ValueError:
        shares = []
    if len(shares) != count or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise SettingsError(f"--weights {settings.weights}: give {count} shares from 0 to 1 that add up to 1, such as 0.7,0.3")
    return shares


def _read(spec: str, task: str) -> FirstAdapter:
    path = HOME / f"{task}-lora.gguf" if spec == NAME else Path(spec).expanduser()
    if not path.exists():
        raise SettingsError(f"{spec}: {path} does not exist; give an adapter directory, a GGUF adapter, or {NAME}")
    try:
        return read_adapter(path)
    except StudentError as error:
        raise SettingsError(str(error).removeprefix("--adapter-from ")) from None


def _mean(base: Path, parts: Sequence[Path], shares: Sequence[float], rank: int, out: Path) -> float:
    """peft's weighted sum by singular values, stored; returns the share kept."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from factory.merge import name_base
    from factory.train import quiet

    with quiet(), torch.inference_mode():
        model: Any = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False), str(parts[0]), "part0"
        )
        for i, part in enumerate(parts[1:], 1):
            model.load_adapter(str(part), f"part{i}")
        names = [f"part{i}" for i in range(len(parts))]
        model.add_weighted_adapter(names, list(shares), "mean", combination_type="svd", svd_rank=rank)
        whole = lost = 0.0
        for module in model.modules():
            if hasattr(module, "lora_A") and "mean" in module.lora_A:
                said = [share * module.get_delta_weight(name) for name, share in zip(names, shares, strict=True)
                        if name in module.lora_A]  # fmt: skip
                wanted = torch.stack(said).sum(0)
                whole += float(wanted.square().sum())
                lost += float((wanted - module.get_delta_weight("mean")).square().sum())
        model.save_pretrained(str(out.parent), selected_adapters=["mean"])
    name_base(out, str(base.resolve()))
    (out / "README.md").unlink(missing_ok=True)  # peft's own, which knows nothing of it
    return 1 - lost / whole if whole else 1.0


def _card(found: Sequence[FirstAdapter], name: str, out: Path) -> None:
    """The first one's card with the data of all, without what was measured of that one."""
    first = found[0].card
    if first is None:
        return
    data = {(entry.name, entry.split, entry.sha256): entry for one in found if one.card is not None for entry in one.card.data}
    first.model_copy(
        update={
            "name": name, "data": tuple(data.values()), "scores": {}, "calibration": (), "calibration_error": None,
            "reliability": (), "reliability_error": None, "file": None, "weights_sha256": None,
            "adapter_sha256": sha256_of_weights(out),
        }
    ).save(out)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse(SoupSettings, argv, "python -m factory.soup", "Average adapters of one base.")
    kept = run(settings)
    sys.stdout.write(f"{settings.out}: rank keeps {kept:.2%} of the mean; score it: python -m factory.finetune --adapter-from "
                     f"{settings.out} …\n")  # fmt: skip


if __name__ == "__main__":
    from factory.cli import run_cli

    sys.exit(run_cli(main))
