"""From a task and a teacher to a small trained model with an honest report: the main job.

Does: run the stages in order, each restarting from the files of the last, so that a killed run continues with the same command.
Does not: do a stage's work; `generate`, `rows`, `topk`, `train`, `evaluate` and `report` do.

Run: python -m factory.distill --task sql [--teacher T] [--student S] [--dry-run] …      (--help lists every setting)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from agents.chat import ModelError
from factory.cli import RunStopped, run_cli
from factory.events import Listener
from factory.ngrams import check_members
from factory.outcome import print_outcome
from factory.processes import Order, Team, team
from factory.questions import keep_proven, make_questions
from factory.remembered import RememberedTeacher
from factory.rows import LABELS
from factory.settings import DistillSettings, SettingsError, build, parse
from factory.stages import Data, Stages, shuffled
from factory.stages import opened as opened_model

if TYPE_CHECKING:
    from agents.chat import ChatModel
    from factory.ledger import Ledger
    from factory.teacher import TeacherPlan


def run(settings: DistillSettings, listener: Listener | None = None) -> Path | None:
    """Distil. Returns the run directory (a finished run returns at once), or None after a dry run and in the processes of a
    launch that only train along.

    Raises the user errors of the stages before anything costly, RunStopped when a budget or an endpoint ends (run again to
    continue), KeyboardInterrupt with everything finished so far on disk.
    """
    with team() as processes:
        if processes.leads:
            return _lead(settings, listener, processes)
        order = processes.wait()
        if order is not None:
            _follow(settings, order, processes)
        return None


def _lead(settings: DistillSettings, listener: Listener | None, processes: Team) -> Path | None:
    from factory.ledger import Ledger
    from factory.teacher import open_teacher, resolve_teacher

    stages = Stages.prepare(settings, settings.teacher, listener)
    stages.team = processes
    earlier = None if settings.dry_run else stages.earlier()
    if earlier is not None and earlier.recall().get("finished"):
        return earlier.path
    # With the rows written, only training on probabilities still needs the teacher: an endpoint may be gone by then.
    asked = earlier is not None and earlier.rows.exists() and settings.method == "sft"
    plan = None if asked else resolve_teacher(settings.teacher, settings)
    if plan is not None:
        match_tokenizers(settings, stages, plan)
    stages.check_data()
    if settings.dry_run and plan is not None:
        sys.stdout.write(plan_text(settings, stages, plan))
        return None
    with stages.claimed() as run_dir, Ledger(run_dir.ledger) as ledger:
        if plan is not None and stages.makes_questions and not stages.made_questions.exists():
            with closing(open_teacher(plan)) as teacher:
                make_questions(stages, settings, teacher, plan, ledger)
        data = stages.load_data()
        check_members(plan.members if plan is not None else (), stages.task, [*data.train, *data.validation])
        base = stages.prepare_student(data)
        if plan is not None and not run_dir.rows.exists():
            with closing(open_teacher(plan, [*data.train, *data.validation])) as teacher:
                gate(stages, settings, RememberedTeacher(teacher, plan, ledger, "gate"), plan, base, data)
                if settings.answers != "labels":
                    ask(stages, settings, teacher, plan, ledger, data)
            select(stages, settings, plan, ledger, data)
        if stages.makes_questions:
            keep_proven(stages, ledger, data)
        rows = stages.read_rows()
        more = store_probabilities(stages, settings, plan, base, rows) if plan is not None else {}
        order = None if plan is None else {"teacher": asdict(plan)}
        best = stages.train(base, rows, data, method=settings.method, order=order, **more)
        taught = next((str(row["source"]) for row in rows if row["source"] != LABELS), LABELS)
        if settings.method != "sft" and plan is not None:  # it says every token's probability, whoever gave the answer
            taught = plan.name
        stages.finish(best, base, data, taught)
        return run_dir.path


def _follow(settings: DistillSettings, order: Order, processes: Team) -> None:
    """Train along with the leading process, which has made everything that training reads."""
    from factory.teacher import TeacherPlan

    stages = Stages.follow(settings, order, processes)
    base, rows = Path(order["base"]), stages.read_rows()
    more = store_probabilities(stages, settings, TeacherPlan(**order["teacher"]), base, rows) if "teacher" in order else {}
    stages.train(base, rows, Data([], []), method=settings.method, **more)


def gate(stages: Stages, settings: DistillSettings, teacher: ChatModel, plan: TeacherPlan, base: Path, data: Data) -> None:
    """Score teacher and untrained student on a small sample; a teacher that is not better stops the run with both figures."""
    sample = shuffled(data.validation, settings.seed)[: settings.gate]
    known = stages.scores()
    if "untrained" not in known:
        with opened_model(stages.begun_from(base)) as untrained:
            stages.score("untrained", untrained, sample, stages.student.dialect, stages.size_bytes(base))
    if "teacher" not in known:
        try:
            whole = not (plan.replays or settings.force)
            stages.score("teacher", teacher, sample, plan.dialect, None, whole=whole, constrained=plan.constrained)
        except ModelError as error:
            raise RunStopped(f"{error}; the same command continues, --force counts such questions as wrong") from None
    scores = stages.scores()
    taught, born = scores["teacher"]["score"], scores["untrained"]["score"]
    kept = ("score", "low", "high", "n")
    stages.run.remember(gate={name: {key: scores[name][key] for key in kept} for name in ("teacher", "untrained")})
    if taught <= born and not settings.force:
        raise RunStopped(f"teacher {settings.teacher} answers {taught:.1%} and the untrained student {born:.1%} of {len(sample)} "
                         "validation questions: it has nothing to teach; choose a better --teacher, or --force")  # fmt: skip


def ask(stages: Stages, settings: DistillSettings, teacher: ChatModel, plan: TeacherPlan, ledger: Ledger, data: Data) -> None:
    """The teacher's answers to every training question, verified, into the ledger."""
    from factory.generate import generate

    checked = data.validation if stages.makes_questions else []
    stats = generate(stages.task, [*data.train, *checked], teacher, plan, ledger, settings, stages.events)
    if stats.stopped is not None:
        raise RunStopped(f"{stats.message}; {stats.answered + stats.reused:,} answers are kept, the same command continues")


