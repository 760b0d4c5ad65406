"""The process that opens a model and measures it, so that one which aborts takes nobody along.

Does: read a job, open its model, compare it with a reference (ids, chat prompts, distributions) or write that reference, ask it
the questions; write what it found after every step, so that a crash loses only the step it happened in.
Does not: decide anything. `export.gate` starts it, reads its progress from stdout, and judges.

    python -m export.probe JOB.json FOUND.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from agents.chat import Adapter, ChatModel, ModelError, Reply, Request
from export.parity import Parity
from export.questions import Questions

if TYPE_CHECKING:
    import numpy as np

PROGRESS = "probe: "
"""Begins a line on stdout that is an event (JSON); everything else there is a library talking."""
SHOWN = 5


class Job(BaseModel):
    """What one process is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """spec for `agents.models.open_model`"""
    options: dict[str, Any] = {}
    """of its backend"""
    adapters: tuple[Adapter, ...] = ()
    """added to the model for every question and every logit"""
    reference: Path
    """the source's reference directory: read, or written by the job that opens the source"""
    source: bool = False
    """whether this model is the source"""
    window: int | None = None
    """sliding window of the source (source only)"""
    questions: Questions | None = None
    batch: int = 64
    predictions: Path | None = None
    """where the answers go, as JSONL"""


class Found(BaseModel):
    """What a process found; fields fill up as it goes on."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    step: str = "opening it"
    """what it was doing when it wrote this"""
    error: str | None = None
    """why the model cannot be used"""
    failure: str | None = None
    """how the check itself broke off, which says nothing about the model"""
    name: str = ""
    engine: str = ""
    """module of the backend"""
    strings: int = 0
    """strings tokenized by both"""
    string_mismatches: int = 0
    prompts: int = 0
    """chat prompts compared"""
    prompt_mismatches: int = 0
    examples: list[str] = []
    """sentences about the first differences"""
    parity: Parity | None = None
    """the distance to the reference; of the source itself, that of its weights and sums in bfloat16"""
    evaluation: dict[str, Any] | None = None
    """`Evaluation.summary()`"""
    left_out: int = 0
    """questions without a reference answer"""
    data: str = ""
    """sha256 of the questions' files"""
    finished: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Do the job of JOB.json; what was found is in FOUND.json even when this ends in the middle."""
    from factory.cli import message_for

    job_file, out = sys.argv[1:3] if argv is None else argv
    job = Job.model_validate_json(Path(job_file).read_text(encoding="utf-8"))
    found = Found()

    def write(step: str) -> None:
        found.step = step
        temporary = Path(out + ".tmp")
        temporary.write_text(found.model_dump_json(), encoding="utf-8")
        temporary.replace(out)

    write(found.step)
    try:
        _work(job, found, write)
    except Exception as error:
        sentence = message_for(error)
        if sentence is None or isinstance(error, OSError):
            words = sentence or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            found.failure = words
            write(found.step)
            raise
        found.error = sentence
        write(found.step)


def _work(job: Job, found: Found, write: Callable[[str], None]) -> None:
    from agents.models import open_model

    model: Any = open_model(job.model, **job.options)
    try:
        found.name, found.engine = model.name, type(model).__module__
        loaded = job.questions.load() if job.questions is not None else None
        if job.source:
            from export.parity import write_reference

            write("reading its distributions")
            write_reference(model, job.reference, list(_conversations(job)), job.window)
        else:
            _compare(job, model, found, write)
        if loaded is not None and job.questions is not None:
            write("answering the questions")
            found.left_out, found.data = loaded.left_out, loaded.sha256
            found.evaluation = _score(job, model, loaded)
    finally:
        model.close()
    if job.source:
        write("reading its distributions in bfloat16")
        found.parity = _in_bfloat16(job)
    found.finished = True
    write("done")


def _in_bfloat16(job: Job) -> Parity | None:
    """How far the source in half its bits is from itself; None where it cannot say (numbers overflow)."""
    from agents.models import open_model
    from export.errors import ExportError
    from export.parity import Reference, measure, torch_logits

    model: Any = open_model(job.model, **{**job.options, "dtype": "bfloat16"})
    try:
        return measure(Reference.read(job.reference), job.reference, lambda ids: torch_logits(model, ids), model.context)
    except ExportError:
        return None
    finally:
        model.close()


def _conversations(job: Job) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The questions of the job as prompts with the right completions, as far as the dialect can say them."""
    from factory.tasks.task import AnswerError

    if job.questions is None:
        return
    loaded = job.questions.load()
    for example in loaded.examples[:PROMPTS_READ]:
        try:
            completion = loaded.task.encode(example, example.reference or "", job.questions.dialect)
        except AnswerError:
            completion = ""
        yield loaded.task.messages(example, job.questions.dialect), completion


