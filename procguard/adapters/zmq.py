"""The wire over ZeroMQ: ROUTER and XPUB at the lighthouse, DEALER and SUB at a member.

One frame a message, copied, a plain poller and a bounded drain that never blocks: the fastest of the ways
measured (asyncio, several frames a message and zero-copy are all slower). Every option that libzmq's
defaults would let lose silently, grow without bound or hang at exit is set here, in one place.

What libzmq does that is easy to forget:

- A peer may choose its own routing id. One that another peer has is refused (ROUTER_HANDOVER is off), and
  frames under a chosen one are dropped here: an id of ours is 5 bytes and begins with a zero byte.
- A peer may send several parts where we expect one. Such a message is dropped, part by part within the
  bound of a drain, so the next one starts where it should. Parts of an unfinished one are held by libzmq
  without a bound; whoever can connect is trusted that far.
- A peer can end a topic that others still hold by unsubscribing what it never subscribed. It must know
  the topic: one that only its owner knows, a listener's own, cannot be ended by another.
- Peers older than ZMTP 3 are let in without a handshake, and so is HTTP, whose first letters look like one
  of them. A ZAP domain, which these cannot pass, shuts them out; nobody needs to serve it.

Not for two threads at once, ``wake`` excepted. After a fork the child's copy is inert when closed or
collected, and must not be used.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Union

import zmq

from procguard.adapters.base import Frame, HandshakeFailed, Inbound, Subscribed, Unsubscribed
from procguard.errors import UsageError
from procguard.messages import ANSWER_BYTES_MAX, FRAME_BYTES_MAX

LINGER_MS = 1000
"""How long ``close`` may take to get the last messages out."""
HANDSHAKE_MS = 5000
CONNECT_TIMEOUT_MS = 2000
RECONNECT_MS = 20
RECONNECT_MS_MAX = 250
BACKLOG_COUNT = 4096
"""Connections waiting to be accepted: a whole fleet comes back at once after a restart."""
PEER_QUEUE_COUNT_MAX = 128
"""Frames the lighthouse holds for, and of, each member. Small, as each may be FRAME_BYTES_MAX long."""
MEMBER_QUEUE_COUNT_MAX = 1000
NOTICE_QUEUE_COUNT_MAX = 1000
"""Notices held for each listener that does not read; beyond that it loses them and asks for a resync."""
SUBSCRIPTION_BYTES_MAX = 2048
OPEN_FILES_MAX = 1 << 16
WAIT_S_MAX = 3600.0
PORT_MAX = (1 << 16) - 1

_Socket = zmq.Socket[bytes]
_Context = zmq.Context[_Socket]
_Options = dict[int, Union[int, bytes]]

# As plain ints: an enum argument costs each call a fifth more.
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.RCVMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

_EVERY_SOCKET: _Options = {
    zmq.LINGER: LINGER_MS,
    zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
    # A machine that vanished is noticed within 25 s, also while data for it is unacknowledged (MAXRT).
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 25_000,
}
_SERVER: _Options = {zmq.BACKLOG: BACKLOG_COUNT, zmq.ZAP_DOMAIN: b"procguard"}
_ROUTER: _Options = {
    **_SERVER,
    zmq.SNDHWM: PEER_QUEUE_COUNT_MAX,
    zmq.RCVHWM: PEER_QUEUE_COUNT_MAX,
    zmq.MAXMSGSIZE: FRAME_BYTES_MAX,
    zmq.ROUTER_MANDATORY: 1,
    zmq.ROUTER_HANDOVER: 0,
}
_XPUB: _Options = {
    **_SERVER,
    zmq.SNDHWM: NOTICE_QUEUE_COUNT_MAX,
    zmq.RCVHWM: PEER_QUEUE_COUNT_MAX,
    zmq.MAXMSGSIZE: SUBSCRIPTION_BYTES_MAX,
    zmq.XPUB_VERBOSE: 0,
    zmq.XPUB_NODROP: 0,
}
_CLIENT: _Options = {
    zmq.RECONNECT_IVL: RECONNECT_MS,
    zmq.RECONNECT_IVL_MAX: RECONNECT_MS_MAX,
    zmq.CONNECT_TIMEOUT: CONNECT_TIMEOUT_MS,
    zmq.SNDHWM: MEMBER_QUEUE_COUNT_MAX,
    zmq.RCVHWM: MEMBER_QUEUE_COUNT_MAX,
    zmq.MAXMSGSIZE: ANSWER_BYTES_MAX,
}


class ZmqLighthouseTransport:
    """The lighthouse's end: a ROUTER on ``port`` and an XPUB on the next one.

    Args:
        bind: an address of this machine, ``*`` for all, or a name or an interface that stands for one.
        port: 0 takes two free ports, not always neighbours.

    Raises:
        UsageError: a port is in use, or the address is not of this machine.
    """

    def __init__(self, bind: str, port: int) -> None:
        _raise_open_files_limit()
        self._process = os.getpid()
        self._context: _Context = zmq.Context(io_threads=1)
        self._router = _open(self._context, zmq.ROUTER, _ROUTER)
        self._xpub = _open(self._context, zmq.XPUB, _XPUB)
        self._monitor = _watch_handshakes(self._context, self._router)
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        try:
            self._port = _bind(self._router, bind, port)
            self._notice_port = _bind(self._xpub, bind, port + 1 if port else 0)
        except UsageError:
            self.close()
            raise
        self._handshakes = _Handshakes(self._port, self._notice_port)
        self._sources: deque[tuple[_Socket, Callable[[list[Inbound], int], None]]] = deque(
            [
                (self._router, self._take_frames),
                (self._xpub, self._take_subscriptions),
                (self._monitor, self._take_failures),
            ]
        )
        self._poller = zmq.Poller()
        for source in (self._router, self._xpub, self._monitor, self._woken.fileno()):
            self._poller.register(source, zmq.POLLIN)

    @property
    def port(self) -> int:
        return self._port

    @property
    def notice_port(self) -> int:
        return self._notice_port

    def wait(self, timeout_s: float) -> None:
        self._poller.poll(_milliseconds(timeout_s))
        with suppress(BlockingIOError):
            self._woken.recv(4096)

    def drain(self, count_max: int) -> list[Inbound]:
        arrived: list[Inbound] = []
        for source, take in self._sources:
            if source.get(_EVENTS) & _POLLIN:  # far cheaper than the exception of an empty one
                take(arrived, count_max)
        self._sources.rotate()  # so that no flood on one keeps the others out
        return arrived

    def _take_frames(self, arrived: list[Inbound], count_max: int) -> None:
        recv, get, add = self._router.recv, self._router.get, arrived.append
        with suppress(zmq.Again):
            for _ in range(count_max - len(arrived)):
                peer = recv(_NOBLOCK)
                payload = recv(_NOBLOCK)
                if get(_MORE):
                    _skip_parts(self._router)
                elif peer[0] == 0:
                    add(Frame(peer, payload))

    def _take_subscriptions(self, arrived: list[Inbound], count_max: int) -> None:
        with suppress(zmq.Again):
            for _ in range(count_max - len(arrived)):
                change = self._xpub.recv(_NOBLOCK)
                if change[:1] == b"\1":
                    arrived.append(Subscribed(change[1:]))
                elif change[:1] == b"\0":
                    arrived.append(Unsubscribed(change[1:]))

    def _take_failures(self, arrived: list[Inbound], count_max: int) -> None:
        with suppress(zmq.Again):
            for _ in range(count_max - len(arrived)):
                event, _endpoint = self._monitor.recv_multipart(_NOBLOCK)
                text = self._handshakes.failure(*struct.unpack("=Hi", event))
                if text:
                    arrived.append(HandshakeFailed(text))

    def send(self, peer: bytes, frame: bytes) -> bool:
        if len(frame) > ANSWER_BYTES_MAX:
            return False  # the member's end would cut the connection over it
        try:
            self._router.send(peer, zmq.NOBLOCK | zmq.SNDMORE)
            self._router.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            return False
        return True

    def publish(self, frame: bytes) -> None:
        self._xpub.send(frame, zmq.NOBLOCK)

    def wake(self) -> None:
        with suppress(OSError):  # full: it is being woken already; closed: nobody waits
            self._waker.send(b"\0")

    def close(self) -> None:
        if self._context.closed or self._process != os.getpid():
            return
        self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._router.close()
        self._xpub.close()
        self._context.term()
        self._waker.close()
        self._woken.close()


class ZmqMemberTransport:
    """A member's end: a DEALER, and after ``listen`` a SUB. Connects, and resolves names, on its own time.

    A name may have an IPv4 and an IPv6 address, of which libzmq tries but one, and the lighthouse may
    listen on the other ("localhost" is the usual case). So IPv4 is tried first, and a ``reconnect`` after
    a connection on which nothing was ever heard tries the other.

    Raises:
        UsageError: ``host`` cannot be a host at all. One that cannot be reached or resolved is retried.
    """

    def __init__(self, host: str, port: int) -> None:
        self._process = os.getpid()
        self._host = host.strip("[]")
        self._port = port
        self._ipv6 = ":" in self._host
        self._heard = False
        self._topics: frozenset[bytes] = frozenset()
        self._notice_port = 0
        self._sub: _Socket | None = None
        self._fds: tuple[int, ...] = ()
        self._context: _Context = zmq.Context(io_threads=1)
        self._dealer = self._connect(zmq.DEALER, self._port)
        self._poller = self._watch()

    def send(self, frame: bytes) -> bool:
        if len(frame) > FRAME_BYTES_MAX:
            return False  # the lighthouse would cut the connection over it
        try:
            self._dealer.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def listen(self, notice_port: int, topics: Iterable[bytes]) -> None:
        wanted = frozenset(topics)
        if self._sub is None or notice_port != self._notice_port:
            self._notice_port, self._topics = notice_port, wanted
            self._subscribe_afresh()
            return
        for topic in wanted - self._topics:
            self._sub.subscribe(topic)
        for topic in self._topics - wanted:
            self._sub.unsubscribe(topic)
        self._topics = wanted

    def reconnect(self) -> None:
        if ":" not in self._host and not self._heard:
            self._ipv6 = not self._ipv6
        self._heard = False
        self._dealer.close(linger=0)
        self._dealer = self._connect(zmq.DEALER, self._port)
        if self._sub is not None:
            self._subscribe_afresh()
        self._poller = self._watch()

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        fds = tuple(fds)
        if fds != self._fds:
            self._fds = fds
            self._poller = self._watch()
        ready = self._poller.poll(_milliseconds(timeout_s))
        return [source for source, _ in ready if isinstance(source, int)]

    def receive(self, count_max: int) -> list[bytes]:
        frames = _single_parts(self._dealer, count_max)
        self._heard = self._heard or bool(frames)
        return frames

    def notices(self, count_max: int) -> list[bytes]:
        return [] if self._sub is None else _single_parts(self._sub, count_max)

    def close(self) -> None:
        if self._context.closed or self._process != os.getpid():
            return
        self._dealer.close()
        if self._sub is not None:
            self._sub.close()
        self._context.term()

    def _subscribe_afresh(self) -> None:
        if self._sub is not None:
            self._sub.close(linger=0)
        self._sub = self._connect(zmq.SUB, self._notice_port)
        for topic in self._topics:
            self._sub.subscribe(topic)
        self._poller = self._watch()

    def _watch(self) -> zmq.Poller:
        poller = zmq.Poller()
        for source in (self._dealer, self._sub, *self._fds):
            if source is not None:
                poller.register(source, zmq.POLLIN)
        return poller

    def _connect(self, kind: int, port: int) -> _Socket:
        opened = _open(self._context, kind, _CLIENT)
        opened.set(zmq.IPV6, int(self._ipv6))
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            opened.connect(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise UsageError(
                f"cannot connect to {self._host!r}, port {port}: {error.strerror};"
                f" give a name or an address, and a port in 1..{PORT_MAX}"
            ) from None
        return opened


class _Handshakes:
    """Tells from a ROUTER's monitor which connections never became a member's.

    libzmq names a connection (by its fd) when it is accepted and when it ends, but not when its handshake
    succeeds or fails, and of one whose first byte is already wrong it says neither. So: what ends with no
    success since it was accepted has failed. A success of another in between hides a failure: a line less
    in a log, and never a member blamed. It does not tell addresses either, nor what was sent.
    """

    def __init__(self, port: int, notice_port: int) -> None:
        self._mixed_up = (
            f"Something that is no ProcGuard member was turned away from port {port}: an HTTP or gRPC client?"
            f" The HTTP API and the dashboard are on the guard's own port, notices on {notice_port}."
        )
        self._mute = (
            f"A connection to port {port} said nothing for {HANDSHAKE_MS / 1000:g} s and was closed:"
            " something other than a ProcGuard member?"
        )
        self._gone = (
            f"A connection to port {port} ended before it said what it is: a health check, a port scan,"
            " or a member that died just then?"
        )
        self._locked = (
            f"A ZeroMQ peer was turned away from port {port}: not a ProcGuard member, or one with other keys?"
        )
        self._fresh: set[int] = set()
        self._told = False

    def failure(self, event: int, value: int) -> str | None:
        """What went wrong, if this event is the last word on a connection that failed.

        Args:
            event: number of the monitor event.
            value: its value: an fd, an errno or a protocol error, by event.
        """
        if event == zmq.EVENT_ACCEPTED:
            self._fresh.add(value)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._fresh.clear()
        elif event == zmq.EVENT_DISCONNECTED:
            unexplained = value in self._fresh and not self._told
            self._fresh.discard(value)
            self._told = False
            return self._mixed_up if unexplained else None
        else:
            self._told = True  # its DISCONNECTED comes next, and has been explained
            if event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                return self._locked
            return self._mute if value == errno.EAGAIN else self._gone
        return None


def _watch_handshakes(context: _Context, router: _Socket) -> _Socket:
    router.monitor(
        "inproc://handshakes",
        zmq.EVENT_ACCEPTED
        | zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_DISCONNECTED,
    )
    monitor = context.socket(zmq.PAIR)
    # No bound, unlike every other queue: at one libzmq's only I/O thread would block, and close with it.
    monitor.set(zmq.RCVHWM, 0)
    monitor.connect("inproc://handshakes")
    return monitor


def _open(context: _Context, kind: int, options: _Options) -> _Socket:
    opened = context.socket(kind)
    for option, value in (_EVERY_SOCKET | options).items():
        opened.set(option, value)
    return opened


def _bind(server: _Socket, bind: str, port: int) -> int:
    """Bind, and return the port. Raises ``UsageError``."""
    if not 0 <= port <= PORT_MAX:
        raise UsageError(f"port {port} is not in 0..{PORT_MAX}; notices need --port plus one")
    address = _address(bind)
    server.set(zmq.IPV6, int(":" in address or address == "*"))
    host = f"[{address}]" if ":" in address else address
    try:
        server.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise UsageError(_why_not_bound(error, bind, port)) from None
    return int(server.get(zmq.LAST_ENDPOINT).rstrip(b"\0").rpartition(b":")[2])


def _why_not_bound(error: zmq.ZMQError, bind: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {bind} is in use, most likely by another lighthouse;"
            " stop that one, or choose two free ports with --port (the next one is for notices)"
        )
    if error.errno == errno.EACCES:
        return f"port {port} on {bind} is not allowed to this user; choose one above 1023 with --port"
    return (
        f"cannot listen on {bind!r}, port {port}: {error.strerror}; --bind takes an address of this machine"
    )


def _address(bind: str) -> str:
    """What ``bind`` stands for, as libzmq binds to no names; an interface's it knows itself."""
    if bind == "*":
        return bind
    try:
        found = socket.getaddrinfo(bind.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return bind
    return str(found[0][4][0])


def _skip_parts(source: _Socket) -> None:
    while source.get(_MORE):
        source.recv(_NOBLOCK)


def _single_parts(source: _Socket, count_max: int) -> list[bytes]:
    frames: list[bytes] = []
    with suppress(zmq.Again):
        for _ in range(count_max):
            frame = source.recv(_NOBLOCK)
            if source.get(_MORE):
                _skip_parts(source)
            else:
                frames.append(frame)
    return frames


def _milliseconds(timeout_s: float) -> int:
    """For a poll: rounded up, as rounding down to 0 would spin until the time is over."""
    return math.ceil(min(max(timeout_s, 0.0), WAIT_S_MAX) * 1000)


def _raise_open_files_limit() -> None:
    """Each member is two connections; where the limit is reached, libzmq spins on accept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
