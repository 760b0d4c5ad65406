"""Three personas on one loaded base: a router sends each request to the SQL writer or to the one that calls functions.

Does: open the base's GGUF file once, lay an adapter on it for each persona, answer five requests about the bundled database and
three functions, and say which way each went, what was run and how long it took.
Does not: train (`factory.distill`) or export (`export.gguf --lora adapter`).

Run: python examples/three_blades.py [--sql FILE.gguf] [REQUEST …]

`--sql` takes another SQL adapter for the same base: the one `make quickstart` has just trained.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

REQUESTS = (
    "How many moons does Saturn have?",
    "what is the balance of my savings account",
    "Which mission has agency ESA?",
    "how much money is in my checking account",
    "What is the average diameter of the moons of Jupiter?",
)


def main() -> int:
    from agents.chat import ModelError
    from app import artifacts
    from app.blades import BladesState
    from app.wiring import BUNDLED, Setup, Workshop

    parser = argparse.ArgumentParser(description="Three personas on one base.")
    parser.add_argument("requests", nargs="*", metavar="REQUEST", help="what to ask; default: five requests")
    parser.add_argument(
        "--sql", type=Path, help="another SQL adapter for the embedded base, as export.gguf --lora adapter wrote it"
    )
    parser.add_argument("--database", type=Path, default=BUNDLED, help="SQLite file to ask about; default: the bundled one")
    given = parser.parse_args()
    for path in (given.sql, given.database):
        if path is not None and not path.is_file():
            print(f"{path}: no such file; give an existing one", file=sys.stderr)
            return 2
    shared = artifacts.on_one_base(given.sql)
    if shared is None:
        print("there are no three adapters on one base that can be opened here; install llama-cpp-python: "
              "pip install 'penknife[gguf]'", file=sys.stderr)  # fmt: skip
        return 2
    shop = Workshop()
    try:
        setup = Setup(shared["sql"], given.database, graph="blades", route=shared["route"], tools=shared["tools"])
        graph = shop.graph(setup)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"one base, {shared['sql'].opened.path.name}, and three adapters: {', '.join(a.path.name for a in shared.values())}")
    for request in given.requests or REQUESTS:
        began = time.perf_counter()
        state = graph.run(BladesState(**setup.first_state(request))).state
        took = (time.perf_counter() - began) * 1e3
        way = f"sql: {state.sql}" if state.sql else f"tools ({state.label})"
        print(f"\n{request}\n  {way}\n  {state.answer or state.problem or '; '.join(state.notes)}   [{took:.0f} ms]")
    print(f"\nmodels loaded: {shop.models_open}")
    shop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
