"""A desk that answers order questions, a second persona for figures, and a person who looks before anything is sent.

Run: `python examples/shop.py` (offline, scripted models), `python examples/shop.py --model FILE.gguf [--big http://host/v1#name]
[--artifact sql-q8_0.gguf --db shop.db] [--question "where is 17?"] [--yes]`. Serve it:
`python -m agents.serve examples.shop:graph --store runs.db`.

Shows: personas on one loaded model, a constrained choice between them, a tool, a cascade, an interrupt that survives a restart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from agents import END, AgentGraph, Budget, Persona, Scripted, interrupt, open_model, tool
from agents.chat import ChatModel, Request
from agents.toolbox import calculate

ORDERS = {17: "on its way, expected on Friday", 18: "delivered", 19: "waiting for payment"}


class State(BaseModel):
    question: str
    notes: list[str] = []
    answer: str | None = None


@tool
def lookup(order_id: int) -> str:
    """Status of one order.

    Args:
        order_id: number printed on the receipt
    """
    return ORDERS.get(order_id, "no such order")


def scripted_small(request: Request) -> str:
    """What a small model would say, so that the example runs without one."""
    asked, role = request.messages[-1].content, request.messages[0].content
    if "Pick who should answer" in role:
        return "sums" if any(sign in asked for sign in "+*") else "desk"
    if "on its way" in asked or "delivered" in asked:
        return f"Order 17 is {ORDERS[17]}."
    if "Work out" in role:
        return (
            "That makes 59.5."
            if "59.5" in asked
            else '<tool_call>{"name": "calculate", "arguments": {"expression": "17*3.5"}}</tool_call>'
        )
    return '<tool_call>{"name": "lookup", "arguments": {"order_id": 17}}</tool_call>'


def make_graph(small: ChatModel, big: ChatModel, adapter: str | None = None, sql: Persona | None = None) -> AgentGraph:
    """The shop on these models; `adapter` is a LoRA file for the desk, `sql` a persona that writes SQL in place of sums."""
    triage = Persona("triage", small, "Pick who should answer.")
    budget = Budget(ms=60_000, tokens=512)
    desk = Persona("desk", small, "Answer order questions.", tools=[lookup], adapter=adapter, budget=budget) | big
    sums = Persona("sums", small, "Work out what things cost.", description="answers questions about sums", tools=[calculate])
    other = sql if sql is not None else sums

    g = AgentGraph(State, name="shop")

    @g.node(start=True, goes=["desk", other.name])
    def route(s: State) -> object:
        return triage.choose(s.question, {"desk": desk, other.name: other})

    g.add(desk, reads="question", writes="notes")
    g.add(other, reads="question", writes="notes")
    g.edge(desk, "review")
    g.edge(other, "review")

    @g.node(retries=2, timeout_s=20)
    def review(s: State) -> object:
        if not interrupt("send this?", s.notes[-1]):
            return g.goto("route")
        return s.model_copy(update={"answer": s.notes[-1]})

    g.edge("review", END)
    return g


def offline() -> AgentGraph:
    """The shop on scripted models."""
    return make_graph(Scripted([scripted_small], name="small", repeat=True), Scripted([scripted_small], name="big", repeat=True))


graph = offline()


def main(argv: Sequence[str] | None = None) -> str:
    """Ask one question and return the answer that was sent."""
    parser = argparse.ArgumentParser(description="a shop's desk on small models")
    parser.add_argument("--model", help="GGUF file or any other spec; default: scripted")
    parser.add_argument("--big", help="model the desk escalates to; default: the same")
    parser.add_argument("--adapter", help="LoRA file for the desk")
    parser.add_argument("--artifact", help="a model trained for SQL, with its card; needs --db")
    parser.add_argument("--db", type=Path, help="the database it is asked about")
    parser.add_argument("--question", default="where is 17?")
    parser.add_argument("--store", type=Path, help="SQLite file for threads; default: a temporary one")
    parser.add_argument("--yes", action="store_true", help="send without asking")
    options = parser.parse_args(argv)
    if options.model is None:
        g = offline()
    else:
        small = open_model(options.model)
        sql = Persona.from_artifact(options.artifact, db=options.db) if options.artifact else None
        g = make_graph(small, open_model(options.big) if options.big else small, options.adapter, sql)
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store if options.store is not None else Path(scratch) / "runs.db"
        run = g.run(State(question=options.question), thread="u1", store=store)
        while run.interrupted is not None:
            sys.stdout.write(f"{run.interrupted.prompt} {run.interrupted.value!r}\n")
            run = g.resume("u1", options.yes or input("yes or no? ").startswith("y"), store=store)
        sys.stdout.write(f"{run.state.answer}\n\n{g.mermaid()}\n")
        g.close()
    return str(run.state.answer)


if __name__ == "__main__":
    main()
