"""Workers that the state knows and the configuration no longer names.

Nobody starts them any more, so a task of theirs would be on no living worker for ever. It goes to the queue,
for the next worker that starts; but not while anything of the leaver still lives, for then two would have it.
Workers that no guard has ever run (those of another machine, of whom only the state was told) are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from procguard import kernel
from procguard.supervisor import procfs
from procguard.supervisor.records import KEY_LENGTH, RecordBook
from procguard.supervisor.state import StateManager
from procguard.supervisor.sweep import by_key

_log = logging.getLogger(__name__)


def forget_leavers(state: StateManager, configured: Collection[str], state_dir: Path) -> list[str]:
    """Forget those of whom nothing lives; who they were.

    Args:
        state_dir: of the process manager that ran them.

    Raises:
        StateError: as ``StateManager.update``.
    """
    left = [
        w for w, record in state.document.workers.items() if record.wanted is not None and w not in configured
    ]
    if not left:
        return []
    living = _living(left, state_dir)
    gone = [worker_id for worker_id in left if worker_id not in living]
    for worker_id in left:
        tasks = ", ".join(state.tasks_of(worker_id))
        if tasks and worker_id in living:
            _log.warning(
                "%s is not in the configuration any more, and lives; it keeps its tasks: %s", worker_id, tasks
            )
        elif tasks:
            _log.warning(
                "%s is not in the configuration any more; its tasks wait for the next worker that starts: %s",
                worker_id, tasks,
            )  # fmt: skip
    for worker_id in gone:
        state.forget_worker(worker_id)
    return gone


def _living(worker_ids: Collection[str], state_dir: Path) -> set[str]:
    """Of whom a process lives: one that is recorded, or one that carries a token of the worker."""
    book = RecordBook(state_dir)
    keys = {book.key_of(worker_id): worker_id for worker_id in worker_ids}
    carrying = {keys[key] for key in by_key(keys.keys(), KEY_LENGTH)}
    boot = kernel.boot_id()
    recorded = set()
    for worker_id, record in book.read_all().items():
        stat = procfs.read_stat(record.pid) if record.pid is not None and record.boot_id == boot else None
        if stat is not None and stat.start_ticks == record.start_ticks and not stat.ended:
            recorded.add(worker_id)
    return carrying | (recorded & set(worker_ids))
