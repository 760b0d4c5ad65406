"""Measure the curve: the score of from-scratch students against parameters, training rows and training tokens.

Does: train every point of a grid on prefixes of one set of rows, score each on the same validation questions, append it to a
JSONL file; go on where it was stopped.
Does not: predict from the curve (`curve.py`) or ask a teacher: rows carry their labels.

Run: python -m factory.sweep --grid sql [--data-dir DIR] [--out runs/sweep-sql]       (unattended; a point is some minutes)
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from factory.cli import run_cli
from factory.curve import Point, read_points
from factory.events import EventLog, Listener
from factory.mixture import DIALECT, Part, load_rows, read_parts, save_rows, token_rows
from factory.recipe import Recipe, TaskPart
from factory.rundir import RunDir
from factory.scratch import Shape
from factory.settings import SettingsError, parse
from factory.stages import opened, shuffled

if TYPE_CHECKING:
    from factory.dataset import TokenRows

GRIDS = Path(__file__).with_name("sweeps")


class _Settled(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GridShape(_Settled):
    """One size of student; widths that are multiples of 256 take every GGUF quantization."""

    hidden: int
    inner: int
    layers: int
    heads: int


class GridPoint(_Settled):
    """One student to train."""

    shape: str
    rows: int = Field(ge=1)
    tokens: int = Field(ge=1)
    """tokens read in training; rows are repeated, in other variants, as often as that takes"""


class Grid(_Settled):
    """A sweep as one TOML file."""

    part: TaskPart
    vocab: int = 4096
    batch: int = 32
    learning_rate: float = 3e-3
    prompt_loss: float = 0.1
    judged: int = Field(600, ge=50)
    """validation questions a point is scored on"""
    seed: int = 0
    shapes: dict[str, GridShape]
    points: tuple[GridPoint, ...]


class SweepSettings(_Settled):
    """`python -m factory.sweep`: the measured curve of a task."""

    grid: str = "sql"
    """name of a grid in the package, or a FILE.toml"""
    data_dir: Path | None = None
    """directory with a folder for the data set; default: the copy in the package"""
    minutes: float | None = Field(None, gt=0)
    """stop before a point that would begin after this many minutes; the same command goes on"""
    out: Path | None = None
    """run directory; default: runs/sweep-GRID"""
    force: bool = False
    """start anew where a sweep with other settings is (it is moved aside)"""


@dataclass(frozen=True)
class _Ready:
    """What all points share."""

    grid: Grid
    part: Part
    rows: TokenRows
    tokenizer: Any
    work: RunDir
    events: EventLog


def read_grid(spec: str) -> Grid:
    """A grid by name or file; raises SettingsError with one line."""
    path = Path(spec) if spec.endswith(".toml") else GRIDS / f"{spec}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in GRIDS.glob("*.toml")))
        raise SettingsError(f"unknown grid {spec!r}; choose from {names}, or give a FILE.toml")
    try:
        grid = Grid.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"grid {spec}: not valid TOML ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"grid {spec}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for point in grid.points:
        if point.shape not in grid.shapes:
            raise SettingsError(f"grid {spec}: no shape {point.shape!r}; choose from {', '.join(grid.shapes)}")
    return grid


def run(settings: SweepSettings, listener: Listener | None = None) -> Path:
    """Train and score every point that is not in the curve yet; returns the curve's file (JSON lines of `Point`)."""
    grid = read_grid(settings.grid)
    path = settings.out or Path("runs") / f"sweep-{Path(settings.grid).stem}"
    work = RunDir.claim(path, settings, force=settings.force)
    started = time.monotonic()
    with closing(work):
        curve = work.path / "curve.jsonl"
        done = {(p.shape, p.rows, p.tokens_asked) for p in read_points(curve)}
        waiting = [p for p in grid.points if (p.shape, p.rows, p.tokens) not in done]
        if not waiting:
            return curve
        with closing(EventLog(work.events, listener)) as events:
            ready = _prepare(grid, settings, work, events)
            with events.stage("sweep", total=len(grid.points), unit="points", done=len(done)) as stage:
                for point in waiting:
                    if settings.minutes is not None and time.monotonic() - started > 60 * settings.minutes:
                        stage.warn(f"stopped after {settings.minutes:g} minutes; the same command goes on")
                        break
                    measured = measure(ready, point)
                    with curve.open("a", encoding="utf-8") as file:
                        file.write(measured.model_dump_json() + "\n")
                    stage.advance()
                    stage.metric(**measured.model_dump(include={"shape", "rows", "tokens", "score"}))
    return curve


