"""The importance matrix: how much each input channel of each weight matters on the task's own rows.

Does: read calibration rows (a run's training rows, or any text or JSONL), count what cannot be used, run the source in float32
and take mean(x ** 2) of every matrix's input channels, named as the GGUF file names the matrices.
Does not: quantize (`export.quants`), or use rows the model is scored on: give training rows.

    rows = rows_for(source, None)                       # the run's train.jsonl
    importance = measure(source, rows)                  # importance.values["blk.0.attn_q.weight"]: (columns,) float32
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.source import Source

if TYPE_CHECKING:
    import numpy as np

ROWS = 1000
"""Rows used at most, drawn with a seed."""
TOKENS = 200_000
"""Tokens used at most."""
BATCH_TOKENS = 4096
"""Tokens of padded rows run at once."""
TEXT_TOKENS = 512
"""Length a plain text is cut into."""


@dataclass(frozen=True)
class Calibration:
    """Token ids to run the model on."""

    origin: str
    """the file they are from"""
    sequences: tuple[np.ndarray, ...]
    """(length,) int64 each"""
    rows: int
    """rows in the file"""
    dropped: dict[str, int]
    """rows that are not used, by reason: "unreadable", "empty", "truncated" (longer than the context), "beyond-limit" """

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids in self.sequences)

    def say(self) -> str:
        lost = ", ".join(f"{reason} {n}" for reason, n in self.dropped.items())
        unused = f"; not used: {lost}" if lost else ""
        return f"{len(self.sequences)} of {self.rows} rows ({self.tokens} tokens) of {self.origin}{unused}"


@dataclass(frozen=True)
class Importance:
    """mean(x ** 2) of every quantizable matrix's input channels."""

    values: dict[str, np.ndarray]
    """GGUF tensor name -> (columns,) float32"""
    calibration: Calibration
    absent: tuple[str, ...]
    """matrices without: an embedding that is no head reads no activations"""

    def as_json(self) -> dict[str, Any]:
        """What the report says of it."""
        c = self.calibration
        return {"origin": Path(c.origin).name, "rows": len(c.sequences), "tokens": c.tokens, "dropped": c.dropped,
                "tensors": len(self.values), "without": list(self.absent)}  # fmt: skip


def calibration_file(source: Source, given: Path | None) -> Path | None:
    """The file calibration rows are from: the one given, else the run's training rows; None when there is neither.

    Raises ExportError when the one given cannot be read.
    """
    if given is not None:
        if not given.is_file():
            raise ExportError(
                f"--calibration {given}: {'is no file' if given.exists() else 'is not there'}; give a text or JSONL file"
            )
        return given
    run = source.run_dir
    return run / "train.jsonl" if run is not None and (run / "train.jsonl").is_file() else None


def read_calibration(source: Source, file: Path, rows: int = ROWS, tokens: int = TOKENS, seed: int = 0) -> Calibration:
    """Rows as the model reads them: prompt through its chat template, completion, end of sequence.

    A JSONL row is {"prompt": messages, "completion": text} (a run's train.jsonl), {"messages": […]} or {"text": …}; any other
    file is plain text, cut every TEXT_TOKENS tokens. Raises ExportError when nothing usable is left.
    """
    import numpy as np

    context = int(source.plan.context)
    dropped: Counter[str] = Counter()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--calibration {file}: cannot be read as UTF-8 text ({error}); give a text or JSONL file") from None
    if file.suffix == ".jsonl":
        found = [_parse(line) for line in text.splitlines() if line.strip()]
        total = len(found)
        dropped["unreadable"] += sum(row is None for row in found)
        usable = [row for row in found if row is not None]
        random.Random(seed).shuffle(usable)
        sequences = _encoded_rows(source, usable, dropped)
    else:
        ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        length = min(TEXT_TOKENS, context)
        pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
        random.Random(seed).shuffle(pieces)
        total, sequences = len(pieces), iter(pieces)
    kept: list[np.ndarray] = []
    used = seen = 0
    for sequence in sequences:
        seen += 1
        if len(sequence) > context or len(sequence) < 2:
            dropped["truncated" if len(sequence) > context else "empty"] += 1
            continue
        kept.append(np.asarray(sequence, np.int64))
        used += len(sequence)
        if len(kept) >= rows or used >= tokens:
            break
    unused = total - len(kept) - sum(dropped.values())
    if unused:
        dropped["beyond-limit"] = unused
    if not kept:
        lost = ", ".join(f"{reason} {n}" for reason, n in dropped.items() if n)
        raise ExportError(
            f"--calibration {file}: not one of {total} rows can be used ({lost or 'the file is empty'}); each line needs "
            "prompt and completion, messages, or text"
        )
    return Calibration(str(file), tuple(kept), total, {reason: n for reason, n in dropped.items() if n})


