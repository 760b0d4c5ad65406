"""ONNX directories against PyTorch's own logits, and what an export leaves on the disk."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")

from agents.card import BaseEntry, Card, CardError, sha256_of_weights
from agents.models import open_model
from agents.models.onnx_graph import Cache
from export.errors import ExportError
from export.onnx import export
from export.onnx_quantize import dequantize, quantize
from export.parity import divergence
from tests.export.onnx_here import build_here
from tests.export.tiny_families import make_family

TOKENS = 600


@pytest.fixture(scope="module", autouse=True)
def here():
    with pytest.MonkeyPatch.context() as patch:
        build_here(patch)
        yield


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A tied model with a card, exported in three precisions."""
    place = tmp_path_factory.mktemp("onnx")
    model = make_family("smollm2", place / "model", hidden_size=64, max_position_embeddings=2048)
    card = Card(task="sql", task_version=1, dialect="plain", prompt_template="plain", constraint=None, parser="plain",
                base=BaseEntry(id="tiny"), weights_sha256=sha256_of_weights(model), created_by="test")  # fmt: skip
    card.save(model)
    made = {p: export(model, precision=p, gate=False, out=place / p) for p in ("fp32", "int8", "int4")}
    return model, made


def torch_logits(model_dir: Path, ids: list[int]) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def some_ids(count: int = TOKENS) -> list[int]:
    return np.random.default_rng(0).integers(5, 600, count).tolist()


def distance(model_dir: Path, directory: Path, ids: list[int]) -> tuple[float, float]:
    """(KLD of the whole text at once, largest KLD when rows of unequal length are decoded step by step)."""
    opened = open_model(f"onnx:{directory}", threads=1)
    expected = torch_logits(model_dir, ids)
    whole = divergence(expected, opened.logits(ids))[0].mean()
    starts = [len(ids) - 40, 3, len(ids) // 2]
    cache = Cache(opened.graph, 3, len(ids))
    worst = 0.0
    for row, start in enumerate(starts):
        opened.graph.prefill(ids[:start], cache, row)
    for step in range(39):
        lengths = [start + step for start in starts]
        found = opened.graph.step([ids[n] for n in lengths], lengths, cache)
        worst = max(worst, float(divergence(expected[lengths], found.copy())[0].max()))
    return float(whole), worst


def test_float32_is_the_source(tied):
    model, made = tied
    whole, worst = distance(model, made["fp32"].path, some_ids())
    assert whole < 1e-9
    assert worst < 1e-9


def test_fewer_bits_stay_near_and_get_smaller(tied):
    model, made = tied
    ids = some_ids()
    klds = {p: distance(model, made[p].path, ids)[0] for p in ("int8", "int4")}
    assert 1e-9 < klds["int8"] < 2e-3 < klds["int4"] < 0.3
    assert made["int8"].bits_per_weight == pytest.approx(9.0)
    assert made["int4"].bits_per_weight < 7.5
    assert not any("float32" in note for one in made.values() for note in one.notes)


def test_embedding_and_head_are_one_table(tied):
    import onnx

    _, made = tied
    graph = onnx.load(made["int8"].path / "model.onnx", load_external_data=False).graph
    gather = next(node for node in graph.node if node.op_type == "GatherBlockQuantized")
    head = next(node for node in graph.node if node.op_type == "MatMulNBits" and node.output[0] == "logits")
    where = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data}
    assert where[gather.input[0]] == where[head.input[1]]
    assert {entry["location"] for entry in where.values()} == {"model.onnx.data"}


