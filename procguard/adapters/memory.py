"""The wire within one thread: what is sent has arrived, and nothing ever waits.

For tests of lighthouse and members together in virtual time, and for simulation: no socket, no clock, no
chance, so the same calls give the same order. Passes the contract suite of the real adapter. A network is
one lighthouse and its members; the line to a member can be cut and mended. The classes of this module
are one thing in three parts and use each other's underscored names; nobody else does.
"""

from __future__ import annotations

import itertools
import select
from collections import Counter, deque
from collections.abc import Iterable
from typing import TypeVar

from procguard.adapters.base import Aside, Frame, Inbound, Subscribed, Unsubscribed
from procguard.messages import ANSWER_BYTES_MAX, DEFAULT_PORT, FRAME_BYTES_MAX

QUEUE_COUNT_MAX = 1000
"""Of each member: frames to it, frames from it, and notices, that nobody has taken yet."""

T = TypeVar("T")


class MemoryNetwork:
    """Joins one lighthouse at a time and any number of members, which connect as soon as they can."""

    def __init__(self) -> None:
        self._lighthouse: MemoryLighthouse | None = None
        self._members: list[MemoryMember] = []
        self._peer_numbers = itertools.count(1)

    def lighthouse(self) -> MemoryLighthouse:
        """A lighthouse's end; after its ``close`` one can have another, as after a restart."""
        assert self._lighthouse is None, "a network has one lighthouse: close it first"
        self._lighthouse = MemoryLighthouse(self)
        for member in self._members:
            member._connect()
        return self._lighthouse

    def member(self) -> MemoryMember:
        """A member's end."""
        member = MemoryMember(self)
        self._members.append(member)
        member._connect()
        return member

    def cut(self, member: MemoryMember) -> None:
        """Take the line down until ``mend``. What was under way, in either direction, is lost; what the
        member sends from now on waits in its queue."""
        member._line_up = False
        if member._lighthouse is not None:
            member._lighthouse._lose_frames(member._peer)
        member._incoming.clear()
        member._notices.clear()
        member._disconnect()

    def mend(self, member: MemoryMember) -> None:
        """Put the line up again: a new connection, thus a new peer, on which arrives what has waited."""
        member._line_up = True
        member._connect()


class MemoryLighthouse:
    """The lighthouse's end."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._members: dict[bytes, MemoryMember] = {}
        self._arrived: deque[Inbound] = deque()
        self._holders: Counter[bytes] = Counter()

    @property
    def port(self) -> int:
        return DEFAULT_PORT

    @property
    def notice_port(self) -> int:
        return DEFAULT_PORT + 1

    def wait(self, timeout_s: float) -> None:
        """Returns at once: time stands still here."""

    def drain(self, count_max: int) -> list[Inbound]:
        taken = _take(self._arrived, count_max)
        for inbound in taken:
            if isinstance(inbound, Frame) and inbound.peer in self._members:
                self._members[inbound.peer]._unread_count -= 1
        return taken

    def send(self, peer: bytes, frame: bytes) -> bool:
        member = self._members.get(peer)
        return member is not None and len(frame) <= ANSWER_BYTES_MAX and _put(member._incoming, frame)

    def publish(self, frame: bytes) -> None:
        for member in self._members.values():
            if frame.startswith(member._heard_topics()):
                _put(member._notices, frame)

    def wake(self) -> None:
        """Nothing to do: no wait is ever under way."""

    def close(self) -> None:
        for member in list(self._members.values()):
            member._disconnect()
        if self._network._lighthouse is self:
            self._network._lighthouse = None

    def _lose_frames(self, peer: bytes) -> None:
        kept = [at for at in self._arrived if not (isinstance(at, Frame) and at.peer == peer)]
        self._arrived = deque(kept)

    def _hold(self, topics: Iterable[bytes]) -> None:
        for topic in topics:
            self._holders[topic] += 1
            if self._holders[topic] == 1:
                self._arrived.append(Subscribed(topic))

    def _release(self, topics: Iterable[bytes]) -> None:
        for topic in topics:
            self._holders[topic] -= 1
            if not self._holders[topic]:
                del self._holders[topic]
                self._arrived.append(Unsubscribed(topic))


class MemoryMember:
    """A member's end."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._line_up = True
        self._lighthouse: MemoryLighthouse | None = None
        self._peer = b""
        self._unread_count = 0
        self._unsent: deque[bytes] = deque()
        self._incoming: deque[bytes] = deque()
        self._notices: deque[bytes] = deque()
        self._notice_port = 0
        self._topics: tuple[bytes, ...] = ()

    def send(self, frame: bytes) -> bool:
        if len(frame) > FRAME_BYTES_MAX:
            return False
        if self._lighthouse is None:
            return _put(self._unsent, frame)
        if self._unread_count >= QUEUE_COUNT_MAX:
            return False
        self._unread_count += 1
        self._lighthouse._arrived.append(Frame(self._peer, frame))
        return True

    def send_aside(self, frame: bytes) -> bool:
        if self._lighthouse is None or not self._heard_topics():
            return self.send(frame)
        self._lighthouse._arrived.append(Aside(frame))
        return True

    def listen(self, notice_port: int, topics: Iterable[bytes]) -> None:
        before = self._heard_topics()
        self._notice_port, self._topics = notice_port, tuple(sorted(set(topics)))
        after = self._heard_topics()
        if self._lighthouse is not None:
            self._lighthouse._hold(topic for topic in after if topic not in before)
            self._lighthouse._release(topic for topic in before if topic not in after)

    def reconnect(self) -> None:
        self._unsent.clear()
        self._incoming.clear()
        self._notices.clear()
        self._disconnect()
        self._connect()

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        """Which of ``fds`` are readable now; returns at once."""
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        return [fd for fd, _ in poller.poll(0)]

    def receive(self, count_max: int) -> list[bytes]:
        return _take(self._incoming, count_max)

    def notices(self, count_max: int) -> list[bytes]:
        return _take(self._notices, count_max)

    def explain(self) -> str:
        """There are no keys here."""
        return ""

    def close(self) -> None:
        self._line_up = False
        self._disconnect()

    def _heard_topics(self) -> tuple[bytes, ...]:
        """The topics that arrive here: none before connecting, or at another port."""
        reached = self._lighthouse is not None and self._lighthouse.notice_port == self._notice_port
        return self._topics if reached else ()

    def _connect(self) -> None:
        lighthouse = self._network._lighthouse
        if lighthouse is None or self._lighthouse is not None or not self._line_up:
            return
        self._lighthouse = lighthouse
        self._peer = b"\0" + next(self._network._peer_numbers).to_bytes(4, "big")
        lighthouse._members[self._peer] = self
        lighthouse._hold(self._heard_topics())
        self._unread_count = 0
        for frame in _take(self._unsent, QUEUE_COUNT_MAX):
            self.send(frame)

    def _disconnect(self) -> None:
        lighthouse = self._lighthouse
        if lighthouse is not None:
            lighthouse._release(self._heard_topics())
            del lighthouse._members[self._peer]
            self._lighthouse = None


def _put(queue: deque[bytes], frame: bytes) -> bool:
    if len(queue) >= QUEUE_COUNT_MAX:
        return False
    queue.append(frame)
    return True


def _take(queue: deque[T], count_max: int) -> list[T]:
    return [queue.popleft() for _ in range(min(count_max, len(queue)))]
