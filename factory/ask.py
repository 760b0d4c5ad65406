"""Put requests to a teacher so that nothing is paid for twice: the engine under `generate.py` and `phrase.py`.

Does: skip keys in the ledger, share one answer between equal prompts, store each reply before anything else, keep a budget,
notice a dead endpoint. Does not: retry (the model does), judge answers or choose rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from agents.chat import ChatModel, Reply, Request
from factory.events import Stage
from factory.ledger import Answer, Ledger, from_reply
from factory.settings import DistillSettings
from factory.teacher import TeacherPlan

FAILURES = 20
"""Failed requests in a row, without one success, after which the teacher counts as gone."""
LAST_FAILURES = 3
"""Failed requests at the very end at which it counts as gone too."""

Stop = Literal["budget", "endpoint"]


@dataclass
class GenerateStats:
    """What one call did. Tokens and dollars are of this call; `spent_usd` is of the whole ledger."""

    reused: int = 0
    """answers the ledger already held, or shared with an equal prompt"""
    answered: int = 0
    failed: int = 0
    """requests that failed for good; asked again only when this stage ends early, else their rows are dropped as "no-answer" """
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    spent_usd: float = 0.0
    stopped: Stop | None = None
    """why it ended early; what was answered is stored and the same command continues"""
    message: str = ""
    """the stop as a sentence"""
    errors: Counter[str] = field(default_factory=Counter)
    """error sentence -> failed requests"""
    reasons: Counter[str] = field(default_factory=Counter)
    """verdict reason -> (answer, example) pairs, over all examples, earlier runs included"""
    unproven: int = 0
    """examples kept on "it runs" alone: no reference, and one answer is no majority"""


@dataclass
class Ask:
    """One answer wanted; `owners` number the rows that want it (equal prompts share one answer)."""

    key: str
    request: Request
    owners: list[int]


Settle = Callable[[Ask, Answer | None], None]
"""Called once an answer is stored: with it, or with None when an earlier run or row stored it."""


def ask_all(
    asks: Iterable[Ask],
    purpose: str,
    teacher: ChatModel,
    plan: TeacherPlan,
    ledger: Ledger,
    settings: DistillSettings,
    stage: Stage,
    settle: Settle,
) -> GenerateStats:
    """Ask what the ledger does not hold, in batches wide enough to keep `settings.in_flight` requests busy.

    A budget is kept by reserving, for each request sent, what it can cost at most. Raises LedgerError; an interrupt goes
    through with everything received stored.
    """
    before = ledger.totals().cost_usd
    stats = GenerateStats(spent_usd=before)
    known = ledger.keys(purpose)
    queue = _Queue(iter(asks))
    streak = 0
    size = 1024 if plan.replays else 64 * settings.in_flight
    while stats.stopped is None:
        left = None if settings.budget_usd is None else settings.budget_usd - stats.spent_usd
        chunk: dict[str, Ask] = {}
        while len(chunk) < size and (ask := queue.peek()) is not None:
            if ask.key in known:
                stats.reused += len(ask.owners)
                stage.first += len(ask.owners)
                settle(ask, None)
                stage.advance(len(ask.owners))
            elif ask.key in chunk:
                stats.reused += len(ask.owners)
                chunk[ask.key].owners.extend(ask.owners)
            else:
                worst = plan.worst_cost(ask.request)
                if left is not None and worst > left:
                    if not chunk:
                        _stop(stats, "budget", f"budget of ${settings.budget_usd} is spent (${stats.spent_usd:.4f}, and the next "
                              f"answer may cost ${worst:.4f}); a higher --budget-usd continues here")  # fmt: skip
                    break
                left = None if left is None else left - worst
                chunk[ask.key] = ask
            queue.pop()
        if not chunk:
            break
        with ledger.group() if plan.replays else nullcontext():
            streak = _ask_chunk(list(chunk.values()), purpose, teacher, plan, ledger, stage, settle, stats)
        known.update(key for key in chunk if key in ledger)
    gone = streak >= LAST_FAILURES or (stats.failed and not stats.answered)
    if stats.stopped is None and gone and not plan.replays and not settings.force:
        _stop(stats, "endpoint", f"{_gone(plan, stats)}, --force goes on without these")
    return stats


def _ask_chunk(
    chunk: list[Ask],
    purpose: str,
    teacher: ChatModel,
    plan: TeacherPlan,
    ledger: Ledger,
    stage: Stage,
    settle: Settle,
    stats: GenerateStats,
) -> int:
    """Ask and store; returns how many requests at the end failed in a row."""
    streak = 0
    with closing(_replies(teacher, chunk)) as replies:
        for index, reply in replies:
            ask = chunk[index]
            failed = reply.stop_reason == "error"
            cost = None if failed and not reply.usage.prompt_tokens else plan.cost(reply.usage, ask.request)
            stats.cost_usd += cost or 0.0
            stats.spent_usd += cost or 0.0
            if failed:
                streak += 1
                stats.failed += 1
                stats.errors[reply.error or "unknown error"] += 1
                if streak >= FAILURES and not plan.replays:
                    _stop(stats, "endpoint", _gone(plan, stats))
                    return streak
            else:
                streak = 0
                seed = ask.request.sampling.seed
                answer = from_reply(reply, ask.key, plan.name, plan.revision, purpose, seed, cost)
                ledger.record(answer)
                stats.answered += 1
                stats.prompt_tokens += reply.usage.prompt_tokens
                stats.completion_tokens += reply.usage.completion_tokens
                settle(ask, answer)
            stage.advance(len(ask.owners))
    return streak


def _replies(teacher: ChatModel, chunk: list[Ask]) -> Generator[tuple[int, Reply], None, None]:
    """A generator, so that closing it closes the model's own and cancels what is in flight."""
    yield from teacher.generate([ask.request for ask in chunk])


def _stop(stats: GenerateStats, why: Stop, message: str) -> None:
    stats.stopped, stats.message = why, message


def _gone(plan: TeacherPlan, stats: GenerateStats) -> str:
    error, _ = stats.errors.most_common(1)[0]
    return (f"teacher {plan.name} stopped answering after {stats.answered} answers ({stats.failed} requests failed, "
            f"mostly: {error}); the same command continues when it is back")  # fmt: skip


class _Queue:
    """An iterator with one item of look-ahead."""

    def __init__(self, items: Iterator[Ask]) -> None:
        self.items, self.next = items, next(items, None)

    def peek(self) -> Ask | None:
        return self.next

    def pop(self) -> None:
        self.next = next(self.items, None)