def test_card_travels_and_a_changed_weight_is_found(tied, tmp_path):
    import shutil

    model, made = tied
    card = Card.load(made["int8"].path)
    source = Card.load(model)
    assert card.file is not None and card.file.format == "onnx" and card.file.precision == "int8"
    assert card.weights_sha256 == source.weights_sha256 == card.file.source_sha256
    assert card.model_copy(update={"file": None}) == source
    broken = tmp_path / "broken"
    shutil.copytree(made["int8"].path, broken)
    data = bytearray((broken / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (broken / "model.onnx.data").write_bytes(data)
    with pytest.raises(CardError, match="are not those of its card"):
        open_model(f"onnx:{broken}")


def test_writing_again_replaces_and_leaves_nothing_else(tied):
    model, made = tied
    before = {entry.name: entry.stat().st_size for entry in made["int8"].path.iterdir()}
    again = export(model, precision="int8", gate=False, out=made["int8"].path)
    assert {entry.name: entry.stat().st_size for entry in again.path.iterdir()} == before
    assert not [entry.name for entry in again.path.parent.iterdir() if entry.name.startswith(".")]


def test_a_directory_with_something_else_is_refused(tied, tmp_path):
    model, _ = tied
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds thesis.txt, which no export wrote"):
        export(model, gate=False, out=tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_tokens_and_prompts_are_the_source_s(tied):
    from transformers import AutoTokenizer

    from agents.chat import Message
    from export.battery import battery

    model, made = tied
    tokenizer = AutoTokenizer.from_pretrained(model)
    opened = open_model(f"onnx:{made['fp32'].path}", threads=1)
    strings = battery([token.content for token in tokenizer.added_tokens_decoder.values()])
    assert len(strings) >= 200
    assert [s for s in strings if opened.tokenize(s) != tokenizer(s, add_special_tokens=False)["input_ids"]] == []
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert opened.prompt_ids([Message(role="user", content="hi")]) == ids


def test_past_a_sliding_window(tmp_path):
    model = make_family("mistral-window", tmp_path / "model")
    made = export(model, precision="fp32", gate=False)
    assert made.path == model / "onnx-fp32"
    whole, worst = distance(model, made.path, some_ids(400))
    assert max(whole, worst) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "llama3-rope", "mistral", "qwen2", "qwen3", "gemma2", "smollm3", "gemma3", "phi3"])
def test_every_family_is_its_source(kind, tmp_path):
    model = make_family(kind, tmp_path / "model", max_position_embeddings=1024)
    made = export(model, precision="fp32", gate=False)
    whole, worst = distance(model, made.path, some_ids())
    assert max(whole, worst) < 1e-9
    eight = export(model, precision="int8", gate=False)
    assert distance(model, eight.path, some_ids(200))[0] < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smollm3", "gemma3"])
def test_a_traced_graph_keeps_the_same_matrices_in_8_bits_and_no_path(kind, tmp_path):
    """The first layer's value and down projections are among them; torch.onnx's own names say nothing."""
    import onnx

    model = make_family(kind, tmp_path / "model", max_position_embeddings=1024)
    made = export(model, precision="int4", gate=False)
    graph = onnx.load(made.path / "model.onnx", load_external_data=False).graph
    bits = [next(a.i for a in node.attribute if a.name == "bits") for node in graph.node if node.op_type == "MatMulNBits"]
    assert bits[2] == bits[6] == bits[-1] == 8  # value, down, head
    assert bits[0] == bits[1] == bits[3] == 4
    assert not any(node.metadata_props for node in graph.node)
    assert str(model).encode() not in (made.path / "model.onnx").read_bytes()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("columns", [32, 96, 100])
def test_rounding_is_half_a_step_at_most(bits, columns):
    matrix = np.random.default_rng(1).standard_normal((7, columns)).astype(np.float32)
    matrix[3] = 0
    blocks = quantize(matrix, bits)
    error = np.abs(dequantize(blocks, columns) - matrix)
    assert error.max() <= (0.51 if bits == 8 else 2.0) * blocks.scales.max()
    assert np.sqrt((error**2).mean()) < (0.008 if bits == 8 else 0.11)
    assert not error[3].any()


def test_four_bits_beat_onnxruntime_s_own():
    quantizer = pytest.importorskip("onnxruntime.quantization.neural_compressor.weight_only")
    matrix = (np.random.default_rng(2).standard_normal((64, 512)) * 0.02).astype(np.float32)
    codes, scale, zero = quantizer.quant_tensor_k_quant_cpu(matrix, 4, 32)
    theirs = ((codes - zero) * scale).reshape(matrix.shape) - matrix
    ours = dequantize(quantize(matrix, 4), 512) - matrix
    assert (ours**2).mean() < (theirs**2).mean()


def test_facts_name_every_file(tied):
    _, made = tied
    for one in made.values():
        facts = json.loads((one.path / "penknife.json").read_text())
        assert {entry.name for entry in one.path.iterdir()} == set(facts["files"])
