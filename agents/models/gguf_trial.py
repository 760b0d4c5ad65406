"""Load a GGUF file of unknown origin in a process of its own: a malformed one aborts the process that loads it.

Does: load the file (and an adapter onto it), read its vocabulary, cut texts, decode a few tokens, exit 0.
Does not: judge what the model says.

Run: python -m agents.models.gguf_trial MODEL.gguf [ADAPTER.gguf]
`survives` runs it and raises ModelError where it fails; a file that passed once is not tried again by the same process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from agents.chat import ModelError

LIMIT_S = 600.0
"""Longest a trial may take."""

TEXTS = ("a word, and  another\n\n\t12345", "e\u0301 größer ☂ 日本語 👩‍🚀", "".join(map(chr, range(1, 256))), " ", "")
"""What is cut into tokens once."""

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
    """0 when everything a model is used for was done once; 2 with a reason on stderr when llama.cpp refused."""
    from agents.models.llama_batch import Batch, DecodeError
    from agents.models.llama_weights import Weights

    try:
        weights = Weights(Path(argv[0]), trusted=True)
        for text in TEXTS:
            weights.tokenize(text)
        weights.tokenize("".join(piece.decode("utf-8", "replace") for piece in weights.spelled[:4096]))
        batch = Batch(weights, cells=512, sequences=4, tokens=64, threads=1, outputs=64)
        if len(argv) > 1:
            batch.use([(weights.loaded(weights.adapter(Path(argv[1]), trusted=True)), 1.0)])
        ids = [*range(min(32, weights.width)), weights.width - 1]
        for at, part in ((0, ids), (len(ids), ids[:1])):
            batch.clear()
            batch.add(0, part, at, True)
            batch.decode()
            batch.logits(len(part) - 1)
    except (ModelError, DecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    # Leaving without llama.cpp's destructors: what loaded has passed, and a crash on the way out would say otherwise.
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
