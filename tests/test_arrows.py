"""Arrows point down: app -> export -> factory -> agents; and importing agents is light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {
    "agents": {"factory", "export", "app"},
    "factory": {"export", "app"},
    "export": {"app"},
}
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "llama_cpp",
    "onnxruntime",
    "streamlit",
    "llguidance",
    "openai",
    "numpy",
}


def imported(source: str) -> set[str]:
    """Top-level names of every import in the text, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                names.add(str(node.args[0].value).split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ABOVE))
def test_nothing_imports_from_above(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    wrong = {
        str(file.relative_to(ROOT)): found for file in files if (found := imported(file.read_text("utf-8")) & ABOVE[package])
    }
    assert files or package == "export"
    assert wrong == {}


def test_the_check_sees_imports_wherever_they_are() -> None:
    assert imported("def f():\n    from factory.x import y\nimport app.main as m\n__import__('export.gguf')") == {
        "factory",
        "app",
        "export",
    }


@pytest.mark.parametrize(
    "module", ["agents", "agents.chat", "agents.constrain", "agents.models", "agents.models.scripted", "agents.card"]
)
def test_agents_imports_only_the_standard_library_and_pydantic(module: str) -> None:
    script = f"import sys, json; before = set(sys.modules); import {module}; print(json.dumps(sorted(set(sys.modules) - before)))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in json.loads(out.stdout)}
    assert not loaded & HEAVY
    allowed = {"agents", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    others = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_sysconfigdata")}
    assert others <= allowed


def test_tasks_are_light_too() -> None:
    script = (
        "import sys; import factory.tasks.task; print([n for n in ('torch', 'transformers', 'llguidance') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
