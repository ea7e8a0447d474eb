"""``python -m procguard.demo.keeper MARK``: ends what is left of a run when the demo itself has been killed.

The demo holds the other end of the keeper's stdin. When that end closes, by whatever death of the demo, the
keeper ends every process that carries the run's mark in its environment: there is no list of pids that could
miss the latest one, and listeners, which live in sessions of their own, are found as well.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

import psutil

MARK = "PROCGUARD_DEMO_RUN"
"""The variable; its value is the run's folder, which no other run has."""
SWEEP_PAUSE_S = 0.02
SWEEPS_MAX = 250
"""Five seconds. A process that even then has not died is in a system call that nothing ends."""


def sweep(mark: str) -> None:
    """Kill all processes with this mark, and return when there are none."""
    for _ in range(SWEEPS_MAX):
        found = [process for process in psutil.process_iter() if _carries(process, mark)]
        if not found:
            return
        for process in found:
            with suppress(psutil.Error):  # it was faster
                process.kill()
        time.sleep(SWEEP_PAUSE_S)


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == mark
    except psutil.Error:  # gone meanwhile, or another user's
        return False


def main(mark: str) -> None:
    """Wait for the end of the demo."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(mark)


if __name__ == "__main__":
    main(sys.argv[1])
