"""Failure reports: one JSON file for each failure, so that its reason is still known tomorrow.

Written to a temporary file and renamed: whoever reads finds a whole one. Their number is bounded, the
oldest goes first. There is no fsync: a report is evidence, and nothing hangs on it. A disk that is full
costs the report, with a line in the log, and never the recovery.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

VERSION = 1
REPORTS_COUNT_MAX = 100
STDERR_BYTES_MAX = 64 << 10
DIRECTORY_NAME = "failures"
_SUFFIX = ".json"


class FailureReports:
    """The newest ``count_max`` reports in ``directory``; with None they are kept in memory, the last of
    each worker."""

    def __init__(self, directory: Path | None, count_max: int = REPORTS_COUNT_MAX) -> None:
        self._directory = directory
        self._count_max = count_max
        self._newest: dict[str, dict[str, Any]] = {}
        self._files: deque[Path] | None = None
        """Oldest first. Listed once: a worker that waits for its restart should not wait for that each
        time."""

    def add(self, worker_id: str, at: float, report: Mapping[str, Any]) -> Path | None:
        """Keep a report; ``at`` is in Unix seconds. Returns where it stands, if in a file."""
        time = datetime.fromtimestamp(at, timezone.utc)
        whole = {"version": VERSION, "worker_id": worker_id, "at": at, "time": time.isoformat(), **report}
        if self._directory is None:
            self._newest[worker_id] = whole
            return None
        path = self._directory / f"{time:%Y%m%dT%H%M%S.%fZ}-{worker_id}{_SUFFIX}"
        try:
            if self._files is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._files = deque(self._paths())
            _write(path, json.dumps(whole).encode())
            self._files.append(path)
            self._newest.pop(worker_id, None)  # what is in a file need not be kept in memory
            while len(self._files) > self._count_max:
                self._files.popleft().unlink(missing_ok=True)
        except OSError as error:
            self._files = None  # somebody may have cleaned up
            self._newest[worker_id] = whole
            _log.warning("The report on %s's failure is lost: %s: %s", worker_id, path, error.strerror)
            return None
        return path

    def newest(self, worker_id: str) -> dict[str, Any] | None:
        """The last report on this worker, also one of an earlier guard; None if there is none."""
        if worker_id in self._newest or self._directory is None:
            return self._newest.get(worker_id)
        for path in reversed(self._paths()):
            if _worker_of(path) == worker_id:
                with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or not written by us
                    content = json.loads(path.read_bytes())
                    return content if isinstance(content, dict) else None
        return None

    def forget(self, worker_id: str) -> None:
        """The worker is registered no longer; its files stay."""
        self._newest.pop(worker_id, None)

    def _paths(self) -> list[Path]:
        """Oldest first: their names begin with the time."""
        assert self._directory is not None
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return [self._directory / name for name in sorted(names) if name.endswith(_SUFFIX)]


def _worker_of(path: Path) -> str:
    return path.name.partition("-")[2].removesuffix(_SUFFIX)


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(".tmp")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # stderr may hold secrets: for this user only
            file.write(content)
        unfinished.rename(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
