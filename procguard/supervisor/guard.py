"""``ProcGuard``: the guard, put together from its configuration file.

    guard = ProcGuard("configs/procguard_config.yaml")
    raise SystemExit(guard.run())

It wires and it waits. Processes are the manager's, health is the monitor's, what happens after a failure is
the failure handler's, what must not be forgotten the state's; here stands who hears of what from whom.
Nothing long is done on a thread that others wait for: a chain has a thread of its own, a start runs on that
of ``Afterwards``, and neither on the process loop or on the monitor's. A signal handler only leaves word.

``run`` ends when it is told to (SIGTERM, SIGINT, SIGHUP, ``stop``), when the recovery gives up, or when every
worker has come to its end and none will start again. A guard without workers runs until it is told to stop.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from procguard.adapter_types import make_adapter
from procguard.adapters.communication import CheckpointAdapter, CommunicationAdapter, WorkerFailure
from procguard.config import ConfigLoader
from procguard.env import guard_folders
from procguard.errors import ProcGuardError, StateError, UsageError
from procguard.guard_config import GuardConfig
from procguard.log_lines import log_file, written_log
from procguard.supervisor.afterwards import Afterwards
from procguard.supervisor.chain import OutcomeKind, RecoveryOutcome
from procguard.supervisor.chronicle import Chronicle
from procguard.supervisor.commands import GuardCommands
from procguard.supervisor.control import ControlServer
from procguard.supervisor.crew import FOLDER_SUFFIX
from procguard.supervisor.end import end_of
from procguard.supervisor.exits import ExitKind, StopReason, WorkerState
from procguard.supervisor.health_words import HealthStatus
from procguard.supervisor.leavers import forget_leavers
from procguard.supervisor.manager import ProcessManager
from procguard.supervisor.monitor import ProcessMonitor
from procguard.supervisor.ready_workers import ReadyWorkers
from procguard.supervisor.recovery import FailureHandler
from procguard.supervisor.state import StateManager
from procguard.supervisor.stop_signals import stop_signals
from procguard.supervisor.systemd import ServiceManager
from procguard.supervisor.worker_events import WorkerEnded, WorkerEvent, WorkerStarted, WorkerUnkillable

_log = logging.getLogger(__name__)

EXIT_FAILED = 1
NO_PROCESS = 0
"""In place of a pid: the one that failed is gone. Whatever runs by now has taken its place."""
NAMES_TOLD_MAX = 5
LOOK_INTERVAL_S = 5.0
STOP_BEGINS_S = 1.0
STOP_POLL_S = 0.001


class ProcGuard:
    """One guard.

    Args:
        config_path: the YAML file.
        checkpoint_adapter: called before workers are stopped for a recovery, and after they have restarted.

    The methods are called in the order in which they stand, or ``run`` alone, which calls those that were
    not.

    Attributes:
        config, state_manager, process_manager, process_monitor, failure_handler, communication_adapter: there
            once they have been loaded and initialized.
    """

    def __init__(
        self, config_path: str | os.PathLike[str], *, checkpoint_adapter: CheckpointAdapter | None = None
    ) -> None:
        self.config_path = Path(config_path)
        self.checkpoint_adapter = checkpoint_adapter
        self.config: GuardConfig | None = None
        self._stack = contextlib.ExitStack()
        self._initialized = False
        self._stop_asked = threading.Event()
        self._wake = threading.Event()
        self._started = False
        self._adapter_is_open = False
        self._folder_was_there = True
        self._noting = threading.Lock()
        self._noted: RecoveryOutcome | None = None
        self._exit_code = 0
        self._reason = ""
        self._started_at = time.time()
        self._ended_at: dict[str, float] = {}
        self._logging_is_set_up = False

    def load_config(self) -> GuardConfig:
        """Read and check the file. Raises ``ConfigError`` with a line for each problem."""
        self.config = ConfigLoader(self.config_path).load()
        return self.config

    def setup_logging(self) -> None:
        """Have ProcGuard's log written as the file says, until ``close``."""
        if not self._logging_is_set_up:
            wanted = self._loaded().logging
            fd = self._stack.enter_context(log_file(wanted.file))
            self._stack.enter_context(written_log(wanted.format, wanted.level, fd))
            self._logging_is_set_up = True

    def initialize_components(self) -> None:
        """Make all components; nothing is started.

        Raises:
            StateError: the state cannot be used, or another guard uses it.
            UsageError: an adapter that cannot be made.
        """
        if self._initialized:
            return
        config = self._loaded()
        workers = {worker.worker_id: worker for worker in config.workers}
        state_file = Path(config.state.state_file)
        folder = state_file.with_name(state_file.name + FOLDER_SUFFIX)
        self.chronicle = Chronicle()
        self.state_manager = StateManager(state_file, config.state.auto_save)
        self.state_manager.lock()
        self._stack.callback(self.state_manager.close)
        self.process_manager = ProcessManager(folder)
        for worker in config.workers:
            self.process_manager.register_worker_config(worker.worker_id, worker)
        watching = config.monitoring
        self.process_monitor = ProcessMonitor(
            config.workers,
            watching.interval,
            watching.heartbeat_timeout,
            watching.zombie_detection,
            watching.cpu_threshold,
            watching.memory_threshold,
            process_manager=self.process_manager,
            state_dir=folder,
        )
        self.communication_adapter: CommunicationAdapter = make_adapter(config)
        self.failure_handler = FailureHandler(
            self.state_manager,
            ReadyWorkers(self.process_manager, self.process_monitor),
            config.recovery.model_dump(),
            adapter=self.communication_adapter,
            checkpoint=self.checkpoint_adapter,
            worker_config=workers.get,
            environment=self.process_monitor.environment,
        )
        self._commands = GuardCommands(
            configs=workers,
            manager=self.process_manager,
            monitor=self.process_monitor,
            recovery=self.failure_handler,
            state=self.state_manager,
            chronicle=self.chronicle,
            about=self._about,
            ended_at=self._ended_at,
        )
        self._service = ServiceManager(os.environ)
        self._afterwards = Afterwards()
        self._initialized = True

    def start_workers(self) -> bool:
        """Take over the workers that live, finish what an earlier guard began, and start the others.

        Returns whether all who are to run do, or are about to. Called again, it does nothing.

        Raises:
            StateError: another guard's socket is in the way.
            UsageError: the adapter cannot be initialized.
        """
        self.initialize_components()
        if self._started:
            return self.failure_handler.gave_up is None
        self._started = True
        self._begin_to_listen()  # and adopt, before anything may take its time: who lives must be known
        adopted = self.process_manager.adopt()
        if adopted:
            _log.info("Adopted from an earlier guard: %s", ", ".join(adopted))
        self._open_adapter()
        # Now, and not when all have started: a recovery may take its time.
        self._service.ready(f"guarding {len(self._loaded().workers)} workers")
        statuses = self.process_manager.statuses()
        with contextlib.suppress(StateError):  # a full disk, told by the state itself
            forget_leavers(self.state_manager, statuses, self.process_manager.state_dir)
        outcome = self.failure_handler.resume(also=list(statuses))
        self._note(outcome)
        return bool(outcome)

    def run(self) -> int:
        """Guard until the end; the exit code. On the main thread it ends at SIGTERM, SIGINT and SIGHUP."""
        with contextlib.ExitStack() as at_exit:
            at_exit.enter_context(
                stop_signals(self._signalled)
            )  # also while it closes: said again, it forces
            at_exit.callback(self.close)
            self._loaded()
            self.setup_logging()
            self.initialize_components()
            _log.info("Guard of %d workers, %s", len(self._loaded().workers), self.config_path)
            if self._loaded().web.enabled:
                _log.warning("web.enabled = true has no effect: this version serves no HTTP")
            self._afterwards.call(self._start_all)
            while not self._stop_asked.is_set():
                self._wake.wait(min(LOOK_INTERVAL_S, self._service.watchdog_interval_s or LOOK_INTERVAL_S))
                self._wake.clear()
                self._service.alive()
                self._look_at_folder()
            self._service.stopping(self._reason or "asked to stop")
            self._tell_of_stop()
        return self._exit_code

    def _look_at_folder(self) -> None:
        """Nothing can be put right here; but whoever removed it should hear of it before the next guard
        does."""
        state_file = self.state_manager.path
        assert state_file is not None
        is_there = state_file.with_name(f"{state_file.name}.lock").exists()
        if self._folder_was_there and not is_there:
            _log.error(
                "%s: the guard's lock was removed while it runs. It cannot be asked any more, and a second "
                "guard would not be refused: end this one with `kill %d`, and start it again",
                state_file.parent, os.getpid(),
            )  # fmt: skip
        self._folder_was_there = is_there

    def _tell_of_stop(self) -> None:
        """And of what it may have to wait for; nobody at a terminal should have to guess."""
        living = [w for w, status in self.process_manager.statuses().items() if status.pid is not None]
        longest_s = max((w.stop_timeout for w in self._loaded().workers if w.worker_id in living), default=0)
        waits = f"; {', '.join(living[:NAMES_TOLD_MAX])}{', ...' if len(living) > NAMES_TOLD_MAX else ''} "
        waits += f"may take up to {longest_s:g} s to end, and no time at all if the guard is told once more"
        level = logging.ERROR if self._exit_code else logging.INFO
        _log.log(level, "Guard stops: %s%s", self._reason or "asked to", waits if living else "")

    def stop(self) -> None:
        """Have ``run`` stop all workers and return; from any thread. Said again: with SIGKILL at once."""
        if self._stop_asked.is_set() and self._started:
            threading.Thread(target=self._force, name="procguard-force").start()
        self._stop_asked.set()
        self._wake.set()

    def close(self) -> None:
        """Stop all workers and let go of everything. Idempotent."""
        self._stop_asked.set()
        with (
            contextlib.ExitStack() as parts
        ):  # each is closed whatever another one raises; the last one first
            parts.callback(self._stack.close)
            if self._initialized:
                self._initialized = False
                parts.callback(self._close_adapter)
                parts.callback(self.process_manager.close)
                parts.callback(self._afterwards.close)
                parts.callback(self.failure_handler.close)
                parts.callback(self.process_monitor.stop)
        self._logging_is_set_up = False

    def _close_adapter(self) -> None:
        try:
            self.communication_adapter.close()
        except Exception:  # noqa: BLE001 - it may be anybody's: the log hears of it, and the guard ends
            _log.exception("The adapter %s could not be closed", self._loaded().communication.adapter_type)

    # --- beginning

    def _loaded(self) -> GuardConfig:
        return self.config or self.load_config()

    def _begin_to_listen(self) -> None:
        self.process_manager.subscribe(self._worker_event)
        self.process_monitor.set_status_callback(self._status_changed)
        self.process_monitor.set_failure_callback(self._failed)
        self.process_monitor.start()
        control = ControlServer(
            self._commands,
            Path(self._loaded().state.state_file),
            folders=guard_folders(),
            config=self.config_path,
            started_at=self._started_at,
        )
        control.start()
        self._stack.callback(control.close)

    def _open_adapter(self) -> None:
        adapter = self.communication_adapter
        adapter.set_heartbeat_callback(self._heard)
        adapter.set_failure_callback(self._told_of_failures)
        try:
            adapter.initialize()
            for worker in self._loaded().workers:
                adapter.register_worker(worker.worker_id)
        except ProcGuardError:
            raise
        except Exception as error:  # it may be anybody's: the user is told whose
            name = self._loaded().communication.adapter_type
            raise UsageError(
                f"communication.adapter_type = {name!r} could not be initialized: "
                f"{type(error).__name__}: {error}; correct communication.adapter_config, or the class"
            ) from error
        self._adapter_is_open = True

    def _start_all(self) -> None:
        try:
            self.start_workers()
        except ProcGuardError as error:
            self._end(EXIT_FAILED, str(error))
        except Exception as error:
            self._end(EXIT_FAILED, f"a bug in ProcGuard, please report it: {type(error).__name__}: {error}")
            raise
        self._look_whether_over()

    # --- what happens

    def _worker_event(self, event: WorkerEvent) -> None:
        """On the process loop: quickly."""
        worker_id = event.worker_id
        if isinstance(event, WorkerStarted):
            text = f"adopted, pid {event.pid}" if event.adopted else f"started, pid {event.pid}"
            self.chronicle.add("started", text, worker_id, event.at)
            self.failure_handler.worker_started(worker_id)
            if self._adapter_is_open:
                self.communication_adapter.register_worker(worker_id)
        elif isinstance(event, WorkerEnded):
            self._ended_at[worker_id] = event.at
            self.chronicle.add("ended", event.exit.text, worker_id, event.at)
            log = _log.info if event.exit.kind in (ExitKind.CLEAN, ExitKind.OPERATOR) else _log.warning
            log("%s has ended: %s", worker_id, event.exit.text)
            if event.exit.kind is ExitKind.CLEAN and self._restarts_always(worker_id):
                threading.Thread(
                    target=self._run_again, args=(worker_id,), name="procguard-again", daemon=True
                ).start()
            elif event.exit.kind is ExitKind.CLEAN:
                self.failure_handler.worker_finished(worker_id)
            self._afterwards.call(self._look_whether_over)
        elif isinstance(event, WorkerUnkillable):
            text = "outlives SIGKILL; no longer waited for (see its /proc entry: state D waits for a device)"
            self.chronicle.add("unkillable", text, worker_id, event.at)
            _log.error("%s (pid %s) %s", worker_id, event.pid, text)

    def _run_again(self, worker_id: str) -> None:
        """It may have to wait for its turn."""
        self._recovered(self.failure_handler.handle_end([worker_id]))

    def _heard(self, worker_id: str) -> None:
        self.process_monitor.heartbeat(worker_id)

    def _status_changed(self, worker_id: str, status: HealthStatus, reasons: Sequence[str]) -> None:
        why = f": {'; '.join(reasons)}" if reasons else ""
        self.chronicle.add("health", f"{status.value}{why}", worker_id)

    def _failed(self, worker_ids: list[str]) -> None:
        """On the monitor's thread for failures, which must go on telling: what fails now joins this chain."""
        pids, hung = {}, {}
        for worker_id in worker_ids:
            pid = self.process_manager.get_worker_status(worker_id).pid  # asked first: not of a later process
            health = self.process_monitor.get_status(worker_id)
            if health in (HealthStatus.UNRESPONSIVE, HealthStatus.UNHEALTHY) and pid is not None:
                pids[worker_id], hung[worker_id] = pid, "; ".join(self.process_monitor.get_reasons(worker_id))
            elif health not in (HealthStatus.HEALTHY, HealthStatus.STARTING):  # else replaced, or well again
                pids[worker_id] = NO_PROCESS
        if pids:
            self._recover(list(pids), pids, hung)

    def _told_of_failures(self, failures: Sequence[WorkerFailure]) -> None:
        """On the adapter's thread."""
        statuses = self.process_manager.statuses()
        for failure in failures:
            self.chronicle.add("told", f"told from outside: {failure.reason}", failure.worker_id)
        present = [f for f in failures if f.worker_id in statuses and _is_about(f, statuses[f.worker_id].pid)]
        pids = {failure.worker_id: failure.pid for failure in present if failure.pid}
        hung = {failure.worker_id: failure.reason for failure in present}
        if present:
            self._afterwards.call(lambda: self._recover(list(hung), pids, hung))

    def _recover(self, worker_ids: Sequence[str], pids: Mapping[str, int], hung: Mapping[str, str]) -> None:
        """Begin a recovery; ``hung``: who of them still lives, and why that is no life."""
        self.chronicle.add("recovery", f"recovery of {', '.join(worker_ids)} is asked for")
        if self._loaded().recovery.enable_auto_recovery:
            self._begin_to_stop(hung)
        try:
            self.failure_handler.report_failure(worker_ids, pids=pids, then=self._recovered)
        except UsageError as error:  # none of them is known any more
            _log.warning("No recovery: %s", error)

    def _begin_to_stop(self, hung: Mapping[str, str]) -> None:
        """Before the chain does it for another reason: so it is the watchdog's kill, and told as that."""
        for worker_id, why in hung.items():
            stop = functools.partial(
                self.process_manager.stop_worker, worker_id, reason=StopReason.WATCHDOG, because=why
            )
            threading.Thread(target=stop, name="procguard-hung", daemon=True).start()
        until = time.monotonic() + STOP_BEGINS_S
        while time.monotonic() < until:
            statuses = self.process_manager.statuses()
            if not any(statuses[w].state is WorkerState.RUNNING for w in hung if w in statuses):
                return
            time.sleep(STOP_POLL_S)

    def _recovered(self, outcome: RecoveryOutcome) -> None:
        """On the thread of whoever waited for the chain; several may have waited for one."""
        with self._noting:
            if outcome is not self._noted:
                self._noted = outcome
                self._note(outcome)
        self._afterwards.call(self._look_whether_over)

    def _note(self, outcome: RecoveryOutcome) -> None:
        if outcome.kind is OutcomeKind.GAVE_UP:
            self.chronicle.add("gave_up", outcome.reason)
            self._end(outcome.exit_code or EXIT_FAILED, f"recovery gave up: {outcome.reason}")
        elif outcome.failed:
            for worker_id, why in outcome.left_out:
                self.chronicle.add("left_out", f"stays out: {why}", worker_id)
            text = f"recovery of {', '.join(outcome.failed)}: {outcome.kind.value}"
            text += f" in {outcome.duration_s:.1f} s" if outcome.duration_s else ""
            self.chronicle.add("recovery", text)
            if outcome.left_out:
                out = "; ".join(f"{worker_id} stays out: {why}" for worker_id, why in outcome.left_out)
                _log.warning("%s; %s", text[0].upper() + text[1:], out)

    # --- the end

    def _look_whether_over(self) -> None:
        """End when no worker runs, or will."""
        statuses = self.process_manager.statuses()
        if not statuses or self.failure_handler.in_progress or self.failure_handler.gave_up:
            return  # having given up is told by the outcome
        end = end_of(
            statuses,
            self.state_manager.document.workers,
            {worker.worker_id: worker for worker in self._loaded().workers},
            recovers=self._loaded().recovery.enable_auto_recovery,
        )
        if end is not None:
            self._end(EXIT_FAILED if end.failed else 0, end.text)

    def _restarts_always(self, worker_id: str) -> bool:
        config = self._config_of(worker_id)
        return config is not None and config.restart == "always"

    def _config_of(self, worker_id: str) -> Any:
        return next((w for w in self._loaded().workers if w.worker_id == worker_id), None)

    def _end(self, exit_code: int, reason: str) -> None:
        if not self._stop_asked.is_set():
            self._exit_code, self._reason = exit_code, reason
            self.stop()

    def _signalled(self, number: int) -> None:
        if not self._stop_asked.is_set():
            self._reason = f"by {signal.Signals(number).name}"
        self.stop()

    def _force(self) -> None:
        with contextlib.suppress(UsageError):  # closed meanwhile
            self.process_manager.stop_all_workers(force=True, reason=StopReason.SHUTDOWN)

    def _about(self) -> Mapping[str, Any]:
        gave_up = self.failure_handler.gave_up
        state = "running"
        if gave_up is not None:
            state = "gave_up"
        elif self._stop_asked.is_set():
            state = "stopping"
        elif self.failure_handler.in_progress:
            state = "recovering"
        return {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "config": str(self.config_path.absolute()),
            "state": state,
            "reason": gave_up.reason if gave_up else self._reason,
            "exit_code": gave_up.exit_code if gave_up else self._exit_code,
        }


def _is_about(failure: WorkerFailure, pid: int | None) -> bool:
    """Not about a process that has been replaced since. A pid of 0 says nothing; it is a hint at best."""
    return failure.pid in (0, pid)
