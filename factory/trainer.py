"""transformers' Trainer with our loss, our schedule, checkpoints that survive a kill, and candidates chosen by task score.

Does: the language-model head only where there is loss, fused AdamW, batches of similar length, averaged weights, resume.
Does not: open models or rows (`train.py`), generate (`onpolicy.py`). Module of torch code; imported by `train.py` only.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from factory.checkpoints import Candidates, mark_complete, prune
from factory.dataset import Collator, LengthGrouped, TokenRows
from factory.events import Stage
from factory.losses import completion_loss, topk_divergence
from factory.schedule import Schedule, steps_in

MEASURE_STEPS = 12
"""Steps whose speed is measured before the schedule is fitted to the minutes."""
WARM_STEPS = 3
"""First steps, slower than the rest; not measured."""
SAVE_SECONDS = 60.0
EMA_FILE = "ema.safetensors"


class Selected:
    """Computes the last layer's feed-forward block and the head only at `positions` of the flattened (B * T) batch.

    What the other positions would have had there is used by nobody, so loss and gradients are the same; the model's logits
    come out as (N, V). Hooks keep working under peft, DDP and FSDP because the whole model is still called from outside.
    """

    def __init__(self, model: nn.Module) -> None:
        self.positions: Tensor | None = None
        self.size = 0
        self.handles = []
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = base.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(base).__name__} has no output embeddings; only decoder-only language models can be trained")
        self.handles.append(head.register_forward_pre_hook(self._pick))
        layers = getattr(getattr(base, "model", None), "layers", None)
        block = getattr(layers[-1], "mlp", None) if layers is not None and len(layers) else None
        # A router's balance and dropout see every position, so only a plain block is cut.
        if block is not None and not any(isinstance(m, nn.Dropout) and m.p > 0 for m in block.modules()) and _plain(block):
            self.handles.append(block.register_forward_pre_hook(self._pick))
            self.handles.append(block.register_forward_hook(self._put))

    def _pick(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.positions is None:
            return None
        hidden = args[0]
        self.shape = hidden.shape
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.positions), *args[1:])

    def _put(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.positions is None:
            return None
        whole = output.new_zeros(self.shape[0] * self.shape[1], output.shape[-1])
        return whole.index_copy(0, self.positions, output).view(*self.shape[:2], -1)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _plain(block: nn.Module) -> bool:
    return all(p.dim() <= 2 for p in block.parameters()) and not any(
        "router" in n or n.endswith("gate") for n, _ in block.named_modules()
    )


class Average:
    """Exponential moving average of the trained weights, in fp32, `decay` warmed up as (1 + t) / (10 + t)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.mean = {name: p.detach().float().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.mean.values()), [p.detach().float() for p in self.live.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        kept = {name: p.detach().clone() for name, p in self.live.items()}
        with torch.no_grad():
            for name, p in self.live.items():
                p.copy_(self.mean[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.live.items():
                    p.copy_(kept[name])

    def save(self, directory: Path) -> None:
        save_file(self.mean, directory / EMA_FILE)

    def load(self, directory: Path) -> None:
        for name, tensor in load_file(directory / EMA_FILE).items():
            self.mean[name].copy_(tensor)


@dataclass
class Loss:
    """What is minimised: (1 - weight) * cross-entropy + weight * divergence from the stored teacher (when there is a store)."""

    divergence: str = "forward"
    distill_weight: float = 0.0


@dataclass
class Pace:
    """When things happen: minutes, scorings, saves. Filled by `train.py`."""

    schedule: Schedule
    checkpoints: int
    minutes: float | None = None
    save_every: int | None = None
    """Steps between checkpoints; None: about every minute, never more than 5 % of the time."""
    started: float = field(default_factory=time.monotonic)
    spent_before_s: float = 0.0


class StudentTrainer(Trainer):
    """Trainer over `TokenRows`. `run` trains from a checkpoint or the start; everything durable is in `args.output_dir`."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        rows: TokenRows,
        tokenizer: Any,
        loss: Loss,
        pace: Pace,
        stage: Stage,
        candidates: Candidates,
        score: Callable[[Path], float] | None,
        store: Any = None,
        prompt_loss: float = 0.0,
        ema_decay: float | None = None,
    ) -> None:
        self.rows, self.objective, self.pace = rows, loss, pace
        self.sampler = LengthGrouped(rows.lengths, args.per_device_train_batch_size * args.gradient_accumulation_steps, args.seed)
        collator = Collator(rows, prompt_loss, store)
        super().__init__(model=model, args=args, train_dataset=rows, data_collator=collator, processing_class=tokenizer)
        self.average = Average(model, ema_decay) if ema_decay is not None else None
        self.selected = Selected(model)
        self.remove_callback(PrinterCallback)
        self.course = Course(self, pace, stage, candidates, score)
        self.add_callback(self.course)

    def run(self, resume: Path | None) -> Course:
        """Train to the end of the schedule, from a whole checkpoint or the start."""
        done = int(resume.name.rpartition("-")[2]) if resume is not None else 0
        if resume is None or done < self.pace.schedule.total:
            self.train(resume_from_checkpoint=str(resume) if resume is not None else None)
        else:
            # Killed in the last scoring: the weights are there, only the score is missing.
            self._load_from_checkpoint(str(resume))
            self.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
            self.course.on_train_begin(self.args, self.state, self.control)
        return self.course

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

    # Optimizer and schedule

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, fused where torch has it; weight decay on matrices only."""
        if self.optimizer is None:
            trained = [(n, p) for n, p in (self.model if model is None else model).named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for _, p in trained if p.dim() >= 2], "weight_decay": self.args.weight_decay},
                {"params": [p for _, p in trained if p.dim() < 2], "weight_decay": 0.0},
            ]
            fused = self.args.device.type in ("cpu", "cuda")
            self.optimizer = torch.optim.AdamW(
                [g for g in groups if g["params"]],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                fused=fused,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.pace.schedule.factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Files

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights and tokenizer only: Trainer's own would add a pickle of its arguments."""
        if self.args.should_save:
            directory = output_dir if output_dir is not None else self.args.output_dir
            self.accelerator.unwrap_model(self.model).save_pretrained(directory, state_dict=state_dict)
            self.processing_class.save_pretrained(directory)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint counts only when it is whole; the one before it stays until then."""
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(directory, ignore_errors=True)
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            if self.average is not None:
                self.average.save(directory)
            mark_complete(directory)
            prune(directory.parent)
        self.accelerator.wait_for_everyone()

    def save_candidate(self, directory: Path) -> None:
        """The model as it would be shipped (averaged weights when asked), whole or not at all."""
        tmp = directory.with_name(f".{directory.name}.tmp")
        if self.args.should_save:
            shutil.rmtree(tmp, ignore_errors=True)
        if self.average is not None:
            with self.average.applied():
                self.save_model(str(tmp), _internal_call=True)
        else:
            self.save_model(str(tmp), _internal_call=True)
        if self.args.should_save:
            shutil.rmtree(directory, ignore_errors=True)
            tmp.rename(directory)


class Course(TrainerCallback):
    """Everything around the steps: progress, time budget, checkpoints, scoring."""

    def __init__(
        self, trainer: StudentTrainer, pace: Pace, stage: Stage, candidates: Candidates, score: Callable[[Path], float] | None
    ) -> None:
        self.trainer, self.pace, self.stage, self.candidates, self.score = trainer, pace, stage, candidates, score
        self.schedule = pace.schedule
        self.losses: list[tuple[int, float]] = []
        self.scoring_s: list[float] = []
        self.saving_s = 0.0
        self.saved_at = time.monotonic()
        self.steps_here = 0
        self.measured = 0.0
        """Seconds of pure training since WARM_STEPS, in this process"""
        self.measured_tokens = 0
        self._mark = time.monotonic()
        self._tokens = 0

    # Progress

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.max_steps = self.schedule.total
        if self.trainer.average is not None and state.global_step:
            self.trainer.average.load(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self.losses = [(int(entry["step"]), float(entry["loss"])) for entry in state.log_history if "loss" in entry]
        self._tokens = state.num_input_tokens_seen
        if state.global_step and self.schedule.due(state.global_step, self.pace.checkpoints) > len(self.candidates.scored):
            self.try_candidate(state)
        self.saved_at = self._mark = time.monotonic()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.sampler.set_epoch(math.floor(state.epoch or 0.0))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            self.losses.append((state.global_step, logs["loss"]))
            numbers = {"loss": round(logs["loss"], 4), "lr": logs["learning_rate"], "epoch": round(state.epoch or 0.0, 3)}
            if "grad_norm" in logs:
                numbers["grad_norm"] = round(float(logs["grad_norm"]), 4)
            speed = self.tokens_per_s
            if speed is not None:
                numbers["tokens_per_s"] = round(speed)
            self.stage.advance(state.global_step - self.stage.done, **numbers)

    @property
    def tokens_per_s(self) -> float | None:
        return self.measured_tokens / self.measured if self.measured > 0 else None

    # After each step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        self.steps_here += 1
        if self.steps_here > WARM_STEPS:
            self.measured += now - self._mark
            self.measured_tokens += state.num_input_tokens_seen - self._tokens
        self._mark, self._tokens = now, state.num_input_tokens_seen
        if self.trainer.average is not None:
            self.trainer.average.update(state.global_step)
        fitted = self.schedule.resumed or len(self.schedule.fits) > 1
        if self.pace.minutes is not None and not fitted and self.steps_here == WARM_STEPS + MEASURE_STEPS:
            self.refit(state)
        if state.global_step >= state.max_steps:
            control.should_training_stop = control.should_log = True
        control.should_save = self._wants_save(state, now)

    def _wants_save(self, state: TrainerState, now: float) -> bool:
        if self.schedule.due(state.global_step, self.pace.checkpoints) > len(self.candidates.scored):
            return True
        if state.global_step >= state.max_steps:
            return True
        if self.pace.save_every is not None or self.trainer.args.world_size > 1:
            return state.global_step % (self.pace.save_every or 500) == 0
        return now - self.saved_at > max(SAVE_SECONDS, 20 * self.saving_s)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        self.saving_s = now - self._mark
        self.schedule.save(self.spent_s)
        due = self.schedule.due(state.global_step, self.pace.checkpoints)
        last = self.candidates.scored[-1].step if self.candidates.scored else -1
        if due > len(self.candidates.scored) or (state.global_step >= state.max_steps and last < state.global_step):
            self.try_candidate(state)
            if self.pace.minutes is not None and state.global_step < state.max_steps and not self.schedule.resumed:
                self.refit(state)
        self.saved_at = self._mark = time.monotonic()

    @property
    def spent_s(self) -> float:
        """Seconds of this training, earlier processes included."""
        return self.pace.spent_before_s + time.monotonic() - self.pace.started

    def try_candidate(self, state: TrainerState) -> None:
        """Save the model as it stands, score it, keep it when it is the best so far."""
        if any(s.step == state.global_step for s in self.candidates.scored):
            return
        begun = time.monotonic()
        name = f"step-{state.global_step:06d}"
        self.trainer.save_candidate(self.candidates.directory / name)
        score = None
        if state.is_world_process_zero:
            score = self.score(self.candidates.directory / name) if self.score is not None else None
            self.stage.metric(step=state.global_step, score=score)
        self.candidates.add(state.global_step, self._agree(score), name, write=state.is_world_process_zero)
        self.trainer.accelerator.wait_for_everyone()
        self.scoring_s.append(time.monotonic() - begun)

    def refit(self, state: TrainerState) -> None:
        """Fit the number of steps to the minutes that are left, by the speed so far and what scoring takes."""
        minutes, speed = self.pace.minutes, self.tokens_per_s
        if minutes is None or speed is None:
            return
        rest = self.pace.checkpoints - len(self.candidates.scored)
        each = max(self.scoring_s, default=0.03 * minutes * 60 if self.score is not None else 0.0)
        left = minutes * 60 - self.spent_s - rest * (each + self.saving_s)
        args = self.trainer.args
        per_step = float(self.trainer.rows.lengths.mean()) * args.per_device_train_batch_size * args.gradient_accumulation_steps
        total = self._agree(steps_in(left, state.global_step, per_step * args.world_size / speed))
        self.schedule.fit(state.global_step, total)
        state.max_steps = self.stage.total = self.schedule.total
        self.stage.metric(
            step=state.global_step, steps=self.schedule.total, planned=self.schedule.planned, tokens_per_s=round(speed)
        )

    def _agree(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.trainer.args.world_size == 1:
            return value
        box: Sequence[Any] = broadcast_object_list([value])
        return box[0]
