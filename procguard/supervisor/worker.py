"""One worker, as the loop's thread deals with it: performs what its ``Life`` decides, and tells it what
happened.

Only the status may be read from other threads: it is one value, replaced as a whole before anybody hears of
what has changed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal as signals
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import inf
from pathlib import Path

from procguard import kernel
from procguard.errors import UsageError
from procguard.supervisor import life, procfs
from procguard.supervisor.exits import ExitKind, Stop, WorkerState, signal_name
from procguard.supervisor.keeping import Keeping
from procguard.supervisor.life import Life, Stage
from procguard.supervisor.loop import Loop
from procguard.supervisor.oom import OomWatch
from procguard.supervisor.output import Outputs
from procguard.supervisor.pid_file import PidFile
from procguard.supervisor.process import Child, environment_of, spawn
from procguard.supervisor.records import Record, RecordBook, config_hash
from procguard.supervisor.sweep import Found, Wanted
from procguard.supervisor.worker_events import (
    WorkerEnded,
    WorkerEvent,
    WorkerStarted,
    WorkerStatus,
    WorkerUnkillable,
)
from procguard.worker_config import WorkerConfig, error_file_of

_log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 0.05
"""Between two looks at what a worker left, as long as some of what was found lives."""
NO_LEADER = -1
"""In place of a leader's pid where nobody knows it: no process has it, and no session."""

Clock = Callable[[], float]


@dataclass
class Surroundings:
    """What all workers of a manager share. ``sweep`` asks for a look at what this worker left, soon."""

    loop: Loop
    book: RecordBook
    outputs: Outputs
    keeping: Keeping
    oom: OomWatch
    logs: Path
    sweep: Callable[[Worker, bool], None]
    publish: Callable[[WorkerEvent], None]
    clock: Clock = time.monotonic
    wall_clock: Clock = time.time


