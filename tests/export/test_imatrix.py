"""The importance matrix against one computed row by row without padding, and what counts as a calibration row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export.errors import ExportError
from export.imatrix import calibration_file, measure, read_calibration
from export.source import Source
from tests.export.tiny_families import TEXTS, make_family


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: config.toml, train.jsonl, model/."""
    run = tmp_path_factory.mktemp("run")
    make_family("qwen2", run / "model")
    (run / "config.toml").write_text('task = "sql"\n')
    rows = [
        {"id": str(i), "prompt": [{"role": "user", "content": text}], "completion": text[: 4 + i]} for i, text in enumerate(TEXTS)
    ]
    (run / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture(scope="module")
def source(place: Path) -> Source:
    return Source.open(place / "model")


def test_the_run_around_a_model_gives_the_rows(source, place, tmp_path):
    assert calibration_file(source, None).resolve() == (place / "train.jsonl").resolve()
    assert calibration_file(source, tmp_path / "own.txt" if (tmp_path / "own.txt").write_text("x") else None).name == "own.txt"
    with pytest.raises(ExportError, match=r"--calibration .*none.jsonl: is not there; give a text or JSONL file"):
        calibration_file(source, tmp_path / "none.jsonl")


def test_rows_are_read_as_training_reads_them(source, place):
    from factory.dataset import read_rows, tokenize

    calibration = read_calibration(source, place / "train.jsonl")
    trained = tokenize(read_rows(place / "train.jsonl"), source.tokenizer, 2048)
    assert sorted(map(list, calibration.sequences)) == sorted(list(trained.row(i)) for i in range(len(trained)))
    assert calibration.dropped == {}


def test_mean_squares_are_those_of_every_row_alone(source, place):
    """Independent: transformers loaded here, one row at a time, so no padding; inputs taken with pre-hooks."""
    from transformers import AutoModelForCausalLM

    calibration = read_calibration(source, place / "train.jsonl")
    found = measure(source, calibration)
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32).eval()
    taken: dict[str, list[np.ndarray]] = {}

    def keep(name: str):
        return lambda _module, inputs: taken.setdefault(name, []).append(inputs[0][0].double().numpy())

    names = {
        "model.layers.1.mlp.down_proj": "blk.1.ffn_down.weight",
        "model.layers.0.self_attn.o_proj": "blk.0.attn_output.weight",
        "lm_head": "token_embd.weight",
    }
    for path in names:
        model.get_submodule(path).register_forward_pre_hook(keep(path))
    with torch.inference_mode():
        for ids in calibration.sequences:
            model(input_ids=torch.from_numpy(ids)[None])
    for path, name in names.items():
        np.testing.assert_allclose(found.values[name], (np.concatenate(taken[path]) ** 2).mean(0), rtol=1e-4)
    matrices = [tensor.name for tensor in source.plan.tensors if tensor.role == "matrix"]
    assert set(found.values) == {*matrices, "token_embd.weight"}
    assert found.absent == ()
    assert found.as_json()["tokens"] == calibration.tokens


def test_an_adapter_is_measured_under_its_bases_names(source, place, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(source.path)
    peft = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    peft.save_pretrained(tmp_path / "adapter")
    adapted = Source.open(tmp_path / "adapter")
    calibration = read_calibration(adapted, place / "train.jsonl")
    assert set(measure(adapted, calibration).values) == set(measure(source, calibration).values)


def test_lost_rows_are_counted_by_reason(source, tmp_path):
    long = {"text": "word " * 5000}
    rows = [{"text": TEXTS[0]}, {"messages": [{"role": "user", "content": TEXTS[1]}]}, long, {"text": ""}, {"other": 1}, [1]]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not json\n")
    calibration = read_calibration(source, file)
    assert calibration.dropped == {"unreadable": 3, "truncated": 1, "empty": 1}
    assert len(calibration.sequences) == 2
    assert "2 of 7 rows" in calibration.say()
    assert read_calibration(source, file, rows=1).dropped["beyond-limit"] >= 1


def test_plain_text_is_cut_into_pieces(source, tmp_path):
    (tmp_path / "book.txt").write_text("\n".join(TEXTS * 10))
    calibration = read_calibration(source, tmp_path / "book.txt")
    assert max(map(len, calibration.sequences)) == 512
    assert calibration.tokens == len(source.tokenizer("\n".join(TEXTS * 10), add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b'{"other": 1}\n'), ("b.txt", b""), ("c.txt", b"\xff\xfe\x00bad")])
def test_a_file_without_a_usable_row_is_refused_in_one_line(source, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"--calibration .*{name}: ") as refused:
        read_calibration(source, tmp_path / name)
    assert "\n" not in str(refused.value)
