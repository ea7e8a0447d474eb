"""Very many members in their simplest form before the real core: each says Hello, and beats.

For questions of number: how many are failed in thousands of hours though they live, and what a hundred
thousand cost. Everybody beats once a tick (a heartbeat interval), by each of a listener's two connections in
turn; which of them are blocked in a tick is what chance decides. Beats are taken in at the beginning of the
tick in which they arrive and deadlines judged at its end, so a lease is up to one tick shorter here than it
is in truth. The transport is left out, and so are the sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from procguard.lighthouse import roster
from procguard.lighthouse.core import Core
from procguard.lighthouse.events import Effect, Publish, Received, Send, TimePassed, TopicHeld
from procguard.lighthouse.roster import Options
from procguard.messages import (
    Cause,
    CauseKind,
    Heartbeat,
    Hello,
    Incarnation,
    Notice,
    NoticeBatch,
    Obituary,
    Phase,
    Process,
    Settings,
    Welcome,
    listener_topic,
)
from procguard.sim.clock import VirtualClock
from procguard.sim.invariants import Bounded, Findings, Violation

MEMBERS_OF_A_JOB_MAX = 5_000
WAYS = (0, 1)
"""A listener's two connections."""
PAUSE_S = 0.3
JITTER_S_MAX = 0.04
DEFAULTS = Settings(
    heartbeat_interval_s=0.1,
    heartbeat_timeout_s=1.0,
    thread_heartbeat_timeout_s=5.0,
    disconnect_grace_s=0.3,
    join_timeout_s=60.0,
)
"""As a lighthouse has them that was not told otherwise."""
EPOCH = 1_700_000_000_000
_KILLED = Cause(CauseKind.PROCESS_EXIT, signal=9)


class Crowd:
    """``size`` members, in as many jobs as that takes, who have joined at time 0.

    Attributes:
        events: taken in by the core so far.
        notices: published so far.
    """

    def __init__(self, size: int, settings: Settings) -> None:
        self.core = Core(Options(settings, 1, 29511, False), EPOCH, 0.0)
        self.now = 0.0
        self.events = 0
        self.notices: list[Notice] = []
        self._tick_s = settings.heartbeat_interval_s
        self._tick = 0
        self._names = [(f"job{number // MEMBERS_OF_A_JOB_MAX}", f"m{number}") for number in range(size)]
        self._index = {name: number for number, (_, name) in enumerate(self._names)}
        self._beat_of: list[Received | None] = [None] * size
        self._heard: tuple[list[Received | None], ...] = tuple([None] * size for _ in WAYS)
        """By way: what comes in a tick that is its turn."""
        for number in range(size):
            self.join(number)
        self._step(TimePassed())

    def join(self, number: int) -> None:
        """A new process of that member, with its listener; both its connections are new."""
        job_id, name = self._names[number]
        token, topic = number.to_bytes(16, "big"), listener_topic(number.to_bytes(16, "big"))
        process = Process("host", "boot", number + 1, 1)
        plain = Hello(job_id, name, token, process, 0, 1, "", None, b"", "", 0, 1, 0.0)
        welcome = self._welcome(Received(b"t" + token, plain))
        self._step(TopicHeld(topic))
        self._step(Received(b"l" + token, plain._replace(topic=topic)))
        self._beat_of[number] = self._beat(number, welcome.incarnation)
        for way in WAYS:
            self.speak(number, way)

    def hush(self, number: int, way: int) -> None:
        """What it says that way is not heard for now."""
        self._heard[way][number] = None

    def speak(self, number: int, way: int) -> None:
        """It is heard again that way."""
        self._heard[way][number] = self._beat_of[number]

    def hear_now(self, number: int) -> None:
        """A beat that was held back arrives."""
        beat = self._beat_of[number]
        if beat is not None:
            self._step(beat)

    def die(self, number: int) -> None:
        """Killed; its listener lives to tell."""
        self._beat_of[number] = None
        for way in WAYS:
            self.hush(number, way)
        token = number.to_bytes(16, "big")
        process = Process("host", "boot", number + 1, 1)
        self._step(Received(b"l" + token, Obituary(self._names[number][0], token, process, _KILLED)))

    def tick(self) -> list[int]:
        """One heartbeat interval passes. Who was failed in it."""
        step, now = self.core.step, self.now
        count = 0
        for beat in self._heard[self._tick % len(WAYS)]:
            if beat is not None:
                step(beat, now)
                count += 1
        self._tick += 1
        self.events += count
        self.now += self._tick_s
        before = len(self.notices)
        self._step(TimePassed())
        return [self._index[notice.replica_id] for notice in self.notices[before:]]

    def _beat(self, number: int, incarnation: Incarnation) -> Received:
        token = number.to_bytes(16, "big")
        return Received(b"l" + token, Heartbeat(token, incarnation, False, False, Phase.QUORUM, 0, 0))

    def _welcome(self, hello: Received) -> Welcome:
        for effect in self._step(hello):
            if isinstance(effect, Send) and isinstance(effect.message, Welcome):
                return effect.message
        raise AssertionError("a Hello of a new process is welcome")

    def _step(self, event: Received | TopicHeld | TimePassed) -> tuple[Effect, ...]:
        self.events += 1
        effects = self.core.step(event, self.now)
        for effect in effects:
            if isinstance(effect, Publish) and isinstance(effect.message, NoticeBatch):
                self.notices += effect.message.notices
        return effects


