"""What the ring computes, and what it says when a rank disagrees, is late, leaves or dies."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from procguard.adapters.collective import RingProcessGroup
from procguard.adapters.collective_links import Links, Place
from procguard.adapters.collective_ring import Payload, Ring
from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout
from tests.adapters.ranks import DEADLINE_S, LONG, assert_works
from tests.adapters.ring_ranks import Ranks, error_of

DTYPES = ["float16", "float32", "float64", "int32", "int64"]
EXPECTED = {
    "sum": lambda arrays: np.sum(arrays, axis=0, dtype=arrays[0].dtype),
    "avg": lambda arrays: np.sum(arrays, axis=0, dtype=arrays[0].dtype) // len(arrays),
    "max": lambda arrays: np.max(arrays, axis=0),
    "min": lambda arrays: np.min(arrays, axis=0),
}


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with Ranks() as ranks:
        yield ranks


@pytest.mark.parametrize("op", ["sum", "avg", "max", "min"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_reduces_every_dtype_and_size(ranks: Ranks, count: int, op: str) -> None:
    groups = ranks.connected(count)
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
    groups = ranks.connected(count)
    random = np.random.default_rng(11)
    buffers = [[random.normal(size=1237).astype(np.float32), random.normal(size=5)] for _ in groups]
    expected = [np.mean([own[i] for own in buffers], axis=0) for i in range(2)]
    assert ranks.reduce(groups, buffers, "avg") == [True] * count
    for i in range(2):
        assert len({own[i].tobytes() for own in buffers}) == 1
        np.testing.assert_allclose(buffers[0][i], expected[i], rtol=1e-4, atol=1e-6)


def test_average_of_integers_rounds_down(ranks: Ranks) -> None:
    buffers = [[np.array([3, -3])], [np.array([0, 0])]]
    ranks.reduce(ranks.connected(2), buffers, "avg")
    assert buffers[0][0].tolist() == buffers[1][0].tolist() == [1, -2]


def test_infinities_are_the_owners_business(ranks: Ranks) -> None:
    buffers = [[np.array([np.inf, 1e308])], [np.array([-np.inf, 1e308])]]
    assert ranks.reduce(ranks.connected(2), buffers) == [True, True]
    assert np.isnan(buffers[0][0][0]) and np.isposinf(buffers[0][0][1])


def test_large_buffers_do_not_deadlock(ranks: Ranks) -> None:
    groups = ranks.connected(3)
    buffers = [[np.full(1 << 20, rank + 0.5)] for rank in range(3)]
    assert ranks.reduce(groups, buffers) == [True] * 3
    assert all((own[0] == 4.5).all() for own in buffers)


def test_non_contiguous_buffers(ranks: Ranks) -> None:
    groups = ranks.connected(2)
    whole = [np.arange(24.0).reshape(4, 6) for _ in groups]
    assert ranks.reduce(groups, [[w[::2, ::3], w.T[1:2]] for w in whole]) == [True, True]
    wanted = np.arange(24.0).reshape(4, 6)
    wanted[::2, ::3] *= 2
    wanted[:, 1] *= 2
    for w in whole:
        np.testing.assert_array_equal(w, wanted)


@pytest.mark.parametrize("buffers", [[], [np.empty(0)]])
def test_nothing_to_reduce(ranks: Ranks, buffers: list[Any]) -> None:
    groups = ranks.connected(3)
    assert ranks.reduce(groups, [buffers] * 3) == [True] * 3
    assert_works(ranks, groups)


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
    first, second = groups = ranks.connected(2)
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


def test_collective_times_out_though_nobody_waits(ranks: Ranks) -> None:
    first, second = ranks.connected(2, timeout=timedelta(milliseconds=50))
    error = error_of(first.allreduce([np.ones(2)]).get_future())
    assert isinstance(error, CollectiveTimeout)
    assert f"rank 1 ({second.handle()}) to send in step 1 of 2" in str(error)


def test_a_peer_that_leaves_is_named(ranks: Ranks) -> None:
    groups = ranks.connected(3, quorum_id=9)
    mine = [np.ones(5), np.ones(5)]
    works = [groups[rank].allreduce([mine[rank]]) for rank in range(2)]
    groups[2].shutdown()
    for rank, work in enumerate(works):
        with pytest.raises(CollectiveError, match=r"quorum 0.9: rank \d \(127.0.0.1:\d+\) closed") as caught:
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
        groups = ranks.connected(3, quorum_id)
        assert ranks.outcomes(run, groups) == [True] * 3
        assert groups[0].errored() is None


def test_a_successor_that_has_all_may_leave_before_its_predecessor_has() -> None:
    """Rank 2 completes the operation and is gone before the last segment from rank 0 reaches rank 1."""
    place = Place(1, 0, ("a:1", "b:1", "c:1"))
    (out0, held), (relay, in1), (out1, in2), (out2, in0) = (socket.socketpair() for _ in range(4))
    wake, waker = socket.socketpair()
    links = [Links(in0, out0), Links(in1, out1), Links(in2, out2)]
    for sock in [sock for link in links for sock in link]:
        sock.setblocking(False)
    rings = [Ring(replace(place, rank=rank), links[rank], wake, lambda: None) for rank in range(3)]
    payloads = [Payload([np.ones(3)], "sum") for _ in rings]
    message_bytes = 32 + 8  # a frame and one float64, four times
    with ThreadPoolExecutor() as threads, held, relay, wake, waker:
        running = [threads.submit(rings[rank].allreduce, payloads[rank], 1, DEADLINE_S) for rank in range(3)]
        for _ in range(3):
            relay.sendall(held.recv(message_bytes, socket.MSG_WAITALL))
        running[2].result(DEADLINE_S)
        rings[2].close()
        assert not wait(running[1:2], 0.02).done
        relay.sendall(held.recv(message_bytes, socket.MSG_WAITALL))
        running[1].result(DEADLINE_S)
        running[0].result(DEADLINE_S)
    assert [payload.deliver()[0].tolist() for payload in payloads] == [[3, 3, 3]] * 3
    rings[0].close()
    rings[1].close()
