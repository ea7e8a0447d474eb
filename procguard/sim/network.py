"""The network between one lighthouse and its members, as TCP under ZeroMQ behaves.

- Frames of one connection arrive in order or not at all; frames of two overtake each other freely.
- A lost packet is not a lost frame: it is sent again after 200 ms, then 400, and so on, and what was sent
  after it waits behind it. So does all that meets a partition, which has a direction and may flap.
- One connection can be held up for a while, and the others of its machine not: one of several ways through
  the network drops what is sent.
- A connection can be cut. What was under way in it is lost, in both directions, and so is what the
  lighthouse's socket had accepted and nobody had read. The member connects anew by itself and is not told.
- What is published may be lost on its way to any one subscriber, and is not heard before the subscription
  has reached the other side.
- A process that dies hangs up; a machine that vanishes does not.

Frames are opaque here. The two ends satisfy ``adapters/base``, so the real service and the real client run
over them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import count
from random import Random

from procguard.adapters.base import Aside, Frame, Inbound, Subscribed, Unsubscribed
from procguard.messages import DEFAULT_PORT
from procguard.sim.clock import VirtualClock

RETRANSMIT_FIRST_S = 0.2
RETRANSMIT_LAST_S = 120.0
RECONNECT_FIRST_S = 0.02
RECONNECT_LAST_S = 0.25
SYN_AGAIN_S = 1.0
QUEUE_COUNT_MAX = 1_000
"""Frames held at a member, unsent or unread, of each kind."""
DELAY_BOUND_S = 0.5
"""The declared one: a frame that takes longer excuses whoever is called dead for its lack."""
UP, DOWN = 0, 1
_END = b""
"""No frame is empty, so this one is the other side's hanging up."""


class Weather(Counter[str]):
    """What the network did, for the trace and for tests: by name."""


class Path:
    """The way between one machine and the lighthouse's, in its two directions: ``UP`` is to the lighthouse.

    Attributes:
        blocked: partitions in force, by direction.
        vanished: the machine is gone: nothing comes from it or goes to it, and nobody is told.
        disturb: called when a stream did not keep to the declared delay bound.
    """

    def __init__(self, delay_s: float, jitter_s: float, loss: float, random: Random) -> None:
        self.delay_s = delay_s
        self.jitter_s = jitter_s
        self.loss = loss
        self.blocked = [0, 0]
        self.vanished = False
        self.disturb: Callable[[], None] = lambda: None
        self.lost_packet: Callable[[], None] = lambda: None
        """Called for each that chance has taken."""
        self.stuck_streams = 0
        """Of those, how many hold frames that have been lost more than once by now."""
        self._random = random

    @property
    def is_open(self) -> bool:
        """Both ways."""
        return not (self.blocked[UP] or self.blocked[DOWN] or self.vanished)

    def transit_s(self) -> float:
        """How long one packet takes that gets through."""
        return self.delay_s + self.jitter_s * self._random.random()

    def swallows(self, direction: int) -> bool:
        """Whether a packet sent now is lost."""
        if self.blocked[direction] or self.vanished:
            return True
        is_lost = self.loss > 0 and self._random.random() < self.loss
        if is_lost:
            self.lost_packet()
        return is_lost


