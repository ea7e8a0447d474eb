"""A torchft process group that is freed; its backend does what the test says and nothing by itself."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

if find_spec("torch") is None:
    pytest.skip("torch is not installed: pip install procguard[torch]", allow_module_level=True)

import torch

from procguard.adapters.torchft.breaker import Breaker, QuorumBroken, create_store_client

PATIENCE_S = 60


class Inner:
    """A collective in flight; the test completes it."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors
        self.future: torch.futures.Future[Any] = torch.futures.Future()

    def get_future(self) -> torch.futures.Future[Any]:
        return self.future

    def complete(self, value: float) -> None:
        for tensor in self.tensors:
            tensor.fill_(value)
        self.future.set_result(self.tensors)

    def fail(self, error: Exception) -> None:
        self.future.set_exception(error)  # type: ignore[arg-type]


class Backend:
    """Stands where torch's own process group would."""


class Group:
    """Has the shape of torchft's ProcessGroupGloo."""

    def __init__(self) -> None:
        self._pg: Any = None
        self.inner: list[Inner] = []
        self.aborts = 0
        self.connects = threading.Event()
        self.connects.set()
        self.connecting = threading.Event()

    def _create_pg(self, store: str, rank: int) -> object:
        self.connecting.set()
        assert self.connects.wait(PATIENCE_S)
        return Backend()

    def reconfigure(self, opts: Any) -> str:
        self._pg = None
        store = create_store_client(opts.store, "address")
        self._pg = self._create_pg(store, 0)
        return "configured"

    def abort(self) -> None:
        self.aborts += 1
        self._pg = None

    def allreduce(self, tensors: list[torch.Tensor], opts: object) -> Inner:
        return self._start(tensors)

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: object) -> Inner:
        return self._start(outputs[0])

    def barrier(self, opts: object = None) -> Inner:
        return self._start([])

    def _start(self, tensors: list[torch.Tensor]) -> Inner:
        assert self._pg is not None
        self.inner.append(Inner(tensors))
        return self.inner[-1]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: None  # the collectives that no test here uses


def opts(uuid: int, store: Any = lambda address: address) -> SimpleNamespace:
    return SimpleNamespace(uuid=uuid, store=store)


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture
def breaker(group: Group) -> Breaker:
    breaker = Breaker(group, Group)
    group.reconfigure(opts(1))
    return breaker


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_a_collective_that_completes(group: Group, breaker: Breaker) -> None:
    gradient = torch.ones(3)
    work: Any = group.allreduce([gradient], None)
    assert not work.is_completed()
    group.inner[0].complete(5.0)
    assert work.wait() and work.is_success()
    assert gradient.tolist() == [5, 5, 5]
    assert work.get_future().value()[0] is gradient
    assert work.result()[0] is gradient


def test_what_it_works_on_is_its_own_until_it_completes(group: Group, breaker: Breaker) -> None:
    gradient = torch.ones(3)
    group.allreduce([gradient], None)
    group.inner[0].tensors[0].fill_(7.0)
    assert gradient.tolist() == [1, 1, 1]


def test_outputs_in_lists_of_lists(group: Group, breaker: Breaker) -> None:
    gathered = [[torch.zeros(2), torch.zeros(2)]]
    work: Any = group.allgather(gathered, [torch.ones(2)], None)
    group.inner[0].complete(3.0)
    assert work.wait()
    assert [tensor.tolist() for tensor in gathered[0]] == [[3, 3], [3, 3]]


def test_one_without_tensors(group: Group, breaker: Breaker) -> None:
    work: Any = group.barrier()
    group.inner[0].complete(0.0)
    assert work.wait()


def test_its_own_error_is_whoever_waits_told(group: Group, breaker: Breaker) -> None:
    gradient = torch.ones(3)
    work: Any = group.allreduce([gradient], None)
    group.inner[0].fail(RuntimeError("connection reset by peer"))
    with pytest.raises(RuntimeError, match="connection reset"):
        work.wait()
    assert gradient.tolist() == [1, 1, 1]


def test_a_wait_ends_in_time(group: Group, breaker: Breaker) -> None:
    work: Any = group.allreduce([torch.ones(3)], None)
    with pytest.raises(TimeoutError, match=r"did not complete within 0:00:00\.010000"):
        work.wait(timedelta(milliseconds=10))


