"""What those who tell of something must not do themselves: process loop, monitor, an adapter's thread.

Each would hold up all that it watches. So they hand it over here, where one thread does it, in order.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

CLOSE_S = 10.0
"""Longer than an adapter's timeout by default."""


class Afterwards:
    """Carries out, one by one, what those must not do themselves who have told of it."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="procguard-afterwards", daemon=True)
        self._thread.start()

    def call(self, what: Callable[[], object]) -> None:
        """Do this when all before it is done."""
        self._calls.put(what)

    def close(self) -> None:
        """Do no more; what is being done is waited for, though not for ever."""
        self._closed = True
        self._calls.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

    def _work(self) -> None:
        while (what := self._calls.get()) is not None and not self._closed:
            try:
                what()
            except Exception:  # noqa: BLE001 - a bug of ours: told in full, and the rest goes on
                _log.exception("A bug in ProcGuard; please report it")
