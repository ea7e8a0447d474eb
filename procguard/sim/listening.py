"""The trainer's companions in virtual time: links, sessions in a thread or a process, the failure thread.

The loop, the session and the companion are the real ones. What is simulated is what the kernel does for them:
which descriptor is readable, which process runs, and when a death shows.
"""

from __future__ import annotations

import selectors
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from random import Random
from typing import Any, Protocol

from procguard.adapters.base import RankServer
from procguard.client.companion import Companion, Hears
from procguard.client.group_host import GroupHost
from procguard.client.hosts import Host
from procguard.client.link_words import Enrol, Farewell, LinkMessage
from procguard.client.loop import ListenerLoop, Watch
from procguard.client.session import Session, Trainer
from procguard.messages import Cause, Phase, listener_topic
from procguard.sim.clock import Alarm, VirtualClock
from procguard.sim.network import MemberEnd, Network, Path
from procguard.sim.tasks import Computer

LINK_S = 0.00005
BOOT_FIRST_S, BOOT_LAST_S = 0.03, 0.45
"""A listener process takes so long to start, idle or crowded."""
LINK_BACKLOG_MAX = 10_000
_NONCE_BYTES = 16


class Link:
    """One end of a link; what is said arrives in order, a moment later."""

    def __init__(self, clock: VirtualClock, number: int, on_readable: Callable[[], None]) -> None:
        self.other: Link | None = None
        self._clock = clock
        self._number = number
        self._on_readable = on_readable
        self._inbox: deque[LinkMessage] = deque()
        self._is_ended = False
        self._end_is_known = False

    @property
    def readable(self) -> bool:
        """Whether there is something that its reader has not yet taken."""
        return bool(self._inbox) or (self._is_ended and not self._end_is_known)

    def fileno(self) -> int:
        return self._number

    def send(self, message: LinkMessage) -> bool:
        other = self.other
        if other is None or self._is_ended:
            return False
        self._clock.after(LINK_S, other._arrive, message)
        return True

    def receive(self) -> list[LinkMessage] | None:
        if not self._inbox and self._is_ended:
            self._end_is_known = True
            return None
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    def close(self) -> None:
        other, self.other = self.other, None
        if other is not None:
            self._clock.after(LINK_S, other._end)

    def _arrive(self, message: LinkMessage) -> None:
        if self.other is not None:
            assert len(self._inbox) < LINK_BACKLOG_MAX
            self._inbox.append(message)
            self._on_readable()

    def _end(self) -> None:
        self._is_ended = True
        self._on_readable()


class Board:
    """What the trainer shows of itself, as in the shared page."""

    def __init__(self) -> None:
        self.phase, self.progress, self.step = Phase.STARTING, 0, 0

    def write(
        self, *, phase: Phase | None = None, progress: int | None = None, step: int | None = None
    ) -> None:
        self.phase = self.phase if phase is None else phase
        self.progress = self.progress if progress is None else progress
        self.step = self.step if step is None else step


class Watched(Protocol):
    """The trainer's process as its sessions see it."""

    computer: Computer
    board: Board
    is_stopped: bool
    cause: Cause | None
    """Of its death, once that shows."""


class _ThreadWatch:
    """From inside, it is neither dead nor stopped."""

    def __init__(self, trainer: Watched) -> None:
        self._trainer = trainer

    def fds(self) -> Sequence[int]:
        return ()

    def look(self) -> tuple[Trainer, Cause | None]:
        board = self._trainer.board
        return Trainer(board.phase, board.progress, board.step), None


class _ProcessWatch:
    """The witness."""

    def __init__(self, trainer: Watched, number: int) -> None:
        self.number = number
        self._trainer = trainer

    @property
    def readable(self) -> bool:
        return self._trainer.cause is not None

    def fds(self) -> Sequence[int]:
        return (self.number,)

    def look(self) -> tuple[Trainer, Cause | None]:
        board = self._trainer.board
        seen = Trainer(board.phase, board.progress, board.step, self._trainer.is_stopped)
        return seen, self._trainer.cause


