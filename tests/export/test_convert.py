"""Converted files compute what transformers computes, in llama.cpp and read back by transformers; failures leave nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents.models.gguf_file import read_gguf, verify
from export.convert import TYPES, Converted, convert
from export.errors import ExportError
from export.source import Source
from export.weights import open_weights
from tests.export.llama_logits import ROOT, kld, llama_logits, torch_logits
from tests.export.tiny_families import FAMILIES, TEXTS, make_family

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
            "short_factor": [1.0, 1.1, 1.3, 1.6, 1.9, 2.5, 3.0, 4.0], "long_factor": [1.0, 2, 3, 4, 5, 6, 7, 8]}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied, one key head": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, rows no multiple of 32": ("llama", {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "qwen2 yarn, own attention factor": ("qwen2", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "qwen3 linear": ("qwen3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}}),
    "mistral llama3": ("mistral", {"rope_parameters": LLAMA3}),
    "phi3 longrope, part of a head": ("phi3", {"rope_parameters": LONGROPE, "max_position_embeddings": 1024}),
    "phi3 partial": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "gemma2, odd pattern and scale": (
        "gemma2",
        {"query_pre_attn_scalar": 7,
         "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "gemma3, odd scale": ("gemma3", {"query_pre_attn_scalar": 100, "final_logit_softcapping": 20.0}),
    "gemma3 without windows": ("gemma3", {"layer_types": ["full_attention"] * 6}),
    "padded vocabulary": ("qwen2", {"vocab_padding": 22}),
    "bfloat16, in shards": ("llama", {"dtype": "bfloat16", "max_shard_size": "100KB"}),
    "float16": ("smollm2", {"dtype": "float16"}),
}  # fmt: skip


def make(directory: Path, kind: str, type: str = "F16", **shape: Any) -> tuple[Source, Converted]:
    source = Source.open(make_family(kind, directory / kind, **shape))
    return source, convert(source, directory / f"{kind}.gguf", type)


def random_ids(source: Source, length: int, rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, source.config["vocab_size"] - 22, (rows, length))


def engine() -> None:
    pytest.importorskip("llama_cpp", reason="needs llama.cpp: pip install 'penknife[gguf]' (compiles for minutes)")


def some(names: Iterable[str], *kept: str) -> list[Any]:
    """`names` as parameters, of which those not `kept` are slow."""
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("kind", some(FAMILIES, "llama", "gemma2", "phi3"))
def test_f16_computes_what_the_model_computes(kind: str, tmp_path: Path) -> None:
    engine()
    source, made = make(tmp_path, kind)
    length = min(256, made.context)  # past the windows of 64 that llama.cpp applies
    ids = random_ids(source, length, 512 // length)
    difference = kld(torch_logits(source.path, ids), llama_logits(made.path, ids))
    assert difference.size >= 512
    assert difference.mean() < 2e-6  # measured 6e-7; accepted is 1e-5
    assert made.proof.texts >= 200 and made.proof.conversations >= 3
    assert not made.fallbacks and made.padded == 0


@pytest.mark.parametrize("name", some(SHAPES, "llama yarn", "phi3 longrope, part of a head", "padded vocabulary"))
def test_variants_compute_what_the_model_computes(name: str, tmp_path: Path) -> None:
    engine()
    kind, shape = SHAPES[name]
    source, made = make(tmp_path, kind, **shape)
    length = min(256, made.context)
    ids = random_ids(source, length, 1)
    assert kld(torch_logits(source.path, ids), llama_logits(made.path, ids)).mean() < 3e-6


def test_a_window_llama_cpp_ignores_becomes_the_context(tmp_path: Path) -> None:
    engine()
    source, made = make(tmp_path, "mistral-window", "F32")
    assert made.context == 64 and any("sliding window of 64" in note for note in made.notes)
    assert read_gguf(made.path).metadata["llama.context_length"] == 64
    ids = random_ids(source, 128, 1)
    difference = kld(torch_logits(source.path, ids), llama_logits(made.path, ids))[0]
    assert difference[:64].max() < 1e-6 < 1e-3 < difference[64:].mean()  # why it must


@pytest.mark.parametrize("kind", some(FAMILIES, "smollm2", "gemma2"))
def test_plain_q8_0_is_close_on_a_model_that_learnt_something(kind: str, tmp_path: Path) -> None:
    """Every matrix rounded; `test_mixed` has the files that come as near as bfloat16."""
    engine()
    source, made = make(tmp_path, kind, "Q8_0", steps=30, initializer_range=0.05)
    length = min(640, made.context)
    ids = np.array(source.tokenizer("\n".join(TEXTS))["input_ids"][: 640 // length * length]).reshape(-1, length)
    assert ids.size >= 512
    assert kld(torch_logits(source.path, ids), llama_logits(made.path, ids)).mean() < 5e-4  # measured up to 3.2e-4


@pytest.mark.parametrize("type", TYPES)
def test_every_type_loads_and_is_as_good_as_its_bits(type: str, tmp_path: Path) -> None:
    engine()
    source, made = make(tmp_path, "qwen3", type)
    ids = random_ids(source, 128, 1)
    most = {"F32": 2e-7, "F16": 3e-6, "BF16": 1e-4, "Q8_0": 1e-3, "Q5_0": 2e-2, "Q5_1": 2e-2, "Q4_0": 6e-2, "Q4_1": 6e-2}[type]
    assert kld(torch_logits(source.path, ids), llama_logits(made.path, ids)).mean() < most
    assert made.head == (type if type in ("F32", "F16", "BF16", "Q8_0") else "Q8_0")
    data = sum(tensor.size for tensor in read_gguf(made.path).tensors)
    assert made.bits_per_weight == pytest.approx(8 * data / made.parameters, rel=1e-6)


def test_quantizers_are_llama_cpps(tmp_path: Path) -> None:
    """Q8_0 and Q4_0 bytes equal those llama.cpp makes of our F32 file, tensor by tensor."""
    engine()
    source, whole = make(tmp_path, "llama", "F32")
    script = (
        "import ctypes, sys, llama_cpp as engine\n"
        "settings = engine.llama_model_quantize_default_params()\n"
        "settings.ftype, settings.nthread, settings.pure = getattr(engine, 'LLAMA_FTYPE_MOSTLY_' + sys.argv[3]), 1, True\n"
        "sys.exit(engine.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(settings)))"
    )
    for type in ("Q8_0", "Q4_0"):
        theirs, ours = tmp_path / f"theirs.{type}.gguf", tmp_path / f"ours.{type}.gguf"
        subprocess.run([sys.executable, "-c", script, str(whole.path), str(theirs), type], check=True, capture_output=True)
        convert(source, ours, type)
        compared = 0
        data = {tensor.name: (tensor.type, raw) for tensor, raw in _tensors(theirs)}
        for tensor, raw in _tensors(ours):
            if data[tensor.name][0] == tensor.type:
                assert data[tensor.name][1] == raw, tensor.name
                compared += 1
        assert compared >= 28


def _tensors(file: Path) -> list[tuple[Any, bytes]]:
    with file.open("rb") as opened:
        return [(tensor, _read(opened, tensor.offset, tensor.size)) for tensor in read_gguf(file).tensors]


def _read(opened: Any, offset: int, size: int) -> bytes:
    opened.seek(offset)
    return bytes(opened.read(size))


PEAK_KB = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
"""Most resident memory of a process so far; getrusage's includes what its parent had when it forked."""

