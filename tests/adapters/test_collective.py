"""The numpy process group as its callers see it: calls, aborts, its life and its end."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from procguard.adapters import process_group
from procguard.adapters.collective import RingProcessGroup
from procguard.adapters.collective_ring import Payload, Ring
from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout, UsageError
from tests.adapters.ranks import DEADLINE_S, LONG, assert_works, until
from tests.adapters.ring_ranks import Ranks, call_port, error_of, port_of, sockets


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with Ranks() as ranks:
        yield ranks


def test_collectives_run_in_call_order(ranks: Ranks) -> None:
    def run(rank: int, group: RingProcessGroup) -> list[float]:
        buffers = [np.full(2, float(i)) for i in range(100)]
        works = [group.allreduce([buffer]) for buffer in buffers]
        return [work.get_future().result(DEADLINE_S)[0][1] for work in works]

    assert ranks.outcomes(run, ranks.connected(3)) == [[3.0 * i for i in range(100)]] * 3


def test_future_holds_the_callers_buffers_and_cannot_be_cancelled(ranks: Ranks) -> None:
    first, second = ranks.connected(2)
    mine = np.ones(2)
    future = first.allreduce([mine]).get_future()
    assert not future.cancel()
    second.allreduce([np.ones(2)])
    assert future.result(DEADLINE_S)[0] is mine
    assert mine.tolist() == [2, 2]


def test_buffers_are_read_when_the_call_is_made(ranks: Ranks) -> None:
    first, second = ranks.connected(2)
    mine = np.ones(2)
    work = first.allreduce([mine])
    mine[:] = 100
    second.allreduce([np.ones(2)])
    assert work.wait() and mine.tolist() == [2, 2]


def test_one_replica_needs_no_sockets(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    before = sockets()
    group.configure([group.handle()], 0, 1, LONG)
    mine = np.arange(4.0)
    assert group.allreduce([mine], "avg").wait()
    assert mine.tolist() == [0, 1, 2, 3]
    assert sockets() == before
    group.abort(1)
    with pytest.raises(CollectiveAborted):
        group.allreduce([mine]).wait()


@pytest.mark.parametrize(
    ("buffers", "op", "words"),
    [
        ([np.ones(1)], "mean", "'mean'.*sum, avg, max, min"),
        ([np.ones(1), np.ones(1, bool)], "sum", "buffer 1 has dtype bool"),
        ([np.ones(1, ">f4")], "sum", "buffer 0 has dtype >f4"),
        ([np.ones(1, np.complex64)], "sum", "complex64"),
        ([[1.0]], "sum", "buffer 0 is a list"),
        ([np.broadcast_to(1.0, 3)], "sum", "buffer 0 is read-only"),
    ],
)
def test_allreduce_says_what_it_cannot_do(ranks: Ranks, buffers: list[Any], op: str, words: str) -> None:
    groups = ranks.connected(2)
    with pytest.raises(UsageError, match=words):
        groups[0].allreduce(buffers, op)
    assert_works(ranks, groups)


@pytest.mark.parametrize(
    ("handles", "words"),
    [
        (["a:1", "b"], "'b' is not host:port"),
        (["a:1", "b:99999"], "'b:99999'"),
    ],
)
def test_configure_says_which_handle_is_none(ranks: Ranks, handles: list[str], words: str) -> None:
    (group,) = ranks.add(1)
    with pytest.raises(UsageError, match=words):
        group.configure(handles, 0, 1, LONG)
    ranks.configure([group], 1)


def test_abort_frees_a_blocked_wait(ranks: Ranks) -> None:
    first, second = ranks.connected(2, quorum_id=3)
    mine = np.ones(4)
    works = [first.allreduce([mine]) for _ in range(3)]
    waiting = [ranks.start(work.wait) for work in works]
    first.abort(3)
    for future in waiting:
        error = error_of(future)
        assert isinstance(error, CollectiveAborted) and error.quorum_id == 3
    assert mine.tolist() == [1, 1, 1, 1]
    assert isinstance(first.errored(), CollectiveAborted)
    # The peer notices: the ring is closed.
    error = error_of(second.allreduce([np.ones(4)]).get_future())
    assert type(error) is CollectiveError and f"rank 0 ({first.handle()})" in str(error)


def test_abort_while_configure_waits_for_a_peer_that_never_configures(ranks: Ranks) -> None:
    groups = ranks.add(2)
    handles = [group.handle() for group in groups]
    blocked = ranks.start(groups[0].configure, handles, 0, 1, LONG)
    groups[0].abort(1)
    assert isinstance(error_of(blocked), CollectiveAborted)
    ranks.configure(groups, 2)
    assert_works(ranks, groups)


def test_abort_while_configure_waits_for_a_host_that_does_not_answer(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    blocked = ranks.start(group.configure, [group.handle(), "192.0.2.1:4711"], 0, 1, LONG)  # TEST-NET-1
    group.abort(1)
    assert isinstance(error_of(blocked), CollectiveAborted)


def test_abort_is_sticky_also_before_configure(ranks: Ranks) -> None:
    first, second = groups = ranks.add(2)
    handles = [group.handle() for group in groups]
    first.abort(7)
    with pytest.raises(CollectiveAborted):
        first.configure(handles, 0, 7, LONG)
    with pytest.raises(CollectiveAborted):
        first.allreduce([np.ones(1)]).wait()
    # The peer is told so at once instead of waiting for its timeout.
    with pytest.raises(CollectiveError, match="refused"):
        second.configure(handles, 1, 7, LONG)
    ranks.configure(groups, 8)
    assert_works(ranks, groups)


def test_a_loop_that_never_waits(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "TASK_COUNT_MAX", 3)
    first, _ = ranks.connected(2)
    for _ in range(3):
        first.allreduce([np.ones(1)])
    with pytest.raises(UsageError, match="3 collectives are in flight"):
        first.allreduce([np.ones(1)])


def test_abort_names_one_quorum(ranks: Ranks) -> None:
    groups = ranks.connected(2, quorum_id=5)
    for group in groups:
        group.abort(4)
        group.abort(6)
        assert group.errored() is None
    assert_works(ranks, groups)
    ranks.configure(groups, 7)  # 6 was aborted, 7 was not
    assert_works(ranks, groups)


def test_configure_ends_the_old_quorum(ranks: Ranks) -> None:
    groups = ranks.connected(2)
    old = groups[0].allreduce([np.ones(1)])
    ranks.configure(groups, 2)
    with pytest.raises(CollectiveAborted, match=r"quorum 0\.2 took its place"):
        old.wait()
    assert_works(ranks, groups)


def test_configure_ends_a_blocked_configure(ranks: Ranks) -> None:
    groups = ranks.add(2)
    handles = [group.handle() for group in groups]
    blocked = ranks.start(groups[0].configure, handles, 0, 1, LONG)
    until(lambda: groups[0]._quorum is not None)
    ranks.configure(groups, 2)
    assert isinstance(error_of(blocked), CollectiveAborted)
    assert_works(ranks, groups)


def test_an_abandoned_operation_never_touches_the_buffers(ranks: Ranks) -> None:
    first, second = groups = ranks.add(2)
    abandoned = []
    for quorum_id in range(1, 41):
        ranks.configure(groups, quorum_id)  # the I/O threads have done with the quorum before
        assert all((array == 7).all() for array in abandoned)
        mine = np.ones(50_000)
        work = first.allreduce([mine])
        second.allreduce([np.ones(50_000)])
        aborting = ranks.start(first.abort, quorum_id)
        try:
            work.wait()
            assert (mine == 2).all()
        except CollectiveAborted:
            assert (mine == 1).all()
            mine[:] = 7
            abandoned.append(mine)
        aborting.result(DEADLINE_S)


def test_abort_after_the_reduction_and_before_the_copy(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ranks.connected(2)
    reduce = Ring.allreduce

    def reduce_then_abort(ring: Ring, payload: Payload, sequence: int, timeout_s: float) -> None:
        reduce(ring, payload, sequence, timeout_s)
        first.abort(1)

    monkeypatch.setattr(Ring, "allreduce", reduce_then_abort)
    mine = np.ones(3)
    work = first.allreduce([mine])
    second.allreduce([np.ones(3)])
    with pytest.raises(CollectiveAborted):
        work.wait()
    first.shutdown()
    assert mine.tolist() == [1, 1, 1]


def test_abort_does_not_wait_for_a_copy_in_progress(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ranks.connected(2)
    deliver, is_copying, go_on = Payload.deliver, threading.Event(), threading.Event()
    mine = np.ones(3)

    def deliver_slowly(payload: Payload) -> list[Any]:
        if payload.buffers[0] is mine:
            is_copying.set()
            assert go_on.wait(DEADLINE_S)
        return deliver(payload)

    monkeypatch.setattr(Payload, "deliver", deliver_slowly)
    works = [first.allreduce([mine]), first.allreduce([np.ones(1)])]
    second.allreduce([np.ones(3)])
    assert is_copying.wait(DEADLINE_S)
    first.abort(1)
    assert not works[0].get_future().done()
    assert isinstance(error_of(works[1].get_future()), CollectiveAborted)
    go_on.set()
    assert works[0].wait() and mine.tolist() == [2, 2, 2]  # it was complete before the abort


def test_wait_times_out_and_names_the_peer(ranks: Ranks) -> None:
    first, second = groups = ranks.connected(2)
    work = first.allreduce([np.ones(2)])
    with pytest.raises(CollectiveTimeout, match=r"0\.05 s: waiting for") as caught:
        work.wait(timedelta(milliseconds=50))
    assert f"rank 1 ({second.handle()}) to send" in str(caught.value)
    assert isinstance(first.errored(), CollectiveTimeout)
    with pytest.raises(CollectiveError, match="closed"):
        second.allreduce([np.ones(2)]).wait()
    ranks.configure(groups, 2)
    assert_works(ranks, groups)


def test_membership_shrinks_and_grows(ranks: Ranks) -> None:
    a, b, c = ranks.connected(3)
    work = a.allreduce([np.ones(1)])
    c.shutdown()
    with pytest.raises(CollectiveError):
        work.wait()
    ranks.configure([a, b], 2)
    assert_works(ranks, [a, b])
    ranks.configure([b], 3)
    assert_works(ranks, [b])
    d, e = ranks.add(2)
    ranks.configure([d, b, a, e], 4)
    assert_works(ranks, [d, b, a, e])


def test_many_quick_reconfigures(ranks: Ranks) -> None:
    groups = ranks.add(3)
    for quorum_id in range(1, 51):
        ranks.configure(groups, quorum_id)
    assert_works(ranks, groups)


def test_nothing_leaks(ranks: Ranks) -> None:
    fds, threads = sockets(), threading.active_count()
    groups = [RingProcessGroup(LONG) for _ in range(3)]
    pool = Ranks()
    for quorum_id in range(1, 6):
        pool.configure(groups, quorum_id)
        groups[0].abort(quorum_id)
        with call_port(groups[1].handle(), b"GET /"), pytest.raises(CollectiveError):
            groups[1].allreduce([np.ones(1)]).wait()
    early = [pool.start(groups[0].configure, [g.handle() for g in groups], 0, 9, LONG)]
    for group in groups:
        group.shutdown()
        group.shutdown()
    assert isinstance(early[0].exception(DEADLINE_S), (CollectiveAborted, UsageError))
    pool.close()
    assert sockets() <= fds
    assert threading.active_count() == threads


def test_shutdown_frees_whoever_waits(ranks: Ranks) -> None:
    first, _ = ranks.connected(2)
    waiting = ranks.start(first.allreduce([np.ones(1)]).wait)
    first.shutdown()
    assert isinstance(error_of(waiting), CollectiveAborted)
    first.abort(1)
    with pytest.raises(CollectiveAborted):
        first.allreduce([np.ones(1)]).wait()
    with pytest.raises(UsageError, match="shut down"):
        first.configure([first.handle()], 0, 2, LONG)


def test_shutdown_from_a_callback(ranks: Ranks) -> None:
    first, second = ranks.connected(2)
    done = threading.Event()
    future = first.allreduce([np.ones(1)]).get_future()
    future.add_done_callback(lambda _: (first.shutdown(), done.set()))
    second.allreduce([np.ones(1)])
    assert done.wait(DEADLINE_S)


def test_handle_and_advertise(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    port = port_of(group.handle())
    assert group.handle() == f"127.0.0.1:{port}"
    group.advertise("node-7")
    assert group.handle() == f"node-7:{port}"
    group.advertise("fd00::7")
    assert group.handle() == f"[fd00::7]:{port}"
    with pytest.raises(UsageError):
        group.advertise("")


def test_a_forked_child_holds_nothing(ranks: Ranks) -> None:
    before = sockets()
    groups = ranks.connected(2)
    ours = sockets() - before
    assert ours and not any(os.get_inheritable(fd) for fd in ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tested
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(DEADLINE_S))
            groups[0].abort(1)
            groups[0].shutdown()
            try:
                groups[1].allreduce([np.ones(1)])
            except UsageError:
                os._exit(0 if not ours & sockets() else 2)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert_works(ranks, groups)
