"""What every process group of ours is, whatever reduces in it: a fence around one quorum after the other.

A quorum is configured once, ids grow, and ``abort`` is sticky: it ends everything of that id, now or yet to
come, and nothing of any other. Whoever waits is freed by the result or by the quorum's end, whichever is
first; an operation that was given up never touches the caller's buffers. ``collective`` (numpy over TCP) and
``torch_group`` (Gloo, NCCL) differ in how ranks meet and how they reduce. Nothing here opens a socket.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout, UsageError
from procguard.messages import QuorumId

ABORTED_COUNT_MAX = 256  # quorums aborted before they were configured
TASK_COUNT_MAX = 65_536  # each holds a copy of its buffers: more is a loop that never waits
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Place:
    """One rank's place in one quorum."""

    quorum_id: int
    rank: int
    handles: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return len(self.handles)

    def __str__(self) -> str:
        return f"quorum {QuorumId.of_packed(self.quorum_id)}"


class Task:
    """What is owed to a caller: a collective or, without payload, the quorum's connections."""

    def __init__(self, payload: Any = None) -> None:
        self.payload = payload
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # a caller's cancel() must not settle it behind our back


class Quorum(Protocol):
    """One configured quorum. Whoever takes a task out of it, under its lock, settles the task's future."""

    error: CollectiveError | None

    @property
    def place(self) -> Place: ...

    @property
    def timeout_s(self) -> float:
        """Bounds each collective."""
        ...

    @property
    def forming(self) -> Task: ...

    def end(self, error: CollectiveError) -> None:
        """Fail every task with ``error``, now and from now on. The first error stays. Returns at once."""
        ...


Q = TypeVar("Q", bound=Quorum)


class GroupWork(Generic[Q]):
    """An all-reduce in flight."""

    def __init__(self, group: FencedGroup[Q], quorum: Q, future: Future[Any]) -> None:
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

    def get_future(self) -> Future[list[Any]]:
        """A future of the reduced buffers; it fails with the ``CollectiveError``. Its callbacks run on a
        thread of the group, or on the one that ended the quorum: they must not block."""
        return self._future


