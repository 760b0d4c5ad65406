"""The main job from end to end with tiny models of the real classes: every method, every adapter, teachers that can teach."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import distill, finetune
from factory.cli import RunStopped, run_cli
from factory.events import Event, read
from factory.settings import DistillSettings, FinetuneSettings, SettingsError
from factory.tasks import get_task
from factory.tasks.task import DataSource, Example
from factory.teacher import TeacherError
from factory.teachers_local import MOST_BYTES, check_quantized
from tests.factory.tiny_models import make_model, make_tables, make_tokenizer

QUESTIONS, HELD_OUT = 72, 12
RANK = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class World:
    """The directories every test here reads: data, and untrained models that share a tokenizer."""

    data: Path
    tokenizer: Any
    mixtral: Path
    llama: Path
    qwen2: Path

    def settings(self, **more: Any) -> dict[str, Any]:
        """A run on all questions with a small batch."""
        common = {"dataset": "wikisql", "data_dir": self.data, "student": str(self.llama), "adapter": "none", "batch": 8,
                  "checkpoints": 1, "gate": HELD_OUT, "learning_rate": 3e-3, "rank": RANK, "max_length": 512}  # fmt: skip
        return {**common, **more}

    def examples(self, split: str) -> list[Example]:
        return get_task("sql").load(DataSource(dataset="wikisql", data_dir=self.data, split=split))[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    data = make_tables(root / "data", QUESTIONS, HELD_OUT)
    task = get_task("sql")
    examples, _ = task.load(DataSource(dataset="wikisql", data_dir=data, split="train"))
    tokenizer = make_tokenizer(list(task.corpus(examples, "plain")))
    models = [make_model(kind, tokenizer, root / kind, seed) for seed, kind in enumerate(("mixtral", "llama", "qwen2"))]
    return World(data, tokenizer, *models)


@pytest.fixture(scope="module")
def taught(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral that was trained on the labels until it answers held-out questions: a teacher with something to teach."""
    run = finetune.run(
        FinetuneSettings(**world.settings(student=str(world.mixtral), epochs=8, out=tmp_path_factory.mktemp("taught") / "run"))
    )
    assert run is not None and scores(run)["student"]["score"] > 0.8
    return run / "model"


def scores(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "scores.json").read_text())
    return found


def judged(run: Path) -> list[tuple[str, str | None]]:
    """(reason, canonical answer) of everything the teacher was asked for training."""
    with sqlite3.connect(run / "ledger.sqlite") as ledger:
        return ledger.execute("SELECT reason, canonical FROM verdicts").fetchall()


