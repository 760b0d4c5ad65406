"""Memory that converting a model of Llama 2 7B's shape takes: the weights are a sparse file, so nothing has to be downloaded.

Does: write a 13.5 GB safetensors file that takes no room on disk, convert it in a process of its own, print that process's peak
resident memory, time and rate.
Does not: say anything about values; they are zeros.

Run: python -m benchmarks.stream_7b [--type Q8_0] [--layers 32] [--dir DIR]     # the GGUF file takes 7.2 GB while it runs (Q8_0)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
         "vocab_size": 32000, "max_position_embeddings": 4096}  # fmt: skip
CHILD = """
import json, sys, time
from export.convert import convert
from export.source import Source
start, busy = time.perf_counter(), time.process_time()
made = convert(Source.open(sys.argv[1]), sys.argv[2], sys.argv[3])
print(json.dumps({"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - busy, "bytes": made.bytes,
                  "parameters": made.parameters,
                  "peak_mb": int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024}))
"""


def sparse_model(directory: Path, layers: int) -> Path:
    """A model directory of that shape in bfloat16 whose weights are one hole in a file, with a small tokenizer."""
    import torch
    from transformers import LlamaConfig

    from export.families import FAMILIES, plan_of
    from tests.export.tiny_families import make_family_tokenizer

    config = LlamaConfig(**SHAPE, num_hidden_layers=layers, tie_word_embeddings=False, dtype=torch.bfloat16)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(directory)
    make_family_tokenizer("spm").save_pretrained(directory)
    header, end = {}, 0
    for tensor in plan_of(FAMILIES["LlamaForCausalLM"], config.to_dict(), "7B").tensors:
        size = 2
        for n in tensor.shape:
            size *= n
        header[tensor.source] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    written = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + end)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--dir", type=Path, default=None, help="where the files lie while it runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="stream-7b-") as place:
        model = sparse_model(Path(place) / "model", args.layers)
        command = [sys.executable, "-c", CHILD, str(model), str(Path(place) / "out.gguf"), args.type]
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout)
    print(
        f"{found['parameters'] / 1e9:.2f}e9 parameters, {args.layers} layers -> {args.type}, {found['bytes'] / 1e9:.2f} GB: peak "
        f"{found['peak_mb']:.0f} MB, {found['cpu_s']:.0f} s of one core, {found['wall_s']:.0f} s wall "
        f"({time.perf_counter() - begun:.0f} s with start)"
    )


if __name__ == "__main__":
    main()
