"""Runs killed at any moment: the same command continues, asks nothing twice and ends where an undisturbed run ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agents.card import Card
from factory import events
from factory.ledger import Ledger
from factory.tasks import get_task
from factory.tasks.task import DataSource
from tests.factory.shop import Shop, make_shop, serve
from tests.openai_server import OpenAIServer

IN_FLIGHT = 2
STAGES = ["data", "student", "score untrained", "score teacher", "generate", "rows", "train", "merge", "score student", "report"]
LOSS_TOLERANCE = 1e-4
"""Largest difference of a loss; training continues from whole checkpoints, so on one machine they are equal to the last digit."""
OPTIONS = ("--epochs", "8", "--batch", "4", "--validation", "8", "--final", "8", "--gate", "8", "--checkpoints", "3",
           "--in-flight", str(IN_FLIGHT))  # fmt: skip


@dataclass
class Killer:
    """Starts the command, kills it when told, starts it again; keeps what was in flight at each kill."""

    server: OpenAIServer
    arguments: Sequence[str]
    run_dir: Path
    kills: list[str] = field(default_factory=list)
    """stage at each kill"""
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        line = [sys.executable, "-m", "factory.distill", *self.arguments]
        self.process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.kills.append(self.stage())

    def stage(self) -> str:
        """The stage of the last event, or "start"."""
        log = self.log()
        return str(log[-1]["stage"]) if log else "start"

    def log(self) -> list[dict[str, Any]]:
        path = self.run_dir / "events.jsonl"
        return events.read(path) if path.exists() else []

    def until(self, reached: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Start, wait for events of this start that satisfy `reached`, and kill; fails when the run ends before."""
        before = len(self.log())
        self.start()
        assert self.process is not None
        while not reached(self.log()[before:]):
            assert self.process.poll() is None, (
                f"the run ended before it could be killed: {self.process.communicate()[1][-2000:]}"
            )
            time.sleep(0.005)
        self.kill()

    def after(self, seconds: float) -> bool:
        """Start and kill that much later; False when the run ended before."""
        self.start()
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return True
        assert self.process.returncode == 0, self.process.communicate()[1][-2000:]
        return False

    def finish(self) -> None:
        self.start()
        assert self.process is not None
        _, said = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, said[-2000:]


@dataclass(frozen=True)
class Undisturbed:
    run_dir: Path
    seconds: float


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def undisturbed(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The same command, never killed."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    with serve(shop.answers(), latency_s=0.1) as server:
        began = time.monotonic()
        Killer(server, arguments(server, shop, run_dir), run_dir).finish()
    return Undisturbed(run_dir, time.monotonic() - began)


def arguments(server: OpenAIServer, shop: Shop, run_dir: Path) -> tuple[str, ...]:
    return ("--teacher", server.spec, *shop.source, *OPTIONS, "--out", str(run_dir))


def losses(run_dir: Path) -> dict[int, float | None]:
    """Step -> loss as last written; a step taken again replaces the first.

    None for the first after a continuation: a logged loss is the mean since the one before, there since the checkpoint.
    """
    found: dict[int, float | None] = {}
    continued = False
    for event in events.read(run_dir / "events.jsonl"):
        if event.get("stage") == "train" and event["kind"] == "start":
            continued = event["done"] > 0
        elif event["kind"] == "progress" and "loss" in event:
            found[int(event["done"])] = None if continued else event["loss"]
            continued = False
    return found


def answers(run_dir: Path) -> dict[str, tuple[str | None, bool]]:
    rows = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: (row["answer"], row["correct"]) for row in rows}


def check(killer: Killer, shop: Shop, undisturbed: Undisturbed) -> None:
    """Everything that must hold after kills, however many there were."""
    run_dir, clean, server = killer.run_dir, undisturbed.run_dir, killer.server
    recorded = Counter(server.calls)
    assert len(recorded) == len(shop.answers())
    again = sum(count - 1 for count in recorded.values())
    in_flight = IN_FLIGHT * sum(stage in ("score teacher", "generate") for stage in killer.kills)
    assert again <= in_flight, f"{again} calls were repeated and at most {in_flight} can have been in flight"
    with Ledger(run_dir / "ledger.sqlite") as ledger, Ledger(clean / "ledger.sqlite") as other:
        assert ledger.keys() == other.keys()
        assert ledger.drops() == other.drops()
        assert ledger.verdicts() == other.verdicts()
    assert (run_dir / "train.jsonl").read_bytes() == (clean / "train.jsonl").read_bytes()
    mine, theirs = losses(run_dir), losses(clean)
    assert mine.keys() == theirs.keys()
    differences = [abs(mine[step] - theirs[step]) for step in theirs if mine[step] is not None]
    assert len(differences) >= len(theirs) // 2
    assert max(differences) <= LOSS_TOLERANCE
    scores = [json.loads((directory / "scores.json").read_text()) for directory in (run_dir, clean)]
    for name in ("teacher", "untrained", "student"):
        assert scores[0][name]["score"] == scores[1][name]["score"]
        assert scores[0][name]["n"] == scores[1][name]["n"] == 8
    assert answers(run_dir) == answers(clean)
    weights = [(directory / "model" / "model.safetensors").read_bytes() for directory in (run_dir, clean)]
    assert weights[0] == weights[1]
    assert Card.load(run_dir / "model").scores["student"].score == scores[1]["student"]["score"]
    assert (run_dir / "report.md").stat().st_size > 1000
    names = [{p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} for directory in (run_dir, clean)]
    assert names[0] == names[1], "files were left behind or are missing"


