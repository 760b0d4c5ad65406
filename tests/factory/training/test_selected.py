"""Skipping unused positions must not change loss or gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from factory.dataset import Collator, tokenize
from factory.selected import Selected


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("teacher", [False, True], ids=["llama", "mixtral"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_same_loss_and_gradients(
    teacher: bool, recompute: bool, student_dir: Path, mixtral: Any, rows: list[dict[str, Any]], tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    model = mixtral if teacher else AutoModelForCausalLM.from_pretrained(student_dir)
    model.train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    made = tokenize(rows, tokenizer, 64)
    batch = Collator(made).batch(range(8))
    mask = torch.zeros_like(batch.input_ids).flatten()
    mask[batch.positions] = 1
    logits = model(input_ids=batch.input_ids, attention_mask=torch.ones_like(batch.input_ids), use_cache=False).logits
    plain = F.cross_entropy(logits.reshape(-1, logits.shape[-1])[mask.bool()], batch.targets)
    plain.backward()
    expected = gradients(model)
    selected = Selected(model)
    selected.positions = batch.positions
    logits = model(input_ids=batch.input_ids, use_cache=False).logits
    assert logits.shape == (len(batch.targets), len(tokenizer))
    loss = F.cross_entropy(logits, batch.targets)
    loss.backward()
    torch.testing.assert_close(loss, plain)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected.pop(name), msg=name)
    assert not expected
    selected.remove()
    model.gradient_checkpointing_disable()
    model.eval()
    assert model(input_ids=batch.input_ids).logits.dim() == 3


def test_padding_changes_nothing(student_dir: Path, rows: list[dict[str, Any]], tokenizer: Any) -> None:
    """Right padding without an attention mask: a row's logits are those it has alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(student_dir).eval()
    made = tokenize(rows, tokenizer, 64)
    short, long = int(made.lengths.argmin()), int(made.lengths.argmax())
    batch = Collator(made).batch([short, long])
    with torch.inference_mode():
        together = model(input_ids=batch.input_ids).logits[0, : len(made.row(short)) - 1]
        alone = model(input_ids=torch.from_numpy(made.row(short)[None, :-1].astype("int64"))).logits[0]
    torch.testing.assert_close(together, alone)
