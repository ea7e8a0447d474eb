"""Who knocked at the lighthouse's port and was no member, as far as libzmq's socket monitor tells.

It names a connection (by its fd) when it is accepted and when it ends, but not when its handshake succeeds
or fails, and of one whose first byte is already wrong it says neither. It tells no peer's address and
nothing of what was sent. So: a connection that ends with no success since it was accepted has failed. The
success of another in between hides it, which costs a line in a log and never blames a member.

Whose key is refused is the doorkeeper's to tell, who knows the key. The other end is not told why it was
turned away, but can see enough to guess: ``why_refused`` looks.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

import zmq

from procguard.adapters.zmq_keys import VARIABLE, MemberKeys, fingerprint
from procguard.adapters.zmq_sockets import (
    CLIENT,
    HANDSHAKE_MS,
    Context,
    Options,
    Socket,
    endpoint,
    open_socket,
)

_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)
_ADDRESS = "inproc://handshakes"
_LOOK_S = 1.0


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

    def __init__(self, port: int, notice_port: int, *, with_keys: bool = False) -> None:
        self._port = port
        self._notice_port = notice_port
        self._with_keys = with_keys
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
            return None if number == zmq.EVENT_HANDSHAKE_FAILED_AUTH else self._failed(number, value)
        return None

    def _mixed_up(self) -> str:
        return (
            f"something that is no ProcGuard member was turned away from port {self._port}: an HTTP or gRPC"
            " client? The HTTP API and the dashboard are on the guard's own port,"
            f" notices on port {self._notice_port}"
        )

    def _failed(self, number: int, value: int) -> str:
        if number != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return f"a ZeroMQ peer was turned away from port {self._port}: {self._other_keys(value)}"
        if value == errno.EAGAIN:
            return (
                f"a connection to port {self._port} was closed as it said nothing for"
                f" {HANDSHAKE_MS / 1000:g} s: something other than a ProcGuard member?"
            )
        member = (
            f"{VARIABLE} is not set" if self._with_keys else f"{VARIABLE} is set, though no key is asked for"
        )
        return (
            f"a connection to port {self._port} ended before it said what it is: a health check, a port scan,"
            f" a member whose {member}, or one that died just then?"
        )

    def _other_keys(self, value: int) -> str:
        if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            if self._with_keys:
                return f"it has no key: a member whose {VARIABLE} is not set?"
            return (
                f"it has a key, but nobody asks for one here: --keys forgotten, or its {VARIABLE} too much?"
            )
        if value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
            return f"a member of another lighthouse, by its key: does its {VARIABLE} name the right file?"
        return "no ProcGuard member?"


def why_refused(host: str, port: int, keys: MemberKeys | None) -> str:
    """Connect once more, with an eye on the handshake; empty where it is not keys that are wrong."""
    mechanism, address = _mechanism(host, port)
    if mechanism == _WITH_KEYS and keys is None:
        return (
            f"a key is asked for there, and this process has none: set {VARIABLE} to the key file that "
            "`procguard keys` made for it"
        )
    if mechanism == _WITHOUT and keys is not None:
        return (
            f"no key is asked for there, and {VARIABLE} names one ({keys.origin}): start the lighthouse with "
            f"--keys, or unset {VARIABLE}"
        )
    if mechanism != _WITH_KEYS or keys is None:
        return ""
    mine = f"{keys.role} {keys.name}, {fingerprint(keys.public)}, of {keys.origin}"
    outcome = _outcome(address, port, keys)
    if outcome == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return (
            f"our key is refused there ({mine}): it was never listed, or was revoked; "
            f"`procguard keys list` shows who is, and {VARIABLE} names our file"
        )
    if outcome == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return (
            f"who serves there holds another key than the one that ours was made for ({mine}): does "
            f"{VARIABLE} name the right file?"
        )
    return ""


_WITH_KEYS, _WITHOUT = b"CURVE", b"NULL"
_GREETING_BYTES = 64
_GREETING_BEGINS = b"\xff" + bytes(7) + b"\x01\x7f\x03\x00"
"""Signature and version of ZMTP 3.0; on these a server says the rest of its own, the mechanism with it."""
_MECHANISM = slice(12, 32)


def _mechanism(host: str, port: int) -> tuple[bytes, str]:
    """By which rules of ZMTP a server lets others in, empty when it does not say; and its IP address."""
    greeting, address = b"", ""
    with suppress(OSError), socket.create_connection((host, port), timeout=_LOOK_S) as probe:
        address = str(probe.getpeername()[0])
        probe.sendall(_GREETING_BEGINS)
        while len(greeting) < _GREETING_BYTES and (more := probe.recv(_GREETING_BYTES - len(greeting))):
            greeting += more
    return greeting[_MECHANISM].rstrip(b"\0"), address


def _outcome(address: str, port: int, keys: MemberKeys) -> int:
    """The first thing that comes of a handshake; 0: nothing in time."""
    ipv6: Options = {zmq.IPV6: int(":" in address)}
    context: Context = zmq.Context(io_threads=1)
    dealer = open_socket(context, zmq.DEALER, CLIENT | ipv6, keys.client_options())
    monitor = dealer.get_monitor_socket(_OUTCOMES)
    try:
        dealer.connect(endpoint(address, port))
        if not monitor.poll(int(_LOOK_S * 1000)):
            return 0
        number: int = struct.unpack("=Hi", monitor.recv_multipart()[0])[0]
        return number
    except zmq.ZMQError:
        return 0
    finally:
        dealer.disable_monitor()
        context.destroy(linger=0)


_OUTCOMES = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
