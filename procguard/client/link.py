"""The link between a trainer and its listener: one end of a socket pair.

An end that does not read is as good as gone, and a message of which only a part went out garbles all that
follow. So a ``send`` that fails ends the link, in both directions, and both sides see its end.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Protocol

import msgpack

from procguard.client.link_words import LINK, LinkMessage
from procguard.errors import ProtocolError

RECEIVE_BYTES = 1 << 16
BACKLOG_BYTES_MAX = 1 << 24
SEND_TIMEOUT_S = 1.0
"""Without any room in the socket for so long, the other end is stuck."""


class LinkEnd(Protocol):
    """One end, however it is made."""

    def fileno(self) -> int:
        """To poll for reading."""
        ...

    def send(self, message: LinkMessage) -> bool:
        """False when the link is over: the other end has gone, or did not read."""
        ...

    def receive(self) -> list[LinkMessage] | None:
        """What has come, once ``fileno`` is readable; None at the end of the link."""
        ...

    def close(self) -> None:
        """End the link, in both directions."""
        ...


class Link:
    """One end over a socket. Any thread may send, one receives."""

    def __init__(self, end: socket.socket, send_timeout_s: float = SEND_TIMEOUT_S) -> None:
        self._end = end
        self._end.settimeout(send_timeout_s)
        self._sending = threading.Lock()
        self._unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=BACKLOG_BYTES_MAX)

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: LinkMessage) -> bool:
        """False when the link is over: the other end has gone, or did not read."""
        with self._sending:
            try:
                self._end.sendall(LINK.encode(message))
            except OSError:
                with suppress(OSError):  # not connected any more: then it is over already
                    self._end.shutdown(socket.SHUT_RDWR)
                return False
        return True

    def receive(self) -> list[LinkMessage] | None:
        """What has come, once ``fileno`` is readable; None at the end of the link."""
        try:
            chunk = self._end.recv(RECEIVE_BYTES)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not chunk:
            return None
        try:
            self._unpacker.feed(chunk)
            return [LINK.check(array) for array in self._unpacker]
        except (ProtocolError, ValueError, msgpack.UnpackException):
            return None

    def close(self) -> None:
        self._end.close()


def link_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, neither inherited unless passed on."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
