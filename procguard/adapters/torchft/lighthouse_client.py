"""``LighthouseClient``: speaks for replicas by their name alone, as torchft's does.

A member of a ProcGuard job is a process with a token of its own, and a second process under the same name is
refused. Here the name is all there is: any client, in any process, may beat or ask for it. So the token is
derived from the name, and all those clients are one and the same member to the lighthouse. Nobody watches
over it: it lives as long as somebody beats, or waits in ``quorum``.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import timedelta
from functools import partial

from procguard.adapters.torchft.exceptions import as_torchft_raises, seconds
from procguard.adapters.torchft.results import Quorum, packed, quorum_of
from procguard.adapters.torchft.wiring import Way, way_to
from procguard.adapters.zmq import ZmqMemberTransport
from procguard.client.lighthouse_client import LighthouseClient as Conversation
from procguard.client.lighthouse_client import explain_unreachable
from procguard.client.membership import TOKEN_BYTES, this_process
from procguard.codec import encode
from procguard.env import parse_name
from procguard.errors import LighthouseUnreachable, UsageError
from procguard.messages import (
    Heartbeat,
    Hello,
    Incarnation,
    Participant,
    Phase,
    Rank,
    SnapshotRequest,
)
from procguard.messages import Quorum as FormedQuorum

HEARTBEAT_TIMEOUT = timedelta(seconds=5)
BEATS_PER_LEASE = 4
TEXT_CHARS_MAX = 4096
_NOBODY = Incarnation(0, 0)
"""Filled in once the lighthouse has given one."""


class LighthouseClient:
    """A connection to a lighthouse.

    Args:
        addr (str): The lighthouse's address, such as "http://host:29510".
        connect_timeout (timedelta): How long it may take to answer at first.

    Raises:
        RuntimeError: nobody answers there.
    """

    def __init__(self, addr: str, connect_timeout: timedelta) -> None:
        self.addr = addr
        self.connect_timeout = connect_timeout
        self._members: dict[str, _Member] = {}
        self._lock = threading.Lock()
        with as_torchft_raises():
            self._way = way_to(addr)
            _knock(self._way, seconds("connect_timeout", connect_timeout))
        self._end = weakref.finalize(self, _close_all, self._members)
        self._end.atexit = False  # a thread that still waits in ``quorum`` must not hold up the end

    def quorum(
        self,
        replica_id: str,
        timeout: timedelta,
        address: str | None = None,
        store_address: str | None = None,
        step: int | None = None,
        world_size: int | None = None,
        shrink_only: bool | None = None,
        data: dict[Hashable, object] | None = None,
    ) -> Quorum:
        """Take part in the next quorum and wait for it; counts as a heartbeat all the while.

        Args:
            replica_id (str): Who asks.
            timeout (timedelta): How long to wait.
            address, store_address (str): For the others to read.
            step (int): The step this replica is at.
            world_size (int): How many ranks it has; for the others to read.
            shrink_only (bool): Let no newcomer in.
            data (dict): For the others to read: what JSON can hold, 64 KiB at most.

        Returns:
            Quorum: Who trains together.

        Raises:
            TimeoutError: there was none in time; the message says what it waited for.
            RuntimeError: the lighthouse refused, or an argument cannot be sent.
        """
        with as_torchft_raises():
            wait_s = seconds("timeout", timeout)
            asks = Participant(
                replica_id=parse_name(replica_id),
                incarnation=_NOBODY,
                round=0,
                step=_count("step", step),
                committed_in=0,
                world_size=_count("world_size", world_size),
                address=_text("address", address),
                shrink_only=bool(shrink_only),
                commit_failures=0,
                data=packed(_text("store_address", store_address), data),
                ranks=(Rank("", ""),),
            )
            formed = self._member(replica_id).quorum(asks, wait_s)
        return quorum_of(formed, time.time_ns())

    def heartbeat(self, replica_id: str, timeout: timedelta = HEARTBEAT_TIMEOUT) -> None:
        """Say that this replica lives; one that had failed joins anew.

        Args:
            replica_id (str): Who lives.
            timeout (timedelta): How long the lighthouse may take to answer.

        Raises:
            TimeoutError: it did not answer.
            RuntimeError: it refused.
        """
        with as_torchft_raises():
            self._member(replica_id).beat(seconds("timeout", timeout))

    def _member(self, replica_id: str) -> _Member:
        with self._lock:
            if replica_id not in self._members:
                self._members[replica_id] = _Member(self._way, parse_name(replica_id))
            return self._members[replica_id]


class _Member:
    """One name, with a connection of its own; one call at a time."""

    def __init__(self, way: Way, replica_id: str) -> None:
        self._lock = threading.Lock()
        self._where = way.where
        self._joined = False
        self._round = 0
        hello = Hello(
            job_id=way.job_id,
            replica_id=replica_id,
            token=_token(way.job_id, replica_id),
            process=this_process(),
        )
        self._transport = _BeatsWhileItWaits(way)
        self._conversation = Conversation(self._transport, hello, way.where, on_reborn=lambda welcome: None)
        self._token = hello.token

    def quorum(self, asks: Participant, timeout_s: float) -> FormedQuorum:
        with self._lock:
            give_up_at = time.monotonic() + timeout_s
            if not self._joined:
                self._join(timeout_s)
            # Any client may ask for this name, so the clock counts the rounds: theirs must not be ours.
            self._round = max(self._round + 1, time.time_ns() // 1000)
            welcome = self._conversation.welcome
            self._transport.beat_every(
                welcome.settings.thread_heartbeat_timeout_s / BEATS_PER_LEASE,
                partial(self._heartbeat, asks.step),
            )
            try:
                asks = asks._replace(round=self._round, incarnation=welcome.incarnation)
                return self._conversation.quorum(asks, max(0.0, give_up_at - time.monotonic()))
            finally:
                self._transport.beat_no_more()

    def beat(self, timeout_s: float) -> None:
        """A Hello: it renews the lease, and unlike a heartbeat it is answered."""
        with self._lock:
            self._join(timeout_s)

    def close(self) -> None:
        with self._lock:
            self._conversation.close()

    def _join(self, timeout_s: float) -> None:
        try:
            self._conversation.join(timeout_s)
        except ConnectionError as error:
            raise TimeoutError(str(error)) from error
        self._joined = True

    def _heartbeat(self, step: int) -> bytes:
        incarnation = self._conversation.welcome.incarnation
        return encode(Heartbeat(self._token, incarnation, True, False, Phase.QUORUM, 0, step))


class _BeatsWhileItWaits(ZmqMemberTransport):
    """Whoever waits for an answer lives: it beats on the way it waits on."""

    def __init__(self, way: Way) -> None:
        super().__init__(way.address.host, way.address.port, way.keys)
        self._interval_s = 0.0
        self._beat: Callable[[], bytes] | None = None
        self._beat_at = 0.0

    def beat_every(self, interval_s: float, beat: Callable[[], bytes]) -> None:
        self._interval_s, self._beat, self._beat_at = interval_s, beat, 0.0

    def beat_no_more(self) -> None:
        self._beat = None

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        if self._beat is None:
            return super().wait(timeout_s, fds)
        now = time.monotonic()
        if now >= self._beat_at:
            self.send(self._beat())
            self._beat_at = now + self._interval_s
        return super().wait(min(timeout_s, self._beat_at - now), fds)


def _knock(way: Way, timeout_s: float) -> None:
    """Raise ``LighthouseUnreachable`` unless a lighthouse answers. Asks about a job that nobody has."""
    transport = ZmqMemberTransport(way.address.host, way.address.port, way.keys)
    try:
        transport.send(encode(SnapshotRequest(secrets.token_hex(TOKEN_BYTES))))
        give_up_at = time.monotonic() + timeout_s
        while not transport.receive(1):
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                transport.reconnect()  # drops what nobody took: closing need not wait for it
                raise LighthouseUnreachable(explain_unreachable(way.where, timeout_s, transport.explain()))
            transport.wait(left_s)
    finally:
        transport.close()


def _close_all(members: Mapping[str, _Member]) -> None:
    for member in members.values():
        member.close()


def _token(job_id: str, replica_id: str) -> bytes:
    name = f"torchft LighthouseClient\0{job_id}\0{replica_id}"
    return hashlib.sha256(name.encode()).digest()[:TOKEN_BYTES]


def _count(name: str, value: int | None) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise UsageError(f"{name} is {value!r}; give a whole number, 0 or more")
    return value


def _text(name: str, value: str | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
        raise UsageError(f"{name} is {str(value)[:80]!r}; give text of at most {TEXT_CHARS_MAX} characters")
    return value
