"""One open GGUF file: its weights, engine and grammars, for as many models as use it.

Does: decide how much memory a file's requests get, make its grammars, free it in the right order.
Does not: know requests (`agents.models.llama_cpp`).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from agents.constrain import Constraint, Engine, Matcher
from agents.models.llama_engine import LlamaEngine
from agents.models.llama_library import usable_cores
from agents.models.llama_weights import Weights

if TYPE_CHECKING:
    from agents.models.llama_cpp import LlamaCppOptions

KV_BYTES = 32 * 1024**2
"""Memory for keys and values where `kv_tokens` is not given, unless one context of `DEFAULT_CONTEXT` needs more."""
DEFAULT_CONTEXT = 4096
"""Tokens of prompt and answer where neither `context` nor the model's own limit is lower."""


class Shared:
    """One open file: weights, engine, grammars, and how many models use them."""

    def __init__(self, path: Path, options: LlamaCppOptions) -> None:
        self.weights = Weights(path, mmap=options.mmap, gpu_layers=options.gpu_layers)
        try:
            cells = _cells(self.weights, options)
            self.cells = cells
            self.engine = LlamaEngine(
                self.weights,
                lambda: self.grammar,
                slots=options.batch,
                kept=options.kept,
                cells=cells,
                threads=options.threads or usable_cores(),
                tokens=min(max(options.batch_tokens, options.batch), cells),  # one for each that writes
                flash=False if options.flash is None and options.kv == "f32" else options.flash,
                full_kv=options.kv == "f32",
            )
        except BaseException:
            self.weights.close()
            raise
        self.users = 0
        self._grammar: Engine | None = None
        self._lock = threading.Lock()

    @property
    def grammar(self) -> Engine:
        """The grammar engine for this vocabulary, made on first use."""
        with self._lock:
            if self._grammar is None:
                weights = self.weights
                self._grammar = Engine.from_bytes(
                    weights.spelled, weights.eos_ids, weights.special_ids, weights.width, weights.tokenize
                )
            return self._grammar

    def matcher(self, constraint: Constraint) -> Matcher:
        """A grammar at its beginning. Raises ConstraintError for a bad one."""
        engine = self.grammar
        with self._lock:  # the engine's store of compiled grammars is one thread's at a time
            return engine.start(constraint)

    def close(self) -> None:
        """End what runs, then free context, adapters and model in this order."""
        if self.engine.inside:  # a thread cannot wait for its own end
            threading.Thread(target=self.close).start()
            return
        self.engine.close()
        self.weights.close()


def _cells(weights: Weights, options: LlamaCppOptions) -> int:
    """Places of KV memory: what was asked, else `KV_BYTES` worth, at least one context, at most a context for every slot."""
    context = min(options.context or weights.context, weights.context)
    if options.kv_tokens is not None:
        return options.kv_tokens
    least = context if options.context is not None else min(context, DEFAULT_CONTEXT)
    affordable = KV_BYTES // max(1, weights.kv_bytes * (2 if options.kv == "f32" else 1))
    cells = max(least, min(affordable, (options.batch + options.kept) * context))
    return -(-cells // 256) * 256
