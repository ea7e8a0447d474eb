"""What a running guard shows and does for whoever asks: ``control_verbs.Commands`` over its components.

Each answer is put together from what the components know at that moment; nothing is remembered here.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from procguard.supervisor.chronicle import Chronicle
from procguard.supervisor.health_words import HealthStatus
from procguard.supervisor.manager import ProcessManager
from procguard.supervisor.monitor import ProcessMonitor
from procguard.supervisor.plan import Journal, Step
from procguard.supervisor.recovery import FailureHandler
from procguard.supervisor.state import StateManager
from procguard.supervisor.state_file import WorkerRecord
from procguard.supervisor.worker_events import WorkerStatus
from procguard.worker_config import WorkerConfig

_STEP_WORDS = {
    Step.CHECKPOINT: "save",
    Step.STOP: "stop",
    Step.RESTART: "restart",
    Step.READY: "wait until ready",
    Step.RESUME: "resume",
}


class GuardCommands:
    """The guard, as ``control_verbs.Commands`` has it.

    Args:
        configs: the workers' settings by worker, in the file's order.
        about: the snapshot's part on the guard itself.
        ended_at: Unix seconds at which a worker's last process ended, as far as this guard has seen it.
    """

    def __init__(
        self,
        *,
        configs: Mapping[str, WorkerConfig],
        manager: ProcessManager,
        monitor: ProcessMonitor,
        recovery: FailureHandler,
        state: StateManager,
        chronicle: Chronicle,
        about: Callable[[], Mapping[str, Any]],
        ended_at: Mapping[str, float],
    ) -> None:
        self._configs = configs
        self._manager = manager
        self._monitor = monitor
        self._recovery = recovery
        self._state = state
        self._chronicle = chronicle
        self._about = about
        self._ended_at = ended_at

    def snapshot(self) -> Mapping[str, Any]:
        document = self._state.document
        tasks = self._tasks_by_worker()
        workers = [
            self._worker(status, document.workers.get(worker_id, WorkerRecord()), tasks.get(worker_id, []))
            for worker_id, status in self._manager.statuses().items()
        ]
        return {
            "guard": dict(self._about()),
            "workers": workers,
            "recovery": self._chain(document.recovery) if document.recovery else None,
        }

    def _worker(self, status: WorkerStatus, record: WorkerRecord, tasks: list[str]) -> dict[str, Any]:
        worker_id = status.worker_id
        config = self._configs.get(worker_id) or WorkerConfig(worker_id=worker_id, command=("?",))
        usage = self._monitor.get_usage(worker_id)
        last = status.last_exit
        at = self._ended_at.get(worker_id)
        ended = {"kind": last.kind.value, "text": last.text, "at": at} if last else None
        gave_up = [f"gave up: {record.left_out}"] if record.exhausted else []
        left_out = [record.left_out] if record.left_out and not record.exhausted else []
        return {
            "worker_id": worker_id,
            "state": "exhausted" if record.exhausted and status.pid is None else status.state.value,
            "health": self._monitor.get_status(worker_id).value,
            "reasons": [
                *gave_up,
                *left_out,
                *self._awaited(config, status, record),
                *self._monitor.get_reasons(worker_id),
            ],
            "pid": status.pid,
            "started_at": status.started_at,
            "restarts": len(record.restarts.due),
            "max_restarts": config.max_restarts,
            "restart_window_s": config.restart_window,
            "next_start_at": status.next_start_at,
            "last_exit": ended,
            "tasks": tasks,
            "rss_bytes": usage.rss_bytes if usage else None,
            "cpu_percent": usage.cpu_percent if usage else None,
            "adopted": status.adopted,
        }

    def _awaited(self, config: WorkerConfig, status: WorkerStatus, record: WorkerRecord) -> list[str]:
        """Whom a worker waits for that is to start, and has not."""
        if status.pid is not None or record.start_due is None or status.next_start_at is not None:
            return []
        not_ready = [w for w in config.depends_on if self._monitor.get_status(w) is HealthStatus.STARTING]
        return [f"waits for {', '.join(not_ready)}, not ready yet"] if not_ready else []

    def _chain(self, journal: Journal) -> dict[str, Any]:
        def state_of(index: int) -> str:
            return "done" if index < journal.at else "doing" if index == journal.at else "to_do"

        return {
            "failed": list(journal.failed),
            "attempt": journal.attempt,
            "max_attempts": self._recovery.settings.max_recovery_attempts,
            "started_at": journal.started_at,
            "steps": [
                {"step": _STEP_WORDS[step], "state": state_of(index)}
                for index, step in enumerate(journal.steps)
            ],
            "text": journal.trouble,
        }

    def _tasks_by_worker(self) -> dict[str, list[str]]:
        by_worker: dict[str, list[str]] = {}
        for task_id, task in self._state.document.tasks.items():
            if task.worker_id is not None:
                by_worker.setdefault(task.worker_id, []).append(task_id)
        return by_worker

    def start(self, ids: Sequence[str]) -> Mapping[str, bool]:
        self._told("start", ids)
        return self._recovery.start(ids)

    def stop(self, ids: Sequence[str], force: bool) -> Mapping[str, bool]:
        self._told("stop", ids)
        return self._recovery.stop(ids, force)

    def restart(self, ids: Sequence[str]) -> Mapping[str, bool]:
        self._told("restart", ids)
        return self._recovery.restart(ids)

    def kill(self, ids: Sequence[str], signal: signal.Signals) -> Mapping[str, bool]:
        self._told(f"send {signal.name} to", ids)
        return {worker_id: self._manager.kill_worker(worker_id, signal) for worker_id in ids}

    def _told(self, verb: str, ids: Sequence[str]) -> None:
        for worker_id in ids:
            self._chronicle.add("operator", f"an operator says: {verb} {worker_id}", worker_id)

    def log_paths(self, worker_id: str) -> Mapping[str, str]:
        status = self._manager.get_worker_status(worker_id)
        paths = {"stdout": status.log_file, "stderr": status.error_file}
        return {stream: path for stream, path in paths.items() if path}

    def tasks(self) -> Mapping[str, Any]:
        by_worker = self._tasks_by_worker()
        there = dict.fromkeys([*self._manager.statuses(), *by_worker])
        return {"workers": {w: by_worker.get(w, []) for w in there}, "queue": self._state.task_queue()}

    def events(self, after_seq: int | None, count_max: int) -> Sequence[Mapping[str, Any]]:
        return self._chronicle.since(after_seq, count_max)
