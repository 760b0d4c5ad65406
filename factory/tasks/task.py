"""The task protocol: what distilling, evaluating and running need to know about one narrow job.

Does: define Example, Verdict, Score and the Task protocol; no torch, no model calls.
Does not: read files or hold prompts; each task lives in its own module and is listed in `factory.tasks.TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from agents.chat import Message
from agents.constrain import Constraint

if TYPE_CHECKING:
    from agents.card import Card
    from agents.chat import TokenLogprob
    from agents.choose import Token
    from factory.predictions import Prediction

Dialect = Literal["plain", "compact"]
"""How prompt and answer are written. "plain": ordinary text for pretrained models and teachers. "compact": short
position tokens, lower case, for students trained from scratch. `Task.encode`/`decode` translate; the canonical
answer (for sql: SQL text) is what is stored, verified, scored and shown."""


Reliability = Sequence[tuple[float, float]]
"""Points of a card that turn a confidence into a probability."""


@dataclass(frozen=True)
class Example:
    """One question with what is needed to answer it.

    `context` is the task's own object (sql: a `Database`), shared between examples, named by `context_id`;
    `reference` is the canonical correct answer or None; `extra` carries reader-specific data (WikiSQL: the logical form).
    """

    id: str
    question: str
    context: Any
    context_id: str
    reference: str | None = None
    split: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Verdict(BaseModel):
    """Whether an answer may be learned from; `reason` is one of a small set of kebab-case words, `detail` a sentence."""

    model_config = ConfigDict(frozen=True)
    ok: bool
    reason: str = "ok"
    detail: str = ""


class Score(BaseModel):
    """One scored answer. `correct` is the headline metric; `metrics` hold every metric that applies (True/False);
    `error` is the error kind of a wrong answer, None when correct."""

    model_config = ConfigDict(frozen=True)
    correct: bool
    metrics: dict[str, bool]
    error: str | None = None


class Figure(BaseModel):
    """One measured number of a whole evaluation, with its 95 % interval where there is one."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    """what it was measured on"""
    about: str = ""
    """a sentence that says how to read it"""


class Confusion(BaseModel):
    """How often one answer was given where another was right."""

    model_config = ConfigDict(frozen=True)
    expected: str
    answer: str
    n: int


class Summary(BaseModel):
    """What a task says of a whole evaluation beyond the share of right answers."""

    model_config = ConfigDict(frozen=True)
    figures: dict[str, Figure] = Field(default_factory=dict)
    confusions: tuple[Confusion, ...] = ()
    """the most frequent ones first"""


class DataSource(BaseModel):
    """Where examples come from: a named dataset's directory and split, or a database file with optional questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dataset: str | None = None
    data_dir: Path | None = None
    """None means the copy bundled with the package."""
    split: str = "train"
    db: Path | None = None
    questions: Path | None = None
    functions: str | None = None
    """Functions that questions are about, for a task that calls them: a JSON file, or MODULE:OBJECT."""
    labels: Path | None = None
    """What `questions` may be answered with, for a task that chooses among labels."""
    card_data: dict[str, Any] = Field(default_factory=dict)
    """`task_data` of the card of the student that will be asked: its examples are read as it learned them."""
    table: str | None = None
    """The one table or view of `db` that is asked about; None is all of them."""
    form: Literal["single", "general"] | None = None
    """How a task that `HasForms` shows `db`; None is its general form."""
    limit: int | None = None
    """Keep the first N after a seeded shuffle; None keeps all, in file order."""
    seed: int = 0


class DatasetCard(BaseModel):
    """What is known of the data that was read, for the report and the card."""

    model_config = ConfigDict(frozen=True)
    name: str
    split: str
    license: str
    source: str
    sha256: str
    """Over the bytes of the files read."""
    n: int
    skipped: dict[str, int]
    """Rows that could not be used, counted by reason."""


class TaskError(Exception):
    """Bad input to a task (file, line, value): one sentence with the value, the choices and the next step."""


class AnswerError(Exception):
    """A completion that is not an answer; `reason` is the kebab-case error kind."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@runtime_checkable
class HasForms(Protocol):
    """A task with more than one form of prompt and answer: a student is asked in the one it learned."""

    def learned_form(self, card: Card | None) -> Literal["single", "general"]:
        """The form that a card's student was trained in."""
        ...

    def form_of(self, examples: Sequence[Example]) -> Literal["single", "general"]:
        """The form of these examples, for the card of a student trained on them."""
        ...


class Variant(NamedTuple):
    """A question put another way: its words, the prompt and the completion."""

    question: str
    messages: tuple[Message, ...]
    completion: str


@runtime_checkable
class HasVariants(Protocol):
    """A task that can put one question in several equal ways, so that a student does not learn what does not matter."""

    def variant(self, example: Example, answer: str, dialect: Dialect, random: Random) -> Variant:
        """One such way (sql: the columns in another order). Raises AnswerError as `encode` does."""
        ...


@runtime_checkable
class TakesUnlabelled(Protocol):
    """A task whose examples need nothing but a question and what the data set already brings."""

    def unlabelled(self, path: Path, examples: Sequence[Example]) -> tuple[list[Example], DatasetCard]:
        """The questions of a JSONL file as examples without a reference, in the contexts of `examples`, under ids that labelled
        ones never have. Raises TaskError naming file and line."""
        ...


@runtime_checkable
class OpensPrompts(Protocol):
    """A task whose prompts end with the question, so that a model of prompts can write questions."""

    def load(self, source: DataSource) -> tuple[list[Example], DatasetCard]: ...

    def messages(self, example: Example, dialect: Dialect) -> tuple[Message, ...]: ...

    def opening(self, example: Example) -> Message:
        """The compact prompt of an example up to its question."""
        ...


