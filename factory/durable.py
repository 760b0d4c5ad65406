"""What our trainers share, whatever their loss: optimizer, schedule, checkpoints that survive a kill, candidates.

Does: override Trainer's optimizer, scheduler and saving. Does not: compute losses or decide when to save (`course.py`).
Module of torch code; imported by trainers only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerState

from factory.average import Average
from factory.checkpoints import Candidates, mark_complete, prune, step_of
from factory.course import Course, Pace
from factory.events import Stage
from factory.muon import MuonAdamW, split_weights
from factory.settings import Optimizer


class Durable(Trainer):
    """Mixed in before the trainer that brings the loss. `attach` a plan, then `run`; files go to `args.output_dir`."""

    pace: Pace
    course: Course
    average: Average | None = None
    matrix_optimizer: Optimizer = "adamw"
    row_tokens: float = 0.0
    """mean tokens of a row; 0 when not known before (on-policy)"""

    def attach(
        self, pace: Pace, stage: Stage, candidates: Candidates, score: Callable[[Path], float] | None, ema_decay: float | None
    ) -> None:
        """Follow this plan: when to stop, save and score, and where progress goes."""
        self.pace = pace
        model: Any = self.model
        self.average = Average(model, ema_decay) if ema_decay is not None else None
        self.course = Course(self, pace, stage, candidates, score)
        self.remove_callback(PrinterCallback)
        self.add_callback(self.course)

    def run(self, resume: Path | None) -> Course:
        """Train to the end of the schedule, from a whole checkpoint or the start."""
        if resume is None or step_of(resume) < self.pace.schedule.total:
            self.train(resume_from_checkpoint=str(resume) if resume is not None else None)
        else:
            # Killed in the last scoring: the weights are there, only the score is missing.
            self._load_from_checkpoint(str(resume))
            self.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
            self.state.is_world_process_zero = self.is_world_process_zero()
            self.course.on_train_begin(self.args, self.state, self.control)
        return self.course

    def start_epoch(self, epoch: int) -> None:
        """Called before an epoch's batches are drawn."""

    # Optimizer and schedule

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, fused where torch has it, weight decay on matrices only; or Muon with it (`factory.muon`)."""
        if self.optimizer is None:
            whole: Any = self.model if model is None else model
            if self.matrix_optimizer == "muon":
                self.optimizer = MuonAdamW(
                    *split_weights(whole),
                    lr=self.args.learning_rate,
                    betas=(self.args.adam_beta1, self.args.adam_beta2),
                    weight_decay=self.args.weight_decay,
                    fused=self.args.device.type in ("cpu", "cuda"),
                )
                return self.optimizer
            trained = [p for p in whole.parameters() if p.requires_grad]
            groups = [
                {"params": [p for p in trained if p.dim() >= 2], "weight_decay": self.args.weight_decay},
                {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
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
            used: Any = optimizer if optimizer is not None else self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(used, self.pace.schedule.factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Files

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights and tokenizer only: Trainer's own would add a pickle of its arguments."""
        if self.args.should_save:
            directory = str(output_dir if output_dir is not None else self.args.output_dir)
            tokenizer: Any = self.processing_class
            self.accelerator.unwrap_model(self.model).save_pretrained(directory, state_dict=state_dict)
            tokenizer.save_pretrained(directory)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint counts only when it is whole; the one before it stays until then."""
        directory = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(directory, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()
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
