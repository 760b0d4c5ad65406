"""What the shared llama.cpp engine costs and saves, against `llama_cpp.Llama` on the same file, in the same run.

Rows: decode of one stream; eight requests at once against eight one after another; time to the first token with a persona's
prompt of 256 tokens in memory and without; memory of eight personas against one; the price of a grammar, and of llama.cpp's own.
Random weights of two shapes with a vocabulary learnt from real text; both sides take turns, round by round, so that a neighbour
slows both. CPU seconds of the process are compared at one thread, wall seconds beside them; a figure is the best of its rounds.

    python -m benchmarks.engine [--shapes small,smol] [--precisions Q8_0,Q4_0] [--threads 1] [--rounds 5] [--tokens 96]
                                [--models DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.chat import Message, Request, Sampling, answer
from agents.constrain import json_schema
from agents.models.llama_cpp import LlamaCppModel, LlamaCppOptions
from benchmarks.random_models import gguf_file, texts

CONTEXT = 1024
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "string"}}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
"""A call with free text in it: the grammar allows most of the vocabulary at most steps, which is its dearest state."""

Seconds = tuple[float, float]
"""(CPU, wall)"""


def timed(work: Callable[[], int]) -> tuple[int, Seconds]:
    """(tokens `work` says it made, seconds it took)."""
    cpu, wall = time.process_time(), time.perf_counter()
    made = work()
    return made, (time.process_time() - cpu, time.perf_counter() - wall)


def in_turns(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, dict[str, float]]:
    """Best tokens per CPU and per wall second of each side, after one round that only warms up."""
    best: dict[str, dict[str, float]] = {name: {"cpu": 0.0, "wall": 0.0, "tokens": 0} for name in sides}
    for number in range(rounds + 1):
        for name, work in sides.items():
            made, (cpu, wall) = timed(work)
            if number and made:
                mine = best[name]
                mine["cpu"], mine["wall"] = max(mine["cpu"], made / cpu), max(mine["wall"], made / wall)
                mine["tokens"] = made
    return best


def asks(count: int, words: int, tokens: int, **extra: Any) -> list[Request]:
    """Requests of `words` words of different text each, answered greedily."""
    pool = " ".join(texts()[:2000]).split()
    return [
        Request(
            messages=(Message(role="user", content=" ".join(pool[i * words : (i + 1) * words])),),
            sampling=Sampling(max_tokens=tokens),
            **extra,
        )
        for i in range(count)
    ]


def engine(file: Path, threads: int, **options: Any) -> LlamaCppModel:
    return LlamaCppModel.open(str(file), LlamaCppOptions(threads=threads, kv_tokens=8 * CONTEXT, context=CONTEXT, **options))


def peer(file: Path, threads: int) -> Any:
    from llama_cpp import Llama

    return Llama(str(file), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)


def ours(model: LlamaCppModel, requests: list[Request]) -> Callable[[], int]:
    def work() -> int:
        return sum(reply.usage.completion_tokens for reply in answer(model, requests))

    return work


def theirs(llama: Any, prompts: list[list[int]], tokens: int, grammar: Any = None) -> Callable[[], int]:
    def work() -> int:
        made = 0
        for prompt in prompts:
            llama.reset()  # it would take over what it has of the last prompt, and ours is asked not to
            out = llama.create_completion(prompt, max_tokens=tokens, temperature=0.0, grammar=grammar)
            made += out["usage"]["completion_tokens"]
        return made

    return work


def speed(file: Path, threads: int, rounds: int, tokens: int) -> dict[str, Any]:
    """One stream, and eight at once, both without any part of a prompt taken over from an earlier one."""
    model, llama = engine(file, threads, kept=0), peer(file, threads)
    one, eight = asks(1, 8, tokens), asks(8, 8, tokens)
    ids = [model.prompt_ids(request.messages) for request in eight]
    sides = {
        "engine, one": ours(model, one),
        "Llama, one": theirs(llama, ids[:1], tokens),
        "engine, eight at once": ours(model, eight),
        "Llama, eight in turn": theirs(llama, ids, tokens),
        "engine, eight in turn": lambda: sum(ours(model, [request])() for request in eight),
    }
    best = in_turns(sides, rounds)
    model.close()
    llama.close()
    return {
        "tokens_per_s": best,
        "one stream, engine / Llama": _ratio(best, "engine, one", "Llama, one"),
        "eight at once, engine / Llama in turn": _ratio(best, "engine, eight at once", "Llama, eight in turn"),
    }


def first_token(file: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds to the first token of a question to a persona of 256 tokens, its prompt in memory or not."""
    model = engine(file, threads)
    pool = " ".join(texts()[:4000]).split()
    persona: list[str] = []
    while len(model.tokenize(" ".join(persona))) < 256:
        persona.append(pool[len(persona)])
    warm, cold, reused = [], [], 0
    for number in range(rounds + 1):
        for kind in (cold, warm):
            # A cold persona is one nobody has asked: its prompt begins differently from all before.
            start = f"{number} " if kind is cold else "w "
            request = Request(
                messages=(
                    Message(role="system", content=start + " ".join(persona)),
                    Message(role="user", content=" ".join(pool[900 + 4 * number : 904 + 4 * number])),
                ),
                sampling=Sampling(max_tokens=1),
                static_messages=1,
            )
            reply = answer(model, [request])[0]
            if number:  # the first warm one is cold
                kind.append(reply.timings.total_ms)
                reused = reply.usage.reused_tokens  # the warm one's, which comes last
    model.close()
    return {"cold_ms": min(cold), "warm_ms": min(warm), "reused_tokens": reused, "warm / cold": min(warm) / min(cold)}


