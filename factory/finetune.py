"""Labelled rows in, a small model out: the same way through as `distill`, without a teacher.

Does: take the examples' own references as answers, then select, train, score and report.
Does not: ask anybody; a row without a reference is dropped and counted.

Run: python -m factory.finetune --task sql --db shop.sqlite --questions labelled.jsonl [--student S] [--adapter lora|none] …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from factory.cli import RunStopped, run_cli
from factory.events import Listener
from factory.outcome import print_outcome
from factory.processes import Team, team
from factory.rows import LABELS
from factory.settings import FinetuneSettings, build, parse
from factory.stages import Data, Stages, opened, shuffled


def run(settings: FinetuneSettings, listener: Listener | None = None) -> Path | None:
    """Fine-tune. Returns the run directory, or None after a dry run and in the processes of a launch that only train along.

    Raises as `distill.run` does.
    """
    with team() as processes:
        if processes.leads:
            return _lead(settings, listener, processes)
        order = processes.wait()
        if order is not None:
            stages = Stages.follow(settings, order, processes)
            stages.train(Path(order["base"]), stages.read_rows(), Data([], []))
        return None


def _lead(settings: FinetuneSettings, listener: Listener | None, processes: Team) -> Path | None:
    from factory.rows import select_rows

    stages = Stages.prepare(settings, LABELS, listener)
    stages.team = processes
    earlier = None if settings.dry_run else stages.earlier()
    if earlier is not None and earlier.recall().get("finished"):
        return earlier.path
    stages.check_data()
    if settings.dry_run:
        sys.stdout.write(stages.summary())
        return None
    with stages.claimed() as run_dir:
        data = stages.load_data()
        base = stages.prepare_student(data)
        if "untrained" not in stages.scores():
            with opened(stages.begun_from(base)) as untrained:
                sample = shuffled(data.validation, settings.seed)[: settings.gate]
                stages.score("untrained", untrained, sample, stages.student.dialect, stages.size_bytes(base))
        if not run_dir.rows.exists():
            kept = select_rows(stages.task, data.train, None, data.held_out, stages.student.dialect, stages.events,
                               path=run_dir.rows, copies=settings.copies, seed=settings.seed)  # fmt: skip
            if not kept.rows:
                raise RunStopped(
                    f"not one of {len(data.train):,} rows could be kept ({dict(kept.drops)}); check the questions file"
                )
        best = stages.train(base, stages.read_rows(), data)
        stages.finish(best, base, data, None)
        return run_dir.path


def main(argv: Sequence[str] | None = None) -> None:
    from factory.progress import ProgressView

    settings = parse(FinetuneSettings, argv, "python -m factory.finetune", "Train a student on labelled rows, without a teacher.")
    with ProgressView() as view:
        done = run(settings, view)
    if done is not None:
        print_outcome(done)


class _Callable(ModuleType):
    """Lets `factory.finetune(task="sql", …)` stand beside the module of the same name."""

    def __call__(self, listener: Listener | None = None, **settings: Any) -> Path | None:
        return run(build(FinetuneSettings, settings, "factory.finetune"), listener)


if __name__ == "__main__":
    sys.exit(run_cli(main))
sys.modules[__name__].__class__ = _Callable
