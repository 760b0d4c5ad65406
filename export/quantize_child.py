"""The process in which llama.cpp quantizes: it may abort, and then only this process ends.

Does: one job, read as JSON from standard input (`export.quants.quantize` writes it), through llama_model_quantize.
Does not: decide types or names.

    echo '{"source": "a.gguf", "out": "b.gguf", "file_type": 15, …}' | python -m export.quantize_child
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from typing import Any

WARN, CONTINUED = 3, 5
"""ggml_log_level"""


def run(job: dict[str, Any]) -> tuple[int, list[str]]:
    """llama_model_quantize's return code and the warnings it gave."""
    import gguf
    import llama_cpp
    import numpy as np

    lines: list[tuple[int, str]] = []

    def listen(level: int, text: bytes, _: Any) -> None:
        said = text.decode("utf-8", "replace")
        if level == CONTINUED and lines:
            lines[-1] = (lines[-1][0], lines[-1][1] + said)
        else:
            lines.append((level, said))

    callback = llama_cpp.llama_log_callback(listen)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = job["file_type"], job["threads"]
    if job["head"] is not None:
        kind = int(gguf.GGMLQuantizationType[job["head"]])
        if job["tied"]:
            params.token_embedding_type = kind
        else:
            params.output_tensor_type = kind
    kept: list[Any] = []
    if job["importance"] is not None:
        with np.load(job["importance"], allow_pickle=False) as arrays:
            kept = [np.ascontiguousarray(arrays[f"a{i}"], np.float32) for i in range(len(job["names"]))]
        entries = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()
        for entry, name, values in zip(entries, job["names"], kept):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries[len(kept)].name = None
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    if job["types"]:
        overrides = (llama_cpp.llama_model_tensor_override * (len(job["types"]) + 1))()
        for override, (name, kind_name) in zip(overrides, job["types"].items()):
            override.pattern = f"^{re.escape(name)}$".encode()
            override.type = int(gguf.GGMLQuantizationType[kind_name])
        overrides[len(job["types"])].pattern = None
        params.tt_overrides = ctypes.cast(overrides, type(params.tt_overrides))
    code = int(llama_cpp.llama_model_quantize(job["source"].encode(), job["out"].encode(), ctypes.byref(params)))
    loud = [text.strip() for level, text in lines if level >= WARN and level != CONTINUED]
    # What falls back was predicted and said; llama.cpp says it again in pieces of lines.
    told = ("not divisible by", "falling back to", "fallback quantization", "must use F16", "applying manual override")
    return code, [text for text in loud if text and not any(part in text for part in told)]


def main() -> int:
    code, loud = run(json.load(sys.stdin))
    sys.stderr.write("".join(f"{line}\n" for line in loud))
    sys.stdout.write(json.dumps({"warnings": loud}) + "\n")
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
