"""The graph rows for pydantic-graph, in its own environment; prints one line of JSON. Run by `benchmarks.agents`.

It keeps no checkpoints, so those rows are missing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from pydantic_graph import GraphBuilder, StepContext, TypeExpression, reduce_list_append  # noqa: E402

Way = Literal["again", "end"]


@dataclass
class State:
    n: int = 0


def line() -> Any:
    g = GraphBuilder(state_type=State, output_type=int, auto_instrument=False)
    steps = []
    for i in range(10):

        async def work(ctx: StepContext[State, None, Any]) -> int:
            ctx.state.n += 1
            return ctx.state.n

        steps.append(g.step(work, node_id=f"n{i}"))
    g.add(g.edge_from(g.start_node).to(steps[0]))
    for one, two in pairwise(steps):
        g.add(g.edge_from(one).to(two))
    g.add(g.edge_from(steps[-1]).to(g.end_node))
    return g.build()


def loop(count: int) -> Any:
    g = GraphBuilder(state_type=State, output_type=str, auto_instrument=False)

    @g.step
    async def work(ctx: StepContext[State, None, Any]) -> Way:
        ctx.state.n += 1
        return "again" if ctx.state.n < count else "end"

    g.add(
        g.edge_from(g.start_node).to(work),
        g.edge_from(work).to(
            g.decision()
            .branch(g.match(TypeExpression[Literal["again"]]).to(work))
            .branch(g.match(TypeExpression[Literal["end"]]).to(g.end_node))
        ),
    )
    return g.build()


def fan() -> Any:
    g = GraphBuilder(state_type=State, output_type=int, auto_instrument=False)

    @g.step
    async def split(ctx: StepContext[State, None, None]) -> list[int]:
        return list(range(100))

    @g.step
    async def work(ctx: StepContext[State, None, int]) -> str:
        return "x"

    @g.step
    async def count(ctx: StepContext[State, None, list[str]]) -> int:
        return len(ctx.inputs)

    join = g.join(reduce_list_append, initial_factory=list[str])
    g.add(
        g.edge_from(g.start_node).to(split),
        g.edge_from(split).map().to(work),
        g.edge_from(work).to(join),
        g.edge_from(join).to(count),
        g.edge_from(count).to(g.end_node),
    )
    return g.build()


def best(run: Callable[[], Any], steps: int, repeats: int) -> dict[str, float]:
    run()
    wall, cpu = [], []
    for _ in range(repeats):
        w, c = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return {"wall_us": min(wall) / steps * 1e6, "cpu_us": min(cpu) / steps * 1e6}


def main(repeats: int) -> None:
    short, long, straight, wide = loop(10), loop(1000), line(), fan()
    events = asyncio.new_event_loop()

    def run(graph: Any) -> Any:
        state = State()
        return events.run_until_complete(graph.run(state=state)), state.n

    rows = {
        "line_10": best(lambda: [run(straight) for _ in range(5)], 50, repeats),
        "loop_10": best(lambda: [run(short) for _ in range(5)], 50, repeats),
        "loop_1000": best(lambda: run(long), 1000, max(2, repeats // 3)),
        "fan_100": best(lambda: run(wide), 102, max(2, repeats // 3)),
    }
    assert run(wide)[0] == 100
    assert run(long)[1] == 1000
    assert run(straight)[0] == 10
    print(json.dumps(rows))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