def command_line(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def losses(run: Path) -> dict[int, float]:
    return {int(e["done"]): e["loss"] for e in read(run / "events.jsonl") if e["kind"] == "progress" and "loss" in e}


def texts(world: World, directory: Path) -> list[str | None]:
    """Answers to the held-out questions, as `open_model` gives them."""
    from agents.models import open_model
    from factory.evaluate import evaluate

    model = open_model(str(directory), dtype="float32")
    try:
        return [p.answer for p in evaluate(get_task("sql"), model, world.examples("xdev"), "plain").predictions]
    finally:
        model.close()


# --- the teacher ------------------------------------------------------------------------------------------------------


def test_a_teacher_no_better_than_the_student_stops_the_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights against random weights: both figures, one line, exit code 3, and nothing asked for training."""
    given = world.settings(teacher=str(world.mixtral), out=tmp_path / "run", examples=16, epochs=1)
    assert run_cli(distill.main, command_line(given)) == 3
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "stopped: " in said and "0.0% and the untrained student 0.0% of 12" in said and "--force" in said
    assert not (tmp_path / "run" / "train.jsonl").exists() and not judged(tmp_path / "run")


def test_force_goes_on_and_under_the_grammar_even_random_weights_answer_in_sql(world: World, tmp_path: Path) -> None:
    for constrained, n in ((None, 12), (False, 3)):
        out = tmp_path / f"run-{constrained}"
        settings = world.settings(teacher=str(world.mixtral), out=out, examples=n, constrain_teacher=constrained, epochs=0.1)
        try:
            distill.run(DistillSettings(**settings, force=True))
        except RunStopped as stop:
            assert f"not one of {n} answers could be kept" in str(stop)
        answers = judged(out)
        assert len(answers) == n
        readable = [canonical is not None for _, canonical in answers]
        assert all(readable) if constrained is None else not any(readable), answers
        decoding = scores(out)["teacher"]["decoding"]
        assert decoding == ("greedy, constrained" if constrained is None else "greedy, unconstrained")


def test_four_bits_are_asked_for_and_measured(
    world: World, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Mixtral in nf4, experts included, teaches a Llama by its log-probabilities."""
    import factory.teachers_local as local

    found = []
    monkeypatch.setattr(local, "check_quantized", lambda model: found.append((type(model).__name__, check_quantized(model))))
    settings = world.settings(teacher=str(taught), teacher_bits=4, method="logits", epochs=8, out=tmp_path / "run")
    run = distill.run(DistillSettings(**settings))
    assert run is not None
    assert [name for name, _ in found] == ["MixtralForCausalLM"] * 2, "loaded to answer, and to give probabilities"
    assert all(0.5 < measured.bytes_per_parameter < MOST_BYTES and measured.wide_share < 0.02 for _, measured in found)
    got = scores(run)
    assert got["teacher"]["score"] > 0.8 and got["student"]["score"] > got["untrained"]["score"] + 0.3
    stored = json.loads((run / "state.json").read_text())["topk"]
    assert 4 * 32 < stored["bytes_per_token"] < 4 * 32 + 8
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    verdicts = [reason for reason, _ in judged(run)]
    assert len(verdicts) == QUESTIONS and len(rows) == verdicts.count("ok") > QUESTIONS / 2
    assert {row["source"] for row in rows} == {"model"}


def test_teachers_without_probabilities_are_refused_before_anything(world: World, tmp_path: Path) -> None:
    """Nothing listens at the address: it is not even asked."""
    for method in ("logits", "on-policy"):
        for teacher in ("http://127.0.0.1:9/v1#m", "gguf:model.gguf"):
            with pytest.raises(TeacherError, match=f"--method {method} needs every token's probabilities.*--method sft"):
                distill.run(DistillSettings(**world.settings(teacher=teacher, method=method, out=tmp_path / "run")))
    with pytest.raises(TeacherError, match="--teacher-bits 4 is for weights loaded here"):
        distill.run(DistillSettings(**world.settings(teacher="recorded", teacher_bits=4, out=tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_tokenizers_that_differ_are_refused_before_anything(world: World, tmp_path: Path) -> None:
    """As many entries, the same entries even, but merged in another order: every id means another text."""
    corpus = list(get_task("sql").corpus(world.examples("train"), "plain"))
    other = make_tokenizer(corpus, merges_from_the_end=True)
    assert len(other) == len(world.tokenizer) and other.get_vocab() == world.tokenizer.get_vocab()
    make_model("llama", other, tmp_path / "other")
    for method in ("logits", "on-policy"):
        settings = world.settings(
            teacher=str(world.mixtral), student=str(tmp_path / "other"), method=method, out=tmp_path / "run"
        )
        with pytest.raises(SettingsError, match=r"needs one tokenizer .*tokenizers differ on \d+ of 15 probes"):
            distill.run(DistillSettings(**settings))
    assert not (tmp_path / "run").exists()


# --- methods and adapters ---------------------------------------------------------------------------------------------

QUICK = {("sft", "qlora"), ("logits", "dora"), ("on-policy", "lora")}


@pytest.mark.parametrize(
    ("method", "adapter", "student"),
    [
        pytest.param(
            method, adapter, student, marks=() if (method, adapter) in QUICK and student == "llama" else pytest.mark.slow
        )
        for method in ("sft", "logits", "on-policy")
        for adapter in ("lora", "qlora", "dora", "none")
        for student in ("llama", "qwen2")
    ],
)
def test_every_method_trains_every_adapter(
    world: World, taught: Path, tmp_path: Path, method: str, adapter: str, student: str
) -> None:
    """Through to a merged model in 32 bit that answers as base and adapter do together."""
    base = getattr(world, student)
    few = {"examples": 16, "epochs": 1.0} if method == "on-policy" else {"epochs": 2.0}
    settings = world.settings(
        teacher=str(taught), teacher_bits=4, student=str(base), method=method, adapter=adapter, out=tmp_path / "run", **few
    )
    run = distill.run(DistillSettings(**settings))
    assert run is not None
    model, kept = run / "model", run / "model" / "adapter"
    untrained, merged = weights(base), weights(model)
    changed = {name for name, value in merged.items() if not torch.equal(value, untrained[name])}
    assert any("q_proj" in name for name in changed)
    assert "quantization_config" not in json.loads((model / "config.json").read_text())
    assert all(value.dtype == torch.float32 for value in merged.values()) and merged.keys() == untrained.keys()
    assert kept.is_dir() == (adapter != "none")
    if adapter == "none":
        return
    assert texts(world, model) == texts(world, kept)
    assert all("proj" in name for name in changed), "embeddings, norms and head are not an adapter's"
    if adapter != "dora":
        # Added to the base as it was: had the base been rounded to 4 bit, the difference would have full rank.
        name = "model.layers.0.self_attn.q_proj.weight"
        spectrum = torch.linalg.svdvals(merged[name] - untrained[name])
        assert spectrum[RANK - 1] > 1e-5 and spectrum[RANK] < 1e-3 * spectrum[0]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def test_a_moved_run_still_finds_the_base_of_its_adapter(world: World, tmp_path: Path) -> None:
    """The base of a from-scratch student lies in the run and is named from there."""
    settings = world.settings(student="scratch:tiny", adapter="lora", epochs=0.1, out=tmp_path / "run", examples=16)
    run = finetune.run(FinetuneSettings(**settings))
    assert run is not None
    moved = run.rename(tmp_path / "elsewhere")
    assert (
        json.loads((moved / "model" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "../../student"
    )
    from agents.models import open_model

    open_model(str(moved / "model" / "adapter")).close()


# --- students from scratch --------------------------------------------------------------------------------------------


def test_a_student_from_scratch_takes_its_teacher_s_tokenizer(world: World, taught: Path, tmp_path: Path) -> None:
    settings = world.settings(teacher=str(taught), student="scratch:tiny", adapter=None, method="logits", epochs=2,
                              learning_rate=1.5e-3, examples=40, out=tmp_path / "run")  # fmt: skip
    run = distill.run(DistillSettings(**settings))
    assert run is not None
    assert tokenizer_of(run / "model") == tokenizer_of(taught)
    assert json.loads((run / "model" / "card.json").read_text())["dialect"] == "plain"
    found = losses(run)
    assert found[max(found)] < 0.5 * found[1]


def test_labels_are_graded_by_an_ensemble_that_is_asked_nothing(world: World, taught: Path, tmp_path: Path) -> None:
    settings = world.settings(teacher=f"ensemble:{taught},{world.mixtral}", student="scratch:tiny", adapter=None, method="logits",
                              answers="labels", copies=2, epochs=1, examples=40, force=True, out=tmp_path / "run")  # fmt: skip
    run = distill.run(DistillSettings(**settings))
    assert run is not None
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    first = [row for row in rows if "/" not in row["id"]]
    assert len(rows) == 2 * len(first) > 60 and {row["source"] for row in rows} == {"labels"}
    references = {example.id: example.reference for example in world.examples("train")}
    assert all(row["answer"] == references[row["id"]] for row in first)
    assert judged(run) == [], "the teacher has answered nothing but the gate's questions"
    assert len(list((run / "topk").glob("topk-*.safetensors"))) == 1
    assert taught.name == "model" and world.mixtral.name != "model"
    assert json.loads((run / "card.json").read_text())["teacher"] == f"{taught.parent.name}+{world.mixtral.name}"


def test_our_own_student_teaches_the_next(world: World, tmp_path: Path) -> None:
    """A from-scratch teacher is asked in its own dialect, at the gate and for every answer, and passes it on."""
    scratch = world.settings(student="scratch:tiny", adapter=None, learning_rate=None)
    first = finetune.run(FinetuneSettings(**{**scratch, "epochs": 8, "out": tmp_path / "first"}))
    assert first is not None and scores(first)["student"]["score"] > 0.4
    settings = {
        **scratch,
        "teacher": str(first / "model"),
        "method": "logits",
        "epochs": 4,
        "seed": 1,
        "out": tmp_path / "second",
    }
    second = distill.run(DistillSettings(**settings))
    assert second is not None
    got = scores(second)
    assert got["teacher"]["dialect"] == got["student"]["dialect"] == "compact"
    assert got["teacher"]["score"] == pytest.approx(scores(first)["student"]["score"])
    assert got["student"]["score"] > got["untrained"]["score"]
    assert [reason for reason, _ in judged(second)].count("ok") > QUESTIONS / 3
    assert tokenizer_of(second / "model") == tokenizer_of(first / "model")


def tokenizer_of(directory: Path) -> Any:
    return json.loads((directory / "tokenizer.json").read_text())["model"]


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_stopped_in_mid_training_goes_on_with_the_same_losses(world: World, taught: Path, tmp_path: Path) -> None:
    """And asks its teacher nothing twice, nor for anything once the probabilities are stored."""
    settings = world.settings(teacher=str(taught), method="logits", epochs=4, checkpoints=2)
    whole = distill.run(DistillSettings(**settings, out=tmp_path / "whole"))
    broken = DistillSettings(**settings, out=tmp_path / "broken")

    def stop(event: Event) -> None:
        if event["kind"] == "progress" and event["stage"] == "train" and event["done"] >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill.run(broken, stop)
    assert not (tmp_path / "broken" / "model").exists()
    answers = (tmp_path / "broken" / "train.jsonl").read_bytes()
    run = distill.run(broken)
    assert whole is not None and run is not None
    # The resumed process began after step 18, so its entry for step 20 is a mean over two steps.
    expected, got = losses(whole), losses(run)
    assert [*got] == [*expected] == [1, 10, 20, 30, 36]
    assert [got[30], got[36]] == pytest.approx([expected[30], expected[36]], rel=1e-3)
    assert (run / "train.jsonl").read_bytes() == answers == (whole / "train.jsonl").read_bytes()
    stages = Counter(e["stage"] for e in read(run / "events.jsonl") if e["kind"] == "start")
    assert stages["generate"] == stages["store probabilities"] == 1 and stages["train"] == 2
    assert distill.run(broken) == run, "finished: nothing to do"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "logits", "on-policy"])
def test_two_processes_make_one_run(world: World, taught: Path, tmp_path: Path, method: str) -> None:
    """Launched twice at once: one asks, writes and scores, both train."""
    # `accelerate launch` starts several GPU processes through this launcher; on CPUs it wants MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "factory.distill"]
    given = world.settings(teacher=str(taught), method=method, epochs=2, out=tmp_path / "run")
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        [*launch, *command_line(given)], env=environment, capture_output=True, text=True, timeout=400, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    stages = Counter(e["stage"] for e in read(run / "events.jsonl") if e["kind"] == "start")
    assert set(stages.values()) == {1} and "train" in stages
    assert len(judged(run)) == QUESTIONS
    state = json.loads((run / "state.json").read_text())
    assert state["finished"] and state["training"]["steps"] == 10, "72 rows, 8 in each of 2 processes, twice"
    assert done.stdout.count("report:") == 1
    assert (run / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_when_the_leading_process_stops_the_others_leave(world: World, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "factory.distill"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    arguments = ["--student", "nobody", "--out", str(tmp_path / "run")]
    done = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("unknown student 'nobody'") == 1
    assert not (tmp_path / "run").exists()
