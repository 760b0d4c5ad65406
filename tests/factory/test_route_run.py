"""A router made from a user's own rows, by both commands, asked as a persona and scored again from its card alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.card import Card
from agents.chat import ModelError
from agents.persona import Persona
from factory import distill, finetune
from factory.evaluate import main as evaluate
from factory.facts import gather
from factory.settings import DistillSettings, FinetuneSettings, build
from factory.tasks.route.labels import OUT_OF_SCOPE
from factory.tasks.runtime import answerer
from factory.tasks.task import TaskError

SAID = {
    "billing": ("i was charged {} times", "invoice {} is wrong", "refund payment {}", "why is bill {} so high"),
    "support": ("the app crashed {} times", "error {} when saving", "i cannot open file {}", "screen {} stays black"),
    OUT_OF_SCOPE: ("tell me joke {}", "sing song {}", "who won game {}", "what is the weather on day {}"),
}
TINY = {"student": "scratch:tiny", "epochs": 3.0, "batch": 16, "checkpoints": 1, "gate": 4, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("desk") / "desk.jsonl"
    rows = [{"question": text.format(i), "label": label} for i in range(12) for label, texts in SAID.items() for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (path.parent / "labels.txt").write_text("billing: money\nsupport: something is broken\nout_of_scope\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("route") / "run"
    labels = questions.parent / "labels.txt"
    made = finetune.run(
        build(
            FinetuneSettings,
            {"task": "route", "questions": questions, "labels": labels, "out": out, **TINY},
            "test",
        )
    )
    assert made == out
    return out


def test_the_card_holds_the_labels_and_the_scores(run: Path) -> None:
    card = Card.load(run / "model")
    (labels,) = card.task_data["sets"]
    inside = sum(p.counted for p in gather(run).predictions)
    assert set(labels.pop("outside_above")) == {name for name in ("0.01", "0.02", "0.05", "0.1") if float(name) * inside >= 1}
    assert labels == {
        "id": "desk",
        "title": "desk",
        "labels": {"billing": "money", "support": "something is broken"},
        "out_of_scope": True,
    }
    assert card.scores["student"].metric == "in-scope accuracy"
    score = json.loads((run / "scores.json").read_text())["student"]
    assert score["apart"] > 0
    assert "out-of-scope AUROC" in score["figures"]


def test_the_report_shows_figures_and_confusions(run: Path) -> None:
    text = (run / "report.md").read_text()
    assert "out-of-scope recall at 5 % false alarms" in text
    facts = gather(run)
    assert len(facts.answers) == 3
    confusions = facts.scores["student"]["confusions"]
    assert ("Taken for each other most often" in text) == bool(confusions)
    assert sum(c["n"] for c in confusions) == sum(not p.correct for p in facts.predictions)
    assert "--labels" in text.split("## Next")[1]


def test_a_persona_needs_nothing_but_the_model(run: Path, questions: Path) -> None:
    persona = Persona.from_artifact(run / "model", task=answerer)
    scored = {p.question: p for p in gather(run).predictions}
    for question, prediction in list(scored.items())[:4]:
        result = persona(question)
        assert result.text == prediction.answer
        assert result.confidence == pytest.approx(prediction.confidence, abs=1e-5)
        assert result.probability is None or 0 <= result.probability <= 1
    with pytest.raises(TaskError, match="can give no others"):
        Persona.from_artifact(run / "model", task=answerer, labels=["red", "blue"])
    with pytest.raises(TaskError, match="knows no 'db'"):
        persona("hi", db="x.sqlite")
    persona.model.close()


def test_it_is_scored_again_from_its_card(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "monday.jsonl"
    few.write_text(
        '{"question": "refund payment 99", "label": "billing"}\n{"question": "sing song 44", "label": "out_of_scope"}\n'
    )
    out = tmp_path / "scores.json"
    arguments = [str(run / "model"), "--task", "route", "--questions", str(few), "--split", "all", "--json", str(out)]
    evaluate(arguments)
    found = json.loads(out.read_text())
    assert (found["n"], found["apart"]) == (1, 1)
    assert {"out-of-scope recall", "calibration error before the card's curve"} <= set(found["figures"])
    assert "out-of-scope recall" in capsys.readouterr().out


def test_recorded_answers_teach_and_wrong_ones_are_dropped(questions: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    wrong = {3, 10}
    recorded = tmp_path / "said.jsonl"
    said = [
        {"question": row["question"], "answer": "billing or support" if i in wrong else f"Label: {row['label'].upper()}"}
        for i, row in enumerate(rows)
    ]
    recorded.write_text("".join(json.dumps(row) + "\n" for row in said))
    out = distill.run(
        build(
            DistillSettings,
            {
                "task": "route",
                "questions": questions,
                "teacher": f"recorded:{recorded}",
                "out": tmp_path / "run",
                **TINY,
                "epochs": 0.5,
            },
            "test",
        )
    )
    assert out is not None
    facts = gather(out)
    trained = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in trained} == set(SAID)
    assert not {row["question"] for row in trained} & {rows[i]["question"] for i in wrong}
    assert facts.scores["teacher"]["score"] == 1.0
    assert facts.drops["rows"]["unknown-label"] == len([i for i in wrong if rows[i]["question"] not in _held(facts)])


def test_a_teacher_sorts_what_has_no_label(run: Path, questions: Path, tmp_path: Path) -> None:
    """Questions of nobody's label are answered by the teacher, learned from and named in the card; held-out ones are dropped."""
    held = gather(run).predictions[0].question
    asked = [f"{text} {i}" for i in (70, 71, 72) for text in ("my invoice is missing", "the screen is black again")]
    more = tmp_path / "overheard.jsonl"
    more.write_text("".join(json.dumps({"question": text}) + "\n" for text in [*asked, held]), encoding="utf-8")
    given = {"task": "route", "questions": questions, "labels": questions.parent / "labels.txt", "unlabelled": more,
             "teacher": str(run / "model"), "method": "logits", "answers": "both", "force": True, "out": tmp_path / "run",
             **TINY, "epochs": 0.5}  # fmt: skip
    out = distill.run(build(DistillSettings, given, "test"))
    assert out is not None
    answers = {row["question"]: row["answer"] for row in map(json.loads, (out / "train.jsonl").read_text().splitlines())}
    persona = Persona.from_artifact(run / "model", task=answerer)
    for text in asked:
        assert answers[text] == persona(text).text
    assert held not in answers
    assert gather(out).drops["rows"]["held-out-exact"] >= 1
    (entry,) = [entry for entry in Card.load(out / "model").data if entry.name == "overheard"]
    assert (entry.split, entry.n) == ("unlabelled", len(asked) + 1)


def _held(facts) -> set[str]:
    return {p.question for p in facts.predictions}


def test_a_plain_router_takes_labels_that_it_never_learned() -> None:
    from agents.models.scripted import Scripted

    bound = answerer("route", None, labels={"refund": "money back", "other": ""})
    persona = Persona("desk", Scripted(["refund"]), task=bound)
    assert persona("I want my money back").text == "refund"
    with pytest.raises(TaskError, match="a set of labels"):
        answerer("route").ask("hi")
    with pytest.raises(TaskError, match="no such file"):
        answerer("route", None, labels="nowhere.txt")


def test_no_model_is_opened_for_bad_labels(tmp_path: Path, questions: Path) -> None:
    with pytest.raises((TaskError, ModelError), match=r"line 1: the label 'billing' is not in .*l\.txt"):
        (tmp_path / "l.txt").write_text("sales\nsupport\nout_of_scope\n")
        finetune.run(
            build(
                FinetuneSettings,
                {"task": "route", "questions": questions, "labels": tmp_path / "l.txt", "out": tmp_path / "run", **TINY},
                "test",
            )
        )
    assert not (tmp_path / "run").exists()
