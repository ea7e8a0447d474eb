"""The rules of a step, with a membership, a process group and a transport of the test's: no process, no wire.

The quorum thread is real; the failure thread is the test, which calls ``hears``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from procguard.client.replica import LOADS_MAX, Replica, Rules, WorldSizeMode
from procguard.client.worker import Worker
from procguard.errors import (
    CheckpointError,
    CollectiveAborted,
    CollectiveError,
    CollectiveTimeout,
    LighthouseRejected,
    ProcGuardError,
    QuorumTimeout,
    ReplicaGroupLost,
    UsageError,
)
from procguard.messages import Notice, Participant, Phase, Quorum, QuorumId
from tests.client.fakes import (
    DEADLINE_S,
    EPOCH,
    LEFT,
    STOPPED,
    FakeCheckpoints,
    FakeGroup,
    FakeMembership,
    life,
    notice,
    participant,
    quorum,
)

SECOND = timedelta(seconds=1)
RULES = Rules(
    min_replica_size=1,
    use_async_quorum=True,
    world_size_mode=WorldSizeMode.DYNAMIC,
    init_sync=True,
    timeout=SECOND,
    quorum_timeout=SECOND,
    quorum_retries=0,
    max_retries=None,
)


class Stage:
    """Replica ``a`` with its peers as the test says they are; ``weights`` is its model."""

    def __init__(self, step: int = 0, membership: FakeMembership | None = None, **rules: Any) -> None:
        self.pg = FakeGroup()
        self.transport = FakeCheckpoints()
        self.membership = membership or FakeMembership()
        self.weights: Any = "own"
        self.load_error: Exception | None = None
        self.replica = Replica(
            RULES._replace(**rules),
            "a",
            "host",
            self.pg,
            self.transport,
            self._load,
            lambda: self.weights,
            self._join,
            start_worker,
        )
        if step:
            self.replica.load_state_dict({"step": step, "batches_committed": 2 * step, "committed_in": 1})
        self.told: list[Notice] = []
        self.replica.on_failure(self.told.append)

    def _join(self, hears: Any) -> Any:
        self.hears = hears
        return self.membership

    def _load(self, weights: Any) -> None:
        if self.load_error is not None:
            raise self.load_error
        self.weights = weights

    def start(self, *answers: Any, **how: Any) -> Replica:
        """Begin a step that gets these answers, and wait for its quorum."""
        self.membership.answer(*answers)
        self.replica.start_quorum(**how)
        self.replica.wait_quorum()
        return self.replica

    def hear(self, *notices: Notice) -> None:
        self.hears.hear(EPOCH, notices)

    def serve(self, source: str, step: int, weights: Any = "theirs") -> None:
        """Let ``source`` have this state."""
        own = {"step": step, "batches_committed": 2 * step, "committed_in": 7}
        self.transport.states[f"checkpoint of {source}"] = {"procguard": own, "user": {"default": weights}}


workers: list[Worker] = []


def start_worker(name: str) -> Worker:
    workers.append(Worker(name))
    return workers[-1]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    while workers:
        workers.pop().close(0.0)


def of(number: int, *peers: Participant, own: int = 1) -> Callable[[Participant], Quorum]:
    """A quorum with these peers and whoever asks."""
    return lambda asks: quorum(number, asks._replace(incarnation=life(own)), *peers)


def peer(name: str = "b", number: int = 2, step: int = 0, committed_in: int = 0) -> Participant:
    return participant(name, number, step=step, committed_in=committed_in)


def alike(*names: str, step: int = 5) -> list[Participant]:
    """Peers that are where ``Stage(step)`` is."""
    return [peer(name, ord(name) - ord("a") + 1, step, 1) for name in names]


def packed(number: int) -> int:
    return QuorumId(EPOCH, number).packed


@pytest.fixture
def stage() -> Stage:
    """Five steps have been committed."""
    return Stage(5)


@pytest.fixture
def beginning() -> Stage:
    return Stage()


# --- commit -------------------------------------------------------------------------------------------


def test_a_step_whose_collectives_are_complete_counts(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    gradient = np.array([3.0, 1.0])
    work = replica.allreduce(gradient)
    stage.pg.complete(add=1.0)
    assert work.wait()
    assert gradient.tolist() == [2.0, 1.0], "averaged over two"
    assert replica.should_commit()
    assert replica.current_step() == 6
    assert replica.batches_committed() == 12
    assert replica.state_dict() == {"step": 6, "batches_committed": 12, "committed_in": packed(1)}
    assert replica.errored() is None
    assert stage.membership.board["step"] == 6


def test_a_step_without_collectives_counts_too(stage: Stage) -> None:
    assert stage.start(of(1)).should_commit()


def test_should_commit_waits_for_what_is_still_in_flight(stage: Stage) -> None:
    stage.pg.others_are_at_work = True
    replica = stage.start(of(1, *alike("b")))
    replica.allreduce(np.ones(2))
    threading.Thread(target=stage.pg.complete).start()
    assert replica.should_commit()


def test_what_does_not_end_in_time_does_not_count_and_frees_the_peers(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    replica.allreduce(np.ones(2))
    assert not replica.should_commit(timedelta(milliseconds=1))
    assert isinstance(replica.errored(), CollectiveTimeout)
    assert stage.pg.aborted == [packed(1)]


def test_with_too_few_replicas_no_step_counts() -> None:
    stage = Stage(5, min_replica_size=2)
    assert not stage.start(of(1)).should_commit()
    assert stage.start(of(2, *alike("b"))).should_commit()


def test_failures_are_counted_until_a_step_commits(stage: Stage) -> None:
    for _ in range(2):
        replica = stage.start(of(1, *alike("b")))
        replica.report_error(ValueError("bad batch"))
        assert not replica.should_commit()
    stage.start(of(2)).should_commit()
    stage.start(of(3))
    assert [asked.commit_failures for asked in stage.membership.asked] == [0, 1, 2, 0]
    assert [asked.step for asked in stage.membership.asked] == [5, 5, 5, 6]


def test_after_too_many_failures_in_a_row_it_raises_and_says_why() -> None:
    stage = Stage(5, max_retries=1)
    stage.start(of(1)).report_error(ValueError("bad batch"))
    assert not stage.replica.should_commit()
    stage.start(of(2)).report_error(ValueError("bad batch"))
    with pytest.raises(ProcGuardError, match=r"2 steps in a row .* max_retries=1 .* error was: bad batch"):
        stage.replica.should_commit()
    assert stage.start(of(3)).should_commit(), "a caller that goes on may"


def test_a_step_that_was_begun_and_given_up_does_not_count(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b", step=3)))
    assert stage.transport.is_serving
    stage.start(of(2))
    assert not stage.transport.is_serving, "the state may change from here on"
    assert [asked.commit_failures for asked in stage.membership.asked] == [0, 1]
    assert stage.pg.aborted == [packed(1)], "peers may wait for us in it"
    assert replica.should_commit()


def test_the_state_is_no_longer_served_when_should_commit_returns(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b", step=3)))
    assert stage.transport.is_serving
    replica.should_commit()
    assert not stage.transport.is_serving


# --- errors -------------------------------------------------------------------------------------------


def test_a_collective_that_fails_raises_nothing_and_changes_nothing(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    gradient = np.array([3.0])
    work = replica.allreduce(gradient)
    stage.pg.works[0].fail(CollectiveError("connection reset", packed(1)))
    assert work.wait()
    assert gradient.tolist() == [3.0]
    assert stage.pg.aborted == [packed(1)], "whoever waits for us is freed"
    assert replica.allreduce(gradient).wait(), "the rest of the step is not even tried"
    assert len(stage.pg.works) == 1
    assert not replica.should_commit()


def test_a_group_that_refuses_a_collective_fails_the_step(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = stage.start(of(1, *alike("b")))

    def refuse(buffers: Any, op: str) -> None:
        raise CollectiveError("not connected", packed(1))

    monkeypatch.setattr(stage.pg, "allreduce", refuse)
    assert replica.allreduce(np.ones(1)).wait()
    assert not replica.should_commit()


def test_so_does_one_with_an_error_of_its_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(buffers: Any, op: str) -> None:
        raise RuntimeError("of the backend's own")

    replica = stage.start(of(1, *alike("b")))
    monkeypatch.setattr(stage.pg, "allreduce", break_down)
    assert replica.allreduce(np.ones(1)).wait()
    assert stage.pg.aborted == [packed(1)], "whoever waits for us is freed"
    assert not replica.should_commit()


def test_what_cannot_be_reduced_is_the_callers_mistake_and_does_not_count(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(buffers: Any, op: str) -> None:
        raise UsageError("int8 cannot be reduced")

    replica = stage.start(of(1, *alike("b")))
    monkeypatch.setattr(stage.pg, "allreduce", refuse)
    with pytest.raises(UsageError, match="int8"):
        replica.allreduce(np.ones(1, np.int8))
    assert stage.pg.aborted == [packed(1)]
    assert not replica.should_commit()


def test_buffers_that_cannot_be_set_to_zero_fail_the_step_of_one_that_heals(stage: Stage) -> None:
    replica = stage.start(of(1, peer("b", 2, 7, 7)))
    read_only = np.ones(1)
    read_only.flags.writeable = False
    assert replica.allreduce(read_only).wait()
    assert not replica.should_commit()


@pytest.mark.parametrize("timeout", [5, timedelta(0), timedelta(-1)])
def test_a_timeout_that_is_none_is_refused_before_anything_is_begun(stage: Stage, timeout: Any) -> None:
    with pytest.raises(UsageError, match=r"timeout is .*; give a timedelta above 0"):
        stage.replica.start_quorum(timeout=timeout)
    replica = stage.start(of(1))
    for call in (replica.should_commit, lambda timeout: replica.wrap_future(Future(), 0, timeout)):
        with pytest.raises(UsageError, match=r"timeout is .*; give a timedelta above 0"):
            call(timeout)
    assert replica.should_commit()


def test_an_error_of_an_old_quorum_changes_nothing(stage: Stage) -> None:
    stage.start(of(1, *alike("b"))).should_commit()
    replica = stage.start(of(2, *alike("c")))
    replica.report_error(CollectiveError("of the step before", packed(1)))
    assert replica.errored() is None
    assert replica.should_commit()


def test_not_even_while_the_next_quorum_is_forming(stage: Stage) -> None:
    """Its collectives end when the group is configured for the next quorum, before that one is in use."""
    replica = stage.start(of(1, *alike("b")))
    late = replica.allreduce(np.ones(1))

    def strike(quorum_id: int) -> None:
        stage.pg.abort(packed(1))
        replica.report_error(CollectiveAborted("quorum 1 ended", packed(1)))

    stage.pg.at_configure = strike
    stage.start(of(2, *alike("c")))
    assert late.get_future().done()
    assert replica.errored() is None
    assert replica.should_commit()


def test_late_work_of_an_old_step_fails_that_step_only(stage: Stage) -> None:
    """A backend's own errors carry no quorum id: the step in which the work was begun knows."""
    replica = stage.start(of(1, *alike("b")))
    replica.allreduce(np.ones(1))
    stage.start(of(1, *alike("b")))
    stage.pg.works[0].fail(RuntimeError("NCCL"))
    assert replica.errored() is None


