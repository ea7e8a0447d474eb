"""The guard's end of the keeper: started with the first worker that must not outlive the guard.

A keeper that dies is started again and told everything anew; for the moment between, those workers would
outlive us, which is said in the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from procguard.supervisor import procfs
from procguard.supervisor.keeper import KEY_LENGTH, QUIT
from procguard.supervisor.loop import Loop

_log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("keeper.py")
STARTS_MAX = 5
"""A keeper that dies as often as this is given up."""
QUIT_TIMEOUT_S = 2.0


class Keeping:
    """For the loop's thread."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._tokens: dict[str, str] = {}
        self._starts = 0

    @property
    def pid(self) -> int | None:
        """The keeper's, while there is one."""
        return self._keeper.pid if self._keeper else None

    def keep(self, token: str) -> None:
        """Have everything with this token end with us. To be said before the process is started."""
        self._tokens[token[:KEY_LENGTH]] = token
        if self._keeper is None:
            self._start()
        else:
            self._say(token)

    def close(self) -> None:
        """We end in good order: the keeper goes home."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        assert keeper.stdin is not None
        with contextlib.suppress(OSError):
            os.write(keeper.stdin.fileno(), f"{QUIT}\n".encode())
        try:
            keeper.wait(QUIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            keeper.kill()
            keeper.wait()
        _close_pipe(keeper)

    def _start(self) -> None:
        stat = procfs.read_stat(os.getpid())
        if self._starts >= STARTS_MAX or stat is None:
            _log.error("the keeper cannot be kept alive: workers told to end with the guard will outlive it")
            return
        self._starts += 1
        command = [sys.executable, "-I", "-S", str(PROGRAM), str(os.getpid()), str(stat.start_ticks)]
        try:
            self._keeper = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._pidfd = os.pidfd_open(self._keeper.pid)
        except OSError as error:
            _log.error("no keeper (%s): workers told to end with the guard will outlive it", error)
            return
        assert self._keeper.stdin is not None
        os.set_blocking(self._keeper.stdin.fileno(), False)
        self._loop.watch(self._pidfd, self._ended)
        for token in self._tokens.values():
            self._say(token)

    def _say(self, token: str) -> None:
        assert self._keeper is not None and self._keeper.stdin is not None
        try:
            os.write(self._keeper.stdin.fileno(), f"{token}\n".encode())
        except BrokenPipeError:  # it has just died: _ended tells the next one
            pass
        except BlockingIOError:
            _log.error("the keeper (pid %d) does not read; it is replaced", self._keeper.pid)
            self._keeper.send_signal(signal.SIGKILL)

    def _ended(self) -> None:
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        keeper, self._keeper = self._keeper, None
        assert keeper is not None
        keeper.wait()
        _close_pipe(keeper)
        _log.warning("the keeper (pid %d) has died; another one is started", keeper.pid)
        self._start()


def _close_pipe(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    with contextlib.suppress(OSError):
        keeper.stdin.close()