PROMPTS_READ = 256
"""Questions that texts are taken from."""


def _compare(job: Job, model: Any, found: Found, write: Callable[[str], None]) -> None:
    from agents.models.hf import TransformersModel
    from export.parity import Reference, differences, measure, text_ids, torch_logits

    reference = Reference.read(job.reference)
    write("tokenizing")
    found.strings = len(reference.strings)
    transformers = isinstance(model, TransformersModel)
    cut = (lambda text: text_ids(model, text)) if transformers else model.tokenize
    for index, place in differences((cut(text) for text in reference.strings), reference.string_ids):
        found.string_mismatches += 1
        if len(found.examples) < SHOWN:
            found.examples.append(f"{reference.strings[index][:40]!r} has other token ids from place {place} on")
    write("rendering its chat template")
    found.prompts = len(reference.prompts)
    rendered = (model.prompt_ids(prompt.messages) for prompt in reference.prompts)
    for index, place in differences(rendered, [prompt.ids for prompt in reference.prompts]):
        found.prompt_mismatches += 1
        if len(found.examples) < SHOWN:
            words = reference.prompts[index].messages[-1].content[:40]
            found.examples.append(f"the chat prompt of {words!r} differs from token {place} on")
    write("reading its distributions")
    pairs = [(adapter.path, adapter.scale) for adapter in job.adapters]
    # llama.cpp's model takes (path, scale), the ONNX one the Adapter itself.
    more = {"adapters": pairs if found.engine.endswith("llama_cpp") else list(job.adapters)} if job.adapters else {}

    def logits(ids: list[int]) -> np.ndarray:
        out: np.ndarray = torch_logits(model, ids) if transformers else model.logits(ids, **more)
        return out

    found.parity = measure(reference, job.reference, logits, model.context)
    write("distributions read")


def _score(job: Job, model: ChatModel, loaded: Any) -> dict[str, Any]:
    from factory.evaluate import evaluate
    from factory.events import EventLog
    from factory.predictions import write_predictions

    assert job.questions is not None
    asked: ChatModel = _Adapted(model, job.adapters) if job.adapters else model
    result = evaluate(
        loaded.task, asked, loaded.examples, job.questions.dialect, batch=job.batch, max_tokens=job.questions.max_tokens,
        events=EventLog(listener=_say), stage="score",
    )  # fmt: skip
    if job.predictions is not None:
        write_predictions(job.predictions, result.predictions)
    return result.summary()


class _Adapted:
    """A model with adapters added to every request."""

    def __init__(self, model: ChatModel, adapters: tuple[Adapter, ...]) -> None:
        self.model, self.adapters, self.name = model, adapters, model.name

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        return self.model.generate([request.model_copy(update={"adapters": self.adapters}) for request in requests])

    def close(self) -> None:
        self.model.close()


def _say(event: Mapping[str, Any]) -> None:
    sys.stdout.write(PROGRESS + json.dumps({**event, "at": time.time()}, default=str) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except ModelError as error:
        raise SystemExit(str(error)) from None
