"""How fast one model prefills and decodes, and how much memory it takes: one measurement in a fresh process.

Does: load a GGUF file, an ONNX directory or a transformers directory with a given number of threads, run a prompt and greedy
steps through its engine's own loop, take the best of several rounds in processor time, read resident memory.
Does not: check answers, or time grammars and chat templates, which cost every engine the same.

    python -m export.speed gguf:model.gguf --prefill 256 --decode 64 --rounds 3
Rates are tokens per second of processor time, so that other programs on the machine matter little.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from export.apart import run
from export.errors import ExportError
from factory.settings import parse

ANSWER = "speed: "
"""Begins the line on stdout that holds the measurement."""
TIMEOUT_S = 1800.0


class SpeedSettings(BaseModel):
    """`python -m export.speed MODEL`: what is timed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """gguf:FILE, onnx:DIR or hf:DIR (or the bare path)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of a transformers model"""
    prefill: int = Field(256, ge=1)
    """tokens of the prompt"""
    decode: int = Field(64, ge=1)
    """tokens decoded after it"""
    rounds: int = Field(3, ge=1)
    """rounds after a warm-up, of which the best counts"""
    threads: int = Field(1, ge=1)
    """threads of the engine"""


class Speed(BaseModel):
    """One measurement. Rates are tokens per second of processor time divided by threads: with one thread, of processor time."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    engine: str
    threads: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    first_token_ms: float
    """processor time from the prompt's tokens to the first answer token"""
    prefill: int
    decode: int
    load_s: float
    """processor time of loading, imports not counted"""
    weight_bytes: int
    """bytes of weights that every decoded token reads; an embedding that is only looked up is not among them"""
    rss_load_bytes: int
    """resident memory after loading, over that of a bare interpreter; pages mapped from the file count once they were read"""
    rss_bytes: int
    """the same after the run"""
    peak_bytes: int
    """the most it was at any time"""

    @property
    def bytes_per_s(self) -> float:
        """Weights read per second while decoding: to be held against the memory's bandwidth."""
        return self.weight_bytes * self.decode_tokens_per_s


