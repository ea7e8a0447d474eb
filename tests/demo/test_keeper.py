"""Nothing of a run outlives it, even if the demo is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from procguard.demo.keeper import MARK, sweep

DEADLINE_S = 60.0
SAYS_READY_AND_WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"


@contextmanager
def waiting(mark: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for ever, with or without a run's mark."""
    environ = {name: value for name, value in os.environ.items() if name != MARK}
    with subprocess.Popen(
        [sys.executable, "-c", SAYS_READY_AND_WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environ, **({MARK: mark} if mark else {})},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_sweep_ends_the_marked_and_nobody_else(tmp_path: Path) -> None:
    mark = str(tmp_path)
    with (
        waiting(mark) as one,
        waiting(mark) as stopped,
        waiting(f"{mark}0") as stranger,
        waiting(None) as other,
    ):
        stopped.send_signal(signal.SIGSTOP)
        sweep(mark)
        assert one.wait(DEADLINE_S) == stopped.wait(DEADLINE_S) == -signal.SIGKILL
        assert stranger.poll() is None
        assert other.poll() is None


def test_a_sweep_of_nothing() -> None:
    sweep("a run that never was")


def test_the_keeper_sweeps_when_its_demo_has_gone_and_not_before(tmp_path: Path) -> None:
    mark = str(tmp_path)
    demo = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-m', 'procguard.demo.keeper', {mark!r}],"
        f" stdin=subprocess.PIPE, stdout=subprocess.DEVNULL); {SAYS_READY_AND_WAITS}"
    )
    with (
        waiting(mark) as marked,
        subprocess.Popen(
            [sys.executable, "-c", demo],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as killed,
    ):
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"ready\n"
        assert marked.poll() is None
        killed.kill()
        assert marked.wait(DEADLINE_S) == -signal.SIGKILL
