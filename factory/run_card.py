"""The card of a finished run: what was trained from what, on which data, how good it is and how it is asked.

Does: gather those from the stages of a run, with what the adapter it went on from had read.
Does not: write the card (`agents.card`), score, or convert.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agents.card import BaseEntry, CalibrationEntry, Card, DataEntry, ScoreEntry, program, sha256_of_weights
from factory.embedded import NAME as EMBEDDED
from factory.evaluate import MAX_TOKENS
from factory.machine import called
from factory.predictions import Prediction, calibration
from factory.tasks.task import HasCardData, HasForms

if TYPE_CHECKING:
    from factory.stages import Data, Stages
    from factory.student import StudentPlan


def run_card(stages: Stages, base: Path, data: Data, teacher: str | None, predictions: Sequence[Prediction]) -> Card:
    """The card of what `stages` has trained from `base`; `predictions` are the student's on all validation questions."""
    calibrated = calibration(predictions)
    split = stages.validation_split()
    names = set(ScoreEntry.model_fields)
    scores = {
        name: ScoreEntry(split=split, **{k: v for k, v in entry.items() if k in names}) for name, entry in stages.scores().items()
    }
    inherited = [] if stages.first is None else stages.first.read_before(data.cards)
    form = (stages.task.form_of(data.train),) if isinstance(stages.task, HasForms) else ()
    return Card(
        name=stages.path.name, task=stages.task.name, task_version=stages.task.version, dialect=stages.student.dialect,
        prompt_template="/".join((stages.task.name, *form, stages.student.dialect, str(stages.task.version))), constraint="lark",
        parser=f"{stages.task.name}/{stages.student.dialect}", stop=(), max_tokens=MAX_TOKENS,
        base=BaseEntry(
            id=base_name(stages.student),
            revision=stages.student.revision or None,
            sha256=None if stages.student.kind == "scratch" else sha256_of_weights(base),
        ),
        weights_sha256=sha256_of_weights(stages.run.model),
        adapter_sha256=sha256_of_weights(stages.run.adapter) if stages.student.adapter != "none" else None,
        teacher=teacher or (None if stages.first is None or stages.first.card is None else stages.first.card.teacher),
        license=stages.student.license if stages.student.kind == "hub" or stages.student.license != "not stated" else None,
        data=tuple(DataEntry(**card.model_dump(exclude={"skipped"})) for card in [*data.cards, *inherited]),
        scores=scores, created_by=program(),
        calibration=() if calibrated is None else tuple(
            CalibrationEntry(threshold=t.threshold, kept=t.kept, accuracy=t.accuracy) for t in calibrated.thresholds),
        calibration_error=None if calibrated is None else calibrated.ece,
        reliability=() if calibrated is None else calibrated.reliability,
        reliability_error=None if calibrated is None else calibrated.reliability_ece,
        task_data=stages.task.card_data(data.train, predictions) if isinstance(stages.task, HasCardData) else {},
    )  # fmt: skip


def base_name(student: StudentPlan) -> str:
    """A hub name, a name of ours, or what a directory is called."""
    if student.kind == "hub":
        return student.model_id
    if student.kind == "scratch" or student.spec == EMBEDDED:
        return student.spec
    return called(Path(student.spec))