class Luck:
    """Which connection is blocked for how long: packets lost and sent again, and processes not scheduled.

    A packet is lost with the probability ``loss``; it comes 200 ms later, or 400 ms after that if it is lost
    again, and so on, and what is sent after it in the same connection waits behind it. Every
    ``pause_every_s`` on average a process is held up for 300 ms, and both its connections with it. Of delay
    and jitter (20 ms, more or less by up to 20) the most is added to each loss; otherwise they are less than
    the tick that the crowd takes from each lease.
    """

    def __init__(self, random: Random, loss: float, pause_every_s: float, tick_s: float) -> None:
        self._random = random
        self._loss_rate = loss / len(WAYS)
        self._loss = loss
        self._pause_rate = tick_s / pause_every_s if pause_every_s else 0.0
        self._tick_s = tick_s
        self.longest_s = 0.0

    def until_loss(self) -> int:
        """Ticks until one connection, which carries a packet in each second tick, loses one."""
        return self._until(self._loss_rate)

    def until_pause(self) -> int:
        """Ticks until a process is held up."""
        return self._until(self._pause_rate)

    def loss(self) -> int:
        """For how many ticks a connection is blocked that has lost a packet."""
        outage_s, retry_s = 0.2, 0.2
        while self._random.random() < self._loss:
            retry_s *= 2
            outage_s += retry_s
        self.longest_s = max(self.longest_s, outage_s)
        return -int(-(outage_s + JITTER_S_MAX) // self._tick_s)

    def pause(self) -> int:
        """For how many ticks a process is held up."""
        return round(PAUSE_S / self._tick_s)

    def _until(self, rate: float) -> int:
        return 1 + int(self._random.expovariate(rate)) if rate else 1 << 62


class _Blocked:
    """How often each connection of each member is blocked right now, for whatever reason."""

    def __init__(self, crowd: Crowd, size: int) -> None:
        self._crowd = crowd
        self._reasons = [[0] * size for _ in WAYS]

    def add(self, number: int, ways: Sequence[int]) -> None:
        for way in ways:
            self._reasons[way][number] += 1
            self._crowd.hush(number, way)

    def remove(self, number: int, ways: Sequence[int]) -> None:
        free = [way for way in ways if self._reasons[way][number] == 1]
        for way in ways:
            self._reasons[way][number] -= 1
        for way in free:
            self._crowd.speak(number, way)
        if free and len(ways) == 1:  # the packet that was lost; a process held up has sent nothing
            self._crowd.hear_now(number)


def soaked(crowd: Crowd, luck: Luck, ticks: int) -> Iterator[int]:
    """Let so many ticks pass under such luck; yields the number of those failed in each. They join again."""
    size = len(crowd._beat_of)
    blocked = _Blocked(crowd, size)
    calendar: dict[int, list[tuple[bool, int, Sequence[int]]]] = {}
    for number in range(size):
        calendar.setdefault(luck.until_pause(), []).append((False, number, WAYS))
        for way in WAYS:
            calendar.setdefault(luck.until_loss(), []).append((False, number, (way,)))
    for tick in range(ticks):
        for ends, number, ways in calendar.pop(tick, ()):
            is_pause = len(ways) > 1
            if ends:
                blocked.remove(number, ways)
                until = luck.until_pause() if is_pause else luck.until_loss()
            else:
                blocked.add(number, ways)
                until = luck.pause() if is_pause else luck.loss()
            calendar.setdefault(tick + until, []).append((not ends, number, ways))
        failed = crowd.tick()
        for number in failed:
            crowd.join(number)
        yield len(failed)


def graveyard(size: int = 1_500) -> list[Violation]:
    """So many of one job die, and an hour goes by: what the bounds on the memory of the dead say to that."""
    clock = VirtualClock()
    findings = Findings(clock)
    bounded = Bounded(findings)
    crowd = Crowd(size, DEFAULTS)
    for number in range(size):
        crowd.die(number)
    for hour in (0.0, roster.DEAD_KEPT_S):
        crowd.now += hour
        for _ in range(20):  # beacons, at which the dead are forgotten
            crowd.tick()
        clock.now = crowd.now
        bounded.look(crowd.core)
    left = sum(len(job.members) for job in crowd.core.roster.jobs.values())
    if left:
        findings.report("bounded", f"{left} members are remembered that died more than an hour ago")
    return findings.violations
