"""llama.cpp's logits of a GGUF file through its C interface, in a process of its own: an engine independent of our backend.

python -m tests.export.llama_logits FILE ids.npy logits.npy      # the child: ids (n, T) -> logits (n, T, V) float32
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def llama_logits(file: Path, ids: np.ndarray) -> np.ndarray:
    """Teacher-forced logits (n, T, V) of ids (n, T), each row a context of its own."""
    with tempfile.TemporaryDirectory() as place:
        given, written = Path(place) / "ids.npy", Path(place) / "logits.npy"
        np.save(given, ids)
        command = [sys.executable, "-m", "tests.export.llama_logits", str(file), str(given), str(written)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return np.load(written)


def torch_logits(directory: Path, ids: np.ndarray, dtype: str = "float32", **more: Any) -> np.ndarray:
    """The same from transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    from factory.train import quiet

    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), attn_implementation="eager", **more
        )
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(ids)).logits.float().numpy()


def kld(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(reference || found) of next-token distributions from logits, (…, V) -> (…) in nats."""
    p, q = _log_softmax(reference), _log_softmax(found)
    return np.asarray((np.exp(p) * (p - q)).sum(-1))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def main(file: str, given: str, written: str) -> None:
    import llama_cpp as engine

    log = engine.llama_log_callback(lambda level, text, data: sys.stderr.write(text.decode()) if level >= 4 else None)
    engine.llama_log_set(log, ctypes.c_void_p(0))
    model = engine.llama_model_load_from_file(file.encode(), engine.llama_model_default_params())
    assert model, f"{file} does not load"
    width = engine.llama_vocab_n_tokens(engine.llama_model_get_vocab(model))
    out = []
    for row in np.load(given):
        settings = engine.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = len(row)
        settings.n_threads = settings.n_threads_batch = 1
        context = engine.llama_init_from_model(model, settings)
        batch = engine.llama_batch_init(len(row), 0, 1)
        batch.n_tokens = len(row)
        for i, number in enumerate(row):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(number), i, 1, 1
            batch.seq_id[i][0] = 0
        assert engine.llama_decode(context, batch) == 0
        out.append(np.ctypeslib.as_array(engine.llama_get_logits(context), shape=(len(row), width)).copy())
        engine.llama_batch_free(batch)
        engine.llama_free(context)
    np.save(written, np.stack(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
