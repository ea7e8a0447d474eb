"""What an exit is called, and who is blamed for it."""

from __future__ import annotations

import pytest

from procguard.supervisor.exits import (
    Exit,
    ExitKind,
    Stop,
    StopReason,
    WorkerState,
    classify,
    not_started,
    signal_name,
    state_after,
)

CORE_DUMPED = 0x80


@pytest.mark.parametrize(
    ("status", "oom", "kind", "text"),
    [
        (0, False, ExitKind.CLEAN, "exit code 0"),
        (3 << 8, False, ExitKind.ERROR, "exit code 3"),
        (3 << 8, True, ExitKind.ERROR, "exit code 3"),
        (127 << 8, False, ExitKind.ERROR, "exit code 127 (a command was not found)"),
        (9, False, ExitKind.SIGNAL, "killed by SIGKILL"),
        (9, True, ExitKind.OOM, "killed for memory (oom)"),
        (11 | CORE_DUMPED, True, ExitKind.SIGNAL, "killed by SIGSEGV, core dumped"),
        (None, False, ExitKind.UNKNOWN, "ended, nobody can tell how"),
    ],
)
def test_what_the_kernel_says(status: int | None, oom: bool, kind: ExitKind, text: str) -> None:
    exit_ = classify(status, oom=oom)
    assert (exit_.kind, exit_.text) == (kind, text)
    assert state_after(exit_) is (WorkerState.FINISHED if kind is ExitKind.CLEAN else WorkerState.FAILED)


def test_code_and_signal_are_kept_apart() -> None:
    assert classify(3 << 8) == Exit(ExitKind.ERROR, 3, None, False, "exit code 3")
    segfault = classify(11 | CORE_DUMPED)
    assert (segfault.code, segfault.signal, segfault.core_dumped) == (None, "SIGSEGV", True)


@pytest.mark.parametrize("status", [0, 1 << 8, 9, 15, None])
@pytest.mark.parametrize("oom", [False, True])
@pytest.mark.parametrize("reason", StopReason)
def test_what_we_stopped_is_never_blamed(status: int | None, oom: bool, reason: StopReason) -> None:
    exit_ = classify(status, stop=Stop(reason), oom=oom)
    hung = reason is StopReason.WATCHDOG
    assert exit_.kind is (ExitKind.WATCHDOG if hung else ExitKind.OPERATOR)
    assert state_after(exit_) is (WorkerState.FAILED if hung else WorkerState.STOPPED)


def test_a_stop_says_why() -> None:
    hung = classify(9, stop=Stop(StopReason.WATCHDOG, "no heartbeat for 10.0 s"))
    assert (hung.text, hung.signal) == ("hung: no heartbeat for 10.0 s", "SIGKILL")
    assert classify(15, stop=Stop(StopReason.OPERATOR)).text == "stopped by operator"


def test_a_start_that_failed_is_a_failure() -> None:
    assert state_after(not_started("no such file")) is WorkerState.FAILED


def test_a_signal_without_a_name() -> None:
    assert signal_name(15) == "SIGTERM"
    assert signal_name(40) == "signal 40"
