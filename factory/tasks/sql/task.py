"""The task `sql`: a question about one database in, one SELECT statement out.

Does: join reader, linker, prompt, dialects, grammar, executor and scorer into the Task protocol.
Does not: hold any of them; see the modules beside this one.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from agents.chat import Message
from agents.constrain import Constraint
from factory.tasks.sql import score as scoring
from factory.tasks.sql import sources
from factory.tasks.sql.database import Database, ExecError
from factory.tasks.sql.link import Match, link
from factory.tasks.sql.one_table import SchemaForm, learned_form
from factory.tasks.task import DatasetCard, DataSource, Dialect, Example, Score, TaskError, Variant, Verdict

if TYPE_CHECKING:
    from agents.card import Card

LINKS_KEPT = 4096
ROWS_SHOWN = 10


class SqlTask:
    """See `factory.tasks.task.Task`; an example's context is a `Database`, its canonical answer SQLite's SQL."""

    name = "sql"
    version = 1
    metric = "execution"
    """Result multisets agree (ordered only under ORDER BY); without rows: logical form (WikiSQL), else exact set match."""
    datasets: Mapping[str, str] = sources.DATASETS

    def __init__(self) -> None:
        self._links: OrderedDict[tuple[Database, str], tuple[Match, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, source: DataSource) -> tuple[list[Example], DatasetCard]:
        return sources.load(source)

    def drafts(self, source: DataSource, n: int, seed: int) -> list[Example]:
        from factory.tasks.sql.sampler import sample_queries

        database = sources.open_database(source)
        made = sample_queries(database, n, seed)
        if not made:
            raise TaskError(f"--db {source.db}: no query over its tables returns anything; check that they have rows")
        return [
            Example(f"{database.id}-{i}", query.english, database, database.id, query.sql, "",
                    {"values": list(query.values), "template": query.template})
            for i, query in enumerate(made)
        ]  # fmt: skip

    def others(self, source: DataSource) -> list[Example]:
        return sources.others(source)

    def validation_split(self, source: DataSource) -> str:
        return sources.validation_split(source)

    def learned_form(self, card: Card | None) -> SchemaForm:
        return learned_form(card)

    def form_of(self, examples: Sequence[Example]) -> SchemaForm:
        return "single" if examples and all(_database(e).schema.single for e in examples) else "general"

    def matches(self, example: Example) -> tuple[Match, ...]:
        """Stored values that the question mentions; kept for the last thousands of examples."""
        key = (_database(example), example.question)
        with self._lock:
            if key in self._links:
                self._links.move_to_end(key)
                return self._links[key]
        found = link(_database(example), example.question)
        with self._lock:
            self._links[key] = found
            if len(self._links) > LINKS_KEPT:
                self._links.popitem(last=False)
        return found

    def messages(self, example: Example, dialect: Dialect) -> tuple[Message, ...]:
        from factory.tasks.sql.prompt import render_prompt

        return render_prompt(_database(example), example.question, self.matches(example), dialect)

    def encode(self, example: Example, answer: str, dialect: Dialect) -> str:
        from factory.tasks.sql.dialect import encode

        return encode(_database(example), example.question, self.matches(example), answer, dialect)

    def variant(self, example: Example, answer: str, dialect: Dialect, random: Random) -> Variant:
        """The columns (and tables) in another order; see `HasVariants`."""
        from factory.tasks.sql.dialect import encode
        from factory.tasks.sql.prompt import render_prompt

        database, matches = _database(example), self.matches(example)
        order = list(range(len(database.schema.columns)))
        random.shuffle(order)
        return Variant(
            example.question,
            render_prompt(database, example.question, matches, dialect, order),
            encode(database, example.question, matches, answer, dialect, order),
        )

    def decode(self, example: Example, completion: str, dialect: Dialect) -> str:
        from factory.tasks.sql.dialect import decode

        return decode(_database(example), example.question, self.matches(example), completion, dialect)

    def constraint(self, example: Example, dialect: Dialect) -> Constraint | None:
        from factory.tasks.sql.grammar import constraint

        return constraint(_database(example), example.question, self.matches(example), dialect)

    def special_tokens(self, dialect: Dialect) -> tuple[str, ...]:
        from factory.tasks.sql.dialect import special_tokens

        return special_tokens(dialect)

    def corpus(self, examples: Sequence[Example], dialect: Dialect) -> Sequence[str]:
        """Prompts, and the completions of examples with a reference that the dialect can say."""
        from factory.tasks.task import AnswerError

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
        """ok when the answer runs and agrees with the reference: same result when rows exist and the reference's result is
        not empty, else same logical form or components. Without a reference: it runs and, where rows exist, returns some."""
        return scoring.verify(_database(example), answer, example.reference)

    def vote_key(self, example: Example, answer: str) -> str | None:
        return scoring.vote_key(_database(example), answer)

    def score(self, example: Example, answer: str) -> Score:
        return scoring.score(_database(example), answer, example.reference)

    def overlap_keys(self, example: Example) -> Mapping[str, str]:
        """ "exact": the same words on the same database; "answer": the same normalised query on the same database."""
        words = " ".join(re.findall(r"\w+", example.question.lower()))
        keys = {"exact": _digest(example.context_id, words)}
        if example.reference is not None:
            keys["answer"] = _digest(example.context_id, scoring.normalised(_database(example), example.reference))
        return keys

    def show(self, example: Example, answer: str) -> Mapping[str, Any]:
        """{"question", "answer", "columns", "rows"} with at most ten rows, or {"question", "answer", "error"}."""
        shown: dict[str, Any] = {"question": example.question, "answer": answer}
        try:
            result = _database(example).execute(answer)
        except ExecError as error:
            return {**shown, "error": str(error)}
        if not _database(example).has_rows:
            return {**shown, "error": "this database has no rows to answer from"}
        return {**shown, "columns": list(result.columns), "rows": [list(row) for row in result.rows[:ROWS_SHOWN]]}


def _database(example: Example) -> Database:
    if not isinstance(example.context, Database):
        raise TaskError(f"example {example.id!r} has no database; read examples with the sql task's own loader")
    return example.context


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
