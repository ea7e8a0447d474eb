"""One run of one schedule: everybody on stage, the faults, and the end that must come to a good one."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from random import Random
from traceback import format_exception
from typing import NamedTuple

from procguard.sim.clock import VirtualClock
from procguard.sim.collective import Fabric
from procguard.sim.invariants import Findings, Violation, Watch
from procguard.sim.lighthouse import Disk, Lighthouse
from procguard.sim.listening import numbering
from procguard.sim.member import Machine, TrainerProcess, World
from procguard.sim.network import DOWN, RETRANSMIT_FIRST_S, UP, Connection, Network, Path
from procguard.sim.schedule import OLDEST, Fault, Kind, Schedule

SLICE_S = 0.5
RESTART_S = 0.5
"""After a trainer has ended by itself."""
STUCK_S = 40.0
"""After the last fault is over, everyone who lives must have committed again by then: a collective timed out,
a join_timeout or two, a connection whose retransmission had backed off."""
COMMITS_OWED = 2
AFTERMATH_S = 1.5
"""Three beacons: by then each notice has been heard by everyone."""
FORCED_KILL_S = 0.5
DEAF_S = 0.05


class Result(NamedTuple):
    seed: int
    violations: list[Violation]
    digest: str
    members: int
    events: int
    virtual_s: float
    commits: int
    false_failures: int


class Fleet:
    """The members of one job with their lighthouse and their network."""

    def __init__(self, schedule: Schedule, trace: Callable[[str], None] | None = None) -> None:
        self.schedule = schedule
        self.clock = VirtualClock()
        self.findings = Findings(self.clock, trace)
        self.watch = Watch(self.clock, schedule.settings, self.findings)
        seed = schedule.seed
        self.network = Network(self.clock, Random(f"network {seed}"))
        fabric = Fabric(self.clock, Random(f"fabric {seed}"))
        self.world = World(self.clock, self.network, fabric, numbering(), self.watch)
        self.lighthouse = Lighthouse(
            self.clock,
            self.network,
            schedule.settings,
            schedule.min_replicas,
            self.watch.stepped,
            self.watch.turned,
        )
        self.machines: dict[str, Machine] = {}
        self.processes: dict[str, TrainerProcess] = {}
        self.retired: list[TrainerProcess] = []
        self.wanted = set(schedule.names)
        self.commits = 0
        self._delays: dict[str, float] = {}
        """Until a member that ended is started again."""
        self._random = Random(f"fleet {seed}")
        self._quiet_at = 0.0

    # --- the run

    def run(self) -> Result:
        """From the first start to the end, or to the first violation."""
        schedule, clock = self.schedule, self.clock
        self.findings.line(f"{len(schedule.names)} members, min_replicas {schedule.min_replicas}")
        self.lighthouse.start()
        for name in schedule.names:
            clock.after(self._random.random(), self._start, name)
        for fault in schedule.faults:
            clock.at(fault.at, self._strike, fault)
            self._quiet_at = max(self._quiet_at, fault.at + fault.length_s + FORCED_KILL_S)
        try:
            self._run_to_the_end()
        except Exception as error:  # noqa: BLE001  # whoever raised it: a bug, with the seed that shows it
            self.findings.report("no-bug", "".join(format_exception(error)))
        try:
            return Result(
                schedule.seed,
                self.findings.violations,
                self.findings.digest(),
                len(schedule.names),
                clock.events,
                clock.now,
                sum(process.commits for process in [*self.retired, *self.processes.values()]),
                self.watch.never_failed.false,
            )
        finally:
            self._close()

    def _run_to_the_end(self) -> None:
        self._run_until(self._quiet_at)
        before = {name: process.commits for name, process in self.processes.items()}
        began = dict(self.processes)
        give_up_at = self._quiet_at + STUCK_S

        def stuck() -> list[str]:
            return [name for name in sorted(self.wanted) if not self._has_gone_on(name, began, before)]

        while not self.findings.violations and stuck():
            if self.clock.now >= give_up_at:
                self._report_stuck(stuck())
                return
            self._run_until(self.clock.now + SLICE_S)
        self._run_until(max(self.schedule.length_s, self.clock.now + AFTERMATH_S))
        if not self.findings.violations:
            self.watch.told_once.at_end([self.processes[name] for name in sorted(self.wanted)])

    def _has_gone_on(self, name: str, began: dict[str, TrainerProcess], before: dict[str, int]) -> bool:
        process = self.processes.get(name)
        if process is None:
            return False
        earlier = before[name] if began.get(name) is process else 0
        return process.commits >= earlier + COMMITS_OWED

    def _report_stuck(self, names: list[str]) -> None:
        for name in names:
            process = self.processes.get(name)
            board = process.board if process else None
            what = f"{board.phase.name.lower()}, step {board.step}" if board else "not running"
            self.findings.report("stuck", f"{name} has not gone on since {self._quiet_at:.2f} s ({what})")

    def _run_until(self, end: float) -> None:
        while self.clock.now < end and not self.findings.violations:
            self.clock.run_until(min(end, self.clock.now + SLICE_S))
            for process in self.processes.values():
                self.watch.bounded.look_at(process)

    def _close(self) -> None:
        self.wanted.clear()
        for process in [*self.processes.values(), *self.retired]:
            for host in process.hosts:
                host.computer.die()
        for process in list(self.processes.values()):
            process.die()

    # --- members

    def _start(self, name: str) -> None:
        if name not in self.wanted or name in self.processes:
            return
        machine = self.machines.get(name)
        if machine is None or machine.path.vanished:
            schedule = self.schedule
            path = Path(schedule.delay_s, schedule.jitter_s, schedule.loss, self.network.random)
            machine = self.machines[name] = Machine(self.clock, path)
        random = Random(self._random.random())
        process = TrainerProcess(self.world, machine, name, self.schedule, random, self._ended)
        self.findings.line(f"{process.label}: starts")
        self.processes[name] = process

    def _ended(self, process: TrainerProcess) -> None:
        self.findings.line(f"{process.label}: has ended")
        if self.processes.get(process.name) is process:
            del self.processes[process.name]
        self.retired.append(process)
        self.clock.after(self._delays.pop(process.name, RESTART_S), self._start, process.name)

    # --- faults

    def _strike(self, fault: Fault) -> None:
        self.findings.line(f"FAULT {fault}")
        if fault.kind is Kind.LIGHTHOUSE_KILL:
            self._kill_lighthouse(fault)
        elif fault.kind is Kind.LIGHTHOUSE_PAUSE:
            self.lighthouse.pause()
            self.clock.after(fault.length_s, self._resume_lighthouse, fault.mode)
        elif fault.kind is Kind.NOTICE_LOSS:
            self.lighthouse.lose_notices(max(0.3, fault.amount))
            self.clock.after(fault.length_s, self.lighthouse.lose_notices, 0.0)
        else:
            for name in fault.who:
                if name in self.processes:
                    self._strike_one(fault, name, self.processes[name])

    def _strike_one(self, fault: Fault, name: str, process: TrainerProcess) -> None:
        kind, length_s = fault.kind, fault.length_s
        if kind in (Kind.CRASH, Kind.MASS_CRASH, Kind.VANISH, Kind.LEAVE, Kind.GONE):
            self._end(fault, name, process)
        elif kind is Kind.STOP or kind is Kind.STOP_BOTH:
            process.machine.trouble(1)
            process.stop(listeners=kind is Kind.STOP_BOTH)
            self.clock.after(length_s, self._go_on, process, True)
        elif kind is Kind.PAUSE:
            process.machine.held_up(length_s)
            process.stop(listeners=True, by_signal=False)
            self.clock.after(length_s, self._go_on, process, False)
        elif kind is Kind.HANG:
            process.hang(self.clock.now + length_s)
        elif kind is Kind.LISTENER:
            process.kill_listeners()
        elif kind is Kind.PARTITION:
            self._block(process.machine, fault.mode, 1)
            self.clock.after(length_s, self._block, process.machine, fault.mode, -1)
        elif kind is Kind.FLAP:
            self._flap(process.machine, fault.mode, 0.05 + 0.5 * fault.amount, self.clock.now + length_s, 1)
        elif kind is Kind.CUT:
            self._cut(fault, process)
        elif kind is Kind.HOLD and (connections := self._connections(process)):
            held = connections[0] if fault.mode == OLDEST else self._random.choice(connections)
            held.hold(length_s)
            process.machine.hold(1)
            # Until the packet is sent again, at intervals that double.
            self.clock.after(RETRANSMIT_FIRST_S + 2 * length_s, process.machine.hold, -1)

    def _end(self, fault: Fault, name: str, process: TrainerProcess) -> None:
        self._delays[name] = fault.length_s
        if fault.kind is Kind.GONE:
            self.wanted.discard(name)
        if fault.kind is Kind.VANISH or fault.mode == "vanish":
            process.machine.path.vanished = True
            process.die(vanished=True)
        elif fault.kind is Kind.LEAVE or fault.mode == "leave":
            process.wants_to_leave = True
        else:
            process.die()

    def _go_on(self, process: TrainerProcess, was_trouble: bool) -> None:
        if was_trouble:
            process.machine.trouble(-1)
        process.go_on()

    def _block(self, machine: Machine, mode: str, change: int) -> None:
        machine.trouble(change)
        if mode != "down":
            machine.path.blocked[UP] += change
        if mode != "up":
            machine.path.blocked[DOWN] += change

    def _flap(self, machine: Machine, mode: str, period_s: float, until: float, change: int) -> None:
        self._block(machine, mode, change)
        if change > 0 or self.clock.now < until:
            self.clock.after(period_s, self._flap, machine, mode, period_s, until, -change)

    def _cut(self, fault: Fault, process: TrainerProcess) -> None:
        """Each connection of the machine dies with the probability ``amount``, one of them for certain."""
        alive = self._connections(process)
        process.machine.disturb()
        certain = self._random.choice(alive) if alive else None
        for connection in alive:
            if connection is certain or self._random.random() < fault.amount:
                hears_s = None if fault.mode == "unheard" else 0.05 * self._random.random()
                connection.cut(hears_s, 0.05 * self._random.random())

    def _connections(self, process: TrainerProcess) -> list[Connection]:
        sockets = [socket for socket in self.network.sockets if socket.path is process.machine.path]
        return [socket.connection for socket in sockets if socket.connection is not None]

    def _kill_lighthouse(self, fault: Fault) -> None:
        when, _, state = fault.mode.partition(", ")
        disk = Disk(state.partition(" ")[0])
        back_at = self.clock.now + fault.length_s
        if when == "while sending":
            self.lighthouse.kill_after(int(fault.amount))
            self.clock.after(FORCED_KILL_S, self.lighthouse.kill)
            back_at += FORCED_KILL_S
        else:
            self.lighthouse.kill()
            if when != "at once":
                self.lighthouse.kill_at_persist(when.partition(" ")[0])
                self.clock.at(back_at, self.lighthouse.start, disk)
                back_at += FORCED_KILL_S / 5
        self.clock.at(back_at, self._start_lighthouse, disk)

    def _start_lighthouse(self, disk: Disk) -> None:
        self.lighthouse.start(disk)
        core = self.lighthouse.core
        if core is not None:
            self.findings.line(f"lighthouse: starts with epoch {core.epoch}")

    def _resume_lighthouse(self, mode: str) -> None:
        deaf_s = DEAF_S if mode == "suspend" else 0.0
        self.watch.answered.excused_until = self.clock.now + deaf_s
        self.lighthouse.go_on(deaf_s)


def run(schedule: Schedule, trace: Callable[[str], None] | None = None) -> Result:
    """Run a schedule by itself: no log line is written, and nothing of it stays."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    collects = gc.isenabled()
    gc.disable()  # what a run leaves is gone in one sweep after it
    try:
        return Fleet(schedule, trace).run()
    finally:
        if collects:
            gc.enable()
        logging.disable(level)
