"""The mean of adapters: what base + mean says against the sum done by hand, what the rank keeps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents.card import ADAPTER_FILE, BaseEntry, Card, DataEntry, ScoreEntry, sha256_of_weights
from factory.settings import SettingsError, build
from factory.soup import SoupSettings, main, run
from factory.train import quiet

LINEAR = ["q_proj", "v_proj", "down_proj"]


def adapt(base: Path, out: Path, seed: int, rank: int, dora: bool = False) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=LINEAR, init_lora_weights=False, use_dora=dora)
    with quiet():
        get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).save_pretrained(out)
    return out


def delta(adapter: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, by hand: alpha / rank * B A."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / ADAPTER_FILE)
    return {
        name.removesuffix(".lora_A.weight"): tensors[name.replace("lora_A", "lora_B")] @ part * config["lora_alpha"] / config["r"]
        for name, part in tensors.items()
        if "lora_A" in name
    }


def asked(base: Path, out: Path, *adapters: Path, **more: object) -> SoupSettings:
    return build(SoupSettings, {"adapters": tuple(map(str, adapters)), "base": str(base), "out": out, **more}, "test")


def test_the_mean_is_the_mean(student_dir: Path, tmp_path: Path) -> None:
    one, two = adapt(student_dir, tmp_path / "one", 1, 4), adapt(student_dir, tmp_path / "two", 2, 2)
    kept = run(asked(student_dir, tmp_path / "mean", one, two, weights="0.7,0.3", rank=6))
    first, second, mean = delta(one), delta(two), delta(tmp_path / "mean")
    assert kept == pytest.approx(1.0, abs=1e-4) and mean.keys() == first.keys()
    for name, value in mean.items():
        torch.testing.assert_close(value, 0.7 * first[name] + 0.3 * second[name], rtol=1e-3, atol=1e-4)
    config = json.loads((tmp_path / "mean" / "adapter_config.json").read_text())
    assert config["r"] == 6 and config["base_model_name_or_path"] == str(student_dir.resolve())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mean", "one", "two"]


def test_a_smaller_rank_keeps_the_largest_directions_and_says_how_much(student_dir: Path, tmp_path: Path) -> None:
    one, two = adapt(student_dir, tmp_path / "one", 1, 4), adapt(student_dir, tmp_path / "two", 2, 4)
    kept = run(asked(student_dir, tmp_path / "mean", one, two))
    first, second, mean = delta(one), delta(two), delta(tmp_path / "mean")
    whole = best = 0.0
    for name, value in mean.items():
        squares = torch.linalg.svdvals((first[name] + second[name]) / 2).square()
        whole, best = whole + float(squares.sum()), best + float(squares[:4].sum())
        assert torch.linalg.matrix_rank(value) <= 4
    assert kept == pytest.approx(best / whole, abs=1e-3) and kept < 0.95


def test_the_card_has_the_data_of_all_and_no_score(student_dir: Path, tmp_path: Path) -> None:
    parts = [adapt(student_dir, tmp_path / name, seed, 2) for seed, name in enumerate(("one", "two"))]
    for part in parts:
        entry = DataEntry(name=f"questions of {part.name}", split="train", license="mine", sha256="0" * 64, n=3)
        score = ScoreEntry(split="dev", n=9, score=0.5, low=0.2, high=0.8, metric="exact", decoding="greedy")
        Card(
            name=part.name, task="route", task_version=1, dialect="compact", constraint="lark", prompt_template="route/compact/1",
            parser="route/compact", base=BaseEntry(id="desk"), data=(entry,), scores={"student": score}, created_by="test",
            adapter_sha256=sha256_of_weights(part), calibration_error=0.1,
        ).save(part)  # fmt: skip
    run(asked(student_dir, tmp_path / "mean", *parts))
    card = Card.load(tmp_path / "mean")
    assert [entry.name for entry in card.data] == ["questions of one", "questions of two"]
    assert (card.name, card.scores, card.calibration_error) == ("mean", {}, None)


def test_what_has_no_mean_is_refused_and_nothing_written(student_dir: Path, tmp_path: Path) -> None:
    one, two = adapt(student_dir, tmp_path / "one", 1, 2), adapt(student_dir, tmp_path / "two", 2, 2)
    turned = adapt(student_dir, tmp_path / "turned", 3, 2, dora=True)
    before = sorted(file.name for file in tmp_path.iterdir())
    out = tmp_path / "mean"
    for given, words in (
        (asked(student_dir, out, one), "1 adapters given; give two or more"),
        (asked(student_dir, out, one, two, weights="0.7"), "--weights 0.7: give 2 shares from 0 to 1 that add up to 1"),
        (asked(student_dir, out, one, two, weights="0.7,0.7"), "add up to 1"),
        (asked(student_dir, out, one, two, weights="a,b"), "add up to 1"),
        (asked(student_dir, out, one, tmp_path / "none"), "does not exist; give an adapter directory"),
        (asked(student_dir, out, one, turned), "turned: is dora; only plain LoRA adapters have a mean"),
        (asked(student_dir, out, one, student_dir), "cannot be used"),
        (asked(tmp_path, out, one, two), "is no model directory; give the one that the adapters were trained on"),
        (asked(student_dir, one, one, two), "is there already; give another directory, or remove it"),
    ):
        with pytest.raises(SettingsError, match=words) as told:
            run(given)
        assert "--adapter-from" not in str(told.value)
    with pytest.raises(SettingsError, match="rank"):
        main([str(one), str(two), "--rank", "0"])
    assert sorted(file.name for file in tmp_path.iterdir()) == before
