"""``RingProcessGroup``: all-reduce of numpy arrays over TCP, for the demo, for tests and for CPU jobs.

It satisfies ``procguard.client.process_group.ProcessGroup`` without importing it. What it is made for is
not speed but being left: ``abort`` frees a blocked ``configure`` or ``RingWork.wait`` at once, and an
operation that was given up never touches the caller's buffers.

This file is what callers see. ``collective_worker`` has the I/O thread and the rule that makes the above
true, ``collective_rendezvous`` forms the ring, ``collective_ring`` reduces, ``collective_links`` holds the
sockets. It must not touch a socket: those belong to the I/O thread.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

from numpy.typing import NDArray

from procguard.adapters.collective_links import Place, open_listener, shown, split_handle
from procguard.adapters.collective_ring import Payload
from procguard.adapters.collective_worker import Quorum, Task, Worker
from procguard.errors import CollectiveAborted, CollectiveTimeout, UsageError

ABORTED_COUNT_MAX = 256  # quorums aborted before they were configured
SHUTDOWN_TIMEOUT_S = 5.0  # the I/O thread ends within a millisecond, unless the resolver holds it
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class RingWork:
    """An all-reduce in flight."""

    def __init__(self, group: RingProcessGroup, quorum: Quorum, future: Future[Any]) -> None:
        self._group = group
        self._quorum = quorum
        self._future = future  # and not the task, whose copy of the buffers is free once it is done

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Block until the result is in the buffers, and return True; else raise what ended it.

        Longer than ``timeout`` (None: as long as any collective may take) is a ``CollectiveTimeout`` that
        ends the quorum: a rank that has given up one collective is out of step with its peers.
        """
        timeout_s = self._quorum.timeout_s if timeout is None else max(timeout.total_seconds(), 0)
        self._group._await(self._future, self._quorum, "allreduce", timeout_s)
        return True

    def get_future(self) -> Future[list[NDArray[Any]]]:
        """A future of the reduced buffers; it fails with the ``CollectiveError``. Its callbacks run on the
        I/O thread, or on the thread that ended the quorum: they must not block."""
        return self._future


