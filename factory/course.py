"""The course of one training: progress, time budget, when to save, when to score.

Does: hold the plan, measure speed, fit the schedule to the minutes, try candidates. Does not: compute losses or write weights.
Module of torch code; imported by trainers only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from factory.checkpoints import Candidates
from factory.events import Stage
from factory.schedule import Schedule, steps_in

if TYPE_CHECKING:
    from factory.durable import Durable

MEASURE_STEPS = 12
"""Steps whose speed is measured before the schedule is fitted to the minutes."""
WARM_STEPS = 3
"""First steps, slower than the rest; not measured."""
SAVE_SECONDS = 60.0


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


class Course(TrainerCallback):
    """Everything around the steps: progress, time budget, checkpoints, scoring."""

    def __init__(
        self, trainer: Durable, pace: Pace, stage: Stage, candidates: Candidates, score: Callable[[Path], float] | None
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
            self.trainer.average.load(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")
        self.losses = [(int(entry["step"]), float(entry["loss"])) for entry in state.log_history if "loss" in entry]
        self._tokens = state.num_input_tokens_seen
        if state.global_step and self.schedule.due(state.global_step, self.pace.checkpoints) > len(self.candidates.scored):
            self.try_candidate(state)
        self.saved_at = self._mark = time.monotonic()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.start_epoch(math.floor(state.epoch or 0.0))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, logs["loss"]))
            if not state.is_world_process_zero:
                return
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
            self.refit(state)  # about every minute: a busy machine must not make the run late
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
        minutes = self.pace.minutes
        measured = self.steps_here - WARM_STEPS
        if minutes is None or measured < 1:
            return
        rest = self.pace.checkpoints - len(self.candidates.scored)
        each = max(self.scoring_s, default=0.03 * minutes * 60 if self.score is not None else 0.0)
        left = minutes * 60 - self.spent_s - rest * (each + self.saving_s)
        args = self.trainer.args
        per_step = self.measured / measured
        if self.trainer.row_tokens and self.measured_tokens:
            # A few batches of similar length say less about the mean step than their tokens do.
            tokens = (
                self.trainer.row_tokens * args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            )
            per_step = self.measured / self.measured_tokens * tokens
        total = self._agree(steps_in(left, state.global_step, per_step))
        self.schedule.fit(state.global_step, total)
        state.max_steps = self.stage.total = self.schedule.total
        self.stage.metric(
            step=state.global_step, steps=self.schedule.total, planned=self.schedule.planned, step_s=round(per_step, 4)
        )

    def _agree(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.trainer.args.world_size == 1:
            return value
        box: Sequence[Any] = broadcast_object_list([value])
        return box[0]
