"""Who holds which tokens in a context's KV memory, so that no prompt is worked out twice and none is begun without room.

Does: hand out sequence numbers, find the sequence that shares the longest beginning with a prompt *under the same adapters*, keep
what is over for later prompts, count the places that are really taken, let the longest unused go. Does not: call llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

Key = Hashable
"""Adapters with their scales: keys and values computed under one set are wrong under any other."""

WORTH_COPYING = 4
"""Tokens two prompts must share before one begins as a copy of the other."""


@dataclass(eq=False)
class Held:
    """One sequence of the context and the tokens in it. `spans` say who worked them out: (origin, first position, end)."""

    number: int
    key: Key
    ids: list[int]
    """prompt, then answer; of a sequence being written, all that is known of it"""
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    ready: int = 0
    """tokens whose keys and values are in the memory"""
    live: bool = True
    static: bool = False
    used: int = 0
    """when it was last of use; higher is later"""


class Memory:
    """The sequences of one context that has `cells` places. `forget(number)` is called when a kept one has to go."""

    def __init__(self, cells: int, sequences: int, kept: int, forget: Callable[[int], None]) -> None:
        self.cells, self._forget = cells, forget
        self._free = list(range(sequences - 1, -1, -1))
        self._most_kept = kept
        self.held: list[Held] = []
        self._clock = 0
        self._origins = 0

    def best(self, key: Key, ids: Sequence[int]) -> tuple[Held | None, int]:
        """The sequence with the longest beginning in common with `ids`, and how many tokens may be copied from it.

        The last token of a prompt is never among them: decoding it gives the first logits.
        """
        found, longest = None, WORTH_COPYING - 1
        for held in self.held:
            if held.key == key and held.ready > longest:
                count = shared(held.ids, ids, min(held.ready, len(ids) - 1))
                if count > longest:
                    found, longest = held, count
        return found, longest if found is not None else 0

    def soon(self, key: Key, ids: Sequence[int]) -> int:
        """Tokens of `ids` that could be copied once the prompts now being worked out are ready."""
        most = 0
        for held in self.held:
            if held.live and held.key == key and held.ready < len(held.ids) - 1:
                most = max(most, shared(held.ids, ids, min(len(held.ids), len(ids) - 1)))
        return most

    def begin(self, key: Key, ids: list[int], answer: int, source: Held | None, count: int) -> Held | None:
        """A sequence for a prompt and an answer of up to `answer` tokens, the first `count` taken from `source`.

        Kept sequences go, longest unused first, until there is room. None: there is none until a live sequence ends.
        """
        if source is not None:
            source.used = self._tick()
        need = len(ids) + answer - count
        while not self._free or self.taken() + need > self.cells:
            over = [held for held in self.held if not held.live and held is not source]
            if not over:
                return None
            self.drop(min(over, key=lambda held: (held.static, held.used)))
        spans = _first(source.spans, count) if source is not None else []
        self._origins += 1
        held = Held(self._free.pop(), key, ids, [*spans, (self._origins, count, len(ids) + answer)], count)
        held.used = self._tick()
        self.held.append(held)
        return held

    def keep_start(self, held: Held, count: int) -> Held | None:
        """A further sequence that stays with the first `count` tokens of `held` (a persona's prompt). None: no number is free,
        nothing is to be kept, or that beginning is kept already. The caller copies."""
        if self._most_kept == 0:
            return None
        for other in self.held:
            if other.static and other.key == held.key and len(other.ids) == count and other.ids == held.ids[:count]:
                other.used = self._tick()
                return None
        if not self._free:
            over = [other for other in self.held if not other.live]
            if not over:
                return None
            self.drop(min(over, key=lambda other: (other.static, other.used)))
        start = Held(self._free.pop(), held.key, held.ids[:count], _first(held.spans, count), count, False, True, self._tick())
        self.held.append(start)
        return start

    def end(self, held: Held) -> None:
        """A live sequence is over. It stays for prompts that begin alike, while there is room."""
        held.live = False
        held.used = self._tick()
        held.ids = held.ids[: held.ready]
        held.spans = _first(held.spans, held.ready)
        if not held.ids or self._most_kept == 0:
            self.drop(held)
            return
        kept = [other for other in self.held if not other.live and not other.static]
        # A longer one that begins with all of a shorter one makes it superfluous.
        for other in kept:
            within = other is not held and other.key == held.key and len(other.ids) <= len(held.ids)
            if within and held.ids[: len(other.ids)] == other.ids:
                self.drop(other)
        kept = [other for other in self.held if not other.live]
        while len(kept) > self._most_kept:
            least = min(kept, key=lambda other: (other.static, other.used))
            kept.remove(least)
            self.drop(least)

    def drop(self, held: Held) -> None:
        """Give a sequence's places back."""
        self.held.remove(held)
        self._free.append(held.number)
        self._forget(held.number)

    def forget_all(self) -> None:
        """Let every kept sequence go."""
        for held in [held for held in self.held if not held.live]:
            self.drop(held)

    def taken(self) -> int:
        """Places in use or promised: tokens that several sequences share count once."""
        return _places(span for held in self.held for span in held.spans)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def shared(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many of the first `most` tokens are the same, found by halving: comparing slices is fast."""
    if one[:most] == other[:most]:
        return most
    low, high = 0, most  # the first `low` agree, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _first(spans: Iterable[tuple[int, int, int]], count: int) -> list[tuple[int, int, int]]:
    return [(origin, start, min(end, count)) for origin, start, end in spans if start < count]


def _places(spans: Iterable[tuple[int, int, int]]) -> int:
    ends: dict[tuple[int, int], int] = {}
    for origin, start, end in spans:
        if end > ends.get((origin, start), start):
            ends[origin, start] = end
    return sum(end - start for (_, start), end in ends.items())
