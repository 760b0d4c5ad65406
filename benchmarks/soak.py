"""Many threads through one graph for minutes: no leak, no cross-talk, and every answer the one its question gets alone.

Does: ask every question alone first; then run all threads at once, each with its own questions and thread id in one store, two
personas on one shared model at temperature 0; compare every answer, sample resident memory, measure the store.
Does not: judge the answers. A continuous batch may add floats in another order, so that a near tie falls the other way: such an
answer is a near tie only if, where it first differs, the token it took was within `--tie` of the solo run's (twice what the
engine says logits may move by); any other difference is a fault, and one that repeats another question's answers cross-talk.

Run: python -m benchmarks.soak [--threads 64] [--minutes 10] [--each 10] [--model scripted | random | gguf:FILE] [--json FILE]

`random` is a 6M model with random weights in F32: every question has its own answer, and nothing but the order of sums moves it.

Targets: resident memory flat within 5 % after warm-up, no cross-talk, no error, no difference beyond a near tie (scripted: none).
"""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from agents import END, AgentGraph, Persona, Run, Sampling, open_model
from agents.chat import Reply, Request, TokenLogprob
from agents.events import ModelCalled

ROOT = Path(__file__).resolve().parents[1]
FLAT = 0.05
EVERY_S = 5.0
TIE = 2e-4
"""Twice what a log-probability may move by beside others with an F32 file and --kv f32, in nats (`agents.models.llama_cpp`)."""


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


@dataclass(frozen=True)
class Alone:
    """What a question gets when nobody else asks: both texts, and the tokens of both calls with their closest rivals."""

    said: tuple[str, str]
    tokens: tuple[tuple[TokenLogprob, ...], ...]


def opened(spec: str, kv: str = "f32") -> Any:
    return Echo() if spec == "scripted" else open_model(spec, kv=kv)


def graph(model: Any, tokens: int) -> AgentGraph:
    """Two personas on one model: the second reads what the first wrote and the question."""
    sampling = Sampling(temperature=0.0, max_tokens=tokens, logprobs=True, top_logprobs=2)
    g = AgentGraph(State, name="soak")
    g.add(Persona("draft", model, "Draft an answer.", sampling=sampling), reads="question", writes="draft", start=True)
    review = Persona("review", model, "Review the draft.", sampling=sampling)
    g.add(review, reads=lambda s: f"{s.question}\n{s.draft}".strip(), writes="answer")
    g.edge("draft", "review")
    g.edge("review", END)
    return g


def asked(threads: int, each: int) -> list[list[str]]:
    """Different bundled questions for every thread, as the sql task asks its students.

    Another process reads them, so that the data is no part of the memory that is watched.
    """
    program = f"import json; from benchmarks.soak import bundled; print(json.dumps(bundled({threads * each})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    texts = json.loads(done.stdout.splitlines()[-1])
    if len(texts) < threads * each:
        raise SystemExit(f"soak: error: {len(texts)} different questions, {threads * each} wanted; lower --threads or --each")
    return [texts[i * each : (i + 1) * each] for i in range(threads)]


def bundled(count: int) -> list[str]:
    """Up to `count` different questions with their tables."""
    from factory.tasks import get_task
    from factory.tasks.task import DataSource

    task = get_task("sql")
    examples, _ = task.load(DataSource(dataset="wikisql", limit=2 * count))
    return list(dict.fromkeys(task.messages(example, "compact")[-1].content for example in examples))[:count]


def outcome(run: Run) -> Alone:
    calls = run.trace.of(ModelCalled)
    return Alone((run.state.draft, run.state.answer), tuple(call.reply.logprobs for call in calls))


def compared(solo: Alone, now: Alone) -> tuple[float, float | None]:
    """(the most a token's log-probability moved by up to where two runs first differ, nats between the solo run's token and the
    one taken there). The second is None where they do not differ, infinite where it cannot be told."""
    moved = 0.0
    for was, is_ in zip(solo.tokens, now.tokens):
        for one, other in zip(was, is_):
            if one.id != other.id:
                rival = next((value for id, _, value in one.top if id == other.id), -math.inf)
                return moved, one.logprob - rival
            moved = max(moved, abs(one.logprob - other.logprob))
        if len(was) != len(is_):
            return moved, math.inf
    return moved, None


