"""A task of sums for tests: "3 + 4" in, "7" out; a whole Task without SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents.chat import Message
from agents.constrain import Constraint
from factory.tasks.task import AnswerError, DatasetCard, DataSource, Dialect, Example, Score, Verdict


class SumTask:
    """Answers are whole numbers; in the compact dialect they are written in digits apart and only below 1000."""

    name = "sum"
    version = 1
    metric = "equal"
    datasets: Mapping[str, str] = {}

    def load(self, source: DataSource) -> tuple[list[Example], DatasetCard]:
        raise NotImplementedError

    def messages(self, example: Example, dialect: Dialect) -> tuple[Message, ...]:
        asked = example.question if dialect == "plain" else f"<q>{example.question}"
        return (Message(role="user", content=asked),)

    def encode(self, example: Example, answer: str, dialect: Dialect) -> str:
        if dialect == "plain":
            return answer
        if int(answer) >= 1000:
            raise AnswerError("too-large", answer)
        return " ".join(answer)

    def decode(self, example: Example, completion: str, dialect: Dialect) -> str:
        text = completion.strip() if dialect == "plain" else completion.replace(" ", "")
        if not text.isdigit():
            raise AnswerError("not-a-number", text)
        return text

    def constraint(self, example: Example, dialect: Dialect) -> Constraint | None:
        return None

    def special_tokens(self, dialect: Dialect) -> tuple[str, ...]:
        return ()

    def corpus(self, examples: Sequence[Example], dialect: Dialect) -> Sequence[str]:
        return [example.question for example in examples]

    def verify(self, example: Example, answer: str) -> Verdict:
        if example.reference is not None and int(answer) != int(example.reference):
            return Verdict(ok=False, reason="wrong-sum", detail=f"{answer} is not {example.reference}")
        return Verdict(ok=True)

    def vote_key(self, example: Example, answer: str) -> str | None:
        return str(int(answer))

    def score(self, example: Example, answer: str) -> Score:
        same = self.verify(example, answer).ok
        return Score(correct=same, metrics={"equal": same}, error=None if same else "wrong")

    def overlap_keys(self, example: Example) -> Mapping[str, str]:
        keys = {"exact": f"{example.context_id}|{example.question.lower()}"}
        if example.reference is not None:
            keys["answer"] = f"{example.context_id}|{int(example.reference)}"
        return keys

    def show(self, example: Example, answer: str) -> Mapping[str, Any]:
        return {"question": example.question, "answer": answer}


def sums(n: int, *, labelled: bool = True, context: str | None = None) -> list[Example]:
    """n different sums, each in a context of its own unless one is named."""
    return [
        Example(f"s{i}", f"{i} + {7 * i}", None, context or f"c{i}", str(8 * i) if labelled else None, "train") for i in range(n)
    ]


def solve(question: str) -> str:
    """What a perfect teacher says."""
    a, _, b = question.split()
    return str(int(a) + int(b))
