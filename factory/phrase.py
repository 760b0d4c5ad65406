"""Sampled queries in plain words -> questions as a person would ask them, phrased by the teacher.

Does: ask (purpose "phrase", through the ledger like every paid answer), keep what is one question and still names every value.
Does not: sample queries (the task does) or answer: `generate` asks for each question's answer independently, and the row is kept
only when that agrees with the sampled query.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agents.chat import ChatModel, Message, Request
from factory.ask import Ask, GenerateStats, ask_all
from factory.events import EventLog
from factory.generate import GREEDY
from factory.ledger import Answer, Ledger
from factory.settings import DistillSettings
from factory.tasks.task import Example
from factory.teacher import TeacherPlan

STAGE = "phrase"
LONGEST = 400
"""Characters of a question."""
INSTRUCTION = (
    "You rewrite a stiff description of a database query as the one question that a person would ask. Ask for exactly what it "
    "describes, keep every name, number and quoted value as it is spelt, and answer with the question alone: one line, no "
    "quotation marks around it, no explanation."
)


@dataclass
class Phrased:
    """Examples with natural questions; `drops` counts drafts that got none, by reason; `stats` what asking cost."""

    examples: list[Example] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    stats: GenerateStats = field(default_factory=GenerateStats)


def phrase(
    drafts: Sequence[Example],
    teacher: ChatModel,
    plan: TeacherPlan,
    ledger: Ledger,
    settings: DistillSettings,
    events: EventLog,
) -> Phrased:
    """Natural questions for `drafts`: examples whose question is a sampled query in plain words and whose reference is the query.

    Where a draft has it, `extra["instruction"]` says what to do instead of `INSTRUCTION`, and `extra["values"]` lists texts
    that the question must still hold, ignoring case. The `templates` teacher keeps the plain words. Like `generate`, look at
    `stats.stopped`; the same call continues.
    """
    if plan.replays:
        return Phrased(list(drafts))
    texts: dict[int, str] = {}

    def settle(ask: Ask, answer: Answer | None) -> None:
        stored = answer or ledger.answer(ask.key)
        if stored is not None:
            texts.update(dict.fromkeys(ask.owners, stored.text))

    asks = []
    for number, draft in enumerate(drafts):
        told = str(draft.extra.get("instruction", INSTRUCTION))
        messages = (Message(role="system", content=told), Message(role="user", content=draft.question))
        request = Request(messages=messages, sampling=GREEDY, id=draft.id)
        asks.append(Ask(plan.key(request, STAGE), request, [number]))
    out = Phrased()
    with events.stage(STAGE, total=len(drafts), unit="questions") as stage:
        out.stats = ask_all(asks, STAGE, teacher, plan, ledger, settings, stage, settle)
        lost: list[tuple[str, str]] = []
        for number, draft in enumerate(drafts):
            question, reason = read(texts.get(number), draft)
            if reason is None:
                out.examples.append(replace(draft, question=question))
            else:
                lost.append((reason, draft.id))
        ledger.replace_drops(STAGE, lost)
        out.drops.update(reason for reason, _ in lost)
        for reason, n in out.drops.most_common():
            stage.drop(reason, n)
        if out.stats.message:
            stage.warn(out.stats.message)
    return out


def read(text: str | None, draft: Example) -> tuple[str, str | None]:
    """(question, None), or ("", why it is not usable)."""
    if text is None:
        return "", "no-answer"
    question = text.strip().strip('"').strip()
    if not question:
        return "", "empty"
    if "\n" in question or len(question) > LONGEST:
        return "", "not-one-question"
    low = question.lower()
    if any(str(value).lower() not in low for value in draft.extra.get("values", ())):
        return "", "value-lost"
    return question, None
