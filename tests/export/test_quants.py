"""Types predicted from shapes against what llama.cpp writes; the list of types against llama.cpp's and gguf's own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from export.convert import convert
from export.errors import ExportError
from export.quant_types import BLOCKS, QUANT_TYPES, Recipe, predict
from export.quants import check_quant, our_types, quantize, surprises, written
from export.source import Source
from tests.export.tiny_families import make_family

QUIET: list[object] = []
"""Callbacks llama.cpp may still call."""
NEEDS_LLAMA = 'needs llama.cpp: pip install "penknife[gguf]"'
SHAPES = {
    "even": ("qwen3", {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 9, "num_key_value_heads": 1}),
    "tied": ("smollm2", {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 9}),
    "rows-of-320": ("llama", {"hidden_size": 320, "intermediate_size": 256, "num_hidden_layers": 4}),
    "fused": ("phi3", {"hidden_size": 256, "intermediate_size": 256}),
    "rows-of-80": ("smollm2", {"hidden_size": 80, "intermediate_size": 160, "head_dim": 40, "num_attention_heads": 2}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Source, Path]]:
    """name -> (source, its F32 file)"""
    place = tmp_path_factory.mktemp("quants")
    out = {}
    for name, (family, shape) in SHAPES.items():
        source = Source.open(make_family(family, place / name, **shape))
        convert(source, place / f"{name}.gguf", "F32")
        out[name] = (source, place / f"{name}.gguf")
    return out


def values_for(source: Source) -> dict[str, np.ndarray]:
    matrices = [tensor for tensor in source.plan.tensors if tensor.role in ("matrix", "head")]
    return {tensor.name: np.linspace(0.5, 2.0, tensor.shape[-1], dtype=np.float32) for tensor in matrices}


def llama_types(file: Path, recipe: Recipe, values: dict[str, np.ndarray]) -> dict[str, str]:
    """What llama.cpp says it would write: the types of its dry run, by tensor."""
    llama_cpp = pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    import ctypes

    said: list[str] = []
    listen = llama_cpp.llama_log_callback(lambda level, text, _: said.append(text.decode()))
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.nthread = recipe.type.file_type, True, 1
    if recipe.importance:
        entries = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
        for entry, (name, array) in zip(entries, values.items()):
            entry.name, entry.size = name.encode(), array.size
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    try:
        assert llama_cpp.llama_model_quantize(str(file).encode(), b"/dev/null", ctypes.byref(params)) == 0
    finally:
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        QUIET.append(quiet)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    line = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), size =.*?(?:\((\w+)\)|$)", re.MULTILINE)
    return {name: (after or before).upper() for name, before, after in line.findall("".join(said))}


@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_every_type_becomes_what_was_predicted(sources, name, importance):
    source, file = sources[name]
    for quant in [kind for kind in QUANT_TYPES if kind not in ("F32", "F16", "BF16")]:
        recipe = Recipe(quant, importance=importance, fallback="larger")
        if recipe.needs_llama_cpp:
            assert surprises(predict(source.plan, recipe), llama_types(file, recipe, values_for(source))) == [], quant


@pytest.mark.parametrize("quant", ["Q4_K_M", *(pytest.param(q, marks=pytest.mark.slow) for q in ("Q4_0", "IQ4_XS", "Q3_K_M"))])
def test_a_written_file_has_the_types_predicted_and_the_head_asked_for(sources, tmp_path, quant):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    for name, head in (("tied", "token_embd.weight"), ("even", "output.weight")):
        source, file = sources[name]
        recipe = Recipe(quant, head="Q8_0", importance=True, fallback="larger")
        made = quantize(file, tmp_path / "out.gguf", recipe, values_for(source))
        prediction, found = predict(source.plan, recipe), written(tmp_path / "out.gguf")
        assert surprises(prediction, found) == []
        assert found[head] == "Q8_0"
        assert prediction.tensor_bytes < made.bytes < prediction.tensor_bytes + 200_000


@pytest.mark.parametrize("quant", our_types())
@pytest.mark.parametrize("name", ["rows-of-320", "rows-of-80"])
def test_our_own_types_are_predicted_too(sources, tmp_path, quant, name):
    source, _ = sources[name]
    made = convert(source, tmp_path / "out.gguf", quant)
    prediction = predict(source.plan, Recipe(quant))
    assert surprises(prediction, written(tmp_path / "out.gguf")) == []
    assert prediction.bits_per_weight == pytest.approx(made.bits_per_weight)
    assert len(prediction.fallbacks) == len(made.fallbacks)


@pytest.mark.parametrize("importance", [True, False])
def test_q4_k_falls_back_to_as_many_bits_unless_llama_cpps_own_choice_is_wanted(sources, tmp_path, importance):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    source, file = sources["rows-of-320"]
    size = {}
    for fallback, got in (("same", "IQ4_NL"), ("larger", "Q5_0")):
        recipe = Recipe("Q4_K_M", importance=importance, fallback=fallback)
        prediction = predict(source.plan, recipe)
        assert prediction.chosen == (fallback == "same")
        types = {name: type for name, type in prediction.types.items() if type != "F32"} if prediction.chosen else None
        made = quantize(file, tmp_path / f"{fallback}.gguf", recipe, values_for(source) if importance else None, types=types)
        assert made.warnings == ()
        found = written(tmp_path / f"{fallback}.gguf")
        assert surprises(prediction, found) == []
        assert found["blk.0.attn_q.weight"] == got and found["blk.1.ffn_down.weight"] == "Q4_K"  # rows of 256
        size[fallback] = prediction.tensor_bytes
    assert size["same"] < 0.95 * size["larger"]


def test_fallbacks_are_named_with_the_bits_they_cost(sources):
    source, _ = sources["rows-of-320"]
    prediction = predict(source.plan, Recipe("Q4_K_M", importance=True))
    said = prediction.say(Recipe("Q4_K_M"))
    assert said is not None
    assert "Q4_K -> IQ4_NL in rows of 320" in said
    assert f"{prediction.bits_per_weight:.2f} bits per weight" in said
    assert predict(sources["tied"][0].plan, Recipe("Q4_K_M")).say(Recipe("Q4_K_M")) is None


def test_names_and_sizes_are_those_of_ggml():
    gguf = pytest.importorskip("gguf")
    for name, (values, size) in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (values, size)
    for name, kind in QUANT_TYPES.items():
        assert kind.file_type == gguf.LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"]


def test_names_are_taken_in_any_case_and_unknown_ones_refused_with_the_list():
    assert check_quant("q4_k_m") == "Q4_K_M"
    with pytest.raises(
        ExportError, match=r"unknown quant type 'Q4_K_X'; did you mean Q4_K_[MS]\? choose from F32, .*IQ1_S"
    ) as refused:
        check_quant("Q4_K_X")
    assert "\n" not in str(refused.value)


def test_a_head_that_does_not_fit_is_refused(sources):
    with pytest.raises(ExportError, match="--head Q6_K needs rows of a multiple of 256 and the head's have 320"):
        predict(sources["rows-of-320"][0].plan, Recipe("Q4_K_M", head="Q6_K"))


def test_a_type_that_needs_importance_is_refused_without_it(sources, tmp_path):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    with pytest.raises(ExportError, match=r"llama.cpp could not quantize to IQ2_XS .*imatrix"):
        quantize(sources["even"][1], tmp_path / "out.gguf", Recipe("IQ2_XS"))


def test_a_file_llama_cpp_dies_of_ends_one_process_only(sources, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    monkeypatch.setattr("export.quants.written", lambda path: {})  # our own reader would refuse the file first
    (tmp_path / "bad.gguf").write_bytes(sources["even"][1].read_bytes()[:-200_000])
    with pytest.raises(ExportError, match="could not quantize to Q4_K_M"):
        quantize(tmp_path / "bad.gguf", tmp_path / "out.gguf", Recipe("Q4_K_M"))


def test_a_damaged_input_is_an_export_error(tmp_path, monkeypatch):
    monkeypatch.setattr("export.quants.llama_cpp_missing", lambda: False)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\3")
    with pytest.raises(ExportError, match=r"bad\.gguf"):
        quantize(tmp_path / "bad.gguf", tmp_path / "out.gguf", Recipe("Q4_K_M"))
    assert not (tmp_path / "out.gguf").exists()


def test_importance_changes_how_weights_are_rounded(sources, tmp_path):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    from gguf import GGUFReader
    from gguf.quants import dequantize

    source, file = sources["even"]
    name = "blk.0.ffn_up.weight"
    weights = {tensor.name: tensor for tensor in GGUFReader(file).tensors}[name].data
    matters = np.where(np.arange(weights.shape[1]) % 16 == 0, 100.0, 0.01).astype(np.float32)
    errors = {}
    for used in (False, True):
        quantize(file, tmp_path / f"{used}.gguf", Recipe("Q4_K_S", importance=used), values_for(source) | {name: matters})
        tensor = {tensor.name: tensor for tensor in GGUFReader(tmp_path / f"{used}.gguf").tensors}[name]
        errors[used] = float((((dequantize(tensor.data, tensor.tensor_type) - weights) ** 2) * matters).mean())
    assert errors[True] < 0.7 * errors[False]
