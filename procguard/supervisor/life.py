"""The life of one worker: what is asked of it, what happens to it, and what is to be done about both.

Commands are queued and taken in the order in which they came, each when the one before it is done; none is
refused as busy, and none is done twice (a start of what runs and a stop of what does not are done at once).

=========  ==========================================  ====================================================
stage      what lives                                  leaves it on
=========  ==========================================  ====================================================
IDLE       nothing                                     Start
WAITING    nothing; a start is due                     the time; Start; Stop (cancels it)
ALIVE      the process (the *leader*)                  its end; Stop
ENDING     the leader, told to end                     its end; the deadline (SIGKILL; then STUCK)
SWEEPING   perhaps what the leader left behind         none of it left; the deadline (SIGKILL; then STUCK)
STUCK      something that SIGKILL does not end         its end
=========  ==========================================  ====================================================

A stop tells the leader alone: it knows best how to end its own children, and a signal to all at once looks to
it as if they had crashed. What it leaves behind is told the same, and has until the same deadline (a leader
may be no more than a shell around the program). What a *crash* leaves behind is killed at once: it holds the
memory of a GPU, or a port, that the replacement needs. No start happens before all of it is gone.

Pure: events and ``now`` (monotonic seconds) come in, effects go out. Never a process, a clock or a file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from math import inf

from procguard.supervisor.exits import (
    Exit,
    ExitKind,
    Stop,
    WorkerState,
    classify,
    not_started,
    state_after,
)

KILL_WAIT_S = 5.0
"""How long something may outlive SIGKILL before it is called unkillable."""


class Stage(Enum):
    """See the module's table."""

    IDLE = auto()
    WAITING = auto()
    ALIVE = auto()
    ENDING = auto()
    SWEEPING = auto()
    STUCK = auto()


# --- what happens ---


@dataclass(frozen=True, slots=True)
class StartAsked:
    """``command`` is the caller's number for it, given back by ``Done``."""

    command: int
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StopAsked:
    """``force``: SIGKILL at once, also for a stop that is going on."""

    command: int
    stop: Stop
    force: bool = False


@dataclass(frozen=True, slots=True)
class Spawned:
    """The answer to ``Spawn``; also said of a living worker of an earlier guard."""


@dataclass(frozen=True, slots=True)
class NotSpawned:
    """The other answer to ``Spawn``."""

    why: str


@dataclass(frozen=True, slots=True)
class LeaderEnded:
    """The process has ended; ``status`` is its wait status, None where nobody can tell it."""

    status: int | None
    oom: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """The answer to ``Sweep``, and said again whenever something of what was left ends."""

    left_count: int


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Look at the deadlines."""


Event = StartAsked | StopAsked | Spawned | NotSpawned | LeaderEnded | Swept | TimePassed


# --- what is to be done ---


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process; answer with ``Spawned`` or ``NotSpawned``."""


@dataclass(frozen=True, slots=True)
class TellLeader:
    """Send the stop signal to the leader."""


@dataclass(frozen=True, slots=True)
class KillAll:
    """Send SIGKILL to the leader and all of its process group."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Look for what the leader left behind and send it SIGKILL, or the stop signal (once); answer
    ``Swept``."""

    kill: bool


@dataclass(frozen=True, slots=True)
class TellStarted:
    """The process runs, to whoever wants to know."""


@dataclass(frozen=True, slots=True)
class Tell:
    """The exit, to whoever wants to know."""

    exit: Exit


@dataclass(frozen=True, slots=True)
class TellUnkillable:
    """Something outlives SIGKILL, to whoever wants to know."""


@dataclass(frozen=True, slots=True)
class Bury:
    """Nothing lives any longer: reap, forget the records."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command is done. ``error``: why a start failed, for its caller to raise."""

    command: int
    ok: bool
    error: str = ""


Effect = Spawn | TellLeader | KillAll | Sweep | TellStarted | Tell | TellUnkillable | Bury | Done


