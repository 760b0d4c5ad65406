"""Make a base model or a teacher from nothing: tokenizer and weights from running text and task data, by a recipe.

Does: read the recipe's data, train the tokenizer, write first weights, train, score on every judged task, write the card.
Does not: distil (`distill.py`) or adapt (`finetune.py`); what it writes is a `--student` or `--teacher` directory for those.

Run: python -m factory.pretrain --recipe base|teacher|FILE.toml --data-dir DIR [--minutes M] [--init DIR] [--device auto|cpu|cuda]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agents.card import ANY_TASK
from factory.cli import run_cli
from factory.events import EventLog, Listener
from factory.mixture import DIALECT, Part, corpus, load_rows, read_parts, save_rows, special_tokens, text_card, token_rows
from factory.recipe import Recipe, read_recipe
from factory.rundir import RunDir
from factory.settings import SettingsError, parse
from factory.stages import opened, shuffled
from factory.tasks.task import HasForms

if TYPE_CHECKING:
    from agents.card import Card
    from factory.dataset import TokenRows
    from factory.train import TrainResult


class PretrainSettings(BaseModel):
    """`python -m factory.pretrain`: a base model or teacher from a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recipe: str = "base"
    """name of a recipe in the package, or a FILE.toml"""
    data_dir: Path | None = None
    """directory with a folder for every data set and text that the recipe names"""
    init: Path | None = None
    """model directory to go on from, with its tokenizer; default: a new tokenizer and random weights"""
    tokenizer: Path | None = None
    """model directory whose tokenizer is taken (a teacher and its student share one); default: a new one"""
    minutes: float | None = Field(None, gt=0)
    """wall-clock minutes of training, instead of the recipe's"""
    epochs: float | None = Field(None, gt=0)
    """passes over the rows, instead of the recipe's"""
    learning_rate: float | None = Field(None, gt=0)
    """peak learning rate, instead of the recipe's"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a CUDA device where there is one"""
    out: Path | None = None
    """run directory; default: runs/pretrain-RECIPE. The same command continues a run that was stopped"""
    resume: bool = False
    """only continue: refuse to start where no run is"""
    force: bool = False
    """start anew where a run with other settings is (it is moved aside)"""


def run(settings: PretrainSettings, listener: Listener | None = None) -> Path:
    """Pretrain; returns the run directory, whose model/ holds the result. A finished run returns at once.

    Raises SettingsError, TaskError, TrainError before anything costly; KeyboardInterrupt with all finished steps on disk.
    """
    recipe = read_recipe(settings.recipe)
    choose_device(settings.device)
    path = settings.out or Path("runs") / f"pretrain-{recipe.name}"
    if settings.resume and not (path / "config.toml").is_file():
        raise SettingsError(f"--resume: there is no run in {path}; leave --resume out to start one, or give its --out")
    if settings.init is not None and not (settings.init / "config.json").is_file():
        raise SettingsError(f"--init {settings.init}: no config.json there; give a model directory")
    if settings.tokenizer is not None and not (settings.tokenizer / "tokenizer.json").is_file():
        raise SettingsError(f"--tokenizer {settings.tokenizer}: no tokenizer.json there; give a model directory")
    if settings.tokenizer is not None and settings.init is not None:
        raise SettingsError("give --tokenizer or --init, not both: a model to go on from has its tokenizer")
    work = RunDir.claim(path, settings, force=settings.force)
    with closing(work):
        if work.recall().get("finished"):
            return path
        parts = read_parts(recipe, settings.data_dir)
        for part in parts:
            work.check_version(part.task.name, part.task.version)
        events = EventLog(work.events, listener)
        with closing(events):
            base = first_weights(recipe, settings, parts, work)
            rows = kept_rows(recipe, settings, parts, base, work, events)
            result = learn(recipe, settings, parts, base, rows, work, events)
            finish(recipe, parts, result, work, events)
    return path


