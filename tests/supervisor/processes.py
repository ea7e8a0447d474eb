"""Looking at real processes, with deadlines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from procguard.supervisor import procfs
from procguard.supervisor.manager import Exit, ProcessManager, WorkerEnded, WorkerEvent, WorkerStarted
from procguard.supervisor.records import KEY_LENGTH
from procguard.supervisor.sweep import by_key

MARK = "TEST_OF_PROCESSES"
DEADLINE_S = 20.0
POLL_S = 0.005

T = TypeVar("T")

FOR_EVER = ["sleep", "1000"]
IGNORES_TERM = ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"]


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def until(look: Callable[[], T | None], what: str) -> T:
    """The first answer that is true; fails after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := look()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(POLL_S)
    return answer


def lives(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    stat = procfs.read_stat(pid)
    return stat is not None and not stat.ended


def living_of(manager: ProcessManager, worker_id: str) -> list[int]:
    """All processes of any start of this worker, oldest first."""
    key = manager._book.key_of(worker_id)
    return [found.pid for _, found in by_key({key}, KEY_LENGTH).get(key, [])]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def process(
    command: list[str],
    token: str = "",
    *,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """One that is no manager's; killed in the end, whatever comes."""
    with subprocess.Popen(
        command,
        env={**(os.environ if environment is None else environment), procfs.START_VARIABLE: token},
        start_new_session=True,
    ) as running:
        try:
            # After exec, which is what Popen waits for, it is a moment until the environment can be seen.
            until(lambda: running.poll() is not None or procfs.tokens_of(running.pid), "its environment")
            yield running
        finally:
            running.kill()


def pids_in(file: Path, number: int = 1) -> list[int]:
    """What a worker has written there, once it is so many whole lines."""

    def look() -> list[int] | None:
        text = file.read_text() if file.exists() else ""
        lines = text.split("\n")[:-1]
        return [int(line) for line in lines] if len(lines) >= number else None

    return until(look, f"{number} pids in {file}")


def carriers_of(mark: str) -> list[int]:
    """The living processes with this mark in their environment, but for this one."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for pid in procfs.all_pids():
        with suppress(OSError):
            content = Path(f"/proc/{pid}/environ").read_bytes()
            if pid != os.getpid() and wanted in content.split(b"\0") and lives(pid):
                found.append(pid)
    return found


class Heard:
    """The events of a manager, in their order."""

    def __init__(self, manager: ProcessManager) -> None:
        self.events: list[WorkerEvent] = []
        manager.subscribe(self.events.append)

    def end_of(self, worker_id: str) -> Exit:
        """The exit of a worker's first end that is not taken yet; waits for it."""

        def look() -> Exit | None:
            for event in self.events:
                if isinstance(event, WorkerEnded) and event.worker_id == worker_id:
                    self.events.remove(event)
                    return event.exit
            return None

        return until(look, f"the end of {worker_id}")

    def starts_of(self, worker_id: str) -> int:
        return sum(isinstance(event, WorkerStarted) and event.worker_id == worker_id for event in self.events)