def test_an_error_may_be_reported_from_any_thread_and_frees_the_train_loop(stage: Stage) -> None:
    stage.pg.others_are_at_work = True
    replica = stage.start(of(1, *alike("b")))
    work = replica.allreduce(np.ones(1))
    reporter = threading.Thread(target=lambda: replica.report_error(ValueError("from the data loader")))
    reporter.start()
    assert work.wait()
    reporter.join()
    assert str(replica.errored()) == "from the data loader", "the first one stays"
    assert not replica.should_commit()


def test_an_error_before_the_quorum_stands_counts_and_frees_the_peers(stage: Stage) -> None:
    replica = stage.replica
    replica.start_quorum()
    replica.report_error(ValueError("in the forward pass"))
    stage.membership.answer(of(1, *alike("b")))
    assert replica.allreduce(np.ones(1)).wait()
    assert stage.pg.works == []
    assert not replica.should_commit()
    assert stage.pg.aborted == [packed(1)]


def test_an_error_after_the_step_or_before_any_changes_nothing(stage: Stage) -> None:
    stage.replica.report_error(ValueError("early"))
    replica = stage.start(of(1))
    assert replica.should_commit()
    replica.report_error(ValueError("late"))
    assert replica.errored() is None
    assert stage.start(of(1)).should_commit()


