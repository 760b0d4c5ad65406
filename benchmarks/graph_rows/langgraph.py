"""The graph rows for langgraph, in its own environment; prints one line of JSON. Run by `benchmarks.agents`."""

from __future__ import annotations

import json
import operator
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from langgraph.checkpoint.sqlite import SqliteSaver  # noqa: E402
from langgraph.graph import END, START, StateGraph  # noqa: E402
from langgraph.types import Send  # noqa: E402


class State(TypedDict):
    n: int
    notes: Annotated[list[str], operator.add]


def line() -> Any:
    g = StateGraph(State)
    for i in range(10):
        g.add_node(f"n{i}", lambda s: {"n": s["n"] + 1})
        g.add_edge(f"n{i - 1}" if i else START, f"n{i}")
    g.add_edge("n9", END)
    return g.compile()


def loop(steps: int, note: bool = False, checkpointer: Any = None) -> Any:
    g = StateGraph(State)
    g.add_node("step", lambda s: {"n": s["n"] + 1, **({"notes": ["x" * 500]} if note else {})})
    g.add_edge(START, "step")
    g.add_conditional_edges("step", lambda s: "step" if s["n"] < steps else END)
    return g.compile(checkpointer=checkpointer)


def fan() -> Any:
    g = StateGraph(State)
    g.add_node("split", lambda s: {})
    g.add_node("work", lambda s: {"notes": ["x"]})
    g.add_node("join", lambda s: {"n": len(s["notes"])})
    g.add_edge(START, "split")
    g.add_conditional_edges("split", lambda s: [Send("work", {"n": i}) for i in range(100)], ["work"])
    g.add_edge("work", "join")
    g.add_edge("join", END)
    return g.compile()


def best(run: Callable[[], Any], steps: int, repeats: int) -> dict[str, float]:
    run()
    wall, cpu = [], []
    for _ in range(repeats):
        w, c = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return {"wall_us": min(wall) / steps * 1e6, "cpu_us": min(cpu) / steps * 1e6}


def checkpoints() -> dict[str, float]:
    config: dict[str, Any] = {"recursion_limit": 1000}
    bare = loop(200, note=True)
    without = best(lambda: bare.invoke({"n": 0, "notes": []}, config), 200, 2)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "runs.db"
        connection = sqlite3.connect(path, check_same_thread=False)
        kept = loop(200, note=True, checkpointer=SqliteSaver(connection))
        began = time.perf_counter()
        kept.invoke({"n": 0, "notes": []}, {**config, "configurable": {"thread_id": "u"}})
        took = (time.perf_counter() - began) / 200 * 1e6
        connection.close()
        return {
            "checkpoint_us": took - without["wall_us"],
            "step_with_checkpoint_us": took,
            "growth_bytes": path.stat().st_size,
            "payload_bytes": 200 * 500,
        }


def main(repeats: int) -> None:
    few = max(2, repeats // 3)
    start, config = {"n": 0, "notes": []}, {"recursion_limit": 2000}
    short, long, straight, wide = loop(10), loop(1000), line(), fan()
    rows = {
        "line_10": best(lambda: [straight.invoke(start) for _ in range(5)], 50, repeats),
        "loop_10": best(lambda: [short.invoke(start) for _ in range(5)], 50, repeats),
        "loop_1000": best(lambda: long.invoke(start, config), 1000, few),
        "fan_100": best(lambda: wide.invoke(start, config), 102, few),
        **checkpoints(),
    }
    assert wide.invoke(start)["n"] == 100
    assert long.invoke(start, config)["n"] == 1000
    print(json.dumps(rows))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
