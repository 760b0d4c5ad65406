"""Memory and time of three personas on one loaded base, against the base alone. Prints JSON.

Does: in fresh processes open (a) the embedded base and let one request through it, (b) the same with the three shipped adapters,
each asked, (c) the three merged files; read each process's resident and proportional memory at the end; time requests
that change the persona every time against requests that stay with one.
Does not: judge the answers.

Run: python -m benchmarks.blades [--requests 30] [--json FILE]        Target: (b) at most 1.2 times (a).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

QUESTIONS = {
    "route": "what is my credit card limit",
    "tools": "what is the balance of my savings account",
    "sql": "Who discovered Triton?",
}


def memory() -> dict[str, float]:
    """Megabytes of this process."""
    read = Path("/proc/self/smaps_rollup").read_text()
    found = {name: re.search(rf"^{name}:\s+(\d+) kB", read, re.MULTILINE) for name in ("Rss", "Pss")}
    return {name.lower(): round(int(match[1]) / 1e3, 1) for name, match in found.items() if match is not None}


def personas(shop: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    from app.blades import TOOLS
    from app.wiring import BUNDLED
    from factory.tasks.route.labels import from_data
    from factory.tasks.sql.database import Database

    labels = next(one.id for one in from_data(chosen["route"].card.task_data, "route") if one.out_of_scope)
    database = Database.from_file(BUNDLED)
    return {
        "route": shop.persona(chosen["route"], labels=labels),
        "tools": shop.persona(chosen["tools"], tools=TOOLS),
        "sql": shop.persona(chosen["sql"], database=database, table="moon"),
    }


def measure(what: str, requests: int) -> dict[str, Any]:
    """One process's share: what = base, adapters or merged."""
    from app import artifacts
    from app.wiring import Workshop

    shared = artifacts.on_one_base()
    if shared is None:
        raise SystemExit("needs llama-cpp-python and the embedded adapters")
    chosen = shared
    if what == "merged":
        whole = [one for one in artifacts.find_artifacts(ROOT / "none")[0] if one.base is None and one.kind == "gguf"]
        chosen = {task: next(one for one in whole if one.card.task == task and "q8" in one.path.name) for task in QUESTIONS}
    shop = Workshop()
    asked = personas(shop, chosen)
    if what == "base":
        from agents import Persona, Sampling

        # Nothing laid on it, and no task: it goes on with the question's text.
        asked = {"sql": Persona("base", shop.model(chosen["sql"]), sampling=Sampling(max_tokens=16))}
    for name, persona in asked.items():
        persona(QUESTIONS[name])
    result: dict[str, Any] = {"what": what, "personas": list(asked), "models": shop.models_open}
    if what != "base":
        for order, names in (("in turns", list(asked) * requests), ("one after another", sorted(list(asked) * requests))):
            began = time.process_time()
            for name in names:
                asked[name](QUESTIONS[name])
            result[f"{order}, cpu ms a request"] = round((time.process_time() - began) / len(names) * 1e3, 2)
    return {**result, **memory()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blades", description="Three personas on one base.")
    parser.add_argument("--requests", type=int, default=30, help="requests to each persona in each order")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("base", "adapters", "merged"), help="one process's share (used by the program itself)")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given.requests)))
        return
    rows = []
    for what in ("base", "adapters", "merged"):
        command = [sys.executable, "-m", "benchmarks.blades", "--only", what, "--requests", str(given.requests)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{what}: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    by = {row["what"]: row for row in rows}
    result = {
        "rows": rows,
        "adapters_to_base": round(by["adapters"]["rss"] / by["base"]["rss"], 3),
        "merged_to_base": round(by["merged"]["rss"] / by["base"]["rss"], 3),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
