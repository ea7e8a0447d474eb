"""Whether a guard has nothing left to do: no worker runs, and none will by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from procguard.supervisor.exits import WorkerState
from procguard.supervisor.state_file import WorkerRecord
from procguard.supervisor.worker_events import WorkerStatus
from procguard.worker_config import WorkerConfig

_OVER = (WorkerState.FINISHED, WorkerState.FAILED, WorkerState.EXHAUSTED)
"""An operator's stop is not among them: whoever stopped a worker may start it again."""


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
        recovers: failed workers are restarted.
    """
    for worker_id, status in statuses.items():
        record = records.get(worker_id, WorkerRecord())
        config = configs.get(worker_id)
        restart = config.restart if config is not None else "on_failure"
        if status.state not in _OVER or record.start_due is not None:
            return None
        if status.state is WorkerState.FINISHED and restart == "always":
            return None
        is_out = bool(record.left_out) or record.exhausted
        if status.state is WorkerState.FAILED and recovers and not is_out and restart != "never":
            return None
    return End(tuple([w for w, status in statuses.items() if status.state is not WorkerState.FINISHED]))
