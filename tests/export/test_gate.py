"""The gate on real files of tiny models: what it keeps, what it refuses and why, and how a child that dies is told of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from agents.card import BaseEntry, Card, FileEntry, sha256_of_weights
from export import child, probe
from export.child import Answers, Outcome
from export.gate import GateReport, GateSettings, card_for_file, gate, judge
from export.paired import compare_answers
from export.parity import Distance, Parity, Reference
from export.probe import Found, Job
from export.questions import QuestionSettings, questions_of
from export.reference import Measured
from export.source import Source
from factory.events import EventLog
from factory.predictions import Prediction, summarize
from factory.tasks.task import TaskError
from tests.export.tiny_families import make_family
from tests.factory.shop import make_shop

CARD = Card(task="sql", task_version=1, dialect="plain", prompt_template="sql/plain/1", constraint="lark", parser="sql/plain",
            max_tokens=24, base=BaseEntry(id="scratch:tiny"), created_by="penknife")  # fmt: skip


def predictions(right: int, n: int) -> tuple[Prediction, ...]:
    return tuple(
        Prediction(id=str(i), question="", context_id="", reference="", completion="", answer="", correct=i < right,
                   metrics={"execution": i < right}, confidence=0.9 if i < right else 0.4)
        for i in range(n)
    )  # fmt: skip


def answers(right: int, n: int = 1000) -> Answers:
    made = predictions(right, n)
    return Answers(made, summarize(made, "m", "execution", "plain", "greedy, constrained", True).summary())


def parity(kld: float = 1e-5, past: float | None = None, inside: float = 1e-5) -> Parity:
    def over(value: float) -> Distance:
        return Distance(tokens=600, kld=value, max_kld=2 * value, top1=0.99)

    return Parity(**over(kld).model_dump(), conversations=over(inside), past_window=over(past) if past is not None else None)


MEASURED = Measured(Path(), Reference(vocabulary=8, context=512, window=64, texts=(), strings=(), string_ids=(), prompts=()),
                    answers(700))  # fmt: skip


@pytest.mark.parametrize(
    ("found", "file", "settings", "full", "verdict", "said"),
    [
        ({}, 700, {}, False, "kept", "loses 0 points"),
        ({}, 710, {}, False, "kept", "gains 1.00 points"),
        ({}, 695, {}, False, "kept", "loses 0.50"),
        ({}, 694, {}, False, "rejected", "69.40 % of 1,000 questions right, the source 70.00 %: loses 0.60 points"),
        ({}, 694, {"max_drop": 1.0}, False, "kept", "loses 0.60"),
        ({"string_mismatches": 3}, 700, {}, False, "rejected", "3 of 500 texts"),
        ({"prompt_mismatches": 1}, 700, {}, False, "rejected", "1 of 24 chat prompts"),
        ({"parity": parity(0.3)}, 700, {}, False, "kept", "KLD 0.3"),
        ({"parity": parity(0.3)}, 700, {"max_kld": 0.1}, False, "rejected", "more than 0.1"),
        ({"parity": parity(0.3)}, 700, {}, True, "rejected", "no 16-bit file"),
        ({"parity": parity(0.3)}, None, {}, False, "kept", "KLD 0.3"),
        ({"parity": parity(0.7)}, None, {}, False, "rejected", "more than 0.5"),
        ({"parity": parity(0.3, past=0.7)}, 700, {}, False, "rejected", "past its sliding window of 64 tokens"),
        ({"parity": parity(0.06, past=0.07, inside=0.05)}, 700, {}, False, "kept", "KLD"),
        ({"parity": None, "step": "tokenizing"}, None, {}, False, "rejected", "ended while tokenizing"),
        ({"error": "out of memory"}, None, {}, False, "rejected", "cannot use it: out of memory"),
    ],
)
def test_verdicts(found: dict[str, Any], file: int | None, settings: dict[str, Any], full: bool, verdict: str, said: str) -> None:
    given = Found(**{"strings": 500, "prompts": 24, "parity": parity(), "finished": True, **found})
    theirs = answers(file) if file is not None else Answers()
    paired = compare_answers(MEASURED.answers.right(), theirs.right()) if file is not None else None
    decided, sentence = judge(Outcome(given, theirs, None), MEASURED, paired, GateSettings(**settings), full)
    assert decided == verdict and said in sentence and "\n" not in sentence


def test_questions_without_an_answer_reject() -> None:
    failed = answers(700)
    broken = failed.predictions[0].model_copy(update={"error": "model-error"})
    theirs = Answers((broken, *failed.predictions[1:]), failed.summary)
    paired = compare_answers(MEASURED.answers.right(), theirs.right())
    verdict, sentence = judge(Outcome(Found(parity=parity()), theirs, None), MEASURED, paired, GateSettings(), False)
    assert verdict == "rejected" and "no answer to 1 of 1000" in sentence


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "aborted while opening it (SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed while opening it (SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "most likely for memory"),
        ("raise SystemExit('no such thing')", "exit status 1: no such thing"),
        ("import time; time.sleep(60)", "said nothing for 1 s"),
    ],
)
def test_a_child_that_dies_is_a_sentence(code: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = child._run
    monkeypatch.setattr(child, "_run", lambda command, *rest: run([sys.executable, "-c", code], *rest))
    outcome = child.run_probe(Job(model="x", reference=tmp_path), 1 if "sleep" in code else 60, EventLog(), "check")
    assert outcome.died is not None and said in outcome.died
    verdict, sentence = judge(outcome, MEASURED, None, GateSettings(), False)
    assert verdict == "rejected" and "\n" not in sentence


@pytest.mark.parametrize("broken", [KeyError("no such layer"), OSError(28, "No space left on device")])
def test_an_error_of_the_check_itself_is_told_apart(broken: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def work(job: Job, found: Found, write: Any) -> None:
        write("tokenizing")
        raise broken

    monkeypatch.setattr(probe, "_work", work)
    (tmp_path / "job.json").write_text(Job(model="x", reference=tmp_path).model_dump_json(), encoding="utf-8")
    with pytest.raises(type(broken)):
        probe.main([str(tmp_path / "job.json"), str(tmp_path / "found.json")])
    found = Found.model_validate_json((tmp_path / "found.json").read_text(encoding="utf-8"))
    verdict, sentence = judge(Outcome(found, Answers(), "failed"), MEASURED, None, GateSettings(), False)
    assert verdict == "failed" and sentence.startswith("the check itself failed while tokenizing") and "\n" not in sentence
    assert str(broken.args[-1]) in sentence
    report = GateReport(file="f", verdict=verdict, sentence=sentence, source="s", source_sha256="0")
    assert not report.ok


def test_a_missing_engine_is_said(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "find_spec", lambda name: None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    report = gate(Source.open(source), str(tmp_path / "a.gguf"))
    assert report.verdict == "unchecked" and "pip install" in report.sentence and report.ok and report.parity is None
    assert not (source / "export-reference").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that a run made, with card and questions of its own."""
    directory = tmp_path_factory.mktemp("gate")
    shop = make_shop(directory / "shop")
    model = make_family("llama3-rope", directory / "run" / "model", num_hidden_layers=1)
    CARD.model_copy(update={"weights_sha256": sha256_of_weights(model)}).save(model)
    (directory / "run" / "config.toml").write_text(
        f'task = "sql"\ndb = "{shop.db}"\nquestions = "{shop.questions}"\nvalidation_split = "xdev"\nseed = 3\nfinal = 4\n',
        encoding="utf-8",
    )
    return model


