"""Prompts -> answers: ask the teacher for every example, once, whatever happens in between, and judge what it says.

Does: ask in the teacher's dialect, under the grammar where the plan says so, decode and verify each answer, vote where there is
no reference; resumes from the ledger.
Does not: choose or deduplicate rows (`rows.py`), retry (the model does), or open the teacher (`teacher.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from agents.chat import ChatModel, Request, Sampling
from factory.ask import Ask, GenerateStats, ask_all
from factory.events import EventLog
from factory.ledger import Answer, Judged, Ledger
from factory.settings import DistillSettings
from factory.tasks.task import AnswerError, Dialect, Example, Task
from factory.teacher import TeacherPlan

MAX_TOKENS = 512
"""Longest teacher answer, in tokens; a longer one is cut off and counted as such."""
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_logprobs=0, max_tokens=MAX_TOKENS)
OUTVOTED = frozenset({"minority", "no-majority"})
"""Verdict reasons of answers that run but lost the vote."""


def generate(
    task: Task,
    examples: Sequence[Example],
    teacher: ChatModel,
    plan: TeacherPlan,
    ledger: Ledger,
    settings: DistillSettings,
    events: EventLog,
) -> GenerateStats:
    """Answers of `teacher` to all examples, `settings.samples` each, judged and stored in `ledger`.

    Look at `stopped`: a spent budget or a dead endpoint ends it early, with the sentence in `message`. Raises LedgerError when
    the ledger cannot be written; KeyboardInterrupt goes through with everything received stored.
    """
    samples = samplings(settings, plan)
    judged = {(row.example_id, row.key) for rows in ledger.verdicts(plan.name).values() for row in rows}

    def asks() -> Iterator[Ask]:
        for number, example in enumerate(examples):
            messages = task.messages(example, plan.dialect)
            grammar = task.constraint(example, plan.dialect) if plan.constrained else None
            for sampling in samples:
                request = Request(messages=messages, sampling=sampling, constraint=grammar, id=example.id)
                yield Ask(plan.key(request, "answer"), request, [number])

    def settle(ask: Ask, answer: Answer | None) -> None:
        for example in (examples[number] for number in ask.owners):
            if (example.id, ask.key) in judged:
                continue
            answer = answer or ledger.answer(ask.key)
            if answer is not None:
                voting = len(samples) > 1 and example.reference is None
                ledger.judge(judge(task, example, answer, plan.dialect, voting))

    with events.stage("generate", total=len(examples) * len(samples), unit="answers") as stage:
        stats = ask_all(asks(), "answer", teacher, plan, ledger, settings, stage, settle)
        stats.unproven = vote(examples, ledger, plan.name, len(samples))
        for rows in ledger.verdicts(plan.name).values():
            stats.reasons.update(row.reason for row in rows)
        if stats.unproven:
            stage.warn(f"{stats.unproven} examples have no reference and one answer is no majority: kept because it runs; "
                       "--samples 3 compares answers")  # fmt: skip
        if stats.message:
            stage.warn(stats.message)
        stage.metric(answered=stats.answered, reused=stats.reused, failed=stats.failed, cost_usd=stats.cost_usd,
                     prompt_tokens=stats.prompt_tokens, completion_tokens=stats.completion_tokens,
                     reasons=dict(stats.reasons), stopped=stats.stopped)  # fmt: skip
    return stats


def samplings(settings: DistillSettings, plan: TeacherPlan) -> list[Sampling]:
    """How each example is asked: one greedy answer, or `samples` seeded ones. A teacher that replays has one answer."""
    if settings.samples == 1 or plan.replays:
        return [GREEDY]
    first = settings.seed * 64
    hot = GREEDY.model_copy(update={"temperature": settings.temperature})
    return [hot.model_copy(update={"seed": first + i}) for i in range(settings.samples)]


def judge(task: Task, example: Example, answer: Answer, dialect: Dialect = "plain", voting: bool = False) -> Judged:
    """Decode and verify one answer; `voting` also finds the key by which answers without a reference agree."""
    if answer.stop_reason == "length":
        return Judged(example.id, answer.key, False, "cut-off", f"longer than {MAX_TOKENS} tokens")
    try:
        canonical = task.decode(example, answer.text, dialect)
    except AnswerError as error:
        return Judged(example.id, answer.key, False, error.reason, str(error))
    verdict = task.verify(example, canonical)
    agreed = task.vote_key(example, canonical) if voting and verdict.ok else None
    return Judged(example.id, answer.key, verdict.ok, verdict.reason, verdict.detail, canonical, agreed)


def vote(examples: Sequence[Example], ledger: Ledger, teacher: str, samples: int) -> int:
    """Majority among answers without a reference: at least two agree, and more than on anything else; the others are refused.

    Returns how many examples could not vote (one answer each) and are kept because the answer runs.
    """
    unreferenced = [example.id for example in examples if example.reference is None]
    if not unreferenced:
        return 0
    verdicts = ledger.verdicts(teacher)
    if samples == 1:
        return sum(any(row.ok for row in verdicts.get(example_id, ())) for example_id in unreferenced)
    with ledger.group():
        for example_id in unreferenced:
            usable = [row for row in verdicts.get(example_id, ()) if row.ok or row.reason in OUTVOTED]
            counts = Counter(row.vote for row in usable if row.vote is not None).most_common(2)
            won = bool(counts) and counts[0][1] >= 2 and (len(counts) == 1 or counts[0][1] > counts[1][1])
            for row in usable:
                ok = won and row.vote == counts[0][0]
                reason = "ok" if ok else "minority" if won else "no-majority"
                if (row.ok, row.reason) != (ok, reason):
                    ledger.judge(Judged(row.example_id, row.key, ok, reason, "", row.canonical, row.vote))
    return 0
