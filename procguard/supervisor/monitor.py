"""``ProcessMonitor``: watches the workers and tells, in one call, which of them have failed.

One thread. It wakes for a datagram on ``NOTIFY_SOCKET``, for a death, for an answer of a health URL, and
when the rules (``health``) want to be asked; otherwise it sleeps. It decides nothing: it turns what it
hears into events, and performs what the rules return. Deaths come from the process manager's own pidfds at
once; of a process registered by its pid alone the monitor holds a pidfd itself.

Its own stall fails nobody. When it wakes much later than it meant to (the guard was stopped, the machine
was suspended or hopelessly crowded), it takes in first what has come meanwhile, and then every deadline
starts anew.

What may take long is done elsewhere: health URLs in ``url_checks``, reports and the failure callback in
``failure_calls``. A heartbeat costs a dict write.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from procguard.errors import ProcGuardError, UsageError
from procguard.supervisor import endings, probes
from procguard.supervisor.failure_calls import Case, FailureCallback, FailureCalls
from procguard.supervisor.health_words import (
    AskUrl,
    Beat,
    Effect,
    Event,
    Failed,
    HealthStatus,
    Recovered,
    Sample,
    Sampled,
    Started,
)
from procguard.supervisor.monitor_settings import MonitorSettings, checked_config
from procguard.supervisor.notify_socket import Datagram, socket_path
from procguard.supervisor.reports import DIRECTORY_NAME, FailureReports
from procguard.supervisor.url_checks import UrlChecks
from procguard.supervisor.ward import Ward
from procguard.supervisor.watched import Watched, WorkerUsage
from procguard.supervisor.watchpost import Watchpost, has_ended
from procguard.worker_config import WorkerConfig

__all__ = ["HealthStatus", "ProcessMonitor"]

_log = logging.getLogger(__name__)

REFUSALS_LOG_INTERVAL_S = 1.0
UNCLAIMED_MAX = 64
"""Datagrams of processes that may belong to a worker of whose start we have not heard yet."""
UNCLAIMED_S = 5.0
STALL_S_MIN = 0.5
STALL_PART_OF_TIMEOUT = 0.25
"""The monitor is stalled when it wakes so late, as a part of the heartbeat timeout."""
PAUSE_AFTER_BUG_S = 1.0
STOPPING = "stopping"
"""The state of a worker that has been told to end."""

_Word: TypeAlias = Event | endings.Beginning | endings.Ending
StatusCallback: TypeAlias = Callable[[str, HealthStatus, "tuple[str, ...]"], object]


class Processes(Protocol):
    """What the monitor needs of a process manager."""

    def subscribe(self, callback: Callable[[Any], None], /) -> object:
        """Call back for each ``WorkerStarted``, ``WorkerEnded`` and whatever else there is to tell."""

    def statuses(self) -> Mapping[str, Any]:
        """Of each worker a mapping, or what is read like one, with ``pid``, ``started_at``, ``state``."""

    def tail(self, worker_id: str, bytes_max: int = ..., stream: Any = ...) -> bytes | str:
        """The end of its output."""


@dataclass(frozen=True, slots=True)
class _Unclaimed:
    """What a process has said that belongs to no worker so far, with the processes it descends from."""

    at: float
    datagram: Datagram
    lineage: tuple[int, ...]


class ProcessMonitor:
    """Watches workers; thread-safe.

    Args:
        worker_configs: ``WorkerConfig``s, or mappings with the YAML's keys, in a list or by worker id.
        monitoring_interval: seconds between two looks at a worker's CPU time and memory; a fourth of
            ``heartbeat_timeout`` where that is more.
        heartbeat_timeout: seconds of silence after which a worker that has ever beaten is failed.
        zombie_detection: whether a worker that is idle for a whole ``heartbeat_timeout`` is failed: CPU and
            memory below both thresholds, and neither heartbeat, output nor a good answer of its health URL.
        cpu_threshold: percent of one CPU, of the worker and all its descendants.
        memory_threshold: percent of the machine's memory, resident in the worker and all its descendants.
        process_manager: tells of starts and deaths; without one, processes are registered by ``pid``.
        state_dir: holds ``notify.sock`` and ``failures/``; None: a temporary directory, no reports in files.
        clock: monotonic seconds.
        wall_clock: Unix seconds, for people.

    Raises:
        UsageError: an argument, or a worker's settings, that cannot work.
    """

    def __init__(
        self,
        worker_configs: Iterable[WorkerConfig | Mapping[str, Any]] | Mapping[str, Any] = (),
        monitoring_interval: float = 1.0,
        heartbeat_timeout: float = 10.0,
        zombie_detection: bool = True,
        cpu_threshold: float = 1.0,
        memory_threshold: float = 1.0,
        *,
        process_manager: Processes | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = MonitorSettings(
            monitoring_interval, heartbeat_timeout, zombie_detection, cpu_threshold, memory_threshold
        )
        self._stall_s = max(STALL_S_MIN, STALL_PART_OF_TIMEOUT * heartbeat_timeout)
        self._processes = process_manager
        self._state_dir = Path(state_dir) if state_dir is not None else None
        self._clock, self._wall_clock = clock, wall_clock
        self._reports = FailureReports(self._state_dir / DIRECTORY_NAME if self._state_dir else None)
        self._callback: FailureCallback | None = None
        self._status_callback: StatusCallback | None = None

        self._lock = threading.RLock()
        """Guards what is known of the workers; not held while others are called."""
        self._ward = Ward()
        self._watched: dict[str, Watched] = {}
        self._worker_of_pid: dict[int, str] = {}
        self._early: dict[str, tuple[float, _Word]] = {}
        """The last start or end of workers that are not registered here, or not yet."""
        self._failed: list[Case] = []
        self._changed: dict[str, HealthStatus] = {}

        self._inbox_lock = threading.Lock()
        """Held for moments only: the process manager's loop takes it."""
        self._inbox: list[tuple[float, str, _Word]] = []
        self._beats: dict[str, float] = {}
        self._beating: set[str] = set()
        """Workers whose next beat needs no wake: they have a deadline already."""
        self._heard_of: set[str] = set()
        """Workers that the process manager has told of."""

        self._running: Watchpost | None = None
        self._starting = threading.Lock()
        self._subscribed = False
        self._unclaimed: deque[_Unclaimed] = deque(maxlen=UNCLAIMED_MAX)
        self._refusals_logged_at = float("-inf")
        self._refused = 0
        if isinstance(worker_configs, Mapping):
            named = list(worker_configs.items())
        else:
            named = [(_worker_id(config), config) for config in worker_configs]
        for worker_id, config in named:
            self.register_worker(worker_id, config)

    # --- who is watched ---

    def register_worker(self, worker_id: str, config: WorkerConfig | Mapping[str, Any] | None = None) -> None:
        """Watch this worker; what was not given before keeps its default. Known ones may be registered again.

        A mapping may hold ``pid``, a running process to be watched. Raises ``UsageError``.
        """
        given, pid = config, None
        if isinstance(config, Mapping):
            pid = config.get("pid")
            given = {key: value for key, value in config.items() if key != "pid"}
        if pid is not None and (not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0):
            raise UsageError(
                f"{worker_id}: pid: {pid!r} is no process id; pass a positive int, or leave it out"
            )
        with self._lock:
            known = self._watched.get(worker_id)
            if known is None or given:
                checked = checked_config(worker_id, given)
                rules = self._settings.rules(checked)
                if known is None or checked != known.config:
                    life = known.life() if known is not None else None
                    self._forget(worker_id)
                    self._watched[worker_id] = Watched(checked)
                    self._ward.add(worker_id, rules)
                    if life is not None:
                        self._started(worker_id, life, self._clock())
            if known is None and (early := self._early.pop(worker_id, None)) is not None:
                self._take(worker_id, early[1], early[0])
            if pid is not None:
                self._started(worker_id, endings.Beginning(pid), self._clock())
        self._wake()

    def unregister_worker(self, worker_id: str) -> bool:
        """Watch it no longer; returns whether it was watched."""
        with self._lock:
            known = worker_id in self._watched
            self._early.pop(worker_id, None)
            self._forget(worker_id)
        self._reports.forget(worker_id)
        return known

    def set_failure_callback(self, callback: FailureCallback | None) -> None:
        """``callback(ids)`` gets all that failed in one wake, on a thread of its own, one call at a time.

        What it raises is logged. What fails while it runs is in the next call.
        """
        self._callback = callback
        if (running := self._running) is not None:
            running.calls.callback = callback

    def set_status_callback(self, callback: StatusCallback | None) -> None:
        """``callback(worker_id, status, reasons)`` for each change, on the monitor's thread: it must return
        quickly."""
        self._status_callback = callback

    def environment(self, worker_id: str) -> dict[str, str]:
        """What a worker's environment needs so that it can report; set it at each of its starts.

        ``WATCHDOG_PID`` must not be in there: the guard's own is not the worker's. Empty before ``start()``
        without a ``state_dir``.
        """
        running = self._running
        if running is None and self._state_dir is None:
            return {}
        path = running.notify.path if running is not None else socket_path(self._state_dir or Path())
        timeout_us = int(self._settings.heartbeat_timeout * 1_000_000)
        return {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(timeout_us)}

    # --- its life ---

    def start(self) -> None:
        """Begin to watch; nothing happens if it does already. Raises ``StateError``."""
        with self._starting:
            if self._running is not None:
                return
            for sentence in probes.blind_spots():
                _log.warning("%s", sentence)
            calls = FailureCalls(self._reports, self._stderr_tail, self._still_failed)
            calls.callback = self._callback
            try:
                running = Watchpost(self._state_dir, calls, UrlChecks(self._post))
            except BaseException:
                calls.close()
                raise
            self._running = running
            with self._lock:
                for watched in self._watched.values():
                    self._attach(watched, self._pid_of(watched))
            running.thread = threading.Thread(
                target=self._watch, args=(running,), name="procguard-monitor", daemon=True
            )
            running.thread.start()
            self._follow_processes()
            running.wake()

    def stop(self) -> None:
        """Watch no longer. A failure callback that is running is not waited for; no other begins."""
        with self._starting:
            running, self._running = self._running, None
            if running is None:
                return
            running.end()
            with self._lock:
                for watched in self._watched.values():
                    watched.let_go()

    def heartbeat(self, worker_id: str) -> bool:
        """This worker lives; returns False for one that is not registered. Costs a dict write."""
        if worker_id not in self._watched:
            return False
        with self._inbox_lock:
            self._beats[worker_id] = self._clock()
        if worker_id not in self._beating:
            self._wake()
        return True

    # --- what there is to know ---

    def get_status(self, worker_id: str) -> HealthStatus:
        """How it is; ``UNKNOWN`` also for one that is not registered."""
        with self._lock:
            if worker_id not in self._ward:
                return HealthStatus.UNKNOWN
            return self._ward[worker_id].status(self._clock())

    def get_reasons(self, worker_id: str) -> list[str]:
        """Why it is not, or soon will not be, healthy, and what it says of itself; for people."""
        with self._lock:
            watched = self._watched.get(worker_id)
            if watched is None:
                return []
            said = [f"says: {watched.told}"] if watched.told else []
            return [*self._ward[worker_id].reasons(), *said]

    def get_usage(self, worker_id: str) -> WorkerUsage | None:
        """CPU since the last call, and memory, of all its processes; None where they cannot be seen."""
        with self._lock:
            watched = self._watched.get(worker_id)
            return watched.usage(self._clock()) if watched is not None else None

    def report(self, worker_id: str) -> dict[str, Any] | None:
        """The last failure report on it, also one that an earlier guard has written; None if there is
        none."""
        return self._reports.newest(worker_id)

    # --- word from others, on their threads ---

    def _follow_processes(self) -> None:
        if self._processes is None:
            return
        if not self._subscribed:
            self._processes.subscribe(self._on_worker_event)
            self._subscribed = True
        for worker_id, status in self._processes.statuses().items():
            pid, at = status["pid"], status["started_at"]
            with self._inbox_lock:
                # Of one that has started or ended since we subscribed, the event knows better.
                if pid and worker_id not in self._heard_of:
                    self._inbox.append((self._clock(), worker_id, endings.Beginning(pid, at)))

    def _on_worker_event(self, event: Any) -> None:
        """Called on the process manager's loop."""
        word = endings.of_worker_event(event)
        if word is None:
            return
        with self._inbox_lock:
            self._heard_of.add(event.worker_id)
            self._inbox.append((self._clock(), event.worker_id, word))
        self._wake()

    def _post(self, worker_id: str, event: _Word) -> None:
        with self._inbox_lock:
            self._inbox.append((self._clock(), worker_id, event))
        self._wake()

    def _wake(self) -> None:
        if (running := self._running) is not None:
            running.wake()

    # --- the loop ---

    def _watch(self, running: Watchpost) -> None:
        planned = self._clock()
        while not running.ending:
            try:
                planned = self._turn(running, planned)
            except Exception:  # noqa: BLE001  # a bug of ours: the log hears of it, the watching goes on
                _log.exception("The monitor stumbled")
                time.sleep(PAUSE_AFTER_BUG_S)
        running.close()

    def _turn(self, running: Watchpost, planned: float) -> float:
        """Sleep, take in what has come, let time pass, tell; returns by when the next turn should begin."""
        due = self._ward.due()
        with self._inbox_lock:
            waiting = bool(self._inbox)
        timeout_s = 0.0 if waiting else -1 if due is None else max(due - self._clock(), 0.0)
        if due is not None:
            planned = max(planned, due)
        ready = running.wait(timeout_s)
        now = self._clock()
        stalled = due is not None and now - planned > self._stall_s
        with self._lock:
            if running.notify.fileno() in ready:
                self._hear(running.notify.receive(), now)
            for pidfd in ready - running.own_fds():
                self._pidfd_ended(pidfd, now)
            self._take_in()
            if stalled:
                _log.warning("The monitor was held up for %.1f s: every deadline starts anew", now - planned)
                self._ward.resume(now)
            for worker_id, effect in self._ward.tick(now):
                self._perform(worker_id, effect, now)
            failed, self._failed = self._failed, []
            changed, self._changed = self._changed, {}
            reasons = {worker_id: tuple(self.get_reasons(worker_id)) for worker_id in changed}
        if failed := [
            case for case in failed if not (case.verdict.hung and self._is_stopping(case.worker_id))
        ]:
            running.calls.post(failed)
        self._tell_changes(changed, reasons)
        return now

    def _tell_changes(self, changed: dict[str, HealthStatus], reasons: dict[str, tuple[str, ...]]) -> None:
        if (callback := self._status_callback) is None:
            return
        for worker_id, status in changed.items():
            try:
                callback(worker_id, status, reasons[worker_id])
            except Exception:  # noqa: BLE001  # theirs: the log hears of it, the watching goes on
                _log.exception("The status callback raised")

    def _take_in(self) -> None:
        """All that others have put into the inbox, each at its own time: a beat of the life before never
        counts for the one that has begun since."""
        with self._inbox_lock:
            events: list[tuple[float, str, _Word]]
            events, self._inbox = self._inbox, []
            events += [(at, worker_id, Beat()) for worker_id, at in self._beats.items()]
            self._beats = {}
        for at, worker_id, event in sorted(events, key=lambda each: each[0]):
            if worker_id in self._watched:
                self._take(worker_id, event, at)
            elif isinstance(event, (endings.Beginning, endings.Ending)):
                self._early[worker_id] = (at, event)

    def _take(self, worker_id: str, event: _Word, at: float) -> None:
        if isinstance(event, endings.Beginning):
            self._started(worker_id, event, at)
        elif isinstance(event, endings.Ending):
            self._ended(worker_id, event, at)
        else:
            if isinstance(event, Beat):
                self._beating.add(worker_id)
            self._step(worker_id, event, at)

    def _hear(self, datagrams: list[Datagram], now: float) -> None:
        self._take_in()  # a start that we have not heard of yet makes its datagrams a stranger's
        for datagram in datagrams:
            worker_id = probes.owner_of(datagram.pid, self._worker_of_pid)
            if worker_id is None:
                self._refuse(datagram, now)
            else:
                self._heed(worker_id, datagram, now)

    def _heed(self, worker_id: str, datagram: Datagram, now: float) -> None:
        if self._watched[worker_id].take_in(datagram):
            names = ", ".join(datagram.unheeded)
            _log.info("%s said %s on NOTIFY_SOCKET, of which no notice is taken", worker_id, names)
        for event in datagram.events:
            self._step(worker_id, event, now)

    def _refuse(self, datagram: Datagram, now: float) -> None:
        """A worker may be faster than the word of its start: what it has said is kept for a moment."""
        if any(watched.pid == datagram.pid for watched in self._watched.values()):
            return  # the last words of one that has ended
        self._unclaimed.append(_Unclaimed(now, datagram, probes.lineage(datagram.pid)))
        self._refused += 1
        if now - self._refusals_logged_at >= REFUSALS_LOG_INTERVAL_S:
            _log.warning(
                "NOTIFY_SOCKET: process %d belongs to no worker; its word is dropped, "
                "unless it turns out to be one's within %g s (%d such words so far)",
                datagram.pid,
                UNCLAIMED_S,
                self._refused,
            )
            self._refusals_logged_at = now

    def _claim(self, worker_id: str, pid: int, now: float) -> None:
        unclaimed, self._unclaimed = self._unclaimed, deque(maxlen=UNCLAIMED_MAX)
        for each in unclaimed:
            if each.at < now - UNCLAIMED_S:
                continue
            if pid in each.lineage:
                self._heed(worker_id, each.datagram, max(each.at, now))
            else:
                self._unclaimed.append(each)

    # --- lives ---

    def _started(self, worker_id: str, beginning: endings.Beginning, now: float) -> None:
        watched, pid = self._watched[worker_id], beginning.pid
        if pid == self._pid_of(watched):
            return  # heard twice
        self._let_go(watched)
        watched.begin(pid, self._wall_clock() if beginning.at is None else beginning.at)
        self._beating.discard(worker_id)
        self._step(worker_id, Started(pid, beginning.adopted), now)
        self._worker_of_pid[pid] = worker_id
        self._attach(watched, pid)
        self._claim(worker_id, pid, now)

    def _ended(self, worker_id: str, ending: endings.Ending, now: float) -> None:
        watched = self._watched[worker_id]
        self._let_go(watched)
        watched.end(ending, self._wall_clock())
        self._step(worker_id, ending.event, now)

    def _attach(self, watched: Watched, pid: int | None) -> None:
        """Hold on to a living process, so that its death is heard and no later one is taken for it."""
        if pid is None or watched.probe is not None or (running := self._running) is None:
            return
        watched.probe = probes.Probe(pid)
        if self._processes is not None:
            return
        try:
            watched.pidfd = os.pidfd_open(pid)
            running.add(watched.pidfd)
        except ProcessLookupError:  # it has ended before we came
            self._post(watched.config.worker_id, endings.of_pid(pid))
        except OSError as error:  # too many open files, or a kernel without pidfds
            _log.warning("The death of %s will not be seen: %s", watched.config.worker_id, error.strerror)

    def _pidfd_ended(self, pidfd: int, now: float) -> None:
        if not has_ended(pidfd):
            return  # it was ready when it was another process's, which has been let go since
        for worker_id, watched in self._watched.items():
            if watched.pidfd == pidfd and (pid := self._pid_of(watched)) is not None:
                self._ended(worker_id, endings.of_pid(pid, pidfd), now)
                return

    def _pid_of(self, watched: Watched) -> int | None:
        return watched.pid if watched.alive else None

    def _let_go(self, watched: Watched) -> None:
        if watched.pid is not None:
            self._worker_of_pid.pop(watched.pid, None)
        watched.let_go()

    def _forget(self, worker_id: str) -> None:
        if (watched := self._watched.pop(worker_id, None)) is not None:
            self._let_go(watched)
        self._ward.remove(worker_id)
        self._beating.discard(worker_id)

    # --- what the rules return ---

    def _step(self, worker_id: str, event: Event, now: float) -> None:
        for effect in self._ward.step(worker_id, event, now):
            self._perform(worker_id, effect, now)
        self._note_change(worker_id, now)

    def _note_change(self, worker_id: str, now: float) -> None:
        watched, status = self._watched[worker_id], self._ward[worker_id].status(now)
        if status is not watched.shown:
            watched.shown = self._changed[worker_id] = status

    def _perform(self, worker_id: str, effect: Effect, now: float) -> None:
        watched = self._watched[worker_id]
        match effect:
            case Sample():
                usage = watched.sample(effect.whole_tree)
                for answer in self._ward.step(worker_id, Sampled(usage, effect.whole_tree), now):
                    self._perform(worker_id, answer, now)
                return
            case AskUrl() if self._running is not None and watched.config.health_check_url is not None:
                timeout_s = watched.config.health_check_timeout
                url = watched.config.health_check_url
                self._running.urls.ask(worker_id, effect.number, url, timeout_s)
            case Failed():
                _log.warning("%s is %s: %s", worker_id, effect.status.value, effect.text)
                self._beating.discard(worker_id)
                self._failed.append(watched.case(effect, self._wall_clock()))
            case Recovered():
                _log.info("%s is well again", worker_id)
        self._note_change(worker_id, now)

    def _is_stopping(self, worker_id: str) -> bool:
        """We are stopping it: that it neither beats nor answers meanwhile is no failure."""
        if self._processes is None:
            return False
        status = self._processes.statuses().get(worker_id)
        return status is not None and status["state"] == STOPPING

    def _still_failed(self, case: Case) -> bool:
        with self._lock:
            watched = self._watched.get(case.worker_id)
            if watched is None or not watched.same_life(case):
                return False
            return self._ward[case.worker_id].verdict is not None

    def _stderr_tail(self, worker_id: str, bytes_max: int) -> str:
        if self._processes is None:
            return ""
        try:
            tail = self._processes.tail(worker_id, bytes_max, stream="stderr")
        except (OSError, LookupError, ProcGuardError) as error:
            return f"(it cannot be read: {error})"
        return tail.decode(errors="replace") if isinstance(tail, bytes) else tail


def _worker_id(config: WorkerConfig | Mapping[str, Any]) -> str:
    worker_id = config.worker_id if isinstance(config, WorkerConfig) else dict(config).get("worker_id")
    if not isinstance(worker_id, str):
        raise UsageError(f"worker_configs: {config!r} has no worker_id; give each worker a name")
    return worker_id
