"""Every example runs offline from its own command line, and says what it should."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agents import Scripted
from examples import analyst, debate, shop
from tests.agents.conftest import make_model, make_tokenizer
from tests.agents.gguf_models import NEEDS_LLAMA, to_gguf

ROOT = Path(__file__).resolve().parents[2]


def test_shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shop.main(["--yes", "--store", str(tmp_path / "runs.db")]) == "Order 17 is on its way, expected on Friday."
    assert "flowchart" in capsys.readouterr().out
    assert shop.main(["--yes", "--question", "what is 17 * 3.5?"]) == "That makes 59.5."


def test_the_shops_interrupt_survives_a_restart(tmp_path: Path) -> None:
    store = tmp_path / "runs.db"
    first = shop.offline()
    paused = first.run(shop.State(question="where is 17?"), thread="u1", store=store)
    assert paused.interrupted is not None and paused.interrupted.prompt == "send this?"
    first.close()
    again = shop.offline()
    run = again.resume("u1", True, store=store)
    assert run.state.answer == paused.state.notes[-1]
    assert [row.node for row in again.history("u1", store=store)][1:3] == ["route", "desk"]
    again.close()


def test_analyst_agrees_with_sqlite_and_drops_an_invented_number(tmp_path: Path) -> None:
    database = analyst.make_database(tmp_path / "shop.db")
    run = analyst.make_graph(Scripted([analyst.scripted], repeat=True), database).run(analyst.State(question=analyst.QUESTION))
    with sqlite3.connect(database) as direct:
        city, total = direct.execute(analyst.SQL).fetchone()
    direct.close()
    assert json.loads(run.state.rows)["rows"] == [[city, total]]
    assert run.state.answer == f"{city}, for {total}." and run.reason == "end"
    steps = [event.node for event in run.trace if event.kind == "node_started"]
    assert steps == ["write", "execute", "write", "execute", "speak", "check", "speak", "check"]


def test_analyst_gives_up_on_a_model_that_only_writes(tmp_path: Path) -> None:
    database = analyst.make_database(tmp_path / "shop.db")
    before = database.read_bytes()
    run = analyst.make_graph(Scripted(["DROP TABLE customer"], repeat=True), database).run(analyst.State(question="?"))
    assert run.state.answer is None and "only SELECT is run" in run.state.problem and run.state.tries == analyst.TRIES
    assert database.read_bytes() == before


def test_debate() -> None:
    state = debate.main(["--rounds", "3"])
    assert [turn[:3] for turn in state.turns] == ["Pro", "Con"] * 3 and state.winner == "pro"


@pytest.mark.parametrize("name", ["shop", "analyst", "debate"])
def test_as_a_command(name: str) -> None:
    more = ["--yes"] if name == "shop" else []
    command = [sys.executable, f"examples/{name}.py", *more]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert out.returncode == 0 and out.stderr == "" and out.stdout


def test_debate_on_a_gguf_file(tmp_path: Path) -> None:
    """Three personas on one set of weights, streamed and constrained by llama.cpp; random weights, so only the shape is known."""
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    tokenizer = make_tokenizer()
    directory = tmp_path / "tiny"
    make_model(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    state = debate.main(["--model", str(to_gguf(directory)), "--rounds", "1", "--motion", "a b"])
    assert len(state.turns) == 2 and state.winner in ("pro", "con")
    assert sum(state.probabilities.values()) == pytest.approx(1.0, abs=1e-3)
