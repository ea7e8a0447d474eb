"""How a worker began and ended, as far as it matters to its health: by its own fault or not, in which words.

From the process manager's word, or, for a process that is known by its pid alone, from what the kernel still
knows. Reaps nobody: that is for the parent to do.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import Any

from procguard import kernel
from procguard.supervisor import probes, procfs
from procguard.supervisor.health_words import Ended

NO_FAULT = {"clean", "operator", "watchdog", "unkillable"}
"""Kinds of exit that are no failure of their own: a watchdog's kill was one already, when the worker hung,
and what cannot be killed was to be stopped by us."""

_EXIT_FIELDS = ("kind", "code", "signal", "core_dumped", "text")


@dataclass(frozen=True, slots=True)
class Beginning:
    """A process of the worker runs, since ``at`` (Unix seconds), if that is known."""

    pid: int
    at: float | None = None
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """The event for the rules, and the whole exit for the report."""

    event: Ended
    exit: dict[str, Any] | None = None


def of_worker_event(event: Any) -> Beginning | Ending | None:
    """What an event of the process manager says; None for one that is neither a start nor an end."""
    match type(event).__name__:
        case "WorkerStarted":
            return Beginning(event.pid, event.at, getattr(event, "adopted", False))
        case "WorkerEnded":
            exit = {name: getattr(event.exit, name, None) for name in _EXIT_FIELDS}
            exit["kind"] = kind = str(getattr(exit["kind"], "value", exit["kind"]))
            return Ending(Ended(kind not in NO_FAULT, str(exit["text"] or kind)), exit)
    return None


def of_pid(pid: int, pidfd: int | None = None) -> Ending:
    """How the process of this pid, which has ended, did so."""
    status = _wait_status(pid)
    if status is None and pidfd is not None:
        status = kernel.reaped_exit_status(pidfd)
    defunct = probes.state_letter(pid) in ("Z", "X")
    if status is None:
        return Ending(Ended(True, "it has ended, and nobody can tell how", defunct), None)
    exit: dict[str, Any]
    if os.WIFSIGNALED(status):
        name = _signal_name(os.WTERMSIG(status))
        exit = {"kind": "signal", "code": None, "signal": name, "core_dumped": os.WCOREDUMP(status)}
        return Ending(Ended(True, f"killed by {name}", defunct), {**exit, "text": f"killed by {name}"})
    code = os.WEXITSTATUS(status)
    exit = {"kind": "error" if code else "clean", "code": code, "signal": None, "core_dumped": False}
    return Ending(Ended(code != 0, f"exit code {code}", defunct), {**exit, "text": f"exit code {code}"})


def _wait_status(pid: int) -> int | None:
    """Of our own child while it is not reaped, and of anybody's that /proc lets us see."""
    with contextlib.suppress(OSError):
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if result is not None:
            return kernel.wait_status(result)
    with contextlib.suppress(OSError):  # no descriptor is left
        stat = procfs.read_stat(pid)
        return stat.exit_status if stat is not None and stat.letter in "ZX" else None
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
