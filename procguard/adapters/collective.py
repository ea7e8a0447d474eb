"""``RingProcessGroup``: all-reduce of numpy arrays over TCP, for the demo, for tests and for CPU jobs.

It satisfies ``procguard.client.process_group.ProcessGroup`` without importing it. What it is made for is
not speed but being left: ``abort`` frees a blocked ``configure`` or ``RingWork.wait`` at once, and an
operation that was given up never touches the caller's buffers.

This file is what callers see, ``process_group`` what it shares with others. ``collective_worker`` has the I/O
thread and the rule that makes the above true, ``collective_rendezvous`` forms the ring, ``collective_ring``
reduces, ``collective_links`` holds the sockets. It must not touch a socket: those belong to the I/O thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from numpy.typing import NDArray

from procguard.adapters.collective_links import RingPlace, open_listener, split_handle
from procguard.adapters.collective_ring import Payload
from procguard.adapters.collective_worker import Quorum, Worker
from procguard.adapters.process_group import FencedGroup, GroupWork, Place, Task, check_place, seconds
from procguard.errors import UsageError

SHUTDOWN_TIMEOUT_S = 5.0  # the I/O thread ends within a millisecond, unless the resolver holds it

RingWork = GroupWork[Quorum]
"""An all-reduce in flight."""


class RingProcessGroup(FencedGroup[Quorum]):
    """All-reduce of numpy arrays (float16/32/64, int32/64) in a TCP ring that any thread can abort.

    ``timeout`` bounds each collective, None: as ``configure`` is bounded, so that a Manager's own ``timeout``
    holds for both; ``host`` is the name or address at which the peers reach this machine
    (see ``advertise``); ``port`` is listened to on all addresses, 0 takes a free one. Quorum ids grow, and
    each is configured once. In a forked child the group is inert.
    """

    def __init__(self, timeout: timedelta | None = None, host: str | None = None, port: int = 0) -> None:
        super().__init__(timeout, host)
        listener = open_listener(port)
        self._port: int = listener.getsockname()[1]
        self._worker = Worker(listener, lambda: self._quorum)

    def handle(self) -> str:
        """``host:port`` (``[host]:port`` for IPv6), for the peers' ``configure``."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def configure(self, handles: Sequence[str], rank: int, quorum_id: int, timeout: timedelta) -> None:
        """Form the ring of a new quorum, ending what is left of the old one.

        Returns when both neighbours have confirmed. Raises ``CollectiveAborted`` if this quorum is aborted,
        before or meanwhile, or a later one is configured; ``CollectiveTimeout`` if a neighbour does not
        answer in ``timeout``; ``CollectiveError`` if it refuses, leaves, or nobody listens there.
        """
        check_place(handles, rank, quorum_id, split_handle)
        timeout_s = seconds(timeout)
        quorum = self._install(RingPlace(quorum_id, rank, tuple(handles)), timeout_s)
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

    def _new_quorum(self, place: Place, timeout_s: float) -> Quorum:
        assert isinstance(place, RingPlace)
        return Quorum(place, self._worker.wake, timeout_s)

    def _close(self) -> None:
        self._worker.stop(SHUTDOWN_TIMEOUT_S)

    def _missing(self) -> str:
        return self._worker.missing()
