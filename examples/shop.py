"""A desk that answers order questions, a second persona for figures, and a person who looks before anything is sent.

Run: `python examples/shop.py` (offline, scripted models), `python examples/shop.py --model FILE.gguf [--big http://host/v1#name]
[--artifact sql-q8_0.gguf --db shop.db [--table orders]] [--question "where is 17?"] [--yes]`. Serve it:
`python -m agents.serve examples.shop:graph --store runs.db`.

--model needs a model that follows instructions: it chooses who answers, calls tools and speaks. One trained for SQL alone, like
the quickstart's, fits --artifact; given as --model it chooses badly and cannot speak.

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
from agents.answer import NoAnswer
from agents.chat import ChatModel, ModelError, Request
from agents.loop import NodeError
from agents.sandbox import ExecError
from agents.toolbox import calculate
from agents.toolbox.sqlite import SqliteTools, as_json
from agents.tools import PersonaError

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


def make_graph(
    small: ChatModel, big: ChatModel, adapter: str | None = None, sql: Persona | None = None, tools: SqliteTools | None = None
) -> AgentGraph:
    """The shop on these models; `adapter` is a LoRA file for the desk, `sql` a persona that writes SQL in place of sums, which is
    run with `tools`."""
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
    if sql is None or tools is None:
        g.add(other, reads="question", writes="notes")
    else:

        @g.node(name=sql.name)
        def figures(s: State) -> object:
            query = str(sql(s.question))
            try:
                found = as_json(tools.run(query))
            except ExecError as error:
                raise NoAnswer(f"{sql.name} wrote {query!r}, which fails: {error.detail}", "invalid", query) from None
            return {"notes": [*s.notes, f"{query}\n{found}"]}

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


def sql_persona(artifact: str, db: Path, table: str | None, opened: str, model: ChatModel) -> Persona:
    """The persona that writes SQL; where it is the file `opened` already, on the same weights."""
    same = Path(artifact.removeprefix("gguf:")).resolve() == Path(opened.removeprefix("gguf:")).resolve()
    about = {} if table is None else {"table": table}
    return Persona.from_artifact(
        artifact.removeprefix("gguf:"), model if same else None, db=db, **about, name="sql",
        description="answers questions about the orders in the database",
    )  # fmt: skip


def agreed(prompt: str) -> bool | None:
    """A person's yes or no; None at the end of the input, when nobody is there to ask."""
    try:
        return input(prompt).strip().lower().startswith("y")
    except EOFError:
        return None


def main(argv: Sequence[str] | None = None) -> str:
    """Ask one question and return the answer that was sent ("None": none was).

    Raises PersonaError (also when a persona in the graph has no answer), ModelError and what the artifact's task raises, each one
    sentence; as a command it says that sentence and exits with 2."""
    about = f"A shop's desk on small models. {__doc__.split(chr(10) * 2)[2]}"
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", help="GGUF file or any other spec of a model that follows instructions; default: scripted")
    parser.add_argument("--big", help="model the desk escalates to; default: the same")
    parser.add_argument("--adapter", help="LoRA file for the desk")
    parser.add_argument("--artifact", help="a model trained for SQL, with its card; needs --db and --model")
    parser.add_argument("--db", type=Path, help="the database it is asked about")
    parser.add_argument("--table", help="its table or view, for a model trained on questions about one table")
    parser.add_argument("--question", default="where is 17?")
    parser.add_argument("--store", type=Path, help="SQLite file for threads; default: a temporary one")
    parser.add_argument("--yes", action="store_true", help="send without asking")
    options = parser.parse_args(argv)
    if options.artifact and not (options.db and options.model):
        parser.error("--artifact needs --db, the database it is asked about, and --model, which chooses who answers")
    if options.model is None:
        g = offline()
    else:
        small = open_model(options.model)
        big = open_model(options.big) if options.big else small
        if options.artifact:
            sql = sql_persona(options.artifact, options.db, options.table, options.model, small)
            g = make_graph(small, big, options.adapter, sql, SqliteTools(options.db, rows=20))
        else:
            g = make_graph(small, big, options.adapter)
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store if options.store is not None else Path(scratch) / "runs.db"
        try:
            run = g.run(State(question=options.question), thread="u1", store=store)
            while run.interrupted is not None:
                sys.stdout.write(f"{run.interrupted.prompt} {run.interrupted.value!r}\n")
                yes = True if options.yes else agreed("yes or no? ")
                if yes is None:
                    sys.stdout.write("\nno answer, so it was not sent\n")
                    break
                run = g.resume("u1", yes, store=store)
        except NodeError as error:
            if isinstance(error.__cause__, PersonaError | ModelError):
                raise error.__cause__ from None
            raise
        finally:
            g.close()
        said = [] if run.state.answer is None else [run.state.answer, ""]
        sys.stdout.write("\n".join([*said, g.mermaid()]) + "\n")
    return str(run.state.answer)


if __name__ == "__main__":
    from factory.cli import run_cli

    raise SystemExit(run_cli(main))
