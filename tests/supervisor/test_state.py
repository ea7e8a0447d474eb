"""What the guard remembers: workers, tasks, the queue; for many threads, and also while the disk is full."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import StateError, UsageError
from procguard.supervisor.restarts import Restarts
from procguard.supervisor.state import StateManager
from procguard.supervisor.state_file import Document


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


class FullDisk(StateManager):
    """A state on a disk that is full while ``full``."""

    full = False
    writes = 0

    def _write(self, content: bytes, durable: bool) -> None:
        self.writes += 1
        if self.full:
            raise StateError("x.json: cannot be written (No space left on device)")
        super()._write(content, durable)


def test_the_interface_that_users_know(path: Path) -> None:
    state = StateManager(path)
    state.update_worker_state("w1", status="running", pid=4711)
    state.update_worker_state("w1", status="failed")
    state.add_task("t1", {"shard": 1}, "w1")
    state.add_task("t2", worker_id="w1")
    state.enqueue_task("t3")
    assert state.tasks_of("w1") == ["t1", "t2"]
    assert state.reassign_tasks("w1", "w2") == ["t1", "t2"]
    assert state.next_task("w2") == "t3"
    assert state.next_task("w2") is None
    state.assign_task("t2", "w1")
    state.complete_task("t1")
    again = StateManager(path)
    assert again.get_worker_state("w1") == {
        "worker_id": "w1",
        "status": "failed",
        "pid": 4711,
        "wanted": None,
        "left_out": "",
        "exhausted": False,
        "start_due": None,
        "restarts": 0,
        "tasks": ["t2"],
    }
    assert again.get_worker_state("w2")["tasks"] == ["t3"]
    assert again.get_worker_state("nobody") == {}
    assert list(again.worker_states()) == ["w1"]
    assert again.tasks()["t1"] == {"worker_id": None, "payload": None, "state": "completed"}
    assert again.task_queue() == []
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert {"version", "workers", "tasks", "task_queue", "recovery"} <= stored.keys()


def test_without_a_file_all_is_in_memory() -> None:
    state = StateManager()
    state.add_task("t1")
    state.save()
    assert not state.load()
    assert state.task_queue() == ["t1"]
    state.lock()
    state.close()


def test_without_auto_save_a_close_writes_too(path: Path) -> None:
    state = StateManager(path, auto_save=False)
    state.close()
    assert not path.exists(), "there was nothing to keep"
    state.add_task("t1")
    state.close()
    assert StateManager(path).task_queue() == ["t1"]


def test_a_close_that_cannot_write_says_what_is_lost_and_lets_go(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = FullDisk(path, auto_save=False)
    state.lock()
    state.add_task("t1")
    state.full = True
    state.close()
    assert "what has changed since it was last written is lost" in caplog.text
    StateManager(path).lock()


def test_without_auto_save_only_save_writes(path: Path) -> None:
    state = StateManager(path, auto_save=False)
    state.add_task("t1")
    assert state.unsaved
    assert not path.exists()
    state.update_if_kept(lambda document: replace(document, chains_count=3))
    state.save()
    assert not state.unsaved
    assert StateManager(path).document.chains_count == 3
    state.add_task("t2")
    assert state.load()
    assert state.task_queue() == ["t1"]


def test_a_worker_that_is_forgotten_leaves_its_tasks_to_the_next(path: Path) -> None:
    state = StateManager(path)
    state.add_task("t1", worker_id="w1")
    state.update_worker_state("w1", status="running")
    state.forget_worker("w1")
    assert (state.get_worker_state("w1"), state.task_queue()) == ({}, ["t1"])


def test_times_of_another_boot_mean_nothing(path: Path) -> None:
    state = StateManager(path, boot_id="one")
    state.update_worker("w1", start_due=5.0, restarts=Restarts((1.0,), 1), wanted=True)
    same = StateManager(path, boot_id="one").document.workers["w1"]
    assert (same.start_due, same.restarts, same.wanted) == (5.0, Restarts((1.0,), 1), True)
    other = StateManager(path, boot_id="two").document.workers["w1"]
    assert (other.start_due, other.restarts, other.wanted) == (None, Restarts(), True)


# --- bad luck


def test_a_broken_file_is_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("{ nonsense", encoding="utf-8")
    state = StateManager(path)
    state.add_task("t1")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "state.json.broken-1" in caplog.text
    assert path.with_name("state.json.broken-1").read_text(encoding="utf-8") == "{ nonsense"
    assert StateManager(path).task_queue() == ["t1"]


def test_a_full_disk_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture, path: Path) -> None:
    caplog.set_level(logging.INFO)
    state = FullDisk(path)
    state.full = True
    with pytest.raises(StateError, match="No space left"):
        state.add_task("t1")
    for number in range(2, 5):
        state.add_task(f"t{number}")
    assert state.task_queue() == ["t1", "t2", "t3", "t4"]
    assert (state.writes, state.unsaved) == (4, True)
    with pytest.raises(StateError):
        state.save()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    state.full = False
    state.add_task("t5")
    assert not state.unsaved
    assert "can be written again" in caplog.text
    assert StateManager(path).task_queue() == ["t1", "t2", "t3", "t4", "t5"]
    state.full = True
    with pytest.raises(StateError):
        state.add_task("t6")


def test_what_must_be_kept_does_not_happen_on_a_full_disk(path: Path) -> None:
    state = FullDisk(path)
    state.add_task("t1", worker_id="a")
    state.full = True

    def change(document: Document) -> Document:
        return replace(document, chains_count=9)

    with pytest.raises(StateError):
        state.update_if_kept(change)
    assert state.document.chains_count == 0
    state.full = False
    state.update_if_kept(change)
    assert StateManager(path).document.chains_count == 9


def test_two_guards_on_one_file(path: Path) -> None:
    first, second = StateManager(path), StateManager(path)
    first.lock()
    first.add_task("t1")
    with pytest.raises(StateError, match="in use by another guard"):
        second.lock()
    first.close()
    second.lock()
    assert second.task_queue() == ["t1"]  # what came after it was made
    second.close()


def test_a_change_that_raises_changes_nothing(path: Path) -> None:
    state = StateManager(path)
    with pytest.raises(ZeroDivisionError):
        state.update(lambda document: replace(document, chains_count=1 // 0))
    state.add_task("t1")
    assert state.document.chains_count == 0


def circular() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def deep(levels: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(levels):
        nest = [nest]
    return nest


@pytest.mark.parametrize(
    "call",
    [
        lambda state: state.add_task("t", object()),
        lambda state: state.add_task("t", float("nan")),
        lambda state: state.add_task("t", circular()),
        lambda state: state.add_task("t", deep(190)),
        lambda state: state.add_task("t", deep(100_000)),
        lambda state: state.add_task("t", "\udc80"),
        lambda state: state.add_task("t\udc80"),
        lambda state: state.add_task(""),
        lambda state: state.add_task(7),
        lambda state: state.add_task("t", worker_id="\n"),
        lambda state: state.update_worker_state("w", status={1, 2}),
        lambda state: state.update_worker_state("w", wanted=False),
        lambda state: state.update_worker_state(None, status="x"),
        lambda state: state.reassign_tasks(["a", "b"], "b"),
        lambda state: state.assign_task("nothing", "b"),
        lambda state: state.complete_task("nothing"),
        lambda state: state.next_task(None),
    ],
)
def test_what_cannot_be_kept_is_refused(path: Path, call: Callable[[StateManager], object]) -> None:
    state = StateManager(path)
    before = state.document
    with pytest.raises(UsageError):
        call(state)
    assert state.document is before


def test_what_is_deep_but_can_be_read_again(path: Path) -> None:
    StateManager(path).add_task("t", deep(150))
    assert StateManager(path).tasks()["t"]["payload"] == deep(150)


def test_a_payload_is_a_copy(path: Path) -> None:
    state = StateManager(path)
    payload = {"list": [1]}
    state.add_task("t", payload)
    state.update_worker_state("w", payload=payload)
    payload["list"].append(2)
    state.get_worker_state("w")["payload"]["list"].append(3)
    assert state.tasks()["t"]["payload"] == {"list": [1]}
    assert state.get_worker_state("w")["payload"] == {"list": [1]}


# --- threads


def run_all(*calls: Callable[[], object]) -> None:
    errors: list[BaseException] = []
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        ready.wait()
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits for the threads
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
        assert not thread.is_alive(), "a deadlock"
    assert errors == []


def test_many_threads_at_once_lose_nothing(path: Path) -> None:
    state = FullDisk(path)

    def work(name: str) -> None:
        for number in range(20):
            state.add_task(f"{name}{number}", worker_id=name)
            state.update_worker_state(name, number=number)
            state.reassign_tasks(name, "x")
            assert state.get_worker_state(name)["number"] == number
            if number % 5 == 0:
                state.save()
                state.update_if_kept(
                    lambda document: replace(document, chains_count=document.chains_count + 1)
                )

    run_all(*(lambda name=name: work(name) for name in "abcd"))  # type: ignore[misc]
    assert len(state.tasks_of("x")) == 80
    assert state.document.chains_count == 16
    assert StateManager(path).document == state.document
    assert state.writes <= 4 * (60 + 4 + 4)


def test_who_reads_does_not_wait_for_the_disk(path: Path) -> None:
    writing, go_on = threading.Event(), threading.Event()

    class SlowDisk(StateManager):
        def _write(self, content: bytes, durable: bool) -> None:
            writing.set()
            assert go_on.wait(30.0)
            super()._write(content, durable)

    state = SlowDisk(path)
    first = threading.Thread(target=state.add_task, args=("t1",), daemon=True)
    first.start()
    assert writing.wait(30.0)
    assert state.task_queue() == ["t1"]
    others = [threading.Thread(target=state.add_task, args=(f"u{n}",), daemon=True) for n in range(5)]
    for other in others:
        other.start()
    deadline = time.monotonic() + 30.0
    while len(state.task_queue()) < 6 and time.monotonic() < deadline:
        time.sleep(0.001)  # they are in memory, and wait for a write
    assert len(state.task_queue()) == 6
    go_on.set()
    for thread in (first, *others):
        thread.join(30.0)
        assert not thread.is_alive()
    assert len(StateManager(path).task_queue()) == 6
