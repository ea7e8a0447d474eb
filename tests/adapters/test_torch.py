"""What a train loop of torch sees: a Manager whose futures are torch's, the wrapped model and optimizer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from procguard.client.replica import Replica, Rules, WorldSizeMode
from procguard.errors import QuorumTimeout, UsageError
from procguard.messages import Rank
from tests.client.fakes import DEADLINE_S, FakeCheckpoints, FakeMembership, participant, quorum

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'procguard[torch]'")

from torch.distributed import ReduceOp  # noqa: E402

from procguard.adapters.torch import (  # noqa: E402
    DistributedDataParallel,
    DistributedSampler,
    Optimizer,
    OptimizerWrapper,
    ProcessGroupGloo,
)

LONG = timedelta(seconds=60)
RULES = Rules(1, True, WorldSizeMode.DYNAMIC, False, LONG, LONG, 0, None)


class World:
    """Replicas of one process over Gloo, in one quorum that a test gives them."""

    def __init__(self, count: int) -> None:
        self.groups = [ProcessGroupGloo(LONG) for _ in range(count)]
        self.names = [chr(ord("a") + rank) for rank in range(count)]
        self.memberships = [FakeMembership(name) for name in self.names]
        self.replicas = [
            Replica(
                RULES,
                name,
                "127.0.0.1",
                group,
                FakeCheckpoints(),
                lambda state: None,
                lambda: {},
                lambda hears, membership=membership: membership,
            )
            for name, group, membership in zip(self.names, self.groups, self.memberships, strict=True)
        ]
        self._rounds = 0

    def gather(self) -> None:
        """The next step has all of them in a quorum."""
        self._rounds += 1
        members = [
            participant(
                replica.replica_id(), step=replica.current_step(), ranks=(Rank(group.handle(), "checkpoint"),)
            )
            for replica, group in zip(self.replicas, self.groups, strict=True)
        ]
        for membership in self.memberships:
            membership.answer(quorum(self._rounds, *members))

    def all_do(self, call: Callable[[int, Replica], Any]) -> list[Any]:
        """What each replica's train loop returned, all at once."""
        with ThreadPoolExecutor(len(self.replicas)) as threads:
            return [*threads.map(call, range(len(self.replicas)), self.replicas, timeout=DEADLINE_S)]

    def close(self) -> None:
        for replica in self.replicas:
            replica.shutdown()


@pytest.fixture
def world() -> Iterator[World]:
    world = World(2)
    yield world
    world.close()


# --- the Manager, on tensors ---


def test_works_give_out_futures_of_torch(world: World) -> None:
    def step(rank: int, replica: Replica) -> Any:
        replica.start_quorum()
        mine = torch.full((2,), float(rank))
        future = replica.allreduce(mine, ReduceOp.AVG).get_future()
        assert isinstance(future, torch.futures.Future)
        doubled = future.then(lambda done: done.value() * 2)
        (gathered,) = torch.futures.collect_all([doubled]).wait()
        assert future.wait() is mine
        return gathered.value().tolist(), mine.tolist(), replica.should_commit()

    world.gather()
    assert world.all_do(step) == [([1.0, 1.0], [0.5, 0.5], True)] * 2


def test_ops_by_torchs_names_and_a_parameter_that_autograd_watches(world: World) -> None:
    def step(rank: int, replica: Replica) -> Any:
        replica.start_quorum()
        weight = torch.nn.Parameter(torch.full((2,), float(rank)))
        counts = torch.tensor([rank, 10])
        works = [replica.allreduce([weight], ReduceOp.MAX), replica.allreduce(counts, "sum")]
        assert all(work.wait() for work in works)
        return weight.detach().tolist(), counts.tolist(), replica.should_commit()

    world.gather()
    assert world.all_do(step) == [([1.0, 1.0], [1, 20], True)] * 2


