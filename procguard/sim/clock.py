"""Virtual time: a heap of what is to happen. Nothing here, or under here, looks at a real clock.

Two things due at the same moment happen in the order in which they were asked for, so a run is the same each
time, bit for bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

Alarm = list[Any]
"""``[when, order, call, args]``; ``call`` is None once it is cancelled, or has been made."""
EVENTS_MAX = 1 << 20
"""Pending at once. More than that is an avalanche: something asks for ever more of itself."""
EVENTS_AT_ONCE_MAX = 50_000
"""In one moment. After so many it is certain that somebody's loop spins, and time stands still."""


class VirtualClock:
    """Monotonic seconds that pass when nobody has anything left to do."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """Made so far."""
        self._heap: list[Alarm] = []
        self._order = count()
        self._at_once = 0

    def __call__(self) -> float:
        return self.now

    def at(self, when: float, call: Callable[..., object], *args: Any) -> Alarm:
        """Make the call then, or now if that is past."""
        alarm = [max(when, self.now), next(self._order), call, args]
        heapq.heappush(self._heap, alarm)
        assert len(self._heap) <= EVENTS_MAX
        return alarm

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> Alarm:
        """Make the call so many seconds from now."""
        return self.at(self.now + delay_s, call, *args)

    def cancel(self, alarm: Alarm | None) -> None:
        """Do not make that call; fine if it was made."""
        if alarm is not None:
            alarm[2] = None

    def run_until(self, end: float) -> None:
        """Let everything happen that is due by then."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            alarm = heapq.heappop(heap)
            call = alarm[2]
            if call is None:
                continue
            if alarm[0] > self.now:
                self._at_once = 0
            self._at_once += 1
            assert self._at_once <= EVENTS_AT_ONCE_MAX, f"time stands still: somebody spins, maybe {call}"
            self.now = alarm[0]
            self.events += 1
            alarm[2] = None
            call(*alarm[3])
        self.now = max(self.now, end)
