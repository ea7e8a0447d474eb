"""The link between a trainer and its listener: a socket pair and the few words said on it.

Both ends are on one machine and of one version, yet the words pass the same codec as the wire: a listener must
not be confused by a half-written message of a trainer that died in the middle of it.
"""

from __future__ import annotations

import socket
import threading
from typing import NamedTuple

import msgpack

from procguard.codec import Codec
from procguard.errors import ProtocolError
from procguard.messages import (
    Cause,
    Hello,
    Incarnation,
    Notice,
    QuorumClaim,
    QuorumId,
    Settings,
    Text,
)

LINK_VERSION = 1
RECEIVE_BYTES = 1 << 16
BACKLOG_BYTES_MAX = 1 << 24


class Enrol(NamedTuple):
    """Trainer: beat for this incarnation (``hello.claim``) and hear what comes after ``seq``."""

    hello: Hello
    notice_port: int
    seq: int
    settings: Settings


class InQuorum(NamedTuple):
    """Trainer: this is the last quorum I was in, should a restarted lighthouse ask."""

    epoch: int
    quorum: QuorumClaim


class LastWords(NamedTuple):
    """Trainer: an uncaught exception is about to end me."""

    text: Text


class Farewell(NamedTuple):
    """Trainer: I have left, or another watches me now; go."""


class Ready(NamedTuple):
    """Listener: subscribed, beating, and nothing is missed from here on."""


class Heard(NamedTuple):
    """Listener: these members are over."""

    notices: tuple[Notice, ...]


class Over(NamedTuple):
    """Listener: your own incarnation is over."""

    incarnation: Incarnation
    cause: Cause


class LeftOut(NamedTuple):
    """Listener: a quorum formed without you."""

    quorum_id: QuorumId


class Said(NamedTuple):
    """Listener: a line for the trainer's log; it has no output of its own."""

    level: int
    text: Text


FromTrainer = Enrol | InQuorum | LastWords | Farewell
FromListener = Ready | Heard | Over | LeftOut | Said
LinkMessage = FromTrainer | FromListener

LINK: Codec[LinkMessage] = Codec(
    LINK_VERSION,
    {
        1: Enrol,
        2: InQuorum,
        3: LastWords,
        4: Farewell,
        32: Ready,
        33: Heard,
        34: Over,
        35: LeftOut,
        36: Said,
    },  # fmt: skip
)


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
