"""The report and the model card, from a run directory written with the real writers."""

import json
import math
import subprocess
import sys

import pytest

from agents.card import BaseEntry, Card, DataEntry, ScoreEntry
from factory.events import EventLog
from factory.facts import gather
from factory.ledger import Ledger
from factory.predictions import Prediction, summarize, write_predictions
from factory.report import next_command, summary, write_model_card, write_report

HOSTILE = "What | is <script>alert(1)</script> ![x](http://evil.example/a.png) `rm` **b**?\n# Heading"
DECODING = "greedy, constrained"


def predictions(n, right, hostile=False):
    out = []
    for i in range(n):
        correct = i < right
        out.append(
            Prediction(
                id=str(i),
                question=HOSTILE if hostile and i == n - 1 else f"How many rows have number {i}?",
                context_id="t",
                reference=f'SELECT COUNT("A") FROM "t" WHERE "B" = {i}',
                completion="…",
                answer='SELECT \'|\' || "A" FROM "t" -- ```'
                if hostile and i == n - 1
                else f'SELECT "A" FROM "t" WHERE "B" = {i}',
                correct=correct,
                metrics={"execution": correct, "logical_form": correct and i % 2 == 0},
                error=None if correct else ("wrong-value", "wrong-column", "wrong-aggregate")[i % 3],
                confidence=0.99 if hostile and i == n - 1 else (0.5 + 0.4 * (i / n) if correct else 0.2 + 0.5 * (i / n)),
                seconds=0.01,
            )
        )
    return out


def entry(n, right, **more):
    return summarize(predictions(n, right), "some/model", "execution", "compact", DECODING, True).summary() | more


@pytest.fixture
def run_dir(tmp_path):
    """A finished run: 400 questions, student 45 %, teacher 92 %."""
    run = tmp_path / "sql-scratch-tiny-recorded"
    (run / "model").mkdir(parents=True)
    (run / "config.toml").write_text('task = "sql"\nstudent = "scratch:tiny"\nteacher = "recorded"\nrank = 16\n')
    scores = {
        "student": entry(400, 180, parameters=5_800_000, model_bytes=23_200_000),
        "untrained": entry(400, 2, parameters=5_800_000),
        "teacher": entry(400, 368),
    }
    (run / "scores.json").write_text(json.dumps(scores))
    write_predictions(run / "predictions.jsonl", predictions(400, 180, hostile=True))
    shown = {
        "question": HOSTILE,
        "answer": 'SELECT "A" FROM "t"',
        "columns": ["A|B"],
        "rows": [["<b>x</b>"], [None], [3]],
        "correct": False,
    }
    (run / "answers.json").write_text(json.dumps([shown]))
    small = {"score": 0.9, "low": 0.8, "high": 0.95, "n": 64}
    (run / "state.json").write_text(json.dumps({"gate": {"teacher": small, "untrained": small | {"score": 0.1}}}))
    score = ScoreEntry(split="dev", n=400, score=0.45, low=0.4, high=0.5, metric="execution", decoding=DECODING)
    card = Card(
        name="sql-tiny",
        task="sql",
        task_version=1,
        dialect="compact",
        prompt_template="sql-compact",
        constraint="lark",
        parser="sql-compact",
        base=BaseEntry(id="scratch:tiny"),
        teacher="recorded",
        license="Apache-2.0",
        data=(DataEntry(name="wikisql", split="train", license="BSD-3-Clause", source="github", sha256="ab" * 32, n=56355),),
        scores={"student": score},
        created_by="penknife 0.1.0",
    )
    card.save(run / "model")
    log = EventLog(run / "events.jsonl")
    with log.stage("rows", total=10, unit="rows") as stage:
        stage.drop("counted-by-the-ledger-instead", n=999)
    with log.stage("train", total=600, unit="steps") as stage:
        for step in range(1, 601):
            stage.metric(
                step=step, loss=4 * math.exp(-step / 150) + 0.35 + 0.1 * math.sin(step * 12.9898) * math.exp(-step / 400)
            )
            if step % 150 == 0:
                stage.metric(step=step, score=0.45 * step / 600, low=0.45 * step / 600 - 0.03, high=0.45 * step / 600 + 0.03)
        stage.drop("too-long", n=41)
        stage.warn("41 rows are longer than 1024 tokens")
    with log.stage("score student", total=400) as stage:
        stage.metric(score=0.45, low=0.4, high=0.5, n=400)
    log.close()
    with Ledger(run / "ledger.sqlite") as ledger:
        for i in range(310):
            ledger.drop("rows", "duplicate" if i % 3 else "overlaps-validation", str(i))
        for i in range(77):
            ledger.drop("verify", "different-result", str(i))
    return run