def personas_memory(file: Path, threads: int) -> dict[str, Any]:
    """Resident memory of a fresh process after one persona was asked, and after eight were (256 tokens of prompt each)."""
    sizes = {}
    for count in (1, 8):
        command = [sys.executable, "-m", "benchmarks.engine", "--resident", f"{count},{threads},{file}"]
        sizes[count] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return {"one_mb": sizes[1] / 1e6, "eight_mb": sizes[8] / 1e6, "eight / one": sizes[8] / sizes[1]}


def resident(count: int, threads: int, file: str) -> int:
    """Bytes resident once `count` personas, each a model of its own opening, have answered."""
    import psutil

    pool = " ".join(texts()[:4000]).split()
    models = []
    for number in range(count):
        model = LlamaCppModel.open(file, LlamaCppOptions(threads=threads))
        models.append(model)
        prompt = f"{number} " + " ".join(pool[number * 160 : number * 160 + 180])
        messages = (Message(role="system", content=prompt), Message(role="user", content="who won"))
        answer(model, [Request(messages=messages, sampling=Sampling(max_tokens=16), static_messages=1)])
    return int(psutil.Process().memory_info().rss)


def grammar_price(file: Path, threads: int, rounds: int, tokens: int) -> dict[str, Any]:
    """Share of decode a JSON grammar costs, ours with and without log-probabilities, and llama.cpp's own."""
    from llama_cpp import LlamaGrammar

    model, llama = engine(file, threads, kept=0), peer(file, threads)
    free, bound = asks(1, 8, tokens), asks(1, 8, tokens, constraint=json_schema(SCHEMA))
    scored = [[r.model_copy(update={"sampling": Sampling(max_tokens=tokens, logprobs=True)}) for r in rs] for rs in (free, bound)]
    grammar = LlamaGrammar.from_json_schema(json.dumps(SCHEMA), verbose=False)
    ids = [model.prompt_ids(free[0].messages)]
    best = in_turns(
        {
            "free": ours(model, free),
            "grammar": ours(model, bound),
            "free, log-probabilities": ours(model, scored[0]),
            "grammar, log-probabilities": ours(model, scored[1]),
            "Llama, free": theirs(llama, ids, tokens),
            "Llama, grammar": theirs(llama, ids, tokens, grammar),
        },
        rounds,
    )
    model.close()
    llama.close()
    return {
        "tokens_per_s": best,
        "cost": {k: 1 - v for k, v in _ratio(best, "grammar", "free").items()},
        "cost with log-probabilities": {
            k: 1 - v for k, v in _ratio(best, "grammar, log-probabilities", "free, log-probabilities").items()
        },
        "cost of llama.cpp's grammar": {k: 1 - v for k, v in _ratio(best, "Llama, grammar", "Llama, free").items()},
    }


def _ratio(best: dict[str, dict[str, float]], over: str, under: str) -> dict[str, float]:
    return {clock: best[over][clock] / best[under][clock] for clock in ("cpu", "wall")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="small,smol")
    parser.add_argument("--precisions", default="Q8_0,Q4_0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--only", default="speed,first_token,memory,grammar")
    parser.add_argument("--models", type=Path, help="where the random models are kept (default: a temporary directory)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.resident:
        count, threads, file = asked.resident.split(",", 2)
        print(resident(int(count), int(threads), file))
        return
    with tempfile.TemporaryDirectory() as scratch:
        cache = asked.models or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for shape in asked.shapes.split(","):
            for precision in asked.precisions.split(","):
                file = gguf_file(shape, precision, cache)
                row: dict[str, Any] = {"shape": shape, "precision": precision, "threads": asked.threads}
                row["file_mb"] = file.stat().st_size / 1e6
                parts: dict[str, Callable[[], Any]] = {
                    "speed": lambda: speed(file, asked.threads, asked.rounds, asked.tokens),  # noqa: B023
                    "first_token": lambda: first_token(file, asked.threads, asked.rounds),  # noqa: B023
                    "memory": lambda: personas_memory(file, asked.threads),  # noqa: B023
                    "grammar": lambda: grammar_price(file, asked.threads, asked.rounds, asked.tokens),  # noqa: B023
                }
                for name in asked.only.split(","):
                    row[name] = parts[name]()
                rows.append(row)
                print(json.dumps(row, indent=1), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"benchmark": "engine", "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
