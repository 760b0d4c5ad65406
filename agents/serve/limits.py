"""Who may ask, how much, and how often.

Does: compare the key in constant time, bound a body while it arrives, requests under way and waiting, and requests a minute from
one address. Does not: know users, or tell one caller behind a proxy from another.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agents.serve.wire import Refused

ADDRESSES = 10_000
"""Addresses whose rate is remembered; the longest unseen is forgotten first."""


class Key:
    """The key callers must send as `Authorization: Bearer KEY`; None lets everybody in."""

    def __init__(self, key: str | None) -> None:
        self._digest = hashlib.sha256(key.encode()).digest() if key is not None else None

    def check(self, authorization: str) -> None:
        """Raises Refused (401). Digests are compared, so that neither content nor length shows in the time taken."""
        if self._digest is None:
            return
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(hashlib.sha256(given.strip().encode()).digest(), self._digest)
        if scheme.lower() != "bearer" or not right:
            raise Refused(401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key")


class Rate:
    """A token bucket per address: `per_minute` on average, as many at once; 0 is no limit."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._size, self._clock = per_minute / 60.0, max(1.0, per_minute), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Takes one request. Raises Refused (429) with the seconds until the next is free."""
        if self._per_s == 0:
            return
        now = self._clock()
        left, at = self._buckets.pop(address, (self._size, now))
        left = min(self._size, left + (now - at) * self._per_s)
        allowed = left >= 1.0
        self._buckets[address] = (left - 1.0 if allowed else left, now)
        while len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        if not allowed:
            raise Refused(
                429,
                "too many requests from this address; come back later",
                code="rate_limit_exceeded",
                retry_after_s=(1 - left) / self._per_s,
            )


class Turns:
    """At most `concurrent` requests at once, and `waiting` in line."""

    def __init__(self, concurrent: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(concurrent)
        self._waiting, self._most = 0, waiting

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Hold a place. Raises Refused (429) when the line is full."""
        if self._free.locked():
            if self._waiting >= self._most:
                raise Refused(429, "the server is busy; come back later", code="server_busy", retry_after_s=1.0)
            self._waiting += 1
            try:
                await self._free.acquire()
            finally:
                self._waiting -= 1
        else:
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()


async def body_of(chunks: AsyncIterator[bytes], announced: str | None, most: int) -> bytes:
    """The body, given up as soon as it is longer than `most` bytes. Raises Refused (413)."""
    too_large = Refused(413, f"the request is larger than {most:,} bytes", code="request_too_large")
    if announced is not None and announced.isdigit() and int(announced) > most:
        raise too_large
    parts, size = [], 0
    async for part in chunks:
        size += len(part)
        if size > most:
            raise too_large
        parts.append(part)
    return b"".join(parts)
