"""The numpy process group: ranks are threads of this process, one test kills a real process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from procguard.adapters import collective_rendezvous
from procguard.adapters.collective import ABORTED_COUNT_MAX, RingProcessGroup
from procguard.adapters.collective_links import Kind, Place, greet
from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout, UsageError

LONG = timedelta(seconds=60)  # never reached unless the test fails
DEADLINE_S = 60.0
DTYPES = ["float16", "float32", "float64", "int32", "int64"]
EXPECTED = {
    "sum": lambda arrays: np.sum(arrays, axis=0, dtype=arrays[0].dtype),
    "avg": lambda arrays: np.sum(arrays, axis=0, dtype=arrays[0].dtype) // len(arrays),
    "max": lambda arrays: np.max(arrays, axis=0),
    "min": lambda arrays: np.min(arrays, axis=0),
}


class Ranks:
    """Process groups of one test, each driven by a thread of its own."""

    def __init__(self) -> None:
        self.groups: list[RingProcessGroup] = []
        self._threads = ThreadPoolExecutor(max_workers=16)

    def add(self, count: int, timeout: timedelta = LONG) -> list[RingProcessGroup]:
        added = [RingProcessGroup(timeout) for _ in range(count)]
        self.groups += added
        return added

    def start(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        return self._threads.submit(call, *args)

    def outcomes(
        self, call: Callable[[int, RingProcessGroup], Any], groups: list[RingProcessGroup]
    ) -> list[Any]:
        """What ``call`` returned or raised on each rank, all ranks running at once."""
        futures = [self.start(call, rank, group) for rank, group in enumerate(groups)]
        assert not wait(futures, DEADLINE_S).not_done, "a rank is blocked"
        return [future.exception() or future.result() for future in futures]

    def configure(self, groups: list[RingProcessGroup], quorum_id: int, timeout: timedelta = LONG) -> None:
        handles = [group.handle() for group in groups]
        outcomes = self.outcomes(
            lambda rank, group: group.configure(handles, rank, quorum_id, timeout), groups
        )
        assert outcomes == [None] * len(groups)

    def ring(self, count: int, quorum_id: int = 1, timeout: timedelta = LONG) -> list[RingProcessGroup]:
        groups = self.add(count, timeout)
        self.configure(groups, quorum_id)
        return groups

    def reduce(self, groups: list[RingProcessGroup], buffers: list[list[Any]], op: str = "sum") -> list[Any]:
        return self.outcomes(lambda rank, group: group.allreduce(buffers[rank], op).wait(), groups)

    def close(self) -> None:
        for group in self.groups:
            group.shutdown()
        self._threads.shutdown()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.close()


def assert_works(ranks: Ranks, groups: list[RingProcessGroup]) -> None:
    buffers = [[np.full(3, float(rank + 1))] for rank in range(len(groups))]
    assert ranks.reduce(groups, buffers) == [True] * len(groups)
    total = sum(range(len(groups) + 1))
    assert all((own[0] == total).all() for own in buffers)


def until(condition: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.001)


def error_of(future: Future[Any]) -> BaseException:
    error = future.exception(DEADLINE_S)
    assert error is not None
    return error


def port_of(handle: str) -> int:
    return int(handle.rpartition(":")[2])


def call_port(handle: str, text: bytes = b"") -> socket.socket:
    stranger = socket.create_connection(("127.0.0.1", port_of(handle)), DEADLINE_S)
    stranger.sendall(text)
    return stranger


def is_closed_by_peer(stranger: socket.socket) -> bool:
    try:
        while stranger.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def sockets() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(int(name))
        except FileNotFoundError:
            pass  # the directory listing's own
    return found


# What it computes


@pytest.mark.parametrize("op", ["sum", "avg", "max", "min"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_reduces_every_dtype_and_size(ranks: Ranks, count: int, op: str) -> None:
    groups = ranks.ring(count)
    random = np.random.default_rng(7)
    shapes = [(1,), (0,), (2,), (7, 3), (), (1001,)]
    # Whole numbers whose sums float16 holds exactly, and that every world size divides.
    inputs = [[random.integers(0, 20, shape) * 60 for shape in shapes * 5] for _ in groups]
    dtypes = DTYPES * len(shapes)
    buffers = [[np.asarray(a, d) for a, d in zip(own, dtypes, strict=True)] for own in inputs]
    expected = [EXPECTED[op]([buffers[rank][i] for rank in range(count)]) for i in range(len(dtypes))]
    assert ranks.reduce(groups, buffers, op) == [True] * count
    for own in buffers:
        for array, wanted in zip(own, expected, strict=True):
            np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_ranks_end_with_the_same_bits(ranks: Ranks, count: int) -> None:
    groups = ranks.ring(count)
    random = np.random.default_rng(11)
    buffers = [[random.normal(size=1237).astype(np.float32), random.normal(size=5)] for _ in groups]
    expected = [np.mean([own[i] for own in buffers], axis=0) for i in range(2)]
    assert ranks.reduce(groups, buffers, "avg") == [True] * count
    for i in range(2):
        assert len({own[i].tobytes() for own in buffers}) == 1
        np.testing.assert_allclose(buffers[0][i], expected[i], rtol=1e-4, atol=1e-6)


def test_average_of_integers_rounds_down(ranks: Ranks) -> None:
    buffers = [[np.array([3, -3])], [np.array([0, 0])]]
    ranks.reduce(ranks.ring(2), buffers, "avg")
    assert buffers[0][0].tolist() == buffers[1][0].tolist() == [1, -2]


def test_infinities_are_the_owners_business(ranks: Ranks) -> None:
    buffers = [[np.array([np.inf, 1e308])], [np.array([-np.inf, 1e308])]]
    assert ranks.reduce(ranks.ring(2), buffers) == [True, True]
    assert np.isnan(buffers[0][0][0]) and np.isposinf(buffers[0][0][1])


def test_large_buffers_do_not_deadlock(ranks: Ranks) -> None:
    groups = ranks.ring(3)
    buffers = [[np.full(1 << 20, rank + 0.5)] for rank in range(3)]
    assert ranks.reduce(groups, buffers) == [True] * 3
    assert all((own[0] == 4.5).all() for own in buffers)


def test_non_contiguous_buffers(ranks: Ranks) -> None:
    groups = ranks.ring(2)
    whole = [np.arange(24.0).reshape(4, 6) for _ in groups]
    assert ranks.reduce(groups, [[w[::2, ::3], w.T[1:2]] for w in whole]) == [True, True]
    wanted = np.arange(24.0).reshape(4, 6)
    wanted[::2, ::3] *= 2
    wanted[:, 1] *= 2
    for w in whole:
        np.testing.assert_array_equal(w, wanted)


@pytest.mark.parametrize("buffers", [[], [np.empty(0)]])
def test_nothing_to_reduce(ranks: Ranks, buffers: list[Any]) -> None:
    groups = ranks.ring(3)
    assert ranks.reduce(groups, [buffers] * 3) == [True] * 3
    assert_works(ranks, groups)


def test_collectives_run_in_call_order(ranks: Ranks) -> None:
    def run(rank: int, group: RingProcessGroup) -> list[float]:
        buffers = [np.full(2, float(i)) for i in range(100)]
        works = [group.allreduce([buffer]) for buffer in buffers]
        return [work.get_future().result(DEADLINE_S)[0][1] for work in works]

    assert ranks.outcomes(run, ranks.ring(3)) == [[3.0 * i for i in range(100)]] * 3


def test_future_holds_the_callers_buffers_and_cannot_be_cancelled(ranks: Ranks) -> None:
    first, second = ranks.ring(2)
    mine = np.ones(2)
    future = first.allreduce([mine]).get_future()
    assert not future.cancel()
    second.allreduce([np.ones(2)])
    assert future.result(DEADLINE_S)[0] is mine
    assert mine.tolist() == [2, 2]


def test_buffers_are_read_when_the_call_is_made(ranks: Ranks) -> None:
    first, second = ranks.ring(2)
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


# Callers' mistakes


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
    groups = ranks.ring(2)
    with pytest.raises(UsageError, match=words):
        groups[0].allreduce(buffers, op)
    assert_works(ranks, groups)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["a:1"], 1, 1, LONG), "rank 1 is not one of 1"),
        ((["a:1", "b"], 0, 1, LONG), "'b' is not host:port"),
        ((["a:1", "b:99999"], 0, 1, LONG), "'b:99999'"),
        ((["a:1"], 0, 2**63, LONG), "64 bits"),
        ((["a:1"], 0, 1, timedelta(0)), "not positive"),
    ],
)
def test_configure_says_what_it_cannot_do(
    ranks: Ranks, arguments: tuple[list[str], int, int, timedelta], words: str
) -> None:
    (group,) = ranks.add(1)
    with pytest.raises(UsageError, match=words):
        group.configure(*arguments)
    ranks.configure([group], 1)


def test_allreduce_before_configure(ranks: Ranks) -> None:
    with pytest.raises(UsageError, match="before configure"):
        ranks.add(1)[0].allreduce([np.ones(1)])


def test_a_quorum_is_configured_once(ranks: Ranks) -> None:
    groups = ranks.ring(2, quorum_id=5)
    handles = [group.handle() for group in groups]
    with pytest.raises(UsageError, match="quorum 5 is configured already"):
        groups[0].configure(handles, 0, 5, LONG)
    with pytest.raises(CollectiveAborted, match="quorum 4 is over"):
        groups[0].configure(handles, 0, 4, LONG)
    assert_works(ranks, groups)
    groups[0].abort(5)
    with pytest.raises(CollectiveError, match="has ended: quorum 5 was aborted"):
        groups[0].configure(handles, 0, 5, LONG)


def test_port_in_use(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    port = port_of(group.handle())
    with pytest.raises(UsageError, match=f"port {port}"):
        RingProcessGroup(port=port)


# Abort


def test_abort_frees_a_blocked_wait(ranks: Ranks) -> None:
    first, second = ranks.ring(2, quorum_id=3)
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


def test_abort_names_one_quorum(ranks: Ranks) -> None:
    groups = ranks.ring(2, quorum_id=5)
    for group in groups:
        group.abort(4)
        group.abort(6)
        assert group.errored() is None
    assert_works(ranks, groups)
    ranks.configure(groups, 7)  # 6 was aborted, 7 was not
    assert_works(ranks, groups)


def test_aborted_ids_stay_bounded_and_sticky(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    for quorum_id in range(ABORTED_COUNT_MAX * 2):
        group.abort(quorum_id)
    for quorum_id in (0, ABORTED_COUNT_MAX, ABORTED_COUNT_MAX * 2 - 1):
        with pytest.raises(CollectiveAborted):
            group.configure([group.handle()], 0, quorum_id, LONG)
    group.configure([group.handle()], 0, ABORTED_COUNT_MAX * 2, LONG)


def test_configure_ends_the_old_quorum(ranks: Ranks) -> None:
    groups = ranks.ring(2)
    old = groups[0].allreduce([np.ones(1)])
    ranks.configure(groups, 2)
    with pytest.raises(CollectiveAborted, match="quorum 2 took its place"):
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


# Failures


def test_a_peer_that_leaves_is_named(ranks: Ranks) -> None:
    groups = ranks.ring(3, quorum_id=9)
    mine = [np.ones(5), np.ones(5)]
    works = [groups[rank].allreduce([mine[rank]]) for rank in range(2)]
    groups[2].shutdown()
    for rank, work in enumerate(works):
        with pytest.raises(CollectiveError, match=r"quorum 9: rank \d \(127.0.0.1:\d+\) closed") as caught:
            work.wait()
        assert caught.value.quorum_id == 9
        assert not isinstance(caught.value, CollectiveAborted)
        assert mine[rank].tolist() == [1] * 5
        assert str(groups[rank].errored()) == str(caught.value)
        with pytest.raises(CollectiveError, match="closed"):
            groups[rank].allreduce([mine[rank]]).wait()
    ranks.configure(groups[:2], 10)
    assert groups[0].errored() is None
    assert_works(ranks, groups[:2])


PEER = """
import sys
from datetime import timedelta
import numpy
from procguard.adapters.collective import RingProcessGroup
group = RingProcessGroup()
print(group.handle(), flush=True)
group.configure(sys.stdin.readline().split(), 1, 1, timedelta(seconds=60))
print("configured", flush=True)
sys.stdin.readline()
"""


def test_a_killed_process_is_named(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    command = [sys.executable, "-c", PEER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        try:
            assert peer.stdin is not None and peer.stdout is not None
            handle = peer.stdout.readline().strip()
            peer.stdin.write(f"{group.handle()} {handle}\n")
            peer.stdin.flush()
            group.configure([group.handle(), handle], 0, 1, LONG)
            assert peer.stdout.readline() == "configured\n"
            mine = np.ones(1 << 20)  # more than the sockets hold: blocked in sending as well
            work = group.allreduce([mine])
        finally:
            peer.kill()
        error = error_of(work.get_future())
    assert type(error) is CollectiveError
    assert f"rank 1 ({handle})" in str(error)
    assert (mine == 1).all()


def test_leaving_after_the_last_collective_does_not_void_it_for_the_peers(ranks: Ranks) -> None:
    def run(rank: int, group: RingProcessGroup) -> bool:
        done = group.allreduce([np.ones(30_000)]).wait()
        if rank == 1:
            group.shutdown()
        return done

    for quorum_id in range(1, 11):
        groups = ranks.ring(3, quorum_id)
        assert ranks.outcomes(run, groups) == [True] * 3
        assert groups[0].errored() is None


@pytest.mark.parametrize(
    ("buffers", "op", "words"),
    [
        ([np.ones(12)], "sum", "sum of 12 float64.*sum of 10 float64|sum of 10 float64.*sum of 12 float64"),
        ([np.ones(10, np.int32)], "sum", "10 int32.*10 float64|10 float64.*10 int32"),
        ([np.ones(10)], "max", "max of 10.*sum of 10|sum of 10.*max of 10"),
        ([np.ones((2, 5))], "sum", "same shapes"),
        ([np.ones(4), np.ones(6)], "sum", "same shapes"),
        ([], "sum", "of 0 .*of 10|of 10 .*of 0"),
        ([np.ones(300_000)], "sum", "of 300000 .*of 10|of 10 .*of 300000"),
    ],
)
def test_ranks_that_disagree_are_told(ranks: Ranks, buffers: list[Any], op: str, words: str) -> None:
    first, second = groups = ranks.ring(2)
    mine = np.ones(10)
    futures = [first.allreduce([mine]).get_future(), second.allreduce(buffers, op).get_future()]
    for future in futures:
        error = error_of(future)
        assert isinstance(error, CollectiveError)
        with pytest.raises(CollectiveError, match=words):
            raise error
    assert (mine == 1).all() and all((buffer == 1).all() for buffer in buffers)
    ranks.configure(groups, 2)
    assert_works(ranks, groups)


def test_wait_times_out_and_names_the_peer(ranks: Ranks) -> None:
    first, second = groups = ranks.ring(2)
    work = first.allreduce([np.ones(2)])
    with pytest.raises(CollectiveTimeout, match=r"0\.05 s: waiting for") as caught:
        work.wait(timedelta(milliseconds=50))
    assert f"rank 1 ({second.handle()}) to send" in str(caught.value)
    assert isinstance(first.errored(), CollectiveTimeout)
    with pytest.raises(CollectiveError, match="closed"):
        second.allreduce([np.ones(2)]).wait()
    ranks.configure(groups, 2)
    assert_works(ranks, groups)


def test_collective_times_out_though_nobody_waits(ranks: Ranks) -> None:
    first, second = ranks.ring(2, timeout=timedelta(milliseconds=50))
    error = error_of(first.allreduce([np.ones(2)]).get_future())
    assert isinstance(error, CollectiveTimeout)
    assert f"rank 1 ({second.handle()}) to send in step 1 of 2" in str(error)


def test_configure_times_out_and_names_the_peers(ranks: Ranks) -> None:
    groups = ranks.add(3)
    handles = [group.handle() for group in groups]
    with pytest.raises(CollectiveTimeout) as caught:
        groups[0].configure(handles, 0, 1, timedelta(milliseconds=50))
    assert f"rank 1 ({handles[1]}) to answer" in str(caught.value)
    assert f"rank 2 ({handles[2]}) to connect" in str(caught.value)
    assert isinstance(groups[0].errored(), CollectiveTimeout)


def test_a_peer_that_listens_no_more(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_rendezvous, "REFUSED_GRACE_S", 0.1)
    groups = ranks.add(2)
    groups[1].shutdown()
    with pytest.raises(CollectiveError, match=r"rank 1 .* refuses connections"):
        groups[0].configure([group.handle() for group in groups], 0, 1, LONG)


def test_a_failed_configure_frees_the_one_before(ranks: Ranks) -> None:
    groups = ranks.add(3)
    handles = [group.handle() for group in groups]
    blocked = [ranks.start(groups[rank].configure, handles, rank, 1, LONG) for rank in (0, 1)]
    groups[1].abort(1)  # rank 2 never comes
    assert isinstance(error_of(blocked[1]), CollectiveAborted)
    assert f"rank 1 ({handles[1]})" in str(error_of(blocked[0]))


def test_a_rank_behind_is_refused(ranks: Ranks) -> None:
    groups = ranks.ring(2, quorum_id=6)
    (late,) = ranks.add(1)
    with pytest.raises(CollectiveError, match=r"quorum 5: rank 0 .* refused"):
        late.configure([groups[0].handle(), late.handle()], 1, 5, LONG)
    assert_works(ranks, groups)


def test_faster_ranks_wait_for_the_slower(ranks: Ranks) -> None:
    groups = ranks.ring(3)
    handles = [group.handle() for group in groups]
    early = [ranks.start(groups[rank].configure, handles, rank, 2, LONG) for rank in range(2)]
    assert not wait(early, 0.02).done
    assert groups[2].errored() is None
    groups[2].configure(handles, 2, 2, LONG)
    assert [future.result(DEADLINE_S) for future in early] == [None, None]
    assert_works(ranks, groups)


# Strangers


def test_garbage_on_the_port_changes_nothing(ranks: Ranks) -> None:
    groups = ranks.add(3)
    place = Place(2, 1, tuple(group.handle() for group in groups))
    silent, talkers = [], []
    for group in groups:
        call_port(group.handle()).close()
        silent += [call_port(group.handle()) for _ in range(5)]
        silent += [call_port(group.handle(), b"PGRING\r\n\0")]  # begins well, and says no more
        talkers += [call_port(group.handle(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)]
        talkers += [call_port(group.handle(), os.urandom(4096))]
        talkers += [call_port(group.handle(), b"PGRING\r\n" + bytes(20))]
    for group in groups[:2]:  # rank 1 calls rank 2 and nobody else
        talkers.append(call_port(group.handle()))
        greet(talkers[-1], Kind.HELLO, place)
    ranks.configure(groups, 2)
    assert_works(ranks, groups)
    assert all(is_closed_by_peer(stranger) for stranger in talkers)
    assert_works(ranks, groups)
    for stranger in silent + talkers:
        stranger.close()


def test_a_flood_of_silent_callers(ranks: Ranks) -> None:
    groups = ranks.ring(2)
    handle = groups[0].handle()
    silent = [call_port(handle) for _ in range(collective_rendezvous.CALLER_COUNT_MAX + 20)]
    ranks.configure(groups, 2)
    assert is_closed_by_peer(silent[0])  # the oldest had to go
    assert_works(ranks, groups)
    for stranger in silent:
        stranger.close()


def test_silent_callers_are_dropped(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_rendezvous, "GREETING_TIMEOUT_S", 0.02)
    (group,) = ranks.add(1)
    with call_port(group.handle(), b"PGRING") as silent, call_port(group.handle(), b"GET /") as browser:
        assert is_closed_by_peer(browser)
        assert is_closed_by_peer(silent)


def test_an_evicted_early_caller_calls_again(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_rendezvous, "EARLY_TIMEOUT_S", 0.001)
    groups = ranks.add(2)
    handles = [group.handle() for group in groups]
    early = ranks.start(groups[0].configure, handles, 0, 1, LONG)
    assert not wait([early], 0.05).done
    groups[1].configure(handles, 1, 1, LONG)
    early.result(DEADLINE_S)
    assert_works(ranks, groups)


def test_another_program_on_the_peers_port(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        handle = f"127.0.0.1:{server.getsockname()[1]}"
        blocked = ranks.start(group.configure, [group.handle(), handle], 0, 1, LONG)
        visitor, _ = server.accept()
        with visitor:
            visitor.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert f"rank 1 ({handle}) is not a ProcGuard process group" in str(error_of(blocked))


# The life of a group


def test_membership_shrinks_and_grows(ranks: Ranks) -> None:
    a, b, c = ranks.ring(3)
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
    first, _ = ranks.ring(2)
    waiting = ranks.start(first.allreduce([np.ones(1)]).wait)
    first.shutdown()
    assert isinstance(error_of(waiting), CollectiveAborted)
    first.abort(1)
    with pytest.raises(CollectiveAborted):
        first.allreduce([np.ones(1)]).wait()
    with pytest.raises(UsageError, match="shut down"):
        first.configure([first.handle()], 0, 2, LONG)


def test_shutdown_from_a_callback(ranks: Ranks) -> None:
    first, second = ranks.ring(2)
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


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_names_and_ipv6(ranks: Ranks, host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if host == "::1" else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"no {host} here")
    groups = ranks.add(2)
    for group in groups:
        group.advertise(host)
    ranks.configure(groups, 1)
    assert_works(ranks, groups)


def test_a_forked_child_holds_nothing(ranks: Ranks) -> None:
    before = sockets()
    groups = ranks.ring(2)
    ours = sockets() - before
    assert ours and not any(os.get_inheritable(fd) for fd in ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tested
        child = os.fork()
    if child == 0:
        try:
            groups[0].abort(1)
            groups[0].shutdown()
            try:
                groups[1].allreduce([np.ones(1)])
            except UsageError:
                os._exit(0 if not ours & sockets() else 2)
        finally:
            os._exit(1)
    status: list[int] = []
    until(lambda: bool((ended := os.waitpid(child, os.WNOHANG))[0] and not status.append(ended[1])))
    assert os.waitstatus_to_exitcode(status[0]) == 0
    assert_works(ranks, groups)
