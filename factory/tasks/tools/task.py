"""The task `tools`: a request (or conversation) and typed functions in, calls out, or none.

Does: join readers, prompts, dialects, grammars and scorer into the Task protocol.
Does not: hold any of them; see the modules beside this one. It calls no function.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from agents.chat import Message
from agents.constrain import Constraint
from factory.tasks.task import AnswerError, DatasetCard, DataSource, Dialect, Example, Score, TaskError, Variant, Verdict
from factory.tasks.tools import calls, compact, grammar, own, plain, sources
from factory.tasks.tools import score as scoring
from factory.tasks.tools.functions import Toolset, reordered
from factory.tasks.tools.view import View

VIEWS_KEPT = 4096
WORDS_LOST = 0.06
"""Share of the words a variant of a request loses."""
ARGUMENTS_LOST = 0.15
"""Share of the optional arguments nobody gives that a variant's functions do not have."""


class ToolsTask:
    """See `factory.tasks.task.Task`; an example's context is a `Toolset`, its canonical answer JSON calls (`calls.py`)."""

    name = "tools"
    version = 4
    """2 shows more of what was said before; 3 marks the words that name functions, arguments and choices; 4 orders arguments by
    name and finds more names and times"""
    metric = "exact"
    """Exactly the calls of the reference: functions, and all arguments after the rules of `calls.py`; `[]` where none fits."""
    datasets: Mapping[str, str] = sources.DATASETS

    def __init__(self) -> None:
        self._views: OrderedDict[tuple[Toolset, str], View] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, source: DataSource) -> tuple[list[Example], DatasetCard]:
        return sources.load(source)

    def drafts(self, source: DataSource, n: int, seed: int) -> list[Example]:
        from factory.tasks.tools.sampler import INSTRUCTION, sample_requests

        if source.functions is None:
            raise TaskError("no functions given; use --functions FILE.json or --functions MODULE:OBJECT")
        functions = own.open_functions(source.functions)
        made = sample_requests(functions, n, seed, dt.date.today())
        return [
            Example(f"{source.functions}-{i}", text, toolset, toolset.id, answer, "",
                    {"values": list(values), "kind": "none" if answer == "[]" else "call", "instruction": INSTRUCTION,
                     "row": {"functions": list(toolset.by_name), "today": f"{toolset.today}", "calls": json.loads(answer)}})
            for i, (text, toolset, answer, values) in enumerate(made)
        ]  # fmt: skip

    def others(self, source: DataSource) -> list[Example]:
        return sources.others(source)

    def validation_split(self, source: DataSource) -> str:
        return sources.validation_split(source)

    def view(self, example: Example) -> View:
        """The request as the compact dialect shows it; kept for the last thousands of examples."""
        key = (scoring.toolset_of(example), example.question)
        with self._lock:
            found = self._views.pop(key, None)
            if found is None:
                found = View(*key)
            self._views[key] = found
            if len(self._views) > VIEWS_KEPT:
                self._views.popitem(last=False)
        return found

    def messages(self, example: Example, dialect: Dialect) -> tuple[Message, ...]:
        if dialect == "plain":
            return plain.messages(scoring.toolset_of(example), example.question)
        return (Message(role="user", content=self.view(example).prompt()),)

    def encode(self, example: Example, answer: str, dialect: Dialect) -> str:
        if dialect == "plain":
            return calls.write(calls.ordered(scoring.toolset_of(example), calls.read(answer)))
        return compact.encode(self.view(example), answer, scoring.variants_of(example))

    def variant(self, example: Example, answer: str, dialect: Dialect, random: Random) -> Variant:
        """The functions and their arguments in another order, and so under other numbers, some optional arguments that the answer
        does not give left out, and some words lost that name nothing; see `HasVariants`."""
        toolset = scoring.toolset_of(example)
        given = {(call.name, name) for call in calls.read(answer) for name in call.arguments}
        functions = [
            reordered(function, given, ARGUMENTS_LOST, random)
            for function in random.sample(toolset.functions, len(toolset.functions))
        ]
        other = replace(example, context=replace(toolset, functions=tuple(functions)))
        try:
            thinned = replace(other, question=self.view(other).thinned(random, WORDS_LOST))
            self.encode(thinned, answer, "compact")
        except AnswerError:  # a value was spelt with a lost word
            thinned = other
        return Variant(thinned.question, self.messages(thinned, dialect), self.encode(thinned, answer, dialect))

    def decode(self, example: Example, completion: str, dialect: Dialect) -> str:
        return calls.write(plain.decode(completion) if dialect == "plain" else compact.decode(self.view(example), completion))

    def constraint(self, example: Example, dialect: Dialect) -> Constraint | None:
        return grammar.plain(scoring.toolset_of(example)) if dialect == "plain" else grammar.compact(self.view(example))

    def special_tokens(self, dialect: Dialect) -> tuple[str, ...]:
        return compact.TOKENS if dialect == "compact" else ()

    def corpus(self, examples: Sequence[Example], dialect: Dialect) -> Sequence[str]:
        """Prompts, and the completions of examples with a reference that the dialect can say."""
        texts: list[str] = []
        for example in examples:
            texts.append("\n".join(message.content for message in self.messages(example, dialect)))
            if example.reference is not None:
                try:
                    texts.append(self.encode(example, example.reference, dialect))
                except AnswerError:
                    continue
        return texts

    def verify(self, example: Example, answer: str) -> Verdict:
        return scoring.verify(example, answer)

    def vote_key(self, example: Example, answer: str) -> str | None:
        return scoring.vote_key(example, answer)

    def score(self, example: Example, answer: str) -> Score:
        return scoring.score(example, answer)

    def set_metrics(self, answers: Sequence[tuple[Example, str | None]]) -> Mapping[str, float]:
        """ "argument_f1": over all arguments of the set (micro), functions matched by name; an argument that says its default is
        none."""
        counts = [scoring.argument_counts(example, answer or "") for example, answer in answers]
        right, given, wanted = (sum(column) for column in zip(*counts, strict=True))
        return {"argument_f1": 2 * right / (given + wanted)} if wanted else {}

    def overlap_keys(self, example: Example) -> Mapping[str, str]:
        """ "exact": the same words said to the same functions. Equal calls alone are no overlap: many ask for the same thing."""
        words = " ".join(re.findall(r"\w+", example.question.lower()))
        names = " ".join(sorted(scoring.toolset_of(example).by_name))
        digest = hashlib.sha256(f"{names}\n{words}".encode("utf-8", "replace")).hexdigest()
        return {"exact": digest[:32]}

    def show(self, example: Example, answer: str) -> Mapping[str, Any]:
        """{"question", "answer", "columns", "rows"}: one row a call; or with "error" when a call does not fit its schema."""
        shown: dict[str, Any] = {"question": example.question, "answer": answer}
        try:
            found = calls.read(answer)
        except AnswerError as error:
            return {**shown, "error": str(error)}
        bad = scoring.invalid(scoring.toolset_of(example), found)
        if bad is not None:
            return {**shown, "error": bad[1]}
        rows = [[call.name, ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())] for call in found]
        return {**shown, "columns": ["function", "arguments"], "rows": rows}