class FencedGroup(ABC, Generic[Q]):
    """One quorum at a time, and the ids that are over.

    ``timeout`` bounds each collective, None: as ``configure`` is bounded, so that a Manager's own ``timeout``
    holds for both; ``host`` is the name or address at which the peers reach this machine (see ``advertise``).
    In a forked child the group is inert.
    """

    def __init__(self, timeout: timedelta | None, host: str | None) -> None:
        self._timeout_s = None if timeout is None else seconds(timeout)
        self.advertise("127.0.0.1" if host is None else host)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._quorum: Q | None = None
        self._aborted: set[int] = set()  # only ids above the present quorum's
        self._aborted_up_to = _INT64_MIN - 1
        self._is_shut_down = False

    # --- what each kind does in its way -------------------------------------------------------------

    @abstractmethod
    def _new_quorum(self, place: Place, timeout_s: float) -> Q: ...

    @abstractmethod
    def _close(self) -> None:
        """Let go of everything; the present quorum has ended."""

    def _missing(self) -> str:
        """Whom or what is being waited for, if that is known; for the text of a timeout."""
        return ""

    # --- the protocol -------------------------------------------------------------------------------

    def advertise(self, host: str) -> None:
        """Set the host that ``handle()`` names; the first one, 127.0.0.1, reaches this machine only."""
        if not host:
            raise UsageError("the host to advertise is empty; pass a name or address the peers can reach")
        self._host = host.removeprefix("[").removesuffix("]")

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
            quorum.end(CollectiveAborted(f"{quorum.place} was aborted", quorum_id))

    def errored(self) -> Exception | None:
        """What ended the present quorum, if anything did; None again after the next ``configure``."""
        quorum = self._quorum
        return None if quorum is None else quorum.error

    def shutdown(self) -> None:
        """Abort what is in flight, and let go of everything. Once is enough."""
        if self._is_inherited():
            return
        with self._lock:
            self._is_shut_down = True
            quorum = self._quorum
        if quorum is not None:
            reason = f"{quorum.place} ended: the process group was shut down"
            quorum.end(CollectiveAborted(reason, quorum.place.quorum_id))
        self._close()

    # --- inside -------------------------------------------------------------------------------------

    def _install(self, place: Place, timeout_s: float) -> Q:
        """Make this the present quorum, and end the one before."""
        self._check_not_inherited()
        quorum_id = place.quorum_id
        with self._lock:
            if self._is_shut_down:
                raise UsageError("this process group was shut down; make a new one")
            previous = self._quorum
            if previous is not None and quorum_id <= previous.place.quorum_id:
                raise _not_later(previous, place)
            quorum = self._new_quorum(place, timeout_s if self._timeout_s is None else self._timeout_s)
            self._quorum = quorum
            is_aborted = quorum_id in self._aborted or quorum_id <= self._aborted_up_to
            self._aborted = {aborted for aborted in self._aborted if aborted > quorum_id}
        if previous is not None:
            reason = f"{previous.place} ended: {place} took its place"
            previous.end(CollectiveAborted(reason, previous.place.quorum_id))
        if is_aborted:
            quorum.end(CollectiveAborted(f"{place} was aborted", quorum_id))
        return quorum

    def _await(self, future: Future[Any], quorum: Q, what: str, timeout_s: float) -> None:
        """Wait for ``future``; when it takes too long, end the quorum."""
        try:
            future.result(timeout_s)
        except (TimeoutError, concurrent.futures.TimeoutError):  # two classes in Python 3.10
            if not future.done():
                reason = f"{what} of {quorum.place} took longer than {timeout_s:g} s"
                if missing := self._missing():
                    reason += f": waiting for {missing}"
                quorum.end(CollectiveTimeout(reason, quorum.place.quorum_id))
        future.result()  # the task's own error, or a result that won the race

    def _is_inherited(self) -> bool:
        return os.getpid() != self._pid

    def _check_not_inherited(self) -> None:
        if self._is_inherited():
            raise UsageError("this process group belongs to the parent process; make one after the fork")


def fresh(error: CollectiveError) -> CollectiveError:
    """The same error without its traceback, whose frames would keep connections and gradients alive."""
    return type(error)(str(error), error.quorum_id)


def check_room(tasks_count: int) -> None:
    """Raise ``UsageError`` where one task more would be too many."""
    if tasks_count >= TASK_COUNT_MAX:
        raise UsageError(f"{TASK_COUNT_MAX} collectives are in flight; wait for some of them")


def check_place(
    handles: Sequence[str], rank: int, quorum_id: int, read_handle: Callable[[str], object]
) -> None:
    """Raise ``UsageError`` for arguments of ``configure`` that cannot be; ``read_handle`` does so, too."""
    if not 0 <= rank < len(handles):
        raise UsageError(f"rank {rank} is not one of {len(handles)} handles; ranks count from 0")
    if not _INT64_MIN <= quorum_id <= _INT64_MAX:
        raise UsageError(f"quorum_id {quorum_id} does not fit into 64 bits; pass the packed quorum id")
    for handle in handles:
        read_handle(handle)


def seconds(timeout: timedelta) -> float:
    if timeout <= timedelta(0):
        raise UsageError(f"timeout {timeout} is not positive; use for example timedelta(seconds=60)")
    return timeout.total_seconds()


def _not_later(previous: Quorum, place: Place) -> Exception:
    """Why an id that is not greater than the present one cannot be configured."""
    if place.quorum_id < previous.place.quorum_id:
        return CollectiveAborted(f"{place} is over: {previous.place} took its place", place.quorum_id)
    if previous.error is not None:
        return type(previous.error)(f"{place} has ended: {previous.error}", place.quorum_id)
    return UsageError(f"{place} is configured already; each quorum needs an id of its own")
