"""When a guard has nothing left to do."""

from __future__ import annotations

from typing import Any

import pytest

from procguard.supervisor.end import End, end_of
from procguard.supervisor.exits import WorkerState
from procguard.supervisor.state_file import LEFT_OUT_FINISHED, WorkerRecord
from procguard.supervisor.worker_events import WorkerStatus
from procguard.worker_config import WorkerConfig

FINISHED, FAILED = WorkerState.FINISHED, WorkerState.FAILED
OVER = (FINISHED, FAILED)


def end(
    *states: WorkerState,
    record: WorkerRecord | None = None,
    restart: Any = "on_failure",
    recovers: bool = True,
) -> End | None:
    """Of workers w0, w1, ...; the record and the setting are those of all."""
    ids = [f"w{number}" for number in range(len(states))]
    configs = {w: WorkerConfig(worker_id=w, command=("x",), restart=restart) for w in ids}
    statuses = {w: WorkerStatus(w, state) for w, state in zip(ids, states, strict=True)}
    return end_of(statuses, {w: record or WorkerRecord() for w in ids}, configs, recovers=recovers)


def test_all_have_finished() -> None:
    assert end(FINISHED, FINISHED) == End(())
    assert End(()).text == "every worker has finished"


@pytest.mark.parametrize("state", [state for state in WorkerState if state not in OVER])
def test_one_that_is_in_any_other_state_keeps_the_guard(state: WorkerState) -> None:
    assert end(FINISHED, state) is None


def test_one_that_failed_will_restart_unless_something_says_no() -> None:
    assert end(FINISHED, FAILED) is None
    assert end(FINISHED, FAILED, restart="never") == End(("w1",))
    assert end(FAILED, record=WorkerRecord(left_out="it could not be killed")) == End(("w0",))
    assert end(FAILED, record=WorkerRecord(exhausted=True)) == End(("w0",))
    assert End(("w0", "w1")).text == "failed for good: w0, w1"


def test_who_runs_always_never_ends() -> None:
    assert end(FINISHED, restart="always") is None


@pytest.mark.parametrize("restart", ["on_failure", "always"])
@pytest.mark.parametrize("state", [WorkerState.STOPPED, FAILED, FINISHED])
def test_what_had_finished_under_a_killed_guard_has_come_to_a_good_end(
    state: WorkerState, restart: str
) -> None:
    assert end(state, record=WorkerRecord(left_out=LEFT_OUT_FINISHED), restart=restart) == End(())


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.RUNNING, WorkerState.STOPPING])
def test_what_is_said_to_have_finished_and_lives_keeps_the_guard(state: WorkerState) -> None:
    assert end(state, record=WorkerRecord(left_out=LEFT_OUT_FINISHED)) is None


def test_without_recovery_nobody_runs_always() -> None:
    assert end(FINISHED, restart="always", recovers=False) == End(())


def test_a_start_that_is_due_keeps_the_guard() -> None:
    assert end(FINISHED, record=WorkerRecord(start_due=7.0)) is None


def test_without_recovery_a_failure_is_the_end() -> None:
    config = WorkerConfig(worker_id="w0", command=("x",))
    statuses = {"w0": WorkerStatus("w0", FAILED)}
    assert end_of(statuses, {}, {"w0": config}, recovers=False) == End(("w0",))
