"""Many threads through one graph for minutes: no leak, no cross-talk, and every answer the one its thread gets alone.

Does: ask every thread's question alone first; then run all threads at once, each with its own thread id in one store, two
personas on one shared model at temperature 0; compare every answer, look for another thread's mark in it, sample resident memory.
Does not: judge the answers. A continuous batch may add floats in another order, so that a near tie falls the other way: such
answers are counted as mismatches, and `mismatch_share` is to be held against the engine's stated tolerance.

Run: python -m benchmarks.soak [--threads 64] [--minutes 10] [--model scripted | gguf:FILE] [--tolerance 0.02] [--json FILE]

Targets: resident memory flat within 5 % after warm-up, no cross-talk, no error, mismatches within the tolerance (scripted: none).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from agents import END, AgentGraph, Persona, Sampling, open_model
from agents.chat import Reply, Request

FLAT = 0.05
EVERY_S = 5.0


class State(BaseModel):
    question: str
    draft: str = ""
    answer: str = ""


class Echo:
    """What --model scripted is: its prompt's first word and the question, so that a foreign answer shows; it keeps nothing."""

    name = "echo"

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        for i, request in enumerate(requests):
            said = f"{request.messages[0].content.split()[0]}<{request.messages[-1].content}>"
            yield i, Reply(id=request.id, text=said, model=self.name)

    def close(self) -> None:
        """Nothing to free."""


def opened(spec: str) -> Any:
    return Echo() if spec == "scripted" else open_model(spec)


def graph(model: Any, tokens: int) -> AgentGraph:
    """Two personas on one model: the second reads what the first wrote and the question."""
    sampling = Sampling(temperature=0.0, max_tokens=tokens)
    g = AgentGraph(State, name="soak")
    g.add(Persona("draft", model, "Draft an answer.", sampling=sampling), reads="question", writes="draft", start=True)
    review = Persona("review", model, "Review the draft.", sampling=sampling)
    g.add(review, reads=lambda s: f"{s.question}\n{s.draft}".strip(), writes="answer")
    g.edge("draft", "review")
    g.edge("review", END)
    return g


def mark(i: int) -> str:
    return f"order {7919 * (i + 1)}"


def soak(spec: str, threads: int, minutes: float, tokens: int, place: Path) -> dict[str, Any]:
    """Counts, memory and errors of one soak; `place` gets the store."""
    model, process = opened(spec), psutil.Process()
    g = graph(model, tokens)
    questions = [f"Where is {mark(i)}?" for i in range(threads)]
    alone = [g.run(State(question=question)).state for question in questions]
    marks = [mark(i) for i in range(threads)]
    counts: Counter[str] = Counter()
    errors: list[str] = []
    lock = threading.Lock()
    ends = time.monotonic() + minutes * 60
    rss: list[float] = []

    def work(i: int) -> None:
        while time.monotonic() < ends:
            try:
                run = g.run(State(question=questions[i]), thread=f"u{i}", store=place / "runs.db")
            except Exception as error:
                with lock:
                    counts["errors"] += 1
                    errors.append(f"{type(error).__name__}: {error}"[:200])
                if counts["errors"] > 10 * threads:
                    return
                continue
            said = f"{run.state.draft}\n{run.state.answer}"
            foreign = any(other in said for j, other in enumerate(marks) if j != i and other not in alone_text[i])
            with lock:
                counts["answers"] += 1
                counts["mismatches"] += (run.state.draft, run.state.answer) != (alone[i].draft, alone[i].answer)
                counts["crosstalk"] += run.state.question != questions[i] or foreign

    alone_text = [f"{state.draft}\n{state.answer}" for state in alone]
    started = time.monotonic()
    workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    warm = min(60.0, minutes * 60 / 5)
    time.sleep(warm)
    while time.monotonic() < ends:
        rss.append(process.memory_info().rss / 2**20)
        time.sleep(min(EVERY_S, max(0.1, ends - time.monotonic())))
    for worker in workers:
        worker.join(120)
    seconds, stuck = time.monotonic() - started, sum(worker.is_alive() for worker in workers)
    lost = sum(not g.history(f"u{i}", store=place / "runs.db") for i in range(threads)) if counts["answers"] else threads
    g.close()
    model.close()
    n = counts["answers"]
    return {
        "model": spec,
        "threads": threads,
        "seconds": round(seconds, 1),
        "answers": n,
        "answers_per_s": round(n / seconds, 1),
        "mismatches": counts["mismatches"],
        "mismatch_share": counts["mismatches"] / n if n else None,
        "crosstalk": counts["crosstalk"],
        "errors": counts["errors"],
        "first_errors": errors[:3],
        "stuck_threads": stuck,
        "threads_left": threading.active_count() - 1,
        "threads_without_history": lost,
        "distinct_solo_answers": len(set(alone_text)),
        "rss_mb": {"first": rss[0], "last": rss[-1], "max": max(rss), "samples": len(rss), "warm_up_s": warm},
        "rss_growth": rss[-1] / rss[0] - 1.0,
        "store_bytes": (place / "runs.db").stat().st_size,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the JSON; the exit status is 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="scripted", help="scripted, or what open_model takes")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--tolerance", type=float, default=0.02, help="share of answers that may differ from the solo run")
    parser.add_argument("--json", type=Path, help="also write the result here")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        result = soak(given.model, given.threads, given.minutes, given.tokens, Path(place))
    tolerance = 0.0 if given.model == "scripted" else given.tolerance
    result["tolerance"] = tolerance
    result["met"] = {
        "resident memory flat within 5 %": abs(result["rss_growth"]) <= FLAT,
        "no cross-talk": result["crosstalk"] == 0,
        "no error, nothing stuck": result["errors"] == 0 and result["stuck_threads"] == 0 and result["answers"] > 0,
        "answers as alone": result["mismatch_share"] is not None and result["mismatch_share"] <= tolerance,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", "utf-8")
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
