"""Teachers are checked before any cost; every refusal is one sentence with the value, the choices and the next step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agents.chat import Message, Request, Usage
from factory.machine import Machine, file_stamp
from factory.settings import DistillSettings
from factory.teacher import TEACHERS, TeacherError, TeacherPlan, open_teacher, resolve_teacher
from tests.factory.toy import sums
from tests.openai_server import OpenAIServer

SETTINGS = DistillSettings()


def machine(tmp_path: Path, gpu: float = 0.0, ram: float = 16.0, disk: float = 1000.0) -> Machine:
    return Machine(gpu, ram, disk, tmp_path)


def refused(spec: str, settings: DistillSettings = SETTINGS, on: Machine | None = None) -> str:
    with pytest.raises(TeacherError) as caught:
        resolve_teacher(spec, settings, on)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def model_directory(path: Path, shape: tuple[int, int] = (100, 10), **config: object) -> Path:
    """A model directory whose weights are a header and a hole: nothing here reads tensors."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 77, **config}))
    end = 2 * shape[0] * shape[1]
    tensors = {
        "model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, end]},
        "model.norm.weight": {"dtype": "BF16", "shape": [5], "data_offsets": [end, end + 10]},
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + min(end + 10, 100_000))
    return path


def test_every_named_teacher_says_what_it_is() -> None:
    for name, teacher in TEACHERS.items():
        assert teacher.model_id.count("/") == 1, name
        assert teacher.license, name
        assert 0 < teacher.embedding < teacher.active <= teacher.total, name
        assert 0.25 * teacher.gb_16 < teacher.gb_4 < 0.45 * teacher.gb_16, name
        assert teacher.context >= 8192, name
    assert TEACHERS["mixtral"].gb_4 == pytest.approx(24.5, abs=0.2)


def test_unknown_names_are_refused_with_the_known_and_the_nearest() -> None:
    message = refused("mixtrall")
    assert "'mixtrall'" in message
    assert "did you mean 'mixtral'?" in message
    assert "qwen2.5-coder-7b" in message
    assert "recorded" in refused("claptrap")
    assert "hub:ORG/NAME" in refused("hub:nameonly")


def test_mixtral_on_a_small_machine_names_need_have_and_three_ways_on(tmp_path: Path) -> None:
    message = refused("mixtral", on=machine(tmp_path, ram=15.2))
    for part in (
        "27.9 GB in 4 bit",
        "103.7 GB in 16 bit",
        "no GPU",
        "15.2 GB",
        "http://HOST/v1#NAME",
        "gguf:FILE",
        "--teacher recorded",
    ):
        assert part in message
    assert "20.0 GB of GPU memory" in refused("mixtral", on=machine(tmp_path, gpu=20.0))


def test_device_and_precision_follow_memory(tmp_path: Path) -> None:
    path = model_directory(tmp_path / "m", (2_000_000, 500))
    wide, narrow = 2.0 * 1.1 + 1, 0.516 * 1.1 + 1
    for gpu, ram, device, bits, need in [
        (5.0, 64.0, "cuda", 16, wide),
        (2.0, 64.0, "cuda", 4, narrow),
        (0.0, 5.0, "cpu", 16, wide),
        (1.0, 2.0, "cpu", 4, narrow),
    ]:
        plan = resolve_teacher(str(path), SETTINGS, machine(tmp_path, gpu, ram))
        assert (plan.device, plan.bits) == (device, bits)
        assert plan.need_gb == pytest.approx(need, abs=0.01)
        assert plan.have_gb == (gpu if device == "cuda" else ram)
    assert "needs" in refused(str(path), on=machine(tmp_path, 1.0, 1.0))


def test_a_directory_is_checked_by_its_headers(tmp_path: Path) -> None:
    path = model_directory(tmp_path / "m")
    plan = resolve_teacher(str(path), SETTINGS, machine(tmp_path))
    assert (plan.kind, plan.name, plan.context) == ("local", "m", 77)
    assert plan.parameters == pytest.approx(1005e-9)
    assert any("licence" in note for note in plan.notes)
    again = resolve_teacher(str(path), SETTINGS, machine(tmp_path))
    assert again.revision == plan.revision
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 78}))
    assert resolve_teacher(str(path), SETTINGS, machine(tmp_path)).revision != plan.revision


def test_directories_that_hold_no_loadable_model_are_refused(tmp_path: Path) -> None:
    small = machine(tmp_path)
    assert "no directory" in refused("./nowhere-at-all", on=small)
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(str(tmp_path / "empty"), on=small)
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "no *.safetensors" in refused(str(tmp_path / "empty"), on=small)
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"\x80")
    assert "pickled" in refused(str(tmp_path / "empty"), on=small)
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"nonsense here")
    assert "cannot be read" in refused(str(tmp_path / "empty"), on=small)


def test_a_hub_model_offline_must_be_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    big = machine(tmp_path, ram=1000)
    assert "HF_HUB_OFFLINE" in refused("qwen2.5-coder-7b", on=big)
    assert "HF_HUB_OFFLINE" in refused("hub:some/model", on=big)
    root = tmp_path / "hub" / "models--some--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc123")
    (root / "snapshots").mkdir()
    model_directory(root / "snapshots" / "abc123")
    plan = resolve_teacher("hub:some/model", SETTINGS, big)
    assert (plan.revision, plan.download_gb, plan.location) == ("abc123", 0.0, "some/model")


