"""What /proc says of one process: is it exiting, how did it end, is it writing a core dump.

Read by the witness at each beat, so it is kept cheap: the two files stay open and are read again with
``pread`` (measured: 6 us for ``stat``, 8 us for ``status``). An open entry stays bound to its process:
once that is reaped it answers ESRCH, and never shows a later process with the same pid. The pid is asked
of the pidfd, not passed along, because it must be the one that *this* /proc uses (pid namespaces).

Linux only; nothing here waits.
"""

from __future__ import annotations

import os
import resource

from procguard.kernel import ProcStat, parse_stat

_STAT_BYTES_MAX = 1024
_STATUS_BYTES_MAX = 8192
_FDINFO_BYTES_MAX = 1024


def parse_core_dumping(content: bytes) -> bool:
    """Whether ``/proc/PID/status`` says that a core dump is being written (Linux 4.15 and later do)."""
    return b"\nCoreDumping:\t1\n" in content


def pid_of(pidfd: int) -> int:
    """The pid, as this /proc counts, of a pidfd's process.

    Raises ``ProcessLookupError`` when it has been reaped, another ``OSError`` when /proc cannot tell.
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        content = file.read(_FDINFO_BYTES_MAX)
    for line in content.splitlines():
        name, _, value = line.partition(b":")
        if name == b"Pid" and int(value) > 0:
            return int(value)
        if name == b"Pid" and int(value) < 0:
            raise ProcessLookupError(f"the process of pidfd {pidfd} has been reaped")
    raise OSError(f"descriptor {pidfd} is no pidfd of a process that this /proc shows")


class ProcEntry:
    """The /proc entry of a pidfd's process, held open.

    Raises ``ProcessLookupError`` when the process has been reaped, another ``OSError`` when /proc is not
    there or does not show it.
    """

    def __init__(self, pidfd: int) -> None:
        self.pid = pid_of(pidfd)
        self._stat_fd = os.open(f"/proc/{self.pid}/stat", os.O_RDONLY)
        self._status_fd = os.open(f"/proc/{self.pid}/status", os.O_RDONLY)
        # Still not reaped, so the pid was not given to another process before the files were open.
        pid_of(pidfd)

    def stat(self) -> ProcStat:
        """Read ``stat``; raises ``ProcessLookupError`` once the process has been reaped."""
        return parse_stat(os.pread(self._stat_fd, _STAT_BYTES_MAX, 0))

    def core_dumping(self) -> bool:
        """Read ``status``; raises ``ProcessLookupError`` once the process has been reaped."""
        return parse_core_dumping(os.pread(self._status_fd, _STATUS_BYTES_MAX, 0))

    def may_leave_core(self) -> bool:
        """Whether its limit lets a core file be written: the kernel says "dumping" also for the moment in
        which it finds that out. True where nobody tells."""
        try:
            return resource.prlimit(self.pid, resource.RLIMIT_CORE)[0] != 0
        except (AttributeError, OSError):  # not Linux, or the process changed its user id
            return True
