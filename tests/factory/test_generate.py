"""Generating: each answer is paid once, judged, voted on; budget and failures stop with a reason and the next run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agents.chat import Reply, Request, Usage
from factory.ask import FAILURES
from factory.events import EventLog
from factory.generate import generate
from factory.ledger import Ledger
from factory.recorded import RecordedModel
from factory.settings import DistillSettings
from factory.teacher import TeacherPlan, open_teacher, resolve_teacher
from tests.factory.toy import SumTask, solve, sums

TASK = SumTask()
REMOTE = TeacherPlan("http://x/v1#m", "http", "m", "", "http://x/v1", in_flight=4)
PRICED = replace(REMOTE, price_in=0.0, price_out=1000.0)


class Oracle:
    """A ChatModel that computes its answers and counts what it was asked."""

    name = "oracle"

    def __init__(self, say: Callable[[Request], Reply | str]) -> None:
        self.say = say
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        for index, request in enumerate(requests):
            self.asked.append(request)
            said = self.say(request)
            if isinstance(said, str):
                usage = Usage(prompt_tokens=5, completion_tokens=10)
                said = Reply(text=said, usage=usage)
            yield index, said.model_copy(update={"id": request.id})

    def close(self) -> None:
        pass


def right(request: Request) -> str:
    return solve(request.messages[-1].content)


def run(examples, teacher, ledger, plan=REMOTE, **settings):
    events = EventLog()
    return generate(TASK, examples, teacher, plan, ledger, DistillSettings(**settings), events), events


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_nothing_is_asked_twice(ledger: Ledger) -> None:
    teacher = Oracle(right)
    first, events = run(sums(30), teacher, ledger)
    assert (first.answered, first.reused, first.failed, first.stopped) == (30, 0, 0, None)
    assert first.reasons == {"ok": 30}
    progress = [e for e in events.events if e["kind"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 30
    again, _ = run(sums(40), teacher, ledger)
    assert (again.answered, again.reused) == (10, 30)
    assert len(teacher.asked) == 40
    assert again.reasons == {"ok": 40}


def test_equal_prompts_share_one_answer_and_are_judged_each(ledger: Ledger) -> None:
    one, two = sums(2)[1], replace(sums(2)[1], id="other", reference="99")
    teacher = Oracle(right)
    stats, _ = run([one, two], teacher, ledger)
    assert len(teacher.asked) == stats.answered == stats.reused == 1
    assert stats.reasons == {"ok": 1, "wrong-sum": 1}


def test_samples_are_asked_with_seeds_of_their_own(ledger: Ledger) -> None:
    teacher = Oracle(right)
    stats, _ = run(sums(3), teacher, ledger, samples=4, temperature=0.5, seed=2)
    assert stats.answered == 12
    assert sorted(r.sampling.seed for r in teacher.asked if r.id == "s1") == [128, 129, 130, 131]
    assert {r.sampling.temperature for r in teacher.asked} == {0.5}


def test_answers_are_decoded_and_verified_with_their_reason(ledger: Ledger) -> None:
    texts = {"s0": "zero", "s1": "9", "s2": " 16 ", "s3": "24"}
    replies = {"s3": Reply(text="24", stop_reason="length")}
    stats, _ = run(sums(4), Oracle(lambda r: replies.get(r.id, texts[r.id])), ledger)
    assert stats.reasons == {"not-a-number": 1, "wrong-sum": 1, "ok": 1, "cut-off": 1}
    assert ledger.verdicts()["s2"][0].canonical == "16"


@pytest.mark.parametrize(
    ("said", "reasons"),
    [
        (["8", "8", "9"], {"ok": 2, "minority": 1}),
        (["8", "08", "9"], {"ok": 2, "minority": 1}),
        (["8", "7", "9"], {"no-majority": 3}),
        (["8", "8", "9", "9"], {"no-majority": 4}),
        (["8", "x", "y"], {"no-majority": 1, "not-a-number": 2}),
        (["8", "8", "x"], {"ok": 2, "not-a-number": 1}),
    ],
)
def test_without_a_reference_the_majority_decides(ledger: Ledger, said: list[str], reasons: dict[str, int]) -> None:
    example = sums(2, labelled=False)[1:]
    stats, _ = run(example, Oracle(lambda r: said[r.sampling.seed]), ledger, samples=len(said))
    assert stats.reasons == reasons
    again, _ = run(example, Oracle(lambda r: "?"), ledger, samples=len(said))
    assert again.reasons == reasons


def test_more_samples_turn_a_vote(ledger: Ledger) -> None:
    example = sums(2, labelled=False)[1:]
    said = ["8", "7", "7"]
    first, _ = run(example, Oracle(lambda r: said[r.sampling.seed]), ledger, samples=2)
    assert first.reasons == {"no-majority": 2}
    second, _ = run(example, Oracle(lambda r: said[r.sampling.seed]), ledger, samples=3)
    assert second.answered == 1
    assert second.reasons == {"ok": 2, "minority": 1}


def test_one_answer_without_reference_is_kept_and_said_to_be_unproven(ledger: Ledger) -> None:
    stats, events = run(sums(3, labelled=False), Oracle(right), ledger)
    assert stats.unproven == 3
    assert stats.reasons == {"ok": 3}
    assert any("no reference" in e.get("message", "") for e in events.events)


def test_the_budget_is_never_exceeded_and_more_budget_continues(ledger: Ledger) -> None:
    """An answer costs 0.01; one in flight may cost 0.512 at most, so that much stays unspent."""
    teacher = Oracle(right)
    stats, events = run(sums(100), teacher, ledger, PRICED, budget_usd=1.0)
    assert stats.stopped == "budget"
    assert "--budget-usd" in stats.message
    assert any(e.get("message") == stats.message for e in events.events)
    assert 1.0 - 0.512 - 1e-9 <= stats.spent_usd <= 1.0
    assert stats.answered == len(teacher.asked) == 49
    more, _ = run(sums(100), teacher, ledger, PRICED, budget_usd=10.0)
    assert (more.stopped, more.answered, more.reused) == (None, 51, 49)
    assert more.spent_usd == pytest.approx(1.0)
    assert len(teacher.asked) == 100


def test_the_budget_holds_when_every_answer_is_as_dear_as_can_be(ledger: Ledger) -> None:
    dear = Oracle(lambda r: Reply(text="1", usage=Usage(prompt_tokens=9, completion_tokens=512)))
    stats, _ = run(sums(100), dear, ledger, PRICED, budget_usd=3.0)
    assert stats.stopped == "budget"
    assert stats.answered == 5
    assert stats.spent_usd <= 3.0


def test_failed_requests_are_counted_and_asked_again(ledger: Ledger) -> None:
    bad = {"s3", "s9"}
    flaky = Oracle(lambda r: Reply(stop_reason="error", error="status 500") if r.id in bad else right(r))
    stats, _ = run(sums(12), flaky, ledger)
    assert (stats.answered, stats.failed, stats.stopped) == (10, 2, None)
    assert stats.errors == {"status 500": 2}
    healthy = Oracle(right)
    again, _ = run(sums(12), healthy, ledger)
    assert {r.id for r in healthy.asked} == bad
    assert (again.answered, again.reused, again.failed) == (2, 10, 0)


def test_a_dead_endpoint_stops_with_a_reason(ledger: Ledger) -> None:
    dying = Oracle(lambda r: right(r) if int(r.id[1:]) < 30 else Reply(stop_reason="error", error="connection refused"))
    stats, _ = run(sums(200), dying, ledger)
    assert stats.stopped == "endpoint"
    assert "connection refused" in stats.message
    assert len(dying.asked) == 30 + FAILURES
    again, _ = run(sums(200), Oracle(right), ledger)
    assert (again.stopped, again.reused, again.answered) == (None, 30, 170)


def test_a_few_requests_that_all_fail_are_a_stop_too(ledger: Ledger) -> None:
    stats, _ = run(sums(3), Oracle(lambda r: Reply(stop_reason="error", error="status 401")), ledger)
    assert stats.stopped == "endpoint"


def test_an_interrupt_goes_through_with_everything_stored(ledger: Ledger) -> None:
    def say(request: Request) -> str:
        if request.id == "s7":
            raise KeyboardInterrupt
        return right(request)

    with pytest.raises(KeyboardInterrupt):
        run(sums(20), Oracle(say), ledger)
    assert ledger.totals().calls == 7
    rest = Oracle(right)
    run(sums(20), rest, ledger)
    assert len(rest.asked) == 13


def test_an_answer_stored_but_not_yet_judged_is_judged_by_the_next_run(tmp_path: Path) -> None:
    """As after a kill between the two writes."""
    with Ledger(tmp_path / "a.sqlite") as source:
        run(sums(5), Oracle(right), source)
    with Ledger(tmp_path / "b.sqlite") as ledger:
        assert ledger.import_answers(tmp_path / "a.sqlite") == 5
        assert ledger.verdicts() == {}
        stats, _ = run(sums(5), Oracle(right), ledger)
        assert (stats.answered, stats.reused, stats.reasons) == (0, 5, {"ok": 5})


def test_recorded_answers_come_through_the_same_interface(ledger: Ledger) -> None:
    examples = [*sums(5), replace(sums(2)[1], id="twin", reference="9"), replace(sums(7)[6], reference=None)]
    plan = resolve_teacher("recorded", DistillSettings())
    stats, _ = run(examples, open_teacher(plan, examples), ledger, plan, samples=3)
    assert (stats.answered, stats.failed, stats.stopped) == (6, 1, None)
    assert stats.reasons == {"ok": 6}
    assert stats.cost_usd == 0
    model = RecordedModel({})
    again, _ = run(examples, model, ledger, plan)
    assert (again.reused, model.missing) == (6, 1)