class Worker:
    """``config`` may be replaced; it counts from the next start on."""

    def __init__(self, config: WorkerConfig, around: Surroundings) -> None:
        self._around = around
        self._numbers = count(1)  # 0 is the life's own
        self._asked: dict[int, Future[bool]] = {}
        self._child: Child | None = None
        self._remains: Wanted | None = None
        self._token = ""
        self._started_at: float | None = None
        self._starts = 0
        self.environment: Mapping[str, str] = {}
        self._strays: dict[Found, int] = {}
        self._killing = False
        self._swept_away = 0
        self._sweep_is_due = False
        self._pid_file: PidFile | None = None
        self.stopped_with_all = False
        """It ran when all were stopped: it is among the healthy ones to be restarted."""
        self.life = Life(config.stop_timeout)
        self.configure(config)

    def configure(self, config: WorkerConfig) -> None:
        """Signal and timeout count at once, the rest from the next start on. Raises ``UsageError``."""
        self.stop_signal = signal_number(config.stop_signal, f"{config.worker_id}: stop_signal")
        self.config = config
        self.life.stop_timeout_s = config.stop_timeout
        if not self.life.stoppable:
            self._name_outputs()
            self._refresh()

    def _name_outputs(self) -> None:
        name = self.config.log_file or self._around.logs / f"{self.config.worker_id}.log"
        self.log_file = Path(name)
        self.error_file = error_file_of(self.log_file)

    # --- what is asked ---

    def start(self, future: Future[bool], delay_s: float, environment: Mapping[str, str]) -> None:
        """The future is answered when the worker runs, or is going to."""
        self._look_at_leader()
        self.environment = environment
        self._step(life.StartAsked(self._number(future), delay_s))

    def stop(self, future: Future[bool], stop: Stop, *, force: bool) -> None:
        """The future is answered when nothing of the worker lives, or when it cannot be killed."""
        self._look_at_leader()
        self._step(life.StopAsked(self._number(future), stop, force))

    def send_signal(self, number: int) -> bool:
        """To the leader; False when there is none."""
        if self._child is None or self.life.stage not in (Stage.ALIVE, Stage.ENDING, Stage.STUCK):
            return False
        self._child.signal(number)
        return True

    @property
    def key(self) -> str:
        """With what the tokens of its starts begin."""
        return self._around.book.key_of(self.config.worker_id)

    def adopt(self, record: Record | None, carriers: list[tuple[str, Found]]) -> bool:
        """Take over what an earlier guard started: ``carriers`` are its living processes, oldest first.

        A start of which the process is gone has ended unseen; what it left is swept.
        """
        if self.life.stage is not Stage.IDLE or (record is None and not carriers):
            return False
        child = self._leader_among(record, carriers)
        token = next((token for token, found in carriers if child and found.pid == child.pid), "")
        token = token or (record.token if record else carriers[0][0])
        self._child, self._token = child, token
        self._remains = _remains(self.key, child, adopted=True)
        self._started_at = record.started_at if record else None
        self._starts += 1
        if child is None:
            self._step(life.Spawned())
            self._step(life.LeaderEnded(None))
            return False
        self._follow(child, record)
        if record and record.config_hash != self._config_hash():
            _log.warning(
                "%s runs with an older configuration; restart it to apply the present one", self._name
            )
        return True

    def release(self) -> None:
        """Let go of what lives, which goes on living; whoever waits hears that it is not done."""
        for future in self._asked.values():
            future.set_result(False)
        self._asked.clear()
        for pidfd in self._strays.values():
            self._around.loop.unwatch(pidfd)
            os.close(pidfd)
        self._strays.clear()
        if self._child is not None:
            self._around.loop.unwatch(self._child.pidfd)
            self._child.release()
            self._child = None

    # --- what the sweep knows and finds ---

    @property
    def leader(self) -> int | None:
        """The pid that is still the leader's, be it alive or not reaped yet."""
        return self._child.pid if self._child else None

    @property
    def wanted(self) -> Wanted | None:
        """What to look for, when there may be something."""
        return self._remains

    def swept(self, found: Iterable[Found], *, kill: bool) -> None:
        """These live. They are watched and told to end."""
        self._killing = kill
        for stray in found:
            if stray not in self._strays:
                pidfd = procfs.open_pidfd(stray.pid, stray.start_ticks)
                if pidfd is None:
                    continue
                self._strays[stray] = pidfd
                self._swept_away += 1
                self._around.loop.watch(pidfd, partial(self._stray_ended, stray))
                if not kill:
                    procfs.send(pidfd, self.stop_signal)
                    procfs.send(pidfd, signals.SIGCONT)
        if kill:
            for pidfd in self._strays.values():
                procfs.send(pidfd, signals.SIGKILL)
        self._step(life.Swept(len(self._strays)))

    def _stray_ended(self, stray: Found) -> None:
        pidfd = self._strays.pop(stray)
        self._around.loop.unwatch(pidfd)
        with contextlib.suppress(ChildProcessError):  # another's child
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        os.close(pidfd)
        # Its children may be ours now. Of very many, one look at all of them for each would not end.
        if not self._strays:
            self._around.sweep(self, self._killing)
        elif not self._sweep_is_due:
            self._sweep_is_due = True
            due = self._around.clock() + SWEEP_INTERVAL_S
            self._around.loop.call_at((self, "sweep"), due, self._sweep_again)

    def _sweep_again(self) -> None:
        self._sweep_is_due = False
        if self._strays:
            self._around.sweep(self, self._killing)

    # --- steps ---

    def _step(self, event: life.Event) -> None:
        effects = self.life.step(event, self._around.clock())
        for effect in effects:
            self._perform(effect)
        self._around.loop.call_at(self, self.life.next_deadline(), partial(self._step, life.TimePassed()))
        self._refresh()

    def _perform(self, effect: life.Effect) -> None:
        if isinstance(effect, life.Spawn):
            self._spawn()
        elif isinstance(effect, life.TellLeader):
            assert self._child is not None
            self._child.signal(self.stop_signal)
            self._child.signal(signals.SIGCONT)  # one that is stopped hears nothing
        elif isinstance(effect, life.KillAll):
            if self._child is not None:
                self._child.kill_group()
        elif isinstance(effect, life.Sweep):
            self._around.sweep(self, effect.kill)
        elif isinstance(effect, life.Bury):
            self._bury()
        elif isinstance(effect, life.Done):
            self._answer(effect)
        else:
            self._tell(effect)

    def _tell(self, effect: life.TellStarted | life.Tell | life.TellUnkillable) -> None:
        self._refresh()
        now = self._around.wall_clock()
        if isinstance(effect, life.Tell):
            self._around.publish(WorkerEnded(self._name, effect.exit, now))
        elif isinstance(effect, life.TellStarted):
            if self._child is not None:  # it may have ended while there was no guard
                self._around.publish(WorkerStarted(self._name, self._child.pid, now, self._child.is_adopted))
        else:
            self._around.publish(WorkerUnkillable(self._name, self.leader, now))

    def _answer(self, done: life.Done) -> None:
        self._refresh()
        future = self._asked.pop(done.command)
        if done.error:
            future.set_exception(UsageError(done.error))
        else:
            future.set_result(done.ok)

    def _number(self, future: Future[bool]) -> int:
        number = next(self._numbers)
        self._asked[number] = future
        return number

    # --- the process ---

    def _spawn(self) -> None:
        self._name_outputs()
        self._refresh()
        try:
            child, record = self._spawn_recorded()
        except UsageError as error:
            self._step(life.NotSpawned(str(error)))
            return
        except Exception as error:  # noqa: BLE001 - a bug of ours: told, and whoever asked hears of it
            _log.exception("A bug in ProcGuard: the start of %s failed; please report it", self._name)
            self._step(life.NotSpawned(f"{self._name}: {error!r}"))
            return
        self._starts += 1
        self._follow(child, record)

    def _spawn_recorded(self) -> tuple[Child, Record]:
        """Start the process, with a record of it before and after. Raises ``UsageError``."""
        config, book = self.config, self._around.book
        pid_file = self._named_pid_file()
        with contextlib.ExitStack() as opened, contextlib.ExitStack() as undo:
            if pid_file:
                pid_file.prepare()
                undo.callback(pid_file.withdraw)
            stdout, stderr = opened.enter_context(self._opened_outputs())
            token, now = book.new_token(self._name), self._around.wall_clock()
            intent = Record(self._name, token, kernel.boot_id(), self._config_hash(), now)
            book.write(intent)
            undo.callback(book.remove, self._name)
            if config.on_supervisor_death == "kill":
                self._around.keeping.keep(token)
            child = spawn(
                self._name,
                config.command,
                working_dir=config.working_dir,
                environment=environment_of(os.environ, config.env, self.environment, token),
                stdout=stdout,
                stderr=stderr,
            )
            record = replace(intent, pid=child.pid, start_ticks=child.start_ticks)
            book.write(record)
            undo.pop_all()
        self._token, self._started_at, self._pid_file = token, now, pid_file
        self._remains = _remains(self.key, child)
        if pid_file:
            pid_file.write(child.pid)
        return child, record

    def _follow(self, child: Child, record: Record | None) -> None:
        """The process runs: watch it, and say so."""
        self._child, self._swept_away, self.stopped_with_all = child, 0, False
        self._around.loop.watch(child.pidfd, self._leader_ended)
        if child.is_adopted:
            self._keep_outputs()
            self._pid_file = self._named_pid_file()
            if self.config.on_supervisor_death == "kill":
                self._around.keeping.keep(self._token)
            if record is None or record.pid is None:
                self._around.book.write(self._record_of(child))
        self._step(life.Spawned())

    def _look_at_leader(self) -> None:
        """What has happened goes before what is asked: a crash that nobody has seen yet stays a crash."""
        if self._child and self.life.stage is Stage.ALIVE and self._child.has_ended():
            self._leader_ended()

    def _leader_ended(self) -> None:
        child = self._child
        assert child is not None
        self._around.loop.unwatch(child.pidfd)
        try:
            status = child.status()
        except OSError:  # out of descriptors, perhaps: the death is certain all the same
            status = None
        oom = status is not None and status & 0x7F == signals.SIGKILL and self._around.oom.has_risen()
        self._step(life.LeaderEnded(status, oom))

    def _bury(self) -> None:
        if self._child is not None:
            if self._pid_file:
                self._pid_file.remove(self._child.pid)
            self._child.close()
        if self._swept_away:
            daemon = self.life.last_exit is not None and self.life.last_exit.kind is ExitKind.CLEAN
            remedy = " (a worker must run in the foreground)" if daemon else ""
            level = logging.WARNING if daemon else logging.INFO
            text = "%s left %d processes behind; they were ended%s"
            _log.log(level, text, self._name, self._swept_away, remedy)
        self._child = self._remains = self._pid_file = None
        self._around.book.remove(self._name)
        self._refresh()

    def _leader_among(self, record: Record | None, carriers: list[tuple[str, Found]]) -> Child | None:
        """The process itself: the recorded one, or the oldest of a start that has none recorded, if it is
        the leader of its session."""
        if record is not None and record.pid is not None:
            if child := Child.adopted(record.pid, record.start_ticks or 0):
                return child
            carriers = [(token, found) for token, found in carriers if token != record.token]
        for _, found in carriers[:1]:
            stat = procfs.read_stat(found.pid)
            if stat and stat.session == found.pid:
                return Child.adopted(found.pid, found.start_ticks)
        return None

    def _record_of(self, child: Child) -> Record:
        return Record(
            self._name,
            self._token,
            kernel.boot_id(),
            self._config_hash(),
            self._started_at or self._around.wall_clock(),
            child.pid,
            child.start_ticks,
        )

    @contextlib.contextmanager
    def _opened_outputs(self) -> Iterator[list[int]]:
        """The descriptors for stdout and stderr."""
        rotation, outputs = self.config.log_rotation, self._around.outputs
        opened: list[int] = []
        try:
            for path in (self.log_file, self.error_file):
                try:
                    opened.append(outputs.open(path, bytes_max=rotation.max_bytes, backups=rotation.backups))
                except UsageError as error:
                    raise UsageError(f"{self._name}: {error}") from None
            yield opened
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _named_pid_file(self) -> PidFile | None:
        return PidFile(self._name, Path(self.config.pid_file)) if self.config.pid_file else None

    def _keep_outputs(self) -> None:
        rotation = self.config.log_rotation
        for path in (self.log_file, self.error_file):
            if path.is_file():
                self._around.outputs.keep(path, bytes_max=rotation.max_bytes, backups=rotation.backups)

    # --- for others ---

    @property
    def _name(self) -> str:
        return self.config.worker_id

    def _config_hash(self) -> str:
        return config_hash(self.config.model_dump())

    def _refresh(self) -> None:
        around, state = self._around, self.life.state
        runs = self._child is not None and state in _WITH_PID
        wait_s = self.life.start_at - around.clock()
        self.status = WorkerStatus(
            worker_id=self._name,
            state=state,
            pid=self._child.pid if self._child and runs else None,
            started_at=self._started_at if runs else None,
            restarts=max(0, self._starts - 1),
            last_exit=self.life.last_exit,
            log_file=str(self.log_file),
            adopted=runs and self._child is not None and self._child.is_adopted,
            next_start_at=around.wall_clock() + wait_s if wait_s < inf else None,
            error_file=str(self.error_file),
        )


_WITH_PID = (WorkerState.RUNNING, WorkerState.STOPPING, WorkerState.UNKILLABLE)


def _remains(key: str, child: Child | None, *, adopted: bool = False) -> Wanted:
    if child is None:
        return Wanted(key, NO_LEADER, 0, adopted)
    return Wanted(key, child.pid, child.start_ticks, adopted)


def signal_number(name: str | int, whose: str) -> int:
    """Of ``SIGTERM``, ``TERM``, ``15`` or 15. Raises ``UsageError``, in which ``whose`` is the thing."""
    text = str(name).strip().upper()
    if text.isdecimal() and int(text) in signals.valid_signals():
        return int(text)
    full = text if text.startswith("SIG") else f"SIG{text}"
    if full in signals.Signals.__members__:
        return int(signals.Signals[full])
    known = ", ".join(signal_name(number) for number in (1, 2, 3, 9, 10, 12, 15))
    raise UsageError(f"{whose}: {name!r} is no signal; name one, such as {known}")
