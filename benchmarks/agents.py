"""Graph steps, tool round trip, checkpoints and import cost, ours beside langgraph's and pydantic-graph's: a table and JSON.

Every framework runs in processes of its own, in turns, so that a neighbour on the machine slows all alike; the best of all turns
counts, of imports the median. Peers are installed once into environments of their own under .cache/bench (which needs a package
index).

    python -m benchmarks.agents [--rounds 3] [--repeats 10] [--calls 20000] [--no-peers] [--json FILE]

Targets: a graph step within 20 us, flat to 1,000 steps, at most 1/5 of the better peer; a tool round trip and a checkpoint within
100 us; a file of at most twice the payload; `import agents` within 150 ms and 35 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

TOOLS = "import json; from benchmarks.agents_tools import rows; print(json.dumps(rows({calls})))"
ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).resolve().parent / "graph_rows"
PEERS = {
    "langgraph": ["langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2"],
    "pydantic_graph": ["pydantic-graph==2.68.0"],
}
STEPS = ("line_10", "loop_10", "loop_1000", "fan_100")
IMPORTS = {
    "agents": "import agents",
    "agents, every name of the README": "from agents import AgentGraph, Persona, open_model, tool, Budget, END, interrupt",
    "langgraph": "import langgraph.graph",
    "pydantic_graph": "import pydantic_graph",
}
IMPORT = """
import time
began, cpu = time.perf_counter(), time.process_time()
{line}
wall, cpu = (time.perf_counter() - began) * 1e3, (time.process_time() - cpu) * 1e3
import json, resource, sys
scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
try:
    resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / (1 << 20)
except OSError:
    resident = peak
print(json.dumps({{"wall_ms": wall, "cpu_ms": cpu, "peak_mb": peak, "resident_mb": resident}}))
"""


def python_of(peer: str, cache: Path) -> str:
    """The interpreter of the peer's environment, made when it is not there."""
    home = cache / peer
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS[peer]], check=True)
        (home / "ready").write_text("\n".join(PEERS[peer]) + "\n", "utf-8")
    return str(python)


def ran(command: list[str]) -> dict[str, Any]:
    """The JSON a process printed last. Its error output is shown when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else this tree is compiled at every import, and installed packages are not
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure; the first process, which may have to write byte code, does not count."""
    return {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}


def least(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The smallest of every figure."""
    return {
        key: least([row[key] for row in rows]) if isinstance(first, dict) else min(row[key] for row in rows)
        for key, first in rows[0].items()
    }


def compared(rows: dict[str, Any]) -> dict[str, Any]:
    """Our wall and CPU time over the better peer's, step by step, and how flat a long run is."""
    ours, peers = rows["penknife"], [row for name, row in rows.items() if name != "penknife"]
    out: dict[str, Any] = {"flat": ours["loop_1000"]["cpu_us"] / ours["loop_10"]["cpu_us"]}
    for row in STEPS if peers else ():
        best = {clock: min(peer[row][clock] for peer in peers) for clock in ("wall_us", "cpu_us")}
        out[row] = {clock: ours[row][clock] / best[clock] for clock in best}
    return out


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each target: what was measured, its unit, the most it may be, whether it is."""
    ours, ratio, tools = result["graph"]["penknife"], result["compared"], result["tools"]
    payload = ours["payload_bytes"]
    lines: list[tuple[str, float, str, float]] = []
    for name, row in result["import"].items():
        if name.startswith("agents"):
            lines += [(f"import: {name}", row["wall_ms"], "ms", 150.0), (f"resident: {name}", row["resident_mb"], "MB", 35.0)]
    lines += [(f"graph step, {row}", ours[row]["cpu_us"], "us CPU", 20.0) for row in STEPS]
    lines += [("graph step, 1,000 steps over 10", ratio["flat"], "x", 1.25)]
    lines += [(f"graph step, {row}, over the better peer", ratio[row]["cpu_us"], "x", 0.2) for row in STEPS if row in ratio]
    lines += [
        ("tool round trip, scripted model", tools["tool_round_trip_us"], "us", 100.0),
        ("checkpoint per step", ours["checkpoint_us"], "us", 100.0),
        ("thread growth, 200 steps x 500 B, closed", ours["growth_bytes"] / payload, "x", 2.0),
    ]
    names = ("row", "measured", "unit", "target")
    return [{**dict(zip(names, line)), "verdict": "met" if line[1] <= line[3] else "missed"} for line in lines]


def table(lines: list[dict[str, Any]]) -> str:
    """The verdicts as aligned text."""
    wide = max(len(line["row"]) for line in lines)
    return "\n".join(
        f"{line['row']:{wide}}  {line['measured']:9.3f} {line['unit']:7} <= {line['target']:<7g} {line['verdict']}"
        for line in lines
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes per framework, in turns")
    parser.add_argument("--repeats", type=int, default=10, help="repetitions of each row within a process")
    parser.add_argument("--calls", type=int, default=20_000, help="calls of the tool round trip")
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone; nothing is installed")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "bench", help="where the peers' environments live")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args(argv)
    pythons = {"penknife": sys.executable}
    if not options.no_peers:
        pythons |= {peer: python_of(peer, options.cache.absolute()) for peer in PEERS}
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    imports: dict[str, list[dict[str, Any]]] = {}
    tools: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        for name, python in pythons.items():
            taken[name].append(ran([python, str(SCRIPTS / f"{name}.py"), str(options.repeats)]))
        tools.append(ran([sys.executable, "-c", TOOLS.format(calls=options.calls)]))
        for name, line in IMPORTS.items():
            python = pythons.get(name, sys.executable)
            if name in pythons or name.startswith("agents"):
                imports.setdefault(name, []).extend(ran([python, "-c", IMPORT.format(line=line)]) for _ in range(5))
    rows = {name: least(one) for name, one in taken.items()}
    result = {
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "machine": platform.machine()},
        "rounds": options.rounds,
        "graph": rows,
        "import": {name: middle(one) for name, one in imports.items()},
        "tools": least(tools),
        "compared": compared(rows),
    }
    result["verdicts"] = verdicts(result)
    text = json.dumps(result, indent=2)
    print(text)
    print(table(result["verdicts"]), file=sys.stderr)
    if options.json is not None:
        options.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