def _parse(line: str) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict):
        return None
    whole = isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), str)
    return row if whole or isinstance(row.get("messages"), list) or isinstance(row.get("text"), str) else None


def _encoded_rows(source: Source, rows: list[Mapping[str, Any]], dropped: Counter[str]) -> Iterator[list[int]]:
    """Ids of each row, as `factory.dataset.tokenize` makes them; a row the chat template refuses is counted."""
    from factory.dataset import prompt_text

    tokenizer = source.tokenizer
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for row in rows:
        try:
            if "completion" in row:
                prompt = tokenizer(prompt_text(tokenizer, row["prompt"]), add_special_tokens=False)["input_ids"]
                yield [*prompt, *tokenizer(row["completion"], add_special_tokens=False)["input_ids"], *end]
            elif "messages" in row:
                text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
                yield tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                yield tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        except Exception:  # templates are programs: they raise what they like
            dropped["unreadable"] += 1


def measure(source: Source, calibration: Calibration, advance: Callable[[int], None] | None = None) -> Importance:
    """Run the source in float32 over the calibration rows. `advance` hears how many rows each batch had.

    Padding never counts. Raises ExportError when a channel's mean is not finite: the weights are broken.
    """
    import numpy as np
    import torch

    from agents.models import open_model

    tensors = {t.source.removesuffix(".weight"): t.name for t in source.plan.tensors if t.role in ("matrix", "head")}
    if all(t.role != "head" for t in source.plan.tensors):
        tensors["lm_head"] = "token_embd.weight"  # tied: the embedding is rounded for its use as the head
    opened: Any = open_model(str(source.path), device="cpu", dtype="float32")
    sums: dict[str, Any] = {}
    real = torch.zeros(0, 0)

    def listen(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, inputs: Any, _output: Any) -> None:
            squares = (inputs[0].float() ** 2 * real[..., None]).sum((0, 1)).double()
            sums[name] = sums[name] + squares if name in sums else squares

        return hook

    try:
        model = opened.model.eval()
        hooks = []
        for path, module in model.named_modules():
            name = tensors.get(path.removeprefix("base_model.model.").removesuffix(".base_layer"))
            if name is not None and isinstance(module, torch.nn.Linear):
                hooks.append(module.register_forward_hook(listen(name)))
        with torch.inference_mode():
            for batch in _batches(calibration.sequences):
                width = max(len(ids) for ids in batch)
                ids = torch.zeros(len(batch), width, dtype=torch.int64)
                real = torch.zeros(len(batch), width)
                for row, sequence in enumerate(batch):
                    ids[row, : len(sequence)] = torch.from_numpy(sequence)
                    real[row, : len(sequence)] = 1.0
                model(input_ids=ids)
                if advance is not None:
                    advance(len(batch))
        for hook in hooks:
            hook.remove()
    finally:
        opened.close()
    values = {name: (total / calibration.tokens).numpy().astype(np.float32) for name, total in sums.items()}
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ExportError(
                f"{source.path}: the inputs of {name} are not finite on {calibration.origin}; its weights are broken"
            )
    absent = tuple(t.name for t in source.plan.tensors if len(t.shape) == 2 and t.name not in values)
    return Importance(values, calibration, absent)


def _batches(sequences: tuple[np.ndarray, ...]) -> Iterator[list[np.ndarray]]:
    """Sequences of like length together, at most BATCH_TOKENS with their padding (right, where no token sees it)."""
    batch: list[np.ndarray] = []
    for ids in sorted(sequences, key=len):
        if batch and len(ids) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch
