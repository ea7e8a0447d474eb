"""Who knocked at the lighthouse's port and was no member, as far as libzmq's socket monitor tells.

It names a connection (by its fd) when it is accepted and when it ends, but not when its handshake succeeds
or fails, and of one whose first byte is already wrong it says neither. It tells no peer's address and
nothing of what was sent. So: a connection that ends with no success since it was accepted has failed. The
success of another in between hides it, which costs a line in a log and never blames a member.
"""

from __future__ import annotations

import errno
import struct

import zmq

from procguard.adapters.zmq_sockets import HANDSHAKE_MS, Context, Socket

_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)
_ADDRESS = "inproc://handshakes"


def watch_handshakes(context: Context, server: Socket) -> Socket:
    """The socket on which the monitor of ``server`` speaks."""
    server.monitor(_ADDRESS, _EVENTS)
    monitor = context.socket(zmq.PAIR)
    # No bound, unlike every other queue: at one, libzmq's only I/O thread would block, and close with it.
    monitor.set(zmq.RCVHWM, 0)
    monitor.connect(_ADDRESS)
    return monitor


class Handshakes:
    """Follows the monitor's events and finds the connections that never became a member's."""

    def __init__(self, port: int, notice_port: int) -> None:
        self._port = port
        self._notice_port = notice_port
        self._fresh: set[int] = set()
        self._explained = False

    def failure(self, event: bytes) -> str | None:
        """What to tell the operator, if this event is the last word on a connection that failed.

        Args:
            event: the monitor's first part: 16 bits of event number, 32 of a value (an fd, or an error).
        """
        number, value = struct.unpack("=Hi", event)
        if number == zmq.EVENT_ACCEPTED:
            self._fresh.add(value)
        elif number == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._fresh.clear()
        elif number == zmq.EVENT_DISCONNECTED:
            unexplained = value in self._fresh and not self._explained
            self._fresh.discard(value)
            self._explained = False
            return self._mixed_up() if unexplained else None
        else:
            self._explained = True  # the same connection's DISCONNECTED comes next
            return self._failed(number, value)
        return None

    def _mixed_up(self) -> str:
        return (
            f"something that is no ProcGuard member was turned away from port {self._port}: an HTTP or gRPC"
            " client? The HTTP API and the dashboard are on the guard's own port,"
            f" notices on port {self._notice_port}"
        )

    def _failed(self, number: int, value: int) -> str:
        if number != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return (
                f"a ZeroMQ peer was turned away from port {self._port}: no ProcGuard member,"
                " or one with other keys?"
            )
        if value == errno.EAGAIN:
            return (
                f"a connection to port {self._port} was closed as it said nothing for"
                f" {HANDSHAKE_MS / 1000:g} s: something other than a ProcGuard member?"
            )
        return (
            f"a connection to port {self._port} ended before it said what it is:"
            " a health check, a port scan, or a member that died just then?"
        )
