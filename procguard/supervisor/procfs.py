"""What /proc says of a process, as far as a supervisor of processes must know it.

A pid alone names nobody: it is given again. ``(pid, start time)`` does, until the next boot. Whoever signals
a process that is not an unreaped child of its own does it through ``open_pidfd``, which makes sure of that.

What cannot be read is gone or not for us. But who is out of descriptors or memory must not conclude that
nothing lives: that is raised. Numbers are those of ``man 5 proc_pid_stat``. Standard library only; nothing
here waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass

START_VARIABLE = "PROCGUARD_START"
"""Every worker carries it, and so does whatever descends from it: the tokens of the guards above it, each
of one start, with ``:`` between."""

_VARIABLE = START_VARIABLE.encode() + b"="
_FIRST_FIELD = 3  # the first one after the command name, which may itself hold blanks and brackets
_PARENT, _SESSION, _THREADS, _START_TIME, _START_CODE, _EXIT_STATUS = (
    number - _FIRST_FIELD for number in (4, 6, 20, 22, 26, 52)
)
_START_CODE_HIDDEN = b"1"

_OUR_OWN_WANT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}

# ioctl PIDFD_GET_INFO with struct pidfd_info (linux/pidfd.h); since Linux 6.15 it has the exit status.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_INFO_EXIT = 1 << 3


@dataclass(frozen=True, slots=True)
class ProcStat:
    """One reading of ``/proc/PID/stat``; ``start_ticks`` is since boot."""

    letter: str
    threads: int
    parent: int
    session: int
    start_ticks: int
    exit_status: int | None
    """A wait status once the process is a zombie; None where the kernel hides it."""

    @property
    def ended(self) -> bool:
        """It is a zombie, or less, with all of its threads: it holds nothing any longer."""
        return self.letter in "ZX" and self.threads <= 1


def read_stat(pid: int) -> ProcStat | None:
    """The entry of a living or unreaped process; None when there is none."""
    content = _read(f"/proc/{pid}/stat")
    if not content:
        return None
    fields = content[content.rindex(b")") + 1 :].split()
    hidden = fields[_START_CODE] == _START_CODE_HIDDEN
    return ProcStat(
        letter=fields[0].decode("ascii"),
        threads=int(fields[_THREADS]),
        parent=int(fields[_PARENT]),
        session=int(fields[_SESSION]),
        start_ticks=int(fields[_START_TIME]),
        exit_status=None if hidden else int(fields[_EXIT_STATUS]),
    )


def tokens_of(pid: int) -> tuple[str, ...] | None:
    """The tokens in the environment a process was started with; none when it has none, or hides it.

    None where there is no environment at all: it was started without one, or is this moment in exec, which
    shows the new one a little after the descriptors of the old program are closed.
    """
    content = _read(f"/proc/{pid}/environ")
    if not content:
        return () if content is None else None
    for variable in content.split(b"\0") if _VARIABLE in content else ():
        if variable.startswith(_VARIABLE):
            return tuple(variable[len(_VARIABLE) :].decode("ascii", "replace").split(":"))
    return ()


def children_of(pid: int) -> list[int] | None:
    """The living and unreaped children of a process; None where this kernel does not tell."""
    children: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError as error:
        _raise_own_want(error)
        return []
    for thread in threads:
        content = _read(f"/proc/{pid}/task/{thread}/children")
        if content is None and os.path.exists(f"/proc/{pid}/task/{thread}/stat"):
            return None  # the kernel is without CONFIG_PROC_CHILDREN
        children += map(int, (content or b"").split())
    return children


def _read(path: str) -> bytes | None:
    """None when it is gone, or not for us."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        _raise_own_want(error)
        return None


def _raise_own_want(error: OSError) -> None:
    if error.errno in _OUR_OWN_WANT:
        raise error


def all_pids() -> Iterator[int]:
    """Of every process that this /proc shows."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def boot_id() -> str:
    """The random id of this boot of the machine; empty where there is no /proc."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def reaped_exit_status(pidfd: int) -> int | None:
    """The wait status of a process that is already reaped; None where the kernel does not keep it."""
    request = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(request, 0, _PIDFD_INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError:
        return None
    answer = _PIDFD_INFO.unpack(request)
    return int(answer[-1]) if answer[0] & _PIDFD_INFO_EXIT else None


def open_pidfd(pid: int, start_ticks: int) -> int | None:
    """A pidfd of exactly this process; None when it is gone (also if the pid is another's by now)."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stat = read_stat(pid)
    if stat is None or stat.start_ticks != start_ticks:
        os.close(pidfd)
        return None
    return pidfd


def has_ended(pidfd: int) -> bool:
    """Whether the process has, with all of its threads."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def send(pidfd: int, number: int) -> None:
    """Send a signal; one that has ended, or that has become another user's, is left alone."""
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, number)
