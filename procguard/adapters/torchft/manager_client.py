"""``ManagerClient``: a rank's hand on its manager, or on that of the group it heals from.

Made with an address alone, as in torchft; which rank it speaks for is said with each call, and the first such
call takes that rank's seat in the group. ``take_seat`` does it beforehand, in the main thread, whose death
the kernel tells of soonest.

A manager that is known from a quorum is not asked where a checkpoint can be fetched: the quorum said so. So a
rank heals by one connection less, and also where keys keep the groups' places apart.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import TypeVar

from procguard.adapters.torchft.exceptions import as_torchft_raises, seconds
from procguard.adapters.torchft.manager_words import (
    MANAGER,
    MANAGER_VERSION,
    Describe,
    Described,
    FromClient,
    ItIsAt,
    WhereIs,
)
from procguard.adapters.torchft.results import QuorumResult
from procguard.adapters.torchft.seat import Asks, Ends, Seat, last_seen, leave_seats, take_seat
from procguard.adapters.torchft.wiring import Way, become_member, way_to
from procguard.adapters.zmq import ZmqMemberTransport
from procguard.errors import ProtocolError, UsageError

MINUTE = timedelta(seconds=60)
RETRY_S = 0.25
RECEIVE_MAX = 100
TEXT_CHARS_MAX = 4096

A = TypeVar("A", Described, ItIsAt)


class ManagerClient:
    """A connection to a manager.

    Args:
        addr (str): What ``ManagerServer.address()`` says.
        connect_timeout (timedelta): How long the manager, and later the lighthouse, may take to answer at
        first.

    Raises:
        RuntimeError: no manager answers there.
    """

    def __init__(self, addr: str, connect_timeout: timedelta) -> None:
        self._addr = addr
        self._connect_timeout_s = seconds("connect_timeout", connect_timeout)
        self._lock = threading.Lock()
        self._group: Described | None = None
        self._taken: set[int] = set()
        with as_torchft_raises():
            self._way = way_to(addr)
            if last_seen(addr) is None:
                self._describe()

    def take_seat(self, group_rank: int, ends: Ends | None = None) -> None:
        """Become a member for this rank now, and not with its first call; torchft has no such method.

        Args:
            group_rank (int): Which rank this process is.
            ends (Ends): What a failure notice ends.

        Raises:
            RuntimeError: it could not join.
        """
        with as_torchft_raises():
            seat = self._seat(group_rank)
        if ends is not None:
            seat.protect(ends)

    def _quorum(
        self,
        group_rank: int,
        step: int,
        checkpoint_metadata: str,
        shrink_only: bool,
        init_sync: bool = True,
        commit_failures: int = 0,
        timeout: timedelta = MINUTE,
        reconfigure_handle: str = "",
    ) -> QuorumResult:
        """Take part in the next quorum, with all ranks of the group.

        Args:
            group_rank (int): Who asks.
            step (int): The step this rank is at.
            checkpoint_metadata (str): Where its state can be fetched.
            shrink_only (bool): Let no newcomer in.
            init_sync (bool): Before the first commit all take over one replica's state.
            commit_failures (int): Steps in a row that did not commit; more than 0 asks for a new quorum_id.
            timeout (timedelta): How long to wait.
            reconfigure_handle (str): Where its process group can be reached.

        Raises:
            TimeoutError: there was none in time.
            RuntimeError: another rank of the group has ended, or the lighthouse refused.
        """
        wait_s = seconds("timeout", timeout)
        with as_torchft_raises():
            asks = Asks(
                _number("step", step),
                _short("checkpoint_metadata", checkpoint_metadata),
                _short("reconfigure_handle", reconfigure_handle),
                bool(shrink_only),
                _number("commit_failures", commit_failures),
                bool(init_sync),
            )
            return self._seat(group_rank).quorum(asks, wait_s)

    def _checkpoint_metadata(self, rank: int, timeout: timedelta) -> str:
        """Where a rank's state can be fetched, as that rank said in the last quorum.

        Args:
            rank (int): Which rank of this manager's group.
            timeout (timedelta): How long the manager may take to answer.

        Raises:
            TimeoutError: it did not answer.
            RuntimeError: that rank was in no quorum so far.
        """
        wait_s = seconds("timeout", timeout)
        with as_torchft_raises():
            rank = _number("rank", rank)
            member = last_seen(self._addr)
            if member is not None:
                metadata = member.ranks[rank].checkpoint_metadata if rank < len(member.ranks) else None
            else:
                metadata = self._ask(WhereIs(rank), ItIsAt, wait_s).metadata
            if metadata is None:
                raise UsageError(f"rank {rank} of the group of {self._addr} has not been in a quorum so far")
            return metadata

    def should_commit(
        self,
        group_rank: int,
        step: int,
        should_commit: bool,
        timeout: timedelta,
    ) -> bool:
        """Whether the step counts, for all ranks of the group alike: if it does for each of them.

        Args:
            group_rank (int): Who votes.
            step (int): The step in question.
            should_commit (bool): Whether it does for this rank.
            timeout (timedelta): How long to wait for the others' votes.

        Raises:
            TimeoutError: not all ranks have voted in time.
            RuntimeError: another rank of the group has ended.
        """
        wait_s = seconds("timeout", timeout)
        with as_torchft_raises():
            return self._seat(group_rank).vote(_number("step", step), bool(should_commit), wait_s)

    def shutdown(self) -> None:
        """Leave the seats that were taken through this client; torchft has no such method."""
        group, taken = self._group, tuple(self._taken)
        if group is not None:
            leave_seats(group.run, *taken)

    def _seat(self, group_rank: int) -> Seat:
        group = self._describe()
        if _number("group_rank", group_rank) >= group.world_size:
            raise UsageError(
                f"group_rank {group_rank} of a group of {group.world_size}: ranks count from 0 and are less "
                "than the world_size of the ManagerServer"
            )
        self._taken.add(group_rank)
        return take_seat(group, group_rank, self._connect_timeout_s, become_member)

    def _describe(self) -> Described:
        with self._lock:
            if self._group is None:
                try:
                    self._group = self._ask(Describe(MANAGER_VERSION), Described, self._connect_timeout_s)
                except TimeoutError as error:
                    raise RuntimeError(
                        f"no manager answered at {self._addr} within {self._connect_timeout_s:g} s; is rank "
                        "0 of that replica group alive, and is this what its ManagerServer.address() says?"
                    ) from error
            return self._group

    def _ask(self, message: FromClient, kind: type[A], timeout_s: float) -> A:
        """On a connection of its own: it is done once or twice in a life."""
        transport = _connected(self._way)
        try:
            give_up_at = time.monotonic() + timeout_s
            while True:
                left_s = give_up_at - time.monotonic()
                if left_s <= 0:
                    transport.reconnect()  # drops what nobody took: closing need not wait for it
                    raise TimeoutError(f"the manager at {self._addr} did not answer within {timeout_s:g} s")
                transport.send(MANAGER.encode(message))
                transport.wait(min(RETRY_S, left_s))
                for frame in transport.receive(RECEIVE_MAX):
                    answer = _decoded(frame)
                    if isinstance(answer, kind):
                        return answer
        finally:
            transport.close()


def _connected(way: Way) -> ZmqMemberTransport:
    keys = way.keys.within_group() if way.keys else None
    return ZmqMemberTransport(way.address.host, way.address.port, keys)


def _decoded(frame: bytes) -> object:
    try:
        return MANAGER.decode(frame)
    except ProtocolError:  # of another version: the request times out and says so
        return None


def _number(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise UsageError(f"{name} is {value!r}; give a whole number, 0 or more")
    return value


def _short(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
        raise UsageError(f"{name} is {str(value)[:80]!r}; give text of at most {TEXT_CHARS_MAX} characters")
    return value
