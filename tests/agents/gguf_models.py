"""Tiny GGUF files for the tests of the llama.cpp backend, and LoRA adapters for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NEEDS_LLAMA = 'needs llama.cpp: pip install "penknife[gguf]"'


def to_gguf(directory: Path, precision: str = "F32") -> Path:
    """The model in `directory` as a GGUF file beside it, made once."""
    from export.convert import convert
    from export.source import Source

    out = directory.parent / f"{directory.name}-{precision}.gguf"
    if not out.is_file():
        convert(Source.open(directory), out, precision)
    return out


def to_adapter(base: Path, out: Path, seed: int) -> Path:
    """A LoRA adapter of `base` with random factors, strong enough to change what is answered; returns the GGUF file."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from export.lora import write_adapter
    from export.source import Source

    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    modules = ["q_proj", "v_proj", "up_proj", "down_proj"]
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=modules, init_lora_weights=False))
    peft.save_pretrained(out)
    file = out.with_suffix(".gguf")
    write_adapter(Source.open(out), file)
    return file


def reseal(path: Path) -> None:
    """Make a changed file look foreign: without any of our keys' claims there is no seal to break."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"penknife.", b"strangers"))
