"""Train a student: rows in, the best candidate's directory out. One function for every method and adapter.

Does: open the base as the adapter wants it, tokenize, build the trainer for the method, resume, report what was lost.
Does not: score (the caller's function does), merge (`merge.py`), or store the teacher's probabilities (`topk.py`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.checkpoints import Candidates, Scored, newest, step_of
from factory.events import EventLog
from factory.schedule import Decay, Schedule
from factory.settings import Adapter, Divergence, Method, Optimizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from factory.dataset import TokenRows
    from factory.durable import Durable


class TrainError(Exception):
    """Training that cannot start or go on: one sentence with the value, the choices and the next step."""


@dataclass(frozen=True)
class TrainJob:
    """Everything training needs. `out_dir` gets checkpoints, candidates, schedule.json; the same job continues there."""

    base_dir: Path
    """model directory to start from (`prepare_student`)"""
    out_dir: Path
    rows: Sequence[Mapping[str, Any]] | TokenRows
    """rows of train.jsonl: "prompt" (messages) and "completion"; or rows that are tokenized already (not on-policy)"""
    method: Method = "sft"
    adapter: Adapter = "none"
    rank: int = 16
    adapter_dir: Path | None = None
    """peft directory of the adapter to go on from, whose rank counts then; None: a fresh one"""
    epochs: float = 3.0
    minutes: float | None = None
    """wall-clock minutes for all of `train`, scoring included; fits the number of steps, never above `epochs`"""
    learning_rate: float = 1e-3
    optimizer: Optimizer = "adamw"
    """muon: `factory.muon`, for training all weights"""
    batch: int = 32
    accumulate: int = 1
    max_length: int = 1024
    checkpoints: int = 4
    """candidates scored, evenly spread, the last at the end"""
    prompt_loss: float = 0.0
    seed: int = 0
    warmup: float = 0.05
    """share of the steps"""
    decay: Decay = "linear"
    weight_decay: float = 0.1
    beta2: float = 0.95
    clip: float = 1.0
    """largest gradient norm"""
    ema_decay: float | None = None
    """train on, but score and ship the moving average of the weights"""
    activation_checkpointing: bool | None = None
    """recompute activations in the backward pass; None: for models above 100 M parameters"""
    save_every: int | None = None
    """steps between checkpoints; None: about every minute"""
    log_every: int = 10
    """steps between losses in the events"""
    divergence: Divergence = "forward"
    distill_weight: float = 0.5
    topk_dir: Path | None = None
    """stored teacher log-probabilities (method logits)"""
    teacher: Any = None
    """(model, tokenizer) of a local teacher, or its directory (method on-policy)"""
    max_new_tokens: int = 128
    """longest text the student writes for the teacher to grade (method on-policy)"""


@dataclass(frozen=True)
class TrainResult:
    """What training made. `best_dir` is a model directory, or an adapter directory when an adapter was trained."""

    best_dir: Path
    best_step: int
    best_score: float | None
    final_loss: float
    steps: int
    tokens: int
    tokens_per_s: float
    losses: list[tuple[int, float]]
    scores: list[Scored]
    rows: int
    dropped: dict[str, int] = field(default_factory=dict)


def train(job: TrainJob, events: EventLog, score_checkpoint: Callable[[Path], float] | None = None) -> TrainResult:
    """Train, or continue a training that was killed.

    `score_checkpoint(directory) -> score in 0-1` chooses the candidate; without it the last one is taken. Raises TrainError,
    DatasetError. Under `accelerate launch` every process calls it; only the main one writes and scores.
    """
    started = time.monotonic()
    with quiet():
        return _train(job, events, score_checkpoint, started)


def _train(job: TrainJob, events: EventLog, score: Callable[[Path], float] | None, started: float) -> TrainResult:
    from transformers import set_seed

    from factory.course import Pace

    set_seed(job.seed)
    tokenizer = load_tokenizer(job.base_dir)
    trainer, rows, dropped = _on_policy(job, tokenizer) if job.method == "on-policy" else _supervised(job, tokenizer)
    args = trainer.args
    main = args.process_index == 0
    planned = steps_planned(rows, job.batch * args.world_size, job.accumulate, job.epochs)
    args.max_steps = planned
    resume = newest(job.out_dir / "checkpoints")
    path = job.out_dir / "schedule.json"
    # Without a checkpoint nothing was learned: the measured speed of a run that died before is void.
    schedule = Schedule.open(path if resume is not None else None, planned, job.warmup, job.decay)
    schedule.path = path if main else None
    candidates = Candidates.open(job.out_dir / "candidates")
    done = step_of(resume) if resume is not None else 0
    with events.stage("train", total=schedule.total, unit="steps", done=done) as stage:
        for reason, n in dropped.items():
            stage.drop(reason, n)
        pace = Pace(schedule, job.checkpoints, job.minutes, job.save_every, started, schedule.spent_s)
        trainer.matrix_optimizer = job.optimizer
        trainer.attach(pace, stage, candidates, score, job.ema_decay)
        course = trainer.run(resume)
    best = candidates.best
    if best is None:
        raise TrainError(f"{job.out_dir} holds a finished training without a candidate; remove it and train again")
    return TrainResult(
        best_dir=candidates.path(best),
        best_step=best.step,
        best_score=best.score,
        final_loss=course.losses[-1][1] if course.losses else float("nan"),
        steps=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        tokens_per_s=round(course.tokens_per_s or 0.0, 1),
        losses=course.losses,
        scores=candidates.scored,
        rows=rows,
        dropped=dropped,
    )


def steps_planned(rows: int, batch: int, accumulate: int, epochs: float) -> int:
    """Optimizer steps of `epochs` passes; the last, smaller batch of a pass counts as one."""
    return max(1, math.ceil(epochs * math.ceil(math.ceil(rows / batch) / accumulate)))


def _supervised(job: TrainJob, tokenizer: Any) -> tuple[Durable, int, dict[str, int]]:
    from factory.dataset import TokenRows, tokenize
    from factory.trainer import Loss, StudentTrainer

    rows = job.rows if isinstance(job.rows, TokenRows) else tokenize(job.rows, tokenizer, job.max_length)
    store = None
    if job.method == "logits":
        from factory.topk import TopkStore

        if job.topk_dir is None:
            raise TrainError("method 'logits' needs stored teacher log-probabilities; store them first or choose method 'sft'")
        store = TopkStore.open(job.topk_dir)
        rows = store.keep(rows, len(tokenizer))
    model = open_model_for_training(job.base_dir, job.adapter, job.rank, job.seed, job.adapter_dir)
    loss = Loss(job.divergence, job.distill_weight if store is not None else 0.0)
    trainer = StudentTrainer(model, training_arguments(job, model), rows, tokenizer, loss, store, job.prompt_loss)
    return trainer, len(rows), rows.dropped


def _on_policy(job: TrainJob, tokenizer: Any) -> tuple[Durable, int, dict[str, int]]:
    from factory.onpolicy import OnPolicyTrainer, check_teacher, prompts

    teacher = check_teacher(job.teacher, tokenizer)
    texts: Any = job.rows
    rows, dropped = prompts(texts, tokenizer, job.max_length - job.max_new_tokens)
    model = open_model_for_training(job.base_dir, job.adapter, job.rank, job.seed, job.adapter_dir)
    args = training_arguments(job, model)
    return OnPolicyTrainer.build(model, teacher, args, rows, tokenizer, job.divergence, job.max_new_tokens), len(rows), dropped


def load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


def open_model_for_training(base_dir: Path, adapter: Adapter, rank: int, seed: int, adapter_dir: Path | None = None) -> Any:
    """The base with what is trained switched on: all weights, a fresh adapter, or the one in `adapter_dir`.

    none: all weights in float32. lora, dora: frozen base in bfloat16 where the machine has it. qlora: frozen base in nf4
    (bitsandbytes, on CPU too). Adapters sit on every linear layer except the head, and on fused expert weights (lora).
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized: Any = BitsAndBytesConfig

    narrow = torch.bfloat16 if has_bf16() else torch.float32
    where: dict[str, Any] = {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
    more: dict[str, Any] = {"dtype": torch.float32 if adapter == "none" else narrow}
    if adapter == "qlora":
        more["quantization_config"] = quantized(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=narrow, bnb_4bit_use_double_quant=True
        )
        more |= where or {"device_map": {"": "cpu"}}
    if not torch.cuda.is_available():
        # On CPU the fused attention's backward pass is slower than plain matmuls for the short rows of narrow tasks.
        more["attn_implementation"] = "eager"
    model = AutoModelForCausalLM.from_pretrained(base_dir, trust_remote_code=False, **more)
    model.config.use_cache = False
    return model if adapter == "none" else add_adapter(model, adapter, rank, seed, adapter_dir)


def add_adapter(model: Any, adapter: Adapter, rank: int, seed: int, adapter_dir: Path | None = None) -> Any:
    """The model with a trainable adapter, by default a fresh one: alpha is 2 * rank; no dropout; the head stays as it is."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

    if adapter == "qlora":
        prepare: Any = prepare_model_for_kbit_training
        model = prepare(model, use_gradient_checkpointing=False)
    if adapter_dir is not None:
        try:
            return PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=True)
        except (RuntimeError, ValueError) as error:
            raise TrainError(f"{adapter_dir} does not fit the student ({str(error).strip().splitlines()[0]}); "
                             "give the student it was trained on") from None  # fmt: skip
    experts = sorted({name for name, p in model.named_parameters() if p.dim() == 3})
    if experts and adapter == "dora":
        raise TrainError(
            "adapter 'dora' cannot train fused expert weights; choose lora or qlora for a mixture-of-experts student"
        )
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        target_parameters=experts or None,
        use_dora=adapter == "dora",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def training_arguments(job: TrainJob, model: Any) -> Any:
    """TrainingArguments of transformers with everything noisy off; `Course` in `trainer.py` decides when to save and stop."""
    import torch
    from transformers import TrainingArguments

    total = sum(p.numel() for p in model.parameters())
    checkpointing = job.activation_checkpointing if job.activation_checkpointing is not None else total > 1e8
    return TrainingArguments(
        output_dir=str(job.out_dir / "checkpoints"),
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulate,
        learning_rate=job.learning_rate,
        weight_decay=job.weight_decay if job.adapter == "none" else 0.0,
        adam_beta1=0.9,
        adam_beta2=job.beta2,
        max_grad_norm=job.clip,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=has_bf16(),
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=job.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        ddp_find_unused_parameters=False,
    )


def has_bf16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware (CUDA since Ampere; AVX-512 BF16 or AMX)."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether the processor does, whatever else is there (AVX-512 BF16 or AMX)."""
    import torch

    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, telemetry or warnings of the libraries inside; what they were before, after."""
    import logging as standard_logging
    import warnings

    import transformers
    from huggingface_hub import constants
    from transformers.utils import logging as bars_logging

    logging: Any = bars_logging
    messages: Any = transformers.logging

    names = {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "true"}
    telemetry, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    noisy = standard_logging.getLogger("bitsandbytes")
    noisy_level = noisy.level
    noisy.setLevel(standard_logging.ERROR)
    before = {name: os.environ.get(name) for name in names}
    level, bars = messages.get_verbosity(), logging.is_progress_bar_enabled()
    os.environ.update(names)
    messages.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        noisy.setLevel(noisy_level)
        messages.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
