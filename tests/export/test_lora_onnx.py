"""Adapters swapped on one ONNX base, against peft."""

import shutil

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")

from agents.chat import Adapter, Message, ModelError, Request, Sampling, answer
from agents.models import open_model
from export.errors import ExportError
from export.onnx import export
from export.parity import divergence
from tests.export.onnx_here import build_here
from tests.export.tiny_families import make_family

ASK = Request(messages=(Message(role="user", content="hello there"),), sampling=Sampling(max_tokens=6, logprobs=True))


def make_adapter(base, directory, seed, **config):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(lora_alpha=16, **config))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", autouse=True)
def here():
    with pytest.MonkeyPatch.context() as patch:
        build_here(patch)
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    place = tmp_path_factory.mktemp("lora")
    base = make_family("smollm2", place / "base")
    made = [
        make_adapter(base, place / "one", 1, r=4, target_modules="all-linear"),
        make_adapter(base, place / "two", 2, r=8, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
    ]
    files = [export(one, lora="adapter", precision="fp32", out=place / "onnx", gate=False).path for one in made]
    return base, made, files, open_model(f"onnx:{place / 'onnx'}", threads=1)


def peft_logits(base, adapter, ids):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter)) if adapter is not None else model
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].numpy()


def test_each_adapter_and_the_bare_base_are_peft_s(shop):
    base, made, files, opened = shop
    ids = np.random.default_rng(0).integers(5, 600, 200).tolist()
    bare = peft_logits(base, None, ids)
    assert divergence(bare, opened.logits(ids))[0].mean() < 1e-9
    for adapter, file in zip(made, files):
        expected = peft_logits(base, adapter, ids)
        assert divergence(expected, bare)[0].mean() > 0.05
        assert divergence(expected, opened.logits(ids, [Adapter(path=str(file))]))[0].mean() < 1e-9


def test_scale_and_blend(shop):
    _, _, files, opened = shop
    ids = list(range(20, 60))
    one, two = (Adapter(path=str(file)) for file in files)
    bare = opened.logits(ids)
    assert np.array_equal(bare, opened.logits(ids, [one.model_copy(update={"scale": 0.0})]))
    both = opened.logits(ids, [one, two])
    assert np.allclose(both, opened.logits(ids, [two, one]), atol=1e-4)
    assert np.abs(both - opened.logits(ids, [one])).max() > 0.01


def test_swapped_many_times_each_answers_as_alone(shop):
    _, _, files, opened = shop
    asked = [ASK.model_copy(update={"adapters": set_}) for set_ in [(), *((Adapter(path=str(f)),) for f in files)]]
    alone = [answer(opened, [request])[0] for request in asked]
    assert len({reply.text for reply in alone}) == 3
    for i in range(1000):
        assert answer(opened, [asked[i % 3]])[0].logprobs == alone[i % 3].logprobs
    mixed = answer(opened, asked * 4)
    assert [reply.text for reply in mixed] == [reply.text for reply in alone] * 4


def test_a_replaced_file_is_another_adapter(shop, tmp_path):
    _, _, files, opened = shop
    place = tmp_path / "desk.onnx_adapter"
    system = Message(role="system", content="You answer questions about the rivers of texas in as few words as you can.")

    def put(file):
        shutil.copy(file, place)
        shutil.copy(file.with_name(file.name + ".json"), place.with_name(place.name + ".json"))

    request = ASK.model_copy(update={"messages": (system, *ASK.messages), "static_messages": 1})
    one, two = (answer(opened, [request.model_copy(update={"adapters": (Adapter(path=str(f)),)})])[0].logprobs for f in files)
    desk = request.model_copy(update={"adapters": (Adapter(path=str(place)),)})
    put(files[0])
    assert answer(opened, [desk])[0].logprobs == one
    put(files[1])
    assert answer(opened, [desk])[0].logprobs == two != one


def test_the_gate_opens_an_adapter_beside_its_base(shop, tmp_path):
    _, made, _, _ = shop
    refused = export(made[0], lora="adapter", precision="int8", out=tmp_path / "onnx", max_kld=1e-9)
    assert not refused.kept and refused.gate.verdict == "rejected" and "more than 1e-09" in refused.sentence
    kept = export(made[0], lora="adapter", precision="int8", out=tmp_path / "onnx")
    assert kept.kept and kept.gate.verdict == "kept" and kept.gate.parity.kld < 5e-3
    assert not list((tmp_path / "onnx").glob("*.rejected*"))


def test_adapter_of_another_base_is_refused(shop, tmp_path):
    _, _, _, opened = shop
    other = make_family("smollm2", tmp_path / "other", seed=7)
    strange = make_adapter(other, tmp_path / "strange", 3, r=4, target_modules="all-linear")
    file = export(strange, lora="adapter", precision="fp32", out=tmp_path / "onnx", gate=False).path
    with pytest.raises(ModelError, match="belongs to another base"):
        opened.logits([5, 6], [Adapter(path=str(file))])
    reply = answer(opened, [ASK.model_copy(update={"adapters": (Adapter(path=str(file)),)})])[0]
    assert reply.stop_reason == "error" and "another base" in (reply.error or "")


def test_damaged_adapter_is_refused(shop, tmp_path):
    _, _, files, opened = shop
    for name in (files[0].name, files[0].name + ".json"):
        shutil.copyfile(files[0].with_name(name), tmp_path / name)
    data = bytearray((tmp_path / files[0].name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / files[0].name).write_bytes(data)
    with pytest.raises(ModelError, match="is not the file"):
        opened.logits([5, 6], [Adapter(path=str(tmp_path / files[0].name))])


def test_what_an_adapter_file_cannot_hold_is_refused(shop, tmp_path):
    base, *_ = shop
    dora = make_adapter(base, tmp_path / "dora", 4, r=4, use_dora=True, target_modules=["q_proj"])
    with pytest.raises(ExportError, match="--lora merge"):
        export(dora, lora="adapter", out=tmp_path / "onnx", gate=False)
    assert not (tmp_path / "onnx").exists()


def test_merged_is_the_adapter_s_model(shop, tmp_path):
    base, made, _, _ = shop
    ids = list(range(20, 120))
    merged = export(made[1], precision="fp32", out=tmp_path / "onnx", gate=False)
    found = open_model(f"onnx:{merged.path}", threads=1).logits(ids)
    assert divergence(peft_logits(base, made[1], ids), found)[0].mean() < 1e-9