class Stream:
    """One direction of one connection."""

    def __init__(
        self, clock: VirtualClock, path: Path, direction: int, deliver: Callable[[bytes], None]
    ) -> None:
        self._clock = clock
        self._path = path
        self._direction = direction
        self._deliver = deliver
        self._stuck: deque[tuple[float, bytes]] = deque()
        self._retry_s = RETRANSMIT_FIRST_S
        self._is_stuck = False
        self._last_at = 0.0
        self.lost_from = float("inf")
        """What was sent from then on never arrives."""
        self._held_until = 0.0
        self._blameless_until = 0.0
        """What was sent until then may be late, and the path is not to blame."""

    def hold(self, length_s: float) -> None:
        """Nothing gets through for so long. That is its own trouble, and excuses nobody's silence."""
        self._held_until = self._blameless_until = self._clock.now + length_s

    def send(self, frame: bytes) -> None:
        now = self._clock.now
        if self._stuck:
            self._stuck.append((now, frame))
        elif now < self._held_until or self._path.swallows(self._direction):
            self._stuck.append((now, frame))
            self._clock.after(self._retry_s, self._retry)
        else:
            self._go(now, frame)

    def close(self) -> None:
        """Nothing that is under way arrives."""
        self.lost_from = 0.0
        self._stuck.clear()
        self._note_stuck(False)

    def _go(self, sent_at: float, frame: bytes) -> None:
        self._last_at = max(self._last_at, self._clock.now + self._path.transit_s())
        self._clock.at(self._last_at, self._arrive, sent_at, frame)

    def _arrive(self, sent_at: float, frame: bytes) -> None:
        if sent_at < self.lost_from:
            if self._clock.now - sent_at > DELAY_BOUND_S and sent_at > self._blameless_until:
                self._path.disturb()
            self._deliver(frame)

    def _retry(self) -> None:
        if not self._stuck:
            return
        now, first_at = self._clock.now, self._stuck[0][0]
        is_held = now < self._held_until
        if now - first_at > DELAY_BOUND_S / 2 and first_at > self._blameless_until:
            self._path.disturb()
        if is_held or self._path.swallows(self._direction):
            self._note_stuck(not is_held)
            self._retry_s = min(2 * self._retry_s, RETRANSMIT_LAST_S)
            self._clock.after(self._retry_s, self._retry)
            return
        self._retry_s = RETRANSMIT_FIRST_S
        self._note_stuck(False)
        if first_at <= self._blameless_until:
            self._blameless_until = now
        while self._stuck:
            self._go(*self._stuck.popleft())

    def _note_stuck(self, is_stuck: bool) -> None:
        if is_stuck is not self._is_stuck:
            self._is_stuck = is_stuck
            self._path.stuck_streams += 1 if is_stuck else -1
            self._path.disturb()


class Connection:
    """One connection of a member, as both sides have it."""

    def __init__(self, network: Network, end: LighthouseEnd, socket: MemberSocket) -> None:
        self.peer = network.next_peer()
        self.path = socket.path
        self.topics: tuple[bytes, ...] = ()
        """Subscribed here, as far as the lighthouse knows."""
        self._network = network
        self._end = end
        self._socket: MemberSocket | None = socket
        self.up = Stream(network.clock, self.path, UP, self._at_lighthouse)
        self.down = Stream(network.clock, self.path, DOWN, self._at_member)
        end.connections[self.peer] = self

    def cut(self, lighthouse_hears_s: float | None, member_hears_s: float) -> None:
        """It is dead at once. Each side learns it after so long; None: never."""
        clock = self._network.clock
        self.up.close()
        self.down.close()
        self._end.lose_unread(self.peer)
        self.path.disturb()
        if lighthouse_hears_s is not None:
            clock.after(lighthouse_hears_s, self._end.forget, self)
        if self._socket is not None:
            clock.after(member_hears_s, self._socket.lost, self)

    def hold(self, length_s: float) -> None:
        """Some switch on the way drops what is its, and what is no other connection's."""
        self.up.hold(length_s)
        self.down.hold(length_s)

    def hang_up(self) -> None:
        """The member's process closes it, or dies: what it has sent arrives first."""
        self._socket = None
        self.down.close()
        self.up.send(_END)

    def orphan(self, lost_from: float) -> None:
        """The lighthouse's process has died: what it had not sent before is lost."""
        self.up.close()
        self.down.lost_from = min(self.down.lost_from, lost_from)
        if self._socket is not None:
            self._network.clock.after(self.path.transit_s(), self._at_member, _END)

    def _at_lighthouse(self, frame: bytes) -> None:
        if frame == _END:
            self._end.forget(self)
        else:
            self._end.arrived(self, frame)

    def _at_member(self, frame: bytes) -> None:
        if self._socket is None:
            return
        if frame != _END:
            self._socket.arrived(self, frame)
        elif self.path.is_open:
            self._socket.lost(self)
        else:
            self._network.clock.after(RETRANSMIT_FIRST_S, self._at_member, _END)


