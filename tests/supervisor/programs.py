"""Real processes for tests of what looks at them: waited for with a deadline, never left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

DEADLINE_S = 30.0
POLL_S = 0.005


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until this holds; fails the test when it does not within the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about within {DEADLINE_S} s"
        time.sleep(POLL_S)


@contextlib.contextmanager
def process(
    program: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    output: Path | None = None,
    python: bool = True,
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program (or a shell's) in a session of its own, killed with all of its group at the end."""
    command = [sys.executable, "-S", "-c", program] if python else ["/bin/sh", "-c", program, "sh"]
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(open(output, "ab")) if output else subprocess.DEVNULL
        with subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        ) as started:
            try:
                yield started
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(started.pid, signal.SIGKILL)


WAIT = "import sys; sys.stdin.read()"
SPIN = "while True: pass"
NOTIFY = """
import os, socket, sys
def say(text, fds=()):
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.connect(os.environ["NOTIFY_SOCKET"])
    if fds: socket.send_fds(notify, [text.encode()], fds)
    else: notify.send(text.encode())
"""
"""Says a word on NOTIFY_SOCKET, as sd_notify(3) does."""


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Within it this process cannot open anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    filler = []
    try:
        with contextlib.suppress(OSError):
            while True:
                filler.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filler:
            os.close(descriptor)
