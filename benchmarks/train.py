"""Tokens per second of our SFT against a bare PyTorch loop and plain TRL; `logits` from stored top-k against SFT.

Same model, same rows, same batches of similar length, same precision, in one process, in turns, so that a neighbour on the
machine slows all alike. CPU seconds of the process are what is compared on a CPU (wall seconds are reported too).

    python -m benchmarks.train [--size tiny] [--rows 1500] [--steps 12] [--rounds 5] [--threads 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from factory.dataset import LengthGrouped, TokenRows, tokenize
from factory.events import EventLog
from factory.scratch import SCRATCH, write_scratch
from factory.topk import store_topk
from factory.train import TrainJob, has_bf16, load_tokenizer, open_model_for_training, quiet, train

BATCH = 32
RATE = 1e-3
Seconds = tuple[float, float]
"""(CPU, wall)"""


def random_rows(n: int) -> list[dict[str, Any]]:
    """Rows shaped like WikiSQL's in the compact dialect: about 60 tokens of prompt, 12 of completion."""
    dice = random.Random(0)
    words = ["".join(dice.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(dice.randint(2, 9))) for _ in range(3000)]
    rows = []
    for i in range(n):
        columns = [" ".join(dice.choices(words, k=dice.randint(1, 2))) for _ in range(dice.randint(4, 9))]
        question = dice.choices(words, k=dice.randint(6, 14))
        prompt = "".join(f"<c{j}> {name}" for j, name in enumerate(columns)) + "<q> " + " ".join(question)
        completion = f"<c{dice.randrange(4)}><where><c{dice.randrange(4)}> {' '.join(question[2:5])}"
        rows.append({"id": str(i), "prompt": [{"role": "user", "content": prompt}], "completion": completion})
    return rows


def task_rows(n: int) -> list[dict[str, Any]]:
    """Rows of the bundled WikiSQL in the compact dialect, random ones where it cannot be read."""
    from factory.tasks import get_task
    from factory.tasks.task import DataSource

    task = get_task("sql")
    examples, _ = task.load(DataSource(dataset="wikisql", limit=n))
    rows = []
    for example in examples:
        messages = [m.model_dump(include={"role", "content"}) for m in task.messages(example, "compact")]
        assert example.reference is not None
        completion = task.encode(example, example.reference, "compact")
        rows.append({"id": example.id, "prompt": messages, "completion": completion})
    return rows


class Clock:
    """Sums CPU and wall seconds of what runs inside."""

    def __enter__(self) -> Clock:
        self.cpu, self.wall = -time.process_time(), -time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu += time.process_time()
        self.wall += time.perf_counter()


