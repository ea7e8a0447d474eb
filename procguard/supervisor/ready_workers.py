"""The workers as the recovery sees them: one that is not ready yet is still starting.

The process manager knows that a process runs, the monitor that it is not well yet (it has promised
``READY=1``, or its health URL has not answered). Whoever waits for the workers that another one depends on
wants to know both, and here is where the two meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from procguard.supervisor.exits import StopReason, WorkerState
from procguard.supervisor.health_words import HealthStatus
from procguard.supervisor.manager import ProcessManager
from procguard.supervisor.monitor import ProcessMonitor
from procguard.supervisor.worker_events import WorkerStatus

_NOT_READY = (
    HealthStatus.STARTING,
    HealthStatus.UNKNOWN,
    HealthStatus.STOPPED,
    HealthStatus.DEAD,
    HealthStatus.ZOMBIE,
)
"""Of a process that runs, all but the first mean that the monitor has not heard of its start yet."""


class ReadyWorkers:
    """A ``ProcessManager`` for the recovery; see ``crew.Workers``."""

    def __init__(self, manager: ProcessManager, monitor: ProcessMonitor) -> None:
        self._manager = manager
        self._monitor = monitor

    def statuses(self) -> Mapping[str, WorkerStatus]:
        return {worker_id: self._seen(status) for worker_id, status in self._manager.statuses().items()}

    def start_worker(
        self, worker_id: str, *, delay_s: float = 0.0, environment: Mapping[str, str] | None = None
    ) -> bool:
        return self._manager.start_worker(worker_id, delay_s=delay_s, environment=environment)

    def stop_worker(
        self, worker_id: str, force: bool = False, *, reason: StopReason = StopReason.OPERATOR
    ) -> bool:
        return self._manager.stop_worker(worker_id, force, reason=reason)

    def stop_all_workers(
        self, force: bool = False, *, reason: StopReason = StopReason.OPERATOR
    ) -> Mapping[str, bool]:
        return self._manager.stop_all_workers(force, reason=reason)

    def _seen(self, status: WorkerStatus) -> WorkerStatus:
        if status.state is WorkerState.RUNNING and self._monitor.get_status(status.worker_id) in _NOT_READY:
            return replace(status, state=WorkerState.STARTING)
        return status
