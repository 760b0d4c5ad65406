"""transformers' Trainer with our loss on pre-tokenized rows: SFT and distillation from stored log-probabilities.

Does: the head only where there is loss, batches of similar length, exact means over accumulated batches.
Does not: open models or rows (`train.py`), generate (`onpolicy.py`). Module of torch code; imported by `train.py` only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from factory.dataset import Collator, LengthGrouped, TokenRows
from factory.durable import Durable
from factory.losses import completion_loss, topk_divergence
from factory.selected import Selected


@dataclass
class Loss:
    """What is minimised: (1 - weight) * cross-entropy + weight * divergence from the stored teacher (when there is a store)."""

    divergence: str = "forward"
    distill_weight: float = 0.0


class StudentTrainer(Durable):
    """Trainer over `TokenRows`; `attach` it to a plan, then `run`."""

    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any, args: TrainingArguments, rows: TokenRows, tokenizer: Any, loss: Loss, store: Any, prompt_loss: float
    ) -> None:
        self.objective: Loss = loss
        self.sampler = LengthGrouped(rows.lengths, args.per_device_train_batch_size * args.gradient_accumulation_steps, args.seed)
        collator = Collator(rows, prompt_loss, store)
        super().__init__(model=model, args=args, train_dataset=rows, data_collator=collator, processing_class=tokenizer)
        self.selected = Selected(model)
        self.row_tokens = float(rows.lengths.mean())

    def start_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    # What a batch costs and how it is drawn

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        return self.sampler

    def _get_collator_with_removed_columns(
        self, data_collator: Callable[..., Any], description: str | None = None
    ) -> Callable[..., Any]:
        return data_collator

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """(2,) float: sum of the weights and number of graded positions of this optimizer step, over all processes."""
        total = (
            torch.tensor([[float(b["weights"].sum()), float(len(b.get("top_ids", ())))] for b in batch_samples]).sum(0).to(device)
        )
        if self.args.world_size > 1:
            total = self.accelerator.gather(total[None]).sum(0)
        return total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss per unit of weight over the whole optimizer step, in nats."""
        self.selected.positions = inputs["positions"]
        try:
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        finally:
            if not self.args.activation_checkpointing:
                self.selected.positions = None
        weight = self.objective.distill_weight
        loss = completion_loss(logits, inputs["targets"], inputs["weights"]) * ((1 - weight) / num_items_in_batch[0])
        if weight > 0:
            graded = inputs.get("graded")
            part, targets = (logits, inputs["targets"]) if graded is None else (logits[graded], inputs["targets"][graded])
            far = topk_divergence(self.objective.divergence, part, inputs["top_ids"], inputs["top_logprobs"], targets)
            loss = loss + far * (weight / num_items_in_batch[1])
        self.state.num_input_tokens_seen += inputs["tokens"] * self.args.world_size
        return loss * self.args.world_size
