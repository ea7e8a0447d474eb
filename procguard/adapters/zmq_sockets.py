"""How our ZeroMQ sockets are opened and bound: every option and limit, in one place.

libzmq's defaults lose silently, grow without a bound or hang at exit, so each that matters is set on
purpose. Nothing here knows what the sockets are used for.
"""

from __future__ import annotations

import errno
import math
import resource
import socket
from contextlib import suppress
from typing import NamedTuple

import zmq

from procguard.errors import UsageError
from procguard.messages import ANSWER_BYTES_MAX, FRAME_BYTES_MAX

LINGER_MS = 1000
"""How long a close may take to get the last messages out."""
HANDSHAKE_MS = 5000
CONNECT_TIMEOUT_MS = 2000
RECONNECT_MS = 20
RECONNECT_MS_MAX = 250
BACKLOG_COUNT = 4096
"""Connections waiting to be accepted: a whole fleet comes back at once after a restart."""
PEER_QUEUE_COUNT_MAX = 128
"""Frames held at the lighthouse of, and for, each member. Few, as each may be FRAME_BYTES_MAX long."""
MEMBER_QUEUE_COUNT_MAX = 1000
NOTICE_QUEUE_COUNT_MAX = 250
"""Notices held for each listener that does not read; it loses what comes beyond, and asks for a resync. So
many fit the first piece of memory that libzmq takes for a queue: a thousand who never read cost 16 MiB."""
SUBSCRIPTION_BYTES_MAX = ASIDE_BYTES_MAX = 2048
"""What a listener can say on the connection on which it hears notices."""
CURVE_BYTES = 33
"""What encryption adds to each frame."""
OPEN_FILES_MAX = 1 << 16
WAIT_S_MAX = 3600.0
PORT_MAX = (1 << 16) - 1
_ZERO_COPY_RECV = 10
"""An option of libzmq's contexts since 4.3.0, for which pyzmq has no name."""

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]
Options = dict[int, int | bytes]

EVERY_SOCKET: Options = {
    zmq.LINGER: LINGER_MS,
    zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
    # A machine that vanished is noticed within 25 s, also while data for it is unacknowledged (MAXRT).
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 25_000,
}
SERVER: Options = {
    zmq.BACKLOG: BACKLOG_COUNT,
    # A domain that nobody serves changes nothing for our peers. It keeps out those older than ZMTP 3,
    # which libzmq lets in without a handshake, and with them HTTP, whose first letters look like one.
    zmq.ZAP_DOMAIN: b"procguard",
}
ROUTER: Options = SERVER | {
    zmq.SNDHWM: PEER_QUEUE_COUNT_MAX,
    zmq.RCVHWM: PEER_QUEUE_COUNT_MAX,
    zmq.MAXMSGSIZE: FRAME_BYTES_MAX,
    zmq.ROUTER_MANDATORY: 1,
    zmq.ROUTER_HANDOVER: 0,
}
XPUB: Options = SERVER | {
    zmq.SNDHWM: NOTICE_QUEUE_COUNT_MAX,
    zmq.RCVHWM: PEER_QUEUE_COUNT_MAX,
    zmq.MAXMSGSIZE: SUBSCRIPTION_BYTES_MAX,
    zmq.XPUB_VERBOSE: 0,
    zmq.XPUB_NODROP: 0,
}
CLIENT: Options = {
    zmq.RECONNECT_IVL: RECONNECT_MS,
    zmq.RECONNECT_IVL_MAX: RECONNECT_MS_MAX,
    zmq.CONNECT_TIMEOUT: CONNECT_TIMEOUT_MS,
    zmq.SNDHWM: MEMBER_QUEUE_COUNT_MAX,
    zmq.RCVHWM: MEMBER_QUEUE_COUNT_MAX,
    zmq.MAXMSGSIZE: ANSWER_BYTES_MAX,
}


def server_context() -> Context:
    """For those who hold frames of many peers.

    libzmq by default leaves a frame in the buffer of 8 KiB that it was received into, which lives for as long
    as any frame in it: a heartbeat of 60 bytes that waits to be read then takes 8 KiB. Measured with 1,000
    members, after a burst: 173 MiB, and 96 when frames are copied out, at the same speed.
    """
    context: Context = zmq.Context(io_threads=1)
    with suppress(zmq.ZMQError):  # a libzmq that does not know it is merely larger
        context.set(_ZERO_COPY_RECV, 0)
    return context


def open_socket(context: Context, kind: int, options: Options, keys: Options | None = None) -> Socket:
    """A socket with these options, those that every one has, and the keys for what it says and hears."""
    chosen = EVERY_SOCKET | options | (keys or {})
    if keys:  # libzmq measures what comes over the wire
        chosen[zmq.MAXMSGSIZE] = int(chosen.get(zmq.MAXMSGSIZE, -1)) + CURVE_BYTES
    opened = context.socket(kind)
    for option, value in chosen.items():
        opened.set(option, value)
    return opened


class Advice(NamedTuple):
    """What to do about a place that cannot be listened at, in the words of whoever chose it."""

    in_use: str
    port: str
    address: str


LIGHTHOUSES_ADVICE = Advice(
    in_use=(
        "most likely by another lighthouse: stop that one, or choose another port with --port "
        "(the one after it is taken for notices)"
    ),
    port="with --port",
    address="--bind takes an address of this machine",
)


def bind_socket(server: Socket, bind: str, port: int, advice: Advice = LIGHTHOUSES_ADVICE) -> int:
    """Listen; 0 takes a free port. Returns the port.

    Raises:
        UsageError: the address is not of this machine, or the port is in use or not allowed.
    """
    if not 0 <= port <= PORT_MAX:
        raise UsageError(f"port {port} is not in 0..{PORT_MAX}; choose another one {advice.port}")
    address = _address(bind)
    server.set(zmq.IPV6, int(":" in address or address == "*"))
    try:
        server.bind(endpoint(address, port or "*"))
    except zmq.ZMQError as error:
        raise UsageError(_why_not_bound(error, bind, port, advice)) from None
    return int(server.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2].rstrip("\0"))


def endpoint(host: str, port: int | str) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def milliseconds(timeout_s: float) -> int:
    """For a poll. Rounded up: rounding down to 0 would spin until the time is over."""
    return math.ceil(min(max(timeout_s, 0.0), WAIT_S_MAX) * 1000)


def raise_open_files_limit() -> None:
    """Each member takes two files, and where there are none left, libzmq spins on accept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS calls some limits endless that are not
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _address(bind: str) -> str:
    """What ``bind`` stands for, IPv4 first, as members try it. libzmq knows interfaces, but no host names."""
    if bind == "*":
        return bind
    try:
        found = socket.getaddrinfo(bind.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return bind
    return str(min(found, key=lambda at: at[0] != socket.AF_INET)[4][0])


def _why_not_bound(error: zmq.ZMQError, bind: str, port: int, advice: Advice) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {bind} is in use, {advice.in_use}"
    if error.errno == errno.EACCES:
        return f"port {port} on {bind} is not open to this user; choose one above 1023 {advice.port}"
    return f"cannot listen on {bind!r}, port {port}: {error.strerror}; {advice.address}"