def select(stages: Stages, settings: DistillSettings, plan: TeacherPlan, ledger: Ledger, data: Data) -> None:
    """Verified, distinct rows that share nothing with the source's other splits, into train.jsonl."""
    from factory.rows import select_rows

    source = None if settings.answers == "labels" else ledger
    kept = select_rows(stages.task, data.train, source, data.held_out, stages.student.dialect, stages.events,
                       path=stages.run.rows, teacher=plan.name, fill=settings.answers == "both", copies=settings.copies,
                       seed=settings.seed)  # fmt: skip
    if kept.rows:
        return
    if source is None:
        raise RunStopped(f"not one of {len(data.train):,} labels could be kept ({dict(kept.drops)}); check the data's answers")
    raise RunStopped(f"not one of {len(data.train):,} answers could be kept ({dict(kept.drops)}); "
                     f"read {stages.run.ledger} and choose another --teacher")  # fmt: skip


def store_probabilities(
    stages: Stages, settings: DistillSettings, plan: TeacherPlan, base: Path, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What training needs beside rows: stored top-k log-probabilities (logits), the teacher itself (on-policy), nothing (sft)."""
    if settings.method == "sft":
        return {}
    from factory.teachers_local import load_planned

    if settings.method == "on-policy":
        return {"teacher": load_planned(plan, own_device=stages.team.count > 1), "divergence": settings.divergence}
    from factory.dataset import tokenize
    from factory.topk import store_topk
    from factory.train import load_tokenizer

    more = {"topk_dir": stages.run.topk, "divergence": settings.divergence, "distill_weight": settings.distill_weight}
    if "topk" in stages.run.recall():
        return more
    tokenizer = load_tokenizer(base)
    tokens = tokenize(rows, tokenizer, settings.max_length)
    teacher, _ = load_planned(plan)
    with stages.events.stage("store probabilities", total=len(tokens), unit="rows") as stage:
        report = store_topk(
            tokens, teacher, stages.run.topk, settings.top_k, len(tokenizer), f"{plan.name}@{plan.revision}", stage
        )
        for member in getattr(teacher, "members", ()):
            if getattr(member, "silent", 0):
                stage.warn(f"n-grams had nothing to say of {member.silent:,} tokens and took no part there")
        stage.metric(rows=report.rows, tokens=report.tokens, size_bytes=report.size_bytes, bytes_per_token=report.bytes_per_token)
    stages.run.remember(topk={"bytes_per_token": report.bytes_per_token, "size_bytes": report.size_bytes})
    return more


def match_tokenizers(settings: DistillSettings, stages: Stages, plan: TeacherPlan) -> None:
    """Probabilities token by token mean something only where both tokenizers agree; refused before anything is asked.

    A from-scratch student takes its teacher's tokenizer and dialect instead.
    """
    if settings.method == "sft":
        return
    from factory.student import with_tokenizer
    from factory.teachers_local import load_tokenizer
    from factory.tokenizer_match import compare_tokenizers

    student = stages.student
    try:
        theirs = load_tokenizer(plan.location, plan.revision or None)
        if student.kind == "scratch":
            stages.tokenizer = theirs
            stages.student = with_tokenizer(student, settings, len(theirs), plan.dialect)
            return
        ours = load_tokenizer(student.model_id, student.revision or None)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the tokenizers of teacher and student cannot be compared ({str(error).splitlines()[0]})") from None
    report = compare_tokenizers(theirs, ours)
    if not report.agree:
        raise SettingsError(f"--method {settings.method} needs one tokenizer for --teacher {settings.teacher} and --student "
                            f"{settings.student}, but {report}; choose --method sft")  # fmt: skip
    if student.dialect != plan.dialect:
        raise SettingsError(f"--method {settings.method}: --teacher {settings.teacher} answers in the {plan.dialect} dialect and "
                            f"--student {settings.student} in the {student.dialect} one; choose --method sft")  # fmt: skip


def plan_text(settings: DistillSettings, stages: Stages, plan: TeacherPlan) -> str:
    """What would be asked, trained and written, with sizes, hours and dollars, as a table."""
    from factory.ledger import Ledger
    from factory.plan import StudentNumbers, make_plan, mean_tokens

    student = stages.student
    data = stages.read_data()
    ledger = stages.path / "ledger.sqlite"
    already = 0
    if ledger.exists():
        with Ledger(ledger) as opened:
            already = len(opened.keys("answer"))
    numbers = StudentNumbers(
        student.title, student.parameters, student.device, student.need_gb, student.have_gb, student.download_gb
    )
    made = make_plan(
        settings, plan, numbers, train=len(data.train), validation=len(data.validation), out=stages.path, already=already,
        ask_tokens=mean_tokens(stages.task, data.train, plan.dialect),
        row_tokens=mean_tokens(stages.task, data.train, student.dialect),
        predicted=_predicted(settings, stages, len(data.train)),
    )  # fmt: skip
    return made.text()


def _predicted(settings: DistillSettings, stages: Stages, rows: int) -> str | None:
    """The score of a from-scratch student by its task's measured curve; other students start from more than a curve knows."""
    from factory.plan import mean_tokens
    from factory.planner import predicted_line

    if stages.student.kind != "scratch":
        return None
    a_row = sum(mean_tokens(stages.task, stages.read_data().train, stages.student.dialect))
    tokens = rows * settings.copies * settings.epochs * a_row
    return predicted_line(stages.task.name, stages.student.parameters, rows, tokens)


def main(argv: Sequence[str] | None = None) -> None:
    from factory.progress import ProgressView

    settings = parse(DistillSettings, argv, "python -m factory.distill", "Distil a teacher into a small model for one task.")
    with ProgressView() as view:
        done = run(settings, view)
    if done is not None:
        print_outcome(done)


class _Callable(ModuleType):
    """Lets the documented Python call `factory.distill(task="sql", …)` stand beside the module of the same name."""

    def __call__(self, listener: Listener | None = None, **settings: Any) -> Path | None:
        return run(build(DistillSettings, settings, "factory.distill"), listener)


if __name__ == "__main__":
    sys.exit(run_cli(main))
sys.modules[__name__].__class__ = _Callable
