"""Which tables, how often each, a grammar of the general form can keep track of.

Does: hand out parameter bits to uses of tables. Does not: write rules (`general_grammar.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from factory.tasks.sql.lexemes import MAX_INSTANCES
from factory.tasks.sql.schema import Schema


@dataclass(frozen=True)
class Use:
    """One use of a table: its column and table terminals, and its bits (None: not tracked)."""

    table: int
    instance: int
    need: int | None
    scope: int | None


def table_uses(schema: Schema, bits: int) -> list[Use]:
    """Which uses of which tables a grammar with so many spare bits offers: every table once, then second to fourth uses.

    Second uses of tables that refer to themselves or are referred to twice by one table come first. A schema of more tables
    than can be tracked gets every table once, untracked: names still exist, but a column's table may be missing in FROM.
    """
    count = len(schema.tables)
    if 2 * count > bits:
        return [Use(t, 1, None, None) for t in range(count)]
    weight = [0] * count
    index = {table.name.lower(): t for t, table in enumerate(schema.tables)}
    pairs: dict[tuple[str, str], int] = {}
    for key in schema.foreign_keys:
        pair = (key.table.lower(), key.ref_table.lower())
        pairs[pair] = pairs.get(pair, 0) + 1
        if (pair[0] == pair[1] or pairs[pair] > 1) and pair[1] in index:
            weight[index[pair[1]]] += 2
    for t, table in enumerate(schema.tables):
        weight[t] += len(table.columns) <= 2
    by_weight = sorted(range(count), key=lambda t: (-weight[t], t))
    wanted = [(t, 1) for t in range(count)] + [(t, 2) for t in by_weight]
    wanted += [(t, k) for t in by_weight for k in range(3, MAX_INSTANCES + 1)]
    chosen: list[tuple[int, int, bool]] = []
    left = bits
    for t, k in wanted:
        cost = 2 if k <= 2 else 1
        if left >= cost:
            chosen.append((t, k, k <= 2))
            left -= cost
    scope_at = sum(1 for *_, needed in chosen if needed)
    uses, need = [], 0
    for i, (t, k, needed) in enumerate(chosen):
        uses.append(Use(t, k, need if needed else None, scope_at + i))
        need += needed
    return uses
