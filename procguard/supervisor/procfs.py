"""What /proc says of a process, as far as a supervisor of processes must know it.

A pid alone names nobody: it is given again. ``(pid, start time)`` does, until the next boot. Whoever signals
a process that is not an unreaped child of its own does it through ``open_pidfd``, which makes sure of that.

What cannot be read is gone or not for us. But who is out of descriptors or memory must not conclude that
nothing lives: that is raised. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Iterator

from procguard import kernel
from procguard.kernel import ProcStat

START_VARIABLE = "PROCGUARD_START"
"""Every worker carries it, and so does whatever descends from it: the tokens of the guards above it, each
of one start, with ``:`` between."""

_VARIABLE = START_VARIABLE.encode() + b"="
_OUR_OWN_WANT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def read_stat(pid: int) -> ProcStat | None:
    """The entry of a living or unreaped process; None when there is none."""
    content = _read(f"/proc/{pid}/stat")
    if not content:
        return None
    return kernel.parse_stat(content)


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
