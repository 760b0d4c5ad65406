"""Schemas, rows and random walks shared by the tests of dialects and grammars."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence

import numpy as np

from agents.constrain import Constraint, Engine
from factory.tasks.sql.database import quote
from factory.tasks.sql.schema import Column, ForeignKey, Schema, Table

CONCERTS = Schema(
    "concerts",
    (
        Table(
            "stadium",
            (
                Column("id", "number", "INTEGER", True),
                Column("name", values=("Glasgow Green", "Hampden")),
                Column("capacity", "number", "INTEGER"),
            ),
        ),
        Table(
            "singer",
            (
                Column("id", "number", "INTEGER", True),
                Column("name"),
                Column("country", values=("France", "Spain")),
                Column("age", "number", "INTEGER"),
            ),
        ),
        Table(
            "concert",
            (
                Column("id", "number", "INTEGER", True),
                Column("stadium_id", "number", "INTEGER"),
                Column("singer_id", "number", "INTEGER"),
                Column("year", "number", "INTEGER"),
            ),
        ),
    ),
    (ForeignKey("concert", "stadium_id", "stadium", "id"), ForeignKey("concert", "singer_id", "singer", "id")),
)


def fill(schema: Schema, literals: Sequence[str | float] = (), rows: int = 10, seed: int = 0) -> sqlite3.Connection:
    """A database with random rows that hold the given literals often enough for filters and joins to find something."""
    rng = random.Random(seed)
    texts = [x for x in literals if isinstance(x, str)] or ["France", "Spain", "a b"]
    numbers = sorted({1.0, 2.0, 3.0, 4.0, *(x for x in literals if not isinstance(x, str))})
    connection = sqlite3.connect(":memory:")
    for table in schema.tables:
        columns = ", ".join(f"{quote(c.name)} {'NUMERIC' if c.type == 'number' else 'TEXT'}" for c in table.columns)
        connection.execute(f"CREATE TABLE {quote(table.name)} ({columns})")
        for _ in range(rows):
            row = [None if rng.random() < 0.05 else rng.choice(numbers if c.type == "number" else texts) for c in table.columns]
            connection.execute(f"INSERT INTO {quote(table.name)} VALUES ({','.join('?' * len(row))})", row)
    return connection


def walk(engine: Engine, constraint: Constraint, eos: int, rng: np.random.Generator, scale: float, limit: int) -> str:
    """Text of a model whose scores are random: a fixed normal part per token and a fresh one per step, both times `scale`."""
    matcher, mask, tokens = engine.start(constraint), engine.bitmask(1), []
    bias = rng.normal(0, 1, engine.vocab_size)
    while len(tokens) < limit:
        engine.fill([matcher], mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        scores = (bias[allowed] + rng.normal(0, 1, len(allowed))) * scale
        weights = np.exp(scores - scores.max())
        token = int(rng.choice(allowed, p=weights / weights.sum()))
        if token == eos:
            return engine.inner.decode_bytes(tokens).decode()
        matcher.consume(token)
        tokens.append(token)
    raise AssertionError(f"no end after {limit} tokens: …{engine.inner.decode_bytes(tokens[-200:])!r}")
