"""The signals that ask a guard to end, and those that it goes on ignoring without making its workers deaf."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator

_ASK_FOR_AN_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_RESTORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Which it ignores itself, and ``subprocess`` sets right for children."""


@contextlib.contextmanager
def stop_signals(told: Callable[[int], None]) -> Iterator[None]:
    """While it lasts, signals that ask for an end are told; on another thread than the main one, none are.

    A handler runs in the middle of whatever the main thread does, and that may hold any lock. So it takes
    none itself: it only puts the signal's number where a thread waits for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    given: queue.SimpleQueue[int] = queue.SimpleQueue()

    def tell() -> None:
        while number := given.get():
            told(number)

    teller = threading.Thread(target=tell, name="procguard-signals", daemon=True)
    teller.start()
    before = {}
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in _RESTORED_BY_PYTHON:
            # As under nohup, or behind a shell's "&". We go on ignoring it; but workers would inherit that,
            # and be deaf to their stop_signal. A signal that is caught is a default again after exec.
            before[number] = signal.signal(number, lambda number, frame: None)
        elif number in _ASK_FOR_AN_END:
            before[number] = signal.signal(number, lambda number, frame: given.put(number))
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        given.put(0)
        teller.join()