@pytest.fixture(scope="module")
def converted(source: Path) -> Path:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; pip install 'penknife[gguf]'")
    from export.convert import convert

    convert(Source.open(source), source.parent / "model-F16.gguf", "F16")
    return source.parent / "model-F16.gguf"


def test_the_questions_are_those_of_the_run(source: Path) -> None:
    found, _ = questions_of(Source.open(source), QuestionSettings())
    assert found is not None and found.origin.startswith("the run") and found.dialect == "plain" and found.max_tokens == 24
    assert (found.source.split, found.source.limit, found.source.seed) == ("xdev", 4, 3)


def test_the_questions_of_a_run_about_functions(tmp_path: Path) -> None:
    model = make_family("llama3-rope", tmp_path / "run" / "model", num_hidden_layers=1)
    changes = {"task": "tools", "weights_sha256": sha256_of_weights(model)}
    CARD.model_copy(update=changes).save(model)
    (tmp_path / "run" / "config.toml").write_text('task = "tools"\nfunctions = "f.json"\n', encoding="utf-8")
    assert questions_of(Source.open(model), QuestionSettings())[0] is None, "its questions were never made"
    (tmp_path / "run" / "questions.jsonl").write_text("")
    found, _ = questions_of(Source.open(model), QuestionSettings())
    assert found is not None and found.source.functions == "f.json"
    assert (found.source.questions, found.source.split) == (tmp_path / "run" / "questions.jsonl", "xdev")
    found, _ = questions_of(Source.open(model), QuestionSettings(functions="g.json", questions=tmp_path / "q.jsonl"))
    assert found is not None and (found.source.functions, found.source.split) == ("g.json", "all")


def test_the_questions_of_a_card_and_of_nothing(source: Path, tmp_path: Path) -> None:
    from agents.card import DataEntry
    from export.source import Source as Opened

    lone = make_family("llama3-rope", tmp_path / "lone", num_hidden_layers=1)
    found, why = questions_of(Opened.open(lone), QuestionSettings())
    assert found is None and "no card" in why
    with pytest.raises(TaskError, match="give --task"):
        questions_of(Opened.open(lone), QuestionSettings(dataset="wikisql"))
    entry = DataEntry(name="wikisql", split="xdev", license="x", sha256="0", n=1)
    CARD.model_copy(update={"weights_sha256": sha256_of_weights(lone), "data": (entry,)}).save(lone)
    found, _ = questions_of(Opened.open(lone), QuestionSettings(limit=7))
    assert found is not None and (found.source.dataset, found.source.split, found.source.limit) == ("wikisql", "xdev", 7)
    away = DataEntry(name="sgd+snips+seal-tools+stiff", split="validation", license="x", sha256="0", n=1)
    CARD.model_copy(update={"task": "tools", "weights_sha256": sha256_of_weights(lone), "data": (away,)}).save(lone)
    found, why = questions_of(Opened.open(lone), QuestionSettings())
    assert found is None and "names no data that is here" in why, "sets that lie in a directory nobody named"


