"""``ControlServer``: a guard's socket from start to end; ``control_loop`` does the talking.

Makes the socket file, enters the guard into the register, and looks after both while the guard runs: a
cleaner of temporary files may take either away, and then it is made anew. At the end both are removed, if
they are still this guard's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from procguard.errors import StateError
from procguard.supervisor.control_loop import ControlLoop
from procguard.supervisor.control_socket import claim, open_listener
from procguard.supervisor.control_verbs import Commands
from procguard.supervisor.guard_register import Entry, forget_dead, register

UPKEEP_S = 60.0
"""Between two looks whether socket file and entry are still there."""
CLOSE_S = 2.0

logger = logging.getLogger(__name__)


class ControlServer:
    """Answers the verbs over a unix socket that only this user, and root, can use.

    Args:
        commands: the guard.
        state_file: of the guard, whose lock the caller holds; the socket lies beside it if it can.
        folders: ``env.guard_folders()``: where the guard is registered, and the socket if not there.
        config: the guard's configuration file, for whoever names the guard by it.
        started_at: Unix seconds; now if None.
    """

    def __init__(
        self,
        commands: Commands,
        state_file: Path,
        *,
        folders: Sequence[Path] = (),
        config: Path | None = None,
        started_at: float | None = None,
    ) -> None:
        self._commands = commands
        self._state_file = Path(os.path.realpath(state_file))
        self._folders = tuple(folders)
        self._config = Path(os.path.realpath(config)) if config else None
        self._started_at = time.time() if started_at is None else started_at
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None
        self._entry: Path | None = None
        self._upkeep_at = 0.0
        self._loop: ControlLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """Of the socket, once it is started."""
        assert self._path is not None, "not started"
        return self._path

    def start(self) -> None:
        """Listen from now on. ``StateError``: another guard listens there, or no socket can be made."""
        assert self._loop is None, "started twice"
        forget_dead(self._folders)
        listener, self._path = open_listener(self._state_file, self._folders)
        self._file = _identity(self._path)
        self._loop = ControlLoop(listener, self._commands)
        self._register()
        self._upkeep_at = time.monotonic() + UPKEEP_S
        self._thread = threading.Thread(
            target=self._loop.run, args=(self._upkeep,), name="procguard-control", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Listen no longer. A command that is being done goes on, unanswered."""
        if self._loop is None or self._thread is None:
            return
        self._loop.stop()
        self._thread.join(CLOSE_S)
        self._loop = None
        if self._path and self._file and _identity(self._path) == self._file:
            _remove(self._path)
        if self._entry:
            _remove(self._entry)

    def __enter__(self) -> ControlServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _register(self) -> None:
        entry = Entry(
            os.getpid(),
            str(self.path),
            str(self._state_file),
            str(self._config) if self._config else None,
            self._started_at,
        )
        self._entry = register(entry, self._folders)
        if self._folders and self._entry is None:
            logger.warning(
                "Not in the register of running guards (none of %s is a folder of ours alone): "
                "verbs need --socket %s",
                ", ".join(map(str, self._folders)),
                self.path,
            )

    def _upkeep(self) -> None:
        """Called by the loop, in its thread."""
        now = time.monotonic()
        if now < self._upkeep_at:
            return
        self._upkeep_at = now + UPKEEP_S
        self.keep_up()

    def keep_up(self) -> None:
        """Make socket file and entry anew where they are gone, and young where not. In the loop's thread."""
        assert self._loop is not None
        if self._entry is not None:
            try:
                os.utime(self._entry)
            except OSError:
                self._register()
        if _identity(self.path) is None:
            listener = self._new_listener()
            if listener:
                self._file = _identity(self.path)
                self._loop.listen_to(listener)
                logger.warning("The guard's socket %s was removed; it is there again", self.path)

    def _new_listener(self) -> socket.socket | None:
        try:
            return claim(self.path)
        except (OSError, StateError) as error:
            logger.warning("The guard's socket %s was removed and cannot be made again: %s", self.path, error)
            return None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
