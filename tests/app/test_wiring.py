"""Graph, turns, conversation and records without Streamlit: scripted models, the real bundled database, sqlite as the judge."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from app_models import ANSWERS, ROOT, ScriptedShop, artifact

from agents.chat import Request
from agents.route import GraphError
from app import feedback, records
from app.analyst import AnalystState, accuracy_at, in_short, likely_table
from app.data.make_solar_system import make
from app.talk import Talk, TalkError
from app.wiring import BUNDLED, Setup
from factory.tasks.sql.database import Database


def rows_by_sqlite(sql: str) -> list[list[Any]]:
    with closing(sqlite3.connect(f"file:{BUNDLED}?mode=ro", uri=True)) as db:
        return [list(row) for row in db.execute(sql)]


@pytest.fixture
def talk(runs: Path) -> Talk:
    return Talk(ScriptedShop(), runs / "own")


@pytest.fixture
def setup(runs: Path) -> Setup:
    (runs / "own").mkdir()
    return Setup(artifact(runs), BUNDLED)


def test_the_bundled_database_is_what_its_tables_say(tmp_path: Path) -> None:
    made = make(tmp_path / "again.sqlite")
    with closing(sqlite3.connect(made)) as again, closing(sqlite3.connect(BUNDLED)) as shipped:
        assert list(again.iterdump()) == list(shipped.iterdump())
        assert again.execute("PRAGMA foreign_key_check").fetchall() == []
        assert shipped.execute("SELECT count(*) FROM moon").fetchone()[0] >= 30


@pytest.mark.parametrize("question", ["How many moons?", "visits by kind", "visits per year"])
def test_an_answer_has_the_rows_that_sqlite_has(talk: Talk, setup: Setup, question: str) -> None:
    turn = talk.ask(question, setup)
    assert turn.wait(20) and turn.status == "done"
    assert turn.state["rows"] == rows_by_sqlite(next(sql for words, sql in ANSWERS.items() if words in question.lower()))
    assert turn.state["answer"] == in_short(turn.state["rows"])


def test_a_statement_that_writes_does_not_run(talk: Talk, setup: Setup) -> None:
    before = BUNDLED.read_bytes()
    turn = talk.ask("drop it all", setup)
    turn.wait(20)
    said = turn.problem or turn.state["problem"]
    assert turn.state["rows"] == [] and turn.state["answer"] is None and said
    assert BUNDLED.read_bytes() == before


def test_no_matching_row_is_said(talk: Talk, setup: Setup) -> None:
    turn = talk.ask("moons of nobody", setup)
    turn.wait(20)
    assert turn.state["answer"] == "No row matches."
    assert any("spell a value otherwise" in note for note in turn.state["notes"])
    assert any("'Nobody At All'" in note for note in turn.state["notes"])


@pytest.mark.parametrize("yes", [True, False])
def test_a_person_is_asked_before_a_statement_runs(talk: Talk, setup: Setup, yes: bool) -> None:
    turn = talk.ask("How many moons?", Setup(setup.artifact, BUNDLED, approve=True))
    turn.wait(20)
    assert turn.status == "waiting" and turn.waiting_for is not None
    assert rows_by_sqlite(turn.waiting_for.value) == rows_by_sqlite(ANSWERS["how many moons"])
    with pytest.raises(TalkError, match="yes or no"):
        talk.ask("another", setup)
    turn.answer(yes)
    turn.wait(20)
    assert turn.status == "done"
    if yes:
        assert turn.state["rows"] == rows_by_sqlite(ANSWERS["how many moons"])
    else:
        assert "not approved" in turn.state["problem"] and turn.state["rows"] == []


def test_stop_ends_a_turn(runs: Path, setup: Setup) -> None:
    def slow(request: Request) -> str:
        time.sleep(0.5)
        return "SELECT 1"

    talk = Talk(ScriptedShop(slow), runs / "own")
    turn = talk.ask("anything", setup)
    with pytest.raises(TalkError, match="still being answered"):
        talk.ask("another", setup)
    turn.stop()
    assert turn.wait(20) and turn.status == "stopped"
    assert "answer" not in turn.state or turn.state["answer"] is None


def test_a_fork_goes_on_from_the_step_with_the_present_setup(talk: Talk, setup: Setup) -> None:
    turn = talk.ask("How many moons?", setup)
    turn.wait(20)
    steps = talk.forkable(turn)
    assert list(steps.values()) == ["table", "write", "run"]
    write = next(step for step, node in steps.items() if node == "write")
    before = talk.thread
    forked = talk.fork(turn, write, Setup(setup.artifact, BUNDLED, approve=True))
    forked.wait(20)
    assert talk.thread != before and forked.status == "waiting"
    forked.answer(True)
    forked.wait(20)
    assert forked.state["rows"] == turn.state["rows"]
    assert len(talk.shop.model(setup.artifact).requests) == 1, "the statement was shared, not written again"


def test_turns_are_recorded_found_replayed_and_exported(talk: Talk, setup: Setup) -> None:
    for question in ("How many moons?", "visits by kind"):
        talk.ask(question, setup).wait(20)
    found, damaged = records.records(talk.own / "turns")
    assert damaged == 0 and [record.question for record in found] == ["visits by kind", "How many moons?"]
    assert [r.question for r in records.filtered(found, text="MOONS how")] == ["How many moons?"]
    assert records.filtered(found, status="failed") == []
    asked = len(talk.shop.model(setup.artifact).requests)
    for record in found:
        again = records.setup_of(record.about, [setup.artifact])
        assert again == setup
        assert "The same again" in records.replay(record, lambda again=again: talk.shop.graph(again))
    assert len(talk.shop.model(setup.artifact).requests) == asked, "a replay asks no model"
    exported = [json.loads(line) for line in records.jsonl(found).splitlines()]
    assert [row["question"] for row in exported if row["kind"] == "turn"] == ["visits by kind", "How many moons?"]
    assert sum(row["kind"] == "run_ended" for row in exported) == 2
    (talk.own / "turns" / "9-x.json").write_text("{")
    assert records.records(talk.own / "turns")[1] == 1
    with pytest.raises(GraphError, match="not there any more"):
        records.setup_of(found[0].about, [])


def test_a_thread_shows_its_states(talk: Talk, setup: Setup) -> None:
    talk.ask("How many moons?", setup).wait(20)
    shots = records.states(talk.shop.graph(setup), talk.thread, talk.shop.store(talk.own / "threads.db"))
    assert [shot["node"] for shot in shots if shot["kind"] == "node"] == ["table", "write", "run", "check"]
    assert shots[-1]["state"]["rows"] == rows_by_sqlite(ANSWERS["how many moons"])


def test_two_browsers_share_a_model_and_no_thread(runs: Path, setup: Setup) -> None:
    shop = ScriptedShop()
    talks = [Talk(shop, runs / name) for name in ("one", "two")]
    for talk in talks:
        talk.own.mkdir()
        talk.ask("How many moons?", setup).wait(20)
    assert shop.opened == 1
    for mine, other in (talks, talks[::-1]):
        assert mine.shop.store(mine.own / "threads.db").threads() == [mine.thread]
        assert other.thread not in {record.thread for record in records.records(mine.own / "turns")[0]}


def test_thumbs_become_rows_that_finetune_reads(talk: Talk, setup: Setup, tmp_path: Path) -> None:
    turn = talk.ask("How many moons?", setup)
    turn.wait(20)
    path, rows = talk.rate(turn, "up")
    assert rows == 1 and talk.rating_of(turn) == "up"
    assert talk.rate(turn, "up")[1] == 1, "rated again, it is still one row"
    bad = talk.ask("visits by kind", setup)
    bad.wait(20)
    with pytest.raises(feedback.FeedbackError, match="does not run"):
        talk.rate(bad, "down", "SELECT nothing FROM nowhere")
    talk.rate(bad, "down", "SELECT kind, count(*) FROM visit GROUP BY kind;")
    worse = talk.ask("visits per year", setup)
    worse.wait(20)
    talk.rate(worse, "down")
    read = feedback.read(path)
    assert [row["rating"] for row in read] == ["up", "down", "down"]
    assert rows_by_sqlite(read[0]["sql"]) == rows_by_sqlite(ANSWERS["how many moons"])
    assert read[1]["sql"] == "SELECT kind, count(*) FROM visit GROUP BY kind" and "sql" not in read[2]

    from factory.tasks import get_task
    from factory.tasks.task import DataSource

    examples, _ = get_task("sql").load(DataSource(db=BUNDLED, questions=path, split="all"))
    assert [(e.question, e.reference) for e in examples] == [(row["question"], row.get("sql")) for row in read]


def test_the_table_is_picked_from_the_question() -> None:
    database = Database.from_file(BUNDLED)
    for question, table in [
        ("Who discovered Triton?", "moon"),
        ("Which country launched Hope?", "mission"),
        ("How many visits to Mars were by a rover?", "visit"),
        ("What is the mass of Jupiter in earths?", "planet"),
    ]:
        assert likely_table(database, question) == table


def test_confidence_is_read_off_the_calibration(runs: Path) -> None:
    calibration = artifact(runs).card.calibration
    assert accuracy_at(calibration, 0.5) == 0.6 and accuracy_at(calibration, 0.95) == 0.9
    assert accuracy_at(calibration, None) is None and accuracy_at((), 0.9) is None


def test_a_model_that_fails_is_one_sentence(runs: Path, setup: Setup) -> None:
    from agents.chat import ModelError

    class Broken(ScriptedShop):
        def model(self, artifact: Any) -> Any:
            raise ModelError("the file is damaged; export it again")

    turn = Talk(Broken(), runs / "own").ask("anything", setup)
    turn.wait(20)
    assert turn.status == "failed" and turn.problem == "the file is damaged; export it again"


def test_questions_are_limited(talk: Talk, setup: Setup) -> None:
    for question, why in [("   ", "empty"), ("x" * 3000, "3,000 characters")]:
        with pytest.raises(TalkError, match=why):
            talk.ask(question, setup)
    assert talk.turns == [] and AnalystState(question="x").answer is None


def test_pages_and_wiring_import_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "import app.access, app.artifacts, app.talk, app.turns, app.records, app.persona_form, app.picture, app.timeline\n"
        "from app.artifacts import find_artifacts; find_artifacts(Path('runs'))\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'onnxruntime', 'pandas', 'streamlit'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("question", "label", "way"),
    [
        ("How many moons?", "out_of_scope", ["route", "table", "write", "run", "check"]),
        ("How far are 3 miles in kilometers?", "measurement_conversion", ["route", "call"]),
    ],
)
def test_three_blades_send_a_request_to_sql_or_to_functions(
    runs: Path, setup: Setup, question: str, label: str, way: list[str]
) -> None:
    from agents import Persona, Scripted
    from agents import events as ev
    from agents.toolbox.sqlite import SqliteTools
    from app.blades import TOOLS, BladesState, blades
    from app.picture import path_of
    from app.timeline import tool_calls

    shop, database = ScriptedShop(), Database.from_file(BUNDLED)
    arguments = {"value": 3, "from_unit": "mile", "to_unit": "kilometer"}
    caller = Persona(
        "tools",
        Scripted([json.dumps({"name": "convert_length", "arguments": arguments}), "done"]),
        tools=TOOLS,
    )
    graph = blades(
        Persona("route", Scripted([label])),
        caller,
        shop.persona(setup.artifact, database=database),
        SqliteTools(BUNDLED),
        database,
        single=False,
    )
    events = list(graph.stream(BladesState(question=question)))
    ended = next(event for event in events if isinstance(event, ev.RunEnded))
    assert ended.reason == "end" and path_of(events) == way
    answer = next(e.changes["answer"] for e in events if isinstance(e, ev.NodeEnded) and "answer" in e.changes)
    assert answer == ("11" if label == "out_of_scope" else "4.82803 kilometer")
    if label == "out_of_scope":
        assert tool_calls(events) == []
    else:
        assert [(call["arguments"], call["result"]) for call in tool_calls(events)] == [(arguments, "4.82803 kilometer")]


def test_an_unsure_model_hands_over_to_the_larger_one(runs: Path, setup: Setup) -> None:
    from app.timeline import lines

    class Two(ScriptedShop):
        def model(self, artifact: Any) -> Any:
            from agents import Scripted

            said = "no statement at all" if artifact.run == "scripted" else ANSWERS["how many moons"]
            return self._models.get(artifact.key, lambda: Scripted([said], repeat=True, name=artifact.run))

    talk = Talk(Two(), runs / "own")
    larger = Setup(setup.artifact, BUNDLED, larger=artifact(runs, "larger"))
    turn = talk.ask("How many moons?", larger)
    assert turn.wait(20) and turn.status == "done", turn.problem
    assert turn.state["rows"] == rows_by_sqlite(ANSWERS["how many moons"])
    assert [line.what for line in lines(turn.events)].count("escalated") == 1
    assert larger.described()["larger"] != larger.described()["artifact"]


def test_the_router_uses_a_set_with_an_out_of_scope_answer(runs: Path, setup: Setup) -> None:
    from agents.chat import ModelError
    from factory.tasks.route.labels import make_set

    def data(*sets: tuple[str, bool]) -> dict[str, Any]:
        return {"sets": [make_set(id, id, ["play music", "set timer"], out, "here").data() for id, out in sets]}

    shop = ScriptedShop(lambda request: "set_timer")
    both = artifact(runs, "both", "route", task_data=data(("closed", False), ("open", True)))
    router = shop._router(both)
    assert router.task is not None and router.task.opened({}).id == "open"
    with pytest.raises(ModelError, match="out-of-scope"):
        shop._router(artifact(runs, "closed", "route", task_data=data(("closed", False))))
