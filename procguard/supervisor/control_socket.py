"""Where a guard is reached: the file of its socket, and how a guard makes it its own.

The file lies beside the state file, so that whoever knows the one knows the other. A path longer than a
socket address can hold, or a file system without sockets (some that are reached over a network), is no
reason to run without verbs: then it lies in the first of the given folders under a name made from the
state file's, which those who ask can make as well.

A socket file outlives a guard that was killed, so a file alone says nothing: who connects to it learns
whether somebody listens. The file of a dead guard is replaced, that of a living one never, also when two
guards start at the same moment: looking, removing and binding happen under a lock on the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from procguard.errors import StateError

PATH_BYTES_MAX = 107
"""What ``sun_path`` holds beside the NUL at its end."""
BACKLOG = 128
LOCK_S = 2.0
LOCK_LOOK_S = 0.01
UNKNOWN_PID = 0

_ELSEWHERE = {
    *(errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EROFS, errno.EINVAL, errno.ENOSPC),
    errno.ENAMETOOLONG,
}
"""What a folder says in which no socket can be made: another one is tried."""


class Peer(NamedTuple):
    """The process at the other end of a connection, as the kernel knows it."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Who connected, or, for one who connected, who listens."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", packed)
    return Peer(pid, uid)


def short_name(path: Path) -> str:
    """A name for what belongs to this file, the same for every spelling of its path."""
    return "guard-" + hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]


def socket_places(state_file: Path, folders: Sequence[Path]) -> list[Path]:
    """Where the socket of the guard with this state file may be, the usual place first."""
    whole = Path(os.path.realpath(state_file))
    places = [
        whole.with_name(whole.name + ".sock"),
        *(folder / f"{short_name(whole)}.sock" for folder in folders),
    ]
    return [place for place in places if len(os.fsencode(place)) <= PATH_BYTES_MAX]


def listener_pid(path: Path) -> int | None:
    """The process that listens there (``UNKNOWN_PID``: it is too busy to tell), or None.

    Raises:
        PermissionError: the socket is somebody else's.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
            return peer_of(probe).pid
        except BlockingIOError:  # its backlog is full, so there is one
            return UNKNOWN_PID
        except PermissionError:
            raise
        except OSError:  # nothing there, nobody listens, no socket, too long to be one
            return None


def is_private(folder: Path) -> bool:
    """Whether only we can put anything there: ours, no link, closed to all others."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def make_private(folder: Path) -> bool:
    """Make the folder if it is missing; whether it is private now."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    return is_private(folder)


def open_listener(state_file: Path, folders: Sequence[Path]) -> tuple[socket.socket, Path]:
    """A listening socket in the first place that can hold one, non-blocking, and its file (mode 0600).

    Raises:
        StateError: a guard listens there already, or no place can hold a socket.
    """
    refusals = []
    for place in socket_places(state_file, folders):
        if place.parent in folders and not make_private(place.parent):
            refusals.append(f"{place.parent}: not a folder of ours alone (it must be mode 0700 and no link)")
            continue
        try:
            return claim(place), place
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise StateError(f"cannot listen at {place}: {error.strerror}") from None
            refusals.append(f"{place}: {error.strerror}")
    said = "; ".join(refusals) or f"every path is longer than {PATH_BYTES_MAX} bytes"
    raise StateError(
        f"no place for the guard's socket: {said}. Choose a state file with a shorter path on a local disk, "
        "or name a folder of your own with PROCGUARD_RUNTIME_DIR"
    )


def claim(path: Path) -> socket.socket:
    """Listen at this path, over the file of a guard that is dead.

    Raises:
        StateError: somebody listens there, or what is there is no socket.
        OSError: no socket can be made there.
    """
    with _alone_in(path.parent):
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The file is made with this mode: nobody gets in before the chmod.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener


def _clear(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StateError(f"{path} is where the guard's socket belongs, but is something else; move it away")
    try:
        pid = listener_pid(path)
    except PermissionError:
        pid = UNKNOWN_PID
    if pid is not None:
        who = f"pid {pid}" if pid else "it does not say which"
        raise StateError(f"a guard listens at {path} already ({who}); see `procguard status --socket {path}`")
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other starting guards out for a moment. Where folders cannot be locked, we go on without."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        yield
        return
    try:
        until = time.monotonic() + LOCK_S
        while time.monotonic() < until:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_LOOK_S)
            except OSError:
                break
        yield
    finally:
        os.close(fd)