def soak(spec: str, threads: int, minutes: float, tokens: int, each: int, kv: str, tie: float, place: Path) -> dict[str, Any]:
    """Counts, memory and errors of one soak; `place` gets the store."""
    model, process = opened(spec, kv), psutil.Process()
    g = graph(model, tokens)
    questions = asked(threads, each)
    alone = {q: outcome(g.run(State(question=q))) for mine in questions for q in mine}
    whose = {solo.said: q for q, solo in alone.items()}
    counts: Counter[str] = Counter()
    errors: list[str] = []
    gaps: list[float] = []
    moved = [0.0]
    lock = threading.Lock()

    def work(i: int) -> None:
        n = 0
        while time.monotonic() < ends:
            question = questions[i][n % each]
            n += 1
            try:
                run = g.run(State(question=question), thread=f"u{i}", store=place / "runs.db")
            except Exception as error:
                with lock:
                    counts["errors"] += 1
                    errors.append(f"{type(error).__name__}: {error}"[:200])
                if counts["errors"] > 10 * threads:
                    return
                continue
            said = (run.state.draft, run.state.answer)
            same = said == alone[question].said
            shift, gap = compared(alone[question], outcome(run))
            with lock:
                moved[0] = max(moved[0], shift)
                counts["answers"] += 1
                counts["other question"] += run.state.question != question
                if not same:
                    counts["mismatches"] += 1
                    fault = gap is None or gap > tie
                    counts["unexplained"] += fault
                    counts["another's answer"] += fault and said in whose
                    if gap is not None and not math.isinf(gap):
                        gaps.append(gap)

    rss: list[float] = []
    started = time.monotonic()
    ends = started + minutes * 60
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
    stored = (place / "runs.db").stat().st_size
    with sqlite3.connect(place / "runs.db") as db:
        (payload,) = db.execute("SELECT sum(length(data) + coalesce(length(events), 0)) FROM rows").fetchone()
    return {
        "model": spec,
        "kv": kv,
        "threads": threads,
        "seconds": round(seconds, 1),
        "answers": n,
        "answers_per_s": round(n / seconds, 1),
        "questions": len(alone),
        "distinct_solo_answers": len(whose),
        "mismatches": counts["mismatches"],
        "mismatch_share": counts["mismatches"] / n if n else None,
        "unexplained_mismatches": counts["unexplained"],
        "near_tie_nats": {"allowed": tie, "largest": max(gaps, default=None)},
        "largest_move_of_a_log_probability": moved[0],
        "crosstalk": counts["other question"] + counts["another's answer"],
        "errors": counts["errors"],
        "first_errors": errors[:3],
        "stuck_threads": stuck,
        "threads_left": threading.active_count() - 1,
        "threads_without_history": lost,
        "rss_mb": {"first": rss[0], "last": rss[-1], "max": max(rss), "samples": len(rss), "warm_up_s": warm},
        "rss_growth": rss[-1] / rss[0] - 1.0,
        "store_bytes": stored,
        "store_bytes_per_answer": round(stored / n) if n else None,
        "payload_bytes_per_answer": round(payload / n) if n else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the JSON; the exit status is 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--each", type=int, default=10, help="different questions of each thread")
    parser.add_argument("--model", default="scripted", help="scripted, random, or what open_model takes")
    parser.add_argument("--kv", choices=["f16", "f32"], default="f32", help="what a GGUF model keeps keys and values in")
    parser.add_argument("--tie", type=float, default=TIE, help="nats a token may be behind the solo run's (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--json", type=Path, help="also write the result here")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        spec = given.model
        if spec == "random":
            from benchmarks.random_models import gguf_file

            spec = f"gguf:{gguf_file('tiny', 'F32', Path(place))}"
        result = soak(spec, given.threads, given.minutes, given.tokens, given.each, given.kv, given.tie, Path(place))
        result["model"] = given.model
    result["met"] = {
        "resident memory flat within 5 %": abs(result["rss_growth"]) <= FLAT,
        "no cross-talk": result["crosstalk"] == 0,
        "no error, nothing stuck": result["errors"] == 0 and result["stuck_threads"] == 0 and result["answers"] > 0,
        "answers as alone, up to near ties": result["unexplained_mismatches"] == 0
        and (given.model != "scripted" or result["mismatches"] == 0),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", "utf-8")
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
