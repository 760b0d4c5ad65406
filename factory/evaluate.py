"""Score a model on a task: one function for teacher, untrained student, student, merged and quantized alike.

Does: ask every question under one decoding setting, decode and score the answers, count every error and loss.
Does not: open data or weights in `evaluate` (the command line, `main`, does), or draw plots (`factory.report`).

Run: python -m factory.evaluate MODEL --task sql [--dataset … --data-dir … --split …] [--json FILE]
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from agents.card import program
from agents.chat import ChatModel, ModelError, Reply, Request, Sampling
from agents.choose import tokens_of
from agents.confidence import mean_probability
from factory.events import EventLog
from factory.predictions import Evaluation, Prediction, keep_predictions, summarize, write_predictions
from factory.predictions import calibration as calibration
from factory.scored_model import look_up
from factory.scored_model import model_bytes as model_bytes
from factory.settings import EvaluateSettings, SettingsError, parse
from factory.tasks.task import (
    AnswerError,
    DataSource,
    Dialect,
    Example,
    HasForms,
    HasSetMetrics,
    HasSummary,
    Reliability,
    Score,
    Task,
    TaskError,
)

MAX_TOKENS = 192
"""Longest completion, in tokens, unless the caller says otherwise."""

WINDOW = 16
"""Batches handed to the model at once: it sorts them by length, and an endpoint never runs dry."""

MODEL_ERROR = "model-error"
CUT_OFF = "cut-off"


@runtime_checkable
class CountsUnconstrained(Protocol):
    """A model that may have to leave constraints away (an endpoint) and counts it, by kind of constraint."""

    unconstrained: Mapping[str, int]


def evaluate(
    task: Task,
    model: ChatModel,
    examples: Sequence[Example],
    dialect: Dialect,
    *,
    constrained: bool = True,
    execution_guided: int = 1,
    batch: int = 64,
    max_tokens: int = MAX_TOKENS,
    temperature: float = 0.7,
    seed: int = 0,
    reliability: Reliability = (),
    events: EventLog | None = None,
    stage: str = "evaluate",
    on_prediction: Callable[[Prediction], None] | None = None,
    known: Iterable[Prediction] = (),
) -> Evaluation:
    """Ask `model` every example greedily and score the answers; `on_prediction` hears each as it finishes.

    `execution_guided` k > 1 asks, where the greedy answer does not run or returns nothing, for k - 1 more at `temperature`
    and takes the first that does (Wang et al. 2018). `reliability` is the card's, for the task's own figures.
    `known` are
    predictions of an interrupted evaluation with the same settings; they are not asked again unless the model failed.

    Raises TaskError for no examples that count, one without reference or two with one id; ModelError when none of the first
    `batch` questions gets an answer.
    """
    if not examples:
        raise TaskError("there are no questions to score; check --split and --limit")
    for example in examples:
        if example.reference is None:
            raise TaskError(f"question {example.id!r} has no reference answer to score against; add one to the questions file")
    if isinstance(task, HasSummary) and not any(task.counts(example) for example in examples):
        raise TaskError(f"none of {len(examples)} questions counts towards {task.metric}; check --split and --limit")
    wanted = {example.id for example in examples}
    if len(wanted) < len(examples):
        twice = Counter(example.id for example in examples).most_common(1)[0][0]
        raise TaskError(f"two questions have the id {twice!r}; give each its own")
    done = {prediction.id: prediction for prediction in known if prediction.id in wanted and prediction.error != MODEL_ERROR}
    asker = _Asker(task, model, dialect, constrained, execution_guided, max_tokens, temperature, seed)
    log = events if events is not None else EventLog()
    with log.stage(stage, total=len(examples), unit="questions", done=len(done)) as progress:
        waiting = [example for example in examples if example.id not in done]
        failed = 0
        for start in range(0, len(waiting), WINDOW * batch):
            for prediction in asker.predict(waiting[start : start + WINDOW * batch]):
                done[prediction.id] = prediction
                failed += prediction.error == MODEL_ERROR
                if on_prediction is not None:
                    on_prediction(prediction)
                progress.advance()
                if failed == len(done) >= min(batch, len(examples)):
                    raise ModelError(f"{model.name}: not one of the first {failed} questions got an answer ({prediction.detail})")
        free = sum(model.unconstrained.values()) if isinstance(model, CountsUnconstrained) else 0
        if free:
            constrained = False
            progress.warn(f"{free} requests went out without their grammar: the server does not take it")
        found = [done[e.id] for e in examples]
        result = summarize(found, model.name, task.metric, dialect, decoding_name(constrained, execution_guided), constrained,
                           task.summarize(found, reliability) if isinstance(task, HasSummary) else None)  # fmt: skip
        if isinstance(task, HasSetMetrics):
            more = task.set_metrics([(example, done[example.id].answer) for example in examples])
            result = result.model_copy(update={"metrics": {**result.metrics, **more}})
        if result.truncated:
            progress.warn(f"{result.truncated} of {len(found)} prompts were cut to fit the model's context")
        if result.cut:
            progress.warn(f"{result.cut} of {len(found)} completions hit the limit of {max_tokens} tokens")
        progress.metric(score=result.score, low=result.low, high=result.high, n=result.n)
    return result


def decoding_name(constrained: bool, execution_guided: int) -> str:
    """The decoding setting in words, as reports and cards show it."""
    how = "greedy" if execution_guided == 1 else f"execution-guided, {execution_guided} candidates"
    return f"{how}, {'constrained' if constrained else 'unconstrained'}"


@dataclass(frozen=True)
class _Candidate:
    reply: Reply
    answer: str | None
    error: str | None
    detail: str


@dataclass
class _Asker:
    """Turns a batch of examples into predictions under one decoding setting."""

    task: Task
    model: ChatModel
    dialect: Dialect
    constrained: bool
    execution_guided: int
    max_tokens: int
    temperature: float
    seed: int
    last: float | None = None

    def predict(self, chunk: Sequence[Example]) -> Iterator[Prediction]:
        """A prediction for each example, as they finish."""
        if self.last is None:
            self.last = time.perf_counter()
        retry: list[tuple[Example, _Candidate]] = []
        for index, candidate in self._ask([self._request(example, 0) for example in chunk], chunk):
            if self.execution_guided > 1 and self._rank(chunk[index], candidate) < 2:
                retry.append((chunk[index], candidate))
            else:
                yield self._prediction(chunk[index], candidate, 0)
        yield from self._guided(retry)

    def _guided(self, retry: list[tuple[Example, _Candidate]]) -> Iterator[Prediction]:
        jobs = [(i, number) for i in range(len(retry)) for number in range(1, self.execution_guided)]
        answers: dict[int, list[tuple[int, _Candidate]]] = {i: [(0, greedy)] for i, (_, greedy) in enumerate(retry)}
        requests = [self._request(retry[i][0], number) for i, number in jobs]
        for index, candidate in self._ask(requests, [retry[i][0] for i, _ in jobs]):
            i, number = jobs[index]
            answers[i].append((number, candidate))
            if len(answers[i]) == self.execution_guided:
                example = retry[i][0]
                number, best = min(answers.pop(i), key=lambda pair: (-self._rank(example, pair[1]), pair[0]))
                yield self._prediction(example, best, number)

    @property
    def _alternatives(self) -> int:
        """Asked of models that run here: endpoints refuse so many, and a recorded answer has none."""
        return self.task.alternatives if isinstance(self.task, HasSummary) and has_engine(self.model) else 0

    def _measures(self, example: Example, chosen: _Candidate) -> dict[str, float]:
        if not isinstance(self.task, HasSummary) or chosen.answer is None or not chosen.reply.logprobs:
            return {}
        return dict(self.task.measures(example, chosen.answer, tokens_of(self.model, chosen.reply.logprobs), self.dialect))

    def _request(self, example: Example, number: int) -> Request:
        sampling = Sampling(
            temperature=0.0 if number == 0 else self.temperature,
            max_tokens=self.max_tokens,
            seed=None if number == 0 else self.seed * 1000 + number,
            logprobs=True,
            top_logprobs=self._alternatives,
        )
        constraint = self.task.constraint(example, self.dialect) if self.constrained else None
        return Request(
            messages=self.task.messages(example, self.dialect), sampling=sampling, constraint=constraint, id=example.id
        )

    def _ask(self, requests: Sequence[Request], examples: Sequence[Example]) -> Iterator[tuple[int, _Candidate]]:
        for index, reply in self.model.generate(requests) if requests else ():
            answer, error, detail = None, None, ""
            if reply.stop_reason == "error":
                error, detail = MODEL_ERROR, reply.error or "no reason given"
            else:
                try:
                    answer = self.task.decode(examples[index], reply.text, self.dialect)
                except AnswerError as failure:
                    error, detail = (CUT_OFF if reply.stop_reason == "length" else failure.reason), str(failure)
            yield index, _Candidate(reply, answer, error, detail)

    def _rank(self, example: Example, candidate: _Candidate) -> int:
        """2 is usable (sql: runs and, where there are rows, returns some), 1 runs, 0 decodes, -1 not even that."""
        if candidate.answer is None:
            return -1
        # Without its reference an example is verified by itself: nothing of the right answer may leak into decoding.
        if self.task.verify(replace(example, reference=None), candidate.answer).ok:
            return 2
        return 0 if "error" in self.task.show(example, candidate.answer) else 1

    def _prediction(self, example: Example, chosen: _Candidate, number: int) -> Prediction:
        if chosen.answer is None:
            # What is measured of a right answer of this example is what this one failed: metrics may be of a group of examples.
            applies = self.task.score(example, example.reference or "").metrics
            score = Score(correct=False, metrics=dict.fromkeys(applies, False), error=chosen.error)
        else:
            score = self.task.score(example, chosen.answer)
        measures = self._measures(example, chosen)
        confidence = measures.pop("confidence", None)
        if confidence is None and not isinstance(self.task, HasSummary):
            confidence = mean_probability(chosen.reply.logprobs)
        now = time.perf_counter()
        seconds, self.last = now - (self.last if self.last is not None else now), now
        return Prediction(
            id=example.id,
            question=example.question,
            context_id=example.context_id,
            reference=example.reference,
            completion=chosen.reply.text,
            answer=chosen.answer,
            correct=score.correct,
            metrics=score.metrics,
            error=score.error,
            detail=chosen.detail,
            confidence=confidence,
            counted=self.task.counts(example) if isinstance(self.task, HasSummary) else True,
            measures=measures,
            truncated=chosen.reply.truncated_prompt_tokens,
            cut=chosen.reply.stop_reason == "length",
            candidate=number,
            tokens=chosen.reply.usage.completion_tokens,
            seconds=round(seconds, 6),
        )


def evaluate_model(settings: EvaluateSettings, events: EventLog | None = None) -> tuple[Evaluation, dict[str, Any]]:
    """Score the model that `settings` name; returns the evaluation and the document that `--json` writes (and writes it).

    The model's card says dialect, form and longest completion; a model without one is asked in the plain dialect. With
    `json_file`, an interrupted evaluation goes on where it was. Raises TaskError, CardError, ModelError, SettingsError, OSError.
    """
    from factory.tasks import get_task

    task = get_task(settings.task)
    scored = look_up(settings.model, task)
    card = scored.card
    source = DataSource(
        dataset=settings.dataset,
        data_dir=settings.data_dir,
        db=settings.db,
        functions=settings.functions,
        questions=settings.questions,
        table=settings.table,
        form=task.learned_form(card) if isinstance(task, HasForms) else None,
        labels=settings.labels,
        card_data=card.task_data if card is not None else {},
        limit=settings.limit,
        seed=settings.seed,
    )
    split = settings.split
    if split is None:
        split = "all" if settings.own is not None or settings.questions is not None else task.validation_split(source)
    examples, data = task.load(source.model_copy(update={"split": split}))
    scored.check_examples(task, examples)
    same = settings.model_dump(mode="json", exclude={"json_file", "batch"})
    identity = {
        "settings": same,
        "data": data.sha256,
        "weights": scored.weights,
        "version": program(),
    }
    with _kept(settings.json_file, identity) as (known, keep):
        model = scored.open(settings.batch)
        try:
            result = evaluate(
                task,
                model,
                examples,
                scored.dialect,
                constrained=settings.constrained,
                execution_guided=settings.execution_guided,
                batch=settings.batch,
                max_tokens=card.max_tokens if card is not None else MAX_TOKENS,
                seed=settings.seed,
                reliability=scored.reliability,
                events=events,
                on_prediction=keep,
                known=known,
            )
        finally:
            model.close()
        document = {
            "task": task.name,
            "dataset": data.name,
            "split": data.split,
            "n": result.n,
            "score": result.score,
            "interval": list(result.interval),
            "metrics": result.metrics,
            "seconds_per_example": result.seconds_per_example,
            "errors_by_kind": result.errors_by_kind,
            **({"apart": result.apart} if result.apart else {}),
            **({"figures": {name: figure.model_dump() for name, figure in result.figures.items()}} if result.figures else {}),
            **({"confusions": [c.model_dump() for c in result.confusions]} if result.confusions else {}),
            "model_bytes": scored.size_bytes,
            "model": settings.model,
            "constrained": result.constrained,
            "decoding": result.decoding,
            "version": program(),
        }
        if settings.json_file is not None:
            write_predictions(predictions_beside(settings.json_file), result.predictions)
            temporary = settings.json_file.with_name(settings.json_file.name + ".tmp")
            temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            temporary.replace(settings.json_file)
    return result, document


def has_engine(model: ChatModel) -> bool:
    """Whether a model runs here, its own tokens and grammar at hand."""
    return getattr(model, "engine", None) is not None


def predictions_beside(json_file: Path) -> Path:
    """Where the predictions of an evaluation written to `json_file` go."""
    return json_file.with_name(json_file.stem + ".predictions.jsonl")


@contextmanager
def _kept(json_file: Path | None, of: object) -> Iterator[tuple[list[Prediction], Callable[[Prediction], None] | None]]:
    """Predictions kept in a .part file until the block ends well."""
    if json_file is None:
        yield [], None
        return
    if json_file.is_dir():
        raise SettingsError(f"--json {json_file}: is a directory; give a file to write")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    part = predictions_beside(json_file).with_suffix(".part")
    with keep_predictions(part, of) as kept:
        yield kept
    part.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m factory.evaluate`: score one model and print the table."""
    from rich.console import Console

    from factory.progress import ProgressView, figure_lines, scores_table

    settings = parse(EvaluateSettings, argv, "python -m factory.evaluate", "Score a model on a task.")
    with ProgressView() as view:
        result, document = evaluate_model(settings, EventLog(listener=view))
    console = Console()
    title = f"{document['task']}, {document['dataset']} {document['split']}, {result.decoding}"
    console.print(scores_table({settings.model: result.summary()}, title))
    for line in figure_lines(result.summary(), explained=True):
        console.print(line, markup=False, highlight=False)
    if settings.json_file is not None:
        console.print(
            f"written: {settings.json_file} and {predictions_beside(settings.json_file).name}", soft_wrap=True, markup=False
        )


if __name__ == "__main__":
    from factory.cli import run_cli

    raise SystemExit(run_cli(main))
