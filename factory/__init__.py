"""Make small models: `factory.distill(task="sql", …)` and `factory.finetune(…)` are the Python calls of the two commands."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("distill", "finetune"):
        import importlib

        return importlib.import_module(f"factory.{name}")
    raise AttributeError(f"module 'factory' has no attribute {name!r}")
