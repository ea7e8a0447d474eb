"""The I/O thread of a process group, and the queue through which callers reach it.

The thread owns every socket and does all the work; callers wait on futures only. Whoever takes a task out
of its quorum's queue, under the quorum's lock, settles its future: the thread when the work is done, or the
one who ends the quorum (abort, timeout, a dead peer, the next configure). So a future is settled once, only
the winner copies a result to the caller's buffers, and ``Quorum.end`` waits for nobody: neither for the
network nor for a copy in progress.

No lock is held while buffers are copied or a future's callbacks run.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable

from procguard.adapters.collective_links import RingPlace, own
from procguard.adapters.collective_rendezvous import Rendezvous
from procguard.adapters.collective_ring import Payload, Ring
from procguard.adapters.process_group import Task, check_room, fresh
from procguard.errors import CollectiveError

_log = logging.getLogger(__name__)


class Quorum:
    """One configured quorum: its tasks in call order, and the error that ended it."""

    def __init__(self, place: RingPlace, wake: Callable[[], None], timeout_s: float) -> None:
        self.place = place
        self.timeout_s = timeout_s
        """Bounds each collective."""
        self.forming = Task()
        self.error: CollectiveError | None = None  # once it is set there are no tasks any more
        self._tasks: deque[Task] = deque([self.forming])
        self._lock = threading.Lock()
        self._wake = wake

    def submit(self, task: Task) -> None:
        """Queue a collective; its future fails at once if the quorum is over."""
        with self._lock:
            error = self.error
            if error is None:
                check_room(len(self._tasks))
                self._tasks.append(task)
        if error is None:
            self._wake()
        else:
            task.future.set_exception(fresh(error))

    def end(self, error: CollectiveError) -> None:
        """Fail every task with ``error``, now and from now on. The first error stays."""
        with self._lock:
            if self.error is not None:
                return
            self.error = fresh(error)
            doomed = list(self._tasks)
            self._tasks.clear()
        for task in doomed:
            task.future.set_exception(fresh(error))
        self._wake()

    def head(self) -> Task | None:
        """The task to work on next."""
        with self._lock:
            return self._tasks[0] if self._tasks else None

    def claim(self, task: Task) -> bool:
        """Take the finished head of the queue out; False if it has been failed meanwhile."""
        with self._lock:
            if self.error is not None:
                return False
            self._tasks.popleft()
            return True


class Worker:
    """The I/O thread: forms the ring of the present quorum and runs its collectives one by one."""

    def __init__(self, listener: socket.socket, present: Callable[[], Quorum | None]) -> None:
        self._present = present
        self._wake_receiver, self._wake_sender = (own(sock) for sock in socket.socketpair())
        self._rendezvous = Rendezvous(listener, self._wake_receiver)
        self._quorum: Quorum | None = None  # the one being worked for; lags behind the present one
        self._ring: Ring | None = None
        self._sequence = 0
        self._is_stopping = False
        name = f"procguard-ring-{listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Make the thread look at the present quorum again. From any thread."""
        with contextlib.suppress(OSError):  # too many calls waiting to miss this one; or it has ended
            self._wake_sender.send(b"\0")

    def missing(self) -> str:
        """What the thread is waiting for. From any thread."""
        ring = self._ring
        return self._rendezvous.missing() if ring is None else ring.missing()

    def stop(self, timeout_s: float) -> None:
        """End the thread, which closes all sockets."""
        self._is_stopping = True
        self.wake()
        if self._thread is not threading.current_thread():  # a future's callback may shut the group down
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                quorum = self._present()
                try:
                    self._turn(quorum)
                except CollectiveError as error:
                    assert quorum is not None
                    quorum.end(error)
                except Exception as error:  # noqa: BLE001 (the waiting callers are told)
                    # A defect, or no memory: whoever waits hears of it, and the next quorum gets a chance.
                    _log.exception("the I/O thread of a process group failed")
                    if quorum is not None:
                        quorum.end(CollectiveError(f"I/O thread: {error!r}", quorum.place.quorum_id))
        finally:
            self._leave()
            self._rendezvous.close()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _turn(self, quorum: Quorum | None) -> None:
        if quorum is None:
            return self._rendezvous.poll()
        if quorum is not self._quorum:
            self._leave()
            self._quorum, self._sequence = quorum, 0
            self._rendezvous.begin(quorum.place)
        task = quorum.head()
        if task is not None and task.payload is not None:
            return self._reduce(quorum, task, task.payload)
        if task is not None and self._form(quorum):
            return
        if quorum.error is not None:
            self._leave()
        self._rendezvous.poll()

    def _form(self, quorum: Quorum) -> bool:
        if quorum.place.world_size > 1:
            links = self._rendezvous.links()
            if links is None:
                return False
            self._ring = Ring(quorum.place, links, self._wake_receiver, lambda: quorum.error)
        if quorum.claim(quorum.forming):
            quorum.forming.future.set_result(None)
        return True

    def _reduce(self, quorum: Quorum, task: Task, payload: Payload) -> None:
        self._sequence += 1
        if self._ring is not None:
            self._ring.allreduce(payload, self._sequence, quorum.timeout_s)
        if not quorum.claim(task):
            return
        try:
            buffers = payload.deliver()
        except Exception as error:  # the caller has made its array read-only since; it hears of it here
            failure = CollectiveError(f"cannot write the result: {error}", quorum.place.quorum_id)
            task.future.set_exception(failure)
            raise failure from error
        task.future.set_result(buffers)

    def _leave(self) -> None:
        self._rendezvous.end()
        if self._ring is not None:
            self._ring.close()
            self._ring = None
