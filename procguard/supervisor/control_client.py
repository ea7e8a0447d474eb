"""``ControlClient``: asks a running guard over its socket, and says in words why it could not.

One connection, kept for those who ask again and again, and made anew when it was cut while nothing was
asked: a guard that restarts, or makes room for others, does that. Nothing waits for longer than its
timeout.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from procguard.errors import GuardError, GuardUnreachable, ProtocolError
from procguard.supervisor.control_socket import UNKNOWN_PID, Peer, peer_of
from procguard.supervisor.control_verbs import READING
from procguard.supervisor.control_words import ANSWER_BYTES_MAX, Lines, read_answer, request_line

TIMEOUT_S = 5.0
PIECE_BYTES = 256 << 10
CROWD_PAUSE_S = 0.01
"""Between two attempts to get into a full backlog."""


class ControlClient:
    """Not for several threads at once.

    Args:
        path: of the guard's socket.
        timeout_s: for one answer, with the connection to get it.
        clock: monotonic seconds.
    """

    def __init__(
        self, path: Path, timeout_s: float = TIMEOUT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self.guard_pid = UNKNOWN_PID
        """Of the guard that was reached last."""
        self._clock = clock
        self._connection: socket.socket | None = None
        self._lines = Lines(ANSWER_BYTES_MAX)

    def ask(self, verb: str, **args: object) -> Any:
        """What the guard answers.

        Raises:
            UsageError: the guard says that this cannot be asked.
            GuardUnreachable: no guard there, or no answer in time.
            GuardError: it could not; or its user is another one.
        """
        line = request_line(verb, args)
        until = self._clock() + self.timeout_s
        kept = self._connection is not None
        try:
            try:
                answer = self._exchange(line, until)
            except ConnectionError:
                self.close()
                if not kept or verb not in READING:
                    raise
                answer = self._exchange(line, until)
            return read_answer(answer)
        except ProtocolError as error:
            self.close()
            raise GuardError(
                f"{self.path} answered what this version of procguard does not understand: {error}"
            ) from None
        except GuardError:
            raise
        except TimeoutError:
            self.close()
            raise GuardUnreachable(self._silent()) from None
        except OSError as error:
            self.close()
            raise self._explained(error) from None

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection, self._lines = None, Lines(ANSWER_BYTES_MAX)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _exchange(self, line: bytes, until: float) -> bytes:
        if self._connection is None:
            self._connection = self._connect(until)
        connection = self._connection
        connection.settimeout(self._left_s(until))
        connection.sendall(line)
        while (answer := self._lines.next()) is None:
            connection.settimeout(self._left_s(until))
            piece = connection.recv(PIECE_BYTES)
            if not piece:
                raise ConnectionResetError("the guard ended, or cut the connection, before it answered")
            self._lines.add(piece)
        return answer

    def _connect(self, until: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while True:
                connection.settimeout(self._left_s(until))
                try:
                    connection.connect(str(self.path))
                    break
                except BlockingIOError:  # its backlog is full
                    time.sleep(CROWD_PAUSE_S)
            self._check(peer_of(connection))
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, guard: Peer) -> None:
        """In a folder that others can write, somebody else may listen where our guard would."""
        if guard.uid not in (0, os.geteuid()) and os.geteuid() != 0:
            raise GuardError(
                f"whoever listens at {self.path} is {user_name(guard.uid)}, not you: no guard of yours, "
                "and not asked"
            )
        self.guard_pid = guard.pid

    def _left_s(self, until: float) -> float:
        left_s = until - self._clock()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _silent(self) -> str:
        who = f"The guard with pid {self.guard_pid}" if self.guard_pid else "The guard"
        return (
            f"{who} did not answer at {self.path} within {self.timeout_s:g} s. It lives, but is stopped, "
            "held up or still at what was asked, and goes on with that: `procguard status` shows how far it "
            "is. --timeout waits longer"
        )

    def _explained(self, error: OSError) -> GuardError:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return GuardUnreachable(f"no guard runs at {self.path}: there is no such socket")
        if isinstance(error, ConnectionRefusedError):
            return GuardUnreachable(f"no guard runs at {self.path}: the one that made this socket has ended")
        if isinstance(error, PermissionError):
            owner = _owner_of(self.path)
            return GuardError(
                f"the guard at {self.path} belongs to {owner}, and only {owner} and root may command it: "
                f"sudo -u {owner} procguard ..."
            )
        if isinstance(error, ConnectionError):
            return GuardUnreachable(
                f"the guard at {self.path} ended, or cut the connection, before it answered; what was asked "
                "may have been done"
            )
        return GuardUnreachable(f"cannot ask the guard at {self.path}: {error.strerror or error}")


def _owner_of(path: Path) -> str:
    """The user whose socket this is, or whose folder, where the socket itself cannot be seen."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return user_name(os.lstat(place).st_uid)
    return "another user"


def user_name(uid: int) -> str:
    """As people know the user; ``uid 1000`` where nobody knows."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