READ_BACK: dict[str, dict[str, Any]] = {
    "llama": {}, "smollm2": {}, "qwen2": {}, "qwen3": {"head_dim": 128}, "phi3": {},
    "gemma2": {"query_pre_attn_scalar": 256, "head_dim": 256},
}  # fmt: skip
"""With the head_dim of every Qwen3 and the query scale of small Gemma 2 models, which transformers does not read from a file."""


@pytest.mark.parametrize("kind", some(READ_BACK, "llama", "qwen3"))
def test_transformers_reads_the_file_back_to_the_same_logits(kind: str, tmp_path: Path) -> None:
    source, made = make(tmp_path, kind, "F32", **READ_BACK[kind])
    ids = random_ids(source, 64, 2)
    back = torch_logits(tmp_path, ids, gguf_file=made.path.name)
    assert np.abs(back - torch_logits(source.path, ids)).max() < 1e-4


def test_rows_that_cannot_be_blocks_are_counted(tmp_path: Path) -> None:
    _, made = make(tmp_path, "llama", "Q4_0", hidden_size=80, num_attention_heads=5, num_key_value_heads=5)
    names = {fallback.name for fallback in made.fallbacks}
    assert {(f.wanted, f.written, f.columns) for f in made.fallbacks} == {("Q4_0", "F16", 80)}
    assert "blk.0.attn_q.weight" in names and "blk.0.ffn_down.weight" not in names  # 128 columns are four blocks
    assert made.types["F16"] == len(made.fallbacks) and made.head == "F16"


def test_the_head_may_keep_another_type(tmp_path: Path) -> None:
    source = Source.open(make_family("qwen2", tmp_path / "m"))
    made = convert(source, tmp_path / "out.gguf", "Q8_0", head="F16")
    assert (made.head, made.types["F16"], made.fallbacks) == ("F16", 1, ())
    engine()
    ids = random_ids(source, 128, 1)
    plain = convert(source, tmp_path / "plain.gguf", "Q8_0")
    reference = torch_logits(source.path, ids)
    kept, lost = (kld(reference, llama_logits(file.path, ids)).mean() for file in (made, plain))
    assert kept < lost


