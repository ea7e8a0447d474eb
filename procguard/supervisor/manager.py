"""``ProcessManager``: starts, watches, stops, sweeps and adopts worker processes on this machine.

    manager = ProcessManager()
    manager.register_worker_config("w0", {"command": "python train.py"})
    manager.start_worker("w0")

Its methods may be called from any thread and wait until what they ask for is done; what is asked of one
worker is done in the order of asking, and nothing is refused because something else is going on. All the work
is done on one thread, started at first need, which waits for the workers' pidfds: a death is known when the
kernel knows it.

It restarts nothing by itself, and decides nothing about tasks or health. It installs no signal handlers and
never waits for a child that is not its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

from procguard import kernel
from procguard.errors import StateError, UsageError
from procguard.supervisor import procfs, sweep
from procguard.supervisor.exits import Exit, ExitKind, Stop, StopReason, WorkerState
from procguard.supervisor.keeping import Keeping
from procguard.supervisor.life import Stage
from procguard.supervisor.loop import Loop, answered
from procguard.supervisor.oom import OomWatch
from procguard.supervisor.output import Outputs
from procguard.supervisor.records import KEY_LENGTH, Record, RecordBook
from procguard.supervisor.sweep import Carriers, Sweeper
from procguard.supervisor.worker import Surroundings, Worker, signal_number
from procguard.supervisor.worker_events import (
    WorkerEnded,
    WorkerEvent,
    WorkerStarted,
    WorkerStatus,
    WorkerUnkillable,
)
from procguard.worker_config import WorkerConfig, parse_worker

__all__ = [
    "Exit",
    "ExitKind",
    "ProcessManager",
    "StopReason",
    "WorkerEnded",
    "WorkerEvent",
    "WorkerStarted",
    "WorkerState",
    "WorkerStatus",
    "WorkerUnkillable",
]

_log = logging.getLogger(__name__)

ORPHANS_INTERVAL_S = 5.0
INTENT_WAIT_S = 0.5
INTENT_PAUSE_S = 0.02
LOGS = "logs"
TAIL_BYTES = 64 << 10


class ProcessManager:
    """All workers of one guard.

    Args:
        state_dir: where logs and records of running workers are kept, for the next guard to adopt them. Left
            out, it is a temporary directory, and nothing can be adopted.

    Raises:
        StateError: the directory cannot be used.
    """

    def __init__(self, state_dir: Path | str | None = None) -> None:
        self._temporary = state_dir is None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._workers: dict[str, Worker] = {}
        self._subscribers: list[Callable[[WorkerEvent], None]] = []
        self._sweeps: dict[Worker, bool] = {}
        self._closed = False
        self._sweeper: Sweeper | None = None
        self._around_: Surroundings | None = None
        try:
            # A worker's working_dir may be another one, and ours may change.
            self.state_dir = Path(state_dir or tempfile.mkdtemp(prefix="procguard-")).absolute()
            self._book = RecordBook(self.state_dir)
        except OSError as error:
            raise StateError(
                f"{state_dir}: workers cannot be recorded here ({error.strerror}); "
                "name a directory that this user can write to"
            ) from None

    # --- workers ---

    def register_worker_config(self, worker_id: str, config: WorkerConfig | Mapping[str, Any]) -> None:
        """Make a worker known, or give a known one another configuration, which counts from its next start
        on.

        Args:
            config: a mapping has the keys of the YAML's ``workers``; ``worker_id`` may be left out.

        Raises:
            UsageError: a key does not fit; names it, its value and the remedy.
        """
        validated = parse_worker(worker_id, config)
        with self._lock:
            known = self._workers.get(worker_id)
            if known is None:
                self._workers[worker_id] = Worker(validated, self._around)
                return

        def reconfigure(future: Future[bool]) -> None:
            known.configure(validated)
            future.set_result(True)

        self._run(reconfigure)

    def unregister_worker(self, worker_id: str) -> None:
        """Forget a worker of which nothing lives; raises ``UsageError`` for one that runs."""
        worker = self._worker(worker_id)

        def unregister(future: Future[bool]) -> None:
            if worker.life.stoppable:
                raise UsageError(
                    f"{worker_id}: is {worker.status.state.value}; stop it before it is forgotten"
                )
            with self._lock:
                self._workers.pop(worker_id, None)
            for path in (worker.log_file, worker.error_file):
                self._around.outputs.forget(path)
            future.set_result(True)

        self._run(unregister)

    def start_worker(
        self, worker_id: str, *, delay_s: float = 0.0, environment: Mapping[str, str] | None = None
    ) -> bool:
        """Start a worker, or have it started in ``delay_s`` seconds (then this returns at once).

        A worker whose last process, or something it left behind, still lives is started when that is gone.

        Args:
            environment: wins over the configuration's ``env`` and what is inherited.

        Returns:
            True, also when it runs already; False when something of its last start cannot be killed.

        Raises:
            UsageError: it cannot be started; names the key, the value and the remedy.
        """
        worker = self._worker(worker_id)
        if not (isfinite(delay_s) and delay_s >= 0):
            raise UsageError(f"delay_s: {delay_s!r} is no time span; give seconds, such as 0 or 2.5")
        return self._run(lambda future: worker.start(future, delay_s, dict(environment or {})))

    def stop_worker(
        self,
        worker_id: str,
        force: bool = False,
        *,
        reason: StopReason = StopReason.OPERATOR,
        because: str = "",
    ) -> bool:
        """Stop a worker with all it has started; a start that is due is cancelled.

        It gets the stop signal, and after ``stop_timeout`` seconds SIGKILL; with ``force`` SIGKILL at once.

        Args:
            because: told to people with the reason, such as "no heartbeat for 10.0 s".

        Returns:
            True when nothing of it lives any longer, also if nothing did.
        """
        worker = self._worker(worker_id)
        stop = Stop(reason, because)

        def ask(future: Future[bool]) -> None:
            worker.stopped_with_all = False
            worker.stop(future, stop, force=force)

        return self._run(ask)

    def stop_all_workers(
        self, force: bool = False, *, reason: StopReason = StopReason.OPERATOR, because: str = ""
    ) -> dict[str, bool]:
        """``stop_worker`` for all at once, by worker."""
        return self._stop_all(Stop(reason, because), force=force)

    def restart_worker(self, worker_id: str) -> bool:
        """Stop a worker and start it again; one that does not run is started.

        Returns False when it could not be stopped. Raises ``UsageError`` as ``start_worker``.
        """
        return self._restart([self._worker(worker_id)])[worker_id].result()

    def restart_healthy_workers(self, exclude_ids: Collection[str] = ()) -> dict[str, bool]:
        """Restart those that run, and start those that ``stop_all_workers`` has stopped.

        What has failed, has finished, was stopped by name or is due to start stays as it is, and so do
        ``exclude_ids``.
        """
        with self._lock:
            healthy = [
                worker
                for worker_id, worker in self._workers.items()
                if worker_id not in exclude_ids
                and (worker.status.state in _RUNNING or _was_stopped_with_all(worker))
            ]
        started = {}
        for worker_id, future in self._restart(healthy).items():
            try:
                started[worker_id] = future.result()
            except UsageError as error:
                _log.error("%s was not restarted: %s", worker_id, error)
                started[worker_id] = False
        return started

    def kill_worker(self, worker_id: str, signal: str | int) -> bool:
        """Send a signal to a worker's process; what comes of it counts as the worker's own doing.

        Returns False when there is no process. Raises ``UsageError`` for what is no signal.
        """
        worker = self._worker(worker_id)
        number = signal_number(signal, "signal")
        return self._run(lambda future: future.set_result(worker.send_signal(number)))

    # --- what is known ---

    def get_worker_status(self, worker_id: str) -> WorkerStatus:
        """The worker as it is now; never waits. Raises ``UsageError`` for one that is not registered."""
        return self._worker(worker_id).status

    def statuses(self) -> dict[str, WorkerStatus]:
        """Of all workers, in the order of registration; never waits."""
        with self._lock:
            return {worker_id: worker.status for worker_id, worker in self._workers.items()}

    def tail(self, worker_id: str, bytes_max: int = TAIL_BYTES, stream: str = "stderr") -> bytes:
        """The last bytes that the worker's present (or last) run has printed."""
        worker = self._worker(worker_id)
        files = {"stdout": worker.log_file, "stderr": worker.error_file}
        if stream not in files:
            raise UsageError(f"stream: {stream!r} is none; say stdout or stderr")
        return self._around.outputs.tail(files[stream], bytes_max)

    def subscribe(self, callback: Callable[[WorkerEvent], None]) -> None:
        """Have ``callback`` called with all that happens to workers from now on.

        It runs on the thread that watches all of them: it must return quickly, and must not start or stop a
        worker itself (hand that to a thread). What it raises is logged.
        """
        with self._lock:
            self._subscribers.append(callback)

    # --- beginning and end ---

    def adopt(self) -> list[str]:
        """Take over the registered workers that an earlier guard with this ``state_dir`` started and that
        live.

        What workers have left behind whose own process is gone is swept, and their end, which nobody saw, is
        told to subscribers. Returns the adopted workers' ids.
        """
        adopted: list[str] = []
        records, carriers = self._what_is_left()

        def ask(future: Future[bool]) -> None:
            adopted.extend(self._adopt(records, carriers))
            future.set_result(True)

        self._run(ask)
        return adopted

    def close(self, stop: bool = True) -> None:
        """Stop all workers, or leave them to the next guard, and end all threads. Idempotent."""
        with self._lock:
            if self._closed:
                return
        if stop and self._workers:
            self._stop_all(Stop(StopReason.SHUTDOWN), force=False)
        with self._lock:
            self._closed = True
        if self._around_ is not None:
            self._run_before_end(self._around_)
            self._around_.loop.close()
            self._around_.outputs.close()
        if self._temporary:
            shutil.rmtree(self.state_dir, ignore_errors=True)

    def __enter__(self) -> ProcessManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- on the loop's thread ---

    def _publish(self, event: WorkerEvent) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - a subscriber's mistake: logged, the others hear of it
                _log.exception("A subscriber of worker events failed; the event was %s", event)

    def _ask_for_sweep(self, worker: Worker, kill: bool) -> None:
        self._sweeps[worker] = kill or self._sweeps.get(worker, False)

    def _sweep(self) -> None:
        """At the end of a turn: one look at what lives, for all workers of which something may be left."""
        asked, self._sweeps = self._sweeps, {}
        wanted = {worker: worker.wanted for worker in asked}
        if not asked or self._sweeper is None:
            return
        found = self._sweeper.find([one for one in wanted.values() if one], self._own_pids())
        for worker, kill in asked.items():
            start = wanted[worker]
            if start is not None:
                worker.swept(found[start.key], kill=kill)

    def _mind_orphans(self) -> None:
        around = self._around
        if self._sweeper is not None:
            self._sweeper.mind_orphans(self._own_pids())
        around.loop.call_at("orphans", around.clock() + ORPHANS_INTERVAL_S, self._mind_orphans)

    def _own_pids(self) -> list[int]:
        leaders = [worker.leader for worker in list(self._workers.values())]
        return [pid for pid in (*leaders, self._around.keeping.pid) if pid is not None]

    def _adopt(self, records: Mapping[str, Record], carriers: Carriers) -> Iterable[str]:
        for worker_id, worker in list(self._workers.items()):
            if worker.adopt(records.get(worker_id), carriers.get(worker.key, [])):
                yield worker_id
        for worker_id, record in records.items():
            if worker_id not in self._workers and _lives(record.pid, record.start_ticks):
                _log.warning(
                    "%s is not in the configuration any more, but a process of it runs on (pid %d); "
                    "end it with: kill -- -%d",
                    record.worker_id, record.pid, record.pid,
                )  # fmt: skip

    # --- between the threads ---

    def _what_is_left(self) -> tuple[dict[str, Record], Carriers]:
        """The records of this boot, and what lives of the registered workers.

        An intent without a process may be one whose guard was killed before exec, which is when it gets its
        own environment: it is waited for, a moment.
        """
        boot = kernel.boot_id()
        records = self._book.read_all()
        for worker_id in [worker_id for worker_id, record in records.items() if record.boot_id != boot]:
            self._book.remove(worker_id)
            del records[worker_id]
        with self._lock:
            keys = {worker_id: worker.key for worker_id, worker in self._workers.items()}
        intents = {
            keys[worker_id] for worker_id, one in records.items() if one.pid is None and worker_id in keys
        }
        patience = time.monotonic() + INTENT_WAIT_S
        while True:
            carriers = sweep.by_key(set(keys.values()), KEY_LENGTH)
            if intents <= carriers.keys() or time.monotonic() >= patience:
                return records, carriers
            time.sleep(INTENT_PAUSE_S)

    @property
    def _around(self) -> Surroundings:
        """What the workers share, made at first need."""
        with self._lock:
            if self._around_ is None:
                if self._closed:
                    raise UsageError("this ProcessManager is closed; make another one")
                self._sweeper = Sweeper()
                loop = Loop("procguard-processes", self._sweep)
                self._around_ = Surroundings(
                    loop=loop,
                    book=self._book,
                    outputs=Outputs(),
                    keeping=Keeping(loop),
                    oom=OomWatch(),
                    logs=self.state_dir / LOGS,
                    sweep=self._ask_for_sweep,
                    publish=self._publish,
                    clock=time.monotonic,
                    wall_clock=time.time,
                )
                loop.ask(self._mind_orphans)
            return self._around_

    def _worker(self, worker_id: str) -> Worker:
        with self._lock:
            worker = self._workers.get(worker_id)
            known = ", ".join(self._workers) or "none"
        if worker is None:
            raise UsageError(f"worker_id: {worker_id!r} is not registered; those that are: {known}")
        return worker

    def _ask(self, call: Callable[[Future[bool]], None]) -> Future[bool]:
        if self._closed:
            raise UsageError("this ProcessManager is closed; make another one")
        if self._pid != os.getpid():
            raise UsageError(
                "this ProcessManager belongs to the process that forked this one; make another one"
            )
        loop = self._around.loop
        if loop.is_mine:
            raise UsageError(
                "a subscriber must not start or stop workers itself, as all of them wait for it; "
                "have another thread do it"
            )
        return answered(loop, call)

    def _run(self, call: Callable[[Future[bool]], None]) -> bool:
        return self._ask(call).result()

    def _stop_all(self, stop: Stop, *, force: bool) -> dict[str, bool]:
        def ask(worker: Worker) -> Callable[[Future[bool]], None]:
            def stop_one(future: Future[bool]) -> None:
                worker.stopped_with_all |= worker.life.state in (*_RUNNING, WorkerState.WAITING)
                worker.stop(future, stop, force=force)

            return stop_one

        with self._lock:
            workers = dict(self._workers)
        futures = {worker_id: self._ask(ask(worker)) for worker_id, worker in workers.items()}
        return {worker_id: future.result() for worker_id, future in futures.items()}

    def _restart(self, workers: Iterable[Worker]) -> dict[str, Future[bool]]:
        def ask(worker: Worker) -> Callable[[Future[bool]], None]:
            def restart_one(future: Future[bool]) -> None:
                worker.stop(Future(), Stop(StopReason.OPERATOR, "to be restarted"), force=False)
                worker.start(future, 0.0, worker.environment)

            return restart_one

        return {worker.config.worker_id: self._ask(ask(worker)) for worker in workers}

    def _run_before_end(self, around: Surroundings) -> None:
        """Let go of everything, on the loop's thread, where nothing else happens meanwhile."""

        def let_go(future: Future[bool]) -> None:
            for worker in self._workers.values():
                worker.release()
            around.keeping.close()
            around.oom.close()
            if self._sweeper is not None:
                self._sweeper.close()
            future.set_result(True)

        with contextlib.suppress(UsageError):
            answered(around.loop, let_go).result()


_RUNNING = (WorkerState.RUNNING, WorkerState.STARTING)


def _was_stopped_with_all(worker: Worker) -> bool:
    return worker.stopped_with_all and worker.life.stage is Stage.IDLE


def _lives(pid: int | None, start_ticks: int | None) -> bool:
    stat = procfs.read_stat(pid) if pid is not None else None
    return stat is not None and stat.start_ticks == start_ticks and not stat.ended