class RingProcessGroup:
    """All-reduce of numpy arrays (float16/32/64, int32/64) in a TCP ring that any thread can abort.

    ``timeout`` bounds each collective, None: as ``configure`` is bounded, so that a Manager's own ``timeout``
    holds for both; ``host`` is the name or address at which the peers reach this machine
    (see ``advertise``); ``port`` is listened to on all addresses, 0 takes a free one. Quorum ids grow, and
    each is configured once. In a forked child the group is inert.
    """

    def __init__(self, timeout: timedelta | None = None, host: str | None = None, port: int = 0) -> None:
        self._timeout_s = None if timeout is None else _seconds(timeout)
        self.advertise("127.0.0.1" if host is None else host)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._quorum: Quorum | None = None
        self._aborted: set[int] = set()  # only ids above the present quorum's
        self._aborted_up_to = _INT64_MIN - 1
        self._is_shut_down = False
        listener = open_listener(port)
        self._port: int = listener.getsockname()[1]
        self._worker = Worker(listener, lambda: self._quorum)

    def handle(self) -> str:
        """``host:port`` (``[host]:port`` for IPv6), for the peers' ``configure``."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def advertise(self, host: str) -> None:
        """Set the host that ``handle()`` names; the first one, 127.0.0.1, reaches this machine only."""
        if not host:
            raise UsageError("the host to advertise is empty; pass a name or address the peers can reach")
        self._host = host.removeprefix("[").removesuffix("]")

    def configure(self, handles: Sequence[str], rank: int, quorum_id: int, timeout: timedelta) -> None:
        """Form the ring of a new quorum, ending what is left of the old one.

        Returns when both neighbours have confirmed. Raises ``CollectiveAborted`` if this quorum is aborted,
        before or meanwhile, or a later one is configured; ``CollectiveTimeout`` if a neighbour does not
        answer in ``timeout``; ``CollectiveError`` if it refuses, leaves, or nobody listens there.
        """
        place, timeout_s = _place(handles, rank, quorum_id), _seconds(timeout)
        self._check_not_inherited()
        collective_timeout_s = timeout_s if self._timeout_s is None else self._timeout_s
        with self._lock:
            if self._is_shut_down:
                raise UsageError("this process group was shut down; make a new one")
            previous = self._quorum
            if previous is not None and quorum_id <= previous.place.quorum_id:
                raise _not_later(previous, quorum_id)
            quorum = self._quorum = Quorum(place, self._worker.wake, collective_timeout_s)
            is_aborted = quorum_id in self._aborted or quorum_id <= self._aborted_up_to
            self._aborted = {aborted for aborted in self._aborted if aborted > quorum_id}
        if previous is not None:
            reason = (
                f"quorum {shown(previous.place.quorum_id)} ended: quorum {shown(quorum_id)} took its place"
            )
            previous.end(CollectiveAborted(reason, previous.place.quorum_id))
        if is_aborted:
            quorum.end(_aborted(quorum_id))
        self._worker.wake()
        self._await(quorum.forming.future, quorum, "configure", timeout_s)

    def allreduce(self, buffers: Sequence[NDArray[Any]], op: str = "sum") -> RingWork:
        """Reduce ``buffers`` elementwise over all ranks (sum, avg, max, min), in place on success.

        Returns at once; the collectives of a quorum run in the order of these calls, which must be the same
        on all ranks, as must the shapes and dtypes. The buffers are read here and written only on success.
        All ranks get the same bits. Sums are made in the buffers' own dtype, also those of ``avg``, which
        rounds integers down. ``UsageError`` for what cannot be reduced; all else is told by the work.
        """
        self._check_not_inherited()
        quorum = self._quorum
        if quorum is None:
            raise UsageError("allreduce before configure(): there is nobody to reduce with yet")
        task = Task(Payload(buffers, op))
        quorum.submit(task)
        return RingWork(self, quorum, task.future)

    def abort(self, quorum_id: int) -> None:
        """End everything of that quorum, now or yet to come, and nothing of any other. From any thread."""
        if self._is_inherited():
            return
        with self._lock:
            quorum = self._quorum
            if quorum is None or quorum_id > quorum.place.quorum_id:
                self._aborted.add(quorum_id)
                if len(self._aborted) > ABORTED_COUNT_MAX:
                    self._aborted_up_to = min(self._aborted)  # whatever is older is over as well
                    self._aborted.remove(self._aborted_up_to)
        if quorum is not None and quorum_id == quorum.place.quorum_id:
            quorum.end(_aborted(quorum_id))

    def errored(self) -> Exception | None:
        """What ended the present quorum, if anything did; None again after the next ``configure``."""
        quorum = self._quorum
        return None if quorum is None else quorum.error

    def shutdown(self) -> None:
        """Abort what is in flight, close all sockets and end the I/O thread. Once is enough."""
        if self._is_inherited():
            return
        with self._lock:
            self._is_shut_down = True
            quorum = self._quorum
        if quorum is not None:
            reason = f"quorum {shown(quorum.place.quorum_id)} ended: the process group was shut down"
            quorum.end(CollectiveAborted(reason, quorum.place.quorum_id))
        self._worker.stop(SHUTDOWN_TIMEOUT_S)

    def _await(self, future: Future[Any], quorum: Quorum, what: str, timeout_s: float) -> None:
        """Wait for ``future``; when it takes too long, end the quorum."""
        try:
            future.result(timeout_s)
        except (TimeoutError, concurrent.futures.TimeoutError):  # two classes in Python 3.10
            if not future.done():
                reason = (
                    f"{what} of quorum {shown(quorum.place.quorum_id)} took longer than {timeout_s:g} s: "
                    f"waiting for {self._worker.missing()}"
                )
                quorum.end(CollectiveTimeout(reason, quorum.place.quorum_id))
        future.result()  # the task's own error, or a result that won the race

    def _is_inherited(self) -> bool:
        return os.getpid() != self._pid

    def _check_not_inherited(self) -> None:
        if self._is_inherited():
            raise UsageError("this process group belongs to the parent process; make one after the fork")


def _aborted(quorum_id: int) -> CollectiveAborted:
    return CollectiveAborted(f"quorum {shown(quorum_id)} was aborted", quorum_id)


def _not_later(previous: Quorum, quorum_id: int) -> Exception:
    """Why an id that is not greater than the present one cannot be configured."""
    present_id = previous.place.quorum_id
    if quorum_id < present_id:
        return CollectiveAborted(
            f"quorum {shown(quorum_id)} is over: quorum {shown(present_id)} took its place",
            quorum_id,
        )
    if previous.error is not None:
        return type(previous.error)(f"quorum {shown(quorum_id)} has ended: {previous.error}", quorum_id)
    return UsageError(f"quorum {shown(quorum_id)} is configured already; each quorum needs an id of its own")


def _place(handles: Sequence[str], rank: int, quorum_id: int) -> Place:
    if not 0 <= rank < len(handles):
        raise UsageError(f"rank {rank} is not one of {len(handles)} handles; ranks count from 0")
    if not _INT64_MIN <= quorum_id <= _INT64_MAX:
        raise UsageError(f"quorum_id {quorum_id} does not fit into 64 bits; pass the packed quorum id")
    for handle in handles:
        split_handle(handle)
    return Place(quorum_id, rank, tuple(handles))


def _seconds(timeout: timedelta) -> float:
    if timeout <= timedelta(0):
        raise UsageError(f"timeout {timeout} is not positive; use for example timedelta(seconds=60)")
    return timeout.total_seconds()