def _prepare(grid: Grid, settings: SweepSettings, work: RunDir, events: EventLog) -> _Ready:
    """Data, tokenizer and tokenized rows, made once a sweep."""
    from factory.scratch import train_tokenizer
    from factory.train import load_tokenizer, quiet

    recipe = Recipe(name="sweep", hidden=64, inner=64, layers=1, heads=1, kv_heads=1, vocab=grid.vocab, parts=(grid.part,),
                    seed=grid.seed)  # fmt: skip
    (part,) = read_parts(recipe, settings.data_dir)
    where = work.path / "tokenizer"
    with quiet():
        if not (where / "tokenizer.json").is_file():
            texts = part.task.corpus(part.train, DIALECT)
            train_tokenizer(texts, part.task.special_tokens(DIALECT), grid.vocab).save_pretrained(where)
        tokenizer = load_tokenizer(where)
        rows = work.path / "rows.npz"
        if not rows.is_file():
            save_rows(token_rows([part], recipe, settings.data_dir, tokenizer, events), rows)
    return _Ready(grid, part, load_rows(rows), tokenizer, work, events)


def measure(ready: _Ready, point: GridPoint) -> Point:
    """Train one student and score it."""
    from factory.evaluate import evaluate
    from factory.scratch import init_weights, new_model
    from factory.train import TrainJob, quiet, train

    grid = ready.grid
    asked = grid.shapes[point.shape]
    shape = Shape(asked.hidden, asked.inner, asked.layers, asked.heads, asked.heads, len(ready.tokenizer))
    place = ready.work.path / f"{point.shape}-{point.rows}-{point.tokens}"
    base = place / "student"
    if not (base / "config.json").is_file():
        with quiet():
            model = new_model(shape, ready.tokenizer)
            init_weights(model, grid.seed)
            model.save_pretrained(place / "student.tmp")
            ready.tokenizer.save_pretrained(place / "student.tmp")
        (place / "student.tmp").rename(base)
    rows = first_rows(ready.rows, point.rows)
    job = TrainJob(
        base_dir=base, out_dir=place, rows=rows, epochs=point.tokens / float(rows.lengths.sum()), optimizer="muon",
        learning_rate=grid.learning_rate, batch=grid.batch, prompt_loss=grid.prompt_loss, seed=grid.seed, checkpoints=1,
    )  # fmt: skip
    began = time.monotonic()
    result = train(job, ready.events)
    seconds = time.monotonic() - began
    known = [example for example in ready.part.validation if example.reference is not None]
    with opened(result.best_dir) as student:
        scored = evaluate(ready.part.task, student, shuffled(known, grid.seed)[: grid.judged], DIALECT)
    shutil.rmtree(place)
    return Point(
        task=ready.part.task.name, shape=point.shape, parameters=round(shape.parameters, 3), rows=point.rows,
        tokens=result.tokens, tokens_asked=point.tokens, score=scored.score, low=scored.low, high=scored.high, n=scored.n,
        metric=scored.metric, seconds=round(seconds, 1),
    )  # fmt: skip


def first_rows(rows: TokenRows, count: int) -> TokenRows:
    """The variants of the first `count` of the distinct rows, shuffled by their names so that a prefix is a fair sample."""
    import hashlib

    import numpy as np

    from factory.dataset import TokenRows

    names = [name.rpartition("/")[0] or name for name in rows.row_ids]
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    kept = set(ranked[:count])
    chosen = [i for i, name in enumerate(names) if name in kept]
    lengths = rows.lengths[chosen]
    return TokenRows(
        np.concatenate([rows.row(i) for i in chosen]), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows.prompt_lengths[chosen], [rows.row_ids[i] for i in chosen], rows.pad_id,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    from factory.progress import ProgressView

    settings = parse(SweepSettings, argv, "python -m factory.sweep", "Measure a task's curve: score against size, rows, tokens.")
    with ProgressView() as view:
        path = run(settings, view)
    for point in read_points(path):
        sys.stdout.write(json.dumps(point.model_dump()) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main))