class SessionHost:
    """A session with its loop: in a process of its own, or in a thread of the trainer.

    Args:
        heard: of the trainer's end of the link: something can be read there.
        ended: the session has run to its end, or its process was killed.
    """

    def __init__(
        self,
        trainer: Watched,
        network: Network,
        path: Path,
        random: Random,
        numbers: Callable[[], int],
        *,
        threaded: bool,
        heard: Callable[[], None],
    ) -> None:
        clock = network.clock
        self.computer = trainer.computer if threaded else Computer(clock)
        self.pid = None if threaded else numbers()
        self.is_over = False
        ours, self._theirs = Link(clock, numbers(), heard), Link(clock, numbers(), self.wake)
        ours.other, self._theirs.other = self._theirs, ours
        self.link = ours
        topic = listener_topic(random.randbytes(_NONCE_BYTES))
        self.session = Session(threaded=threaded, topic=topic)
        self._watch: Any = _ThreadWatch(trainer) if threaded else _ProcessWatch(trainer, numbers())
        self._network, self._path, self._clock = network, path, clock
        self._transport: MemberEnd | None = None
        self._loop: ListenerLoop | None = None
        self._alarm: Alarm | None = None
        self._is_due = False
        boot_s = 0.0 if threaded else random.uniform(BOOT_FIRST_S, BOOT_LAST_S)
        clock.after(boot_s, self.computer.do, self._boot)

    def close(self) -> None:
        """From the trainer: go."""
        self.link.send(Farewell())
        self.link.close()

    def ended_with(self) -> str:
        return "its simulated end"

    def kill(self) -> None:
        """SIGKILL, of a listener process."""
        self.computer.die()
        self._end()

    def hang_up(self) -> None:
        """The trainer's process, whose thread this is, has died."""
        self._end()

    def wake(self) -> None:
        """Something may have come."""
        if not self._is_due:
            self._is_due = True
            self._clock.after(0.0, self.computer.do, self._turn)

    def _boot(self) -> None:
        if self.is_over:
            return
        self._transport = MemberEnd(self._network, self._path, self.wake)
        self._transport.waiting = self._ready
        watch: Watch = self._watch
        link = self._theirs
        self._loop = ListenerLoop(
            self.session, self._transport, link, watch, GroupHost(no_server), self._clock
        )
        self.wake()

    def _ready(self, timeout_s: float, fds: tuple[int, ...]) -> list[int]:
        readable = [self._theirs.fileno()] if self._theirs.readable else []
        if getattr(self._watch, "readable", False):
            readable += self._watch.fds()
        return [fd for fd in fds if fd in readable]

    def _turn(self) -> None:
        self._is_due = False
        loop = self._loop
        if loop is None or self.is_over:
            return
        loop.turn()
        if loop.is_over():
            self._end()
            return
        if self._theirs.readable:
            self.wake()
        self._clock.cancel(self._alarm)
        self._alarm = None
        due_at = loop.next_deadline()
        if due_at < inf:
            self._alarm = self._clock.at(due_at, self.wake)

    def _end(self) -> None:
        self.is_over = True
        self._clock.cancel(self._alarm)
        self._theirs.close()
        if self._transport is not None:
            self._transport.close()


class _Links(selectors.BaseSelector):
    """A selector over simulated links; it never waits."""

    def __init__(self, find: Callable[[int], Link | None]) -> None:
        self._find = find
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = key = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = []
        for number, key in self._keys.items():
            link = self._find(number) if isinstance(number, int) else None
            if link is not None and link.readable:
                ready.append((key, selectors.EVENT_READ))
        return ready

    def get_map(self) -> Any:
        return self._keys


class SimCompanion(Companion):
    """The real companion, whose failure thread is run by the clock."""

    def __init__(
        self,
        computer: Computer,
        start_thread: Callable[[], Host],
        start_process: Callable[[], Host] | None,
        hears: Hears,
    ) -> None:
        super().__init__(start_thread, start_process, hears, computer.clock, selector=_Links(self._link))
        self._computer = computer
        self._alarm: Alarm | None = None
        self._is_due = False

    def start(self, enrol: Enrol) -> None:
        self._enrol = enrol
        self._man(self._thread_post)
        self._wake()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        for post in self._posts:
            self._send_home(post)
        self.drop()

    def drop(self) -> None:
        """Its process has died: the descriptors go, nothing is said."""
        self._closing = True
        self._computer.clock.cancel(self._alarm)
        self._wake_read.close()
        self._wake_write.close()

    def hosts(self) -> list[SessionHost]:
        """Those that are there."""
        return [host for host in self._hosts() if isinstance(host, SessionHost)]

    def _wake(self) -> None:
        if not self._is_due and not self._closing:
            self._is_due = True
            self._computer.clock.after(0.0, self._computer.do, self._run_turn)

    def _run_turn(self) -> None:
        self._is_due = False
        if self._closing:
            return
        self.turn()
        if any(host.link.readable for host in self.hosts()):
            self._wake()  # descriptors stay readable until all is read, and the end as well
        self._computer.clock.cancel(self._alarm)
        due_at = self.next_deadline()
        self._alarm = self._computer.clock.at(due_at, self._wake) if due_at < inf else None

    def _link(self, number: int) -> Link | None:
        return next((host.link for host in self.hosts() if host.link.fileno() == number), None)


def no_server(host: str) -> RankServer:
    """Replicas of one rank are served by nobody."""
    raise AssertionError("a group of one rank is served by nobody")


def numbering() -> Callable[[], int]:
    """Descriptors and pids, none of them twice."""
    numbers = count(1)
    return lambda: next(numbers)
