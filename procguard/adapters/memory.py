"""The wire within one thread: what is sent has arrived, and nothing ever waits.

For tests of lighthouse and members together in virtual time, and for simulation: no socket, no clock, no
chance, so the same calls give the same order. Passes the contract suite of the real adapter. A network is
one lighthouse and its members; the line to a member can be cut and mended.
"""

from __future__ import annotations

import select
from collections import Counter, deque
from collections.abc import Iterable

from procguard.adapters.base import Frame, Inbound, Subscribed, Unsubscribed
from procguard.messages import ANSWER_BYTES_MAX, DEFAULT_PORT, FRAME_BYTES_MAX

QUEUE_COUNT_MAX = 1000
"""Of each member: frames to it, frames from it, and notices, that have not been taken yet."""


class _Line:
    """What lies between one member and the lighthouse. ``peer`` is None while not connected."""

    def __init__(self) -> None:
        self.up = True
        self.peer: bytes | None = None
        self.unsent: deque[bytes] = deque()
        self.frames: deque[bytes] = deque()
        self.notices: deque[bytes] = deque()
        self.notice_port = 0
        self.topics: tuple[bytes, ...] = ()


class MemoryNetwork:
    """Joins one lighthouse at a time and any number of members, which connect as soon as they can."""

    def __init__(self) -> None:
        self._lighthouse: MemoryLighthouse | None = None
        self._lines: list[_Line] = []
        self._peer_count = 0

    def lighthouse(self) -> MemoryLighthouse:
        """A lighthouse's end; after its ``close`` one can have another, as after a restart."""
        assert self._lighthouse is None, "a network has one lighthouse: close it first"
        self._lighthouse = MemoryLighthouse(self)
        for line in self._lines:
            self._connect(line)
        return self._lighthouse

    def member(self) -> MemoryMember:
        """A member's end."""
        line = _Line()
        self._lines.append(line)
        self._connect(line)
        return MemoryMember(self, line)

    def cut(self, member: MemoryMember) -> None:
        """Take the line down until ``mend``. What was under way, in either direction, is lost; what the
        member sends from now on waits in its queue."""
        line = member._line
        if self._lighthouse is not None and line.peer is not None:
            self._lighthouse._lose(line.peer)
        line.frames.clear()
        line.notices.clear()
        line.up = False
        self._disconnect(line)

    def mend(self, member: MemoryMember) -> None:
        """Put the line up again: a new connection, thus a new peer, on which arrives what has waited."""
        member._line.up = True
        self._connect(member._line)

    def _connect(self, line: _Line) -> None:
        if self._lighthouse is None or not line.up or line.peer is not None:
            return
        self._peer_count += 1
        line.peer = b"\0" + self._peer_count.to_bytes(4, "big")
        self._lighthouse._attach(line.peer, line)
        while line.unsent:
            self._lighthouse._arrive(line.peer, line.unsent.popleft())

    def _disconnect(self, line: _Line) -> None:
        if self._lighthouse is not None and line.peer is not None:
            self._lighthouse._detach(line.peer)
        line.peer = None

    def _send(self, line: _Line, frame: bytes) -> bool:
        if self._lighthouse is not None and line.peer is not None:
            return self._lighthouse._arrive(line.peer, frame)
        return _put(line.unsent, frame)

    def _listen(self, line: _Line, notice_port: int, topics: Iterable[bytes]) -> None:
        left = line.topics
        line.notice_port = notice_port
        line.topics = tuple(sorted(set(topics)))
        if self._lighthouse is not None and line.peer is not None:
            self._lighthouse._count_topics(line)
        ...

    def _remove_member(self, line: _Line) -> None:
        self._disconnect(line)
        self._lines.remove(line)
