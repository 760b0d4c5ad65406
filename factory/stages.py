"""The stages of making a student, shared by `distill` and `finetune`: each takes up from the files of the last.

Does: load data, prepare the student, gate, ask, select, train, score, write the report; remember what is settled.
Does not: do the work itself; every stage calls the module named after it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import ChatModel, ModelError
from factory.events import EventLog, Listener
from factory.predictions import Evaluation, keep_predictions
from factory.processes import Order, Team
from factory.rundir import RunDir, default_path, differences
from factory.settings import DistillSettings, Method, Optimizer, SettingsError, StudentSettings
from factory.tasks.task import DatasetCard, DataSource, Dialect, Example, TakesUnlabelled, Task, TaskError

if TYPE_CHECKING:
    from factory.first_adapter import FirstAdapter
    from factory.student import StudentPlan

DRAFTS = 1000
"""Queries sampled for a database without questions when --examples does not say how many."""
HELD_OUT = 10
"""Every tenth sampled query is for validation: no query stands in both parts."""


@dataclass
class Data:
    """Examples to learn from and examples to validate on, with what is known of their origin."""

    train: list[Example]
    validation: list[Example]
    cards: list[DatasetCard] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    """validation and every other split of the source: no training row may overlap them"""


class Stages:
    """One run's settings, task, plans and, once claimed, its directory and event log."""

    def __init__(
        self, settings: StudentSettings, task: Task, student: StudentPlan, path: Path, listener: Listener | None
    ) -> None:
        self.settings, self.task, self.student, self.path, self.listener = settings, task, student, path, listener
        self.team = Team(0, 1)
        self.tokenizer: Any = None
        """the teacher's, where a from-scratch student takes it"""
        self.first: FirstAdapter | None = None
        """the adapter that training goes on from"""
        self._data: Data | None = None
        self.run: RunDir
        self.events: EventLog

    @classmethod
    def prepare(cls, settings: StudentSettings, teacher: str, listener: Listener | None) -> Stages:
        """Check task and student. Raises the user errors of those."""
        from factory.first_adapter import find_adapter
        from factory.student import resolve_student
        from factory.tasks import get_task

        task = get_task(settings.task)
        student = resolve_student(settings.student, settings)
        _unlabelled_file(settings, task)
        path = settings.out or default_path(settings.task, settings.student, teacher)
        stages = cls(settings, task, student, path, listener)
        stages.first = find_adapter(settings, student, stages.path, stages.earlier())
        if stages.first is not None:
            stages.student = replace(student, need_gb=stages.first.need_gb(student, settings.rank))
        return stages

    @classmethod
    def follow(cls, settings: StudentSettings, order: Order, team: Team) -> Stages:
        """The leading process's stages as another one needs them: the same student and run, nothing written."""
        from factory.student import StudentPlan
        from factory.tasks import get_task

        stages = cls(settings, get_task(settings.task), StudentPlan(**order["student"]), Path(order["path"]), None)
        stages.team, stages.run, stages.events = team, RunDir(stages.path), EventLog()
        return stages

    def earlier(self) -> RunDir | None:
        """What an earlier start with these settings left; None when there is nothing, or a run with other settings."""
        found = RunDir(self.path)
        return found if found.config.is_file() and not differences(found.config, self.settings) else None

    @contextmanager
    def claimed(self) -> Iterator[RunDir]:
        """The run directory, locked, with its event log open."""
        self.run = RunDir.claim(self.path, self.settings, force=self.settings.force)
        # On a full disk even closing the log raises; the lock is let go all the same.
        with closing(self.run):
            self._data = None  # what was read before may be of a run that has been moved aside
            self.events = EventLog(self.run.events, self.listener)
            with closing(self.events):
                yield self.run

    # --- data ---------------------------------------------------------------------------------------------------------

    def check_data(self) -> None:
        """Read both splits before anything is written. Raises TaskError when one cannot be read or is of no use."""
        data = self.read_data()
        if not data.train:
            raise TaskError(f"split {self.settings.split!r} has no questions to learn from; check --questions and --split")
        if not data.validation:
            split = self.validation_split()
            raise TaskError(f"split {split!r} has no questions with a reference answer to validate on; mark some rows of the "
                            f'questions file that have one with "split": "{split}", others with "split": "train"')  # fmt: skip

    def load_data(self) -> Data:
        """Read both splits, with their losses counted and their origin remembered.

        Raises SettingsError when the data is no longer what an earlier start of this run read.
        """
        with self.events.stage("data") as stage:
            data = self.read_data()
            for card in data.cards:
                for reason, n in card.skipped.items():
                    if not reason.startswith("split-"):  # that is not lost: it belongs to the other part
                        stage.drop(f"{card.split}: {reason}", n)
            stage.metric(train=len(data.train), validation=len(data.validation))
        for card, old in zip(data.cards, self.run.recall().get("data", ())):
            if card.sha256 != old["sha256"]:
                raise SettingsError(f"{self.path}: the data ({card.source}) changed since this run began, so that its answers "
                                    "no longer belong to the questions; give another --out")  # fmt: skip
        self.run.check_version(self.task.name, self.task.version)
        inherited = [] if self.first is None else self.first.read_before(data.cards)
        self.run.remember(task_version=self.task.version, data=[card.model_dump() for card in [*data.cards, *inherited]])
        return data

    def read_data(self) -> Data:
        """Both splits; the training part cut to `examples` after a seeded shuffle, the other to what can be scored."""
        if self._data is None and self.makes_questions and not self._made:
            drafts = self.drafts()
            return Data([e for e in drafts if e.split == "train"], [e for e in drafts if e.split == "xdev"])
        if self._data is None:
            train, train_card = self.task.load(self._source(self.settings.split, self.settings.examples))
            every, card = self.task.load(self._source(self.validation_split(), None))
            validation = [example for example in every if example.reference is not None]
            if len(validation) < len(every):
                lost = {**card.skipped, "no-reference": len(every) - len(validation)}
                card = card.model_copy(update={"skipped": lost, "n": len(validation)})
            others = self.task.others(self._source(self.settings.split, None))
            more, more_cards = self._unlabelled([*train, *validation])
            self._data = Data([*train, *more], validation, [train_card, card, *more_cards], [*validation, *others])
        return self._data

    def _unlabelled(self, labelled: Sequence[Example]) -> tuple[list[Example], list[DatasetCard]]:
        path = _unlabelled_file(self.settings, self.task)
        if path is None or not isinstance(self.task, TakesUnlabelled):
            return [], []
        examples, card = self.task.unlabelled(path, labelled)
        return examples, [card]

    @property
    def makes_questions(self) -> bool:
        """Whether this run's questions are sampled from a database, or functions, that came without any."""
        return self.settings.own is not None and self.settings.questions is None

    @property
    def _made(self) -> bool:
        """Whether this run (not another one in the same place) has made its questions."""
        return self.made_questions.exists() and self.earlier() is not None

    @property
    def made_questions(self) -> Path:
        return self.path / "questions.jsonl"

    def drafts(self) -> list[Example]:
        """Sampled queries in plain words, for the teacher to phrase; every tenth is for validation."""
        wanted = self.settings.examples if self.settings.examples is not None else DRAFTS
        found = self.task.drafts(self._source(self.settings.split, None), wanted, self.settings.seed)
        return [replace(e, split="xdev" if i % HELD_OUT == 0 else "train") for i, e in enumerate(found)]

    def validation_split(self) -> str:
        """The split asked for, or the data set's own."""
        return self.settings.validation_split or self.task.validation_split(self._source(self.settings.split, None))

    def _source(self, split: str, limit: int | None) -> DataSource:
        s = self.settings
        questions = self.made_questions if self.makes_questions and self._made else s.questions
        return DataSource(dataset=s.dataset, data_dir=s.data_dir, split=split, db=s.db, functions=s.functions,
                          questions=questions, labels=s.labels, limit=limit, seed=s.seed)  # fmt: skip

    def summary(self) -> str:
        """The plan of a run without a teacher: what is learned from, by whom, with how much memory, written where."""
        data, student = self.read_data(), self.student
        rows = len(data.train) * self.settings.copies
        begun = "" if self.first is None else f" (rank {self.first.rank}) from {self.first.path}"
        lines = {
            "task": f"{self.task.name}: {len(data.train):,} questions to learn from, {len(data.validation):,} to validate on",
            "student": student.title,
            "memory": f"needs {student.need_gb:.1f} GB, has {student.have_gb:.1f} GB ({student.device})",
            "training": f"adapter {student.adapter}{begun}, at most {rows:,} rows, {self.settings.epochs:g} epochs",
            "written": f"{self.path}/",
        }
        return "".join(f"{name:<10} {text}\n" for name, text in lines.items())

    # --- student ------------------------------------------------------------------------------------------------------

    def prepare_student(self, data: Data) -> Path:
        """The directory training starts from: new tokenizer and random weights for scratch students, else what was named."""
        from factory.student import prepare_student

        with self.events.stage("student"):
            corpus = self.task.corpus(data.train, self.student.dialect) if self.student.kind == "scratch" else ()
            special = self.task.special_tokens(self.student.dialect)
            base = prepare_student(self.student, corpus, special, self.run.student, self.settings.seed, self.tokenizer)
            if self.first is not None and self.first.path != self.run.first_adapter:
                from factory.first_adapter import take_adapter

                take_adapter(self.first, base, self.run.first_adapter)
            return base

    def begun_from(self, base: Path) -> Path:
        """What the student is before it learns: its base, or the adapter it goes on from (which names its base)."""
        return base if self.first is None else self.run.first_adapter

    def score(
        self,
        name: str,
        model: ChatModel,
        examples: Sequence[Example],
        dialect: Dialect,
        size_bytes: int | None,
        of: object = None,
        whole: bool = False,
        constrained: bool = True,
    ) -> Evaluation:
        """Evaluate and keep the summary in scores.json under `name`.

        `of` says what is scored (a hash of its weights): with it, an interrupted evaluation goes on where it was. `whole`
        raises ModelError, and keeps nothing, when the model failed to answer: a server that fails is not a wrong answer.
        """
        from factory.evaluate import MODEL_ERROR, evaluate

        with (
            keep_predictions(self.run.path / f"{name}.part.jsonl", of) if of is not None else nullcontext(((), None)) as (
                known,
                keep,
            )
        ):
            result = evaluate(
                self.task, model, examples, dialect, constrained=constrained, events=self.events, stage=f"score {name}",
                known=known, on_prediction=keep,
            )  # fmt: skip
        failed = [prediction for prediction in result.predictions if prediction.error == MODEL_ERROR]
        if whole and failed:
            raise ModelError(f"{model.name} failed on {len(failed)} of {result.n} questions ({failed[-1].detail})")
        entry = {**result.summary(), "model_bytes": size_bytes}
        self.run.write(self.run.scores, json.dumps({**self.scores(), name: entry}, indent=1))
        return result

    def scores(self) -> dict[str, Any]:
        """Everything scored so far in this run."""
        return json.loads(self.run.scores.read_text(encoding="utf-8")) if self.run.scores.exists() else {}

    @staticmethod
    def size_bytes(model_dir: Path) -> int | None:
        from factory.evaluate import model_bytes

        return model_bytes(model_dir)

    def read_rows(self) -> list[dict[str, Any]]:
        """The rows of train.jsonl."""
        from factory.dataset import read_rows

        return read_rows(self.run.rows)

    # --- training -----------------------------------------------------------------------------------------------------

    def train(
        self, base: Path, rows: Sequence[dict[str, Any]], data: Data, *, method: Method = "sft", order: Order | None = None,
        **more: Any,
    ) -> Path:  # fmt: skip
        """Train on `rows`, choosing the checkpoint by task score; returns the best candidate's directory.

        The leader of several processes calls the others here with what it knows and `order`; it alone scores and remembers.
        """
        from factory.train import TrainJob, train

        s = self.settings
        job = TrainJob(
            base_dir=base, out_dir=self.run.checkpoints, rows=rows, method=method, adapter=self.student.adapter, rank=s.rank,
            adapter_dir=None if s.adapter_from is None else self.run.first_adapter,
            epochs=s.epochs, minutes=s.minutes, learning_rate=self.student.learning_rate, optimizer=self._optimizer(method),
            batch=s.batch, accumulate=s.accumulate,
            max_length=s.max_length, checkpoints=s.checkpoints, prompt_loss=s.prompt_loss, seed=s.seed, ema_decay=s.ema, **more,
        )  # fmt: skip
        judges = shuffled(data.validation, s.seed)[: s.validation]

        def score(directory: Path) -> float:
            from factory.evaluate import evaluate

            with opened(directory) as model:
                return evaluate(self.task, model, judges, self.student.dialect).score

        if self.team.leads:
            self.team.start({"path": str(self.path), "base": str(base), "student": asdict(self.student), **(order or {})})
        result = train(job, self.events, score)
        if not self.team.leads:
            return result.best_dir
        self.run.remember(
            training={"steps": result.steps, "tokens": result.tokens, "tokens_per_s": result.tokens_per_s, "rows": result.rows,
                      "dropped": result.dropped, "best_step": result.best_step, "best_score": result.best_score,
                      "final_loss": result.final_loss},
        )  # fmt: skip
        return result.best_dir

    def _optimizer(self, method: Method) -> Optimizer:
        """The one asked for; else muon where all weights of a from-scratch model learn, which takes it far fewer tokens."""
        if self.settings.optimizer is not None:
            return self.settings.optimizer
        fresh = self.student.kind == "scratch" and self.student.adapter == "none" and method != "on-policy"
        return "muon" if fresh else "adamw"

    # --- the end ------------------------------------------------------------------------------------------------------

    def finish(self, best: Path, base: Path, data: Data, teacher: str | None) -> None:
        """Merge, score on all validation questions, write card, answers, report and model card."""
        from agents.card import sha256_of_weights
        from factory.merge import merge_adapter, name_base
        from factory.predictions import write_predictions
        from factory.report import answered, write_model_card, write_report
        from factory.run_card import run_card

        run = self.run
        with self.events.stage("merge"):
            staged = run.path / "model.tmp"
            shutil.rmtree(staged, ignore_errors=True)
            if self.student.adapter == "none":
                shutil.copytree(best, staged)
            else:
                merge_adapter(base, best, staged)
                shutil.copytree(best, staged / "adapter")
                name_base(staged / "adapter", *self._base_name(base))
            shutil.rmtree(run.model, ignore_errors=True)
            staged.rename(run.model)
        with opened(run.model) as model:
            examples = shuffled(data.validation, self.settings.seed)[: self.settings.final]
            of = {"weights": sha256_of_weights(run.model), "n": len(examples)}
            result = self.score("student", model, examples, self.student.dialect, self.size_bytes(run.model), of)
        write_predictions(run.predictions, result.predictions)
        run.write(run.path / "answers.json", json.dumps(answered(self.task, examples, result.predictions), indent=1, default=str))
        card = run_card(self, base, data, teacher, result.predictions)
        card.save(run.model)
        card.save(run.path)
        if self.student.adapter != "none":
            card.save(run.adapter)
        with self.events.stage("report"):
            write_report(run.path)
            write_model_card(run.path)
        (run.path / "student.part.jsonl").unlink(missing_ok=True)
        run.remember(finished=True)

    def _base_name(self, base: Path) -> tuple[str, str | None]:
        """How an adapter names its base so that it is found again: within the run, on the hub, or where it lies."""
        if base.resolve().is_relative_to(self.path.resolve()):
            return os.path.relpath(base.resolve(), self.run.adapter.resolve()), None
        if self.student.kind == "hub":
            return self.student.model_id, self.student.revision or None
        return str(base.resolve()), None


def _unlabelled_file(settings: StudentSettings, task: Task) -> Path | None:
    """--unlabelled; raises TaskError where the task cannot take it."""
    path = settings.unlabelled if isinstance(settings, DistillSettings) else None
    if path is not None and not isinstance(task, TakesUnlabelled):
        raise TaskError(f"--unlabelled {path}: a question of the task {task.name!r} needs more than its words; give "
                        "--questions, whose rows may lack an answer")  # fmt: skip
    return path


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """A seeded order in which every prefix is a fair sample."""
    order = list(examples)
    random.Random(seed).shuffle(order)
    return order


@contextmanager
def opened(directory: Path) -> Iterator[ChatModel]:
    """A model directory opened for scoring, freed afterwards."""
    from agents.models import open_model

    model = open_model(str(directory))
    try:
        yield model
    finally:
        model.close()
