"""The chain with real processes: a guard that kills itself in the middle of it, and the one after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from procguard.supervisor.manager import ProcessManager
from procguard.supervisor.recovery import FailureHandler
from procguard.supervisor.state import StateManager
from procguard.worker_config import WorkerConfig

DEADLINE_S = 60.0
CONFIGS = {
    name: WorkerConfig(worker_id=name, command=("sleep", "1000"), tasks=(f"t{name}",)) for name in "abc"
}
FIRST_GUARD = """
import os, signal, sys
from pathlib import Path
from procguard.supervisor.manager import ProcessManager
from procguard.supervisor.recovery import FailureHandler
from procguard.supervisor.state import StateManager
from tests.supervisor.test_recovery_processes import CONFIGS, SETTINGS

class Dying(StateManager):
    left = None
    def _write(self, content, durable):
        self.cut()
        super()._write(content, durable)
        self.cut()
    def cut(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
state, manager = Dying(folder / "state.json"), ProcessManager(folder)
for name, config in CONFIGS.items():
    manager.register_worker_config(name, config)
failures = FailureHandler(state, manager, SETTINGS, worker_config=CONFIGS.get)
failures.resume(CONFIGS)
state.left = int(sys.argv[2])
manager.kill_worker("a", signal.SIGKILL)
failures.handle_failure(["a"])
"""
SETTINGS = {"task_reassignment": True}


def tasks_of_process(pid: int) -> list[str]:
    """What a living process was told at its start."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = [line for line in variables if line.startswith(b"PROCGUARD_TASKS=")]
    told = json.loads(found[0].partition(b"=")[2])
    assert isinstance(told, list)
    return told


def sleepers(folder: Path) -> dict[str, list[int]]:
    """All living workers that a guard of this folder started, by the one task file that each was given."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "environ").read_bytes()
            except OSError:
                continue
            for name in CONFIGS:
                if f"PROCGUARD_TASKS_FILE={folder}/state.json.d/tasks/{name}.json\0".encode() in words:
                    found.setdefault(name, []).append(int(entry.name))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Whatever a test that failed has left running is gone afterwards."""
    yield tmp_path
    for pids in sleepers(tmp_path).values():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("place", [1, 3, 4, 5])
def test_the_next_guard_finishes_the_chain(folder: Path, place: int) -> None:
    code = [sys.executable, "-c", FIRST_GUARD, str(folder), str(place)]
    guard = subprocess.run(
        code, timeout=DEADLINE_S, check=False, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )
    assert guard.returncode == -9
    state = StateManager(folder / "state.json")
    state.lock()
    with ProcessManager(folder) as manager:
        for name, config in CONFIGS.items():
            manager.register_worker_config(name, config)
        manager.adopt()
        failures = FailureHandler(state, manager, SETTINGS, worker_config=CONFIGS.get)
        failures.resume(CONFIGS)
        assert not failures.in_progress
        living = sleepers(folder)
        assert {name: len(pids) for name, pids in living.items()} == {"b": 1, "c": 1}
        held = [task for pids in living.values() for task in tasks_of_process(pids[0])]
        assert sorted(held) == ["ta", "tb", "tc"]
        assert state.get_worker_state("a")["left_out"] == "its tasks went to b"
    state.close()
    deadline = time.monotonic() + DEADLINE_S
    while sleepers(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sleepers(folder) == {}