def measure_speed(model: str, **settings: Any) -> Speed:
    """Measure `model` in a fresh process; `settings` are the fields of `SpeedSettings`.

    Raises ExportError when it cannot be loaded, or the process dies.
    """
    given = SpeedSettings(model=model, **settings)
    options = [f"--{name}={value}" for name, value in given.model_dump().items() if name != "model"]
    threads = str(given.threads)
    env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = run("export.speed", model, *options, env=env, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ExportError(f"{model}: its speed was not measured within {TIMEOUT_S:g} s; lower --decode or --rounds") from None
    answers = [line.removeprefix(ANSWER) for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ExportError(f"{model}: its speed cannot be measured ({said[-1] if said else f'exit status {done.returncode}'})")
    return Speed.model_validate_json(answers[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure here, in this process, and print the answer as JSON."""
    import psutil

    process = psutil.Process()
    bare = process.memory_info().rss
    settings = parse(SpeedSettings, argv, "python -m export.speed", "Time one model.")
    started = time.process_time()
    engine, width, weight_bytes, load = _engine(settings)
    imported = time.process_time()
    prefill, step, clear = load()
    loaded = process.memory_info().rss - bare
    load_s = time.process_time() - imported
    ids = [3 + (7919 * i) % max(1, width - 3) for i in range(settings.prefill)]
    best_prefill = best_decode = float("inf")
    for number in range(settings.rounds + 1):
        clear()
        # The warm-up touches every weight; a short prompt is enough for that.
        given = ids if number else ids[: min(8, len(ids))]
        start = time.process_time()
        token = prefill(given)
        between = time.process_time()
        for place in range(settings.decode if number else 2):
            token = step(token, len(given) + place)
        end = time.process_time()
        if number:
            best_prefill, best_decode = min(best_prefill, between - start), min(best_decode, end - between)
    speed = Speed(
        model=settings.model,
        engine=engine,
        threads=settings.threads,
        prefill_tokens_per_s=settings.prefill * settings.threads / best_prefill,
        decode_tokens_per_s=settings.decode * settings.threads / best_decode,
        first_token_ms=1e3 * best_prefill / settings.threads,
        prefill=settings.prefill,
        decode=settings.decode,
        load_s=load_s if load_s > 0 else time.process_time() - started,
        weight_bytes=weight_bytes(),
        rss_load_bytes=max(loaded, 0),
        rss_bytes=max(process.memory_info().rss - bare, 0),
        peak_bytes=max(peak_rss() - bare, 0),
    )
    sys.stdout.write(ANSWER + speed.model_dump_json() + "\n")


Prefill = Callable[[Sequence[int]], int]
"""Token ids -> the most likely next token; what came before is forgotten."""
Step = Callable[[int, int], int]
"""(newest token, its position) -> the most likely next one."""
Loader = Callable[[], tuple[Prefill, Step, Callable[[], None]]]


def _engine(settings: SpeedSettings) -> tuple[str, int, Callable[[], int], Loader]:
    """(name, width of the vocabulary, bytes a token reads, what loads it); libraries are imported here, weights not yet."""
    kind, colon, rest = settings.model.partition(":")
    path = Path(rest if colon and kind in ("gguf", "onnx", "hf") else settings.model)
    if kind == "gguf" or path.suffix == ".gguf":
        return _llama(path, settings)
    if kind == "onnx" or (path.is_dir() and any(path.glob("*.onnx"))):
        return _onnx(path, settings)
    return _transformers(path, settings)


def _llama(path: Path, settings: SpeedSettings) -> tuple[str, int, Callable[[], int], Loader]:
    import ctypes

    import numpy as np

    from agents.models.gguf_file import read_gguf
    from agents.models.llama_library import library

    file = read_gguf(path)
    api = library().api
    width = len(file.metadata.get("tokenizer.ggml.tokens", ())) or 256
    tied = all(tensor.name != "output.weight" for tensor in file.tensors)
    size = sum(tensor.size for tensor in file.tensors if tied or tensor.name != "token_embd.weight")

    def load() -> tuple[Prefill, Step, Callable[[], None]]:
        from agents.models.llama_weights import Weights

        weights = Weights(path)
        parameters = api.llama_context_default_params()
        parameters.n_ctx = settings.prefill + settings.decode + 8
        parameters.n_batch = parameters.n_ubatch = max(512, settings.prefill)
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        context = api.llama_init_from_model(weights.pointer, parameters)
        if not context:
            raise ExportError(f"{path}: llama.cpp gives it no context of {parameters.n_ctx} tokens; lower --prefill")
        one = (ctypes.c_int32 * 1)()

        def run(tokens: Any, n: int) -> int:
            if api.llama_decode(context, api.llama_batch_get_one(tokens, n)):
                raise ExportError(f"{path}: llama.cpp does not decode it")
            return int(np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (width,)).argmax())

        def step(token: int, place: int) -> int:
            one[0] = token
            return run(one, 1)

        def clear() -> None:
            api.llama_memory_clear(api.llama_get_memory(context), True)

        return (lambda ids: run((ctypes.c_int32 * len(ids))(*ids), len(ids))), step, clear

    return "llama.cpp", width, lambda: size, load


def _onnx(path: Path, settings: SpeedSettings) -> tuple[str, int, Callable[[], int], Loader]:
    import onnxruntime  # noqa: F401

    from agents.card import weight_files
    from agents.models.onnx_directory import OnnxDirectory
    from agents.models.onnx_graph import Cache, OnnxGraph

    directory = OnnxDirectory.read(path)
    size = sum(file.stat().st_size for file in weight_files(path))

    def load() -> tuple[Prefill, Step, Callable[[], None]]:
        graph = OnnxGraph(directory.file, directory.heads, settings.threads)
        cache = Cache(graph, 1, settings.prefill + settings.decode + 8)

        def step(token: int, place: int) -> int:
            return int(graph.step([token], [place], cache)[0].argmax())

        return (lambda ids: int(graph.prefill(ids, cache, 0)[-1].argmax())), step, lambda: None

    return "onnxruntime", len(directory.tokenizer), lambda: size, load


def _transformers(path: Path, settings: SpeedSettings) -> tuple[str, int, Callable[[], int], Loader]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(settings.threads)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    found: list[int] = []

    def load() -> tuple[Prefill, Step, Callable[[], None]]:
        dtype = getattr(torch, settings.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        model.eval()
        looked_up = model.get_input_embeddings().weight
        tied = looked_up is model.get_output_embeddings().weight
        found.append(sum(p.numel() * p.element_size() for p in model.parameters() if tied or p is not looked_up))
        past: list[Any] = [None]

        def run(tokens: Sequence[int]) -> int:
            with torch.inference_mode():
                out = model(input_ids=torch.tensor([list(tokens)]), past_key_values=past[0], use_cache=True, logits_to_keep=1)
            past[0] = out.past_key_values
            return int(out.logits[0, -1].argmax())

        def clear() -> None:
            past[0] = None

        return run, (lambda token, place: run([token])), clear

    return f"transformers {settings.dtype}", int(config.get_text_config().vocab_size), lambda: found[0], load


def peak_rss() -> int:
    """The most bytes of memory this process had at any time."""
    import resource

    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count what the parent had when it started this process.
        high = next((line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")), None)
        if high is not None:
            return int(high.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def read_bandwidth(size_bytes: int = 256 * 1024**2, rounds: int = 5) -> float:
    """Bytes per second that one core reads from memory: the best of several sums over an array no cache holds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        array = torch.ones(size_bytes // 4, dtype=torch.float32)
        best = float("inf")
        for _ in range(rounds):
            start = time.process_time()
            array.sum()
            best = min(best, time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return size_bytes / best


if __name__ == "__main__":
    from factory.cli import run_cli

    raise SystemExit(run_cli(main))
