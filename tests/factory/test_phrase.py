"""Phrasing: paid once, kept when it is one question that still names every value; then answered without seeing the query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agents.chat import Reply, Request, Usage
from factory.events import EventLog
from factory.generate import generate
from factory.ledger import Ledger
from factory.phrase import phrase
from factory.settings import DistillSettings
from factory.tasks.task import Example
from factory.teacher import TeacherPlan
from tests.factory.toy import SumTask, solve

PLAN = TeacherPlan("http://x/v1#m", "http", "m", "", "http://x/v1")
SETTINGS = DistillSettings(in_flight=2)


class Phraser:
    """Says what it is told for each id, and solves sums when asked without the instruction."""

    name = "phraser"

    def __init__(self, said: dict[str, str]) -> None:
        self.said, self.asked = said, []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        for index, request in enumerate(requests):
            self.asked.append(request)
            text = self.said[request.id] if request.messages[0].role == "system" else solve(request.messages[-1].content)
            yield index, Reply(id=request.id, text=text, usage=Usage(prompt_tokens=1, completion_tokens=1))

    def close(self) -> None:
        pass


def draft(name: str, values: tuple[str, ...] = ()) -> Example:
    return Example(name, f"the sum of {name}", None, "c", "3", "train", {"values": values})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_only_one_question_with_every_value_is_kept(ledger: Ledger) -> None:
    said = {"a": ' "Who won in KÖLN?" ', "b": "Sure!\nWho won?", "c": "  ", "d": "Who won?", "e": "x" * 500}
    drafts = [draft("a", ("Köln",)), draft("b"), draft("c"), draft("d", ("Köln",)), draft("e")]
    events = EventLog()
    found = phrase(drafts, Phraser(said), PLAN, ledger, SETTINGS, events)
    assert [(e.id, e.question, e.reference) for e in found.examples] == [("a", "Who won in KÖLN?", "3")]
    assert found.drops == {"not-one-question": 2, "empty": 1, "value-lost": 1}
    assert ledger.drops("phrase") == {"phrase": dict(found.drops)}
    assert sum(e["n"] for e in events.events if e["kind"] == "drop") == 4


def test_a_question_is_paid_once_and_continues(ledger: Ledger) -> None:
    teacher = Phraser({name: f"{name}?" for name in "abcd"})
    drafts = [draft(name) for name in "abcd"]
    phrase(drafts[:2], teacher, PLAN, ledger, SETTINGS, EventLog())
    again = phrase(drafts, teacher, PLAN, ledger, SETTINGS, EventLog())
    assert len(teacher.asked) == 4
    assert [e.question for e in again.examples] == ["a?", "b?", "c?", "d?"]
    assert (again.stats.reused, again.stats.answered) == (2, 2)


def test_the_answer_is_given_without_the_query_and_must_agree_with_it(ledger: Ledger) -> None:
    teacher = Phraser({"right": "1 + 2", "wrong": "1 + 3"})
    found = phrase([draft("right"), draft("wrong")], teacher, PLAN, ledger, SETTINGS, EventLog())
    stats = generate(SumTask(), found.examples, teacher, PLAN, ledger, SETTINGS, EventLog())
    assert stats.reasons == {"ok": 1, "wrong-sum": 1}
    answering = [r for r in teacher.asked if r.messages[0].role == "user"]
    assert [r.messages[-1].content for r in answering] == ["1 + 2", "1 + 3"]
    assert ledger.totals().calls == 4


def test_templates_keep_their_plain_words(ledger: Ledger) -> None:
    plan = replace(PLAN, kind="templates")
    assert phrase([draft("a")], Phraser({}), plan, ledger, SETTINGS, EventLog()).examples == [draft("a")]
