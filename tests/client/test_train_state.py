"""What healing carries over, and what becomes of it when it cannot be loaded."""

from __future__ import annotations

import threading

import pytest

from procguard.client.train_state import DEFAULT_PART, Progress, TrainState
from procguard.errors import CheckpointError, UsageError


def state_of(parts: dict[str, dict[str, int]]) -> TrainState:
    """A state whose parts are the dicts given, changed in place by a load."""
    state = TrainState()
    for key, part in parts.items():
        state.register(key, part.update, lambda part=part: dict(part))
    return state


def test_a_commit_counts_the_step_its_batches_and_its_quorum() -> None:
    state = TrainState()
    state.commit(quorum_id=7, batches=4)
    state.commit(quorum_id=9, batches=3)
    assert state.progress == Progress(step=2, committed_in=9, batches=7)


def test_failures_in_a_row_are_counted_until_a_commit() -> None:
    state = TrainState()
    state.fail()
    state.fail()
    assert state.progress.commit_failures == 2
    state.commit(1, 1)
    assert state.progress.commit_failures == 0


def test_another_replica_takes_over_parts_and_progress() -> None:
    source = state_of({DEFAULT_PART: {"w": 5}, "optimizer": {"lr": 2}})
    source.commit(3, 2)
    model, optimizer = {"w": 0}, {"lr": 0}
    healer = state_of({DEFAULT_PART: model, "optimizer": optimizer})
    healer.load(source.save())
    assert (model, optimizer) == ({"w": 5}, {"lr": 2})
    assert healer.progress == source.progress


def test_a_load_that_fails_half_way_leaves_a_replica_that_counts_as_new() -> None:
    source = state_of({"a": {"w": 5}, "b": {"w": 6}})
    source.commit(3, 2)
    healer = state_of({"a": {"w": 0}})
    healer.commit(1, 1)
    with pytest.raises(CheckpointError, match=r"KeyError.*'b'"):
        healer.load(source.save())
    assert healer.progress == Progress()


NEGATIVE = {"step": -1, "batches_committed": 0}


@pytest.mark.parametrize(
    "saved", [{}, {"step": 1}, {"step": "x", "batches_committed": 1}, NEGATIVE, None, [1]]
)
def test_what_is_no_managers_state_is_refused_and_changes_nothing(saved: object) -> None:
    state = TrainState()
    state.commit(3, 2)
    with pytest.raises(UsageError, match="not a state dict of a Manager"):
        state.load_progress(saved)  # type: ignore[arg-type]
    assert state.progress.step == 1


def test_progress_survives_a_users_checkpoint() -> None:
    state = TrainState()
    state.commit(3, 2)
    other = TrainState()
    other.load_progress(state.save_progress())
    assert other.progress == state.progress


def test_a_save_waits_while_reading_is_disallowed() -> None:
    state = state_of({DEFAULT_PART: {"w": 5}})
    saved: list[object] = []
    state.disallow_read()
    state.disallow_read()
    reader = threading.Thread(target=lambda: saved.append(state.save()))
    reader.start()
    reader.join(0.05)
    assert not saved
    state.allow_read()
    reader.join(10)
    assert saved
    state.allow_read()


def test_a_save_waits_for_a_train_loop_that_forgot_it_no_longer_than_it_is_told() -> None:
    state = state_of({DEFAULT_PART: {"w": 5}})
    state.disallow_read()
    with pytest.raises(CheckpointError, match="needs its allow_state_dict_read"):
        state.save(0.001)
    state.allow_read()
    assert state.save(0.001)["user"] == {DEFAULT_PART: {"w": 5}}


def test_a_reading_in_progress_is_waited_for_and_not_ended_by_another() -> None:
    """``allow_read`` must not let go of what the reader holds."""
    state = TrainState()
    reading, go_on = threading.Event(), threading.Event()

    def save() -> str:
        reading.set()
        go_on.wait(30)
        return "value"

    state.register(DEFAULT_PART, lambda part: None, save)
    saved: list[object] = []
    reader = threading.Thread(target=lambda: saved.append(state.save()["user"]))
    reader.start()
    assert reading.wait(30)
    state.allow_read()
    disallowed: list[object] = []
    writer = threading.Thread(target=lambda: (state.disallow_read(), disallowed.extend(saved)))
    writer.start()
    go_on.set()
    writer.join(30)
    reader.join(30)
    assert saved == [{DEFAULT_PART: "value"}]
    state.allow_read()


def test_after_a_load_that_failed_the_failures_in_a_row_still_count() -> None:
    """They make the next plan name another source."""
    healer = TrainState()
    healer.fail()
    with pytest.raises(CheckpointError):
        healer.load(state_of({"a": {"w": 5}}).save())
    assert healer.progress == Progress(commit_failures=1)