def test_a_base_of_several_tasks_is_scored_on_the_one_asked_for(tmp_path: Path) -> None:
    from agents.card import ANY_TASK

    base = make_family("llama3-rope", tmp_path / "base", num_hidden_layers=1)
    CARD.model_copy(update={"task": ANY_TASK, "weights_sha256": sha256_of_weights(base)}).save(base)
    found, why = questions_of(Source.open(base), QuestionSettings())
    assert found is None and "several tasks" in why
    with pytest.raises(TaskError, match="say with --task"):
        questions_of(Source.open(base), QuestionSettings(dataset="wikisql"))
    found, _ = questions_of(Source.open(base), QuestionSettings(task="sql", dataset="wikisql", split="xdev"))
    assert found is not None and (found.task, found.source.dataset) == ("sql", "wikisql")


def test_a_faithful_file_is_kept_and_the_source_is_asked_once(
    source: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Source.open(source)
    settings = GateSettings(max_drop=30, threads=1, batch=4)
    report = gate(opened, str(converted), settings)
    assert report.verdict == "kept", report.sentence
    assert report.parity is not None and report.parity.tokens >= 512 and report.parity.kld < 1e-4
    assert report.bfloat16 is not None and report.bfloat16.tokens == report.parity.tokens
    assert report.parity.kld < report.bfloat16.kld < 0.01
    assert f"the source in bfloat16: KLD {report.bfloat16.kld:.2g}" in report.sentence
    assert report.strings >= 200 and report.string_mismatches == report.prompt_mismatches == 0 and report.prompts == 4
    assert report.score is not None and report.source_score is not None and report.paired is not None
    assert report.score.n == report.source_score.n == report.paired.n == 4 and report.score.decoding == "greedy, constrained"
    assert report.calibration and report.dataset and report.data_sha256
    asked: list[bool] = []
    run = child.run_probe

    def counted(job: Job, *rest: Any) -> Outcome:
        asked.append(job.source)
        return run(job, *rest)

    monkeypatch.setattr("export.gate.run_probe", counted)
    monkeypatch.setattr("export.reference.run_probe", counted)
    again = gate(opened, f"gguf:{converted}", settings)
    assert asked == [False] and again.parity == report.parity
    entry = FileEntry(name=converted.name, format="gguf", precision="F16", bits_per_weight=16, source_sha256=opened.sha256)
    assert opened.card is not None
    card = card_for_file(opened.card, entry, report)
    assert card.file is not None and card.file.kld == report.parity.kld and card.file.tokens == report.parity.tokens
    assert card.scores[converted.name] == report.score and card.calibration == report.calibration
    assert card.weights_sha256 == opened.sha256


def test_another_models_file_is_rejected(source: Path, converted: Path, tmp_path: Path) -> None:
    other = make_family("llama3-rope", tmp_path / "other", num_hidden_layers=1, seed=9)
    report = gate(Source.open(other), str(converted), GateSettings(threads=1))
    assert report.verdict == "rejected" and "KLD" in report.sentence and "no card" in report.sentence and report.score is None


@pytest.mark.slow
def test_a_file_with_another_vocabulary_is_rejected(source: Path, converted: Path, tmp_path: Path) -> None:
    strange = make_family("qwen2", tmp_path / "strange", num_hidden_layers=1)
    report = gate(Source.open(strange), str(converted), GateSettings(threads=1))
    assert report.verdict == "rejected" and report.string_mismatches > 0 and report.prompt_mismatches > 0


def test_a_damaged_file_is_rejected(source: Path, converted: Path, tmp_path: Path) -> None:
    whole = bytearray(converted.read_bytes())
    whole[-5] ^= 1
    (tmp_path / "torn.gguf").write_bytes(whole)
    report = gate(Source.open(source), str(tmp_path / "torn.gguf"), GateSettings(threads=1, batch=4))
    assert report.verdict == "rejected" and "not the file that was exported" in report.sentence


def test_a_report_is_json_and_back() -> None:
    report = GateReport(file="a", verdict="kept", sentence="s", source="x", source_sha256="0", parity=parity(past=1.0))
    assert GateReport.model_validate_json(report.model_dump_json()) == report


def test_what_is_scored_apart_is_not_compared() -> None:
    """The share of right answers that two files are compared by is that of their scores."""
    made = (*predictions(3, 4), predictions(1, 1)[0].model_copy(update={"id": "apart", "counted": False}))
    assert Answers(made).right() == {"0": True, "1": True, "2": True, "3": False}
    assert summarize(made, "m", "execution", "plain", "greedy, constrained", True).score == 0.75