def test_a_future_of_the_users_never_fails(stage: Stage) -> None:
    replica = stage.start(of(1))
    good, bad, cancelled = Future[int](), Future[int](), Future[int]()
    wrapped = [replica.wrap_future(future, -1) for future in (good, bad, cancelled)]
    good.set_result(3)
    bad.set_exception(ValueError("lost"))
    cancelled.cancel()
    cancelled.set_running_or_notify_cancel()
    assert [future.result(0) for future in wrapped] == [3, -1, -1]
    assert str(replica.errored()) == "lost"
    assert not replica.should_commit()


def test_should_commit_waits_for_the_users_future(stage: Stage) -> None:
    replica, future = stage.start(of(1)), Future[int]()
    replica.wrap_future(future, -1)
    threading.Thread(target=future.set_exception, args=(ValueError("lost"),)).start()
    assert not replica.should_commit()
    assert str(replica.errored()) == "lost"


def test_a_future_of_the_users_that_takes_too_long_fails_the_step(stage: Stage) -> None:
    replica, future = stage.start(of(1)), Future[int]()
    wrapped = replica.wrap_future(future, -1, timedelta(milliseconds=1))
    assert wrapped.result() == -1
    assert "no result after 0.001 s" in str(replica.errored())
    assert not replica.should_commit()


def test_a_future_wrapped_in_an_earlier_step_does_not_fail_this_one(stage: Stage) -> None:
    future = Future[int]()
    wrapped = stage.start(of(1)).wrap_future(future, -1, timedelta(milliseconds=1))
    assert not stage.replica.should_commit()
    replica = stage.start(of(1))
    future.set_exception(ValueError("late"))
    assert wrapped.result(0) == -1
    assert replica.should_commit()


def test_it_is_the_callers_mistake_to_work_outside_a_step(stage: Stage) -> None:
    replica = stage.replica
    for call in (replica.wait_quorum, replica.should_commit, lambda: replica.allreduce([])):
        with pytest.raises(UsageError, match="call start_quorum first"):
            call()
    stage.start(of(1)).should_commit()
    for call in (replica.should_commit, lambda: replica.allreduce([])):
        with pytest.raises(UsageError, match="the last one is over"):
            call()
    assert replica.num_participants() == 1, "facts may be asked for"


