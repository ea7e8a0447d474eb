"""Code that blocks, run by the virtual clock: one at a time, stopped and killed where it waits."""

from __future__ import annotations

import pytest

from procguard.sim.clock import VirtualClock
from procguard.sim.tasks import Computer, Task, TaskWorker


class Stage:
    """One process with one task, which says what it does."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.computer = Computer(self.clock)
        self.said: list[tuple[float, str]] = []
        self.failed: list[Exception] = []

    def say(self, what: str) -> None:
        self.said.append((self.clock.now, what))

    def start(self, run: object) -> Task:
        task = Task(self.computer, lambda: run(task), self.failed.append)  # type: ignore[operator]
        return task


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_task_sleeps_in_virtual_time(stage: Stage) -> None:
    def run(task: Task) -> None:
        for _ in range(3):
            task.sleep(10.0)
            stage.say("awake")

    stage.start(run)
    stage.clock.run_until(25.0)
    assert stage.said == [(10.0, "awake"), (20.0, "awake")]


def test_a_task_waits_for_what_another_brings_or_for_its_deadline(stage: Stage) -> None:
    brought: list[str] = []

    def run(task: Task) -> None:
        stage.say(str(task.wait_until(lambda: bool(brought), 5.0)))
        brought.clear()
        stage.say(str(task.wait_until(lambda: bool(brought), 9.0)))

    def bring() -> None:
        brought.append("it")
        task.wake()

    task = stage.start(run)
    stage.clock.at(2.0, bring)
    stage.clock.run_until(20.0)
    assert stage.said == [(2.0, "True"), (9.0, "False")]


def test_a_stopped_process_does_nothing_until_it_goes_on(stage: Stage) -> None:
    def run(task: Task) -> None:
        task.sleep(1.0)
        stage.say("awake")

    stage.start(run)
    stage.clock.at(0.5, stage.computer.stop)
    stage.clock.at(4.0, stage.computer.go_on)
    stage.clock.run_until(10.0)
    assert stage.said == [(4.0, "awake")]


def test_a_killed_process_ends_where_it_waits_whatever_it_catches(stage: Stage) -> None:
    def run(task: Task) -> None:
        try:
            while True:
                try:
                    task.sleep(1.0)
                except Exception:  # noqa: BLE001  # as broad as a user's may be
                    stage.say("caught")
                stage.say("turn")
        finally:
            stage.say("unwound")

    stage.start(run)
    stage.clock.at(2.5, stage.computer.die)
    stage.clock.run_until(10.0)
    assert stage.said == [(1.0, "turn"), (2.0, "turn"), (2.5, "unwound")]
    assert stage.failed == []


def test_what_a_task_raises_is_told(stage: Stage) -> None:
    def run(task: Task) -> None:
        task.sleep(1.0)
        raise ValueError("so it goes")

    stage.start(run)
    stage.clock.run_until(2.0)
    assert [str(error) for error in stage.failed] == ["so it goes"]


def test_a_worker_does_jobs_in_order_and_its_futures_are_waited_for(stage: Stage) -> None:
    worker = TaskWorker(stage.computer)

    def job(name: str, fails: bool) -> None:
        Task.current.sleep(1.0)  # type: ignore[union-attr]
        stage.say(name)
        if fails:
            raise ValueError(name)

    def run(task: Task) -> None:
        first = worker.submit(lambda: job("first", False))
        second = worker.submit(lambda: job("second", True))
        assert not first.done()
        first.result()
        stage.say("has the first")
        stage.say(repr(second.exception()))

    stage.start(run)
    stage.clock.run_until(5.0)
    assert stage.said == [
        (1.0, "first"),
        (1.0, "has the first"),
        (2.0, "second"),
        (2.0, "ValueError('second')"),
    ]