def started(stage: str, progress: int = 0) -> Callable[[list[dict[str, Any]]], bool]:
    """A stage has started, and, where asked, has counted so much."""

    def reached(log: list[dict[str, Any]]) -> bool:
        mine = [event for event in log if event.get("stage") == stage]
        return bool(mine) and (not progress or any(e["kind"] == "progress" and e["done"] >= progress for e in mine))

    return reached


def test_killed_in_four_stages(shop, undisturbed, tmp_path):
    """While answers are in flight, in the middle of training, between training and its merge, in the report."""
    run_dir = tmp_path / "run"
    with serve(shop.answers(), latency_s=0.1) as server:
        killer = Killer(server, arguments(server, shop, run_dir), run_dir)
        killer.until(started("generate", 6))
        with Ledger(run_dir / "ledger.sqlite") as ledger:
            assert 8 + 6 <= ledger.totals().calls < 32
        killer.until(lambda log: any("score" in e for e in log if e["kind"] == "metric" and e["stage"] == "train"))
        killer.until(started("score student"))
        killer.until(started("report"))
        killer.finish()
        check(killer, shop, undisturbed)
        before = sum(server.calls.values())
        killer.finish()
        assert sum(server.calls.values()) == before


@pytest.mark.slow
def test_killed_at_twenty_random_moments(shop, undisturbed, tmp_path):
    """Half of the kills strike at random times of a start, half within each stage in turn; at least eight stages are struck."""
    dice = random.Random(7)
    run_dir, struck, repeats = tmp_path / "run", Counter[str](), 0
    with serve(shop.answers(), latency_s=0.1) as server:
        killer = Killer(server, arguments(server, shop, run_dir), run_dir)
        stages = iter(STAGES)
        while len(killer.kills) < 20:
            if len(killer.kills) % 2 == 0:
                killer.until(started(next(stages)))
            elif not killer.after(dice.uniform(0.5, 6.0)):
                # It came through to the end: the next kills strike a new run, over the same server's count.
                raise AssertionError("the run ended before the twentieth kill; let it train longer")
        killer.finish()
        check(killer, shop, undisturbed)
        struck.update(killer.kills)
        repeats = sum(count - 1 for count in server.calls.values())
    print(f"killed 20 times: {dict(struck)}; {repeats} calls in flight at a kill were asked again")
    assert len(struck) >= 8


@pytest.mark.slow
def test_killed_while_questions_are_made(shop, tmp_path):
    """A database without questions: killed while the teacher phrases sampled queries, and while it answers its own questions."""
    run_dir, task = tmp_path / "run", get_task("sql")
    drafts = task.drafts(DataSource(db=shop.db), 60, 0)
    gated = 6  # every tenth is for validation: asked once by the gate, and once more to prove it
    said = {draft.question: draft.question for draft in drafts}
    said |= {task.messages(draft, "plain")[-1].content: draft.reference for draft in drafts}
    with serve(said, latency_s=0.1) as server:
        line = ("--teacher", server.spec, "--db", str(shop.db), "--examples", "60", *OPTIONS, "--out", str(run_dir))
        killer = Killer(server, line, run_dir)
        killer.until(started("phrase", 10))
        killer.until(started("phrase", 40))
        killer.until(started("generate", 10))
        killer.finish()
        again = sum(count - 1 for count in server.calls.values())
        with Ledger(run_dir / "ledger.sqlite") as ledger:
            assert ledger.totals().calls == len(server.calls) + gated
    assert again <= gated + IN_FLIGHT * len(killer.kills)
    made = [json.loads(text) for text in (run_dir / "questions.jsonl").read_text().splitlines()]
    assert [row["question"] for row in made] == [draft.question for draft in drafts]
    rows = [json.loads(text) for text in (run_dir / "train.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) >= 20
    assert Card.load(run_dir / "model").teacher == "tiny"
