"""The torch process group as its callers see it: calls, aborts, its life and its end."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout, UsageError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'procguard[torch]'")

from procguard.adapters.torch_group import (  # noqa: E402
    ProcessGroupGloo,
    ProcessGroupNCCL,
    TorchProcessGroup,
)
from tests.adapters.ranks import DEADLINE_S, LONG, assert_works, until  # noqa: E402
from tests.adapters.torch_ranks import Ranks  # noqa: E402

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with Ranks() as ranks:
        yield ranks


def test_collectives_run_in_call_order(ranks: Ranks) -> None:
    def run(rank: int, group: TorchProcessGroup) -> list[float]:
        buffers = [torch.full((2,), float(i)) for i in range(50)]
        works = [group.allreduce([buffer]) for buffer in buffers]
        return [work.get_future().result(DEADLINE_S)[0][1].item() for work in works]

    assert ranks.outcomes(run, ranks.connected(3)) == [[3.0 * i for i in range(50)]] * 3


def test_many_tensors_of_all_sorts_in_one_call(ranks: Ranks) -> None:
    def operands(rank: int) -> list[Any]:
        weight = torch.nn.Parameter(torch.full((2, 3), rank + 1.0))
        return [
            weight,
            torch.tensor(rank, dtype=torch.int64),
            torch.full((4, 4), rank + 1.0)[:, 1],
            torch.full((3,), rank + 1.0, dtype=torch.bfloat16),
            torch.empty(0),
        ]

    groups = ranks.connected(2)
    mine = [operands(rank) for rank in (0, 1)]
    assert ranks.reduce(groups, mine, "avg") == [True, True]
    for weight, count, column, half, empty in mine:
        assert weight.requires_grad and torch.equal(weight.detach(), torch.full((2, 3), 1.5))
        assert count.item() == 0  # 1 / 2, rounded down
        assert torch.equal(column, torch.full((4,), 1.5))
        assert torch.equal(half, torch.full((3,), 1.5, dtype=torch.bfloat16))
        assert empty.numel() == 0
    assert ranks.reduce(groups, [[torch.empty(0)], [torch.empty(0)]]) == [True, True]


@pytest.mark.parametrize(("op", "result"), [("sum", 3), ("avg", 1.5), ("max", 2), ("min", 1)])
def test_ops(ranks: Ranks, op: str, result: float) -> None:
    mine = [[torch.tensor([float(rank + 1)])] for rank in (0, 1)]
    ranks.reduce(ranks.connected(2), mine, op)
    assert [own[0].item() for own in mine] == [result, result]


def test_tensors_are_read_when_the_call_is_made(ranks: Ranks) -> None:
    first, second = ranks.connected(2)
    mine = torch.ones(2)
    work = first.allreduce([mine])
    mine[:] = 100
    second.allreduce([torch.ones(2)])
    assert work.wait() and mine.tolist() == [2, 2]


def test_one_replica_needs_no_peer(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    group.configure([group.handle()], 0, 1, LONG)
    mine = torch.arange(4.0)
    assert group.allreduce([mine], "avg").wait()
    assert mine.tolist() == [0, 1, 2, 3]
    group.abort(1)
    with pytest.raises(CollectiveAborted):
        group.allreduce([mine]).wait()


def test_allreduce_says_what_it_cannot_do(ranks: Ranks) -> None:
    groups = ranks.connected(2)
    for buffers, op, words in [
        ([torch.ones(1)], "mean", "'mean'.*sum, avg, max, min"),
        ([torch.ones(1), torch.ones(1, dtype=torch.bool)], "sum", r"buffer 1 has dtype torch\.bool"),
        ([torch.ones(1, dtype=torch.int16)], "sum", "int16"),
        ([[1.0]], "sum", "buffer 0 is a list"),
        ([torch.ones(2).to_sparse()], "sum", "dense"),
        ([torch.ones(1, device="meta")], "sum", "is on meta"),
    ]:
        with pytest.raises(UsageError, match=words):
            groups[0].allreduce(buffers, op)
    assert_works(ranks, groups)


@pytest.mark.parametrize(
    ("handles", "words"),
    [
        (["a:1/0123456789abcdef", "b:2"], "'b:2' is not host:port/token"),
        (["a:99999/0123456789abcdef"], "a:99999"),
    ],
)
def test_configure_says_which_handle_is_none(ranks: Ranks, handles: list[str], words: str) -> None:
    (group,) = ranks.add(1)
    with pytest.raises(UsageError, match=words):
        group.configure(handles, 0, 1, LONG)
    ranks.configure([group], 1)


def test_abort_frees_a_blocked_wait_and_leaves_the_tensor(ranks: Ranks) -> None:
    groups = ranks.connected(2, quorum_id=3)
    mine = torch.ones(4)
    works = [groups[0].allreduce([mine]) for _ in range(3)]
    waiting = [ranks.start(work.wait) for work in works]
    groups[0].abort(3)
    assert all(isinstance(wait.exception(DEADLINE_S), CollectiveAborted) for wait in waiting)
    assert isinstance(groups[0].errored(), CollectiveAborted)
    for _ in range(3):  # the peer's turn comes too late for an operation that was given up
        groups[1].allreduce([torch.full((4,), 7.0)])
    assert mine.tolist() == [1] * 4
    ranks.configure(groups, 4)
    assert groups[0].errored() is None
    assert_works(ranks, groups)
    assert mine.tolist() == [1] * 4


def test_abort_frees_a_blocked_configure(ranks: Ranks) -> None:
    first, second = ranks.add(2)
    handles = [first.handle(), second.handle()]
    configuring = ranks.start(first.configure, handles, 0, 1, LONG)
    until(lambda: first._quorum is not None)
    first.abort(1)
    assert isinstance(configuring.exception(DEADLINE_S), CollectiveAborted)
    ranks.configure([first, second], 2)
    assert_works(ranks, [first, second])


def test_configure_where_nobody_answers(ranks: Ranks) -> None:
    dead, alive = ranks.add(2)
    handles = [dead.handle(), alive.handle()]
    dead.shutdown()
    with pytest.raises(CollectiveError, match=r"cannot meet at .*, the store of replica rank 0"):
        alive.configure(handles, 1, 1, LONG)


def test_a_collective_that_takes_too_long_ends_the_quorum(ranks: Ranks) -> None:
    groups = ranks.connected(2)
    mine = torch.ones(2)
    works = [groups[0].allreduce([mine]) for _ in range(2)]
    with pytest.raises(CollectiveTimeout, match=r"allreduce of quorum 0\.1 took longer than 0\.1 s"):
        works[1].wait(timedelta(seconds=0.1))
    with pytest.raises(CollectiveTimeout):
        works[0].wait()
    assert mine.tolist() == [1, 1]


def test_the_groups_own_timeout_needs_nobody_who_waits(ranks: Ranks) -> None:
    groups = ranks.connected(2, timeout=timedelta(seconds=0.2))
    future = groups[0].allreduce([torch.ones(2)]).get_future()
    assert isinstance(future.exception(DEADLINE_S), CollectiveTimeout)


def test_a_peer_that_has_gone_is_an_error_at_once(ranks: Ranks) -> None:
    first, second = ranks.connected(2)
    second.shutdown()
    with pytest.raises(CollectiveError, match=r"allreduce of quorum 0\.1 failed"):
        first.allreduce([torch.ones(2)]).wait()


def test_a_future_cannot_be_cancelled_and_holds_the_callers_tensors(ranks: Ranks) -> None:
    first, second = ranks.connected(2)
    mine = torch.ones(2)
    future = first.allreduce([mine]).get_future()
    assert not future.cancel()
    second.allreduce([torch.ones(2)])
    assert future.result(DEADLINE_S)[0] is mine


def test_after_shutdown(ranks: Ranks) -> None:
    first, second = ranks.connected(2)
    work = first.allreduce([torch.ones(1)])
    first.shutdown()
    first.shutdown()
    with pytest.raises(CollectiveAborted, match="was shut down"):
        work.wait()
    with pytest.raises(UsageError, match="make a new one"):
        first.configure([first.handle(), second.handle()], 0, 2, LONG)


def test_a_forked_child_cannot_use_it(ranks: Ranks) -> None:
    (group,) = ranks.connected(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            group.abort(1)
            group.shutdown()
            group.allreduce([torch.ones(1)])
        except UsageError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert_works(ranks, [group])


def test_the_host_that_is_advertised() -> None:
    group = ProcessGroupGloo(host="::1")
    assert group.handle().startswith("[::1]:")
    group.advertise("some.host")
    assert group.handle().startswith("some.host:")
    with pytest.raises(UsageError, match="empty"):
        group.advertise("")
    group.shutdown()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_nccl_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="ProcessGroupGloo on CPUs"):
        ProcessGroupNCCL()


LEAVES_IN_THE_MIDDLE = """
import threading, torch
from datetime import timedelta
from procguard.adapters.torch_group import ProcessGroupGloo
groups = [ProcessGroupGloo(timedelta(seconds=60)) for _ in range(2)]
handles = [group.handle() for group in groups]
threads = [threading.Thread(target=group.configure, args=(handles, rank, 1, timedelta(seconds=60)))
           for rank, group in enumerate(groups)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
work = groups[0].allreduce([torch.ones(1000)])
{}
print("the end")
"""


@pytest.mark.parametrize("last", ["groups[0].abort(1)", "pass", "groups[1].shutdown()"])
def test_a_process_ends_well_with_an_operation_in_flight(last: str) -> None:
    """In which torch's threads would take the interpreter down with them, or keep it for a minute."""
    program = LEAVES_IN_THE_MIDDLE.format(last)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S - 10,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "the end\n"), ended.stderr