@runtime_checkable
class HasSetMetrics(Protocol):
    """A task with metrics of a whole set of answers that are no share of right ones (an F1)."""

    def set_metrics(self, answers: Sequence[tuple[Example, str | None]]) -> Mapping[str, float]:
        """Name -> value over (example, canonical answer; None: not decoded)."""
        ...


@runtime_checkable
class HasSummary(Protocol):
    """A task that reads more from a reply than its answer, and says more of an evaluation than a share of right ones."""

    alternatives: int
    """other tokens, with their log-probabilities, to ask for at every step of an answer (of models that run here)"""

    def counts(self, example: Example) -> bool:
        """Whether an example counts towards the headline; the others are in the summary alone."""
        ...

    def measures(self, example: Example, answer: str, walk: Sequence[Token], dialect: Dialect) -> Mapping[str, float]:
        """Numbers kept with a prediction, by name; "confidence" is how likely the answer is right. {} where nothing is known.

        `walk` holds what was written, token by token, and what else the constraint allowed there (`agents.choose.tokens_of`)."""
        ...

    def sure(self, logprobs: Sequence[TokenLogprob]) -> float | None:
        """The same "confidence" from a reply's own tokens alone, as a persona has them."""
        ...

    def summarize(self, predictions: Sequence[Prediction], reliability: Reliability = ()) -> Summary:
        """Figures and confusions of a whole evaluation; `reliability` is the card's (`agents.confidence.probability`)."""
        ...


@runtime_checkable
class HasCardData(Protocol):
    """A task that keeps something in its student's card and asks the student with it."""

    def card_data(self, examples: Sequence[Example], predictions: Sequence[Prediction] = ()) -> dict[str, Any]:
        """What a student trained on these examples must be asked with, as JSON; `predictions` are those of its final score."""
        ...

    def opened(self, card: Card | None, given: Mapping[str, Any]) -> Any:
        """What a persona is asked about (an example's context), from its card and what somebody gave it. Raises TaskError."""
        ...


@runtime_checkable
class CanOverrule(Protocol):
    """A task that may answer something else than the model's likeliest text, where somebody asks for that."""

    alternatives: int
    """other tokens that must be known for it, as in `HasSummary`"""

    def overrule(
        self, example: Example, dialect: Dialect, card: Card | None, given: Mapping[str, Any]
    ) -> Callable[[str, Sequence[TokenLogprob]], tuple[str, float] | None] | None:
        """What judges an answer by its log-probabilities (`agents.artifact.Asked`); None where nothing `given` asks for it."""
        ...


class Task(Protocol):
    """One narrow job. Everything here is cheap and needs no torch."""

    name: str
    version: int
    metric: str
    """Name of the headline metric that `Score.correct` means (it may depend on the data: sql uses execution when rows exist)."""
    datasets: Mapping[str, str]
    """Dataset name -> one line: what, size, licence, where from."""

    def load(self, source: DataSource) -> tuple[list[Example], DatasetCard]:
        """Read examples; raises TaskError naming file and line."""
        ...

    def drafts(self, source: DataSource, n: int, seed: int) -> list[Example]:
        """Up to n examples made from the source alone (sql: sampled queries), their questions in stiff plain words, with
        references; `extra["values"]` are texts a question must name. Raises TaskError where that cannot be done."""
        ...

    def others(self, source: DataSource) -> list[Example]:
        """Every example of the same source outside `source.split` that is here: what training must not overlap."""
        ...

    def validation_split(self, source: DataSource) -> str:
        """The split of the same source that models are chosen and scored on when nobody names one."""
        ...

    def messages(self, example: Example, dialect: Dialect) -> tuple[Message, ...]:
        """The prompt for one example."""
        ...

    def encode(self, example: Example, answer: str, dialect: Dialect) -> str:
        """Canonical answer -> completion text to train on; raises AnswerError when the dialect cannot say it."""
        ...

    def decode(self, example: Example, completion: str, dialect: Dialect) -> str:
        """Completion text -> canonical answer; raises AnswerError."""
        ...

    def constraint(self, example: Example, dialect: Dialect) -> Constraint | None:
        """Grammar of every acceptable completion of this example in this dialect."""
        ...

    def special_tokens(self, dialect: Dialect) -> tuple[str, ...]:
        """Tokens a from-scratch tokenizer for this dialect must hold whole."""
        ...

    def corpus(self, examples: Sequence[Example], dialect: Dialect) -> Sequence[str]:
        """Texts to train a from-scratch tokenizer on."""
        ...

    def verify(self, example: Example, answer: str) -> Verdict:
        """Proves an answer against the reference (when there is one), else only that it is usable (sql: runs)."""
        ...

    def vote_key(self, example: Example, answer: str) -> str | None:
        """Two answers agree when their keys are equal (sql: hash of the result multiset); None: cannot vote."""
        ...

    def score(self, example: Example, answer: str) -> Score:
        """Scores a canonical answer against the reference; an answer that did not decode is scored by the caller as wrong."""
        ...

    def overlap_keys(self, example: Example) -> Mapping[str, str]:
        """Kind -> key; a training example sharing a key with a held-out one overlaps (kinds: "exact", "answer")."""
        ...

    def show(self, example: Example, answer: str) -> Mapping[str, Any]:
        """What a person wants to see: {"question", "answer", "columns", "rows"} or {"question", "answer", "error"}; without
        "rows" where an answer is not run (route)."""
        ...