def test_a_failure_is_reported_and_the_future_holds_the_tensor_as_it_was(world: World) -> None:
    world.gather()
    world.all_do(lambda rank, replica: (replica.start_quorum(), replica.wait_quorum()))
    survivor = world.replicas[0]
    mine = torch.ones(2)
    work = survivor.allreduce(mine)
    world.groups[1].shutdown()
    assert work.wait() and work.get_future().wait() is mine
    assert mine.tolist() == [1, 1] and survivor.errored() is not None
    later = survivor.allreduce(mine).get_future()
    assert isinstance(later, torch.futures.Future) and later.wait() is mine
    assert not survivor.should_commit()


def test_wrap_future_speaks_both_kinds(world: World) -> None:
    world.gather()
    world.all_do(lambda rank, replica: (replica.start_quorum(), replica.wait_quorum()))
    replica = world.replicas[0]
    good: Any = torch.futures.Future()
    wrapped = replica.wrap_future(good, torch.zeros(1))
    assert isinstance(wrapped, torch.futures.Future)
    good.set_result(torch.ones(1))
    assert wrapped.wait().item() == 1
    plain: Future[int] = Future()
    assert isinstance(replica.wrap_future(plain, 3), Future)
    plain.set_result(4)
    assert replica.errored() is None
    bad: Any = torch.futures.Future()
    defaulted = replica.wrap_future(bad, "the default")
    bad.set_exception(ValueError("of the user"))
    assert defaulted.wait() == "the default"
    assert "of the user" in str(replica.errored())
    assert not replica.should_commit()


# --- DistributedDataParallel ---


def a_model() -> Any:
    torch.manual_seed(7)
    return torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)])


def images(rank: int) -> Any:
    return torch.full((2, 4), float(rank + 1))


def expected_gradients() -> list[Any]:
    """Over both replicas' images at once, which is what their average has to be."""
    model = a_model()
    model(torch.cat([images(0), images(1)])).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("bucket_cap_mb", [25, 1e-5])
def test_gradients_are_the_average_in_one_bucket_or_in_many(world: World, bucket_cap_mb: float) -> None:
    models = [a_model() for _ in world.replicas]

    def step(rank: int, replica: Replica) -> Any:
        model = models[rank]
        parallel = DistributedDataParallel(replica, model, bucket_cap_mb)
        replica.start_quorum()
        parallel(images(rank)).square().mean().backward()
        assert replica.should_commit()
        return [parameter.grad for parameter in model.parameters()]

    world.gather()
    for gradients in world.all_do(step):
        for mine, wanted in zip(gradients, expected_gradients(), strict=True):
            torch.testing.assert_close(mine, wanted)


class Recorder:
    """A Manager that only notes what it is asked to reduce, and when."""

    def __init__(self) -> None:
        self.reduced: list[list[Any]] = []
        self.errors: list[Exception] = []
        self.refuses: Exception | None = None

    def allreduce(self, buffers: Any, op: Any = "avg") -> Any:
        if self.refuses is not None:
            raise self.refuses
        self.reduced.append(buffers)
        return self

    def wait(self) -> bool:
        return True

    def report_error(self, error: Exception) -> None:
        self.errors.append(error)


def test_the_last_layers_bucket_goes_while_the_first_layers_gradients_are_still_to_come() -> None:
    manager, model, seen = Recorder(), a_model(), []
    parallel = DistributedDataParallel(manager, model, bucket_cap_mb=1e-5)
    model[0].weight.register_hook(lambda gradient: seen.append(len(manager.reduced)))
    parallel(images(0)).sum().backward()
    assert 0 < seen[0] < len(manager.reduced) == 6


def test_a_parameter_that_was_not_reached_counts_as_zeros_and_in_its_turn() -> None:
    manager, model = Recorder(), torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False) for _ in range(3)])
    parallel = DistributedDataParallel(manager, model, bucket_cap_mb=1e-5)
    parallel.forward = lambda x: model[0](model[1](x))
    parallel(torch.ones(1, 2)).sum().backward()
    for (gradient,), layer in zip(manager.reduced, reversed(model), strict=True):
        assert gradient is layer.weight.grad
    assert manager.reduced[0][0].abs().sum() == 0 < manager.reduced[1][0].abs().sum()


