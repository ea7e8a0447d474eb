"""Very many members in their simplest form before the real core: each says Hello, and beats.

For questions of number: how many are failed in thousands of hours though they live, and what a hundred
thousand cost. Everybody beats once a tick (a heartbeat interval); who is silent in a tick is what chance
decides. Beats are taken in at the beginning of the tick in which they arrive and deadlines judged at its end,
so a lease is up to one tick shorter here than it is in truth. The transport is left out, and so are the
sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self._names = [(f"job{number // MEMBERS_OF_A_JOB_MAX}", f"m{number}") for number in range(size)]
        self._index = {name: number for number, (_, name) in enumerate(self._names)}
        self._beats: list[Received | None] = [None] * size
        self._silent: dict[int, Received] = {}
        for number in range(size):
            self.join(number)
        self._step(TimePassed())

    def join(self, number: int) -> None:
        """A new process of that member, with its listener."""
        job_id, name = self._names[number]
        token, topic = number.to_bytes(16, "big"), listener_topic(number.to_bytes(16, "big"))
        process = Process("host", "boot", number + 1, 1)
        plain = Hello(job_id, name, token, process, 0, 1, "", None, b"", "", 0, 1, 0.0)
        welcome = self._welcome(Received(b"t" + token, plain))
        self._step(TopicHeld(topic))
        self._step(Received(b"l" + token, plain._replace(topic=topic)))
        self._silent.pop(number, None)
        self._beats[number] = self._beat(number, welcome.incarnation)

    def hush(self, number: int) -> None:
        """It is not heard for now."""
        beat = self._beats[number]
        if beat is not None:
            self._silent[number] = beat
            self._beats[number] = None

    def speak(self, number: int) -> None:
        """It is heard again."""
        beat = self._silent.pop(number, None)
        if beat is not None:
            self._beats[number] = beat

    def die(self, number: int) -> None:
        """Killed; its listener lives to tell."""
        self.hush(number)
        token = number.to_bytes(16, "big")
        process = Process("host", "boot", number + 1, 1)
        self._step(Received(b"l" + token, Obituary(self._names[number][0], token, process, _KILLED)))

    def tick(self) -> list[int]:
        """One heartbeat interval passes. Who was failed in it."""
        step, now = self.core.step, self.now
        count = 0
        for beat in self._beats:
            if beat is not None:
                step(beat, now)
                count += 1
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
    """Who is silent for how long: packets lost and sent again, and processes not scheduled.

    A beat is lost with the probability ``loss``; it comes 200 ms later, or 400 ms after that if it is lost
    again, and so on, and the beats after it wait behind it. Every ``pause_every_s`` on average a process is
    held up for 300 ms, after which the next beat can be lost as any other. Delay and jitter (0 to 40 ms) are
    less than the tick that the crowd rounds away.
    """

    def __init__(self, random: Random, loss: float, pause_every_s: float, tick_s: float) -> None:
        self._random = random
        self._loss = loss
        self._pause = tick_s / pause_every_s if pause_every_s else 0.0
        self._tick_s = tick_s
        self.longest_s = 0.0

    def until_next(self) -> int:
        """Ticks until something happens to one member."""
        chance = self._loss + self._pause
        return 1 + int(self._random.expovariate(chance)) if chance else 1 << 62

    def silence(self) -> int:
        """For how many ticks nothing comes then."""
        chance = self._loss + self._pause
        length_s = self._outage_s()
        if self._random.random() * chance < self._pause:
            length_s = 0.3 + (self._outage_s() if self._random.random() < self._loss else 0.0)
        self.longest_s = max(self.longest_s, length_s)
        return -int(-(length_s + 0.04) // self._tick_s)

    def _outage_s(self) -> float:
        """From the time a packet was to arrive to the time it does."""
        outage_s, retry_s = 0.2, 0.2
        while self._random.random() < self._loss:
            retry_s *= 2
            outage_s += retry_s
        return outage_s


def soaked(crowd: Crowd, luck: Luck, ticks: int) -> Iterator[int]:
    """Let so many ticks pass under such luck; yields the number of those failed in each. They join again."""
    calendar: dict[int, list[tuple[bool, int]]] = {}
    for number in range(len(crowd._beats)):
        calendar.setdefault(luck.until_next(), []).append((False, number))
    for tick in range(ticks):
        for speaks, number in calendar.pop(tick, ()):
            if speaks:
                crowd.speak(number)
                calendar.setdefault(tick + luck.until_next(), []).append((False, number))
            else:
                crowd.hush(number)
                calendar.setdefault(tick + luck.silence(), []).append((True, number))
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
