"""A guard that is killed with -9, and the one after it: nothing runs twice, nothing is lost, nothing
stays."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from procguard.supervisor import procfs
from procguard.supervisor.manager import ExitKind, ProcessManager, WorkerState
from tests.supervisor.processes import FOR_EVER, Heard, kill, lives, living_of, pids_in, until

REPOSITORY = Path(__file__).parent.parent.parent
GUARD = """
import json, sys, time
from procguard.supervisor.manager import ProcessManager
manager = ProcessManager(sys.argv[1])
for worker_id, config in json.loads(sys.argv[2]).items():
    manager.register_worker_config(worker_id, config)
    manager.start_worker(worker_id)
print(*(status.pid for status in manager.statuses().values()), flush=True)
time.sleep(1000)
"""


@contextmanager
def guard(state: Path, **workers: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A guard in a process of its own, with the pids of its workers; killed in the end, if it is not yet."""
    process = subprocess.Popen(
        [sys.executable, "-c", GUARD, str(state), json.dumps(workers)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, [int(pid) for pid in process.stdout.readline().split()]
        finally:
            process.kill()


def killed_guard(state: Path, **workers: dict[str, Any]) -> list[int]:
    """The pids of what a guard has left that was killed with -9."""
    with guard(state, **workers) as (process, pids):
        assert pids
        process.kill()
    return pids


def test_the_living_are_adopted_and_not_started_twice(
    manager: ProcessManager, heard: Heard, tmp_path: Path
) -> None:
    config = {"command": FOR_EVER, "pid_file": str(tmp_path / "pid")}
    (pid,) = killed_guard(manager.state_dir, w0=config)
    assert lives(pid)
    manager.register_worker_config("w0", config)
    assert manager.adopt() == ["w0"]
    assert manager.adopt() == []
    status = manager.get_worker_status("w0")
    assert (status.pid, status.state, status.adopted) == (pid, WorkerState.RUNNING, True)
    assert status.started_at is not None
    assert manager.start_worker("w0")
    assert manager.get_worker_status("w0").pid == pid
    os.kill(pid, signal.SIGKILL)
    exit_ = heard.end_of("w0")
    assert exit_.kind in (ExitKind.SIGNAL, ExitKind.UNKNOWN)  # an older kernel does not tell
    assert manager.stop_worker("w0")
    assert not (tmp_path / "pid").exists()
    assert manager.start_worker("w0")
    assert manager.get_worker_status("w0").adopted is False


def test_an_adopted_one_is_stopped_with_what_it_started(manager: ProcessManager, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"setsid sleep 1000 & echo $! >> {pids}; sleep 1000 & echo $! >> {pids}; wait"
    (pid,) = killed_guard(manager.state_dir, w0={"command": ["sh", "-c", script]})
    children = pids_in(pids, 2)
    manager.register_worker_config("w0", {"command": ["sh", "-c", script]})
    assert manager.adopt() == ["w0"]
    assert manager.stop_worker("w0")
    assert not any(map(lives, [pid, *children]))


def change_record(state: Path, **fields: Any) -> None:
    path = state / "processes" / "w0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_guard_killed_between_intent_and_record_finds_its_child(manager: ProcessManager) -> None:
    (pid,) = killed_guard(manager.state_dir, w0={"command": FOR_EVER})
    change_record(manager.state_dir, pid=None, start_ticks=None)
    manager.register_worker_config("w0", {"command": FOR_EVER})
    assert manager.adopt() == ["w0"]
    assert manager.get_worker_status("w0").pid == pid
    record = json.loads((manager.state_dir / "processes" / "w0.json").read_text())
    assert record["pid"] == pid


def test_an_intent_whose_process_never_came_is_not_waited_for_long(
    manager: ProcessManager, heard: Heard
) -> None:
    (pid,) = killed_guard(manager.state_dir, w0={"command": FOR_EVER})
    change_record(manager.state_dir, pid=None, start_ticks=None)
    kill(pid)
    until(lambda: not lives(pid), "its death")
    manager.register_worker_config("w0", {"command": FOR_EVER})
    assert manager.adopt() == []
    assert heard.end_of("w0").kind is ExitKind.UNKNOWN
    assert manager.start_worker("w0")


@pytest.mark.parametrize("harm", ["removed", "broken", "newer"])
def test_a_lost_record_loses_no_process(manager: ProcessManager, harm: str) -> None:
    (pid,) = killed_guard(manager.state_dir, w0={"command": FOR_EVER})
    path = manager.state_dir / "processes" / "w0.json"
    if harm == "removed":
        path.unlink()
    elif harm == "broken":
        path.write_text('{"version": 1, "worker_id": ')
    else:
        change_record(manager.state_dir, version=99)
    manager.register_worker_config("w0", {"command": FOR_EVER})
    assert manager.adopt() == ["w0"]
    assert manager.get_worker_status("w0").pid == pid


def test_a_pid_that_is_anothers_by_now_is_left_alone(manager: ProcessManager, heard: Heard) -> None:
    (pid,) = killed_guard(manager.state_dir, w0={"command": FOR_EVER})
    kill(pid)
    until(lambda: not lives(pid), "its death")
    change_record(manager.state_dir, pid=os.getpid(), start_ticks=1)
    manager.register_worker_config("w0", {"command": FOR_EVER})
    assert manager.adopt() == []
    assert heard.end_of("w0").kind is ExitKind.UNKNOWN
    until(lambda: manager.get_worker_status("w0").state is WorkerState.FAILED, "its state")


def test_a_record_of_an_earlier_boot_is_about_nobody(manager: ProcessManager) -> None:
    (pid,) = killed_guard(manager.state_dir, w0={"command": FOR_EVER})
    kill(pid)
    stat = procfs.read_stat(os.getpid())
    assert stat is not None
    change_record(manager.state_dir, boot_id="another boot", pid=os.getpid(), start_ticks=stat.start_ticks)
    until(lambda: not lives(pid), "its death")
    manager.register_worker_config("w0", {"command": FOR_EVER})
    assert manager.adopt() == []
    assert manager.get_worker_status("w0").state is WorkerState.STOPPED
    assert not list((manager.state_dir / "processes").iterdir())


def test_what_is_left_of_one_that_died_unseen_is_swept(
    manager: ProcessManager, heard: Heard, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    script = f"setsid sleep 1000 & echo $! >> {pids}; wait"
    (pid,) = killed_guard(manager.state_dir, w0={"command": ["sh", "-c", script]})
    (child,) = pids_in(pids)
    kill(pid)
    until(lambda: not lives(pid), "its death")
    manager.register_worker_config("w0", {"command": FOR_EVER})
    assert manager.adopt() == []
    assert heard.end_of("w0").kind is ExitKind.UNKNOWN
    assert manager.start_worker("w0")
    assert not lives(child)


def test_close_can_leave_workers_to_the_next_guard(tmp_path: Path) -> None:
    with ProcessManager(tmp_path) as first:
        first.register_worker_config("w0", {"command": FOR_EVER})
        first.start_worker("w0")
        pid = first.get_worker_status("w0").pid
        assert pid is not None
        first.close(stop=False)
    assert lives(pid)
    with ProcessManager(tmp_path) as second:
        second.register_worker_config("w0", {"command": FOR_EVER})
        assert second.adopt() == ["w0"]
    assert not lives(pid)
    os.waitpid(pid, 0)  # ours from the first manager's time


def test_what_is_told_to_end_with_the_guard_does(manager: ProcessManager, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; setsid sleep 1000 & echo $! >> {pids}; sleep 1000"
    killed, kept = killed_guard(
        manager.state_dir,
        killed={"command": ["sh", "-c", script], "on_supervisor_death": "kill"},
        kept={"command": FOR_EVER},
    )
    (child,) = pids_in(pids)
    until(lambda: not lives(killed) and not lives(child), "the keeper's work")
    assert lives(kept)
    manager.register_worker_config("kept", {"command": FOR_EVER})
    assert manager.adopt() == ["kept"]


def keepers() -> list[int]:
    """Of this process."""
    children = procfs.children_of(os.getpid()) or []
    return [pid for pid in children if b"keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_keeper_that_dies_is_replaced_and_goes_home_in_the_end(manager: ProcessManager) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER, "on_supervisor_death": "kill"})
    manager.start_worker("w0")
    (first,) = until(keepers, "the keeper")
    kill(first)

    def another() -> list[int]:
        return [pid for pid in keepers() if pid != first]

    (second,) = until(another, "another keeper")
    manager.close(stop=False)
    assert not lives(second)
    status = manager.get_worker_status("w0")
    with ProcessManager(manager.state_dir) as next_one:
        next_one.register_worker_config("w0", {"command": FOR_EVER})
        assert next_one.adopt() == ["w0"]
        pid = next_one.get_worker_status("w0").pid
        assert pid is not None
    os.waitpid(pid, 0)
    assert status.worker_id == "w0"


RESTLESS = """
import json, sys, threading
from procguard.supervisor.manager import ProcessManager
manager = ProcessManager(sys.argv[1])
ids = sys.argv[2].split()
for worker_id in ids:
    manager.register_worker_config(worker_id, {"command": "sleep 1000", "stop_timeout": 1})
print("begin", flush=True)
def restart(worker_id):
    while True:
        manager.start_worker(worker_id)
        manager.stop_worker(worker_id, force=True)
for worker_id in ids:
    threading.Thread(target=restart, args=[worker_id]).start()
"""


@pytest.mark.parametrize("seed", range(8))
def test_a_guard_killed_at_any_moment_leaves_no_second_copy(manager: ProcessManager, seed: int) -> None:
    print(f"seed {seed}")
    ids = ["w0", "w1", "w2"]
    process = subprocess.Popen(
        [sys.executable, "-c", RESTLESS, str(manager.state_dir), " ".join(ids)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        threading.Event().wait(random.Random(seed).uniform(0.0, 0.1))
        process.kill()
    for worker_id in ids:
        manager.register_worker_config(worker_id, {"command": FOR_EVER})
    adopted = manager.adopt()
    for worker_id in ids:
        assert manager.start_worker(worker_id)
        assert manager.get_worker_status(worker_id).adopted is (worker_id in adopted)
    for worker_id, status in manager.statuses().items():
        only = [
            status.pid
        ]  # a second one would not go away by itself; this one cannot be seen while it execs
        until(lambda one=worker_id, pids=only: living_of(manager, one) == pids, f"{worker_id} alone")
