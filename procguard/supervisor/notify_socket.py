"""``NOTIFY_SOCKET``: where workers say ``READY=1`` and ``WATCHDOG=1``, as services say it to systemd.

One datagram socket for all workers. It is a file, not an abstract name: its path stays the same over a
restart of the guard, so that adopted workers, who have it in their environment, are heard again; it can be
seen from another network namespace; and its mode lets nobody else write. Who has sent a datagram is said by
the kernel (``SCM_CREDENTIALS``); to which worker that process belongs is for the monitor to find out, and a
stranger's word is dropped. Protocol: ``man 3 sd_notify``.

Descriptors that come with a datagram are closed at once: nothing is kept for anybody. That is also what a
sender of ``BARRIER=1`` waits for. Must never block and never raise for what a peer has sent.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from procguard.errors import StateError
from procguard.supervisor.health_words import (
    Beat,
    BeatTimeout,
    Event,
    Extended,
    Ready,
    Spoke,
    Stopping,
    Triggered,
)

SOCKET_NAME = "notify.sock"
DATAGRAM_BYTES_MAX = 8192
DATAGRAMS_PER_WAKE_MAX = 256
DESCRIPTORS_MAX = 253
"""SCM_MAX_FD of the kernel: so many can come with one datagram."""
STATUS_CHARACTERS_MAX = 200
PATH_BYTES_MAX = 107
"""What ``sun_path`` holds, with its final NUL."""
TIMEOUT_US_MAX = 24 * 60 * 60 * 1_000_000

STACK_SIGNAL = "X_PROCGUARD_STACK_SIGNAL"
"""Our own word: on this signal the sender writes its threads' stacks to its stderr (see ``stacks``)."""

_CREDENTIALS = struct.Struct("3i")
_IGNORED = ("RELOADING", "MAINPID", "MONOTONIC_USEC", "BUSERROR", "ERRNO", "FDSTORE", "FDNAME", "BARRIER")


@dataclass(frozen=True, slots=True)
class Datagram:
    """What one process has said: what it means for its health, and the words of which we take no notice."""

    pid: int
    events: tuple[Event, ...]
    status: str | None = None
    """``STATUS=``: one line for people; nothing in it steers a terminal."""
    stack_signal: int | None = None
    unheeded: tuple[str, ...] = ()


def parse(content: bytes, pid: int) -> Datagram:
    """What a datagram says; what cannot be understood is left out."""
    events: list[Event] = []
    unheeded: list[str] = []
    status, stack_signal = None, None
    for line in content.decode(errors="replace").splitlines():
        name, _, value = line.partition("=")
        if (event := _event(name, value)) is not None:
            events.append(event)
        elif name == "STATUS":
            status = "".join(each if each.isprintable() else "?" for each in value[:STATUS_CHARACTERS_MAX])
        elif name == STACK_SIGNAL and value.isascii() and value.isdigit():
            stack_signal = int(value)
        elif name in _IGNORED:
            unheeded.append(name)
    return Datagram(pid, tuple(events) or (Spoke(),), status, stack_signal, tuple(unheeded))


def _event(name: str, value: str) -> Event | None:
    match name, value:
        case "READY", "1":
            return Ready()
        case "STOPPING", "1":
            return Stopping()
        case "WATCHDOG", "1":
            return Beat()
        case "WATCHDOG", "trigger":
            return Triggered()
        case "WATCHDOG_USEC" | "EXTEND_TIMEOUT_USEC", _ if value.isascii() and value.isdigit():
            time_s = min(int(value[:20]), TIMEOUT_US_MAX) / 1_000_000
            if name == "EXTEND_TIMEOUT_USEC":
                return Extended(time_s)
            return BeatTimeout(time_s) if time_s > 0 else None
    return None


def socket_path(state_dir: Path) -> Path:
    """Where the socket of a guard with this state directory stands: in it, if the path is short enough.

    Else in a directory of this user's own, of a name that follows from the state directory, so that the
    next guard finds the same.
    """
    path = state_dir.absolute() / SOCKET_NAME
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        return path
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    place = Path(base) if os.path.isabs(base) and len(base) <= PATH_BYTES_MAX // 2 else Path("/tmp")
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return place / f"procguard-{os.getuid()}" / f"{name}.sock"


class NotifySocket:
    """Bound to ``path``, whatever an earlier guard has left there. Raises ``StateError``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            _make_own_directory(path.parent)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            self._socket.bind(os.fspath(path))
            path.chmod(0o600)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except OSError as error:
            self._socket.close()
            raise StateError(
                f"{path}: workers cannot report here ({error.strerror or error}); "
                "the state file must stand in a directory that this user can write to"
            ) from None

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def receive(self) -> list[Datagram]:
        """What has come, at most ``DATAGRAMS_PER_WAKE_MAX``; never waits."""
        received = []
        for _ in range(DATAGRAMS_PER_WAKE_MAX):
            try:
                received += self._receive_one()
            except BlockingIOError:
                break
            except OSError:  # a datagram that the kernel could not hand over; the next one may be better
                continue
        return received

    def close(self) -> None:
        """Remove the file, so that a worker's next word is refused and not lost in a queue."""
        self._socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _receive_one(self) -> list[Datagram]:
        room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(
            DESCRIPTORS_MAX * array.array("i").itemsize
        )
        content, ancillary, flags, _ = self._socket.recvmsg(DATAGRAM_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
        sender = 0
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                sender = _CREDENTIALS.unpack_from(payload)[0]
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                _close_all(payload)
        whole = not flags & socket.MSG_TRUNC
        return [parse(content, sender)] if sender > 0 and whole else []


def _close_all(payload: bytes) -> None:
    descriptors = array.array("i")
    descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    for descriptor in descriptors:
        os.close(descriptor)


def _make_own_directory(directory: Path) -> None:
    """Also one below /tmp must be nobody else's."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.name == f"procguard-{os.getuid()}" and directory.lstat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to somebody else")
