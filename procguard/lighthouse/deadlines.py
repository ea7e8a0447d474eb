"""Deadlines that are renewed far more often than they pass.

A lease is renewed ten times a second and runs out once in its life, so renewing must cost one dict write and
nothing else: each key has one entry in a heap, and only when that entry comes up is it asked whether the
deadline has moved. ``next()`` may therefore be early, never late.

A deadline is kept as *since* and *length*, not as a point in time: after a stall of our own loop
(``excuse``) every deadline still has its full length to run, because silence that we slept through proves
nothing about the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from itertools import count
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

STALE_MAX = 1_000
"""Heap entries that no deadline needs any more, beyond as many as there are deadlines."""


class Deadlines(Generic[K]):
    """A set of running deadlines by key. Times in seconds on the caller's monotonic clock."""

    def __init__(self) -> None:
        self._since: dict[K, float] = {}
        self._length: dict[K, float] = {}
        self._queued: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = count()
        self._excused = -inf

    def __contains__(self, key: K) -> bool:
        return key in self._since

    def arm(self, key: K, now: float, length_s: float) -> None:
        """Start the deadline of ``key``, or start it anew with another length."""
        self._since[key] = now
        if self._length.get(key) != length_s:
            self._length[key] = length_s
        if self._queued.get(key, inf) > now + length_s:
            self._push(key, now + length_s)

    def renew(self, key: K, now: float) -> None:
        """Let an armed deadline run its full length from now."""
        self._since[key] = now

    def disarm(self, key: K) -> None:
        """Forget the deadline; its heap entry goes when it comes up, or with too many others."""
        self._since.pop(key, None)
        self._length.pop(key, None)
        self._bound()

    def excuse(self, now: float) -> None:
        """No deadline armed so far ends before now plus its full length."""
        self._excused = now

    def next(self) -> float:
        """When to ask ``due`` again; ``inf`` when nothing runs."""
        return self._heap[0][0] if self._heap else inf

    def due(self, now: float) -> Iterator[K]:
        """Keys whose deadline has passed, one by one in the order of their deadlines; each is disarmed.

        The caller acts on each before it asks for the next: one that it disarms meanwhile does not come up.
        """
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._queued.get(key) != when:
                continue
            del self._queued[key]
            if key not in self._since:
                continue
            deadline = max(self._since[key], self._excused) + self._length[key]
            if deadline > now:
                self._push(key, deadline)
            else:
                self.disarm(key)
                yield key

    def _push(self, key: K, when: float) -> None:
        self._queued[key] = when
        heapq.heappush(self._heap, (when, next(self._order), key))
        self._bound()

    def _bound(self) -> None:
        if len(self._heap) > 2 * len(self._since) + STALE_MAX:
            self._sweep()

    def _sweep(self) -> None:
        """Drop entries of disarmed keys, and those that an earlier one has replaced."""
        self._queued = {key: when for key, when in self._queued.items() if key in self._since}
        self._heap = [entry for entry in self._heap if self._queued.get(entry[2]) == entry[0]]
        heapq.heapify(self._heap)
