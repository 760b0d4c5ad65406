"""The tool round trip of agents, and the valid calls of random weights: rows of `benchmarks.agents`, or alone as JSON.

Does: time one call of a persona that calls a tool and then answers, its model scripted, so that what is left is our own work; and
count how many of N random-weight generations over fifty real tool schemas are whole, valid and conform.
Does not: time a model.

Run: python -m benchmarks.agents_tools [--calls 20000] [--generations 1000]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.tools import tool

ORDERS = {17: "on its way"}


@tool
def lookup(order_id: int) -> str:
    """Status of one order.

    Args:
        order_id: number printed on the receipt
    """
    return ORDERS[order_id]


def tool_round_trip(calls: int = 20_000, repeats: int = 5) -> dict[str, Any]:
    """Microseconds of one persona call: prompt, model asked, call read and validated, tool run, model asked, answer."""
    said = ['{"name":"lookup","arguments":{"order_id":17}}', "It is on its way."]
    each = max(1, calls // repeats)
    wall, cpu = [], []
    for _ in range(repeats):
        persona = Persona("desk", Scripted(said * (each + 1)), "Answer order questions.", tools=[lookup])
        assert persona("where is 17?").calls[0][1].text == "on its way"
        started, used = time.perf_counter(), time.process_time()
        for _ in range(each):
            persona("where is 17?")
        wall.append((time.perf_counter() - started) / each * 1e6)
        cpu.append((time.process_time() - used) / each * 1e6)
    bare = tool_call(each)
    return {"tool_round_trip_us": min(wall), "tool_round_trip_cpu_us": min(cpu), "tool_call_us": bare, "calls": each * repeats}


def tool_call(calls: int) -> float:
    """Microseconds of `Tool.call` alone: arguments validated, function run, result made text."""
    started = time.perf_counter()
    for _ in range(calls):
        lookup.call({"order_id": 17})
    return (time.perf_counter() - started) / calls * 1e6


def valid_calls(generations: int) -> dict[str, Any]:
    """How many of these generations by random weights are valid calls; needs the shared data (PENKNIFE_DATA)."""
    import os

    import torch

    from agents.models import open_model
    from tests.agents.conftest import make_model, make_tokenizer
    from tests.agents.test_persona_schemas import generate, specs

    torch.set_num_threads(1)
    data = Path(os.environ.get("PENKNIFE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not data.is_dir():
        return {"valid_calls": None, "why": "no shared data; set PENKNIFE_DATA"}
    with tempfile.TemporaryDirectory() as place:
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(place)
        make_model(tokenizer).save_pretrained(place)
        model = open_model(place, batch=32)
        started = time.perf_counter()
        good, n = generate(model, specs(data, 50), generations, 3)
        model.close()
    return {"valid_calls": good, "generations": n, "schemas": 50, "seconds": time.perf_counter() - started}


def rows(calls: int = 20_000, generations: int = 0) -> dict[str, Any]:
    """What `benchmarks.agents` adds to its own rows."""
    return {**tool_round_trip(calls), **(valid_calls(generations) if generations else {})}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--generations", type=int, default=0)
    given = parser.parse_args(argv)
    print(json.dumps({"python": platform.python_version(), **rows(given.calls, given.generations)}, indent=1))


if __name__ == "__main__":
    main()