class LighthouseEnd:
    """A ``LighthouseTransport``, from one start of a lighthouse to its end.

    Args:
        on_input: called when something has arrived that was not there before.
    """

    port = DEFAULT_PORT
    notice_port = DEFAULT_PORT + 1

    def __init__(self, network: Network, on_input: Callable[[], None]) -> None:
        self.connections: dict[bytes, Connection] = {}
        self.notice_loss = 0.0
        """Share of what is published that a subscriber does not get."""
        self.sending: Callable[[], None] = lambda: None
        """Called before each frame that is sent or published."""
        self.waiting: Callable[[float], None] = lambda timeout_s: None
        self.is_deaf = False
        """Frames have arrived at the machine, and are not handed to the process yet."""
        self._network = network
        self._on_input = on_input
        self._inbox: deque[tuple[bytes, Inbound]] = deque()
        """With the connection on which it came."""
        self._holders: Counter[bytes] = Counter()

    def wait(self, timeout_s: float) -> None:
        self.waiting(timeout_s)

    def drain(self, count_max: int) -> list[Inbound]:
        if self.is_deaf:
            return []
        return [self._inbox.popleft()[1] for _ in range(min(count_max, len(self._inbox)))]

    def send(self, peer: bytes, frame: bytes) -> bool:
        self.sending()
        connection = self.connections.get(peer)
        if connection is None:
            return False
        connection.down.send(frame)
        return True

    def publish(self, frame: bytes) -> None:
        self.sending()
        random = self._network.random
        for connection in self.connections.values():
            if frame.startswith(connection.topics):
                if self.notice_loss and random.random() < self.notice_loss:
                    self._network.weather["notices dropped"] += 1
                else:
                    connection.down.send(frame)

    def wake(self) -> None:
        """Nobody waits in real time."""

    def close(self) -> None:
        """Its process has died."""
        if self._network.lighthouse is self:
            self._network.lighthouse = None

    # --- what happens on the other side

    def arrived(self, connection: Connection, frame: bytes) -> None:
        if connection.peer not in self.connections:
            return
        if frame[:1] == b"\1":  # a subscription: libzmq's own form
            self._hold(connection, frame[1:])
        elif connection.topics:
            self._put(connection.peer, Aside(frame))
        else:
            self._put(connection.peer, Frame(connection.peer, frame))

    def forget(self, connection: Connection) -> None:
        """It is known to be dead here."""
        if self.connections.pop(connection.peer, None) is None:
            return
        for topic in connection.topics:
            self._holders[topic] -= 1
            if not self._holders[topic]:
                del self._holders[topic]
                self._put(b"", Unsubscribed(topic))

    def lose_unread(self, peer: bytes) -> None:
        """What the socket had accepted of a connection goes with it."""
        kept = deque(at for at in self._inbox if at[0] != peer)
        self._network.weather["frames lost though accepted"] += len(self._inbox) - len(kept)
        self._inbox = kept

    def _hold(self, connection: Connection, topic: bytes) -> None:
        connection.topics += (topic,)
        self._holders[topic] += 1
        if self._holders[topic] == 1:
            self._put(b"", Subscribed(topic))

    def _put(self, peer: bytes, inbound: Inbound) -> None:
        self._inbox.append((peer, inbound))
        self._on_input()


class MemberSocket:
    """One socket of a member, always connected or about to be.

    Args:
        greeting: what it says first on each new connection.
        keeps: what is sent while there is no connection waits for one.
        on_input: called for each frame that arrives.
    """

    def __init__(
        self, network: Network, path: Path, greeting: Iterable[bytes], on_input: Callable[[], None]
    ) -> None:
        self.path = path
        self.connection: Connection | None = None
        self.is_closed = False
        self.incoming: deque[bytes] = deque()
        self._network = network
        self._greeting = tuple(greeting)
        self._on_input = on_input
        self._unsent: deque[bytes] = deque()
        self._attempt = 0
        self._retry_s = RECONNECT_FIRST_S
        network.sockets.append(self)
        self._dial()

    def send(self, frame: bytes) -> bool:
        if self.connection is not None:
            self.connection.up.send(frame)
            return True
        if len(self._unsent) >= QUEUE_COUNT_MAX:
            return False
        self._unsent.append(frame)
        return True

    def renew(self) -> None:
        """Drop the connection and everything queued, and connect afresh."""
        self._unsent.clear()
        self.incoming.clear()
        if self.connection is not None:
            self.connection.hang_up()
            self.connection = None
        self._retry_s = RECONNECT_FIRST_S
        self._dial()

    def close(self) -> None:
        """Also what the kernel does when the process dies."""
        self.is_closed = True
        self._attempt += 1
        if self.connection is not None:
            self.connection.hang_up()
            self.connection = None
        if self in self._network.sockets:
            self._network.sockets.remove(self)

    # --- what happens to it

    def arrived(self, connection: Connection, frame: bytes) -> None:
        if connection is not self.connection or self.is_closed:
            return
        if len(self.incoming) < QUEUE_COUNT_MAX:
            self.incoming.append(frame)
            self._on_input()

    def lost(self, connection: Connection) -> None:
        """The connection is known to be dead here: dial again, as libzmq does by itself."""
        if connection is self.connection and not self.is_closed:
            self.connection = None
            self._dial_later()

    def _dial_later(self) -> None:
        self._attempt += 1
        delay_s = self._retry_s * (0.5 + self._network.random.random())
        self._retry_s = min(2 * self._retry_s, RECONNECT_LAST_S)
        self._network.clock.after(delay_s, self._dial, self._attempt)

    def _dial(self, attempt: int | None = None) -> None:
        if self.is_closed or (attempt is not None and attempt != self._attempt):
            return
        self._attempt += 1
        clock = self._network.clock
        if not self.path.is_open:
            clock.after(SYN_AGAIN_S, self._dial, self._attempt)
        elif self._network.lighthouse is None:
            self._dial_later()
        else:
            handshake_s = 3 * self.path.transit_s()
            clock.after(handshake_s, self._connected, self._attempt, self._network.lighthouse)

    def _connected(self, attempt: int, end: LighthouseEnd) -> None:
        if self.is_closed or attempt != self._attempt:
            return
        if self._network.lighthouse is not end or not self.path.is_open:
            self._dial_later()
            return
        self.connection = Connection(self._network, end, self)
        self._retry_s = RECONNECT_FIRST_S
        for frame in self._greeting:
            self.connection.up.send(frame)
        while self._unsent:
            self.connection.up.send(self._unsent.popleft())


