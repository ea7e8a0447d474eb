"""A lighthouse that can be killed anywhere and started again: the real service over the real core.

What is simulated is its process: when it is scheduled, where it dies (before or after its epoch is on the
disk, between any two frames that it sends), and what the next start finds on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf

from procguard.lighthouse.core import Core
from procguard.lighthouse.epoch_file import first_epoch
from procguard.lighthouse.events import Effect, Event
from procguard.lighthouse.roster import Options
from procguard.lighthouse.service import INTERVALS_PER_WAIT_MAX, Service
from procguard.messages import Settings
from procguard.sim.clock import Alarm, VirtualClock
from procguard.sim.network import LighthouseEnd, Network

WALL_CLOCK_MS = 1_700_000_000_000
UNSENT_S = 0.001
"""What was handed to the socket so shortly before a SIGKILL may not have left the process."""


class Disk(Enum):
    """What a start finds."""

    OWN = "own"
    OLDER = "older"
    """The state of the start before the last, as from a backup."""
    NONE = "none"


class LighthouseKilled(BaseException):
    """Its process has died in the middle of a turn."""


class WatchedCore(Core):
    """The core, with somebody who sees each step and its effects before they are performed."""

    watch: Callable[[WatchedCore, Event, tuple[Effect, ...], float], None]

    def step(self, event: Event, now: float) -> tuple[Effect, ...]:
        effects = super().step(event, now)
        self.watch(self, event, effects, now)
        return effects


class Lighthouse:
    """One lighthouse through all its starts.

    Args:
        watch: sees each step of each start's core.
        seen: called at the end of each turn.
    """

    def __init__(
        self,
        clock: VirtualClock,
        network: Network,
        settings: Settings,
        min_replicas: int,
        watch: Callable[[WatchedCore, Event, tuple[Effect, ...], float], None],
        seen: Callable[[WatchedCore], None],
    ) -> None:
        self.core: WatchedCore | None = None
        self.end: LighthouseEnd | None = None
        self.notice_loss = 0.0
        self.starts = 0
        self.clock_is_back_ms = 0
        """How far the wall clock was set back."""
        self._clock = clock
        self._network = network
        self._settings = settings
        self._min_replicas = min_replicas
        self._watch = watch
        self._seen = seen
        self._stored: list[int] = []
        """All epochs that were ever made durable, the last one last."""
        self._service: Service | None = None
        self._turned_at = 0.0
        self._alarm: Alarm | None = None
        self._is_paused = False
        self._frames_left: float = inf
        self._dies_at_persist = ""

    @property
    def is_up(self) -> bool:
        return self.core is not None

    def start(self, disk: Disk = Disk.OWN) -> None:
        """A new process. On a disk that an earlier one used it is a restart."""
        if self.core is not None:
            return
        stored = {Disk.OWN: self._stored[-1:], Disk.OLDER: self._stored[-2:-1], Disk.NONE: []}[disk]
        restarted = bool(stored)
        epoch = first_epoch(self._wall_clock_ms(), stored[0] if stored else None)
        try:
            self._persist(epoch)
        except LighthouseKilled:
            return
        self.starts += 1
        self.end = self._network.open(self._input)
        self.end.waiting = self._waited
        self.end.sending = self._sends
        self.end.notice_loss = self.notice_loss
        options = Options(self._settings, self._min_replicas, self.end.notice_port, restarted)
        self._turned_at = self._clock.now
        self.core = WatchedCore(options, epoch, self._clock.now)
        self.core.watch = self._watch
        self._service = Service(self.core, self.end, self._persist, lambda: self._turned_at, self._waited)
        self._turn()

    def kill(self) -> None:
        """SIGKILL, between two turns."""
        self.core = self._service = None
        self._is_paused = False
        self._frames_left, self._dies_at_persist = inf, ""
        self._clock.cancel(self._alarm)
        self._network.kill_lighthouse(UNSENT_S)
        self.end = None

    def kill_after(self, frames: int) -> None:
        """SIGKILL once it has sent so many more frames, with the rest of what it decided unsaid."""
        self._frames_left = frames

    def kill_at_persist(self, when: str) -> None:
        """SIGKILL ``before`` or ``after`` it next makes an epoch durable."""
        self._dies_at_persist = when

    def pause(self) -> None:
        """It is not scheduled: stopped, suspended, starved."""
        self._is_paused = True

    def go_on(self, deaf_s: float) -> None:
        """It is scheduled again; after a suspension its network comes back a moment later than itself."""
        self._is_paused = False
        if deaf_s and self.end is not None:
            self.end.is_deaf = True
            self._clock.after(deaf_s, self._hear_again, self.end)
        self._input()

    def _hear_again(self, end: LighthouseEnd) -> None:
        end.is_deaf = False
        self._input()

    def lose_notices(self, share: float) -> None:
        self.notice_loss = share
        if self.end is not None:
            self.end.notice_loss = share

    def _wall_clock_ms(self) -> int:
        return WALL_CLOCK_MS + int(1000 * self._clock.now) - self.clock_is_back_ms

    def _persist(self, epoch: int) -> None:
        when, self._dies_at_persist = self._dies_at_persist, ""
        if when != "before":
            self._stored.append(epoch)
        if when:
            raise LighthouseKilled

    def _sends(self) -> None:
        self._frames_left -= 1
        if self._frames_left < 0:
            raise LighthouseKilled

    def _waited(self, timeout_s: float) -> None:
        """The wait is over: only now does the loop see what time it is."""
        self._turned_at = self._clock.now

    def _input(self) -> None:
        if self._alarm is None or self._alarm[2] is None or self._alarm[0] > self._clock.now:
            self._clock.cancel(self._alarm)
            self._alarm = self._clock.after(0.0, self._turn)

    def _turn(self) -> None:
        service, core = self._service, self.core
        if service is None or core is None or self._is_paused:
            return
        try:
            service.run_once()
        except LighthouseKilled:
            self.kill()
            return
        self._seen(core)
        now = self._clock.now
        wait_s = INTERVALS_PER_WAIT_MAX * self._settings.heartbeat_interval_s
        self._clock.cancel(self._alarm)
        self._alarm = self._clock.at(min(core.next_deadline(), now + wait_s), self._turn)
