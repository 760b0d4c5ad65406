"""Every example runs offline from its own command line, and says what it should."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agents import Scripted
from agents.card import BaseEntry, Card, DataEntry
from agents.chat import Request
from examples import analyst, debate, shop
from factory.cli import run_cli
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


def test_nobody_there_to_ask_is_a_no() -> None:
    command = [sys.executable, "examples/shop.py"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, stdin=subprocess.DEVNULL)
    assert out.returncode == 0 and out.stderr == "" and "it was not sent" in out.stdout


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "orders.db") as made:
        made.execute('CREATE TABLE orders ("Order" INTEGER, City TEXT)')
        made.executemany("INSERT INTO orders VALUES (?, ?)", [(17, "Ulm"), (18, "Graz"), (19, "Ulm")])
    made.close()
    return tmp_path / "orders.db"


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student of single tables, its model scripted; asked anything else it chooses "sql"."""
    data = (DataEntry(name="wikisql", split="train", license="BSD-3-Clause", sha256="0" * 64, n=1),)
    card = Card(task="sql", task_version=1, dialect="compact", prompt_template="sql/compact/1", constraint="lark",
                parser="sql/compact", base=BaseEntry(id="scratch:tiny"), data=data, created_by="test")  # fmt: skip

    def small(request: Request) -> str:
        asked = request.messages[-1].content
        if asked == " order<num><c0> city<v0><c1><q> how many orders are from<v0> ulm ?":
            return "<count><c0><and><eq><v0><c1>"
        return "<limit> 219" if "<q>" in asked else "sql"

    (tmp_path / "student").mkdir()
    card.save(tmp_path / "student")
    for name in ("examples.shop.open_model", "agents.models.open_model"):
        monkeypatch.setattr(name, lambda spec, **options: Scripted([small], name=str(spec), repeat=True))
    return tmp_path / "student"


def test_shop_and_analyst_answer_from_a_table(orders: Path, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "How many orders are from ulm?"
    where = ["--artifact", str(artifact), "--db", str(orders), "--question", question]
    sent = shop.main(["--model", str(artifact), *where, "--yes"])
    query, rows = sent.splitlines()
    with sqlite3.connect(orders) as direct:
        assert direct.execute(query).fetchall() == [(2,)] and json.loads(rows)["rows"] == [[2]]
        state = analyst.main(where)
        assert direct.execute(state.sql).fetchall() == [(2,)] and json.loads(str(state.answer))["rows"] == [[2]]
    direct.close()


@pytest.mark.parametrize("main", [shop.main, analyst.main])
def test_no_answer_is_one_sentence(
    main: Callable[..., object], orders: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model", str(artifact), "--yes"] if main is shop.main else []
    assert run_cli(main, [*more, "--artifact", str(artifact), "--db", str(orders), "--question", "Who are you?"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "answered what its task cannot read" in said[0]


def test_an_artifact_without_a_database_is_refused(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        shop.main(["--model", str(artifact), "--artifact", str(artifact)])
    assert "--artifact needs --db" in capsys.readouterr().err


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
