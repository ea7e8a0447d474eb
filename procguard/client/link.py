"""The link between a trainer and its listener: one end of a socket pair."""

from __future__ import annotations

import socket
import threading

import msgpack

from procguard.client.link_words import LINK, LinkMessage
from procguard.errors import ProtocolError

RECEIVE_BYTES = 1 << 16
BACKLOG_BYTES_MAX = 1 << 24


class Link:
    """One end. Sending never blocks for ever: a full socket means that the other end is stuck."""

    def __init__(self, end: socket.socket, send_timeout_s: float = 1.0) -> None:
        self._end = end
        self._end.settimeout(send_timeout_s)
        self._sending = threading.Lock()
        self._unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=BACKLOG_BYTES_MAX)

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: LinkMessage) -> bool:
        """False when the other end is gone or does not read."""
        try:
            with self._sending:
                self._end.sendall(LINK.encode(message))
        except OSError:
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
        self._unpacker.feed(chunk)
        try:
            return [LINK.check(array) for array in self._unpacker]
        except (ProtocolError, ValueError, msgpack.UnpackException):
            return None

    def close(self) -> None:
        self._end.close()


def link_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, neither inherited unless passed on."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
