"""How a worker ended: in the process manager's words, and in the kernel's."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import Enum

import pytest

from procguard.supervisor.endings import Beginning, Ending, of_pid, of_worker_event
from procguard.supervisor.health_words import Ended
from procguard.supervisor.probes import family, state_letter
from tests.supervisor.programs import WAIT, no_descriptor_left, process, until


class ExitKind(str, Enum):
    CLEAN = "clean"
    ERROR = "error"
    SIGNAL = "signal"
    OOM = "oom"
    WATCHDOG = "watchdog"
    OPERATOR = "operator"
    UNKILLABLE = "unkillable"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Exit:
    kind: ExitKind
    code: int | None = None
    signal: str | None = None
    core_dumped: bool = False
    text: str = "so it ended"


@dataclass(frozen=True)
class WorkerStarted:
    worker_id: str
    pid: int
    at: float


@dataclass(frozen=True)
class WorkerUnkillable:
    worker_id: str
    pid: int
    at: float


@dataclass(frozen=True)
class WorkerEnded:
    worker_id: str
    exit: Exit


@pytest.mark.parametrize("kind", ExitKind)
def test_only_what_is_its_own_fault_is_a_failure(kind: ExitKind) -> None:
    ending = of_worker_event(WorkerEnded("w", Exit(kind)))
    no_fault = kind in (ExitKind.CLEAN, ExitKind.OPERATOR, ExitKind.WATCHDOG, ExitKind.UNKILLABLE)
    assert isinstance(ending, Ending)
    assert ending.event == Ended(not no_fault, "so it ended")
    assert ending.exit is not None
    assert ending.exit["kind"] == kind.value


def test_a_start_and_what_is_neither() -> None:
    assert of_worker_event(WorkerStarted("w", 7, 1.5)) == Beginning(7, 1.5)
    assert of_worker_event(WorkerUnkillable("w", 7, 1.5)) is None
    assert of_worker_event(object()) is None


@pytest.mark.parametrize(
    ("program", "failed", "text"),
    [
        ("pass", False, "exit code 0"),
        ("import sys; sys.exit(3)", True, "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", True, "killed by SIGKILL"),
    ],
)
def test_the_end_of_our_own_child_is_read_and_not_reaped(program: str, failed: bool, text: str) -> None:
    with process(program) as child:
        until(lambda: state_letter(child.pid) == "Z")
        assert of_pid(child.pid).event == Ended(failed, text, defunct=True)
        assert child.wait() in (0, 3, -signal.SIGKILL)


def test_the_end_of_somebody_elses_child() -> None:
    with process("sh -c 'exit 5' & read x", python=False) as parent:
        until(lambda: len(family(parent.pid)) == 2 and state_letter(family(parent.pid)[1]) == "Z")
        assert of_pid(family(parent.pid)[1]).event == Ended(True, "exit code 5", defunct=True)


def test_what_is_reaped_already() -> None:
    with process(WAIT) as child:
        pidfd = os.pidfd_open(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
        assert of_pid(child.pid).event == Ended(True, "it has ended, and nobody can tell how")
        known = of_pid(child.pid, pidfd).event
        assert known in (Ended(False, "exit code 0"), of_pid(child.pid).event)  # the latter before Linux 6.15
        os.close(pidfd)


def test_without_a_descriptor_nobody_can_tell_how_a_stranger_ended() -> None:
    with process("import sys; sys.exit(3)") as ended:
        ended.wait()
        with no_descriptor_left():
            assert of_pid(ended.pid).event == Ended(True, "it has ended, and nobody can tell how", False)
