"""One replica: its machine, and the trainer's processes that run on it one after the other.

A trainer is the real ``Replica`` with its formation, fence, requests and companion, under a train loop whose
model is one number: each committed step mixes the reduced gradient into it. Two replicas hold the same state
if and only if their numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from math import inf
from random import Random
from typing import Any, Protocol, cast

from procguard.client.companion import Hears
from procguard.client.lighthouse_client import LighthouseClient
from procguard.client.link_words import Enrol, InQuorum, LastWords
from procguard.client.membership import LEAVE_TIMEOUT_S, Membership
from procguard.client.replica import Replica, Rules, WorldSizeMode
from procguard.errors import ProcGuardError
from procguard.messages import (
    Cause,
    CauseKind,
    Claim,
    Hello,
    Incarnation,
    Notice,
    Participant,
    Phase,
    Process,
    Quorum,
    QuorumClaim,
    QuorumId,
    Welcome,
)
from procguard.sim.clock import VirtualClock
from procguard.sim.collective import Fabric, Gradient, SimCheckpoints, SimGroup
from procguard.sim.listening import BOOT_LAST_S, Board, SessionHost, SimCompanion
from procguard.sim.network import MemberEnd, Network, Path
from procguard.sim.tasks import Computer, Task, TaskWorker

JOB = "train"
WITNESS_FIRST_S, WITNESS_LAST_S = 0.0002, 0.002
CONNECT_TIMEOUT_S = 60.0
KILLED = Cause(CauseKind.PROCESS_EXIT, signal=9)
RAISED = Cause(CauseKind.PROCESS_EXIT, exit_code=1)
_MODULUS = (1 << 61) - 1


class Plan(Protocol):
    """What a schedule says of every trainer."""

    @property
    def min_replicas(self) -> int: ...

    @property
    def step_s(self) -> float: ...

    @property
    def timeout_s(self) -> float: ...

    @property
    def quorum_timeout_s(self) -> float: ...

    @property
    def progress_timeout_s(self) -> float: ...


class Sees(Protocol):
    """Who watches the trainers: the invariants."""

    def born(self, process: TrainerProcess, incarnation: Incarnation) -> None: ...

    def told(self, process: TrainerProcess, notice: Notice) -> None: ...

    def heard(self, process: TrainerProcess, epoch: int, notices: tuple[Notice, ...]) -> None: ...

    def configures(self, process: TrainerProcess, quorum_id: int) -> None: ...

    def aborts(self, process: TrainerProcess, quorum_id: int) -> None: ...

    def contributes(self, process: TrainerProcess, quorum_id: int) -> None: ...

    def commits(self, process: TrainerProcess, quorum_id: int) -> None: ...

    def raised(self, process: TrainerProcess, error: Exception) -> None: ...

    def line(self, text: str) -> None: ...


class World:
    """What all share."""

    def __init__(
        self, clock: VirtualClock, network: Network, fabric: Fabric, numbers: Callable[[], int], sees: Sees
    ) -> None:
        self.clock = clock
        self.network = network
        self.fabric = fabric
        self.numbers = numbers
        self.sees = sees


class Machine:
    """Where a replica runs. It knows since when nothing has kept it from being heard in time."""

    def __init__(self, clock: VirtualClock, path: Path) -> None:
        self.path = path
        self._clock = clock
        self._troubles = 0
        self._held = 0
        self._disturbed_at = 0.0
        self._held_up_until = -inf
        self._speechless_until = -inf
        self.lossless_since = 0.0
        path.disturb = self.disturb
        path.lost_packet = self._lost_packet

    def _lost_packet(self) -> None:
        self.lossless_since = self._clock.now

    def disturb(self) -> None:
        """Something short happened to it."""
        self._disturbed_at = self._clock.now

    def held_up(self, length_s: float) -> None:
        """Nothing is scheduled for so short a time that it does not matter, unless nobody was listening."""
        self._held_up_until = self._clock.now + length_s
        if self._clock.now < self._speechless_until:
            self.disturb()

    def listener_died(self) -> None:
        """The trainer speaks in its place, if it can."""
        self._speechless_until = self._clock.now + 2 * BOOT_LAST_S
        if self._clock.now < self._held_up_until:
            self.disturb()

    def hold(self, change: int) -> None:
        """One connection of it is held up from now on (1), or no longer (-1). One excuses nothing, two do."""
        if self._held == 1 and change > 0:
            self.trouble(1)
        self._held += change
        if self._held == 1 and change < 0:
            self.trouble(-1)

    def trouble(self, change: int) -> None:
        """Something begins (1) or ends (-1)."""
        self._troubles += change
        self.disturb()

    @property
    def well_since(self) -> float:
        """Alive, scheduled, and connected within the declared delay bound."""
        troubled = self._troubles or self.path.stuck_streams
        return self._clock.now if troubled else self._disturbed_at


class SimMembership:
    """As ``client.membership``, on simulated parts: the same client, the same companion."""

    group_rank = 0
    group_world_size = 1

    def __init__(self, process: TrainerProcess, hears: Hears) -> None:
        self.replica_id = process.name
        self._process = process
        self._hears = hears
        self._companion: SimCompanion | None = None
        self._client = process.client
        process.membership = self
        welcome = self._client.join(CONNECT_TIMEOUT_S)
        self._companion = SimCompanion(process.computer, self._start_thread, self._start_process, self)
        self._companion.start(self._enrol(welcome))

    @property
    def incarnation(self) -> Incarnation:
        return self._client.welcome.incarnation

    @property
    def companion(self) -> SimCompanion | None:
        return self._companion

    @property
    def listening_pids(self) -> list[int]:
        return self._companion.listening_pids if self._companion else []

    def quorum(self, asks: Participant, timeout_s: float) -> Quorum:
        companion = self._companion
        assert companion is not None
        quorum = self._client.quorum(asks, timeout_s, lambda: companion.over)
        members = tuple([(p.replica_id, p.incarnation) for p in quorum.participants])
        companion.in_quorum(InQuorum(self._client.epoch, QuorumClaim(quorum.quorum_id, members)))
        return quorum

    def vote(self, round: int, commits: bool, timeout_s: float) -> bool:
        return commits

    def check_group(self) -> None:
        """A group of one rank loses none."""

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        assert self._companion is not None
        self._companion.call_later(delay_s, call)

    def show(
        self, *, phase: Phase | None = None, progress: int | None = None, step: int | None = None
    ) -> None:
        self._process.board.write(phase=phase, progress=progress, step=step)

    def say_last_words(self, error: BaseException) -> None:
        if self._companion:
            self._companion.tell(LastWords(type(error).__name__))

    def leave(self, step: int) -> None:
        self._client.leave(step, LEAVE_TIMEOUT_S)
        if self._companion:
            self._companion.close()
        self._client.close()

    def disown(self) -> None:
        """Nothing forks here."""

    def hear(self, epoch: int, notices: tuple[Notice, ...]) -> None:
        self._hears.hear(epoch, notices)
        self._process.sees.heard(self._process, epoch, notices)

    def over(self, epoch: int, incarnation: Incarnation, cause: Cause) -> None:
        self._process.sees.line(f"{self._process.label}: told that {incarnation} is over: {cause}")
        self._process.given_up = True
        self._hears.over(epoch, incarnation, cause)

    def left_out(self, quorum_id: QuorumId) -> None:
        self._process.sees.line(f"{self._process.label}: left out by {quorum_id}")
        self._process.given_up = True
        self._hears.left_out(quorum_id)

    def reborn(self, welcome: Welcome) -> None:
        self._process.sees.born(self._process, welcome.incarnation)
        if self._companion:
            self._companion.enrol(self._enrol(welcome))

    def _enrol(self, welcome: Welcome) -> Enrol:
        hello = self._process.hello._replace(claim=Claim(welcome.incarnation, None), epoch=welcome.epoch)
        return Enrol(hello, welcome.notice_port, welcome.seq, welcome.settings, "")

    def _start_thread(self) -> SessionHost:
        return self._start(threaded=True)

    def _start_process(self) -> SessionHost:
        return self._start(threaded=False)

    def _start(self, *, threaded: bool) -> SessionHost:
        process, companion = self._process, self._companion
        assert companion is not None
        host = SessionHost(
            process,
            process.world.network,
            process.machine.path,
            process.random,
            process.world.numbers,
            threaded=threaded,
            heard=companion._wake,
        )
        process.hosts.append(host)
        return host


class TrainerProcess:
    """One process of a trainer, from its start to its end.

    Attributes:
        given_up: it was told so: that its life is over, or that the others went on without it.
        weights: what the train loop trains.
    """

    def __init__(
        self,
        world: World,
        machine: Machine,
        name: str,
        plan: Plan,
        random: Random,
        ended: Callable[[TrainerProcess], None],
    ) -> None:
        self.world, self.machine, self.name, self.plan, self.random = world, machine, name, plan, random
        self.sees = world.sees
        self.number = world.numbers()
        self.label = f"{name}#{self.number}"
        self.computer = Computer(world.clock)
        self.board = Board()
        self.is_stopped = False
        self.cause: Cause | None = None
        self.given_up = False
        self.has_left = False
        self.wants_to_leave = False
        self.hangs_until = 0.0
        self.weights = self.number
        self.commits = 0
        self.last_commit_at = -1.0
        self.first_born_at = float("inf")
        self.first_born_at = inf
        self.lives: list[Incarnation] = []
        self.hosts: list[SessionHost] = []
        self.membership: SimMembership | None = None
        self.replica: Replica | None = None
        self._ended = ended
        self._is_gone = False
        self._holds = 0
        self._transport = MemberEnd(world.network, machine.path, self._frames_came)
        self._transport.waiting = self._wait_for_frames
        self._waits: Task | None = None
        self.hello = Hello(
            JOB, name, random.randbytes(16), Process(name, "boot", self.number, self.number),
            0, 1, "", None, b"", "", 0, plan.min_replicas, plan.progress_timeout_s,
        )  # fmt: skip
        self.client = LighthouseClient(
            self._transport, self.hello, "simulation:1", self._reborn, world.clock, self._unheard
        )
        handle = self.label
        self.pg = SimGroup(world.fabric, self.computer, handle, plan.timeout_s)
        self.pg.aborting = lambda quorum_id: self.sees.aborts(self, quorum_id)
        self.pg.configuring = lambda quorum_id: self.sees.configures(self, quorum_id)
        self._checkpoints = SimCheckpoints(world.fabric, self.computer, f"state of {handle}")
        self.task = Task(self.computer, self._train, self._raised)

    @property
    def is_alive(self) -> bool:
        return not self._is_gone

    @property
    def fence_current(self) -> Quorum | None:
        """The quorum that the fence holds to be in use."""
        return self.replica._abort._fence.current if self.replica is not None else None

    # --- what happens to it

    def die(self, cause: Cause = KILLED, *, vanished: bool = False) -> None:
        """Its process ends; unless the machine went with it, the kernel hangs up and the witness sees it."""
        if self._is_gone:
            return
        self._is_gone = True
        self.computer.die()
        companion = self.membership.companion if self.membership else None
        hosts = companion.hosts() if companion else []
        if companion:
            companion.drop()
        for host in self.hosts:
            if host.pid is None or vanished:
                host.kill() if host.pid else host.hang_up()
        for host in hosts:
            host.link.close()
        self.client.close()
        self._ended(self)
        if not vanished:
            delay_s = self.random.uniform(WITNESS_FIRST_S, WITNESS_LAST_S)
            self.world.clock.after(delay_s, self._show_death, cause)

    def kill_listeners(self) -> None:
        """SIGKILL to the listener processes."""
        self.machine.listener_died()
        for host in self.hosts:
            if host.pid is not None and not host.is_over:
                host.kill()

    def stop(self, *, listeners: bool, by_signal: bool = True) -> None:
        """Not scheduled any more, by SIGSTOP or by the machine's being busy."""
        self._holds += 1
        self.is_stopped = self.is_stopped or by_signal
        self.computer.stop()
        if listeners:
            for host in self.hosts:
                host.computer.stop()

    def go_on(self) -> None:
        self._holds -= 1
        if self._holds:
            return
        self.is_stopped = False
        self.computer.go_on()
        for host in self.hosts:
            host.computer.go_on()

    def hang(self, until: float) -> None:
        """The train loop computes on and on; its other threads live."""
        self.hangs_until = until

    def _show_death(self, cause: Cause) -> None:
        self.cause = cause
        for host in self.hosts:
            if host.pid is not None:
                host.wake()

    # --- its train loop

    def _train(self) -> None:
        rules = Rules(
            min_replica_size=self.plan.min_replicas,
            use_async_quorum=True,
            world_size_mode=WorldSizeMode.DYNAMIC,
            init_sync=True,
            timeout=timedelta(seconds=self.plan.timeout_s),
            quorum_timeout=timedelta(seconds=self.plan.quorum_timeout_s),
            quorum_retries=0,
            max_retries=None,
        )
        replica = Replica(
            rules, self.name, "host", cast("Any", self.pg), cast("Any", self._checkpoints),
            self._load, self._save, self._join, lambda name: TaskWorker(self.computer),
        )  # fmt: skip
        self.replica = replica
        replica.on_failure(lambda notice: self.sees.told(self, notice))
        while not self.wants_to_leave:
            self._step(replica)
        replica.shutdown()
        self.has_left = True
        self.world.clock.after(0.0, self.die, Cause(CauseKind.PROCESS_EXIT, exit_code=0))

    def _step(self, replica: Replica) -> None:
        replica.start_quorum()
        clock = self.world.clock
        self.task.sleep(self.plan.step_s * self.random.uniform(0.8, 1.2))
        if self.hangs_until > clock.now:
            self.task.sleep(self.hangs_until - clock.now)
        gradient = Gradient(_mixed(self.weights, replica.current_step()))
        work = replica.allreduce(gradient, "sum")
        quorum = self.fence_current
        if gradient.value and quorum is not None and replica.errored() is None:
            self.sees.contributes(self, quorum.quorum_id.packed)
        work.wait()
        if replica.should_commit():
            self.weights = _mixed(self.weights, gradient.value)
            self.commits += 1
            self.last_commit_at = clock.now
            assert replica._round is not None and replica._round.quorum is not None
            self.sees.commits(self, replica._round.quorum.quorum_id.packed)

    def _join(self, hears: Hears) -> Membership:
        return cast("Membership", SimMembership(self, hears))

    def _reborn(self, welcome: Welcome) -> None:
        self.lives.append(welcome.incarnation)
        self.first_born_at = min(self.first_born_at, self.world.clock.now)
        self.given_up = False
        assert self.membership is not None
        self.membership.reborn(welcome)

    def _unheard(self) -> None:
        companion = self.membership.companion if self.membership else None
        if companion:
            companion.replace_listener()

    def _load(self, weights: int) -> None:
        self.weights = weights

    def _save(self) -> int:
        return self.weights

    def _raised(self, error: Exception) -> None:
        """An exception ends the process, as it would a real one."""
        if not isinstance(error, ProcGuardError):
            self.sees.raised(self, error)
        self.sees.line(f"{self.label}: ends by {type(error).__name__}: {error}")
        if self.membership is not None:
            self.membership.say_last_words(error)
        self.world.clock.after(0.0, self.die, RAISED)

    # --- its own connection to the lighthouse

    def _frames_came(self) -> None:
        if self._waits is not None:
            self._waits.wake()

    def _wait_for_frames(self, timeout_s: float, fds: tuple[int, ...]) -> list[int]:
        task = Task.current
        assert task is not None
        self._waits = task
        incoming = self._transport.talking.incoming
        task.wait_until(lambda: bool(incoming), self.world.clock.now + timeout_s)
        self._waits = None
        return []


def _mixed(weights: int, value: int) -> int:
    """Another number, as good as never the same for two different pairs; never 0."""
    return (weights * 6364136223846793005 + value * 1442695040888963407 + 1) % _MODULUS or 1
