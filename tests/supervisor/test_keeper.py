"""The keeper: what it is told, and what it does when its guard is gone. The whole is in test_adoption."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from procguard.supervisor import keeper, procfs, records
from procguard.supervisor.keeping import PROGRAM
from procguard.supervisor.procfs import START_VARIABLE
from tests.supervisor.processes import FOR_EVER, lives, process, until

KEY = secrets.token_hex(8)  # tests that run beside this one have another
TOKEN, NEWER = KEY + "a" * 16, KEY + "b" * 16
TIMEOUT_S = 20.0


@contextmanager
def keep(guard: int, ticks: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-I", "-S", str(PROGRAM), str(guard), str(ticks)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def ticks_of(pid: int) -> int:
    stat = procfs.read_stat(pid)
    assert stat is not None
    return stat.start_ticks


def test_it_speaks_as_the_guard_does() -> None:
    assert START_VARIABLE.encode() + b"=" == keeper.VARIABLE
    assert keeper.KEY_LENGTH == records.KEY_LENGTH
    assert keeper.start_ticks_of(os.getpid()) == ticks_of(os.getpid())
    assert keeper.start_ticks_of(2**22 + 1) == -1


def test_a_guard_that_died_before_the_keeper_was_there() -> None:
    with process(FOR_EVER, TOKEN) as worker, keep(os.getpid(), 1) as late:
        assert late.stdin is not None
        late.stdin.write(f"{TOKEN}\n".encode())
        late.stdin.close()
        assert late.wait(TIMEOUT_S) == 0
        assert worker.wait(TIMEOUT_S) < 0


def test_the_newest_start_of_a_worker_counts_and_quit_spares_all() -> None:
    with process(FOR_EVER, TOKEN) as old, process(FOR_EVER) as guard:
        with keep(guard.pid, ticks_of(guard.pid)) as first:
            assert first.stdin is not None
            first.stdin.write(f"{TOKEN}\n{NEWER}\n".encode())
            first.stdin.close()  # which says nothing by itself
            guard.kill()
            assert first.wait(TIMEOUT_S) == 0
        with keep(os.getpid(), ticks_of(os.getpid())) as second:
            assert second.stdin is not None
            second.stdin.write(f"{TOKEN}\n{keeper.QUIT}\n".encode())
            second.stdin.flush()
            assert second.wait(TIMEOUT_S) == 0
        assert lives(old.pid)


def test_a_signal_does_not_send_it_home() -> None:
    with process(FOR_EVER, TOKEN) as worker, process(FOR_EVER) as guard:
        with keep(guard.pid, ticks_of(guard.pid)) as running:
            assert running.stdin is not None

            def ignores() -> bool:
                with open(f"/proc/{running.pid}/status") as status:
                    line = next(line for line in status if line.startswith("SigIgn"))
                return bool(int(line.split()[1], 16) & 1 << 14)  # SIGTERM

            until(ignores, "its start")
            running.terminate()
            running.stdin.write(f"{TOKEN}\n".encode())
            running.stdin.flush()
            guard.kill()
            assert running.wait(TIMEOUT_S) == 0
        assert worker.wait(TIMEOUT_S) < 0
