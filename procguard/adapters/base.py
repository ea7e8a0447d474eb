"""The two ends of the wire, as the lighthouse and a member see them.

One interface, two adapters: ``adapters/zmq`` for real, ``adapters/memory`` for tests and simulation. Both
pass one contract suite (tests/adapters/test_contract.py). Frames are opaque bytes here: what they mean is
the codec's affair, what to do about them the cores'.

What every adapter promises:

- Frames of one connection arrive in order, whole, or not at all; a lost connection may lose frames silently.
- A peer's address is chosen by the transport, never by the peer, and is not used again for another one
  while the first is known.
- ``send`` and ``publish`` never block. ``send`` says False when the frame was dropped: the peer is gone or
  does not read. ``publish`` is allowed to lose.
- The publishing side is told of each subscription, and of its end when the last connection holding it ends.
- Every queue is bounded. No frame of a peer can make any call here raise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Frame(NamedTuple):
    """Bytes from a member's connection."""

    peer: bytes
    payload: bytes


class Aside(NamedTuple):
    """Bytes that came up the notice connection, on which nothing can be answered."""

    payload: bytes


class OperatorFrame(NamedTuple):
    """Bytes from a connection that has proved to hold this operator's key."""

    peer: bytes
    payload: bytes
    operator: str


class Subscribed(NamedTuple):
    """The first connection subscribed to this topic."""

    topic: bytes


class Unsubscribed(NamedTuple):
    """No connection subscribes to this topic any longer: closed, or lost."""

    topic: bytes


class HandshakeFailed(NamedTuple):
    """Something connected that does not speak our protocol, an HTTP client for example."""

    text: str


class KeyRefused(NamedTuple):
    """Something with a key that is not, or no longer, on the allow-list, and was not listened to."""

    counter: str
    """What kind of thing is counted."""
    text: str
    """Who it was, for one line in a log."""


class KeysRead(NamedTuple):
    """The allow-list has changed; ``text`` says how, or what was wrong with it."""

    text: str


Inbound = Frame | Aside | OperatorFrame | Subscribed | Unsubscribed | HandshakeFailed | KeyRefused | KeysRead


class LighthouseTransport(Protocol):
    """The lighthouse's end."""

    @property
    def port(self) -> int:
        """Where members connect."""
        ...

    @property
    def notice_port(self) -> int:
        """Where listeners subscribe."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return as soon as something can be drained, ``wake`` was called, or the time is over."""
        ...

    def drain(self, count_max: int) -> list[Inbound]:
        """What has arrived, oldest first for each connection, at most ``count_max``. Never blocks.

        With keys this also is where newcomers are let in.
        """
        ...

    def send(self, peer: bytes, frame: bytes) -> bool:
        """Hand a frame to a peer; False when it was dropped."""
        ...

    def publish(self, frame: bytes) -> None:
        """Hand a frame to all whose subscription is a prefix of it."""
        ...

    def wake(self) -> None:
        """End a ``wait`` from a signal handler or another thread."""
        ...

    def close(self) -> None:
        """Close, after giving what was sent a bounded time to get out. Idempotent."""
        ...


class RankServer(Protocol):
    """The place at which rank 0 of a replica group serves the others."""

    @property
    def address(self) -> str:
        """Where the ranks reach it, as ``host:port``."""
        ...

    def fileno(self) -> int:
        """To poll for reading. It signals changes only: wait on it after ``has_input`` has said False."""
        ...

    def has_input(self) -> bool:
        """Whether there is something to drain."""
        ...

    def drain(self, count_max: int) -> list[Frame]:
        """What has arrived, oldest first for each connection, at most ``count_max``. Never blocks."""
        ...

    def send(self, peer: bytes, frame: bytes) -> bool:
        """Hand a frame to a rank; False when it was dropped."""
        ...

    def close(self) -> None:
        """Close, after giving what was sent a bounded time to get out. Idempotent."""
        ...


class MemberTransport(Protocol):
    """A member's end: one connection to talk on, and on demand one to hear notices."""

    def send(self, frame: bytes) -> bool:
        """Queue a frame for the lighthouse, connected or not; False when the bounded queue is full."""
        ...

    def send_aside(self, frame: bytes) -> bool:
        """``send`` by another way, if there is one: up the connection on which notices come down.

        A packet that is lost holds up what was sent after it in the same connection, not in the other.
        For what wants no answer. False when it was dropped.
        """
        ...

    def listen(self, notice_port: int, topics: Iterable[bytes]) -> None:
        """Subscribe to exactly these topics at the host's ``notice_port``, leaving earlier ones."""
        ...

    def reconnect(self) -> None:
        """Drop the connection and everything queued on it, and connect afresh."""
        ...

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        """Return when a frame or notice can be received, one of ``fds`` is readable, or the time is
        over. Returns those of ``fds`` that are readable (or at their end)."""
        ...

    def receive(self, count_max: int) -> list[bytes]:
        """Frames from the lighthouse, oldest first. Never blocks."""
        ...

    def notices(self, count_max: int) -> list[bytes]:
        """Published frames, topic included, oldest first. Never blocks."""
        ...

    def explain(self) -> str:
        """Why nobody answers, should it be for want of the right key; else empty. May take a second."""
        ...

    def close(self) -> None:
        """Close, after giving what was sent a bounded time to get out. Idempotent."""
        ...
