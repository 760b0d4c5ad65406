"""The settings of a run: one object that is the command line, the `--config` file and the Python call.

Does: hold every setting with its meaning, check values, read TOML, write it resolved, build the argument parser.
Does not: look at files, hardware or models; `distill` checks those before anything costly.
"""

from __future__ import annotations

import argparse
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Method = Literal["sft", "logits", "on-policy"]
Adapter = Literal["lora", "qlora", "dora", "none"]
Divergence = Literal["forward", "reverse", "js"]


class SettingsError(Exception):
    """A setting that cannot be: one sentence with the value, the choices and the next step."""


class DataSettings(BaseModel):
    """Which data: shared by every command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = "sql"
    """task to learn; `python -m factory.tasks` lists them"""
    dataset: str | None = None
    """dataset name; default: the one bundled with the task, or none with --db"""
    data_dir: Path | None = None
    """directory holding NAME.jsonl.xz and what belongs to it; default: the bundled copy"""
    db: Path | None = None
    """SQLite file to ask questions about (sql)"""
    questions: Path | None = None
    """JSONL of {"question": …, "sql": … (optional)} for --db"""
    seed: int = 0
    """seed of every random choice"""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.db is not None and self.dataset is not None:
            raise ValueError("give --dataset or --db, not both")
        if self.questions is not None and self.db is None:
            raise ValueError("--questions needs --db, the database they ask about")
        return self


class StudentSettings(DataSettings):
    """Which student and how it trains: shared by distill and finetune."""

    student: str = "scratch:tiny"
    """student name, directory, or scratch:tiny|small|base"""
    adapter: Adapter | None = None
    """what is trained; default: none (all weights) for scratch and finetune on CPU-sized models, lora for the others"""
    rank: int = Field(16, ge=1, le=1024)
    """rank of the adapter"""
    split: str = "train"
    """split to train on"""
    validation_split: str | None = None
    """split to validate on; default: the dataset's own"""
    validation: int = Field(500, ge=1)
    """validation questions for choosing the checkpoint (the final score uses all, see --final)"""
    final: int | None = Field(None, ge=1)
    """validation questions for the final score; default: all"""
    examples: int | None = Field(None, ge=1)
    """questions to use; default: all"""
    epochs: float = Field(3.0, gt=0)
    """passes over the kept rows; --minutes may end training earlier"""
    minutes: float | None = Field(None, gt=0)
    """wall-clock minutes for the training stage: speed is measured first and the schedule fitted to it"""
    learning_rate: float | None = Field(None, gt=0)
    """peak learning rate; default: by student and adapter"""
    batch: int = Field(32, ge=1)
    """rows per optimizer step on one device"""
    accumulate: int = Field(1, ge=1)
    """batches accumulated per optimizer step"""
    max_length: int = Field(1024, ge=16)
    """longest row in tokens; longer ones are counted and left out"""
    checkpoints: int = Field(4, ge=1)
    """checkpoints scored on the validation questions during training"""
    prompt_loss: float = Field(0.0, ge=0, le=1)
    """weight of the loss on prompt tokens (completion tokens weigh 1)"""
    out: Path | None = None
    """run directory; default: runs/TASK-STUDENT-TEACHER"""
    force: bool = False
    """go on although the teacher is not better, or the directory holds other settings (it is moved aside)"""
    dry_run: bool = False
    """print the plan and stop"""


class DistillSettings(StudentSettings):
    """`python -m factory.distill`: from a task and a teacher to a small trained model."""

    teacher: str = "recorded"
    """teacher name, hub:org/name, ./dir, gguf:file, http://host/v1#name[,…], recorded[:FILE.jsonl], templates"""
    method: Method = "sft"
    """sft: learn verified answers; logits: learn stored top-k log-probabilities; on-policy: the teacher grades the student's own text"""
    samples: int = Field(1, ge=1, le=64)
    """answers asked per question (rejection sampling, majority)"""
    temperature: float = Field(0.7, ge=0)
    """teacher's sampling temperature when --samples is above 1 (one sample is greedy)"""
    in_flight: int = Field(64, ge=1)
    """requests to an endpoint at once"""
    budget_usd: float | None = Field(None, gt=0)
    """stop asking the teacher when this is spent"""
    price_in: float | None = Field(None, ge=0)
    """dollars per million prompt tokens of the endpoint"""
    price_out: float | None = Field(None, ge=0)
    """dollars per million completion tokens of the endpoint"""
    top_k: int = Field(32, ge=1, le=256)
    """teacher log-probabilities stored per token (logits)"""
    divergence: Divergence = "forward"
    """what logits and on-policy minimise: forward KL, reverse KL or Jensen-Shannon"""
    distill_weight: float = Field(0.5, ge=0, le=1)
    """share of the distillation loss against the label loss (logits)"""
    gate: int = Field(64, ge=1)
    """validation questions asked of teacher and untrained student before anything costly"""

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.method != "sft" and self.teacher.split(":")[0] in ("recorded", "templates"):
            raise ValueError(f"--method {self.method} needs a teacher that gives probabilities; --teacher {self.teacher!r} only replays text: "
                             "choose --method sft, or a teacher that is a model")  # fmt: skip
        return self


class FinetuneSettings(StudentSettings):
    """`python -m factory.finetune`: labelled rows in, student out, no teacher."""


class EvaluateSettings(DataSettings):
    """`python -m factory.evaluate MODEL`: one score, one decoding setting, whatever runs the model."""

    model: str
    """HF directory, adapter directory, .gguf, ONNX directory, or http://host/v1#name"""
    split: str | None = None
    """split to score; default: the dataset's validation split"""
    limit: int | None = Field(None, ge=1)
    """score the first N after a seeded shuffle; default: all"""
    constrained: bool = True
    """decode under the task's grammar"""
    execution_guided: int = Field(1, ge=1)
    """candidates per question; above 1, those that fail to run or return nothing are passed over"""
    batch: int = Field(64, ge=1)
    """questions decoded together"""
    json_file: Path | None = Field(None, alias="json")
    """write the scores here, and predictions to a JSONL beside it"""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def parse[S: BaseModel](cls: type[S], argv: Sequence[str], prog: str) -> S: ...