def test_the_file_is_sealed_and_says_what_it_is_from(tmp_path: Path) -> None:
    source, made = make(tmp_path, "qwen2", "Q8_0")
    read = verify(made.path)
    assert read.sealed
    assert read.metadata["penknife.source.sha256"] == source.sha256
    assert read.metadata["penknife.eos_ids"] == [source.tokenizer.eos_token_id]
    assert read.metadata["penknife.tokenizer.normalizer"] == "NFC"


def test_its_name_never_looks_like_phi3(tmp_path: Path) -> None:
    source = Source.open(make_family("llama", tmp_path / "my-Phi-3-mini"))
    name = read_gguf(convert(source, tmp_path / "out.gguf").path).metadata["general.name"]
    assert name == "my-phi 3-mini"


def test_an_unknown_type_is_refused_with_the_list(tmp_path: Path) -> None:
    source = Source.open(make_family("qwen2", tmp_path / "m"))
    with pytest.raises(ExportError, match=r"unknown type 'Q3_X'; choose from F32, F16, BF16, Q8_0"):
        convert(source, tmp_path / "out.gguf", "Q3_X")


@pytest.mark.parametrize(("value", "said"), [(1e5, "more than F16 can"), (float("nan"), "not finite")])
def test_values_a_file_cannot_hold_leave_nothing(value: float, said: str, tmp_path: Path) -> None:
    directory = make_family("qwen2", tmp_path / "m")
    stored = open_weights(directory)["model.layers.2.mlp.down_proj.weight"]
    with stored.file.open("r+b") as file:
        file.seek(stored.offset + 400)
        file.write(np.float32(value).tobytes())
    with pytest.raises(ExportError, match=said):
        convert(Source.open(directory), tmp_path / "out.gguf", "F16")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.open(make_family("qwen2", tmp_path / "m"))
    monkeypatch.setattr("export.convert.shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(ExportError, match=r"needs 0 MB and .* has 0 MB free"):
        convert(source, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_full_disk_midway_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file size is the nearest thing to a full disk that needs no privileges."""
    directory = make_family("qwen2", tmp_path / "m")
    script = (
        "import resource, signal, sys\n"
        "from export.convert import convert\nfrom export.source import Source\nfrom factory.cli import run_cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "source = Source.open(sys.argv[1])\nsource.tokenizer, source.sha256\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "sys.exit(run_cli(lambda argv: convert(source, sys.argv[2], 'F16')))"
    )
    command = [sys.executable, "-c", script, str(directory), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "larger than this process may write" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_older_file_stays_when_converting_fails(tmp_path: Path) -> None:
    source = Source.open(make_family("qwen2", tmp_path / "m"))
    out = tmp_path / "out.gguf"
    out.write_bytes(b"older")
    with pytest.raises(ValueError, match="stop"):
        convert(source, out, "F16", progress=_stop)
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out.gguf"]


def _stop(written: int, total: int) -> None:
    if written > total // 2:
        raise ValueError("stop")


def test_progress_counts_every_parameter(tmp_path: Path) -> None:
    source = Source.open(make_family("gemma2", tmp_path / "m"))
    seen: list[tuple[int, int]] = []
    made = convert(source, tmp_path / "out.gguf", "F16", progress=lambda *now: seen.append(now))
    assert seen[-1] == (made.parameters, made.parameters) and seen == sorted(seen)
    assert made.parameters == sum(p.numel() for p in _model(source.path).parameters())


def _model(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.slow
def test_a_135m_model_takes_ten_seconds_and_little_memory(tmp_path: Path) -> None:
    """SmolLM2-135M's shape in float32: at most 10 s of one core, and 1.5 times its bytes of memory even in bfloat16."""
    directory = make_family("smollm2", tmp_path / "m", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                            num_attention_heads=9, num_key_value_heads=3, vocab_padding=49152 - 642)  # fmt: skip
    script = (
        "import sys, time\nfrom export.convert import convert\nfrom export.source import Source\n"
        "made = convert(Source.open(sys.argv[1]), sys.argv[2], sys.argv[3])\n"
        "print(made.parameters, time.process_time(), " + PEAK_KB + " * 1024)"
    )
    for type in ("F16", "Q8_0"):
        command = [sys.executable, "-c", script, str(directory), str(tmp_path / "out.gguf"), type]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        parameters, seconds, peak = map(float, done.stdout.split())
        assert 1.3e8 < parameters < 1.4e8
        assert seconds < 10 and peak < 1.5 * 2 * parameters


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A file four times as large (48 MB instead of 12) takes less than 10 MB more."""
    script = (
        "import sys\nfrom export.convert import convert\nfrom export.source import Source\n"
        "convert(Source.open(sys.argv[1]), sys.argv[2], 'F32')\n"
        f"print({PEAK_KB})"
    )
    peaks = []
    for width in (1024, 5120):
        directory = make_family("smollm2", tmp_path / str(width), hidden_size=256, intermediate_size=width)
        command = [sys.executable, "-c", script, str(directory), str(tmp_path / "out.gguf")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 10
