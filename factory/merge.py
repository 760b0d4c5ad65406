"""Merge an adapter into its base, in float32, and prove that the merged model says the same.

Does: reload the base unquantized, compare logits before and after, write the directory whole or not at all.
Does not: train or convert.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE = "Which of the teams with more than 12 wins scored the most points in 1998? <c0> <c1> 0123456789 ÄÖÜ"
TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit, that float32 arithmetic explains."""


class MergeError(Exception):
    """An adapter that cannot be merged: one sentence with the value, the choices and the next step."""


@dataclass(frozen=True)
class MergeReport:
    """How far the merged model is from base + adapter on a probe text."""

    out_dir: Path
    max_difference: float
    """largest absolute difference of a logit, divided by the largest absolute logit"""
    kl: float
    """mean KL(base + adapter || merged), nats per token"""


def merge_adapter(base_dir: Path, adapter_dir: Path, out_dir: Path) -> MergeReport:
    """Write base + adapter to `out_dir` as an ordinary model directory in float32. Raises MergeError."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from factory.train import quiet

    if not (adapter_dir / "adapter_config.json").is_file():
        raise MergeError(f"{adapter_dir} is not an adapter directory: it has no adapter_config.json")
    if not (base_dir / "config.json").is_file():
        raise MergeError(f"{base_dir} is not a model directory: it has no config.json")
    config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config") is not None:
        raise MergeError(f"{base_dir} is stored quantized, so a merge would stay quantized; give the original base")
    with quiet():
        base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(adapter_dir if _has_tokenizer(adapter_dir) else base_dir)
        model = PeftModel.from_pretrained(base, str(adapter_dir)).eval()
        probe = torch.tensor([tokenizer(PROBE, add_special_tokens=False)["input_ids"]])
        before = _logits(model, probe)
        merged = model.merge_and_unload(safe_merge=True)
        after = _logits(merged, probe)
        report = MergeReport(out_dir, *_difference(before, after))
        if not report.max_difference <= TOLERANCE:
            raise MergeError(
                f"merging {adapter_dir} changed the logits by {report.max_difference:.2e} of their range "
                f"(tolerance {TOLERANCE:.0e}); the adapter stays usable unmerged"
            )
        tmp = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
        shutil.rmtree(tmp, ignore_errors=True)
        merged.save_pretrained(tmp)
        tokenizer.save_pretrained(tmp)
    shutil.rmtree(out_dir, ignore_errors=True)
    tmp.rename(out_dir)
    return report


def name_base(adapter_dir: Path, name: str, revision: str | None = None) -> None:
    """Write down which model an adapter belongs to: a hub name and commit, or a directory (relative ones from `adapter_dir`)."""
    path = adapter_dir / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.update(base_model_name_or_path=name, revision=revision)
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _has_tokenizer(directory: Path) -> bool:
    return (directory / "tokenizer.json").is_file()


def _logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=ids).logits.double()


def _difference(before: Any, after: Any) -> tuple[float, float]:
    scale = before.abs().max().clamp_min(1e-6)
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return float((before - after).abs().max() / scale), float((p.exp() * (p - q)).sum(-1).mean())
