"""The graph rows for Penknife; prints one line of JSON. Run by `benchmarks.agents` with the repository on the path."""

from __future__ import annotations

import json
import operator
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from agents import END, AgentGraph


class State(BaseModel):
    n: int = 0
    notes: Annotated[list[str], operator.add] = []


def line() -> AgentGraph:
    g = AgentGraph(State, name="line")
    for i in range(10):
        g.node(start=i == 0, name=f"n{i}")(lambda s: {"n": s.n + 1})
        g.edge(f"n{i}", f"n{i + 1}" if i < 9 else END)
    return g


def loop(steps: int) -> AgentGraph:
    g = AgentGraph(State, name="loop")

    @g.node(start=True)
    def step(s: State) -> Any:
        return g.goto("step" if s.n < steps - 1 else END, {"n": s.n + 1})

    return g


def fan() -> AgentGraph:
    g = AgentGraph(State, name="fan")
    g.node(start=True, name="split", goes=["work"])(lambda s: [g.send("work", n=i) for i in range(100)])
    g.node(name="work")(lambda s: {"notes": ["x"]})
    g.node(name="join")(lambda s: {"n": len(s.notes)})
    g.edge("work", "join")
    g.edge("join", END)
    return g


def notes() -> AgentGraph:
    g = AgentGraph(State, name="notes")
    g.node(start=True, name="note")(lambda s: g.goto("note" if s.n < 199 else END, {"n": s.n + 1, "notes": ["x" * 500]}))
    return g


def best(run: Callable[[], Any], steps: int, repeats: int) -> dict[str, float]:
    """Microseconds a step, the best of several: wall clock and CPU."""
    run()
    wall, cpu = [], []
    for _ in range(repeats):
        w, c = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return {"wall_us": min(wall) / steps * 1e6, "cpu_us": min(cpu) / steps * 1e6}


def checkpoints() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        g, path = notes(), Path(scratch) / "runs.db"
        g.run(State(), thread="warm", store=":memory:", max_steps=200)
        bare = best(lambda: g.run(State(), max_steps=200), 200, 10)
        names = iter(range(100))
        kept = best(lambda: g.run(State(), thread=f"t{next(names)}", store=path, max_steps=200), 200, 10)
        g.close()
        alone = Path(scratch) / "one.db"
        g.run(State(), thread="u", store=alone, max_steps=200)
        journal = alone.with_name("one.db-wal").stat().st_size
        g.close()
        return {
            "checkpoint_us": kept["wall_us"] - bare["wall_us"],
            "checkpoint_cpu_us": kept["cpu_us"] - bare["cpu_us"],
            "step_with_checkpoint_us": kept["wall_us"],
            "growth_bytes": alone.stat().st_size,
            "journal_bytes_while_open": journal,
            "payload_bytes": 200 * 500,
        }


def main(repeats: int) -> None:
    short, long, straight, wide = loop(10), loop(1000), line(), fan()
    rows: dict[str, Any] = {
        "line_10": best(lambda: [straight.run(State()) for _ in range(20)], 200, repeats),
        "loop_10": best(lambda: [short.run(State()) for _ in range(20)], 200, repeats),
        "loop_1000": best(lambda: long.run(State(), max_steps=1000), 1000, repeats),
        "fan_100": best(lambda: wide.run(State(), max_steps=200), 102, repeats),
        **checkpoints(),
    }
    assert wide.run(State(), max_steps=200).state.n == 100
    assert long.run(State(), max_steps=1000).state.n == 1000
    print(json.dumps(rows))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
