"""A question about a database becomes SQL, the SQL is run read-only, and the answer may hold only numbers from its result.

Run: `python examples/analyst.py` (offline, scripted), `python examples/analyst.py --model FILE.gguf --question "…"`, or with a
model trained for it: `--artifact sql-q8_0.gguf --db FILE [--table NAME]`. `--db FILE` asks about a database of your own; default:
a shop made here.

--model needs a model that follows instructions: it puts the rows into a sentence, and without
--artifact it writes the SQL too. With --artifact alone the rows are the answer: a model trained for SQL cannot speak.

Shows: several personas on one model, a tool that cannot write, a cycle with a limit, an answer checked by code.
"""

from __future__ import annotations

import argparse
import random
import re
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agents import END, AgentGraph, Persona, Scripted, open_model
from agents.chat import ChatModel, ModelError, Request
from agents.loop import NodeError
from agents.sandbox import ExecError
from agents.toolbox.sqlite import SqliteTools, as_json
from agents.tools import PersonaError

TRIES = 3
QUESTION = "Which city ordered for the most money, and how much?"
SQL = (
    "SELECT city, round(sum(price * amount), 2) AS total FROM customer JOIN purchase ON purchase.customer_id = customer.id "
    "JOIN product ON product.id = purchase.product_id GROUP BY city ORDER BY total DESC LIMIT 1"
)


class State(BaseModel):
    question: str
    sql: str = ""
    problem: str = ""
    rows: str = ""
    draft: str = ""
    answer: str | None = None
    tries: int = 0


def make_database(path: Path, seed: int = 3) -> Path:
    """A shop with three tables: 40 customers in 5 cities, 12 products, 300 purchases."""
    dice = random.Random(seed)
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
        CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT, price REAL);
        CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customer(id),
            product_id INTEGER REFERENCES product(id), amount INTEGER, day DATE);"""
    )
    cities = ["Ulm", "Graz", "Basel", "Bonn", "Linz"]
    connection.executemany(
        "INSERT INTO customer VALUES (?, ?, ?)", [(i, f"Customer {i}", dice.choice(cities)) for i in range(1, 41)]
    )
    connection.executemany(
        "INSERT INTO product VALUES (?, ?, ?)", [(i, f"Knife {i}", round(dice.uniform(5, 90), 2)) for i in range(1, 13)]
    )
    days = [f"2026-{dice.randint(1, 12):02}-{dice.randint(1, 28):02}" for _ in range(300)]
    rows = [(i, dice.randint(1, 40), dice.randint(1, 12), dice.randint(1, 5), day) for i, day in enumerate(days, 1)]
    connection.executemany("INSERT INTO purchase VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def scripted(request: Request) -> str:
    """A model that forgets a table first, mends its query when told, and invents a number once."""
    asked, role = request.messages[-1].content, request.messages[0].content
    if "SQLite" in role:
        return SQL if "no such" in asked else "SELECT city, sum(price) FROM customers GROUP BY city"
    city, total = re.findall(r'\["(\w+)",([\d.]+)\]', asked)[0]
    return f"{city}, for {total}." if "not in the rows" in asked else f"{city}, for {float(total) + 1:.2f}."


def make_graph(model: ChatModel, database: Path, writer: Persona | None = None, speaks: bool = True) -> AgentGraph:
    """The analyst of one database; `writer` is a persona trained to write SQL, else the model is asked in words. Where the model
    does not speak, the rows are the answer."""
    tools = SqliteTools(database, rows=20)
    plain = Persona(
        "writer",
        model,
        "Write one SELECT statement in SQLite's dialect that answers the question. Only the statement.\n" + tools.described(),
    )
    speaker = Persona("speaker", model, "Answer the question in one sentence from the rows alone.")
    write_sql = writer if writer is not None else plain
    g = AgentGraph(State, name="analyst")

    @g.node(start=True)
    def write(s: State) -> dict[str, Any]:
        told = f"{s.question}\n\nThis did not work: {s.sql}\n{s.problem}" if s.problem and writer is None else s.question
        return {"sql": str(write_sql(told)).strip().removeprefix("```sql").strip("`\n ;"), "tries": s.tries + 1}

    @g.node(goes=["speak", "write", END])
    def execute(s: State) -> object:
        try:
            rows = as_json(tools.run(s.sql))
            return g.goto("speak", {"rows": rows, "problem": ""}) if speaks else g.goto(END, {"rows": rows, "answer": rows})
        except ExecError as error:
            update = {"problem": f"{error.detail}. The tables are: {tools.described()}"}
            return g.goto("write" if s.tries < TRIES and writer is None else END, update)

    @g.node
    def speak(s: State) -> dict[str, Any]:
        told = f"Question: {s.question}\nRows: {s.rows}"
        return {"draft": str(speaker(f"{told}\n{s.problem}" if s.problem else told)), "tries": s.tries + 1}

    @g.node(goes=["speak", END])
    def check(s: State) -> object:
        known = {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", f"{s.rows} {s.question}")}
        invented = [number for number in re.findall(r"-?\d+(?:\.\d+)?", s.draft.replace(",", "")) if float(number) not in known]
        if not invented:
            return g.goto(END, {"answer": s.draft})
        if s.tries > 2 * TRIES:
            return g.goto(END, {"answer": s.rows})
        return g.goto("speak", {"problem": f"{invented[0]} is not in the rows; use only numbers that are."})

    g.edge("write", "execute")
    g.edge("speak", "check")
    return g


def main(argv: Sequence[str] | None = None) -> State:
    """Answer one question; returns the final state.

    Raises PersonaError (also when a persona in the graph has no answer), ModelError and what the artifact's task raises, each one
    sentence; as a command it says that sentence and exits with 2."""
    about = f"Questions about a database, answered from its rows. {__doc__.split(chr(10) * 2)[2]}"
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", help="GGUF file or any other spec; default: scripted")
    parser.add_argument("--artifact", help="a model trained for SQL, with its card")
    parser.add_argument("--db", type=Path, help="SQLite file; default: a shop made for this example")
    parser.add_argument("--table", help="its table or view, for a model trained on questions about one table")
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        database = options.db if options.db is not None else make_database(Path(scratch) / "shop.db")
        about_table = {} if options.table is None else {"table": options.table}
        artifact = (options.artifact or "").removeprefix("gguf:")
        writer = Persona.from_artifact(artifact, db=database, **about_table) if artifact else None
        model = open_model(options.model) if options.model else writer.model if writer else Scripted([scripted], repeat=True)
        graph = make_graph(model, database, writer, speaks=writer is None or options.model is not None)
        try:
            run = graph.run(State(question=options.question))
        except NodeError as error:
            if isinstance(error.__cause__, PersonaError | ModelError):
                raise error.__cause__ from None
            raise
    state: State = run.state
    said = state.answer or "no answer: " + state.problem
    sys.stdout.write("\n".join(dict.fromkeys((state.question, state.sql, state.rows, said))) + "\n")
    return state


if __name__ == "__main__":
    from factory.cli import run_cli

    raise SystemExit(run_cli(main))
