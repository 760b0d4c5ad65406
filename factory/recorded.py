"""The `recorded` teacher: stored answers replayed through the same interface as any model.

Does: read stored answers, answer each request by its id (the example's) or by its prompt, count what is missing.
Does not: think. A JSONL row is {"id": example id, "answer": text} or {"question": text, "answer": text}; a question may be
narrowed with "context_id" when several tables or databases are asked the same. Other keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agents.chat import Message, ModelError, Reply, Request, Usage
from factory.tasks.task import Example


class RecordedModel:
    """A ChatModel that looks answers up: by `Request.id`, else by `prompt_hash(Request.messages)`.

    A request without a stored answer gets a Reply with stop_reason "error" and is counted in `missing`.
    """

    def __init__(self, answers: Mapping[str, str], name: str = "recorded", unused: int = 0) -> None:
        """`unused`: stored rows that belong to none of the examples, for whoever reports on the run."""
        self.name = name
        self.answers = answers
        self.unused = unused
        self.missing = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        for index, request in enumerate(requests):
            text = self.answers.get(request.id)
            if text is None:
                text = self.answers.get(prompt_hash(request.messages))
            if text is None:
                self.missing += 1
                yield index, Reply(id=request.id, stop_reason="error", model=self.name,
                                   error=f"no stored answer for {request.id!r}")  # fmt: skip
            else:
                yield index, Reply(id=request.id, text=text, usage=Usage(cost_usd=0.0), model=self.name)

    def close(self) -> None:
        """Nothing is held open."""


def prompt_hash(messages: Sequence[Message]) -> str:
    """sha256 (hex) of a prompt's roles and texts."""
    turns = [[message.role, message.content] for message in messages]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()


def references(examples: Sequence[Example]) -> dict[str, str]:
    """Example id -> the reference answer that came with the data (its annotators'), where there is one."""
    return {example.id: example.reference for example in examples if example.reference is not None}


def read_answers(path: Path, examples: Sequence[Example]) -> tuple[dict[str, str], int]:
    """Stored answers of a JSONL file, by example id, and the number of rows that belong to none of `examples`.

    Raises ModelError naming file and line for a row that is not as described above.
    """
    ids = {example.id for example in examples}
    by_question: dict[tuple[str, str | None], list[str]] = {}
    for example in examples:
        for context in (example.context_id, None):
            by_question.setdefault((_plain(example.question), context), []).append(example.id)
    answers: dict[str, str] = {}
    unused = 0
    for number, row in _rows(path):
        if "id" in row:
            found = [row["id"]] if row["id"] in ids else []
        else:
            found = by_question.get((_plain(row["question"]), row.get("context_id")), [])
        unused += not found
        for example_id in found:
            if answers.setdefault(example_id, row["answer"]) != row["answer"]:
                raise ModelError(f"{path}, line {number}: a second, different answer for {example_id!r}; keep one")
    return answers, unused


def check_answers(path: Path) -> int:
    """Number of stored answers in a JSONL file; raises ModelError naming file and line, before anything costly."""
    count = sum(1 for _ in _rows(path))
    if count == 0:
        raise ModelError(f'{path}: holds no answers; expected lines like {{"id": "…", "answer": "…"}}')
    return count


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    expected = 'expected {"id": "…", "answer": "…"} or {"question": "…", "answer": "…"}'
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ModelError(f"{path}, line {number}: not JSON ({error.msg}); {expected}") from None
                named = isinstance(row, dict) and ("id" in row or "question" in row)
                if not named or not all(isinstance(row.get(k, ""), str) for k in ("id", "question", "answer", "context_id")):
                    raise ModelError(f"{path}, line {number}: {line.strip()[:60]!r} is no stored answer; {expected}")
                if "answer" not in row:
                    raise ModelError(f'{path}, line {number}: has no "answer"; {expected}')
                yield number, row
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give recorded:FILE.jsonl") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path}: is not UTF-8 text; {expected}") from None


def _plain(question: str) -> str:
    return " ".join(question.split()).lower()
