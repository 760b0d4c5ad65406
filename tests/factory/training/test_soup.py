"""The mean of adapters: what base + mean says against the sum done by hand, what the rank keeps, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.card import ADAPTER_FILE, BaseEntry, Card, DataEntry, ScoreEntry, sha256_of_weights
from factory.settings import SettingsError, build
from factory.soup import SoupSettings, main, run
from factory.train import quiet

LINEAR = ["q_proj", "v_proj", "down_proj"]


def adapt(base: Path, out: Path, seed: int, rank: int, **more: Any) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    given: dict[str, Any] = {"r": rank, "lora_alpha": 8, "target_modules": LINEAR, "init_lora_weights": False, **more}
    config = LoraConfig(**given)
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


def test_adapters_of_other_scales_layers_and_ranks_have_a_mean_too(student_dir: Path, tmp_path: Path) -> None:
    """Rank-stabilized, of one layer, a rank above the weights' smaller side: what the mean adds, through peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    one = adapt(student_dir, tmp_path / "one", 1, 4, use_rslora=True)
    two = adapt(student_dir, tmp_path / "two", 2, 2, layers_to_transform=[0])
    kept = run(asked(student_dir, tmp_path / "mean", one, two, rank=1000))
    assert kept == pytest.approx(1.0, abs=1e-6)

    def added(adapter: Path) -> dict[str, torch.Tensor]:
        with quiet(), torch.inference_mode():
            model = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
            before = {name: value.clone() for name, value in model.state_dict().items()}
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()
            return {name: merged[name] - value for name, value in before.items()}

    first, second, mean = added(one), added(two), added(tmp_path / "mean")
    assert any(not first[name].equal(second[name]) and not second[name].any() for name in first), "a layer of the first alone"
    for name, value in mean.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2, rtol=1e-3, atol=1e-4)


def test_the_card_has_the_data_of_all_and_no_score(student_dir: Path, tmp_path: Path) -> None:
    parts = [adapt(student_dir, tmp_path / name, seed, 2) for seed, name in enumerate(("one", "two"))]
    for part in parts:
        entry = DataEntry(name=f"questions of {part.name}", split="train", license="mine", sha256="0" * 64, n=3)
        score = ScoreEntry(split="dev", n=9, score=0.5, low=0.2, high=0.8, metric="exact", decoding="greedy")
        Card(
            name=part.name, task="route", task_version=1, dialect="compact", constraint="lark", prompt_template="route/compact/1",
            parser="route/compact", base=BaseEntry(id="desk"), data=(entry,), scores={"student": score}, created_by="test",
            adapter_sha256=sha256_of_weights(part), calibration_error=0.1, teacher=f"{part.name}'s", license="mine",
        ).save(part)  # fmt: skip
    run(asked(student_dir, tmp_path / "mean", *parts))
    card = Card.load(tmp_path / "mean")
    assert [entry.name for entry in card.data] == ["questions of one", "questions of two"]
    assert (card.name, card.scores, card.calibration_error) == ("mean", {}, None)
    assert (card.teacher, card.license) == ("one's; two's", "mine")
    (tmp_path / "bare").mkdir()
    for file in (ADAPTER_FILE, "adapter_config.json"):
        shutil.copy(parts[0] / file, tmp_path / "bare" / file)
    run(asked(student_dir, tmp_path / "mean2", tmp_path / "bare", parts[1]))
    assert [entry.name for entry in Card.load(tmp_path / "mean2").data] == ["questions of two"]
    Card.load(parts[1]).model_copy(update={"task": "sql", "prompt_template": "sql/single/compact/1"}).save(parts[1])
    with pytest.raises(SettingsError, match=r"one is of route/compact/1, .*two is of sql/single/compact/1"):
        run(asked(student_dir, tmp_path / "mean3", *parts))


def test_the_command_says_what_was_kept_and_what_is_next(
    student_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [str(adapt(student_dir, tmp_path / name, seed, 2)) for seed, name in enumerate(("one", "two"))]
    main([*parts, "--base", str(student_dir), "--rank", "4", "--out", str(tmp_path / "mean")])
    said = capsys.readouterr().out
    assert "the rank keeps 100.00% of the mean" in said and f"python -m factory.evaluate {tmp_path / 'mean'} --task sql" in said
    Card(
        name="one", task="route", task_version=1, dialect="compact", constraint="lark", prompt_template="route/compact/1",
        parser="route/compact", base=BaseEntry(id="desk"), created_by="test", adapter_sha256=sha256_of_weights(Path(parts[0])),
    ).save(Path(parts[0]))  # fmt: skip
    main([*parts, "--base", str(student_dir), "--out", str(tmp_path / "carded")])
    assert f"python -m factory.evaluate {tmp_path / 'carded'} --task route" in capsys.readouterr().out


def test_what_has_no_mean_is_refused_and_nothing_written(student_dir: Path, tmp_path: Path) -> None:
    one, two = adapt(student_dir, tmp_path / "one", 1, 2), adapt(student_dir, tmp_path / "two", 2, 2)
    turned = adapt(student_dir, tmp_path / "turned", 3, 2, use_dora=True)
    biased = adapt(student_dir, tmp_path / "biased", 4, 2, bias="all")
    other = shutil.copytree(student_dir, tmp_path / "other")
    narrow = load_file(other / "model.safetensors")
    save_file({name: value for name, value in narrow.items() if "v_proj" not in name}, other / "model.safetensors")
    before = sorted(file.name for file in tmp_path.iterdir())
    out = tmp_path / "mean"
    for given, words in (
        (asked(student_dir, out, one), "1 adapters given; give two or more"),
        (asked(student_dir, out, one, two, weights="0.7"), "--weights 0.7: give 2 shares from 0 to 1 that add up to 1"),
        (asked(student_dir, out, one, two, weights="0.7,0.7"), "add up to 1"),
        (asked(student_dir, out, one, two, weights="a,b"), "add up to 1"),
        (asked(student_dir, out, one, two, weights="nan,nan"), "add up to 1"),
        (asked(student_dir, out, one, two, weights="1.5,-0.5"), "add up to 1"),
        (asked(student_dir, out, one, biased), r"biased: does more than add A and B \(bias"),
        (asked(other, out, one, two), "give --base the model that all were trained on"),
        (
            build(SoupSettings, {"adapters": ("embedded", str(one)), "task": "jokes", "out": out}, "t"),
            "no adapter for --task jokes",
        ),
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
