"""Work that may take its time, done beside a loop that may not: so many threads at most, the rest waits its
turn.

Threads are started when there is work and end with it, so a guard that nobody asks has none. They are
daemons: a command that hangs does not keep a guard from ending. How much may wait is bounded by whoever
gives the work.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Lane:
    """A queue of work and the threads that do it.

    Args:
        name: of its threads.
        threads_max: at the same time.
    """

    def __init__(self, name: str, threads_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._threads = 0

    def do(self, work: Callable[[], None]) -> None:
        """Have ``work``, which must not raise, done soon. ``RuntimeError``: no thread can be had."""
        with self._lock:
            if self._threads < self._threads_max:
                self._threads += 1
            else:
                self._waiting.append(work)
                return
        try:
            threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
            raise

    def _run(self, work: Callable[[], None]) -> None:
        while True:
            work()
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                work = self._waiting.popleft()