class Life:
    """One worker's; ``stop_timeout_s`` is between the stop signal and SIGKILL."""

    def __init__(self, stop_timeout_s: float) -> None:
        self.stop_timeout_s = stop_timeout_s
        self.stage = Stage.IDLE
        self.last_exit: Exit | None = None
        self.start_at = inf
        """When a delayed start is due (monotonic seconds)."""
        self._rest = WorkerState.STOPPED
        """The state while nothing lives and nothing is due."""
        self._queue: deque[StartAsked | StopAsked] = deque()
        self._spawning: StartAsked | None = None
        self._stopping: list[int] = []
        """Commands that wait for the end of everything."""
        self._stop: Stop | None = None
        self._killed = False
        self._leader_lives = False
        self._deadline = inf

    @property
    def state(self) -> WorkerState:
        """For others."""
        if self.stage is Stage.IDLE:
            return WorkerState.STARTING if self._spawning else self._rest
        if self.stage is Stage.SWEEPING:
            return self._rest if self._stop is None else WorkerState.STOPPING
        return {
            Stage.WAITING: WorkerState.WAITING,
            Stage.ALIVE: WorkerState.RUNNING,
            Stage.ENDING: WorkerState.STOPPING,
            Stage.STUCK: WorkerState.UNKILLABLE,
        }[self.stage]

    @property
    def stoppable(self) -> bool:
        """Whether a stop has something to do: a process, what it left, or a start that is due."""
        return self.stage is not Stage.IDLE or bool(self._queue)

    def next_deadline(self) -> float:
        """When ``TimePassed`` is due."""
        return self.start_at if self.stage is Stage.WAITING else self._deadline

    def step(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Take in what has happened; the effects are to be performed in their order."""
        return tuple(self._step(event, now))

    def _step(self, event: Event, now: float) -> Iterator[Effect]:
        if isinstance(event, StopAsked):
            self._queue.append(event)
            if event.force and self._stopping and not self._killed:
                yield from self._kill(now)
        elif isinstance(event, StartAsked):
            self._queue.append(event)
        elif isinstance(event, Spawned):
            yield from self._spawned()
        elif isinstance(event, NotSpawned):
            yield from self._not_spawned(event.why)
        elif isinstance(event, LeaderEnded):
            yield from self._leader_ended(event, now)
        elif isinstance(event, Swept):
            yield from self._swept(event.left_count)
        elif now >= self.next_deadline():
            yield from self._deadline_passed(now)
        yield from self._take_commands(now)

    # --- commands ---

    def _take_commands(self, now: float) -> Iterator[Effect]:
        while self._queue and not self._spawning:
            command = self._queue[0]
            if isinstance(command, StartAsked):
                if self.stage in (Stage.ENDING, Stage.SWEEPING):
                    return
                self._queue.popleft()
                yield from self._start(command, now)
            else:
                self._queue.popleft()
                yield from self._begin_stop(command, now)

    def _start(self, command: StartAsked, now: float) -> Iterator[Effect]:
        if self.stage is Stage.ALIVE:
            yield Done(command.command, True)
        elif self.stage is Stage.STUCK:
            yield Done(command.command, False)
        elif command.delay_s > 0:
            self.stage, self.start_at = Stage.WAITING, now + command.delay_s
            yield Done(command.command, True)
        else:
            self.stage, self.start_at = Stage.IDLE, inf
            self._spawning = command
            yield Spawn()

    def _begin_stop(self, command: StopAsked, now: float) -> Iterator[Effect]:
        if self.stage in (Stage.IDLE, Stage.WAITING):
            if self.stage is Stage.WAITING:
                self._rest = WorkerState.STOPPED
            self.stage, self.start_at = Stage.IDLE, inf
            yield Done(command.command, True)
        elif self.stage is Stage.STUCK:
            yield Done(command.command, False)
            yield KillAll() if self._leader_lives else Sweep(kill=True)  # it may have become killable
        else:
            self._stopping.append(command.command)
            if self.stage is Stage.ALIVE:
                self._stop = command.stop
                self.stage = Stage.ENDING
                self._deadline = now + self.stop_timeout_s
                if not command.force:
                    yield TellLeader()
            if command.force and not self._killed:
                yield from self._kill(now)

    def _kill(self, now: float) -> Iterator[Effect]:
        self._killed = True
        self._deadline = now + KILL_WAIT_S
        yield KillAll() if self._leader_lives else Sweep(kill=True)

    # --- what happens to the process ---

    def _spawned(self) -> Iterator[Effect]:
        self.stage, self._rest = Stage.ALIVE, WorkerState.STOPPED
        self._leader_lives, self._stop, self._killed, self._deadline = True, None, False, inf
        yield TellStarted()
        if self._spawning and self._spawning.command:
            yield Done(self._spawning.command, True)
        self._spawning = None

    def _not_spawned(self, why: str) -> Iterator[Effect]:
        assert self._spawning is not None, "nobody asked for a start"
        self.last_exit = not_started(why)
        self._rest = WorkerState.FAILED
        command, self._spawning = self._spawning.command, None
        # A start that was due has no caller who could be told: it is a failure like others.
        yield Done(command, False, why) if command else Tell(self.last_exit)

    def _leader_ended(self, event: LeaderEnded, now: float) -> Iterator[Effect]:
        self._leader_lives = False
        self.last_exit = classify(event.status, stop=self._stop, oom=event.oom)
        self._rest = state_after(self.last_exit)
        yield Tell(self.last_exit)
        graceful = self._stop is not None and not self._killed and now < self._deadline
        self.stage = Stage.SWEEPING
        if not graceful:
            self._killed = True
            self._deadline = now + KILL_WAIT_S
        yield Sweep(kill=not graceful)

    def _swept(self, left_count: int) -> Iterator[Effect]:
        if left_count or self._leader_lives or self.stage not in (Stage.SWEEPING, Stage.STUCK):
            return
        self.stage, self._deadline = Stage.IDLE, inf
        yield Bury()
        yield from self._answer_stops(True)

    def _answer_stops(self, ok: bool) -> Iterator[Effect]:
        commands, self._stopping = self._stopping, []
        for command in commands:
            yield Done(command, ok)

    def _deadline_passed(self, now: float) -> Iterator[Effect]:
        if self.stage is Stage.WAITING:
            yield from self._start(StartAsked(command=0), now)
        elif not self._killed:
            yield from self._kill(now)
        else:
            self.stage, self._deadline = Stage.STUCK, inf
            if self._leader_lives:
                self.last_exit = Exit(
                    ExitKind.UNKILLABLE, text="outlives SIGKILL: in a system call (state D)"
                )
            yield TellUnkillable()
            yield from self._answer_stops(False)
