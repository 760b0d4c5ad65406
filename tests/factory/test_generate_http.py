"""Generating against a real server on 127.0.0.1: killed at random moments, interrupted, and with every fault it can have."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.models import open_model
from factory.events import EventLog
from factory.generate import generate
from factory.ledger import Ledger
from factory.rows import select_rows
from factory.settings import DistillSettings
from factory.teacher import resolve_teacher
from tests.factory.toy import SumTask, solve, sums
from tests.openai_server import Faults, OpenAIServer

ROOT = Path(__file__).resolve().parents[2]
IN_FLIGHT = 6
WORKER = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored
import sys
from factory.events import EventLog
from factory.generate import generate
from factory.ledger import Ledger
from factory.settings import DistillSettings
from factory.teacher import open_teacher, resolve_teacher
from tests.factory.toy import SumTask, sums

spec, path, n = sys.argv[1:]
settings = DistillSettings(in_flight=6)
plan = resolve_teacher(spec, settings)
with Ledger(path) as ledger:
    print("ready", flush=True)
    stats = generate(SumTask(), sums(int(n)), open_teacher(plan), plan, ledger, settings, EventLog())
    print(stats.answered, stats.reused, stats.failed, stats.stopped, flush=True)
"""


def serve(**options) -> OpenAIServer:
    return OpenAIServer(lambda body: solve(body["messages"][-1]["content"]), keep_bodies=False, **options)


def start(server: OpenAIServer, path: Path, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, server.spec, str(path), str(n)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def recorded(path: Path) -> set[str]:
    """Prompts whose answer is in the ledger."""
    with Ledger(path) as ledger:
        return {f"{i} + {7 * i}" for i in (int(answer.example_id[1:]) for answer in ledger.answers())}


def wait_until_quiet(server: OpenAIServer) -> None:
    until = time.monotonic() + 10
    while server.in_flight and time.monotonic() < until:
        time.sleep(0.01)


def test_killed_at_random_moments_it_asks_for_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    n, path, dice, kills = 240, tmp_path / "ledger.sqlite", random.Random(11), 6
    with serve(latency_s=0.01) as server:
        settled: list[tuple[set[str], Counter[str]]] = []
        for _ in range(kills):
            target = sum(server.calls.values()) + dice.randint(0, 35)
            with start(server, path, n) as worker:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "ready\n"
                while sum(server.calls.values()) < target and worker.poll() is None:
                    time.sleep(0.001)
                time.sleep(dice.random() * 0.02)
                assert worker.poll() is None
                os.kill(worker.pid, signal.SIGKILL)
            wait_until_quiet(server)
            settled.append((recorded(path), Counter(server.calls)))
        with start(server, path, n) as worker:
            out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        for prompts, calls in settled:
            assert all(server.calls[prompt] == calls[prompt] for prompt in prompts)
        assert len(settled[-1][0]) > 0
        assert set(server.calls) == {example.question for example in sums(n)}
        assert sum(server.calls.values()) <= n + kills * 2 * IN_FLIGHT
    answered, reused, failed, stopped = out.split()[-4:]
    assert (int(answered) + int(reused), failed, stopped) == (n, "0", "None")
    with Ledger(path) as ledger:
        assert ledger.totals().calls == n
        found = select_rows(SumTask(), sums(n), ledger, [], "plain", EventLog())
    assert [row["id"] for row in found.rows] == [example.id for example in sums(n)]


def test_an_interrupt_stores_what_came_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with serve(latency_s=0.01) as server:
        with start(server, path, 4000) as worker:
            while sum(server.answered.values()) < 30:
                time.sleep(0.002)
            worker.send_signal(signal.SIGINT)
            _, err = worker.communicate(timeout=30)
        assert worker.returncode != 0
        assert "KeyboardInterrupt" in err
        wait_until_quiet(server)
        assert 30 - 2 * IN_FLIGHT <= len(recorded(path)) < 4000
        assert len(server.calls) - len(recorded(path)) <= 2 * IN_FLIGHT


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def run(server: OpenAIServer, ledger: Ledger, n: int, **options):
    settings = DistillSettings(in_flight=8)
    model = open_model(server.spec, in_flight=8, backoff_s=0.01, backoff_max_s=0.05, timeout_s=0.5, **options)
    try:
        return generate(SumTask(), sums(n), model, resolve_teacher(server.spec, settings), ledger, settings, EventLog())
    finally:
        model.close()


def test_faults_that_pass_are_outlived(ledger: Ledger) -> None:
    faults = Faults(rate_limit=0.15, server_error=0.15, truncated=0.1, drop=0.05, hang=0.02, seed=4)
    with serve(faults=faults) as server:
        stats = run(server, ledger, 120, retries=12)
        assert {"rate_limit", "server_error", "truncated"} <= set(server.injected)
        assert max(server.answered.values()) == 1
    assert (stats.answered, stats.failed, stats.stopped) == (120, 0, None)
    assert stats.reasons == {"ok": 120}


def test_what_fails_for_good_is_asked_again_by_the_next_run(ledger: Ledger) -> None:
    with serve(faults=Faults(server_error=0.4, seed=2)) as server:
        first = run(server, ledger, 60, retries=0)
        assert first.stopped is None
        assert first.failed > 0
        assert first.answered + first.failed == 60
        total = first.answered
        for _ in range(40):
            stats = run(server, ledger, 60, retries=0)
            assert stats.reused == total
            total += stats.answered
            if stats.failed == 0:
                break
        assert total == 60
        assert set(server.answered.values()) == {1}


def test_a_server_that_stops_in_mid_run_stops_the_run_and_the_next_one_continues(ledger: Ledger) -> None:
    with serve(faults=Faults(stop_after=50)) as server:
        first = run(server, ledger, 150, retries=1)
        assert first.stopped == "endpoint"
        assert "stopped answering" in first.message
        assert 50 - 16 <= first.answered <= 50 + 8
        server.resume()
        second = run(server, ledger, 150, retries=1)
        assert (second.stopped, second.failed, second.reused) == (None, 0, first.answered)
        assert second.answered == 150 - first.answered
        assert second.reasons == {"ok": 150}


def test_a_refused_key_stops_after_a_few_calls(ledger: Ledger) -> None:
    with serve(faults=Faults(bad_request=1.0)) as server:
        stats = run(server, ledger, 500)
        assert stats.stopped == "endpoint"
        assert "400" in stats.message
        assert sum(server.calls.values()) < 60