def full_batch(rows: TokenRows, indices: list[int]) -> dict[str, torch.Tensor]:
    """What the plain ways train on: padded ids, attention mask, labels -100 on prompt and padding."""
    parts = [torch.from_numpy(rows.row(i).astype("int64")) for i in indices]
    width = max(map(len, parts))
    ids = torch.full((len(parts), width), rows.pad_id)
    labels = torch.full((len(parts), width), -100)
    for b, (i, part) in enumerate(zip(indices, parts)):
        ids[b, : len(part)] = part
        labels[b, rows.prompt_lengths[i] : len(part)] = part[rows.prompt_lengths[i] :]
    positions = torch.arange(width)[None]
    mask = positions < torch.tensor([len(p) for p in parts])[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def bare(model: Any, rows: TokenRows, steps: int, ours: bool) -> Callable[[], Clock]:
    """A plain loop: autocast, transformers' own loss, fused AdamW, clipping. With `ours`, the model was opened as we
    open it (eager attention on a CPU); otherwise as transformers does."""
    device = next(model.parameters()).device
    order = list(LengthGrouped(rows.lengths, BATCH, 0))[: steps * BATCH]
    batches = [full_batch(rows, order[i : i + BATCH]) for i in range(0, len(order), BATCH)]
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    model.train()

    def run() -> Clock:
        with Clock() as clock:
            for batch in batches:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16()):
                    loss = model(**batch, use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
        return clock

    return run


def plain_trl(base: Path, rows: TokenRows, steps: int, out: Path) -> Callable[[], Clock]:
    """TRL's SFTTrainer as it comes, on the same tokens, with its own loss and length grouping."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    order = list(LengthGrouped(rows.lengths, BATCH, 0))[: steps * BATCH]
    made = {
        "input_ids": [rows.row(i).tolist() for i in order],
        "completion_mask": [
            [0] * int(rows.prompt_lengths[i]) + [1] * int(rows.lengths[i] - rows.prompt_lengths[i]) for i in order
        ],
    }
    config = SFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=RATE,
        bf16=has_bf16(),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=10,
        max_length=None,
        optim="adamw_torch_fused",
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_dict(made), processing_class=load_tokenizer(base))
    trainer.remove_callback(PrinterCallback)

    def run() -> Clock:
        with Clock() as clock:
            trainer.train()
        return clock

    return run


def ours(job: TrainJob) -> Callable[[], Clock]:
    """Our trainer: the steps with logging, schedule and callbacks, the checkpoint and the candidate at the end."""
    from factory.durable import Durable

    inner = Durable.run

    def run() -> Clock:
        clocks: list[Clock] = []

        def timed(self: Durable, resume: Path | None) -> Any:
            with Clock() as clock:
                result = inner(self, resume)
            clocks.append(clock)
            return result

        Durable.run = timed  # type: ignore[method-assign]
        try:
            with tempfile.TemporaryDirectory() as out:
                train(replace(job, out_dir=Path(out)), EventLog(listener=lambda event: None))
        finally:
            Durable.run = inner  # type: ignore[method-assign]
        return clocks[0]

    return run


def measure(size: str, n: int, steps: int, rounds: int) -> dict[str, Any]:
    try:
        made = task_rows(n)
        source = "wikisql"
    except Exception as error:  # the benchmark runs without the task's data
        made, source = random_rows(n), f"random ({type(error).__name__})"
    corpus = [row["prompt"][0]["content"] + row["completion"] for row in made]
    with tempfile.TemporaryDirectory() as folder, quiet():
        work = Path(folder)
        special = [f"<c{i}>" for i in range(64)] + ["<q>", "<where>"]
        base = write_scratch(size, corpus, special, work / "base", 0)
        tokenizer = load_tokenizer(base)
        rows = tokenize(made, tokenizer, 1024)
        order = list(LengthGrouped(rows.lengths, BATCH, 0))[: steps * BATCH]
        # One pass over exactly these rows for everyone.
        chosen = [made[i] for i in sorted(order)]
        rows = tokenize(chosen, tokenizer, 1024)
        tokens = int(rows.lengths.sum())
        from transformers import AutoModelForCausalLM

        teacher = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        stored = store_topk(rows, teacher, work / "topk", 32, len(tokenizer), "benchmark", batch=BATCH)
        job = TrainJob(
            base, work / "run", chosen, epochs=1, batch=BATCH, learning_rate=RATE, checkpoints=1, topk_dir=work / "topk"
        )
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to("cuda" if torch.cuda.is_available() else "cpu")
        runs: dict[str, Callable[[], Clock]] = {
            "ours_sft": ours(job),
            "ours_logits": ours(replace(job, method="logits")),
            "bare_pytorch": bare(plain, rows, steps, False),
            "bare_pytorch_our_attention": bare(open_model_for_training(base, "none", 1, 0), rows, steps, True),
            "plain_trl": plain_trl(base, rows, steps, work / "trl"),
        }
        clocks: dict[str, list[Clock]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                clock = run()
                if turn:  # the first turn warms up
                    clocks[name].append(clock)
    kind = "wall" if torch.cuda.is_available() else "cpu"
    median = {name: statistics.median(getattr(c, kind) for c in each) for name, each in clocks.items()}
    wall = {name: statistics.median(c.wall for c in each) for name, each in clocks.items()}
    faster = min(median["bare_pytorch"], median["plain_trl"])
    return {
        "size": size, "parameters_m": SCRATCH[size].parameters, "rows": source, "batch": BATCH, "steps": steps, "rounds": rounds,
        "threads": torch.get_num_threads(), "bf16": has_bf16(), "seconds_compared": kind, "tokens": tokens,
        "completion_tokens": rows.completion_tokens,
        "tokens_per_s": {name: round(tokens / s) for name, s in median.items()},
        "tokens_per_wall_s": {name: round(tokens / s) for name, s in wall.items()},
        "sft_against_faster_plain": round(faster / median["ours_sft"], 3),
        "logits_against_sft": round(median["ours_logits"] / median["ours_sft"], 3),
        "topk": 32, "topk_bytes_per_token": round(stored.bytes_per_token, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(SCRATCH), default="tiny")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    result = measure(given.size, given.rows, given.steps, given.rounds)
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
