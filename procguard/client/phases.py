"""What this trainer is doing, for the board that its beats tell from.

Several threads may be at different things at once: one waits in a collective, the quorum thread heals, a
checkpoint is written. Only time spent in nothing but ``COMPUTE`` counts against ``progress_timeout``, so the
phase shown is the greatest of those under way.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from procguard.messages import Phase


class Phases:
    """The present phase, with a counter that moves at each sign of progress.

    Args:
        show: writes on the board.
    """

    def __init__(self, show: Callable[[Phase, int], None]) -> None:
        self._show = show
        self._lock = threading.Lock()
        self._under_way: Counter[Phase] = Counter()
        self._signs = 0

    def sign(self) -> None:
        """There is progress."""
        with self._lock:
            self._signs += 1
            self._show(max(+self._under_way, default=Phase.COMPUTE), self._signs)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Within it this is under way; both its ends are signs of progress."""
        self._count(phase, 1)
        try:
            yield
        finally:
            self._count(phase, -1)

    def _count(self, phase: Phase, change: int) -> None:
        with self._lock:
            self._under_way[phase] += change
        self.sign()
