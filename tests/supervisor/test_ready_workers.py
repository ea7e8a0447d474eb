"""A worker that runs and is not ready is still starting, for whoever waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from procguard.supervisor.exits import WorkerState
from procguard.supervisor.health_words import HealthStatus
from procguard.supervisor.ready_workers import ReadyWorkers
from procguard.supervisor.worker_events import WorkerStatus


class Manager:
    def __init__(self, state: WorkerState) -> None:
        self.state = state

    def statuses(self) -> dict[str, WorkerStatus]:
        return {"a": WorkerStatus("a", self.state, pid=7)}


class Monitor:
    def __init__(self, health: HealthStatus) -> None:
        self.health = health

    def get_status(self, worker_id: str) -> HealthStatus:
        return self.health


def seen(state: WorkerState, health: HealthStatus) -> WorkerState:
    manager: Any = Manager(state)
    monitor: Any = Monitor(health)
    status = ReadyWorkers(manager, monitor).statuses()["a"]
    assert status.pid == 7
    return status.state


@pytest.mark.parametrize("health", [HealthStatus.STARTING, HealthStatus.UNKNOWN, HealthStatus.DEAD])
def test_a_process_of_which_the_monitor_does_not_know_that_it_is_ready_is_starting(
    health: HealthStatus,
) -> None:
    assert seen(WorkerState.RUNNING, health) is WorkerState.STARTING


@pytest.mark.parametrize("health", [HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, HealthStatus.UNRESPONSIVE])
def test_one_that_is_well_or_hangs_has_started(health: HealthStatus) -> None:
    assert seen(WorkerState.RUNNING, health) is WorkerState.RUNNING


@pytest.mark.parametrize("state", [WorkerState.FAILED, WorkerState.WAITING, WorkerState.STOPPING])
def test_of_what_does_not_run_the_manager_knows_all(state: WorkerState) -> None:
    assert seen(state, HealthStatus.STARTING) is state
