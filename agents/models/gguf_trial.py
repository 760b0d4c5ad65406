"""Load a GGUF file of unknown origin in a process of its own: a malformed one aborts the process that loads it.

Does: load the file (and an adapter onto it), decode one token, exit 0. Does not: judge what the model says.

Run: python -m agents.models.gguf_trial MODEL.gguf [ADAPTER.gguf]
`survives` runs it and raises ModelError where it fails; a file that passed once is not tried again by the same process.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from agents.chat import ModelError

LIMIT_S = 600.0
"""Longest a trial may take."""

_passed: set[tuple[str, int, int]] = set()


def survives(model: Path, adapter: Path | None = None) -> None:
    """Raises ModelError, one sentence, when llama.cpp cannot load the file or dies of it."""
    tried = adapter if adapter is not None else model
    state = tried.stat()
    mark = (str(tried.resolve()), state.st_mtime_ns, state.st_size)
    if mark in _passed:
        return
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "agents.models.gguf_trial", str(model), *([str(adapter)] if adapter is not None else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, env={**os.environ, "PYTHONPATH": paths}
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{tried}: llama.cpp did not load it within {LIMIT_S:.0f} s; get the file again") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines and done.returncode == 2 else f"it ended with {_ended(done.returncode)}"
        raise ModelError(
            f"{tried}: llama.cpp cannot load it ({reason}); get the file again, or convert the model with export.gguf"
        )
    _passed.add(mark)


def _ended(code: int) -> str:
    import signal

    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def main(argv: list[str]) -> int:
    """0 when everything loaded and one token was decoded; 2 with a reason on stderr when llama.cpp refused."""
    from agents.models.llama_library import library

    model_file, adapter_file = argv[0], argv[1] if len(argv) > 1 else None
    lib = library()
    api = lib.api

    def refuse(what: str) -> int:
        sys.stderr.write(f"{lib.why(what)}\n")
        return 2

    model = api.llama_model_load_from_file(model_file.encode(), api.llama_model_default_params())
    if not model:
        return refuse("it does not load")
    if adapter_file is not None and not api.llama_adapter_lora_init(model, adapter_file.encode()):
        return refuse("the adapter does not load")
    parameters = api.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_threads, parameters.n_threads_batch = 64, 16, 1, 1
    context = api.llama_init_from_model(model, parameters)
    if not context:
        return refuse("it has no context to decode in")
    tokens = (ctypes.c_int32 * 1)(0)
    if api.llama_decode(context, api.llama_batch_get_one(tokens, 1)):
        return refuse("it does not decode")
    if not api.llama_get_logits_ith(context, -1):
        return refuse("it gives no logits")
    return 0


if __name__ == "__main__":
    # Leaving without llama.cpp's destructors: what loaded has passed, and a crash on the way out would say otherwise.
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
