"""Three blades on one handle: a router sends a request to the SQL analyst or to a persona that calls functions.

Does: build the graph, and bring a few functions that are safe to call. What the router knows as an intent goes to the functions;
what is out of its scope is a question about the database.
Does not: open models (`app.wiring`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from agents import END, AgentGraph, tool
from agents.answer import Result
from agents.card import CalibrationEntry
from agents.cascade import Cascade
from agents.persona import Persona
from agents.toolbox.calculator import calculate
from agents.toolbox.sqlite import SqliteTools
from app.analyst import AnalystState, add_nodes
from factory.tasks.route.labels import OUT_OF_SCOPE
from factory.tasks.sql.database import Database

ACCOUNTS = {"checking": 1250.40, "savings": 8300.00}
"""A stand-in for functions of your own, of a kind the shipped tools adapter was trained on."""
_METERS = {"meter": 1.0, "kilometer": 1000.0, "mile": 1609.344, "foot": 0.3048, "inch": 0.0254}


class BladesState(AnalystState):
    """The analyst's state, with the router's label."""

    label: str = ""


@tool
def convert_length(value: float, from_unit: Literal["meter", "kilometer", "mile", "foot", "inch"],
                   to_unit: Literal["meter", "kilometer", "mile", "foot", "inch"]) -> str:  # fmt: skip
    """Convert a length from one unit to another.

    Args:
        value: the length
        from_unit: the unit it is in
        to_unit: the unit it should be in
    """
    return f"{value * _METERS[from_unit] / _METERS[to_unit]:.6g} {to_unit}"


@tool
def check_balance(account_type: Literal["checking", "savings"]) -> str:
    """Check the balance of a bank account.

    Args:
        account_type: the account type of the user
    """
    return f"{ACCOUNTS[account_type]:.2f}"


TOOLS = (check_balance, convert_length, calculate)


def blades(
    router: Callable[[str], Result],
    caller: Persona,
    writer: Persona | Cascade,
    tools: SqliteTools,
    database: Database,
    *,
    single: bool,
    approve: bool = False,
    calibration: Sequence[CalibrationEntry] = (),
) -> AgentGraph:
    """The graph: route, then the analyst's nodes or `call`."""
    graph = AgentGraph(BladesState, name="blades")

    @graph.node(start=True, goes=["table", "call"])
    def route(s: BladesState) -> object:
        said = router(s.question)
        return graph.goto("table" if said.text == OUT_OF_SCOPE else "call", {"label": said.text, "confidence": said.confidence})

    @graph.node
    def call(s: BladesState) -> dict[str, Any]:
        said = caller(s.question)
        results = [result.text for _, result in said.calls]
        notes = [] if said.calls else ["No function was called: none of them fits the request."]
        return {"answer": ", ".join(results) or said.text, "confidence": said.confidence, "notes": notes}

    add_nodes(graph, writer, tools, database, single=single, approve=approve, calibration=calibration, start=False)
    graph.edge("call", END)
    return graph
