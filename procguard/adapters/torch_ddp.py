"""``DistributedDataParallel``: gradients averaged over all replicas, bucket by bucket, during ``backward``.

With hooks of our own on the gradients, not torch's DDP and its communication hook: that one wants a working
process group for its first collectives, and changes its buckets after the first step, when a replica that
heals later still has the first ones. Here the buckets follow from the parameters alone. They are reduced in
one order on all replicas, whatever order the gradients come in: bucket 1 waits for bucket 0.

Nothing is raised into autograd that a peer can cause: what fails is reported to the Manager, the gradients
stay as they were, and ``should_commit`` says False.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from procguard.errors import UsageError

BUCKET_CAP_MB = 25.0
"""As in torch: large enough that a reduction's start does not count, small enough that the first one starts
while most of the backward pass is still to come."""
MEBIBYTE = 1 << 20


class Reduces(Protocol):
    """Of the Manager, what is needed here."""

    def allreduce(self, buffers: Any, op: Any = "avg") -> Any: ...

    def report_error(self, error: Exception) -> None: ...


class DistributedDataParallel(nn.Module):
    """Wraps a model: after ``backward`` its gradients are the average over all replicas that contribute.

    Start each step with ``Manager.start_quorum``, or ``zero_grad`` of ProcGuard's ``Optimizer``, before
    ``backward``. All replicas need the same model. A parameter that a backward pass did not reach counts as
    a gradient of zeros. Buffers, such as the statistics of a batch norm, are each replica's own; healing
    carries them over.

    Args:
        manager: the ``Manager`` of this replica.
        module: the model, whole, on this replica's device.
        bucket_cap_mb: size of what is reduced at once, in MiB.

    Raises:
        UsageError: there is nothing to train in it.
    """

    def __init__(self, manager: Reduces, module: nn.Module, bucket_cap_mb: float = BUCKET_CAP_MB) -> None:
        super().__init__()
        if not bucket_cap_mb > 0:
            raise UsageError(f"bucket_cap_mb is {bucket_cap_mb!r}; give a size in MiB above 0")
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise UsageError(f"{type(module).__name__} has no parameter that requires a gradient")
        self.module = module
        self._manager = manager
        self._buckets = _buckets(parameters, bucket_cap_mb * MEBIBYTE)
        self._reduction: _Reduction | None = None
        self._is_synchronizing = True
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(self._ready, number))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own."""
        self._reduction = None  # of a backward pass that never came to its end
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it gradients are only accumulated; the first ``backward`` after it reduces their sum."""
        before, self._is_synchronizing = self._is_synchronizing, False
        try:
            yield
        finally:
            self._is_synchronizing = before

    def _ready(self, bucket: int, parameter: torch.Tensor) -> None:
        """A gradient is complete."""
        if not self._is_synchronizing:
            return
        if self._reduction is None:
            self._reduction = _Reduction(self._manager, self._buckets)
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._reduction.ready(bucket)

    def _finish(self) -> None:
        """The backward pass is over: the gradients have to be the averages when it returns."""
        reduction, self._reduction = self._reduction, None
        if reduction is not None:
            reduction.finish()


class _Reduction:
    """The buckets of one backward pass."""

    def __init__(self, manager: Reduces, buckets: list[list[torch.Tensor]]) -> None:
        self._manager = manager
        self._buckets = buckets
        self._missing = [len(bucket) for bucket in buckets]
        self._begun = 0
        self._works: list[Any] = []

    def ready(self, bucket: int) -> None:
        """One more gradient of this bucket is there."""
        self._missing[bucket] -= 1
        while self._begun < len(self._buckets) and self._missing[self._begun] <= 0:
            self._begin()

    def finish(self) -> None:
        """Reduce what has not been, and wait for all of it."""
        while self._begun < len(self._buckets):
            self._begin()
        for work in self._works:
            work.wait()

    def _begin(self) -> None:
        bucket = self._buckets[self._begun]
        self._begun += 1
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        try:
            self._works.append(self._manager.allreduce([parameter.grad for parameter in bucket]))
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001  # no quorum, a lost rank: should_commit raises it again
            self._manager.report_error(error)


def _buckets(parameters: list[torch.Tensor], cap_bytes: float) -> list[list[torch.Tensor]]:
    """In the order in which gradients come: the last layer's first."""
    buckets: list[list[torch.Tensor]] = []
    free_bytes = 0.0
    for parameter in reversed(parameters):
        size_bytes = parameter.numel() * parameter.element_size()
        if not buckets or size_bytes > free_bytes:
            buckets.append([])
            free_bytes = cap_bytes
        buckets[-1].append(parameter)
        free_bytes -= size_bytes
    return buckets
