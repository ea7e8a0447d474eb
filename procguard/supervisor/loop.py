"""The one loop that owns the children: it waits for descriptors, for deadlines and for what is asked of it.

Everything that concerns a child runs on its thread, so none of it needs a lock. What has happened goes before
what is asked, and both before what is due: whoever asks for a stop of a worker that has just crashed must not
be told that the crash was his. The end of a turn is for what is dearer and can be shared by all that happened
in it, such as one look through /proc.

Nothing here knows a worker. It must never block: no join, no read of a pipe, no wait for a process. It takes
no part in signals: the main thread is the program's own, with handlers of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from math import inf

_log = logging.getLogger(__name__)

WAIT_S_MAX = 3600.0
CLOSE_TIMEOUT_S = 5.0

Call = Callable[[], None]


class Loop:
    """Starts its thread at once; ``close`` ends it.

    Args:
        name: of the thread.
        end_of_turn: called after each turn in which something happened.
        clock: monotonic seconds.
    """

    def __init__(self, name: str, end_of_turn: Call, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_of_turn = end_of_turn
        self._poll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake_fd, select.EPOLLIN)
        self._watched: dict[int, Call] = {}
        self._due: dict[Hashable, tuple[float, Call]] = {}
        self._asked: deque[Call] = deque()
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # --- from any thread ---

    def ask(self, call: Call) -> bool:
        """Have ``call`` run on the loop's thread, soon; False once the loop is closed."""
        with self._lock:
            if self._closing:
                return False
            self._asked.append(call)
            os.eventfd_write(self._wake_fd, 1)
        return True

    @property
    def is_mine(self) -> bool:
        """Whether the caller runs on the loop's thread: there it must not wait for the loop."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """End the thread, after what was asked before."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            os.eventfd_write(self._wake_fd, 1)
        if not self.is_mine:
            self._thread.join(CLOSE_TIMEOUT_S)

    # --- from the loop's thread ---

    def watch(self, fd: int, call: Call) -> None:
        """Call when ``fd`` is readable, until it is unwatched."""
        self._watched[fd] = call
        self._poll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """To be said before ``fd`` is closed: its number may be another's in no time."""
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(fd)

    def call_at(self, key: Hashable, deadline: float, call: Call) -> None:
        """Call once at ``deadline`` (monotonic seconds); there is one deadline a key, the latest one told."""
        if deadline < inf:
            self._due[key] = (deadline, call)
        else:
            self._due.pop(key, None)

    def _run(self) -> None:
        while True:
            self._turn()
            with self._lock:
                if self._closing and not self._asked:
                    break
        self._poll.close()
        os.close(self._wake_fd)

    def _turn(self) -> None:
        now = self._clock()
        next_due = min((deadline for deadline, _ in self._due.values()), default=inf)
        ready = self._poll.poll(max(0.0, min(next_due - now, WAIT_S_MAX)))
        for fd, _ in ready:
            if fd != self._wake_fd and (happened := self._watched.get(fd)):
                self._run_one(happened)
        for asked in self._take_asked():
            self._run_one(asked)
        now = self._clock()
        for key, due in list(self._due.items()):
            if due[0] <= now and self._due.get(key) is due:  # not moved by one before it
                del self._due[key]
                self._run_one(due[1])
        self._run_one(self._end_of_turn)

    def _take_asked(self) -> list[Call]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        with self._lock:
            asked = list(self._asked)
            self._asked.clear()
        return asked

    def _run_one(self, call: Call) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - a bug of ours: told, and the other children are looked after
            _log.exception("A bug in ProcGuard: a call on the process loop failed; please report it")


def answered(loop: Loop, call: Callable[[Future[bool]], None]) -> Future[bool]:
    """Ask ``loop`` for a call that answers its future; a call that fails, or a closed loop, answers it
    too."""
    future: Future[bool] = Future()

    def run() -> None:
        try:
            call(future)
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
            raise

    if not loop.ask(run):
        future.set_result(False)
    return future
