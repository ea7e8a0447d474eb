"""One process of a worker: started in a session of its own, or adopted; watched, signalled and reaped.

Never ``preexec_fn`` (it runs Python between fork and exec) and never PR_SET_PDEATHSIG (it fires when the
*thread* ends that started the child). All descriptors but the three are closed on the way. The dead leader is
not reaped before everything of it is gone: until then its pid, its group and its session are nobody else's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

from procguard import kernel
from procguard.errors import UsageError
from procguard.supervisor import procfs

SUPERVISORS_OWN = (
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
"""What a guard's own supervisor says to the guard alone: a worker must not answer in its place."""


class Child:
    """A running process, by its pidfd; ``close`` when it is dead and done with."""

    def __init__(
        self, pid: int, pidfd: int, start_ticks: int, popen: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.start_ticks = start_ticks
        self._popen = popen
        """None of one that is adopted."""

    @classmethod
    def adopted(cls, pid: int, start_ticks: int) -> Child | None:
        """The process of an earlier guard; None when it is gone."""
        pidfd = procfs.open_pidfd(pid, start_ticks)
        if pidfd is None:
            return None
        if procfs.has_ended(pidfd):  # and nobody has reaped it yet
            os.close(pidfd)
            return None
        return cls(pid, pidfd, start_ticks)

    @property
    def is_adopted(self) -> bool:
        """It was no child of ours when we met it."""
        return self._popen is None

    def has_ended(self) -> bool:
        """Whether it has, this moment; ``status`` tells how."""
        return procfs.has_ended(self.pidfd)

    def status(self) -> int | None:
        """The wait status of one that has ended, without reaping it; None when nobody can tell."""
        if self._popen is not None:
            with contextlib.suppress(OSError):  # somebody else has reaped it
                found = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is not None:
                    return kernel.wait_status(found)
        stat = procfs.read_stat(self.pid)
        if stat and stat.ended and stat.start_ticks == self.start_ticks and stat.exit_status is not None:
            return stat.exit_status
        return kernel.reaped_exit_status(self.pidfd)

    def signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        procfs.send(self.pidfd, number)

    def kill_group(self) -> None:
        """SIGKILL to the process and, where that can only be its own, to its process group."""
        procfs.send(self.pidfd, signal.SIGKILL)
        if self._popen is None:
            return
        with contextlib.suppress(OSError):
            # Not reaped by anybody, so the group's number is still its own.
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Reap it and let go."""
        if self._popen is not None:
            with contextlib.suppress(OSError):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            self._popen.returncode = 0  # we have its status; Popen must not look for it any more
        os.close(self.pidfd)

    def release(self) -> None:
        """Let go of one that lives on."""
        if self._popen is not None:
            self._popen.returncode = 0
        os.close(self.pidfd)


def spawn(
    worker_id: str,
    command: Sequence[str],
    *,
    working_dir: str | None,
    environment: Mapping[str, str],
    stdout: int,
    stderr: int,
) -> Child:
    """Start a process in a session of its own.

    Raises:
        UsageError: it cannot be started; names the key, the value and the remedy.
    """
    if working_dir is not None and not os.path.isdir(working_dir):
        raise UsageError(
            f"{worker_id}: working_dir: {working_dir!r} is no directory; make it, or name another"
        )
    try:
        popen = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=working_dir,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{worker_id}: {_why_not(command, working_dir, environment, error)}") from None
    try:
        stat = procfs.read_stat(popen.pid)
        return Child(popen.pid, _pidfd_of(popen.pid), stat.start_ticks if stat else 0, popen)
    except OSError as error:  # it cannot be watched, so it must not run
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        remedy = "Linux 5.4 or later is needed" if error.errno == errno.ENOSYS else "raise ulimit -n"
        raise UsageError(f"{worker_id}: cannot be watched ({error.strerror}); {remedy}") from None


def environment_of(
    inherited: Mapping[str, str], own: Mapping[str, str], added: Mapping[str, str], token: str
) -> dict[str, str]:
    """A worker's environment; later ones win. Its token comes after those of the guards above us."""
    kept = {name: value for name, value in inherited.items() if name not in SUPERVISORS_OWN}
    above = inherited.get(procfs.START_VARIABLE, "")
    tokens = f"{above}:{token}" if above else token
    return {**kept, **own, **added, procfs.START_VARIABLE: tokens}


def _pidfd_of(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        # It has ended, and was reaped by a program that ignores SIGCHLD or waits for any child. What stands
        # in is readable, as the pidfd of an ended process is, and knows of no status either.
        return os.eventfd(1, os.EFD_CLOEXEC)


def _why_not(
    command: Sequence[str], working_dir: str | None, environment: Mapping[str, str], error: Exception
) -> str:
    program = command[0]
    number = error.errno if isinstance(error, OSError) else None
    said = f"command: {program!r}"
    if number == errno.ENOENT and _is_there(program, working_dir, environment):
        return f"{said}: the interpreter that its first line names was not found; correct that line"
    if number in (errno.ENOENT, errno.ENOTDIR):
        where = "no such file" if "/" in program else f"not found in PATH={environment.get('PATH', '')}"
        return f"{said}: {where}; correct it, or give its full path"
    if number == errno.EACCES:
        return f"{said}: may not be executed; check its path and do chmod +x"
    if number == errno.ENOEXEC:
        return f"{said}: is no program; a script's first line must name its interpreter, such as #!/bin/sh"
    if number in (errno.EAGAIN, errno.ENOMEM):
        return f"no further process can be started ({error}); check ulimit -u and the memory that is free"
    if number == errno.E2BIG:
        return "command and env together are too long for this system; pass a file instead"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"no further process can be started ({error}); raise ulimit -n"
    return f"{said}: cannot be started: {error}"


def _is_there(program: str, working_dir: str | None, environment: Mapping[str, str]) -> bool:
    """Whether the worker would find this file: from its own folder, and by its own PATH, not by ours."""
    here = working_dir or os.curdir
    if "/" in program:
        return os.path.isfile(os.path.join(here, program))
    folders = (os.path.join(here, folder) for folder in os.get_exec_path(environment))
    return shutil.which(program, path=os.pathsep.join(folders)) is not None
