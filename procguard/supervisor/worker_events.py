"""What others hear of a worker: its status when they ask, and an event when something happens to it.

Plain values, made on the loop's thread and safe to keep and to pass on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from procguard.supervisor.exits import Exit, WorkerState


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker as it is now. Fields can be read by attribute or, as of a mapping, by key.

    ``started_at`` is Unix seconds, ``restarts`` counts the starts after the first one. ``pid`` is None when
    no process runs. ``adopted``: it was started by an earlier guard. ``next_start_at`` (Unix seconds) is when
    a delayed start is due.
    """

    worker_id: str
    state: WorkerState
    pid: int | None = None
    started_at: float | None = None
    restarts: int = 0
    last_exit: Exit | None = None
    log_file: str | None = None
    adopted: bool = False
    next_start_at: float | None = None
    error_file: str | None = None

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a mapping."""
        return self[key] if key in self.keys() else default

    def keys(self) -> tuple[str, ...]:
        """The names of the fields, so that ``dict(status)`` works."""
        return tuple(field.name for field in fields(self))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """A worker's process runs; ``at`` is Unix seconds. ``adopted``: it has done so since an earlier guard."""

    worker_id: str
    pid: int
    at: float
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """A worker's process has ended (or a delayed start failed); ``at`` is Unix seconds.

    Said the moment it is known. What the worker left behind is swept after that; a start waits for it.
    """

    worker_id: str
    exit: Exit
    at: float


@dataclass(frozen=True, slots=True)
class WorkerUnkillable:
    """Something of a worker outlives SIGKILL: it is no longer waited for. ``WorkerEnded`` may still come."""

    worker_id: str
    pid: int | None
    at: float


WorkerEvent = WorkerStarted | WorkerEnded | WorkerUnkillable
