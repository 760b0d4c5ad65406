"""Run small models: personas, tools and graphs on one loaded base.

Does: offer the names a program needs (`from agents import AgentGraph, Persona, open_model, tool, Budget, END, interrupt`), each
loaded when first asked for, from the standard library and pydantic alone.
Does not: open a model or import a backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "AgentGraph": "agents.graph",
    "Adapter": "agents.chat",
    "Budget": "agents.budget",
    "Cascade": "agents.cascade",
    "Choice": "agents.route",
    "END": "agents.route",
    "Goto": "agents.route",
    "GraphError": "agents.route",
    "Message": "agents.chat",
    "ModelError": "agents.chat",
    "PASS": "agents.guards",
    "Pass": "agents.guards",
    "Persona": "agents.persona",
    "ReplayError": "agents.trace",
    "Retry": "agents.guards",
    "Rewrite": "agents.guards",
    "Run": "agents.run",
    "Sampling": "agents.chat",
    "Scripted": "agents.models.scripted",
    "Stop": "agents.guards",
    "Store": "agents.checkpoint",
    "Trace": "agents.trace",
    "interrupt": "agents.interrupts",
    "open_model": "agents.models",
    "tool": "agents.tools",
}

__all__ = [
    "END",
    "PASS",
    "Adapter",
    "AgentGraph",
    "Budget",
    "Cascade",
    "Choice",
    "Goto",
    "GraphError",
    "Message",
    "ModelError",
    "Pass",
    "Persona",
    "ReplayError",
    "Retry",
    "Rewrite",
    "Run",
    "Sampling",
    "Scripted",
    "Stop",
    "Store",
    "Trace",
    "interrupt",
    "open_model",
    "tool",
]

if TYPE_CHECKING:
    from agents.budget import Budget
    from agents.cascade import Cascade
    from agents.chat import Adapter, Message, ModelError, Sampling
    from agents.checkpoint import Store
    from agents.graph import AgentGraph
    from agents.guards import PASS, Pass, Retry, Rewrite, Stop
    from agents.interrupts import interrupt
    from agents.models import open_model
    from agents.models.scripted import Scripted
    from agents.persona import Persona
    from agents.route import END, Choice, Goto, GraphError
    from agents.run import Run
    from agents.tools import tool
    from agents.trace import ReplayError, Trace


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