def test_the_report_tells_the_run(run_dir):
    text = write_report(run_dir).read_text()
    assert "The student scratch:tiny answers 45.0 % of 400 questions correctly" in text
    assert "95 % interval 40.2 % to 49.9 %" in text
    assert "It is wrong more often than right" in text
    assert "training is what made the difference" in text
    assert "Its teacher answers 92.0 %, of which it keeps 48.9 %." in text
    assert "| verify | different-result | 77 |" in text
    assert "| train | too-long | 41 |" in text
    assert "| rows | duplicate | 206 |" in text
    assert "| wikisql | train | 56,355 | BSD-3-Clause |" in text
    assert "`abababababababab`" in text
    assert "41 rows are longer than 1024 tokens" in text
    assert "python -m factory.evaluate" in text
    assert "Missing from this report" not in text
    for plot in ("loss", "score", "drops", "errors", "size"):
        assert f"](report/{plot}.png)" in text
        assert (run_dir / "report" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")


def test_the_stage_that_the_ledger_counts_is_not_counted_twice(run_dir):
    assert "counted-by-the-ledger-instead" not in write_report(run_dir).read_text()
    assert gather(run_dir).drops["rows"] == {"duplicate": 206, "overlaps-validation": 104}


def test_text_of_questions_never_becomes_markup(run_dir):
    text = write_report(run_dir).read_text()
    assert "<script>" not in text.replace(r"\<script\>", "")
    assert "![x]" not in text
    assert "http://evil" not in text
    assert "\n# Heading" not in text
    assert "<b>x</b>" not in text
    # The surest mistake is the hostile one: all of it in one row of five cells.
    (row,) = [line for line in text.splitlines() if line.startswith("| What ")]
    assert len(row.replace(r"\|", "").strip("| ").split(" | ")) == 5
    assert row.endswith("99.0 % |")


def test_rendered_html_holds_the_question_as_text(run_dir):
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py comes with rich")
    html = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(write_report(run_dir).read_text())
    assert "<script" not in html
    assert 'src="http' not in html
    assert html.count("<h1>") == 1
    assert "What | is &lt;script&gt;alert(1)&lt;/script&gt; ![x](http://evil.example/a.png) `rm` **b**? # Heading" in html
    assert "<code>SELECT '|' || &quot;A&quot; FROM &quot;t&quot; -- ```</code>" in html
    # Every table row has as many cells as its header.
    for table in html.split("<table>")[1:]:
        counts = {row.count("<td") + row.count("<th") for row in table.split("</table>")[0].split("<tr>")[1:]}
        assert len(counts) == 1


@pytest.mark.parametrize(
    "name", ["config.toml", "scores.json", "predictions.jsonl", "events.jsonl", "ledger.sqlite", "model/card.json"]
)
@pytest.mark.parametrize("damage", ["absent", "damaged"])
def test_a_missing_part_is_named(run_dir, name, damage):
    if damage == "absent":
        (run_dir / name).unlink()
    else:
        (run_dir / name).write_text("{ no such thing \n more\n")
    text = write_report(run_dir).read_text()
    if (name, damage) == ("events.jsonl", "damaged"):
        return  # torn lines of the log are skipped, which is its contract
    name = "card.json" if (name, damage) == ("model/card.json", "absent") else name
    assert f"- `{name}`: {'not there' if damage == 'absent' else 'cannot be read'}" in text
    write_model_card(run_dir)


def test_an_empty_directory_still_gives_a_report(tmp_path):
    text = write_report(tmp_path).read_text()
    assert "The student has not been scored" in text
    assert "No scores were written." in text
    assert list((tmp_path / "report").iterdir()) == []


@pytest.mark.parametrize(
    ("student", "untrained", "teacher", "says"),
    [
        (5, 3, 90, "not clearly better than before training"),
        (60, 3, 90, "About one answer in 2 is wrong"),
        (95, 3, 60, "better than its teacher"),
        (88, 3, 90, "cannot be told apart from its teacher"),
        (95, 3, 97, "About one answer in 20 is wrong."),
        (100, 3, 100, "made no mistake here"),
    ],
)
def test_the_summary_follows_the_numbers(tmp_path, student, untrained, teacher, says):
    facts = gather(tmp_path)
    facts.scores = {"teacher": entry(100, teacher), "untrained": entry(100, untrained), "student": entry(100, student)}
    assert says in " ".join(summary(facts))


def test_another_number_of_questions_is_said(tmp_path):
    facts = gather(tmp_path)
    facts.scores = {"teacher": entry(64, 60), "student": entry(100, 50)}
    assert "Its teacher answers 93.8 % of 64 questions, of which it keeps 53.3 %." in summary(facts)


def test_next_command_is_quoted(tmp_path):
    facts = gather(tmp_path / "a run")
    facts.config = {"task": "sql", "db": "my data.sqlite"}
    assert f"'{tmp_path}/a run/model'" in next_command(facts)
    assert "--db 'my data.sqlite'" in next_command(facts)


def test_model_card_is_what_the_hub_reads(run_dir):
    from huggingface_hub import ModelCard

    read = ModelCard.load(write_model_card(run_dir)).data
    assert (read.license, read.datasets, read.base_model) == ("apache-2.0", ["wikisql"], None)
    (result,) = read.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("execution", 0.45, "dev")
    assert "45.0 %" in (run_dir / "model" / "README.md").read_text()


def test_model_card_front_matter_cannot_be_broken_out_of(run_dir):
    import yaml

    card = Card.load(run_dir / "model", check_weights=False)
    bad = DataEntry(name='x"\n---\nlicense: mit\u2028', split="train", license="none", sha256="", n=1)
    card.model_copy(update={"data": (bad,), "license": None}).save(run_dir / "model")
    text = write_model_card(run_dir).read_text()
    front = yaml.safe_load(text.split("\n---\n")[0])
    assert front["datasets"] == [bad.name]
    assert front["license"] == "other"


def test_the_command_writes_both_and_refuses_what_is_no_run(run_dir, tmp_path):
    command = [sys.executable, "-m", "factory.report"]
    done = subprocess.run([*command, run_dir], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"written: {run_dir}/report.md", f"written: {run_dir}/model/README.md"]
    done = subprocess.run([*command, tmp_path / "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "not a run directory" in done.stderr
    assert done.stderr.count("\n") == 1
