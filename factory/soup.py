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

from agents.card import FILE_NAME, Card, sha256_of_weights
from factory.embedded import NAME, adapter_file, blades, embedded_dir
from factory.first_adapter import FirstAdapter, read_adapter, store_lora, take_adapter
from factory.merge import name_base
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

    Raises SettingsError before anything costly; SettingsError too where `out` came to be meanwhile.
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
    _check(found)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{settings.out.name}.", suffix=".tmp", dir=settings.out.parent) as name:
        place = Path(name)
        try:
            parts = [take_adapter(one, base, place / f"part{i}") for i, one in enumerate(found)]
        except StudentError as error:
            why = str(error).removeprefix("--adapter-from ").removesuffix("; give the student it was trained on")
            raise SettingsError(f"{why}; give --base the model that all were trained on") from None
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
    if len(shares) != count or not all(0 <= share <= 1 for share in shares) or not abs(sum(shares) - 1) <= 1e-6:
        raise SettingsError(f"--weights {settings.weights}: give {count} shares from 0 to 1 that add up to 1, such as 0.7,0.3")
    return shares


def _read(spec: str, task: str) -> FirstAdapter:
    if spec == NAME and task not in blades():
        raise SettingsError(
            f"{spec}: no adapter for --task {task} ships with this installation; choose from {', '.join(blades())}"
        )
    path = adapter_file(task) if spec == NAME else Path(spec).expanduser()
    if not path.exists():
        raise SettingsError(f"{spec}: does not exist; give an adapter directory, a GGUF adapter, or {NAME}")
    try:
        return read_adapter(path)
    except StudentError as error:
        raise SettingsError(str(error).removeprefix("--adapter-from ")) from None


def _check(found: Sequence[FirstAdapter]) -> None:
    """That each only adds B A to weights, and that their cards, where they have one, say the same task and form."""
    for one in found:
        if one.kind != "lora":
            raise SettingsError(f"{one.path}: is {one.kind}; only plain LoRA adapters have a mean")
        more = one.more()
        if more:
            raise SettingsError(
                f"{one.path}: does more than add A and B ({', '.join(more)}); only plain LoRA adapters have a mean"
            )
    said = {(one.card.task, one.card.prompt_template): one.path for one in found if one.card is not None}
    if len(said) > 1:
        raise SettingsError("adapters of different tasks or forms have no mean: "
                            + ", ".join(f"{path} is of {form}" for (_, form), path in said.items()))  # fmt: skip


def _mean(base: Path, parts: Sequence[Path], shares: Sequence[float], rank: int, out: Path) -> float:
    """Store the mean as a peft directory; returns the share kept."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from factory.train import quiet

    total: dict[str, torch.Tensor] = {}
    with quiet(), torch.inference_mode():
        for part, share in zip(parts, shares, strict=True):
            whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
            model: Any = PeftModel.from_pretrained(whole, str(part)).base_model.model
            for name, module in model.named_modules():
                if hasattr(module, "get_delta_weight"):
                    total[name] = total.get(name, 0) + share * module.get_delta_weight("default")
        tensors: dict[str, Any] = {}
        size = lost = 0.0
        for name, wanted in total.items():
            u, s, v = torch.linalg.svd(wanted, full_matrices=False)
            b, a = torch.zeros(wanted.shape[0], rank), torch.zeros(rank, wanted.shape[1])
            kept = min(rank, len(s))
            b[:, :kept], a[:kept] = u[:, :kept] * s[:kept].sqrt(), s[:kept].sqrt()[:, None] * v[:kept]
            tensors |= {f"base_model.model.{name}.lora_A.weight": a.numpy(), f"base_model.model.{name}.lora_B.weight": b.numpy()}
            size, lost = size + float(s.square().sum()), lost + float(s[kept:].square().sum())
    out.mkdir()
    store_lora(out, tensors, total, dict.fromkeys(total, rank), rank)
    name_base(out, str(base.resolve()))
    return 1 - lost / size if size else 1.0


def _card(found: Sequence[FirstAdapter], name: str, out: Path) -> None:
    """A card with the data, teachers and licences of all, without what was measured of one."""
    cards = [one.card for one in found if one.card is not None]
    if not cards:
        return
    data = {(entry.name, entry.split, entry.sha256): entry for card in cards for entry in card.data}
    teachers, licenses = (dict.fromkeys(filter(None, said)) for said in zip(*((card.teacher, card.license) for card in cards)))
    cards[0].model_copy(
        update={
            "name": name, "data": tuple(data.values()), "scores": {}, "calibration": (), "calibration_error": None,
            "reliability": (), "reliability_error": None, "file": None, "weights_sha256": None,
            "teacher": "; ".join(teachers) or None, "license": "; ".join(licenses) or None,
            "adapter_sha256": sha256_of_weights(out),
        }
    ).save(out)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse(SoupSettings, argv, "python -m factory.soup", "Average adapters of one base.")
    kept = run(settings)
    task = Card.load(settings.out).task if (settings.out / FILE_NAME).is_file() else settings.task
    sys.stdout.write(
        f"{settings.out}: the rank keeps {kept:.2%} of the mean\nnext:  python -m factory.evaluate {settings.out} --task {task}\n"
    )


if __name__ == "__main__":
    from factory.cli import run_cli

    sys.exit(run_cli(main))
