"""Our F16 files against those of llama.cpp's own converter: every tensor bit for bit, every key that both write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.convert import convert
from export.source import Source
from tests.export.tiny_families import make_family

# The converter looks its pre-tokenizer up by a hash that no retrained vocabulary has, and imports sentencepiece for
# tokenizer.model files, which these have not.
RUN = """
import importlib.machinery, runpy, sys, types
root, pre = sys.argv[1:3]
sys.path[:0] = [root, root + "/gguf-py"]
stub = types.ModuleType("sentencepiece")
stub.SentencePieceProcessor, stub.__spec__ = None, importlib.machinery.ModuleSpec("sentencepiece", None)
sys.modules.setdefault("sentencepiece", stub)
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[3:]]
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
"""
OURS_ONLY = ("penknife.", "general.name", "general.size_label")


@pytest.fixture(scope="module")
def llama_cpp_source() -> Path:
    place = os.environ.get("PENKNIFE_LLAMA_CPP")
    if place is None:
        pytest.skip(
            "PENKNIFE_LLAMA_CPP is not set: pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36, unpack it, "
            "and set it to the vendor/llama.cpp inside"
        )
    assert (Path(place) / "convert_hf_to_gguf.py").is_file(), f"PENKNIFE_LLAMA_CPP={place} has no convert_hf_to_gguf.py"
    return Path(place)


@pytest.mark.parametrize(
    ("kind", "pre", "shape"),
    [
        ("smollm2", "smollm", {}),
        ("llama3-rope", "llama-bpe", {"attention_bias": True, "dtype": "bfloat16"}),
        ("qwen2", "qwen2", {}),
        ("qwen2", "qwen2", {"dtype": "bfloat16", "tie_word_embeddings": False}),
        ("qwen3", "qwen2", {"dtype": "float16"}),
        ("smollm3", "llama-bpe", {}),
    ],
)  # fmt: skip
def test_tensors_are_bit_equal(kind: str, pre: str, shape: dict[str, Any], llama_cpp_source: Path, tmp_path: Path) -> None:
    directory = make_family(kind, tmp_path / kind, **shape)
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    command = [
        sys.executable,
        "-c",
        RUN,
        str(llama_cpp_source),
        pre,
        str(directory),
        "--outfile",
        str(theirs),
        "--outtype",
        "f16",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    convert(Source.open(directory), ours, "F16")
    assert _tensors(ours) == _tensors(theirs)
    left, right = _keys(ours), _keys(theirs)
    differing = {key: (left[key], right[key]) for key in set(left) & set(right) if left[key] != right[key]}
    assert differing == {}
    assert not set(right) - set(left)


def _tensors(file: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    from gguf import GGUFReader

    return {
        tensor.name: (tensor.tensor_type.name, tuple(tensor.shape.tolist()), np.asarray(tensor.data).tobytes())
        for tensor in GGUFReader(file).tensors
    }


def _keys(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith((*OURS_ONLY, "GGUF."))}