def test_an_unreachable_hub_is_said_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    message = refused("qwen2.5-coder-7b", on=machine(tmp_path, ram=1000))
    assert "cannot be reached (no route to host)" in message


def test_the_download_must_fit_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import factory.teacher as module
    from factory.machine import HubState

    monkeypatch.setattr(module, "hub_state", lambda model_id: HubState(revision="r"))
    message = refused("qwen2.5-coder-7b", on=machine(tmp_path, ram=1000, disk=10))
    assert "15 GB" in message
    assert "10 GB" in message
    assert resolve_teacher("qwen2.5-coder-7b", SETTINGS, machine(tmp_path, ram=1000, disk=20)).download_gb == pytest.approx(15.2)


def test_a_gguf_needs_its_file_its_backend_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    small = machine(tmp_path)
    assert "no file" in refused(f"gguf:{tmp_path}/none.gguf", on=small)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04")
    assert "not a GGUF" in refused(f"gguf:{path}", on=small)
    path.write_bytes(b"GGUF" + bytes(1000))
    assert "GGUF version 0" in refused(f"gguf:{path}", on=small)
    write_gguf(path, rows=8, columns=32)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llama_cpp" else real(name, *a))
    assert "penknife[gguf]" in refused(f"gguf:{path}", on=small)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: real("json"))
    plan = resolve_teacher(f"gguf:{path}", SETTINGS, small)
    assert (plan.name, plan.parameters) == ("m", 8 * 32 / 1e9)
    assert "quant type" in refused(f"gguf:{path}", on=machine(tmp_path, ram=0.5))


def write_gguf(path: Path, rows: int, columns: int) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((rows, columns), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_endpoint_is_asked_which_models_it_serves() -> None:
    with OpenAIServer(model="tiny") as server:
        plan = resolve_teacher(server.spec, SETTINGS)
        assert (plan.kind, plan.name, plan.revision, plan.device) == ("http", "tiny", "", "remote")
        assert any("licence" in note for note in plan.notes)
        both = resolve_teacher(f"{server.spec},{server.spec}", SETTINGS)
        assert both.name == "tiny"
        assert "does not serve 'large' but tiny" in refused(f"{server.url}#large")
        assert not server.calls
        url = server.url
    assert "nothing answers" in refused(f"{url}#tiny")
    assert "http://HOST/v1#MODEL" in refused(url)
    assert "one model" in refused(f"{url}#a,{url}#b")


def test_a_budget_needs_prices() -> None:
    with OpenAIServer(model="tiny") as server:
        assert "--price-in" in refused(server.spec, DistillSettings(budget_usd=1.0))
        plan = resolve_teacher(server.spec, DistillSettings(budget_usd=1.0, price_in=1.0, price_out=2.0))
    request = Request(messages=(Message(role="user", content="x" * 1000),))
    assert plan.cost(Usage(prompt_tokens=1000, completion_tokens=100), request) == pytest.approx(0.0012)
    assert plan.cost(Usage(prompt_tokens=1000, completion_tokens=100, cost_usd=0.5), request) == 0.5
    assert plan.cost(Usage(), request) == plan.worst_cost(request) == pytest.approx((564 * 1.0 + 256 * 2.0) / 1e6)
    assert replace(plan, price_in=None).cost(Usage(prompt_tokens=1, completion_tokens=1), request) is None


def test_moving_an_endpoint_keeps_its_answers_and_another_model_does_not() -> None:
    request = Request(messages=(Message(role="user", content="q"),), id="e1")
    here = TeacherPlan("http://a/v1#m", "http", "m", "", "http://a/v1")
    there = replace(here, spec="http://b/v1#m", location="http://b/v1")
    assert here.key(request, "answer") == there.key(request, "answer")
    assert here.key(request, "answer") == here.key(request.model_copy(update={"id": "e2"}), "answer")
    assert here.key(request, "answer") != replace(here, name="n").key(request, "answer")
    stored = TeacherPlan("recorded", "recorded", "recorded", "references", "")
    assert stored.key(request, "answer") != stored.key(request.model_copy(update={"id": "e2"}), "answer")


def test_probabilities_need_a_teacher_that_runs_here() -> None:
    with OpenAIServer(model="tiny") as server:
        assert "--method sft" in refused(server.spec, DistillSettings(method="logits", teacher=server.spec))


def test_recorded_specs(tmp_path: Path) -> None:
    assert resolve_teacher("recorded", SETTINGS).replays
    assert resolve_teacher("templates", SETTINGS).replays
    assert "takes no file" in refused("templates:x")
    assert "file is missing" in refused("recorded:")
    assert "cannot be read" in refused(f"recorded:{tmp_path}/none.jsonl")
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "s1", "answer": "8"}\n')
    plan = resolve_teacher(f"recorded:{path}", SETTINGS)
    model = open_teacher(plan, sums(3))
    request = Request(messages=(Message(role="user", content="1 + 7"),), id="s1")
    assert [reply.text for _, reply in model.generate([request])] == ["8"]


def test_a_stamp_names_contents(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(200_000))
    first = file_stamp([path])
    path.write_bytes(bytes(199_999) + b"x")
    assert file_stamp([path]) != first
