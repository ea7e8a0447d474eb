"""What happened at this guard, for whoever asks later: a bounded list of numbered events.

For people and for ``procguard events``; nothing is decided by it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

EVENTS_KEPT_MAX = 1_000


class Chronicle:
    """Thread-safe.

    Args:
        wall_clock: Unix seconds.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT_MAX)
        self._seq = 0

    def add(self, kind: str, text: str, worker_id: str | None = None, at: float | None = None) -> None:
        """Write down that something happened, by default now."""
        with self._lock:
            self._seq += 1
            at = self._wall_clock() if at is None else at
            event = {"seq": self._seq, "at": at, "worker_id": worker_id, "kind": kind, "text": text}
            self._events.append(event)

    def since(self, after_seq: int | None, count_max: int) -> list[dict[str, Any]]:
        """The first events after ``after_seq``, or, where that is None, the last there are; oldest first."""
        with self._lock:
            if after_seq is None:
                return list(self._events)[-count_max:] if count_max else []
            return [event for event in self._events if event["seq"] > after_seq][:count_max]
