"""The page Compare under AppTest: nothing there, cards, measured, at work, failed, answers; and its logic without it."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from app_models import artifact

from agents.card import ScoreEntry
from app import ask_files, comparison, run_jobs, side_by_side, view
from app.comparison import ComparisonError, read_comparison
from app.jobs import RUNNING, Jobs
from app.wiring import BUNDLED
from export.compare import Row
from export.speed import Speed

OWNER = "0123456789abcdef" * 2
SPEED = {
    "model": "a.gguf",
    "engine": "llama.cpp",
    "threads": 1,
    "prefill_tokens_per_s": 16263.511579302633,
    "decode_tokens_per_s": 4012.4159195109405,
    "first_token_ms": 15.740757999999966,
    "prefill": 256,
    "decode": 64,
    "load_s": 0.029621063000000003,
    "weight_bytes": 2207024,
    "rss_load_bytes": 36147200,
    "rss_bytes": 40570880,
    "peak_bytes": 40570880,
}


def wait_for(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def shown(test: Any) -> str:
    kinds = (test.markdown, test.caption, test.error, test.info, test.warning, test.success, test.code)
    return "\n".join(str(one.value) for kind in kinds for one in kind).replace("\\", "")


def score(right: int, n: int = 100) -> ScoreEntry:
    share = right / n
    return ScoreEntry(split="xdev", n=n, score=share, low=max(0, share - 0.1), high=min(1, share + 0.1), metric="execution",
                      decoding="greedy")  # fmt: skip


def a_comparison(place: Path, **first: Any) -> Path:
    """A file as `export.compare --json` writes it: a source and two files, one that lost too much."""
    made = Speed.model_validate(SPEED)
    rows = [
        Row(name="source, float32", path="m", bytes=13_200_000, score=score(52),
            errors_by_kind={"wrong-column": 30, "syntax": 18}),
        Row(name="a-q8_0.gguf", path="a", bytes=3_800_000, score=score(51), drop=1.0, speed=made, verdict="kept",
            errors_by_kind={"wrong-column": 31, "empty": 18}),
        Row(name="=b<b>-q4_0.gguf", path="b", bytes=2_300_000, score=score(40), drop=12.0, speed=made, verdict="rejected",
            sentence="loses 12 points", errors_by_kind={"wrong-column": 60}),
    ]  # fmt: skip
    document = {"version": "1", "source": "m", "questions": "wikisql xdev, 100 questions",
                "rows": [row.model_dump(mode="json") for row in rows], **first}  # fmt: skip
    place.write_text(json.dumps(document))
    return place


def a_run(runs: Path, name: str = "student") -> Path:
    """A finished run with a model directory."""
    artifact(runs, name)
    (runs / name / "config.toml").write_text('task = "sql"\nstudent = "scratch:tiny"\nteacher = "recorded"\n')
    (runs / name / "model" / "config.json").write_text("{}")
    return runs / name


@pytest.fixture(autouse=True)
def no_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("app.artifacts.EMBEDDED", tmp_path / "nothing")


def test_without_a_model_it_says_what_to_do(page: Callable[..., Any]) -> None:
    test = page("compare")
    assert not test.exception and "no model to compare yet" in shown(test) and test.code[0].value == "make quickstart"


def test_a_damaged_file_is_one_sentence(page: Callable[..., Any], runs: Path) -> None:
    place = runs / "bad" / "model"
    place.mkdir(parents=True)
    (place / "x.gguf").write_bytes(b"GGUF nothing")
    test = page("compare")
    assert not test.exception and len(test.error) == 1 and "x.gguf" in shown(test)


def test_models_without_a_run_are_shown_and_measuring_says_what_it_needs(page: Callable[..., Any], runs: Path) -> None:
    artifact(runs, scores={"student": score(70)})
    test = page("compare")
    assert not test.exception, test.exception
    assert test.dataframe[0].value["right %"][0] == 70.0
    assert "No run here has a finished model" in shown(test)


def test_an_unmeasured_run_offers_export_first(page: Callable[..., Any], runs: Path) -> None:
    a_run(runs)
    test = page("compare")
    assert not test.exception, test.exception
    assert "export one, then measure" in shown(test)
    assert test.button(key="measure").disabled and not test.button(key="export").disabled


def test_a_measured_run_shows_table_pictures_and_errors(page: Callable[..., Any], runs: Path) -> None:
    a_comparison(a_run(runs) / comparison.FILE)
    test = page("compare")
    assert not test.exception, test.exception
    table = test.dataframe[1].value
    assert list(table["right %"]) == [52.0, 51.0, 40.0] and list(table["MB"]) == [13.2, 3.8, 2.3]
    assert "a-q8_0.gguf is the smallest file that keeps the score" in shown(test) and "loses 12 points" in shown(test)
    assert len(test.get("vega_lite_chart")) == 3
    errors = test.dataframe[2].value
    assert list(errors["kind"]) == ["wrong-column", "empty", "syntax"] and list(errors["a-q8_0.gguf"]) == [31, 18, 0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": [{"name": 3}]}', '{"rows": [], "version": 1}'])
def test_a_damaged_comparison_is_one_sentence(page: Callable[..., Any], runs: Path, text: str) -> None:
    (a_run(runs) / comparison.FILE).write_text(text)
    test = page("compare")
    assert not test.exception and len(test.error) == 1 and "compare.json cannot be read" in shown(test)


def test_exporting_is_a_job_that_is_seen_stopped_and_explained(
    page: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = a_run(runs)
    jobs = Jobs(run_jobs.jobs_dir(runs))
    script = "import time; print('converts <b>', flush=True); time.sleep(60)"
    monkeypatch.setattr(comparison, "export_job", lambda model, quant: [sys.executable, "-c", script, quant])
    test = page("compare")
    test.selectbox(key="quant").set_value("Q4_0").run()
    test.button(key="export").click().run()
    (job,) = jobs.recent()
    assert job.about == str(place) and job.argv[-1] == "Q4_0"
    wait_for(lambda: jobs.lines(job) == ["converts <b>"])
    test.run()
    assert test.button(key="export").disabled and "Exporting" in "".join(str(one.proto) for one in test.get("progress"))
    test.button(key="stop-export").click().run()
    wait_for(lambda: jobs.state(job) == "stopped")
    test.run()
    assert not test.button(key="export").disabled and test.error


def test_one_question_to_two_files_is_shown_with_its_differences(
    page: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = artifact(runs, "one"), artifact(runs, "two")
    lines = [
        {"file": str(one.path), "answer": "SELECT a FROM t WHERE b = 1", "ms": 5, "confidence": 0.5, "columns": ["a", "a"],
         "rows": [[1, "<b>x</b>"]], "more": False},
        {"file": str(two.path), "answer": "SELECT a FROM t WHERE b = 2", "ms": 6, "confidence": None, "columns": ["a", "a"],
         "rows": [], "more": False},
    ]  # fmt: skip
    script = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    text = "\n".join(map(json.dumps, lines)) + "\n"
    asked: list[Any] = []

    def job(files: Any, question: str, db: Any, table: Any) -> list[str]:
        asked.append((list(files), question, db, table))
        return [sys.executable, "-c", script, "{job}/answers.jsonl", text]

    monkeypatch.setattr(side_by_side, "ask_job", job)
    test = page("compare", owner=OWNER)
    test.text_input(key=f"ask-question-{BUNDLED}").set_value("<script>alert(1)</script>").run()
    test.button(key="ask").click().run()
    asks = Jobs(runs / "app" / OWNER / "jobs")
    wait_for(lambda: asks.state(asks.recent()[0]) not in RUNNING)
    test.run()
    assert not test.exception, test.exception
    assert {file.path for file in asked[0][0]} == {one.path, two.path}
    assert asked[0][2] == BUNDLED and asked[0][3] in view.tables_of(BUNDLED)
    assert "“<script>alert(1)</script>”" in [text.value for text in test.text]
    assert "  SELECT a\n  FROM t\n- WHERE b = 1\n+ WHERE b = 2" in [code.value for code in test.code]
    assert "a different answer" in shown(test) and "The result has no rows" in shown(test)
    other = page("compare", owner="f" * 32)
    assert "WHERE b = 2" not in shown(other), "another browser sees no answer of this one"


def test_a_card_is_shown_and_taken_along(page: Callable[..., Any], runs: Path) -> None:
    artifact(runs, license="CC <b>", scores={"student": score(70)})
    test = page("compare")
    assert "CC <b>" in shown(test) and "70.0%" in shown(test)
    assert len(test.get("download_button")) == 1, "a directory is no file to download; its card is"


# --- without Streamlit


def test_numbers_of_the_table_are_those_of_the_file(tmp_path: Path) -> None:
    found = read_comparison(a_comparison(tmp_path / "compare.json"))
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [row["right %"] for row in rows] == ["52.0", "51.0", "40.0"]
    assert rows[2]["file"] == "'=b<b>-q4_0.gguf", "no spreadsheet takes it for a formula"
    assert found.remarks() == ["=b<b>-q4_0.gguf: rejected: loses 12 points"]
    drawn = found.against_bytes()
    assert drawn is not None and [(point["x"], point["score"]) for point in drawn["data"]["values"]] == [
        (13.2, 0.52), (3.8, 0.51), (2.3, 0.40)]  # fmt: skip
    bars = found.errors_chart()
    assert bars is not None and sum(bar["wrong"] for bar in bars["data"]["values"]) == 30 + 18 + 31 + 18 + 60


def test_an_absent_comparison_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="measure the files first"):
        read_comparison(tmp_path / "compare.json")


def answers(tmp_path: Path, *rows: dict[str, Any]) -> list[side_by_side.Answer]:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"file": f"/r/{n}.gguf", **row}) + "\n" for n, row in enumerate(rows)) + '{"file": "torn')
    return side_by_side.side_by_side(path)


def test_verdicts_compare_text_then_result(tmp_path: Path) -> None:
    first = {"answer": "SELECT 1 AS a", "columns": ["a"], "rows": [[1], [2]]}
    found = answers(
        tmp_path,
        first,
        {**first, "answer": "SELECT  1 AS a"},
        {**first, "answer": "SELECT 1 AS b", "rows": [[2], [1]]},
        {**first, "answer": "SELECT 2", "rows": [[2]]},
        {"answer": "SELECT", "sql_error": "incomplete input"},
        {"error": "the file is damaged"},
    )
    assert [one.verdict for one in found[1:]] == [
        "the same answer", "another answer with the same result", "a different answer", "incomplete input", "the file is damaged"
    ]  # fmt: skip
    assert found[1].difference == "" and "- SELECT 1 AS a" in found[3].difference


def test_the_table_is_picked_from_the_question_unless_it_is_chosen() -> None:
    assert side_by_side.table_for(BUNDLED, "How many moons does Saturn have?", "") == "moon"
    assert side_by_side.table_for(BUNDLED, "How many moons does Saturn have?", "visit") == "visit"


def test_statements_run_read_only_and_short(tmp_path: Path) -> None:
    before = BUNDLED.read_bytes()
    found = ask_files.run_sql(BUNDLED, "SELECT name FROM planet ORDER BY name LIMIT 2")
    assert found["columns"] == ["name"] and found["rows"] == [["Ceres"], ["Earth"]] and not found["more"]
    for sql in ("DROP TABLE moon", "ATTACH '/tmp/x.db' AS x", "SELECT load_extension('x')", "not sql"):
        assert "sql_error" in ask_files.run_sql(BUNDLED, sql), sql
    assert BUNDLED.read_bytes() == before
    assert "sql_error" in ask_files.run_sql(tmp_path / "absent.sqlite", "SELECT 1")


def test_a_file_that_cannot_be_asked_is_a_line_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    ask_files.main([str(tmp_path / "bad.gguf"), str(tmp_path / "absent.gguf"), "--question", "Who?", "--db", str(BUNDLED)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and all("error" in line and "\n" not in line["error"] for line in lines)


def test_a_question_that_looks_like_an_option_stays_a_question(tmp_path: Path) -> None:
    from factory.settings import parse

    argv = side_by_side.ask_job([artifact(tmp_path)], "--out=/etc/passwd", BUNDLED, "moon")
    settings = parse(ask_files.AskSettings, argv[3:], "ask")
    assert settings.question == "--out=/etc/passwd" and str(settings.out) == "{job}/answers.jsonl" and settings.table == "moon"


def test_an_adapter_is_asked_on_its_base(tmp_path: Path) -> None:
    base = artifact(tmp_path, "base")
    adapter = replace(artifact(tmp_path, "ad@pter"), base=base)
    argv = side_by_side.ask_job([adapter, base], "Who?", BUNDLED, "moon")
    assert [ask_files.divided(Path(word)) for word in argv[3:5]] == [(adapter.path, base.path), (base.path, None)]
    assert ask_files.divided(adapter.path) == (adapter.path, None), "a file that is there is taken whole"
