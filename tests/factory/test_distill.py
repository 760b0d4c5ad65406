"""The whole way, from a teacher behind HTTP to a report: as commands and as Python calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import factory
from agents.card import Card
from agents.models import open_model
from factory import distill, events, finetune
from factory.cli import RunStopped, run_cli
from factory.facts import gather
from factory.ledger import Ledger
from factory.predictions import read_predictions
from factory.tasks import get_task
from factory.tasks.task import DataSource
from tests.factory.shop import TINY, WRONG, Shop, make_shop, serve
from tests.openai_server import Faults

FILES = {"config.toml", "ledger.sqlite", "train.jsonl", "checkpoints", "card.json", "report.md", "events.jsonl", "model",
         "scores.json", "predictions.jsonl", "answers.json", "state.json", "student", "report", "lock"}  # fmt: skip
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "card.json", "README.md"}
STAGES = ["data", "student", "score untrained", "score teacher", "generate", "rows", "train", "merge", "score student", "report"]


def command(module: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", f"factory.{module}", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=600, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and bytes."""
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def finished(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...], Any, Any]:
    """One run of the command: its directory, its arguments, what it printed, the calls its server counted."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with serve(shop.answers()) as server:
        arguments = ("--teacher", server.spec, *shop.source, *TINY, "--final", "8", "--out", str(out))
        done = command("distill", *arguments)
        calls = dict(server.calls)
    assert done.returncode == 0, done.stderr
    return out, arguments, done, calls


# --- one run ----------------------------------------------------------------------------------------------------------


def test_the_run_directory_holds_what_the_design_says(finished, shop):
    out, _, _, _ = finished
    assert {path.name for path in out.iterdir()} == FILES
    assert {path.name for path in (out / "model").iterdir()} >= MODEL_FILES
    config = tomllib.loads((out / "config.toml").read_text())
    assert (config["task"], config["student"], config["db"]) == ("sql", "scratch:tiny", str(shop.db))
    log = events.read(out / "events.jsonl")
    assert [event["stage"] for event in log if event["kind"] == "start"] == STAGES
    assert all(event["ok"] for event in log if event["kind"] == "end")
    assert any("loss" in event for event in log)
    assert not list(out.rglob("*.tmp"))


def test_every_question_is_asked_once_and_becomes_a_row_or_a_counted_drop(finished, shop):
    out, _, _, calls = finished
    assert calls == dict.fromkeys([*list(shop.answers())[:24], *calls], 1)
    assert len(calls) == 24 + 4  # the gate asks four held-out questions
    rows = lines(out / "train.jsonl")
    wrong = {shop.train[number].id for number in WRONG}
    assert {row["id"] for row in rows} == {example.id for example in shop.train} - wrong
    assert len(rows) == len({row["id"] for row in rows})
    with Ledger(out / "ledger.sqlite") as ledger:
        assert sum(ledger.drops()["rows"].values()) == len(WRONG)
        assert ledger.totals().calls == 28


def test_scores_have_intervals_and_the_card_loads(finished):
    out, _, _, _ = finished
    scores = json.loads((out / "scores.json").read_text())
    assert {name: entry["n"] for name, entry in scores.items()} == {"untrained": 4, "teacher": 4, "student": 8}
    assert all(0 <= entry["low"] <= entry["score"] <= entry["high"] <= 1 for entry in scores.values())
    assert all(entry["low"] < entry["high"] for entry in scores.values())
    assert scores["teacher"]["score"] == 1.0
    card = Card.load(out / "model")
    assert (card.task, card.dialect, card.base.id) == ("sql", "compact", "scratch:tiny")
    assert card.scores["student"].score == scores["student"]["score"]
    assert {entry.split for entry in card.data} == {"train", "xdev"}
    assert len(read_predictions(out / "predictions.jsonl")) == 8


def test_the_report_and_the_terminal_say_the_same(finished):
    out, _, done, _ = finished
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "95 %" in report
    assert (out / "report").is_dir()
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in (out / "report").iterdir())
    assert gather(out).missing == {}
    score = json.loads((out / "scores.json").read_text())["student"]["score"]
    assert f"{100 * score:.1f} %" in report
    assert f"{100 * score:.1f} %" in done.stdout
    assert str(out / "model") in done.stdout.replace("\n", "")
    assert "--split xdev" in done.stdout.replace("\n", " ")
    for stage in STAGES:
        assert f"{stage}: done" in done.stderr


def test_a_finished_run_returns_at_once_and_changes_nothing(finished):
    out, arguments, _, _ = finished  # its server is gone by now
    before = snapshot(out)
    again = command("distill", *arguments)
    assert again.returncode == 0, again.stderr
    assert "started" not in again.stderr
    assert str(out / "model") in again.stdout.replace("\n", "")
    assert snapshot(out) == before


def test_evaluate_gives_the_same_score_as_the_report(finished, shop, tmp_path):
    out, _, _, _ = finished
    file = tmp_path / "scores.json"
    done = command("evaluate", str(out / "model"), *shop.source, "--split", "xdev", "--json", str(file))
    assert done.returncode == 0, done.stderr
    document, scores = json.loads(file.read_text()), json.loads((out / "scores.json").read_text())
    assert (document["score"], document["n"]) == (scores["student"]["score"], 8)
    mine = {p.id: p.answer for p in read_predictions(tmp_path / "scores.predictions.jsonl")}
    assert mine == {p.id: p.answer for p in read_predictions(out / "predictions.jsonl")}


def test_the_model_answers_through_open_model(finished, shop):
    out, _, _, _ = finished
    from agents.chat import Request, Sampling

    task, example = get_task("sql"), shop.held_out[0]
    model = open_model(str(out / "model"))
    request = Request(messages=task.messages(example, "compact"), constraint=task.constraint(example, "compact"),
                      sampling=Sampling(max_tokens=192))  # fmt: skip
    [(_, reply)] = list(model.generate([request]))
    model.close()
    assert task.decode(example, reply.text, "compact").startswith("SELECT")


# --- the bundled data set ---------------------------------------------------------------------------------------------


def test_wikisql_from_the_command_line(tmp_path):
    """A slice of the bundled questions, its teacher behind HTTP."""
    task = get_task("sql")
    asked = [*task.load(DataSource(split="train", limit=40))[0], *task.load(DataSource(split="xdev"))[0]]
    said = {task.messages(example, "plain")[-1].content: example.reference or "" for example in asked}
    lost = [task.messages(example, "plain")[-1].content for example in asked[:3]]
    said |= dict.fromkeys(lost, 'SELECT MIN("No such column") FROM "t"')
    out = tmp_path / "run"
    with serve(said) as server:
        done = command("distill", "--task", "sql", "--teacher", server.spec, "--examples", "40", "--epochs", "1", "--batch", "8",
                       "--validation", "8", "--final", "8", "--gate", "4", "--checkpoints", "1", "--out", str(out))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert sum(server.calls.values()) == 40 + 4
    assert {path.name for path in out.iterdir()} == FILES
    rows = lines(out / "train.jsonl")
    assert 30 <= len(rows) <= 37
    assert {row["source"] for row in rows} == {"tiny"}
    with Ledger(out / "ledger.sqlite") as ledger:
        assert len(rows) + sum(ledger.drops()["rows"].values()) == 40
    card = Card.load(out / "model")
    assert {entry.license for entry in card.data} == {"BSD-3-Clause (questions), MIT and CC BY-SA (rows)"}


# --- dry runs ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with serve(shop.answers()) as server:
        line = ["--teacher", server.spec, *shop.source, "--price-in", "1", "--price-out", "2", "--dry-run"]
        assert run_cli(distill.main, line) == 0
        assert not server.calls
    assert run_cli(finetune.main, [*shop.source, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for word in ("teacher", "student", "memory", "calls", "tokens", "cost", "time", "written", "24"):
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_begun_run_says_what_is_left(finished, capsys):
    out, arguments, _, _ = finished
    before = snapshot(out)
    with serve({}) as server:
        line = [word if not word.startswith("http") else server.spec for word in arguments]
        assert run_cli(distill.main, [*line, "--dry-run"]) == 0
    assert "24" in capsys.readouterr().out
    assert snapshot(out) == before


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_not_better_stops_the_run_with_both_figures(shop, tmp_path, capsys):
    with serve(dict.fromkeys(shop.answers(), "I do not know")) as server:
        line = ["--teacher", server.spec, *shop.source, *TINY, "--out", str(tmp_path / "run")]
        assert run_cli(distill.main, line) == 3
        assert sum(server.calls.values()) == 4
    said = capsys.readouterr().err.splitlines()[-1]
    assert "answers 0.0% and the untrained student 0.0% of 4 validation questions" in said
    assert "--force" in said


# --- a server that fails ----------------------------------------------------------------------------------------------

QUICK = {"timeout_s": 0.5, "backoff_s": 0.02, "backoff_max_s": 0.1}


@pytest.fixture
def impatient(monkeypatch):
    """The real client with short time-outs, so that faults take no minutes."""

    def opened(spec: str, **options: Any) -> Any:
        return open_model(spec, **options, **(QUICK if spec.startswith("http") else {}))

    monkeypatch.setattr("agents.models.open_model", opened)


def small(shop: Shop, out: Path, spec: str) -> dict[str, Any]:
    return {"db": shop.db, "questions": shop.questions, "teacher": spec, "validation": 2, "final": 2, "gate": 4, "checkpoints": 1,
            "epochs": 1, "in_flight": 4, "out": out}  # fmt: skip


def test_a_run_finishes_in_spite_of_faults(shop, tmp_path, impatient, finished):
    faults = Faults(rate_limit=0.1, server_error=0.1, hang=0.05, truncated=0.1, drop=0.1, hang_s=5.0, seed=3)
    with serve(shop.answers(), faults=faults) as server:
        made = factory.distill(**small(shop, tmp_path / "run", server.spec))
        assert sum(server.injected.values()) >= 5
        assert set(server.answered.values()) == {1}
    assert made is not None
    assert (made / "train.jsonl").read_bytes() == (finished[0] / "train.jsonl").read_bytes()


@pytest.mark.parametrize("good", [2, 10, 26])
def test_a_server_that_goes_in_mid_run_stops_it_and_the_same_call_continues(shop, tmp_path, impatient, finished, good):
    """After 2 answers in the gate, after 10 in the middle, after 26 with two questions left."""
    with serve(shop.answers(), faults=Faults(stop_after=good)) as server:
        settings = small(shop, tmp_path / "run", server.spec)
        if good < 26:
            with pytest.raises(RunStopped, match="the same command continues") as stopped:
                factory.distill(**settings)
            assert "\n" not in str(stopped.value)
            assert not (tmp_path / "run" / "train.jsonl").exists()
            server.resume()
        made = factory.distill(**settings)
        answered = dict(server.answered)
    assert made is not None
    if good < 26:
        assert set(answered.values()) == {1}
        assert len(answered) == 28
        assert (made / "train.jsonl").read_bytes() == (finished[0] / "train.jsonl").read_bytes()
    else:
        # Two failures among 24 do not mean that the teacher is gone: the rows are missing, and counted.
        with Ledger(made / "ledger.sqlite") as ledger:
            assert ledger.drops()["rows"]["no-answer"] == 2
    assert json.loads((made / "scores.json").read_text())["teacher"]["score"] == 1.0


def test_the_command_stops_with_exit_3_and_continues(shop, tmp_path, impatient, capsys):
    with serve(shop.answers(), faults=Faults(stop_after=10)) as server:
        line = ["--teacher", server.spec, *shop.source, *TINY, "--in-flight", "4", "--out", str(tmp_path / "run")]
        assert run_cli(distill.main, line) == 3
        said = capsys.readouterr().err
        assert "stopped: teacher tiny stopped answering after 6 answers" in said
        assert "Traceback" not in said
        server.resume()
        assert run_cli(distill.main, line) == 0
        assert set(server.answered.values()) == {1}
    assert "Traceback" not in capsys.readouterr().err


def test_with_its_rows_written_a_run_no_longer_needs_its_teacher(shop, tmp_path, finished, monkeypatch):
    from factory.stages import Stages

    with serve(shop.answers()) as server:
        settings = small(shop, tmp_path / "run", server.spec)
        with monkeypatch.context() as stopped:
            stopped.setattr(Stages, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                factory.distill(**settings)
    made = factory.distill(**settings)
    assert made is not None
    assert Card.load(made / "model").teacher == "tiny"


def test_a_budget_stops_and_a_higher_one_continues(shop, tmp_path):
    with serve(shop.answers()) as server:
        settings = {**small(shop, tmp_path / "run", server.spec), "price_in": 1.0, "price_out": 1.0}
        with pytest.raises(RunStopped, match=r"budget of \$0.003 is spent .* the same command continues"):
            factory.distill(**settings, budget_usd=0.003)
        first = sum(server.calls.values())
        assert 4 < first < 28
        made = factory.distill(**settings, budget_usd=1.0)
        assert set(server.calls.values()) == {1}
        assert sum(server.calls.values()) == 28
    assert made is not None


def test_data_that_changed_under_a_run_is_refused(shop, tmp_path):
    from factory.settings import SettingsError

    mine = make_shop(tmp_path / "mine")
    with serve(mine.answers(), faults=Faults(bad_request=1.0)) as server:
        settings = small(mine, tmp_path / "run", server.spec)
        with pytest.raises(RunStopped):
            factory.distill(**settings)
        rows = mine.questions.read_text(encoding="utf-8").splitlines()
        mine.questions.write_text("\n".join(rows[1:]) + "\n", encoding="utf-8")
        with pytest.raises(SettingsError, match="changed since this run began"):
            factory.distill(**settings)


def test_a_run_of_another_version_of_the_task_is_refused(shop, tmp_path, monkeypatch):
    from factory.settings import SettingsError
    from factory.tasks.sql.task import SqlTask

    with serve(shop.answers(), faults=Faults(bad_request=1.0)) as server:
        settings = small(shop, tmp_path / "run", server.spec)
        with pytest.raises(RunStopped):
            factory.distill(**settings)
        monkeypatch.setattr(SqlTask, "version", SqlTask.version + 1)
        with pytest.raises(SettingsError, match=r"begun with version \d+ of the task sql, .*; give another --out"):
            factory.distill(**settings)