class MemberEnd:
    """A ``MemberTransport``: one socket to talk on, and on demand one to hear notices.

    Args:
        on_input: called when a frame or a notice has arrived.
    """

    def __init__(self, network: Network, path: Path, on_input: Callable[[], None]) -> None:
        self._network = network
        self._path = path
        self._on_input = on_input
        self.talking = MemberSocket(network, path, (), on_input)
        self.hearing: MemberSocket | None = None
        self.waiting: Callable[[float, tuple[int, ...]], list[int]] = lambda timeout_s, fds: []
        """What ``wait`` does: the owner knows what its descriptors are."""

    def send(self, frame: bytes) -> bool:
        return self.talking.send(frame)

    def send_aside(self, frame: bytes) -> bool:
        return self.send(frame) if self.hearing is None else self.hearing.send(frame)

    def listen(self, notice_port: int, topics: Iterable[bytes]) -> None:
        if self.hearing is not None:
            self.hearing.close()
        subscriptions = [b"\1" + topic for topic in sorted(set(topics))]
        self.hearing = MemberSocket(self._network, self._path, subscriptions, self._on_input)

    def reconnect(self) -> None:
        for socket in self.sockets():
            socket.renew()

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        return self.waiting(timeout_s, tuple(fds))

    def receive(self, count_max: int) -> list[bytes]:
        incoming = self.talking.incoming
        return [incoming.popleft() for _ in range(min(count_max, len(incoming)))]

    def notices(self, count_max: int) -> list[bytes]:
        if self.hearing is None:
            return []
        incoming = self.hearing.incoming
        return [incoming.popleft() for _ in range(min(count_max, len(incoming)))]

    def explain(self) -> str:
        """There are no keys here."""
        return ""

    def close(self) -> None:
        for socket in self.sockets():
            socket.close()

    def sockets(self) -> list[MemberSocket]:
        return [self.talking] if self.hearing is None else [self.talking, self.hearing]


class Network:
    """One lighthouse at a time, and any number of members."""

    def __init__(self, clock: VirtualClock, random: Random) -> None:
        self.clock = clock
        self.random = random
        self.weather = Weather()
        self.lighthouse: LighthouseEnd | None = None
        self.sockets: list[MemberSocket] = []
        self._peers = count(1)

    def next_peer(self) -> bytes:
        """An address that no connection had before."""
        return b"\0" + next(self._peers).to_bytes(4, "big")

    def open(self, on_input: Callable[[], None]) -> LighthouseEnd:
        """A lighthouse binds its ports."""
        assert self.lighthouse is None
        self.lighthouse = LighthouseEnd(self, on_input)
        return self.lighthouse

    def kill_lighthouse(self, unsent_s: float) -> None:
        """Its process dies; of what it sent in the last ``unsent_s`` seconds, some connections lose all."""
        end = self.lighthouse
        if end is None:
            return
        end.close()
        for connection in tuple(end.connections.values()):
            lost_from = self.clock.now - unsent_s if self.random.random() < 0.5 else float("inf")
            connection.orphan(lost_from)
        end.connections.clear()
