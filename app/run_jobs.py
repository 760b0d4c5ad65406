"""How a run stands and what can be done with it, from its own files and the app's jobs.

Does: say whether a run is worked on (by this app or by somebody else), how it ended, what it can be asked to do next; start, stop
and take up runs.
Does not: read logs of a run (`app.progress_view`), or show anything.

    how = standing(run, jobs)
    how.state, how.sentence, how.can_stop, how.can_resume
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.jobs import RUNNING, Job, JobError, Jobs
from app.make_form import fingerprint, plan_job, resume_job, run_job
from app.run_files import OWN, RunEntry, in_use
from factory.settings import DistillSettings

RUN, PLAN = "distill", "plan"
"""Kinds of jobs; a run that is taken up again is a `RUN` too."""
PATIENCE_S = 20.0
"""After this long a run that was asked to stop may be ended at once."""

State = Literal["starting", "running", "stopping", "elsewhere", "done", "resumable"]


@dataclass(frozen=True)
class Standing:
    """How a run stands now."""

    state: State
    sentence: str = ""
    """why it does not run any more, or who works in it; "" where nothing needs saying"""
    job: Job | None = None
    """the app's last job in it"""
    can_end_now: bool = False

    @property
    def runs(self) -> bool:
        return self.state in ("starting", "running", "stopping", "elsewhere")

    @property
    def word(self) -> str:
        """The state as a person says it."""
        return {"elsewhere": "running, not from here", "resumable": "not finished"}.get(self.state, self.state)

    @property
    def can_stop(self) -> bool:
        return self.state in ("starting", "running")

    @property
    def can_resume(self) -> bool:
        return self.state == "resumable"


def jobs_dir(root: Path) -> Path:
    """Where jobs that work on runs are kept: with the runs, so that every browser sees them."""
    return root / OWN / "jobs"


def standing(run: RunEntry, jobs: Jobs) -> Standing:
    """From the last job that worked in this run, its lock and its state file."""
    job = jobs.last_about(str(run.path), RUN)
    state = jobs.state(job) if job is not None else None
    if job is not None and state in RUNNING:
        asked = jobs.stop_asked(job)
        late = asked is not None and time.time() - asked > PATIENCE_S
        if state == "stopping":
            return Standing("stopping", "It was asked to stop and finishes what it cannot leave half done.", job, late)
        return Standing("starting" if state == "starting" else "running", job=job)
    if in_use(run):
        return Standing(
            "elsewhere", "A process that this app did not start works in this run; stop it where it was started.", job
        )
    if run.finished:
        return Standing("done", job=job)
    # A job that said it was done in a run that is not finished is one of a run that was moved aside since.
    said = jobs.sentence(job) if job is not None and state != "done" else ""
    return Standing("resumable", said or "It is not finished, and nothing works on it; it goes on from its last checkpoint.", job)


def start(jobs: Jobs, settings: DistillSettings) -> Job:
    """Start the run of these settings. Raises JobError when one works there already or too many do."""
    about = str(settings.out)
    before = jobs.last_about(about, RUN)
    if before is not None and jobs.state(before) in RUNNING:
        raise JobError(f"{Path(about).name} runs already; watch it, or choose another name")
    argv, files = run_job(settings)
    return jobs.start(RUN, argv, about, files)


def resume(jobs: Jobs, run: RunEntry) -> Job:
    """Take up a run where it was. Raises JobError when something works in it."""
    if standing(run, jobs).runs:
        raise JobError(f"{run.name} runs already; stop it before it is taken up again")
    return jobs.start(RUN, resume_job(run.command, run.path), str(run.path))


def plan(jobs: Jobs, settings: DistillSettings) -> Job:
    """Start the dry run of these settings. Raises JobError."""
    argv, files = plan_job(settings)
    return jobs.start(PLAN, argv, fingerprint(settings), files)


def plan_of(jobs: Jobs, settings: DistillSettings) -> Job | None:
    """The last plan for exactly these settings: one for others does not count."""
    return jobs.last_about(fingerprint(settings), PLAN)


def not_begun(jobs: Jobs, root: Path) -> list[tuple[str, Job]]:
    """(run's name, job) of runs that were started but have no directory yet: they are beginning, or were refused."""
    newest: dict[str, Job] = {}
    for job in jobs.recent(RUN):
        newest.setdefault(job.about, job)
    return [(Path(about).name, job) for about, job in newest.items()
            if Path(about).parent == root.resolve() and not (Path(about) / "config.toml").is_file()]  # fmt: skip
