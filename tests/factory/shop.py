"""A small real database with questions about it, and a teacher behind HTTP that answers them: most rightly, some not.

Does: write shop.sqlite and questions.jsonl, serve answers by prompt. Does not: train or score.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.tasks import get_task
from factory.tasks.task import DataSource, Example
from tests.openai_server import Faults, OpenAIServer

CITIES = ("Bergen", "Oslo", "Tromso", "Narvik", "Molde")
COLOURS = ("red", "blue", "green", "white", "black", "yellow")
THINGS = ("kettle", "lamp", "chair", "clock", "basket")
NAMES = ("Anker", "Bris", "Dugg", "Elv", "Fjell", "Gran")

WRONG = {1: "I would rather not say.", 7: "SELECT COUNT(*) FROM products", 13: "SELECT colour FROM nowhere"}
"""Number of a training question -> what the teacher says instead: no query, another result, does not run."""

TINY = ("--epochs", "4", "--batch", "8", "--validation", "4", "--final", "4", "--gate", "4", "--checkpoints", "2")


@dataclass(frozen=True)
class Shop:
    """The files, and the right answer to each prompt."""

    db: Path
    questions: Path
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @property
    def source(self) -> tuple[str, ...]:
        """The options that name the files."""
        return "--db", str(self.db), "--questions", str(self.questions)

    def answers(self) -> dict[str, str]:
        """Prompt -> what the teacher says."""
        task = get_task("sql")
        said = {}
        for number, example in enumerate(self.train):
            said[task.messages(example, "plain")[-1].content] = WRONG.get(number, example.reference or "")
        return said | {task.messages(example, "plain")[-1].content: example.reference or "" for example in self.held_out}


def make_shop(directory: Path) -> Shop:
    """Three tables with keys and 30 rows each; 24 questions to learn from, 8 held out."""
    directory.mkdir(parents=True, exist_ok=True)
    db, questions = directory / "shop.sqlite", directory / "questions.jsonl"
    connection = sqlite3.connect(db)
    connection.executescript(
        """
        CREATE TABLE shops (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT, opened INTEGER);
        CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, colour TEXT, price REAL, shop_id INTEGER REFERENCES shops (id));
        CREATE TABLE sales (id INTEGER PRIMARY KEY, product_id INTEGER REFERENCES products (id), day TEXT, amount INTEGER);
        """
    )
    for i in range(30):
        shop = f"{NAMES[i % 6]} {CITIES[i // 6]}"
        connection.execute("INSERT INTO shops VALUES (?,?,?,?)", (i + 1, shop, CITIES[i // 6], 1960 + 2 * i))
        product = f"{COLOURS[i % 6]} {THINGS[i // 6]}"
        connection.execute("INSERT INTO products VALUES (?,?,?,?,?)", (i + 1, product, COLOURS[i % 6], 5.5 + i, 30 - i))
        connection.execute("INSERT INTO sales VALUES (?,?,?,?)", (i + 1, (7 * i) % 30 + 1, f"2024-03-{i + 1:02}", 1 + i % 9))
    connection.commit()
    connection.close()
    rows = [*(_question(i) for i in range(24)), *({**_question(i), "split": "xdev"} for i in range(24, 32))]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = get_task("sql")
    train, held_out = (tuple(task.load(DataSource(db=db, questions=questions, split=split))[0]) for split in ("train", "xdev"))
    return Shop(db, questions, train, held_out)


def _question(i: int) -> dict[str, str]:
    product = f"{COLOURS[(i * 5) % 6]} {THINGS[i % 5]}"
    shop = f"{NAMES[(i * 5) % 6]} {CITIES[(i * 3) % 5]}"
    kinds = (
        (f"what does the {product} cost", f"SELECT price FROM products WHERE name = '{product}'"),
        (f"in which city is {shop}", f"SELECT city FROM shops WHERE name = '{shop}'"),
        (
            f"what is sold at {shop} today",
            f"SELECT products.name FROM products JOIN shops ON products.shop_id = shops.id WHERE shops.name = '{shop}'",
        ),
        (f"how many were sold on 2024-03-{i + 1:02}", f"SELECT amount FROM sales WHERE day = '2024-03-{i + 1:02}'"),
    )
    question, sql = kinds[i % 4]
    return {"question": question, "sql": sql}


def serve(answers: Mapping[str, str], **options: Any) -> OpenAIServer:
    """A server (to be started) that says these answers; a prompt that is not among them is a 500."""
    return OpenAIServer(lambda body: answers[body["messages"][-1]["content"]], **options)


__all__ = ["TINY", "WRONG", "Faults", "OpenAIServer", "Shop", "make_shop", "serve"]
