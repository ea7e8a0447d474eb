"""Where a hung worker hangs: the Python stacks of its threads, taken before it is killed.

Two ways, in this order, each within a bounded time:

1. ``py-spy dump``, if it is installed: needs nothing from the worker.
2. A signal, upon which the worker's ``faulthandler`` writes its stacks to its stderr. Only to a process
   that has asked for it by ``X_PROCGUARD_STACK_SIGNAL=<number>`` on ``NOTIFY_SOCKET``
   (``procguard.client.stack_dumps`` does), and only while the kernel says that it catches that signal: a
   signal to a program that does not expect it would kill it, or make it do something else that SIGUSR1
   means to it.

What neither way tells, ``probes.threads`` does: what each thread sleeps in, as the kernel sees it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from procguard.supervisor import probes

STACKS_BYTES_MAX = 64 << 10
PY_SPY_TIMEOUT_S = 5.0
SIGNAL_TIMEOUT_S = 2.0
POLL_S = 0.02
SETTLED_POLLS = 5
"""The stacks are complete when stderr has not grown for so many looks."""
PROCESSES_MAX = 3
"""A worker may be a shell around the program that hangs: so many of its processes are asked."""


@dataclass(frozen=True, slots=True)
class Stacks:
    """The text, and by what it was taken; empty text: ``by`` says why there is none."""

    text: str
    by: str


def take_stacks(pid: int, stack_signals: Sequence[tuple[int, int]] = ()) -> Stacks:
    """The stacks of this worker's processes.

    Args:
        pid: the worker's first process.
        stack_signals: pid and signal number of its processes that write their stacks when asked.
    """
    wanting = []
    if (tool := find_py_spy()) is not None:
        texts = _by_py_spy(tool, pid)
        if texts:
            return Stacks(_bounded("\n".join(texts)), "py-spy")
        wanting.append("py-spy could not read its processes")
    else:
        wanting.append("py-spy is not installed")
    for sender, number in stack_signals[:PROCESSES_MAX]:
        if text := _by_signal(sender, number):
            return Stacks(_bounded(text), "faulthandler")
        wanting.append(f"process {sender} wrote nothing upon signal {number}")
    if not stack_signals:
        wanting.append("no process of it called procguard.client.stack_dumps.write_stacks_when_asked()")
    return Stacks("", "; ".join(wanting))


def find_py_spy() -> str | None:
    """On the path, or beside this interpreter, where pip puts it."""
    beside = Path(sys.executable).with_name("py-spy")
    return shutil.which("py-spy") or (str(beside) if os.access(beside, os.X_OK) else None)


def _by_py_spy(tool: str, pid: int) -> list[str]:
    deadline = time.monotonic() + PY_SPY_TIMEOUT_S
    texts = []
    for each in probes.family(pid)[:PROCESSES_MAX]:
        # No permission, too late: then without.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                [tool, "dump", "--pid", str(each)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=max(deadline - time.monotonic(), 0.1),
                check=True,
            )
            texts.append(done.stdout.decode(errors="replace"))
    return [text for text in texts if text.strip()]


def _by_signal(pid: int, number: int) -> str:
    """What the process adds to its stderr, which must be a file, upon the signal."""
    if number not in signal.valid_signals() or not probes.catches(pid, number):
        return ""
    try:
        stderr = f"/proc/{pid}/fd/2"
        if not stat.S_ISREG(os.stat(stderr).st_mode):
            return ""
        with open(stderr, "rb") as file:
            start = file.seek(0, os.SEEK_END)
            os.kill(pid, number)
            _wait_until_settled(lambda: os.fstat(file.fileno()).st_size, start)
            file.seek(start)
            return file.read(STACKS_BYTES_MAX).decode(errors="replace")
    except OSError:  # it has just ended, or is not ours to read
        return ""


def _wait_until_settled(size: Callable[[], int], start: int) -> None:
    deadline = time.monotonic() + SIGNAL_TIMEOUT_S
    last, still = start, 0
    while time.monotonic() < deadline and not (last > start and still >= SETTLED_POLLS):
        time.sleep(POLL_S)
        now = size()
        last, still = now, still + 1 if now == last else 0


def _bounded(text: str) -> str:
    return text if len(text) <= STACKS_BYTES_MAX else text[:STACKS_BYTES_MAX] + "\n... (cut)"