def test_a_break_frees_who_waits_and_keeps_the_gradient(
    group: Group, breaker: Breaker, pool: ThreadPoolExecutor
) -> None:
    gradient = torch.ones(3)
    work: Any = group.allreduce([gradient], None)
    chained = work.get_future().then(lambda future: future.wait())
    waiting = pool.submit(work.wait)
    breaker.abort(1)
    with pytest.raises(QuorumBroken, match=r"a member of quorum 0\.1 has failed"):
        waiting.result(PATIENCE_S)
    with pytest.raises(RuntimeError, match=r"a member of quorum 0\.1 has failed"):
        chained.wait()
    assert group.aborts == 1
    group.inner[0].complete(9.0)  # the peer has come to life again, a step later
    assert gradient.tolist() == [1, 1, 1]
    assert isinstance(work.exception(), QuorumBroken)


def test_the_backend_is_kept_until_what_was_abandoned_has_ended(group: Group, breaker: Breaker) -> None:
    gone = threading.Event()
    weakref.finalize(group._pg, gone.set)
    group.allreduce([torch.ones(3)], None)
    breaker.abort(1)
    assert group._pg is None and not gone.is_set()
    group.inner[0].complete(0.0)
    assert gone.wait(PATIENCE_S)


def test_nothing_begins_in_a_broken_quorum(group: Group, breaker: Breaker) -> None:
    breaker.abort(1)
    with pytest.raises(QuorumBroken):
        group.allreduce([torch.ones(3)], None)
    group.reconfigure(opts(2))
    work: Any = group.allreduce([torch.ones(3)], None)
    group.inner[-1].complete(1.0)
    assert work.wait()


def test_a_break_touches_no_other_quorum(group: Group, breaker: Breaker) -> None:
    group.reconfigure(opts(2))
    work: Any = group.allreduce([torch.ones(3)], None)
    breaker.abort(1)
    assert group.aborts == 0
    group.inner[0].complete(1.0)
    assert work.wait()


def test_a_quorum_that_is_broken_before_it_is_configured_is_not(group: Group, breaker: Breaker) -> None:
    breaker.abort(2)
    with pytest.raises(QuorumBroken, match=r"quorum 0\.2"):
        group.reconfigure(opts(2))


def test_connecting_is_freed_and_what_comes_of_it_later_is_dropped(
    group: Group, breaker: Breaker, pool: ThreadPoolExecutor
) -> None:
    group.connects.clear()
    group.connecting.clear()
    configuring = pool.submit(group.reconfigure, opts(2))
    assert group.connecting.wait(PATIENCE_S)
    breaker.abort(2)
    with pytest.raises(QuorumBroken):
        configuring.result(PATIENCE_S)
    group.connects.set()
    assert group._pg is None


def test_a_store_that_does_not_answer_is_waited_for_no_longer_than_the_quorum(
    group: Group, breaker: Breaker, pool: ThreadPoolExecutor
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def connect(address: str) -> str:
        asked.set()
        assert answer.wait(PATIENCE_S)
        return address

    configuring = pool.submit(group.reconfigure, opts(2, connect))
    assert asked.wait(PATIENCE_S)
    breaker.abort(2)
    with pytest.raises(QuorumBroken):
        configuring.result(PATIENCE_S)
    answer.set()


def test_what_goes_wrong_in_connecting_is_raised_as_it_is(group: Group, breaker: Breaker) -> None:
    def connect(address: str) -> str:
        raise ConnectionRefusedError(address)

    with pytest.raises(ConnectionRefusedError):
        group.reconfigure(opts(2, connect))
    assert create_store_client(lambda address: address, "elsewhere") == "elsewhere"


def test_a_group_in_wrappers(group: Group) -> None:
    outer: Any = Group()
    outer._pg = group
    outer.reconfigure = group.reconfigure
    outer.allreduce = group.allreduce
    breaker = Breaker(outer, Group)
    outer.reconfigure(opts(1))
    work: Any = outer.allreduce([torch.ones(3)], None)
    breaker.abort(1)
    with pytest.raises(QuorumBroken):
        work.wait()
    assert (group.aborts, outer.aborts, outer._pg) == (1, 0, group)


def test_one_that_cannot_even_begin_holds_nothing_up(group: Group, breaker: Breaker) -> None:
    gone = threading.Event()
    weakref.finalize(group._pg, gone.set)
    group._pg = None  # say, torchft has aborted it itself
    with pytest.raises(AssertionError):
        group.allreduce([torch.ones(3)], None)
    breaker.abort(1)
    assert gone.wait(PATIENCE_S)


def test_another_kind_of_group_is_merely_aborted() -> None:
    other: Any = Group()
    breaker = Breaker(other, int)
    other.reconfigure(opts(1))
    work = other.allreduce([torch.ones(3)], None)
    breaker.abort(1)
    assert isinstance(work, Inner)
    assert other.aborts == 1
