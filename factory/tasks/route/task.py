"""The task `route`: what somebody says in, one of a set's labels out, or out of scope.

Does: join sources, label sets, prompts and scoring into the Task protocol.
Does not: hold any of them; see the modules beside this one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from agents.chat import Message, TokenLogprob
from agents.confidence import whole_probability
from agents.constrain import Constraint
from factory.tasks.route import sources
from factory.tasks.route.given import edge_of, opened
from factory.tasks.route.labels import OOS_TOKEN, OUT_OF_SCOPE, LabelSet
from factory.tasks.route.prompt import PROMPT_TOKENS, opening, render_prompt
from factory.tasks.route.summary import summarize, thresholds
from factory.tasks.route.unlabelled import read_unlabelled
from factory.tasks.route.weigh import ALTERNATIVES, outside, weigh
from factory.tasks.task import DatasetCard, DataSource, Dialect, Example, Reliability, Score, Summary, TaskError, Variant, Verdict

if TYPE_CHECKING:
    from agents.card import Card
    from agents.choose import Token
    from factory.predictions import Prediction


class RouteTask:
    """See `factory.tasks.task.Task`; an example's context is a `LabelSet`, its canonical answer a label or `out_of_scope`."""

    name = "route"
    version = 1
    metric = "in-scope accuracy"
    """Share of utterances that belong to a label and get it; those that belong to none are scored apart."""
    datasets: Mapping[str, str] = sources.DATASETS

    def load(self, source: DataSource) -> tuple[list[Example], DatasetCard]:
        return sources.load(source)

    def drafts(self, source: DataSource, n: int, seed: int) -> list[Example]:
        raise TaskError("the route task has nothing to sample questions from; give --dataset, or your own --questions")

    def others(self, source: DataSource) -> list[Example]:
        return sources.others(source)

    def validation_split(self, source: DataSource) -> str:
        return "validation"

    def messages(self, example: Example, dialect: Dialect) -> tuple[Message, ...]:
        return render_prompt(_labels(example), example.question, dialect)

    def encode(self, example: Example, answer: str, dialect: Dialect) -> str:
        return _labels(example).encode(answer, dialect)

    def opening(self, example: Example) -> Message:
        """`<route> clinc<q>`; see `OpensPrompts`."""
        return opening(_labels(example))

    def unlabelled(self, path: Path, examples: Sequence[Example]) -> tuple[list[Example], DatasetCard]:
        """Rows of {"question": …, "set": …}; see `TakesUnlabelled`."""
        return read_unlabelled(path, examples)

    def variant(self, example: Example, answer: str, dialect: Dialect, random: Random) -> Variant:
        """The utterance with some words lost; see `HasVariants`."""
        thinned = replace(example, question=lose_words(example.question, random))
        return Variant(thinned.question, self.messages(thinned, dialect), self.encode(thinned, answer, dialect))

    def decode(self, example: Example, completion: str, dialect: Dialect) -> str:
        return _labels(example).decode(completion, dialect)

    def constraint(self, example: Example, dialect: Dialect) -> Constraint | None:
        return _labels(example).constraint(dialect)

    def special_tokens(self, dialect: Dialect) -> tuple[str, ...]:
        return (*PROMPT_TOKENS, OOS_TOKEN) if dialect == "compact" else ()

    def corpus(self, examples: Sequence[Example], dialect: Dialect) -> Sequence[str]:
        """Prompts, and every completion that may be asked for."""
        sets = {id(e.context): _labels(e) for e in examples}
        texts = [text for labels in sets.values() for text in labels.completions(dialect)]
        for example in examples:
            texts.append("\n".join(message.content for message in self.messages(example, dialect)))
        return texts

    def verify(self, example: Example, answer: str) -> Verdict:
        """ok when the answer is the reference; without one, when it is a label of the set."""
        labels = _labels(example)
        if answer not in labels.answers:
            return Verdict(ok=False, reason="unknown-label", detail=f"{answer[:80]!r} is no label of {labels.id}")
        if example.reference is not None and answer != example.reference:
            return Verdict(ok=False, reason="wrong-label", detail=f"{answer!r}, not {example.reference!r}")
        return Verdict(ok=True)

    def vote_key(self, example: Example, answer: str) -> str | None:
        return answer if answer in _labels(example).answers else None

    def score(self, example: Example, answer: str) -> Score:
        right = answer == example.reference
        outside = example.reference == OUT_OF_SCOPE
        error = (
            None if right else "missed-out-of-scope" if outside else "false-alarm" if answer == OUT_OF_SCOPE else "wrong-label"
        )
        return Score(correct=right, metrics={"out-of-scope recall" if outside else self.metric: right}, error=error)

    def overlap_keys(self, example: Example) -> Mapping[str, str]:
        """ "exact": the same words, whatever the set (a set's validation text must not train another set either)."""
        words = " ".join(re.findall(r"\w+", example.question.lower())) or example.question
        return {"exact": hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:32]}

    alternatives = ALTERNATIVES

    def counts(self, example: Example) -> bool:
        """Utterances of no label are scored apart."""
        return example.reference != OUT_OF_SCOPE

    def measures(self, example: Example, answer: str, walk: Sequence[Token], dialect: Dialect) -> Mapping[str, float]:
        return weigh(_labels(example), dialect, answer, walk)

    def sure(self, logprobs: Sequence[TokenLogprob]) -> float | None:
        return whole_probability(logprobs)

    def summarize(self, predictions: Sequence[Prediction], reliability: Reliability = ()) -> Summary:
        return summarize(predictions, reliability)

    def card_data(self, examples: Sequence[Example], predictions: Sequence[Prediction] = ()) -> dict[str, Any]:
        """{"sets": every label set of the examples, with the thresholds that the predictions give}."""
        sets = dict.fromkeys(_labels(example) for example in examples)
        own = {one: [p for p in predictions if p.context_id == one.id] for one in sets}
        return {"sets": [replace(one, outside_above=thresholds(found)).data() for one, found in own.items()]}

    def overrule(
        self, example: Example, dialect: Dialect, card: Card | None, given: Mapping[str, Any]
    ) -> Callable[[str, Sequence[TokenLogprob]], tuple[str, float] | None] | None:
        """With false_alarms= given: out of scope, where that is likely enough by the card's threshold."""
        labels = _labels(example)
        edge = edge_of(labels, card, given)
        return None if edge is None else lambda answer, logprobs: outside(labels, dialect, answer, logprobs, edge)

    def opened(self, card: Card | None, given: Mapping[str, Any]) -> LabelSet | None:
        return opened(card, given)

    def show(self, example: Example, answer: str) -> Mapping[str, Any]:
        labels = _labels(example)
        if answer not in labels.answers:
            return {"question": example.question, "answer": answer, "error": f"no label of {labels.id}"}
        return {"question": example.question, "answer": answer, "about": labels.labels.get(answer, "")}


def lose_words(text: str, random: Random, share: float = 0.12) -> str:
    """The text without a random share of its words (spaces divide them); as it is where fewer than two would be left."""
    words = text.split()
    kept = [word for word in words if random.random() >= share]
    return " ".join(kept) if len(kept) >= 2 else text


def _labels(example: Example) -> LabelSet:
    if not isinstance(example.context, LabelSet):
        raise TaskError(f"example {example.id!r} has no label set; read examples with the route task's own loader")
    return example.context
