"""What the ring's connections are made of: places, sockets and the greeting that opens a connection.

``Place`` says who sits where. ``own`` and ``close_link`` are the only way in and out for a socket, so that
no process forked or spawned meanwhile can keep a connection of a dead rank alive. The greeting is one fixed
header in each direction: HELLO from the connecting side, WELCOME or REFUSE from the other.

Nothing here waits or decides; that is ``collective_rendezvous``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import weakref
from enum import IntEnum
from typing import NamedTuple

from procguard.adapters.process_group import Place
from procguard.errors import ProtocolError, UsageError

VERSION = 1
_MAGIC = b"PGRING\r\n"
_GREETING = struct.Struct("!8sHHqii")  # magic, version, kind, quorum id, rank, world size
_BACKLOG = 128
_WAKE_BYTES_MAX = 4096


class RingPlace(Place):
    """One rank's place in the ring of one quorum."""

    @property
    def successor(self) -> int:
        return (self.rank + 1) % self.world_size

    @property
    def predecessor(self) -> int:
        return (self.rank - 1) % self.world_size

    def name(self, rank: int) -> str:
        return f"rank {rank} ({self.handles[rank]})"


class Links(NamedTuple):
    """The two connections of a rank: data comes from the predecessor and goes to the successor."""

    predecessor: socket.socket
    successor: socket.socket


def split_handle(handle: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as host and port; ``UsageError`` if it is neither."""
    host, _, port = handle.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"handle {handle!r} is not host:port; use what handle() of that rank returned")
    return host.removeprefix("[").removesuffix("]"), int(port)


# A forked child (a data loader) holds copies of all sockets, and while it lives no peer would see the death
# of its parent: so it closes its copies right after the fork. Weak, because a closed socket may just vanish.
_owned: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def own(sock: socket.socket) -> socket.socket:
    """Make ``sock`` non-blocking, and closed in forked children (exec closes Python's sockets anyway)."""
    sock.setblocking(False)
    _owned.add(sock)
    return sock


def _close_inherited() -> None:
    for sock in list(_owned):
        sock.close()


os.register_at_fork(after_in_child=_close_inherited)


def close_link(sock: socket.socket) -> None:
    """Close for good: the peer sees the end even while a process being spawned holds a copy."""
    with contextlib.suppress(OSError):  # never connected, or the peer was first
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def open_listener(port: int) -> socket.socket:
    """A listening socket on all addresses, of IPv6 and IPv4 where the machine has both."""
    if socket.has_dualstack_ipv6():
        try:
            family = socket.AF_INET6
            return own(socket.create_server(("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=True))
        except OSError:
            pass  # IPv6 is compiled in but switched off; if it was the port, the next line says so
    try:
        return own(socket.create_server(("", port), backlog=_BACKLOG))
    except OSError as error:
        raise UsageError(f"cannot listen on port {port} ({error.strerror}); choose another, or 0") from error


def drain(wake: socket.socket) -> None:
    """Take the wake-up calls that have come; what they are about is read from the state, not from them."""
    with contextlib.suppress(BlockingIOError):
        wake.recv(_WAKE_BYTES_MAX)


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSE = 3


class Greeting(NamedTuple):
    version: int
    kind: int
    quorum_id: int
    rank: int
    world_size: int


def greet(sock: socket.socket, kind: Kind, place: Place) -> None:
    """Send a greeting; one always fits into the empty send buffer of a new connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.send(_GREETING.pack(_MAGIC, VERSION, kind, place.quorum_id, place.rank, place.world_size))


class Ear:
    """Hears one greeting, byte by byte if it has to."""

    def __init__(self) -> None:
        self._heard = bytearray()

    def listen(self, sock: socket.socket) -> Greeting | None:
        """The greeting once it is complete. ``ProtocolError``: it is none; ``OSError``: the peer closed."""
        try:
            piece = sock.recv(_GREETING.size - len(self._heard))
        except BlockingIOError:
            return None
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "connection closed before an answer")
        self._heard += piece
        if not _MAGIC.startswith(self._heard[: len(_MAGIC)]):
            raise ProtocolError("not a ProcGuard process group")
        if len(self._heard) < _GREETING.size:
            return None
        return Greeting(*_GREETING.unpack(self._heard)[1:])
