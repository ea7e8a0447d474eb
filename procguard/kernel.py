"""What the Linux kernel says of a process, parsed once for all who ask: trainers' witnesses and the guard.

Numbers in ``/proc/PID/stat`` are those of ``man 5 proc_pid_stat``. Standard library only; nothing here waits.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

PF_EXITING = 0x4
"""Flag of a task that has begun to exit (linux/sched.h); set before its robust mutexes are released."""

_FIRST_FIELD = 3  # the first one after the command name, which may itself hold blanks and brackets
_PARENT, _SESSION, _FLAGS, _THREADS, _START_TIME, _START_CODE, _EXIT_STATUS = (
    number - _FIRST_FIELD for number in (4, 6, 9, 20, 22, 26, 52)
)
_START_CODE_HIDDEN = b"1"

# ioctl PIDFD_GET_INFO with struct pidfd_info (linux/pidfd.h); since Linux 6.15 it has the exit status.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_INFO_EXIT = 1 << 3


@dataclass(frozen=True, slots=True)
class ProcStat:
    """One reading of ``/proc/PID/stat``: letter and flags are those of the thread group's leader.

    ``start_ticks`` is since boot, in clock ticks: with pid and boot id it names a process for ever.
    """

    letter: str
    parent: int
    session: int
    flags: int
    threads: int
    start_ticks: int
    exit_status: int | None
    """A wait status, meaningful once ``exiting``; None when the kernel hides it from this reader, for
    example because the process changed its user id."""

    @property
    def exiting(self) -> bool:
        """The leader has begun to exit: nothing brings it back."""
        return bool(self.flags & PF_EXITING) or self.letter in "ZX"

    @property
    def ended(self) -> bool:
        """It is a zombie, or less, with all of its threads: it holds nothing any longer."""
        return self.letter in "ZX" and self.threads <= 1


def parse_stat(content: bytes) -> ProcStat:
    """Parse what ``/proc/PID/stat`` holds."""
    fields = content[content.rindex(b")") + 1 :].split()
    hidden = fields[_START_CODE] == _START_CODE_HIDDEN
    return ProcStat(
        letter=fields[0].decode("ascii"),
        parent=int(fields[_PARENT]),
        session=int(fields[_SESSION]),
        flags=int(fields[_FLAGS]),
        threads=int(fields[_THREADS]),
        start_ticks=int(fields[_START_TIME]),
        exit_status=None if hidden else int(fields[_EXIT_STATUS]),
    )


def read_stat(pid: int) -> ProcStat:
    """Read the entry of a living or unreaped process; raises ``OSError`` when there is none."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return parse_stat(file.readall())


def boot_id() -> str:
    """The random id of this boot of the machine; empty where there is no /proc."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def wait_status(found: os.waitid_result) -> int:
    """The wait status that ``os.waitid`` tells in two fields."""
    if found.si_code == os.CLD_EXITED:
        return int(found.si_status) << 8
    return int(found.si_status) | (0x80 if found.si_code == os.CLD_DUMPED else 0)


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
