"""Merging: what is refused, and a wrong merge found. The good cases are in test_train.py, with every kind of adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from factory import merge
from factory.merge import MergeError, merge_adapter
from factory.train import open_model_for_training, quiet


@pytest.fixture
def adapter(student_dir: Path, tmp_path: Path) -> Path:
    with quiet():
        model = open_model_for_training(student_dir, "lora", 4, 0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
        model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_merge_equals_adapter_and_differs_from_base(student_dir: Path, adapter: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    report = merge_adapter(student_dir, adapter, tmp_path / "model")
    assert report.max_difference < 1e-5 and abs(report.kl) < 1e-9
    assert not (tmp_path / "model" / "old").exists() and not list(tmp_path.glob(".*"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(student_dir).state_dict()
    assert merged.keys() == base.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(merged[name], base[name]) and torch.equal(merged["lm_head.weight"], base["lm_head.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


def test_what_cannot_be_merged(student_dir: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MergeError, match="not an adapter directory"):
        merge_adapter(student_dir, student_dir, tmp_path / "model")
    with pytest.raises(MergeError, match="not a model directory"):
        merge_adapter(adapter, adapter, tmp_path / "model")
    quantized = tmp_path / "quantized"
    shutil.copytree(student_dir, quantized)
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(MergeError, match="stay quantized"):
        merge_adapter(quantized, adapter, tmp_path / "model")
    monkeypatch.setattr(merge, "_logits", lambda model, ids: torch.randn(1, 4, 9).double())
    with pytest.raises(MergeError, match="changed the logits"):
        merge_adapter(student_dir, adapter, tmp_path / "model")
    assert not (tmp_path / "model").exists()
