"""How many sequences to decode at once, learnt from how long it takes: on a CPU four may be slower than one after another.

Does: remember the time of a batch by its width, name the width with the most tokens a second. Does not: measure anything itself.
"""

from __future__ import annotations

TRIES = 3
"""Batches of a width before its time is believed; the first ones touch cold memory."""
AGAIN = 512
"""Choices after which the widest is tried again, in case a neighbour had the machine when it was measured."""


class Widths:
    """Batch times of one model on one machine."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._choices = 0

    def learn(self, width: int, seconds: float) -> None:
        """A batch of `width` sequences, one token each, took this long."""
        seen = self._seen[width] = self._seen.get(width, 0) + 1
        old = self._seconds.get(width)
        if old is None or seen <= TRIES:
            self._seconds[width] = seconds if old is None else min(old, seconds)
        else:
            self._seconds[width] = min(seconds, old + 0.1 * (seconds - old))

    def best(self, count: int) -> int:
        """How many of `count` waiting sequences to decode now."""
        if count <= 1:
            return count
        self._choices += 1
        if self._seen.get(count, 0) < TRIES or self._choices % AGAIN == 0:
            return count
        if self._seen.get(1, 0) < TRIES:
            return 1
        known = [width for width, seen in self._seen.items() if width <= count and seen >= TRIES]
        return min(known, key=lambda width: (self._seconds[width] / width, -width))