def test_what_fails_is_reported_and_not_raised_into_autograd() -> None:
    manager, model = Recorder(), a_model()
    parallel = DistributedDataParallel(manager, model)
    manager.refuses = QuorumTimeout("nobody came")
    parallel(images(0)).sum().backward()
    assert manager.errors == [manager.refuses]
    manager.refuses = UsageError("allreduce needs a quorum")
    with pytest.raises(UsageError, match="needs a quorum"):
        parallel(images(0)).sum().backward()
    manager.refuses = None
    parallel(images(0)).sum().backward()  # what was left of the pass that failed is forgotten
    assert len(manager.reduced) == 1


def test_no_sync_accumulates() -> None:
    manager, model = Recorder(), a_model()
    parallel = DistributedDataParallel(manager, model)
    with parallel.no_sync():
        parallel(images(0)).sum().backward()
    assert manager.reduced == []
    once = model[2].weight.grad.clone()
    parallel(images(0)).sum().backward()
    assert len(manager.reduced) == 1
    torch.testing.assert_close(model[2].weight.grad, 2 * once)


def test_what_cannot_be_wrapped() -> None:
    with pytest.raises(UsageError, match="ReLU has no parameter"):
        DistributedDataParallel(Recorder(), torch.nn.ReLU())
    with pytest.raises(UsageError, match="bucket_cap_mb is 0"):
        DistributedDataParallel(Recorder(), a_model(), 0)


# --- Optimizer ---


class Committee:
    """A Manager that only says whether a step counts."""

    def __init__(self, *verdicts: bool) -> None:
        self.verdicts = list(verdicts)
        self.begun = 0

    def start_quorum(self) -> None:
        self.begun += 1

    def should_commit(self) -> bool:
        return self.verdicts.pop(0)


def test_the_optimizer_begins_and_ends_the_step() -> None:
    manager, weight = Committee(False, True), torch.nn.Parameter(torch.zeros(1))
    optimizer = Optimizer(manager, torch.optim.SGD([weight], lr=1.0, momentum=0.5))
    values = []
    for _ in range(2):
        optimizer.zero_grad()
        assert weight.grad is None
        weight.sum().backward()
        optimizer.step()
        values.append(weight.item())
    assert values == [0, -1] and manager.begun == 2
    with pytest.raises(UsageError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_the_optimizer_is_one_of_torchs() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    inner = torch.optim.SGD([weight], lr=1.0)
    optimizer = OptimizerWrapper(Committee(True, True), inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
        scheduler.step()
    assert weight.item() == -1.5 and inner.param_groups[0]["lr"] == 0.25
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    assert len(inner.param_groups) == len(optimizer.param_groups) == 2
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.defaults is inner.defaults and "SGD" in repr(optimizer)


# --- DistributedSampler ---


def test_shares_are_apart_and_together_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(replica_rank: int, group_rank: int) -> list[int]:
        sampler = DistributedSampler(range(12), replica_rank, 3, group_rank, 2, shuffle=True, seed=3)
        assert sampler.global_world_size == 6
        return list(sampler)

    shares = [share(replica_rank, group_rank) for replica_rank in range(3) for group_rank in range(2)]
    assert sorted(number for share in shares for number in share) == list(range(12))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert DistributedSampler(range(12), 2, 3).global_rank == 5
    wrong = {"replica_rank 3 of num_replica_groups 3": (3, 3, 0, 1), "group_rank 2 of": (0, 3, 2, 2)}
    for words, arguments in wrong.items():
        with pytest.raises(UsageError, match=words):
            DistributedSampler(range(12), *arguments)


def test_without_torch_the_remedy_is_said(tmp_path: Path) -> None:
    """As a machine without it would say it."""
    program = "import sys; sys.modules['torch'] = None; import procguard.adapters.torch"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert ended.returncode == 1
    assert "pip install 'procguard[torch]'" in ended.stderr
