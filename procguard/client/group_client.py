"""A rank's talk with its group's server: blocking calls, repeated until they are answered.

The server may be replaced by another at another address at any time (``Group``). So a request that is not
answered for a while is followed by a look at the lighthouse for where the server is now. One call at a time,
from any thread; ``lost`` ends it, from any thread too.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from procguard.adapters.base import MemberTransport
from procguard.client.group_words import (
    GROUP,
    GroupFormed,
    GroupMessage,
    GroupWaiting,
    RankAsks,
    Verdict,
    Vote,
)
from procguard.client.requests import describe_wait
from procguard.errors import ProtocolError, QuorumTimeout, ReplicaGroupLost, UsageError
from procguard.messages import Incarnation, Participant

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 0.25
LOOKUP_AFTER = 2
"""Times that a request goes unanswered before the lighthouse is asked where the server is now."""
LOOKUP_TIMEOUT_S = 1.0
RECEIVE_MAX = 100
WAKES_MAX = 4096

A = TypeVar("A", GroupFormed, Verdict)


class GroupClient:
    """One rank's end.

    Args:
        name: of the group, in error messages.
        lookup: asks the lighthouse where the group's server is, for so many seconds; None: nobody knows yet.
        connect: opens a connection to a host and port.
    """

    def __init__(
        self,
        name: str,
        group_rank: int,
        lookup: Callable[[float], tuple[str, int] | None],
        connect: Callable[[str, int], MemberTransport],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._name = name
        self._group_rank = group_rank
        self._lookup = lookup
        self._connect = connect
        self._clock = clock
        self._pause = pause
        self._lock = threading.Lock()
        self._where: tuple[str, int] | None = None
        self._transport: MemberTransport | None = None
        self._last: Verdict | None = None
        self._waiting: GroupWaiting | None = None
        self._loss: Exception | None = None
        self._wake_read, self._wake_write = socket.socketpair()

    def quorum(self, asks: Participant, epoch: int, timeout_s: float) -> GroupFormed:
        """Ask, with the other ranks, to take part in the next quorum.

        Raises:
            QuorumTimeout: there was none in time; says what was missing.
            ReplicaGroupLost: another rank has ended.
        """
        give_up_at = self._clock() + timeout_s
        with self._lock:
            self._waiting = None

            def request() -> RankAsks:
                ttl_s = max(0.0, give_up_at - self._clock())
                return RankAsks(self._group_rank, ttl_s, epoch, asks, self._last)

            def answers(message: GroupMessage) -> GroupFormed | None:
                if not isinstance(message, GroupFormed) or message.epoch < epoch:
                    return None
                return message if message.round == asks.round else None

            formed = self._talk(request, answers, give_up_at)
        if formed is None:
            raise QuorumTimeout(f"no quorum within {timeout_s:g} s: {self._describe_wait()}")
        return formed

    def vote(self, incarnation: Incarnation, round: int, commits: bool, timeout_s: float) -> bool:
        """Say whether the step of this round is complete here; whether it counts for the group.

        Raises:
            ReplicaGroupLost: another rank has ended, or there was no verdict in time.
        """
        vote = Vote(self._group_rank, incarnation, round, commits)

        def answers(message: GroupMessage) -> Verdict | None:
            if not isinstance(message, Verdict) or message.incarnation != incarnation:
                return None
            return message if message.round == round else None

        with self._lock:
            verdict = self._talk(lambda: vote, answers, self._clock() + timeout_s)
            if verdict is None:
                raise ReplicaGroupLost(
                    f"the ranks of replica {self._name} did not all vote on a step within {timeout_s:g} s: "
                    "restart the group"
                )
            self._last = verdict
        return verdict.commits

    def lost(self, error: Exception) -> None:
        """End every call, present and future, with this error."""
        if self._loss is None:
            self._loss = error
            with suppress(OSError):  # closed already
                self._wake_write.send(b"x")

    def close(self) -> None:
        """Close the connection; a call in progress ends first."""
        self.lost(UsageError("this Manager is shut down"))
        with self._lock:
            if self._transport is not None:
                self._transport.close()
            self._wake_read.close()
            self._wake_write.close()

    def _talk(
        self,
        request: Callable[[], GroupMessage],
        answers: Callable[[GroupMessage], A | None],
        give_up_at: float,
    ) -> A | None:
        """Repeat the request until one of its answers comes, or time is over (None)."""
        retry_s, retry_at, unanswered = RETRY_FIRST_S, self._clock(), 0
        while True:
            if self._loss is not None:
                raise self._loss
            now = self._clock()
            if now >= give_up_at:
                return None
            if self._transport is None or unanswered >= LOOKUP_AFTER:
                self._find(min(LOOKUP_TIMEOUT_S, give_up_at - now))
                unanswered = 0
            if self._transport is None:
                self._pause(RETRY_FIRST_S)
                continue
            if now >= retry_at:
                self._transport.send(GROUP.encode(request()))
                unanswered += 1
                retry_at = self._clock() + retry_s
                retry_s = min(2 * retry_s, RETRY_LAST_S)
            for message in self._receive(self._transport, min(retry_at, give_up_at) - self._clock()):
                unanswered = 0
                if isinstance(message, GroupWaiting):
                    self._waiting = message
                answer = answers(message)
                if answer is not None:
                    return answer

    def _find(self, timeout_s: float) -> None:
        """Connect to where the server is now, if that is known and not where we are connected."""
        where = self._lookup(timeout_s)
        if where is None:
            return
        if self._transport is not None and where == self._where:
            self._transport.reconnect()
            return
        if self._transport is not None:
            self._transport.close()
        self._where, self._transport = where, self._connect(*where)

    def _receive(self, transport: MemberTransport, timeout_s: float) -> list[GroupMessage]:
        if transport.wait(max(0.0, timeout_s), (self._wake_read.fileno(),)):
            self._wake_read.recv(WAKES_MAX)
        messages = []
        for frame in transport.receive(RECEIVE_MAX):
            with suppress(ProtocolError):  # of another version: the request times out and says so
                messages.append(GROUP.decode(frame))
        return messages

    def _describe_wait(self) -> str:
        waiting = self._waiting
        if waiting is None:
            keys = self._transport.explain() if self._transport else ""
            why = f": {keys}; all ranks of a replica use the same key" if keys else ""
            return f"rank 0 of replica {self._name} did not answer{why}"
        if waiting.ranks:
            missing = ", ".join(map(str, waiting.ranks))
            return f"waiting for ranks {missing} of replica {self._name}"
        return describe_wait(waiting.waiting)
