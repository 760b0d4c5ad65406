"""Importing agents, and every name it offers, is cheap: the standard library and pydantic, no event loop, no backend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEASURE = """
import json, sys, time
began = time.process_time()
{program}
ms = (time.process_time() - began) * 1000
rss = next((int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS")), 0.0)
print(json.dumps({{"ms": ms, "mb": rss, "modules": sorted(sys.modules)}}))
"""
NAMES = "from agents import AgentGraph, Persona, open_model, tool, Budget, END, interrupt, Scripted"
ALLOWED = {"agents", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "docstring_parser"}


def measured(program: str) -> tuple[float, float, set[str]]:
    command = [sys.executable, "-c", MEASURE.format(program=program)]
    out = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    return out["ms"], out["mb"], set(out["modules"])


def test_what_is_imported() -> None:
    _, _, modules = measured(f"import agents\n{NAMES}")
    tops = {name.split(".")[0] for name in modules}
    others = {
        name for name in tops if name not in sys.stdlib_module_names and not name.startswith(("_sysconfigdata", "__editable__"))
    }
    assert others - {"__main__", "sitecustomize", "_virtualenv", "distutils_precedence", "_distutils_hack"} <= ALLOWED
    assert not {"numpy", "torch", "llguidance", "openai", "json_repair", "sqlite3.dbapi3"} & tops


def test_what_it_costs() -> None:
    _, bare_mb, _ = measured("pass")
    ms, mb, _ = measured("import agents")
    assert ms <= 3 * 150
    assert mb <= 1.5 * 35
    ms, mb, _ = measured(f"import agents\n{NAMES}")
    assert ms <= 6 * 150
    assert mb - bare_mb <= 60


def test_no_validator_is_built_before_it_is_used() -> None:
    """Building the first one also makes pydantic look for plugins in every installed package."""
    program = (
        f"{NAMES}\nfrom agents.chat import Frozen\nfrom agents.constrain import Constraint\n"
        "built = [one.__name__ for one in (*Frozen.__subclasses__(), Constraint) if one.__pydantic_complete__]\n"
        "assert not built, built\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from agents.chat import Message, Reply, Request, Sampling\n"
        "work = lambda n: Request(messages=(Message(role='user', content=str(n)),), sampling=Sampling(seed=n))\n"
        "made = list(ThreadPoolExecutor(16).map(work, range(64)))\n"
        "assert [request.sampling.seed for request in made] == list(range(64))\n"
        "assert Request.model_validate_json(made[1].model_dump_json()) == made[1]\n"
        "assert Reply() == Reply.model_validate({}) and Reply().usage.prompt_tokens == 0"
    )
    measured(program)


def test_wrong_names_are_answered_with_the_right_ones() -> None:
    import agents

    assert {"AgentGraph", "Persona", "open_model", "tool", "Budget", "END", "interrupt"} <= set(dir(agents))
    try:
        agents.Agentgraph  # noqa: B018
    except AttributeError as error:
        assert "'Agentgraph'; it offers AgentGraph" in str(error)
    else:
        raise AssertionError("a wrong name was taken")
