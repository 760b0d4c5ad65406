"""Training end to end on a tiny model: methods, adapters, kills, budgets, choice of the candidate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.checkpoints import newest
from factory.dataset import DatasetError, tokenize
from factory.events import EventLog
from factory.merge import merge_adapter
from factory.onpolicy import TeacherRefused
from factory.topk import TopkError, store_topk
from factory.train import TrainError, TrainJob, has_bf16, train

METHODS = ("sft", "logits", "on-policy")
ADAPTERS = ("none", "lora", "qlora", "dora")


@pytest.fixture(scope="module")
def topk_dir(tmp_path_factory: pytest.TempPathFactory, mixtral: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> Path:
    directory = tmp_path_factory.mktemp("topk")
    store_topk(tokenize(rows, tokenizer, 64), mixtral, directory, 8, len(tokenizer), "mixtral")
    return directory


@pytest.fixture
def job(student_dir: Path, tmp_path: Path, rows: list[dict[str, Any]], topk_dir: Path, mixtral: Any, tokenizer: Any) -> TrainJob:
    return TrainJob(
        student_dir,
        tmp_path / "run",
        rows,
        epochs=1,
        batch=8,
        rank=4,
        max_length=64,
        learning_rate=5e-3,
        checkpoints=1,
        log_every=1,
        topk_dir=topk_dir,
        teacher=(mixtral, tokenizer),
        max_new_tokens=4,
    )


def opened(directory: Path, base: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (directory / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)
    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_every_adapter(method: Any, adapter: Any, job: TrainJob, log: EventLog, capfd: Any) -> None:
    """Two steps: weights move, files open again, the merged model agrees, and nothing is printed."""
    result = train(replace(job, method=method, adapter=adapter, epochs=2 / 6), log)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
    assert result.steps == 2 and result.rows == 48 and result.tokens > 0
    assert all(torch.isfinite(torch.tensor(loss)) for _, loss in result.losses) and len(result.losses) == 2
    model = opened(result.best_dir, job.base_dir)
    assert not list(result.best_dir.glob("*.bin")) + list(result.best_dir.glob("*.pt*"))
    if adapter == "none":
        before = opened(job.base_dir, job.base_dir).state_dict()
        assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    else:
        assert any(p.abs().max() > 0 for n, p in model.named_parameters() if "lora_B" in n)
        assert not any("lm_head" in n for n, p in model.named_parameters() if "lora_" in n)
        capfd.readouterr()
        report = merge_adapter(job.base_dir, result.best_dir, job.out_dir / "model")
        assert capfd.readouterr().err == ""
        assert report.max_difference < 1e-3
        assert opened(report.out_dir, report.out_dir).dtype == torch.float32


def test_learning_lowers_the_loss(job: TrainJob, log: EventLog) -> None:
    result = train(replace(job, epochs=8, log_every=6), log)
    assert result.losses[-1][1] < 0.6 * result.losses[0][1]
    progress = [e for e in log.events if e["kind"] == "progress"]
    assert progress[-1]["done"] == result.steps == 48
    assert {"loss", "lr", "tokens_per_s", "left_s", "epoch"} <= set(progress[-1])


@pytest.mark.parametrize(("method", "adapter"), [("sft", "none"), ("sft", "lora"), ("logits", "none"), ("on-policy", "lora")])
def test_resume_gives_the_same_losses(
    method: Any, adapter: Any, job: TrainJob, log: EventLog, stop_at: Callable[[int], EventLog], tmp_path: Path
) -> None:
    """Killed after step 5 of 9 with checkpoints at 2 and 4: the rest equals an uninterrupted run."""
    job = replace(job, method=method, adapter=adapter, epochs=1.5, save_every=2, accumulate=1, ema_decay=0.9)
    whole = train(replace(job, out_dir=tmp_path / "whole"), log)
    with pytest.raises(KeyboardInterrupt):
        train(job, stop_at(5))
    found = newest(job.out_dir / "checkpoints")
    assert found is not None and found.name == "checkpoint-4"
    seen = EventLog()
    resumed = train(job, seen)
    assert next(e for e in seen.events if e["kind"] == "start")["done"] == 4
    assert [step for step, _ in resumed.losses] == list(range(1, 10))
    for (_, mine), (_, theirs) in zip(resumed.losses, whole.losses):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert resumed.tokens == whole.tokens
    first, second = (opened(r.best_dir, job.base_dir).state_dict() for r in (whole, resumed))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


def test_a_torn_checkpoint_falls_back(job: TrainJob, log: EventLog, stop_at: Callable[[int], EventLog], tmp_path: Path) -> None:
    job = replace(job, epochs=1, save_every=2)
    whole = train(replace(job, out_dir=tmp_path / "whole"), log)
    with pytest.raises(KeyboardInterrupt):
        train(job, stop_at(5))
    last = job.out_dir / "checkpoints" / "checkpoint-4"
    with (last / "optimizer.pt").open("rb+") as file:
        file.truncate(100)
    seen = EventLog()
    resumed = train(job, seen)
    assert next(e for e in seen.events if e["kind"] == "start")["done"] == 2
    assert resumed.final_loss == pytest.approx(whole.final_loss, rel=1e-5)
    assert newest(job.out_dir / "checkpoints") == job.out_dir / "checkpoints" / "checkpoint-6"


def test_accumulated_batches_equal_one_large_batch(job: TrainJob, log: EventLog) -> None:
    """The mean is over the tokens of the whole step, not a mean of means."""
    if has_bf16():
        tolerance = 2e-3
    else:
        tolerance = 1e-5
    large = train(replace(job, batch=16, out_dir=job.out_dir / "large"), log)
    small = train(replace(job, batch=4, accumulate=4, out_dir=job.out_dir / "small"), log)
    assert large.steps == small.steps == 3
    for (_, one), (_, four) in zip(large.losses, small.losses):
        assert one == pytest.approx(four, rel=tolerance)


def test_the_best_candidate_is_kept_and_scored_once(job: TrainJob, log: EventLog) -> None:
    scores = {3: 0.2, 6: 0.9, 9: 0.4, 12: 0.1}
    asked: list[int] = []

    def score(directory: Path) -> float:
        assert (directory / "model.safetensors").is_file() and (directory / "tokenizer.json").is_file()
        asked.append(int(directory.name.removeprefix("step-")))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return scores[asked[-1]]

    job = replace(job, epochs=2, checkpoints=4)
    with pytest.raises(KeyboardInterrupt):
        train(job, log, score)
    assert asked == [3, 6, 9]
    result = train(job, log, score)
    assert asked == [3, 6, 9, 9, 12], "a scored candidate is not scored again"
    assert (result.best_step, result.best_score, result.best_dir.name) == (6, 0.9, "step-000006")
    assert [p.name for p in sorted((job.out_dir / "candidates").glob("step-*"))] == ["step-000006"]
    stored = json.loads((job.out_dir / "candidates" / "scores.json").read_text())
    assert {entry["step"]: entry["score"] for entry in stored} == scores
    assert [e["score"] for e in log.events if e["kind"] == "metric" and "score" in e] == [0.2, 0.9, 0.4, 0.1]
    again = train(job, log, score)
    assert asked[5:] == [] and again.best_dir == result.best_dir and again.final_loss == result.final_loss


def test_killed_in_the_last_scoring(job: TrainJob, log: EventLog) -> None:
    def dies(directory: Path) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, log, dies)
    result = train(job, log, lambda directory: 0.5)
    assert (result.best_score, result.best_step, result.steps) == (0.5, 6, 6)


def test_averaged_weights_are_what_is_scored(job: TrainJob, log: EventLog, tmp_path: Path) -> None:
    plain = opened(train(job, log).best_dir, job.base_dir).state_dict()
    job = replace(job, out_dir=tmp_path / "ema", ema_decay=0.99)
    mean = opened(train(job, log).best_dir, job.base_dir).state_dict()
    start = opened(job.base_dir, job.base_dir).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert 0 < (mean[name] - start[name]).norm() < (plain[name] - start[name]).norm()


def test_minutes_fit_the_schedule(job: TrainJob, log: EventLog) -> None:
    """A budget far too small for 1,000 passes: the schedule shrinks, the learning rate still ends near 0."""
    result = train(replace(job, epochs=1000, minutes=0.15, batch=4, log_every=1), log)
    stored = json.loads((job.out_dir / "schedule.json").read_text())
    assert stored["fits"][0]["total"] == 12_000 and stored["fits"][1]["at"] == 15
    assert 15 < result.steps == stored["fits"][-1]["total"] < 12_000
    rates = [e["lr"] for e in log.events if e["kind"] == "progress"]
    assert rates[-1] < 0.1 * max(rates)


def test_a_finished_schedule_is_kept_by_a_resumed_run(job: TrainJob, log: EventLog, stop_at: Callable[[int], EventLog]) -> None:
    job = replace(job, epochs=1000, minutes=0.08, batch=4, save_every=5)
    with pytest.raises(KeyboardInterrupt):
        train(job, stop_at(21))
    fits = json.loads((job.out_dir / "schedule.json").read_text())["fits"]
    result = train(replace(job, minutes=5.0), log)
    assert result.steps == fits[-1]["total"]


def test_losses_are_reported(job: TrainJob, log: EventLog) -> None:
    lengths = tokenize(job.rows, _tokenizer(job), 64).lengths
    limit = int(sorted(lengths)[30])
    result = train(replace(job, max_length=limit, epochs=0.2), log)
    n = int((lengths > limit).sum())
    assert result.dropped == {"truncated": n} and result.rows == 48 - n
    assert [(e["reason"], e["n"]) for e in log.events if e["kind"] == "drop"] == [("truncated", n)]


def _tokenizer(job: TrainJob) -> Any:
    from factory.train import load_tokenizer

    return load_tokenizer(job.base_dir)


def test_what_cannot_be_trained(job: TrainJob, log: EventLog, tmp_path: Path, mixtral: Any) -> None:
    with pytest.raises(DatasetError, match="raise --max-length"):
        train(replace(job, max_length=4), log)
    with pytest.raises(TrainError, match="needs stored teacher log-probabilities"):
        train(replace(job, method="logits", topk_dir=None), log)
    with pytest.raises(TopkError, match=r"no index\.json"):
        train(replace(job, method="logits", topk_dir=tmp_path), log)
    with pytest.raises(TeacherRefused, match="over HTTP; use a local teacher"):
        train(replace(job, method="on-policy", teacher="http://127.0.0.1:1/v1#m"), log)
    from factory.scratch import train_tokenizer

    other = train_tokenizer(["entirely different words here"] * 9, (), 300)
    with pytest.raises(TeacherRefused, match="tokenizers differ"):
        train(replace(job, method="on-policy", teacher=(mixtral, other)), log)


def test_prompt_loss_and_other_options(job: TrainJob, log: EventLog) -> None:
    for i, method in enumerate(("sft", "logits")):
        out = job.out_dir / str(i)
        result = train(
            replace(job, method=method, prompt_loss=0.3, decay="cosine", divergence="js", epochs=0.4, out_dir=out), log
        )
        assert result.final_loss > 0
    shutil.rmtree(job.out_dir)
    result = train(replace(job, activation_checkpointing=True, adapter="lora", epochs=0.4), log)
    assert result.steps == 3
