"""Score a model on a task: one function for teacher, untrained student, student, merged and quantized alike.

Does: ask every question under one decoding setting, decode and score the answers, count every error and loss.
Does not: open data or weights in `evaluate` (the command line, `main`, does), or draw plots (`factory.report`).

Run: python -m factory.evaluate MODEL --task sql [--dataset … --data-dir … --split …] [--json FILE]
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agents.chat import ChatModel, ModelError, Reply, Request, Sampling
from factory.events import EventLog
from factory.predictions import Evaluation, Prediction, summarize
from factory.tasks.task import AnswerError, Dialect, Example, Score, Task, TaskError

MAX_TOKENS = 192
"""Longest completion, in tokens, unless the caller says otherwise."""

MODEL_ERROR = "model-error"
CUT_OFF = "cut-off"


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
    events: EventLog | None = None,
    stage: str = "evaluate",
    on_prediction: Callable[[Prediction], None] | None = None,
    known: Iterable[Prediction] = (),
) -> Evaluation:
    """Ask `model` every example greedily and score the answers; `on_prediction` hears each as it finishes.

    `execution_guided` k > 1 asks, where the greedy answer does not run or returns nothing, for k - 1 more at `temperature`
    and takes the first that does (Wang et al. 2018). `known` are predictions of an interrupted evaluation with the same
    settings; they are not asked again. Raises TaskError for no examples, one without reference or two with one id;
    ModelError when a whole first batch gets no answer.
    """
    if not examples:
        raise TaskError("there are no questions to score; check --split and --limit")
    for example in examples:
        if example.reference is None:
            raise TaskError(f"question {example.id!r} has no reference answer to score against; add one to the questions file")
    wanted = {example.id for example in examples}
    if len(wanted) < len(examples):
        twice = Counter(example.id for example in examples).most_common(1)[0][0]
        raise TaskError(f"two questions have the id {twice!r}; give each its own")
    done = {prediction.id: prediction for prediction in known if prediction.id in wanted}
    asker = _Asker(task, model, dialect, constrained, execution_guided, max_tokens, temperature, seed)
    log = events if events is not None else EventLog()
    with log.stage(stage, total=len(examples), unit="questions", done=len(done)) as progress:
        for chunk in _batches(task, [e for e in examples if e.id not in done], dialect, batch):
            failed = 0
            for prediction in asker.predict(chunk):
                done[prediction.id] = prediction
                failed += prediction.error == MODEL_ERROR
                if on_prediction is not None:
                    on_prediction(prediction)
                progress.advance()
            if failed == len(done):
                raise ModelError(f"{model.name}: not one of the first {failed} questions got an answer ({prediction.detail})")
        result = summarize([done[e.id] for e in examples], model.name, task.metric, dialect,
                           decoding_name(constrained, execution_guided))  # fmt: skip
        if result.truncated:
            progress.warn(f"{result.truncated} of {result.n} prompts were cut to fit the model's context")
        if result.cut:
            progress.warn(f"{result.cut} of {result.n} completions hit the limit of {max_tokens} tokens")
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

    @property
    def confidence(self) -> float | None:
        logprobs = [token.logprob for token in self.reply.logprobs]
        return min(1.0, math.exp(sum(logprobs) / len(logprobs))) if logprobs else None


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

    def _request(self, example: Example, number: int) -> Request:
        sampling = Sampling(
            temperature=0.0 if number == 0 else self.temperature,
            max_tokens=self.max_tokens,
            seed=None if number == 0 else self.seed * 1000 + number,
            logprobs=True,
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
        """2 runs and returns something, 1 runs, 0 decodes, -1 not even that."""
        if candidate.answer is None:
            return -1
        shown = self.task.show(example, candidate.answer)
        if "error" in shown:
            return 0
        return 2 if any(value is not None for row in shown.get("rows", ()) for value in row) else 1

    def _prediction(self, example: Example, chosen: _Candidate, number: int) -> Prediction:
        if chosen.answer is None:
            score = Score(correct=False, metrics={}, error=chosen.error)
        else:
            score = self.task.score(example, chosen.answer)
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
            confidence=chosen.confidence,
            truncated=chosen.reply.truncated_prompt_tokens,
            cut=chosen.reply.stop_reason == "length",
            candidate=number,
            tokens=chosen.reply.usage.completion_tokens,
            seconds=round(seconds, 6),
        )


def _batches(task: Task, examples: Sequence[Example], dialect: Dialect, size: int) -> Iterator[list[Example]]:
    """Batches of like prompt length out of windows of 16 batches: little padding, and progress stays representative."""

    def length(example: Example) -> int:
        return sum(len(message.content) for message in task.messages(example, dialect))

    for start in range(0, len(examples), 16 * size):
        window = sorted(examples[start : start + 16 * size], key=length)
        for first in range(0, len(window), size):
            yield window[first : first + size]
