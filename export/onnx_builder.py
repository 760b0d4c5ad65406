"""onnxruntime-genai's model builder, run in a process of its own: a model directory in, a float32 graph out.

Does: say which architectures it builds right, write a merged float32 copy of a source where the builder would round or cannot
merge, start the builder without network, turn what goes wrong into one sentence.
Does not: quantize (`export.onnx_rewrite`) or build what the builder cannot (`export.onnx_torch`).

Run by itself: python -m export.onnx_builder MODEL_DIR OUT_DIR CACHE_DIR
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from export import apart
from export.errors import ExportError
from export.source import Source

if TYPE_CHECKING:
    import numpy as np

INSTALL = "ONNX files are made by onnxruntime-genai and onnx: pip install 'penknife[onnx]'"
BUILT = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma 2", "Phi-3")
"""Families whose graphs are right: every logit within 1e-6 of PyTorch's. SmolLM3 and Gemma 3 stop it with a KeyError (0.18.0)."""
SHARD_BYTES = 1 << 30
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def missing() -> str | None:
    """What must be installed before anything can be exported, one sentence; None when nothing is."""
    absent = [name for name in ("onnx", "onnxruntime", "onnxruntime_genai") if find_spec(name) is None]
    return f"{', '.join(absent)} is not installed; {INSTALL}" if absent else None


def builds(source: Source) -> bool:
    """Whether the builder makes a right graph of this model."""
    config = source.config
    if source.family.name == "Phi-3":  # its long-rope graphs need two caches of cosines, and switching between them
        original = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        rope = config.get("rope_parameters") or {}
        return original == config.get("max_position_embeddings") and rope.get("rope_type", "default") == "default"
    if source.family.name == "Llama" and (config.get("attention_bias") or config.get("mlp_bias")):
        return False
    rope = config.get("rope_parameters") or {}
    return source.family.name in BUILT and rope.get("rope_type", "default") in ("default", "llama3")


def staged(source: Source, place: Path) -> Path:
    """A directory the builder can read: the source's own where all of it is float32, else a merged float32 copy in `place`."""
    if source.adapter is None and all(stored.dtype == "F32" for stored in source.weights.values()):
        return source.model_dir
    place.mkdir()
    for name in ("config.json", "generation_config.json"):
        if (source.model_dir / name).is_file():
            shutil.copyfile(source.model_dir / name, place / name)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    config.pop("dtype", None)
    config |= {"torch_dtype": "float32", "vocab_size": source.config["vocab_size"]}
    (place / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for file in source.tokenizer_dir.iterdir():
        if file.is_file() and (file.name.startswith(("tokenizer", "special_tokens", "chat_template", "added_tokens"))):
            shutil.copyfile(file, place / file.name)
    _write_shards(source, place)
    return place


def _write_shards(source: Source, place: Path) -> None:
    from safetensors.numpy import save_file

    where: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}
    size = 0

    def flush() -> None:
        nonlocal shard, size
        if shard:
            name = f"model-{len(set(where.values())) + 1:05d}.safetensors"
            save_file(shard, place / name, metadata={"format": "pt"})
            where.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    for tensor in source.plan.tensors:
        array = source.read(tensor.source)
        shard[tensor.source] = array
        size += array.nbytes
        if size >= SHARD_BYTES:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": where}
    (place / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def build(model_dir: Path, out: Path, cache: Path) -> None:
    """The float32 graph of `model_dir` in `out`. Raises ExportError with what the builder said."""
    run_offline("onnxruntime-genai's builder", "export.onnx_builder", str(model_dir), str(out), str(cache))


def run_offline(name: str, module: str, *arguments: str) -> None:
    """Run a module in a process without a hub. Raises ExportError with its last line when it fails."""
    child = apart.run(module, *arguments, env=OFFLINE)
    if child.returncode:
        said = [line for line in child.stderr.strip().splitlines() if line.strip()]
        if any("No space left on device" in line for line in said):
            raise OSError(28, "No space left on device")
        how = f"ended with signal {-child.returncode}" if child.returncode < 0 else "failed"
        raise ExportError(f"{name} {how}: {said[-1].strip()[:300] if said else 'it said nothing'}")


def main(argv: Sequence[str] | None = None) -> None:
    from onnxruntime_genai.models import builder

    model_dir, out, cache = sys.argv[1:4] if argv is None else argv
    options = builder.parse_extra_options(
        "", model_dir, out, "fp32", "cpu", cache, ["hf_remote=false", "windowed_kv_cache=false"]
    )
    builder.create_model("", model_dir, out, "fp32", "cpu", cache, **options)


if __name__ == "__main__":
    main()
