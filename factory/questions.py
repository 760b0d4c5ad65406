"""Questions for a database that comes without any: sampled, phrased by the teacher, kept where its own answer agrees.

Does: sample queries through the task, have the teacher phrase them, write them as an ordinary questions file of the run, and
leave out validation questions that the teacher's independent answer contradicts.
Does not: answer training questions (`generate.py`) or drop them (`rows.py`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from factory.cli import RunStopped
from factory.phrase import phrase

if TYPE_CHECKING:
    from agents.chat import ChatModel
    from factory.ledger import Ledger
    from factory.settings import DistillSettings
    from factory.stages import Data, Stages
    from factory.tasks.task import Example
    from factory.teacher import TeacherPlan


def make_questions(stages: Stages, settings: DistillSettings, teacher: ChatModel, plan: TeacherPlan, ledger: Ledger) -> None:
    """Write the run's questions.jsonl, whole or not at all; a killed run asks only for the phrasings it has not yet got.

    Raises RunStopped when the budget or the endpoint ends first, or nothing usable comes of it.
    """
    made = phrase(stages.drafts(), teacher, plan, ledger, settings, stages.events)
    if made.stats.stopped is not None:
        raise RunStopped(f"{made.stats.message}; {len(made.examples):,} questions are phrased, the same command continues")
    if not made.examples:
        raise RunStopped(f"not one sampled query of {stages.settings.own} became a question ({dict(made.drops)}); "
                         "check that its tables have rows (sql), or give --questions")  # fmt: skip
    rows = [_row(example) for example in made.examples]
    stages.run.write(stages.made_questions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _row(example: Example) -> dict[str, Any]:
    """A row that the task's own reader of questions reads back: `extra["row"]` where a draft says how, else its SQL."""
    extra = {name: value for name, value in example.extra.items() if name not in ("row", "instruction")}
    return {"question": example.question, **example.extra.get("row", {"sql": example.reference}), "split": example.split, **extra}


def keep_proven(stages: Stages, ledger: Ledger, data: Data) -> None:
    """Leave out validation questions whose independent answer by the teacher disagreed with the sampled query."""
    verdicts = ledger.verdicts()
    kept = [e for e in data.validation if any(v.ok for v in verdicts.get(e.id, ()))]
    lost = len(data.validation) - len(kept)
    if lost:
        with stages.events.stage("questions") as stage:
            stage.drop("validation: teacher disagrees", lost)
    if not kept:
        raise RunStopped(f"the teacher answered none of its {lost} validation questions as they were meant; choose another "
                         "--teacher, or give --questions")  # fmt: skip
    data.validation[:] = kept
    card = data.cards[1]
    data.cards[1] = card.model_copy(update={"n": len(kept), "skipped": {**card.skipped, "teacher disagrees": lost}})
