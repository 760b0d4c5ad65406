"""On-policy distillation through TRL: the student writes, the teacher's whole distribution grades each of its tokens.

Does: check the teacher, make the prompt rows, build TRL's trainer with our plan and files. Does not: reach teachers over HTTP.
Module of torch code; imported by `train.py` only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from datasets import Dataset
from transformers import TrainingArguments
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from factory.dataset import DatasetError, prompt_text
from factory.durable import Durable
from factory.settings import Divergence
from factory.tokenizer_match import compare_tokenizers
from factory.train import TrainError

BETA: dict[str, float] = {"forward": 0.0, "js": 0.5, "reverse": 1.0}
"""TRL's name for the divergence."""


class TeacherRefused(TrainError):
    """A teacher that cannot grade the student's text: one sentence with the value, the choices and the next step."""


def check_teacher(teacher: Any, tokenizer: Any) -> Any:
    """The teacher's model when it can grade this student: local, and with the same tokenizer. Raises TeacherRefused."""
    if isinstance(teacher, str | Path):
        if str(teacher).startswith(("http://", "https://")):
            raise TeacherRefused(
                f"method 'on-policy' needs every token's probabilities, which {teacher!s} does not give over HTTP; "
                "use a local teacher (./DIR, hub:ORG/NAME) or method 'sft'"
            )
        from factory.teachers_local import load

        teacher = load(str(teacher), 16, "cpu")
    if teacher is None:
        raise TeacherRefused("method 'on-policy' needs a local teacher model; give one or choose method 'sft'")
    model, own = teacher
    report = compare_tokenizers(own, tokenizer)
    if not report.agree:
        raise TeacherRefused(f"method 'on-policy' compares probabilities token by token, but {report}; choose method 'sft'")
    return model


def prompts(rows: Sequence[Mapping[str, Any]], tokenizer: Any, room: int) -> tuple[Dataset, dict[str, int]]:
    """Rows with a "prompt" column of messages; prompts above `room` tokens are left out and counted as "truncated"."""
    texts = [prompt_text(tokenizer, row["prompt"]) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
    kept = [[dict(message) for message in row["prompt"]] for row, length in zip(rows, lengths) if length <= room]
    dropped = len(rows) - len(kept)
    if not kept:
        raise DatasetError(f"all {len(rows)} prompts were dropped: none fits in {room} tokens; raise --max-length")
    return Dataset.from_dict({"prompt": kept}), {"truncated": dropped} if dropped else {}


class OnPolicyTrainer(Durable, DistillationTrainer):
    """TRL's trainer with our optimizer, schedule, checkpoints and candidates."""

    @classmethod
    def build(
        cls,
        model: Any,
        teacher: Any,
        args: TrainingArguments,
        rows: Dataset,
        tokenizer: Any,
        divergence: Divergence,
        max_new_tokens: int,
    ) -> Self:
        given = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}
        # TRL generates with left padding and switches recomputation on unless told otherwise.
        given["gradient_checkpointing"] = None
        config = DistillationConfig(
            **given, beta=BETA[divergence], max_completion_length=max_new_tokens, chat_template_kwargs={"enable_thinking": False}
        )
        tokenizer.padding_side = "left"
        return cls(model=model, teacher_model=teacher, args=config, train_dataset=rows, processing_class=tokenizer)
