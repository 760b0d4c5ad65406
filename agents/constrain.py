"""Constraints on what a model may write: data here, compiled by one grammar engine (llguidance) for every backend.

Does: describe a constraint (choice, regex, JSON schema, Lark grammar) and compile it for a tokenizer; fails closed.
Does not: know SQL or tools; those build a Lark grammar or a schema and hand it over.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Constraint(BaseModel):
    """A grammar as data: `source` is Lark text, a regex, compact JSON of a schema, or compact JSON of a list of choices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["choice", "regex", "json_schema", "lark"]
    source: str


class ConstraintError(Exception):
    """A grammar that does not compile, or a text it refuses. Decoding never goes on unconstrained."""
