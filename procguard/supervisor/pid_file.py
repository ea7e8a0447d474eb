"""A worker's ``pid_file``: the pid of its present process and a newline, for those who look for it there.

For others only: the guard itself never believes one.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

from procguard.errors import UsageError

_log = logging.getLogger(__name__)

CONTENT_BYTES_MAX = 64


class PidFile:
    """``path`` is made whole or not at all."""

    def __init__(self, worker_id: str, path: Path) -> None:
        self._worker_id = worker_id
        self._path = path
        self._unfinished = path.with_name(f"{path.name}.tmp")

    def prepare(self) -> None:
        """Find out whether it can be written. A full disk is reported only, and later.

        Raises:
            UsageError: it cannot; names the path and the remedy.
        """
        if self._path.is_dir():
            raise self._unusable("it is a directory")
        try:
            self._unfinished.write_bytes(b"")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise self._unusable(str(error.strerror)) from None

    def write(self, pid: int) -> None:
        """Say that this process runs."""
        try:
            self._unfinished.write_text(f"{pid}\n", encoding="ascii")
            self._unfinished.rename(self._path)
        except OSError as error:
            _log.error("%s: pid_file: %s was not written: %s", self._worker_id, self._path, error.strerror)

    def remove(self, pid: int) -> None:
        """Say so no longer, unless it is by now about another process."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                content = os.read(descriptor, CONTENT_BYTES_MAX)
            finally:
                os.close(descriptor)
            if content.strip() == str(pid).encode():
                self._path.unlink()

    def withdraw(self) -> None:
        """There will be no process."""
        with contextlib.suppress(OSError):
            self._unfinished.unlink()

    def _unusable(self, why: str) -> UsageError:
        return UsageError(
            f"{self._worker_id}: pid_file: {str(self._path)!r} cannot be written ({why}); "
            "name a file in a directory that this user can write to"
        )
