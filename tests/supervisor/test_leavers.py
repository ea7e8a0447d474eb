"""Workers that the configuration no longer names: what becomes of their tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from procguard import kernel
from procguard.supervisor import procfs
from procguard.supervisor.leavers import forget_leavers
from procguard.supervisor.records import Record, RecordBook
from procguard.supervisor.state import StateManager


@pytest.fixture
def state() -> StateManager:
    state = StateManager()
    for worker_id in ("a", "b", "remote"):
        state.add_task(f"task of {worker_id}", worker_id=worker_id)
    for worker_id in ("a", "b"):
        state.update_worker(worker_id, wanted=True)
    return state


def test_tasks_of_one_who_is_gone_wait_for_the_next_that_starts(state: StateManager, tmp_path: Path) -> None:
    assert forget_leavers(state, ["a"], tmp_path) == ["b"]
    assert state.task_queue() == ["task of b"]
    assert not state.get_worker_state("b")
    assert state.tasks_of("a") == ["task of a"]
    assert forget_leavers(state, ["a"], tmp_path) == []


def test_workers_that_no_guard_ever_ran_are_left_alone(state: StateManager, tmp_path: Path) -> None:
    forget_leavers(state, ["a", "b"], tmp_path)
    assert state.tasks_of("remote") == ["task of remote"]


@pytest.mark.parametrize("known_by", ["record", "token"])
def test_one_who_lives_keeps_its_tasks(state: StateManager, tmp_path: Path, known_by: str) -> None:
    book = RecordBook(tmp_path)
    token = book.new_token("b")
    environ = {**os.environ, "PROCGUARD_START": token if known_by == "token" else "0" * 32}
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, env=environ
    ) as process:
        try:
            stat = procfs.read_stat(process.pid)
            assert stat is not None
            if known_by == "record":
                record = Record("b", token, kernel.boot_id(), "", 0.0, process.pid, stat.start_ticks)
                book.write(record)
            assert forget_leavers(state, ["a"], tmp_path) == []
            assert state.tasks_of("b") == ["task of b"]
        finally:
            process.kill()
    assert forget_leavers(state, ["a"], tmp_path) == ["b"]