# --- failures of peers --------------------------------------------------------------------------------


def test_the_notice_is_not_the_error_the_unfinished_collective_is(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    work = replica.allreduce(np.ones(1))
    stage.pg.complete()
    stage.hear(notice("b", 2))
    assert work.wait()
    assert stage.pg.aborted == [packed(1)]
    assert replica.should_commit()


def test_an_unfinished_collective_ends_with_the_notice_and_the_step_does_not_count(stage: Stage) -> None:
    stage.pg.others_are_at_work = True
    replica = stage.start(of(1, *alike("b")))
    work = replica.allreduce(np.ones(1))
    threading.Thread(target=lambda: stage.hear(notice("b", 2))).start()
    assert work.wait()
    assert isinstance(replica.errored(), CollectiveAborted)
    assert not replica.should_commit()
    assert stage.start(of(2)).should_commit()


def test_an_abort_holds_for_the_collectives_that_come_after_it(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    stage.hear(notice("b", 2))
    assert replica.errored() is None
    assert replica.allreduce(np.ones(1)).wait()
    assert not replica.should_commit()


@pytest.mark.parametrize(("left_at", "aborted"), [(4, True), (5, True), (6, False)])
def test_a_departure_aborts_after_a_grace_where_the_leaver_was_no_further_than_we_are(
    stage: Stage, left_at: int, aborted: bool
) -> None:
    replica = stage.start(of(1, *alike("b")))
    replica.allreduce(np.ones(1))
    stage.hear(notice("b", 2, LEFT, step=left_at))
    assert stage.pg.aborted == []
    assert [delay for delay, _ in stage.membership.later] == ([0.3] if aborted else [])
    for _, call in stage.membership.later:
        call()
    assert bool(stage.pg.aborted) is aborted
    stage.pg.complete()
    assert replica.should_commit() is not aborted


def test_a_departure_does_not_end_a_step_that_is_done_in_time(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    replica.allreduce(np.ones(1))
    stage.hear(notice("b", 2, LEFT, step=5))
    stage.pg.complete()
    assert replica.should_commit()
    stage.start(of(2))
    for _, call in stage.membership.later:
        call()
    assert stage.pg.aborted == []


def test_a_quorum_with_one_known_to_be_over_is_asked_again_without_configuring(stage: Stage) -> None:
    stage.hear(notice("b", 2))
    replica = stage.start(of(1, *alike("b", "c")), of(2, *alike("c")))
    assert [quorum_id for _, _, quorum_id in stage.pg.configured] == [packed(2)]
    assert replica.num_participants() == 2
    assert replica.should_commit(), "no step is lost by it"


def test_a_notice_while_the_quorum_is_on_its_way_is_not_lost(stage: Stage) -> None:
    def answer(asks: Participant) -> Quorum:
        stage.hear(notice("b", 2))  # heard before the answer, sent after it
        return quorum(1, asks, *alike("b"))

    assert stage.start(answer, of(2)).should_commit()
    assert [quorum_id for _, _, quorum_id in stage.pg.configured] == [packed(2)]


def test_each_failure_is_told_once_and_kept(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    def broken(notice: Notice) -> None:
        raise ValueError("of the user's")

    stage.replica.on_failure(broken)
    stage.start(of(1, *alike("b")))
    for _ in range(2):
        stage.hear(notice("b", 2), notice("c", 3, LEFT))
    assert stage.told == stage.replica.failures() == [notice("b", 2), notice("c", 3, LEFT)]
    assert caplog.text.count("ValueError: of the user's") == 2


def test_ones_own_end_aborts_and_the_next_step_is_that_of_a_new_life(stage: Stage) -> None:
    stage.pg.others_are_at_work = True
    replica = stage.start(of(1, *alike("b")))
    work = replica.allreduce(np.ones(1))
    threading.Thread(target=lambda: stage.hears.over(EPOCH, life(1), STOPPED)).start()
    assert work.wait()
    assert not replica.should_commit()
    stage.serve("b", 8)
    stage.start(of(2, *alike("b", step=8), own=9))
    assert replica.should_commit(), "no exception: it heals and goes on"
    assert stage.weights == "theirs"
    assert stage.told == []
    stage.hears.over(EPOCH, life(1), STOPPED)  # what the listener said late, of the old life
    assert stage.pg.aborted == [packed(1)]


def test_one_that_was_left_out_does_not_wait_for_a_quorum_that_has_gone(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    replica.allreduce(np.ones(1))
    stage.hears.left_out(QuorumId(EPOCH, 2))
    assert not replica.should_commit()


# --- no quorum ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [QuorumTimeout("no quorum"), LighthouseRejected("id in use")])
def test_without_a_quorum_everything_that_needs_it_raises_and_the_next_step_may_be_begun(
    stage: Stage, error: Exception
) -> None:
    replica = stage.replica
    stage.membership.answer(error)
    replica.start_quorum()
    for call in (replica.wait_quorum, lambda: replica.allreduce(np.ones(1)), replica.should_commit):
        with pytest.raises(type(error)):
            call()
    assert stage.start(of(1)).should_commit()


def test_the_quorum_timeout_may_be_given_for_one_step(stage: Stage) -> None:
    stage.start(of(1), timeout=timedelta(seconds=7))
    stage.start(of(1), shrink_only=True)
    assert stage.membership.timeouts_s == [7.0, 1.0]
    assert [asked.shrink_only for asked in stage.membership.asked] == [False, True]


def test_with_sync_quorums_start_quorum_waits_and_raises() -> None:
    stage = Stage(5, use_async_quorum=False)
    stage.membership.answer(QuorumTimeout("no quorum"))
    with pytest.raises(QuorumTimeout):
        stage.replica.start_quorum()
    stage.membership.answer(of(1))
    stage.replica.start_quorum()
    assert stage.replica.should_commit()


# --- healing ------------------------------------------------------------------------------------------


def test_async_a_healing_replica_contributes_zeros_and_loads_when_the_step_ends(stage: Stage) -> None:
    stage.serve("b", 8)
    replica = stage.start(of(1, *alike("b", "c", step=8)))
    assert replica.current_step() == 5
    assert replica.participating_rank() is None
    assert not replica.is_participating()
    assert replica.num_participants() == 2
    gradient = np.array([5.0])
    replica.allreduce(gradient)
    assert stage.pg.works[0].buffers[0].tolist() == [0.0]
    stage.pg.complete(add=8.0)
    assert gradient.tolist() == [4.0], "averaged over those who contribute"
    assert stage.weights == "own"
    assert replica.should_commit()
    assert stage.weights == "theirs"
    assert replica.current_step() == 9, "it has taken the step that the others took"
    assert replica.batches_committed() == 18


def test_sync_it_loads_before_the_step_and_contributes() -> None:
    stage = Stage(5, use_async_quorum=False)
    stage.serve("b", 8)
    replica = stage.start(of(1, *alike("b", "c", step=8)))
    assert stage.weights == "theirs"
    assert replica.current_step() == 8
    assert replica.participating_rank() == 0
    assert replica.num_participants() == 3
    gradient = np.array([5.0])
    replica.allreduce(gradient)
    assert gradient.tolist() == [5.0]
    stage.pg.complete()
    assert replica.should_commit()


@pytest.mark.parametrize("use_async_quorum", [True, False])
def test_one_that_could_not_fetch_does_not_commit_and_spoils_nobodys_step(use_async_quorum: bool) -> None:
    stage = Stage(5, use_async_quorum=use_async_quorum)
    replica = stage.start(of(1, *alike("b", step=8)))
    gradient = np.array([5.0])
    replica.allreduce(gradient)
    assert stage.pg.works[0].buffers[0].tolist() == [0.0], "it takes part, so that nobody waits in vain"
    stage.pg.complete()
    assert not replica.should_commit()
    assert stage.pg.aborted == []
    assert replica.current_step() == 5
    stage.serve("b", 9)
    assert stage.start(of(2, *alike("b", step=9))).should_commit()


def test_a_state_that_cannot_be_loaded_is_void_and_fetched_again(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.serve("b", 8)
    stage.load_error = RuntimeError("out of memory")
    replica = stage.start(of(1, *alike("b", step=8)))
    replica.allreduce(np.ones(1))
    stage.pg.complete()
    assert not replica.should_commit()
    assert stage.pg.aborted == []
    assert "out of memory" in caplog.text
    stage.load_error = None
    stage.start(of(2, *alike("b", step=8)))
    asked = stage.membership.asked[-1]
    assert (asked.step, asked.committed_in, asked.commit_failures) == (0, 0, 1), "behind everybody"
    assert replica.should_commit()
    assert replica.current_step() == 9


def test_a_state_that_can_never_be_loaded_is_the_callers_mistake(stage: Stage) -> None:
    stage.serve("b", 8)
    stage.load_error = KeyError("layer.9.weight")
    for number in range(1, LOADS_MAX):
        assert not stage.start(of(number, *alike("b", step=8))).should_commit()
    with pytest.raises(CheckpointError, match="could not be loaded: KeyError"):
        stage.start(of(LOADS_MAX, *alike("b", step=8))).should_commit()


def test_a_source_serves_what_it_has_committed(stage: Stage) -> None:
    stage.start(of(1, *alike("b", step=3)))
    own = {"step": 5, "batches_committed": 10, "committed_in": 1}
    assert stage.transport.sent == [({"procguard": own, "user": {"default": "own"}}, [1], 5)]


def test_before_the_first_step_all_take_over_one_state(beginning: Stage) -> None:
    replica = beginning.start(of(1, peer("b")))
    assert replica.participating_rank() == 0, "this one's"
    assert replica.num_participants() == 1
    assert replica.should_commit()
    other = Stage()
    other.serve("0", 0)
    replica = other.start(of(1, peer("0")))
    assert replica.participating_rank() is None
    assert replica.should_commit()
    assert other.weights == "theirs"
    assert replica.current_step() == 1


def test_in_the_first_step_those_who_take_over_count_as_present() -> None:
    stage = Stage(min_replica_size=2)
    assert stage.start(of(1, peer("b"))).should_commit()
    alone = Stage(min_replica_size=2)
    assert not alone.start(of(1)).should_commit()


def test_without_init_sync_each_begins_with_its_own_state() -> None:
    stage = Stage(init_sync=False)
    replica = stage.start(of(1, peer("b")))
    assert replica.num_participants() == 2
    assert stage.transport.sent == []
    assert replica.should_commit()


@pytest.mark.parametrize("use_async_quorum", [True, False])
def test_where_healing_is_not_allowed_one_behind_sits_the_step_out(use_async_quorum: bool) -> None:
    stage = Stage(5, use_async_quorum=use_async_quorum)
    stage.serve("b", 8)
    replica = stage.start(of(1, *alike("b", step=8)), allow_heal=False)
    assert (replica.num_participants(), replica.participating_rank()) == (1, None)
    assert not replica.should_commit()
    assert stage.weights == "own"
    peer = Stage(8, use_async_quorum=use_async_quorum)
    replica = peer.start(of(1, *alike("0", step=5), own=1), allow_heal=False)
    assert (replica.num_participants(), replica.participating_rank()) == (1, 0), "averages are over it alone"
    assert replica.should_commit()


# --- who contributes ----------------------------------------------------------------------------------


def test_with_a_fixed_world_size_further_replicas_are_spares() -> None:
    stage = Stage(5, min_replica_size=2, world_size_mode=WorldSizeMode.FIXED_WITH_SPARES)
    replica = stage.start(of(1, *alike("b", "c")))
    assert replica.num_participants() == 2
    assert replica.participating_rank() == 0
    spare = Stage(5, min_replica_size=2, world_size_mode=WorldSizeMode.FIXED_WITH_SPARES)
    replica = spare.start(of(1, peer("0", 2, 5, 1), peer("1", 3, 5, 1)))
    assert replica.participating_rank() is None
    gradient = np.array([5.0])
    replica.allreduce(gradient)
    spare.pg.complete(add=6.0)
    assert gradient.tolist() == [3.0], "zeros of its own, averaged over the two"
    assert replica.should_commit(), "it takes the others' step"


@pytest.mark.parametrize(
    ("use_async_quorum", "present", "rank"),
    [(True, 2, None), (False, 2, 0)],
    ids=["async", "sync"],
)
def test_a_healing_replica_among_spares(use_async_quorum: bool, present: int, rank: int | None) -> None:
    """In async mode the contributors are the first of those who were up to date, in sync mode of all."""
    rules = {"min_replica_size": 2, "world_size_mode": WorldSizeMode.FIXED_WITH_SPARES}
    stage = Stage(5, use_async_quorum=use_async_quorum, **rules)
    stage.serve("b", 8)
    stage.serve("c", 8)
    replica = stage.start(of(1, *alike("b", "c", "d", step=8)))
    assert (replica.num_participants(), replica.participating_rank()) == (present, rank)
    gradient = np.array([4.0])
    replica.allreduce(gradient)
    stage.pg.complete(add=6.0)
    assert gradient.tolist() == [3.0 if rank is None else 5.0], "averaged over the two"
    assert replica.should_commit()
    assert replica.batches_committed() == 2 * 8 + 2


def test_too_few_contributors_commit_nothing_with_a_fixed_world_size() -> None:
    rules = {"min_replica_size": 2, "world_size_mode": WorldSizeMode.FIXED_WITH_SPARES}
    stage = Stage(8, **rules)
    replica = stage.start(of(1, *alike("b", step=5)))
    assert replica.num_participants() == 1
    assert not replica.should_commit(), "one heals, and the other alone is not enough"


def test_before_the_first_quorum_nobody_takes_part(stage: Stage) -> None:
    replica = stage.replica
    assert (replica.num_participants(), replica.participating_rank(), replica.is_participating()) == (
        0,
        None,
        False,
    )


def test_sums_are_not_divided_and_a_sequence_is_reduced_as_one(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    first, second = np.array([1.0]), np.array([2.0])
    work = replica.allreduce([first, second], op="sum")
    stage.pg.complete(add=1.0)
    assert work.get_future().result(0) == [first, second]
    assert (first.tolist(), second.tolist()) == ([2.0], [3.0])
    assert [work.op for work in stage.pg.works] == ["sum"]


def test_integers_are_averaged_too(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    counts = np.array([3, 4])
    work = replica.allreduce(counts)
    stage.pg.complete(add=4)
    assert work.wait()
    assert counts.tolist() == [3, 4]
    assert replica.should_commit()


# --- state of the Manager itself ----------------------------------------------------------------------


def test_its_own_state_can_be_saved_and_loaded(stage: Stage) -> None:
    stage.start(of(1)).should_commit()
    other = Stage()
    other.replica.load_state_dict(stage.replica.state_dict())
    assert other.replica.state_dict() == stage.replica.state_dict()
    assert other.membership.board["step"] == 6
    other.replica.load_state_dict({"step": 3, "batches_committed": 4})
    assert other.replica.state_dict()["committed_in"] == 0, "torchft's has none"


@pytest.mark.parametrize(
    "state",
    [{}, {"step": 1}, {"step": "x", "batches_committed": 0}, {"step": -1, "batches_committed": 0}, None],
)
def test_a_state_of_something_else_is_refused(stage: Stage, state: Any) -> None:
    with pytest.raises(UsageError, match="not a state dict of a Manager"):
        stage.replica.load_state_dict(state)
    assert stage.replica.current_step() == 5


# --- progress -----------------------------------------------------------------------------------------


def test_the_board_shows_what_is_waited_for(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    work = replica.allreduce(np.ones(1))
    stage.pg.complete()
    stage.membership.phases.clear()
    work.wait()
    assert stage.membership.phases == [Phase.COLLECTIVE, Phase.COMPUTE]


def test_loading_a_fetched_state_is_healing_and_not_computing(stage: Stage) -> None:
    seen: list[Phase] = []
    stage.serve("b", 8)
    stage.start(of(1, *alike("b", step=8)))
    stage.replica.set_state_dict_fns(lambda state: seen.append(stage.membership.board["phase"]), dict)
    assert stage.replica.should_commit()
    assert seen == [Phase.HEAL]


def test_waiting_for_the_quorum_of_a_step_that_was_given_up_is_no_computing(stage: Stage) -> None:
    stage.replica.start_quorum()
    stage.membership.wait_until_asked(1)
    beginning = threading.Thread(target=stage.replica.start_quorum)
    beginning.start()
    stage.membership.wait_until_shown(Phase.QUORUM)
    stage.membership.answer(of(1), of(2))
    beginning.join(DEADLINE_S)
    assert stage.replica.should_commit()


def test_a_sign_of_progress_moves_the_counter(stage: Stage) -> None:
    before = stage.membership.board["progress"]
    stage.replica.report_progress()
    assert stage.membership.board["progress"] == before + 1


def test_a_pause_ends_where_it_ends(stage: Stage) -> None:
    with stage.replica.pause_progress("checkpoint"):
        stage.start(of(1))
        assert stage.membership.board["phase"] is Phase.PAUSED, "whatever else is done meanwhile"
    assert stage.membership.board["phase"] is Phase.COMPUTE


# --- the end ------------------------------------------------------------------------------------------


def test_shutting_down_leaves_at_the_step_reached_and_closes_everything(stage: Stage) -> None:
    stage.start(of(1)).should_commit()
    stage.replica.shutdown()
    assert stage.membership.left_at == 6
    assert stage.pg.is_shut_down
    assert stage.transport.is_shut_down
    stage.membership.left_at = None
    stage.replica.shutdown()
    assert stage.membership.left_at is None, "once is enough"
    for call in (stage.replica.start_quorum, stage.replica.wait_quorum, stage.replica.should_commit):
        with pytest.raises(UsageError, match="shut down"):
            call()


def test_shutting_down_frees_one_that_waits_for_a_quorum(stage: Stage) -> None:
    stage.replica.start_quorum()
    stage.membership.wait_until_asked(1)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            stage.replica.wait_quorum()
        except UsageError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    stage.replica.shutdown()
    waiting.join(DEADLINE_S)
    assert "shut down" in str(errors[0])


def test_shutting_down_frees_a_group_that_is_connecting(stage: Stage) -> None:
    connecting, freed = threading.Event(), threading.Event()

    def connect(quorum_id: int) -> None:
        connecting.set()
        assert freed.wait(DEADLINE_S)

    stage.pg.at_configure = connect
    stage.pg.shutdown = lambda: (
        setattr(stage.pg, "is_shut_down", True),
        stage.pg.abort(packed(1)),
        freed.set(),
    )  # type: ignore[assignment]
    stage.membership.answer(of(1, *alike("b")))
    stage.replica.start_quorum()
    assert connecting.wait(DEADLINE_S)
    stage.replica.shutdown()
    assert freed.is_set()
    assert not stage.replica._quorum_thread._thread.is_alive()


# --- a forked child -----------------------------------------------------------------------------------


def test_in_a_forked_child_it_is_inert(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = stage.start(of(1, *alike("b")))
    board = dict(stage.membership.board)
    monkeypatch.setattr(replica, "_pid", replica._pid + 1)
    replica.report_error(ValueError("the child's own"))
    replica.report_progress()
    with replica.pause_progress("in the child"):
        pass
    replica.shutdown()
    assert replica.errored() is None
    assert stage.membership.board == board
    assert stage.membership.left_at is None
    assert replica.current_step() == 5
    for call in (replica.start_quorum, replica.should_commit, lambda: replica.allreduce([])):
        with pytest.raises(UsageError, match="a forked child, such as a data loader, cannot use it"):
            call()


# --- all at once --------------------------------------------------------------------------------------


def test_threads_that_strike_at_any_moment_block_nobody() -> None:
    """The failure thread aborts, the group's thread completes, the user's reports: the train loop goes on."""
    stage = Stage(5)
    stage.pg.others_are_at_work = True
    replica, steps = stage.replica, 60
    begun = [threading.Semaphore(0) for _ in range(3)]

    def strike(blow: Callable[[int], None], mine: threading.Semaphore) -> None:
        for number in range(1, steps + 1):
            assert mine.acquire(timeout=DEADLINE_S)
            blow(number)

    blows: list[Callable[[int], None]] = [
        lambda number: stage.hear(notice("b", number + 1)),
        lambda number: stage.pg.complete(),
        lambda number: replica.report_error(ValueError("mine")),
    ]
    strikers = [threading.Thread(target=strike, args=pair) for pair in zip(blows, begun, strict=True)]
    for striker in strikers:
        striker.start()
    for number in range(1, steps + 1):
        stage.membership.answer(of(2 * number, peer("b", number + 1, 5, 1)), of(2 * number + 1))
        replica.start_quorum()
        for mine in begun:
            mine.release()
        replica.allreduce(np.ones(1)).wait(timedelta(seconds=DEADLINE_S))
        replica.should_commit()
        stage.membership._answers.clear()
    for striker in strikers:
        striker.join(DEADLINE_S)
        assert not striker.is_alive()
    assert len(stage.told) == steps


def test_from_start_quorum_on_a_notice_cannot_touch_the_transfers_of_the_new_round(stage: Stage) -> None:
    replica = stage.start(of(1, *alike("b")))
    assert replica.should_commit()
    replica.start_quorum()
    stage.membership.wait_until_asked(2)
    stage.hear(notice("b", 2))
    assert not stage.transport.is_aborted and stage.pg.aborted == []
    stage.membership.answer(of(2))
    assert replica.should_commit()


def test_an_error_while_a_collective_waits_for_the_quorum_leaves_the_buffers_alone(stage: Stage) -> None:
    """Also those of one that would have contributed zeros, because it heals."""
    replica = stage.replica

    def fail_first(asks: Participant) -> Quorum:
        asked.wait(DEADLINE_S)
        replica.report_error(ValueError("in another thread"))
        return of(1, peer(step=8))(asks)

    asked, buffer = threading.Event(), np.ones(2)
    stage.membership.answer(fail_first)
    replica.start_quorum()
    show, stage.membership.show = stage.membership.show, lambda **fields: (show(**fields), asked.set())
    assert replica.allreduce(buffer).wait()
    assert buffer.tolist() == [1.0, 1.0] and stage.pg.works == []


# --- one of several ranks -----------------------------------------------------------------------------


def grouped(answer: Callable[[Participant], Quorum]) -> Callable[[Participant], Quorum]:
    """The same quorum, of groups of two ranks."""

    def formed(asks: Participant) -> Quorum:
        plain = answer(asks)
        return plain._replace(participants=tuple([p._replace(ranks=p.ranks * 2) for p in plain.participants]))

    return formed


@pytest.fixture
def rank_1() -> Stage:
    return Stage(5, membership=FakeMembership(group_rank=1, group_world_size=2))


@pytest.mark.parametrize("outvoted", [False, True])
def test_a_step_counts_if_it_counts_on_every_rank(rank_1: Stage, outvoted: bool) -> None:
    rank_1.membership.outvoted = outvoted
    replica = rank_1.start(grouped(of(1, *alike("b"))))
    assert replica.should_commit() is not outvoted
    assert rank_1.membership.votes == [(1, True)]
    assert replica.current_step() == 5 + (not outvoted)


def test_a_rank_whose_step_went_wrong_votes_no(rank_1: Stage) -> None:
    replica = rank_1.start(grouped(of(1, *alike("b"))))
    replica.report_error(RuntimeError("no"))
    assert not replica.should_commit()
    assert rank_1.membership.votes == [(1, False)]


def test_after_the_end_of_its_group_every_use_says_so(rank_1: Stage) -> None:
    replica = rank_1.start(grouped(of(1, *alike("b"))))
    rank_1.membership.group_error = ReplicaGroupLost("replica group a is over")
    for use in (replica.should_commit, replica.start_quorum, lambda: replica.allreduce(np.zeros(1))):
        with pytest.raises(ReplicaGroupLost, match="replica group a is over"):
            use()
    replica.shutdown()
    assert rank_1.membership.left_at == 5
