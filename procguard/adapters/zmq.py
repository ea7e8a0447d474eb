"""The wire over ZeroMQ: ROUTER and XPUB at the lighthouse, DEALER and XSUB at a member.

One frame a message, copied, a plain poller and a bounded drain that never blocks: the fastest of the ways
measured (asyncio and several frames a message are slower). What a member sends is taken as libzmq's own
frame and copied from that, for the frame knows whether more parts follow: asking the socket costs twice as
much.

What a peer can do, and what comes of it:

- Choose its own routing id. One that another peer has is refused by libzmq (ROUTER_HANDOVER is off), and
  frames under a chosen one are dropped here: an id that libzmq gave is 5 bytes and begins with a zero.
- Send several parts where one is expected. They are dropped, each counting as a frame against the bound
  of the drain, and the next message starts where it should. What libzmq holds of an unfinished one has no
  bound; whoever can connect is trusted that far. With keys that is members only: before a handshake is over,
  libzmq takes commands one by one, and keeps none.
- End a topic that others hold, by unsubscribing what it never subscribed. It must know the topic, which of
  a listener's own topic nobody else does.

With keys all is encrypted, and only listed keys come in (``zmq_doorkeeper``). That is judged once, at the
handshake; so each frame is held against the list as it is now. What libzmq knows of its sender costs a third
of a microsecond to ask, hence the peers known to be plain members are remembered until the list changes.

Not for two threads at once, ``wake`` excepted. After a fork the child may close or forget its copy, which
does nothing, and must not use it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import zmq

from procguard.adapters.base import (
    Aside,
    Frame,
    HandshakeFailed,
    Inbound,
    KeyRefused,
    KeysRead,
    OperatorFrame,
    Subscribed,
    Unsubscribed,
)
from procguard.adapters.zmq_doorkeeper import Doorkeeper
from procguard.adapters.zmq_handshakes import Handshakes, watch_handshakes, why_refused
from procguard.adapters.zmq_keys import OPERATOR, MemberKeys, ServerKeys, fingerprint
from procguard.adapters.zmq_sockets import (
    ASIDE_BYTES_MAX,
    CLIENT,
    PORT_MAX,
    ROUTER,
    XPUB,
    Context,
    Socket,
    bind_socket,
    endpoint,
    milliseconds,
    open_socket,
    raise_open_files_limit,
    server_context,
)
from procguard.errors import UsageError
from procguard.messages import ANSWER_BYTES_MAX, FRAME_BYTES_MAX

ROUTING_ID_BYTES = 5
WAKES_MAX = 4096
LIST_INTERVAL_S = 1.0
"""Between two looks at whether the allow-list has changed."""
PEERS_KNOWN_MAX = 100_000

# As plain ints: an enum argument costs each call a fifth more.
_NOBLOCK = int(zmq.NOBLOCK)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


class ZmqLighthouseTransport:
    """The lighthouse's end: a ROUTER on ``port`` and an XPUB on the next one.

    Args:
        bind: an address of this machine, ``*`` for all, or a name or an interface that stands for one.
        port: 0 takes two free ports, not always neighbours.
        keys: None: whoever reaches the ports is let in.

    Raises:
        UsageError: a port is in use, or the address is not of this machine.
    """

    def __init__(self, bind: str, port: int, keys: ServerKeys | None = None) -> None:
        raise_open_files_limit()
        self._process = os.getpid()
        self._closed = False
        self._context = server_context()
        self._doorkeeper = Doorkeeper(self._context, keys.allowed) if keys else None
        self._plain_members: set[bytes] = set()
        self._list_seen_at = time.monotonic()
        locks = keys.server_options() if keys else None
        self._router = open_socket(self._context, zmq.ROUTER, ROUTER, locks)
        self._xpub = open_socket(self._context, zmq.XPUB, XPUB, locks)
        self._monitor = watch_handshakes(self._context, self._router)
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        try:
            self._port = bind_socket(self._router, bind, port)
            self._notice_port = bind_socket(self._xpub, bind, port + 1 if port else 0)
        except UsageError:
            self.close()
            raise
        self._handshakes = Handshakes(self._port, self._notice_port, with_keys=keys is not None)
        self._in_parts = self._aside_in_parts = False
        self._sources: deque[tuple[Socket, Callable[[list[Inbound], int], None]]] = deque(
            [
                (self._router, self._take_frames),
                (self._xpub, self._take_from_listeners),
                (self._monitor, self._take_failures),
            ]
        )
        self._poller = zmq.Poller()
        for source in (self._router, self._xpub, self._monitor, self._woken.fileno()):
            self._poller.register(source, zmq.POLLIN)
        if self._doorkeeper:
            self._poller.register(self._doorkeeper.socket, zmq.POLLIN)
            self._sources.append((self._doorkeeper.socket, self._take_knocks))

    @property
    def port(self) -> int:
        return self._port

    @property
    def notice_port(self) -> int:
        return self._notice_port

    def wait(self, timeout_s: float) -> None:
        for source, _ in self._poller.poll(milliseconds(timeout_s)):
            if isinstance(source, int):  # the only plain fd among them
                self._woken.recv(WAKES_MAX)

    def drain(self, count_max: int) -> list[Inbound]:
        arrived: list[Inbound] = []
        if self._doorkeeper:
            self._look_at_list(self._doorkeeper, arrived)
        for source, take in self._sources:
            if int(source.get(_EVENTS)) & _POLLIN:  # a sixth of an empty one's exception
                take(arrived, count_max)
        self._sources.rotate()  # so that a flood on one does not keep the others out
        return arrived

    def _take_frames(self, arrived: list[Inbound], count_max: int) -> None:
        recv, add = self._router.recv, arrived.append
        with suppress(zmq.Again):
            for _ in range(count_max - len(arrived)):
                if self._in_parts:
                    self._in_parts = recv(_NOBLOCK, False).more
                    continue
                peer = recv(_NOBLOCK)
                payload = recv(_NOBLOCK, False)
                if payload.more:
                    self._in_parts = True
                elif peer[0] != 0 or len(peer) != ROUTING_ID_BYTES:
                    continue  # chosen by the peer
                elif self._doorkeeper is None or peer in self._plain_members:
                    add(Frame(peer, payload.bytes))
                else:
                    add(self._judged(self._doorkeeper, peer, payload))

    def _judged(self, doorkeeper: Doorkeeper, peer: bytes, payload: zmq.Frame) -> Inbound:
        """A frame of one who is no plain member as far as we know."""
        public = str(payload.get("User-Id"))
        listed = doorkeeper.find(public)
        if listed is None:
            return _revoked(public)
        if listed.role == OPERATOR:
            return OperatorFrame(peer, payload.bytes, listed.name)
        if len(self._plain_members) >= PEERS_KNOWN_MAX:
            self._plain_members.clear()
        self._plain_members.add(peer)
        return Frame(peer, payload.bytes)

    def _look_at_list(self, doorkeeper: Doorkeeper, arrived: list[Inbound]) -> None:
        now = time.monotonic()
        if now - self._list_seen_at >= LIST_INTERVAL_S:
            self._list_seen_at = now
            doorkeeper.look()
        if doorkeeper.news:
            arrived.append(KeysRead(doorkeeper.news))
            doorkeeper.news = ""
            self._plain_members.clear()

    def _take_knocks(self, arrived: list[Inbound], count_max: int) -> None:
        assert self._doorkeeper is not None
        for key, address in self._doorkeeper.serve(count_max - len(arrived)):
            text = f"key {key} from {address} was turned away: it is not listed, or was revoked"
            arrived.append(KeyRefused("refused keys", text))
        if self._doorkeeper.news:
            self._look_at_list(self._doorkeeper, arrived)

    def _take_from_listeners(self, arrived: list[Inbound], count_max: int) -> None:
        recv, add = self._xpub.recv, arrived.append
        with suppress(zmq.Again):
            for _ in range(count_max - len(arrived)):
                payload = recv(_NOBLOCK, False)
                in_parts, self._aside_in_parts = self._aside_in_parts, payload.more
                text = payload.bytes
                if text[:1] == b"\1":
                    add(Subscribed(text[1:]))
                elif text[:1] == b"\0":
                    add(Unsubscribed(text[1:]))
                elif in_parts or payload.more:
                    continue
                elif self._doorkeeper is None or self._doorkeeper.find(str(payload.get("User-Id"))):
                    add(Aside(text))
                else:
                    add(_revoked(str(payload.get("User-Id"))))

    def _take_failures(self, arrived: list[Inbound], count_max: int) -> None:
        with suppress(zmq.Again):
            for _ in range(count_max - len(arrived)):
                event, _endpoint = self._monitor.recv_multipart(_NOBLOCK)
                text = self._handshakes.failure(event)
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
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._router.close()
        self._xpub.close()
        if self._doorkeeper:
            self._doorkeeper.close()
        self._context.term()
        self._waker.close()
        self._woken.close()


class ZmqMemberTransport:
    """A member's end: a DEALER, and after ``listen`` an XSUB, which is a SUB that can also say something.
    Connects, and resolves names, on its own time.

    A lost connection comes back by itself, its subscriptions only while ``wait`` or ``notices`` is called.

    A name may have an IPv4 and an IPv6 address, of which libzmq tries only one, while the lighthouse may
    listen on the other ("localhost" is the usual case). So a name means IPv4 at first, and after a
    connection on which nothing was heard ``reconnect`` goes over to the other.

    Args:
        keys: None: to a lighthouse that asks for none.

    Raises:
        UsageError: ``host`` or ``port`` cannot be one. What cannot be resolved or reached is tried again.
    """

    def __init__(self, host: str, port: int, keys: MemberKeys | None = None) -> None:
        self._process = os.getpid()
        self._closed = False
        self._host = host.strip("[]")
        self._port = port
        self._keys = keys
        self._ipv6 = ":" in self._host
        self._heard = False
        self._sub: Socket | None = None
        self._notice_port = 0
        self._topics: frozenset[bytes] = frozenset()
        self._fds: tuple[int, ...] = ()
        self._context: Context = zmq.Context(io_threads=1)
        try:
            self._dealer = self._connect(zmq.DEALER, port)
        except UsageError:
            self._context.destroy(linger=0)
            raise
        self._poller = self._watch()

    def send(self, frame: bytes) -> bool:
        if len(frame) > FRAME_BYTES_MAX:
            return False  # the lighthouse would cut the connection over it
        try:
            self._dealer.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def send_aside(self, frame: bytes) -> bool:
        if self._sub is None or len(frame) > ASIDE_BYTES_MAX:
            return self.send(frame)
        with suppress(zmq.Again):
            self._sub.send(frame, zmq.NOBLOCK)
            return True
        return False

    def listen(self, notice_port: int, topics: Iterable[bytes]) -> None:
        wanted = frozenset(topics)
        if self._sub is None or notice_port != self._notice_port:
            self._notice_port, self._topics = notice_port, wanted
            self._subscribe_afresh()
            return
        for topic in wanted - self._topics:
            self._sub.send(b"\1" + topic)
        for topic in self._topics - wanted:
            self._sub.send(b"\0" + topic)
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
        ready = self._poller.poll(milliseconds(timeout_s))
        return [source for source, _ in ready if isinstance(source, int)]

    def receive(self, count_max: int) -> list[bytes]:
        frames = _single_parts(self._dealer, count_max)
        self._heard = self._heard or bool(frames)
        return frames

    def notices(self, count_max: int) -> list[bytes]:
        return [] if self._sub is None else _single_parts(self._sub, count_max)

    def explain(self) -> str:
        return why_refused(self._host, self._port, self._keys)

    def close(self) -> None:
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        if self._sub is not None:
            self._sub.close(linger=0)  # what it has to say can be lost
        self._dealer.close()
        self._context.term()

    def _subscribe_afresh(self) -> None:
        if self._sub is not None:
            self._sub.close(linger=0)
        self._sub = self._connect(zmq.XSUB, self._notice_port)
        for topic in self._topics:
            self._sub.send(b"\1" + topic)
        self._poller = self._watch()

    def _watch(self) -> zmq.Poller:
        poller = zmq.Poller()
        for source in (self._dealer, self._sub, *self._fds):
            if source is not None:
                poller.register(source, zmq.POLLIN)
        return poller

    def _connect(self, kind: int, port: int) -> Socket:
        keys = self._keys.client_options() if self._keys else None
        opened = open_socket(self._context, kind, CLIENT | {zmq.IPV6: int(self._ipv6)}, keys)
        with suppress(zmq.ZMQError):
            if self._host and 0 < port <= PORT_MAX:  # libzmq would try a host without a name for ever
                opened.connect(endpoint(self._host, port))
                return opened
        opened.close(linger=0)
        raise UsageError(
            f"cannot connect to {self._host!r}, port {port}:"
            f" give a name or an address, and a port in 1..{PORT_MAX}"
        )


def _single_parts(source: Socket, count_max: int) -> list[bytes]:
    """Messages of one part; others, which no lighthouse of ours sends, are dropped."""
    frames: list[bytes] = []
    with suppress(zmq.Again):
        for _ in range(count_max):
            parts = source.recv_multipart(_NOBLOCK)
            if len(parts) == 1:
                frames.append(parts[0])
    return frames


def _revoked(public: str) -> KeyRefused:
    text = f"what key {fingerprint(public)} says is not listened to: it was revoked"
    return KeyRefused("frames of revoked keys", text)
