"""Hearing of the end of torch's collectives, and of the moment when a backend can be destroyed.

By looking, not by torch's callbacks: those run on threads of C++ that take the GIL, and a process in which
one does so while the interpreter ends is terminated ("terminate called without an active exception"). That
is no rare accident here: survivors of a failure end together, and each one's end is the error of the others'
abandoned operations. NCCL's futures would not help anyway: they are complete when kernels are queued, not
when they have run.

A backend whose operations have not all ended is kept: its destructor would wait for them (measured with Gloo:
as long as the operation's timeout, whatever ``abort`` says). At the interpreter's end it is not destroyed at
all. Nothing here may call into torch where torch lets go of the GIL while the interpreter ends.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

POLL_S_MIN, POLL_S_MAX = 0.00005, 0.001
POLL_GROWTH = 1.2
"""So an operation is seen to have ended at most a fifth of its time, or a millisecond, late."""
ABANDONED_POLL_S = 0.05
EXIT_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)

Ended = Callable[[Exception | None], None]
"""Told how an operation has ended: None is well."""


class Operation(NamedTuple):
    """A collective that a backend has begun."""

    has_ended: Callable[[], bool]
    """Must not let go of the GIL."""
    problem: Callable[[], Exception | None]
    """What it failed with, once it has ended."""
    ended: Ended


class Watcher:
    """One thread that looks after the operations of one backend, in the order in which they began."""

    def __init__(self, name: str) -> None:
        self._begun: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._is_closed = False
        self._abort: Callable[[], None] = _nothing
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def add(self, operation: Operation) -> None:
        """Have its end told, on the watcher's thread."""
        self._begun.put(operation)

    def close(self, abort: Callable[[], None]) -> None:
        """Nobody cares any more. ``abort`` is called on the thread, and kept until all operations have ended:
        with it the backend that it is a method of."""
        self._abort = abort
        self._is_closed = True
        self._begun.put(None)

    def _run(self) -> None:
        left: list[Operation] = []
        while (operation := self._begun.get()) is not None:
            if self._is_closed or not self._await(operation):
                left.append(operation)
        with exit_of_interpreter.before_it():
            try:
                self._abort()
            except Exception:  # noqa: BLE001  # torch's own; nobody uses it any more
                _log.debug("aborting a torch backend failed", exc_info=True)
        while not all(operation.has_ended() for operation in left):
            time.sleep(ABANDONED_POLL_S)
        with exit_of_interpreter.before_it():
            self._abort = _nothing  # destroys the backend

    def _await(self, operation: Operation) -> bool:
        """Tell of its end; False when the backend was closed before that."""
        pause_s = POLL_S_MIN
        while not operation.has_ended():
            if self._is_closed:
                return False
            time.sleep(pause_s)
            pause_s = min(pause_s * POLL_GROWTH, POLL_S_MAX)
        with exit_of_interpreter.before_it():
            try:
                problem = operation.problem()
            except Exception as error:  # noqa: BLE001  # torch's own; the quorum ends with it
                problem = error
            operation.ended(problem)
        return True


class Exit:
    """The end of the interpreter, as the threads of this adapter have to know of it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_near = False
        self._busy = 0
        self._endings: dict[Callable[[], None], None] = {}

    @contextmanager
    def before_it(self) -> Iterator[None]:
        """The interpreter does not end within it, for a while. Where the end is near already, the thread
        stays here until the process is gone, and with it what it holds."""
        with self._changed:
            is_too_late = self._is_near
            self._busy += not is_too_late
        if is_too_late:
            threading.Event().wait()
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def call(self, act: Callable[[], None]) -> None:
        """Call it first of all when the interpreter is about to end."""
        self._endings[act] = None

    def forget(self, act: Callable[[], None]) -> None:
        self._endings.pop(act, None)

    def comes(self) -> None:
        """Called once, by the interpreter."""
        for act in tuple(self._endings):
            act()
        with self._changed:
            self._is_near = True
            self._changed.wait_for(lambda: not self._busy, EXIT_TIMEOUT_S)


def _nothing() -> None:
    return None


exit_of_interpreter = Exit()
atexit.register(exit_of_interpreter.comes)
