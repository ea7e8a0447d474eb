"""What became of a worker, and the words for the states it can be in.

An exit is judged by what was asked of the worker *before* it ended: one that we stopped was stopped, whatever
code or signal it ended with. So our own kills are never blamed on the worker, nor its crash on us: who asks
for a stop says why (``StopReason``), and a crash that came before the asking stays a crash.

Pure: a wait status comes in, a verdict goes out.
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass
from enum import Enum

EXEC_FAILED_CODES = {126: "the command cannot be executed", 127: "a command was not found"}
"""What a shell exits with, told in words."""


class WorkerState(str, Enum):
    """Where a worker is in its life."""

    STOPPED = "stopped"
    """Nothing of it lives and nothing is due: never started, or stopped on request."""
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    """A stop was asked for, and something of it still lives."""
    WAITING = "waiting"
    """A start is due after a delay."""
    FINISHED = "finished"
    """It ended by itself, with exit code 0."""
    FAILED = "failed"
    """It ended otherwise, and nothing is due."""
    UNKILLABLE = "unkillable"
    """Something of it outlives SIGKILL: a system call that does not return (state D)."""


class StopReason(str, Enum):
    """Why a worker is stopped by us."""

    OPERATOR = "operator"
    RECOVERY = "recovery"
    WATCHDOG = "watchdog"
    SHUTDOWN = "shutdown"


class ExitKind(str, Enum):
    """The class of an exit."""

    CLEAN = "clean"
    ERROR = "error"
    """An exit code other than 0, or a start that failed."""
    SIGNAL = "signal"
    OOM = "oom"
    WATCHDOG = "watchdog"
    OPERATOR = "operator"
    """Stopped on request, whoever asked: an operator, the recovery, the guard's own end."""
    UNKILLABLE = "unkillable"
    UNKNOWN = "unknown"
    """It is gone, and nobody can tell how: it ended unseen, or this kernel keeps no status of adopted
    ones."""


FAILURES = frozenset({ExitKind.ERROR, ExitKind.SIGNAL, ExitKind.OOM, ExitKind.WATCHDOG, ExitKind.UNKNOWN})
"""The kinds after which a worker counts as failed."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended. ``text`` is for people; ``code`` and ``signal`` (a name) are what the kernel
    said."""

    kind: ExitKind
    code: int | None = None
    signal: str | None = None
    core_dumped: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop that was asked for; ``because`` tells people more than the reason does."""

    reason: StopReason
    because: str = ""


_STOPPED_TEXTS = {
    StopReason.OPERATOR: "stopped by operator",
    StopReason.RECOVERY: "stopped for a recovery",
    StopReason.SHUTDOWN: "stopped with the guard",
    StopReason.WATCHDOG: "hung",
}


def classify(status: int | None, *, stop: Stop | None = None, oom: bool = False) -> Exit:
    """The exit for a wait status (``man 2 wait``), None where nobody can tell it.

    Args:
        stop: what was asked before the worker ended, if anything was.
        oom: the kernel killed somebody around here for memory since the last time we looked.
    """
    exit_ = _as_the_kernel_says(status, oom=oom)
    if stop is None:
        return exit_
    kind = ExitKind.WATCHDOG if stop.reason is StopReason.WATCHDOG else ExitKind.OPERATOR
    text = _STOPPED_TEXTS[stop.reason] + (f": {stop.because}" if stop.because else "")
    return Exit(kind, exit_.code, exit_.signal, exit_.core_dumped, text)


def _as_the_kernel_says(status: int | None, *, oom: bool) -> Exit:
    if status is None:
        return Exit(ExitKind.UNKNOWN, text="ended, nobody can tell how")
    number = status & 0x7F
    if number == 0:
        code = status >> 8 & 0xFF
        remark = f" ({EXEC_FAILED_CODES[code]})" if code in EXEC_FAILED_CODES else ""
        return Exit(ExitKind.ERROR if code else ExitKind.CLEAN, code, text=f"exit code {code}{remark}")
    name, core = signal_name(number), bool(status & 0x80)
    if number == signals.SIGKILL and oom:
        return Exit(ExitKind.OOM, signal=name, text="killed for memory (oom)")
    text = f"killed by {name}" + (", core dumped" if core else "")
    return Exit(ExitKind.SIGNAL, signal=name, core_dumped=core, text=text)


def not_started(why: str) -> Exit:
    """The exit of a worker whose start, due after a delay, failed."""
    return Exit(ExitKind.ERROR, text=f"could not be started: {why}")


def state_after(exit_: Exit) -> WorkerState:
    """The state of a worker of which nothing lives any longer."""
    if exit_.kind is ExitKind.CLEAN:
        return WorkerState.FINISHED
    if exit_.kind is ExitKind.UNKILLABLE:
        return WorkerState.UNKILLABLE
    return WorkerState.FAILED if exit_.kind in FAILURES else WorkerState.STOPPED


def signal_name(number: int) -> str:
    """``SIGKILL`` of 9; a number that has no name is told as it is."""
    try:
        return signals.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"
