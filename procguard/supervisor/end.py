"""Whether a guard has nothing left to do: no worker runs, and none will by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from procguard.supervisor.exits import WorkerState
from procguard.supervisor.state_file import LEFT_OUT_FINISHED, WorkerRecord
from procguard.supervisor.worker_events import WorkerStatus
from procguard.worker_config import WorkerConfig

_OVER = (WorkerState.FINISHED, WorkerState.FAILED)
"""An operator's stop is not among them: whoever stopped a worker may start it again."""

_AT_REST = (WorkerState.STOPPED, WorkerState.FINISHED, WorkerState.FAILED)
"""Nothing of it lives, and nothing is due."""


class End(NamedTuple):
    """All is over."""

    failed: tuple[str, ...]
    """Who did not come to a good end."""

    @property
    def text(self) -> str:
        return f"failed for good: {', '.join(self.failed)}" if self.failed else "every worker has finished"


def end_of(
    statuses: Mapping[str, WorkerStatus],
    records: Mapping[str, WorkerRecord],
    configs: Mapping[str, WorkerConfig],
    *,
    recovers: bool,
) -> End | None:
    """The end, or None while a worker runs, or is to run again. Asked between two recoveries.

    Args:
        recovers: failed workers are restarted, and so are those that always run.
    """
    failed = []
    for worker_id, status in statuses.items():
        record = records.get(worker_id, WorkerRecord())
        config = configs.get(worker_id)
        if _may_run(status, record, config.restart if config is not None else "on_failure", recovers):
            return None
        if status.state is not WorkerState.FINISHED and not _had_finished(status, record):
            failed.append(worker_id)
    return End(tuple(failed))


def _may_run(status: WorkerStatus, record: WorkerRecord, restart: str, recovers: bool) -> bool:
    """It does, or will by itself, or an operator may want it to."""
    if record.start_due is not None:
        return True
    if _had_finished(status, record):
        return False
    if status.state not in _OVER:
        return True
    is_out = bool(record.left_out) or record.exhausted
    if status.state is WorkerState.FINISHED:
        return recovers and restart == "always"
    return recovers and not is_out and restart != "never"


def _had_finished(status: WorkerStatus, record: WorkerRecord) -> bool:
    """Perhaps under an earlier guard, of whose workers' ends this one's process manager knows nothing."""
    return record.left_out == LEFT_OUT_FINISHED and status.state in _AT_REST
