"""The NCCL backend before a stand-in for NCCL and for CUDA: what it asks of them, in which order, and when it
tells of an end. That NCCL itself does as asked only a machine with CUDA devices can show."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'procguard[torch]'")

from procguard.adapters import torch_backends  # noqa: E402
from procguard.adapters.process_group import Place, Task  # noqa: E402
from procguard.adapters.torch_backends import DTYPES, NcclBackend  # noqa: E402
from procguard.adapters.torch_payload import Payload  # noqa: E402
from procguard.adapters.torch_quorum import Quorum  # noqa: E402
from tests.adapters.ranks import DEADLINE_S, until  # noqa: E402

PLACE = Place(7, 0, ("a", "b"))


class Device:
    """A CUDA device with one kernel: it adds what the peer has, once the peer is there."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.has_run = False
        self.refuses: Exception | None = None
        self.abort_error: Exception | None = None

    def library(self) -> Any:
        device = self

        class ProcessGroupNCCL:
            Options = SimpleNamespace

            def __init__(self, store: Any, rank: int, world_size: int, options: Any) -> None:
                device.asked.append(("connect", rank, world_size, options._timeout))

            def eager_connect_single_device(self, where: Any) -> None:
                device.asked.append(("eagerly", str(where)))

            def allreduce(self, tensors: list[Any], options: Any) -> Any:
                if device.refuses is not None:
                    raise device.refuses
                device.flats = tensors
                return SimpleNamespace(wait=lambda: device.asked.append("queued"))

            def abort(self) -> None:
                device.asked.append("abort")
                device.has_run = True  # an aborted kernel is over
                if device.abort_error is not None:
                    raise device.abort_error

        return ProcessGroupNCCL

    def run(self) -> None:
        for flat in self.flats:
            flat.add_(1.0)
        self.has_run = True

    def event(self) -> Any:
        return SimpleNamespace(record=lambda: self.asked.append("record"), query=lambda: self.has_run)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(torch_backends.dist, "ProcessGroupNCCL", device.library(), raising=False)
    cuda = SimpleNamespace(
        device=lambda where: nullcontext(),
        Stream=lambda where: "ours",
        stream=lambda which: nullcontext(device.asked.append(("on", which))),
        Event=device.event,
    )
    monkeypatch.setattr(torch_backends.torch, "cuda", cuda)
    return device


def quorum_on(timeout_s: float = DEADLINE_S) -> Quorum:
    quorum = Quorum(PLACE, timeout_s)
    quorum.adopt(NcclBackend(None, PLACE, timeout_s, torch.device("cuda", 0)))
    return quorum


def begun(quorum: Quorum, *tensors: Any) -> Task:
    payload = Payload(tensors, "sum", device_type="cpu", dtypes=DTYPES, ranks=2)
    task = Task(payload)
    quorum.submit(task)
    return task


def test_the_ranks_connect_before_the_first_collective_and_without_a_watchdog(device: Device) -> None:
    quorum = quorum_on()
    assert device.asked == [("connect", 0, 2, timedelta(days=365)), ("eagerly", "cuda:0")]
    quorum.end(CollectiveAborted("the end", 7))


def test_it_is_done_when_the_kernels_have_run_not_when_they_are_queued(device: Device) -> None:
    quorum, gradient = quorum_on(), torch.ones(3)
    task = begun(quorum, gradient)
    assert device.asked[2:] == [("on", "ours"), "queued", "record"]
    assert not task.future.done()
    device.run()
    task.future.result(DEADLINE_S)
    assert gradient.tolist() == [2.0] * 3
    quorum.end(CollectiveAborted("the end", 7))


def test_an_abort_frees_the_waiter_and_then_ends_the_kernels(device: Device) -> None:
    quorum, gradient = quorum_on(), torch.ones(3)
    task = begun(quorum, gradient)
    quorum.end(CollectiveAborted("a peer is over", 7))
    with pytest.raises(CollectiveAborted, match="a peer is over"):
        task.future.result(0)
    until(lambda: "abort" in device.asked)
    device.run()  # whatever the kernel still does
    assert gradient.tolist() == [1.0] * 3


def test_a_collective_that_takes_too_long_ends_the_quorum(device: Device) -> None:
    expect_the_end(quorum_on(0.01), device, CollectiveTimeout, "took longer than 0.01 s")


def test_one_that_nccl_refuses_does_too(device: Device) -> None:
    device.refuses = RuntimeError("no memory")
    expect_the_end(quorum_on(), device, CollectiveError, "no memory")


def expect_the_end(quorum: Quorum, device: Device, kind: type[Exception], text: str) -> None:
    gradient = torch.ones(3)
    for _ in range(2):
        with pytest.raises(kind, match=text):
            begun(quorum, gradient).future.result(DEADLINE_S)
    until(lambda: "abort" in device.asked)
    assert gradient.tolist() == [1.0] * 3


def test_an_abort_that_fails_harms_nobody(device: Device) -> None:
    device.abort_error = RuntimeError("unhandled cuda error")
    quorum_on().end(CollectiveAborted("the end", 7))
    until(lambda: "abort" in device.asked)
    until(lambda: not [each for each in threading.enumerate() if each.name == "procguard-nccl"])