def choose_device(device: str) -> None:
    """cpu hides the GPU from this process; cuda refuses to go on without one."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SettingsError("--device cuda: no CUDA device here; choose --device cpu, or install PyTorch's CUDA build")


def first_weights(recipe: Recipe, settings: PretrainSettings, parts: list[Part], work: RunDir) -> Path:
    """The directory training starts from: `--init`, or a new tokenizer with random weights, whole or not at all."""
    from factory.scratch import init_weights, new_model, train_tokenizer
    from factory.train import load_tokenizer, quiet

    if settings.init is not None:
        return settings.init
    if (work.student / "config.json").is_file():
        return work.student
    partial = work.path / ".student.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        if settings.tokenizer is not None:
            tokenizer = load_tokenizer(settings.tokenizer)
        else:
            texts = list(corpus(parts, recipe, settings.data_dir))
            tokenizer = train_tokenizer(texts, special_tokens(parts, recipe), recipe.vocab)
        model = new_model(recipe.shape, tokenizer)
        init_weights(model, recipe.seed, recipe.induction)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    partial.rename(work.student)
    return work.student


def kept_rows(
    recipe: Recipe, settings: PretrainSettings, parts: list[Part], base: Path, work: RunDir, events: EventLog
) -> TokenRows:
    """The tokenized rows, made once a run."""
    from factory.train import load_tokenizer, quiet

    path = work.path / "rows.npz"
    if not path.is_file():
        with quiet():
            save_rows(token_rows(parts, recipe, settings.data_dir, load_tokenizer(base), events), path)
        cards = [card.model_dump() for part in parts for card in part.cards]
        cards += [text_card(text, settings.data_dir).model_dump() for text in recipe.texts]
        work.remember(data=cards, task_versions={part.task.name: part.task.version for part in parts})
    return load_rows(path)


def learn(
    recipe: Recipe, settings: PretrainSettings, parts: list[Part], base: Path, rows: TokenRows, work: RunDir, events: EventLog
) -> TrainResult:
    """Train on everything; the checkpoint with the best mean score over the judged parts wins."""
    from factory.train import TrainJob, train

    job = TrainJob(
        base_dir=base, out_dir=work.checkpoints, rows=rows, epochs=settings.epochs or recipe.epochs,
        minutes=settings.minutes or recipe.minutes, learning_rate=settings.learning_rate or recipe.learning_rate,
        optimizer=recipe.optimizer, batch=recipe.batch, max_length=recipe.max_length, checkpoints=recipe.checkpoints,
        prompt_loss=recipe.prompt_loss, seed=recipe.seed, ema_decay=recipe.ema, warmup=0.02,
    )  # fmt: skip

    def score(directory: Path) -> float:
        scores = judge(directory, parts, recipe.seed)
        events.emit("metric", stage="judge", **{name: round(entry["score"], 4) for name, entry in scores.items()})
        return sum(float(entry["score"]) for entry in scores.values()) / len(scores)

    judged = any(part.recipe.judged for part in parts)
    return train(job, events, score if judged else None)


def judge(directory: Path, parts: list[Part], seed: int, every: bool = False) -> dict[str, dict[str, Any]]:
    """Scores on the validation questions of the judged parts (all of them with `every`), constrained, greedy."""
    from factory.evaluate import evaluate

    scores = {}
    with opened(directory) as model:
        for part in parts:
            if part.recipe.judged:
                known = [example for example in part.validation if example.reference is not None]
                chosen = shuffled(known, seed)[: None if every else part.recipe.judged]
                scores[part.name] = evaluate(part.task, model, chosen, DIALECT).summary()
    return scores


def finish(recipe: Recipe, parts: list[Part], result: TrainResult, work: RunDir, events: EventLog) -> None:
    """The best checkpoint as model/ with a card of what it read and how it scores."""
    with events.stage("score") as stage:
        scores = judge(result.best_dir, parts, recipe.seed, every=True)
        stage.metric(**{name: round(entry["score"], 4) for name, entry in scores.items()})
    staged = work.path / "model.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(result.best_dir, staged)
    shutil.rmtree(work.model, ignore_errors=True)
    staged.rename(work.model)
    base_card(recipe, scores, parts, work).save(work.model)
    work.write(work.scores, json.dumps(scores, indent=1))
    work.remember(
        finished=True,
        training={"steps": result.steps, "tokens": result.tokens, "tokens_per_s": result.tokens_per_s, "rows": result.rows,
                  "final_loss": result.final_loss, "best_step": result.best_step},
    )  # fmt: skip


def base_card(recipe: Recipe, scores: dict[str, dict[str, Any]], parts: list[Part], work: RunDir) -> Card:
    from agents.card import BaseEntry, Card, DataEntry, ScoreEntry, program, sha256_of_weights
    from factory.evaluate import MAX_TOKENS

    names = set(ScoreEntry.model_fields)
    task, version, template = _asked_as(parts)
    splits = {part.name: part.cards[-1].split for part in parts}
    return Card(
        name=f"penknife-{recipe.name}", task=task, task_version=version, dialect=DIALECT, prompt_template=template,
        constraint="lark", parser=f"{task}/{DIALECT}", max_tokens=MAX_TOKENS, base=BaseEntry(id=f"recipe:{recipe.name}"),
        weights_sha256=sha256_of_weights(work.model), license=recipe.license,
        data=tuple(DataEntry(**{k: v for k, v in card.items() if k != "skipped"}) for card in work.recall()["data"]),
        scores={name: ScoreEntry(split=splits[name], **{k: v for k, v in entry.items() if k in names})
                for name, entry in scores.items()},
        created_by=program(),
    )  # fmt: skip


def _asked_as(parts: list[Part]) -> tuple[str, int, str]:
    """(task, version, prompt template) of the card: those of the only task, in the form of its first part; else of any task."""
    first = parts[0]
    if {part.recipe.task for part in parts} != {first.recipe.task}:
        return ANY_TASK, 1, f"{ANY_TASK}/{DIALECT}/1"
    form = (first.task.form_of(first.train),) if isinstance(first.task, HasForms) else ()
    version = first.task.version
    return first.task.name, version, "/".join((first.task.name, *form, DIALECT, str(version)))


def main(argv: Sequence[str] | None = None) -> None:
    from factory.progress import ProgressView, scores_table

    settings = parse(PretrainSettings, argv, "python -m factory.pretrain", "Make a base model or teacher from a recipe.")
    with ProgressView() as view:
        path = run(settings, view)
    from rich.console import Console

    scores = json.loads((path / "scores.json").read_text(encoding="utf-8"))
    Console().print(scores_table(scores, f"{path}/model"))


if __name__ == "__main__":
    sys.exit(run_cli(main))
