"""Gloo and NCCL as ``torch_quorum`` uses them: begin an all-reduce, have its end told.

Nothing here waits inside torch for an operation to end; ``torch_watch`` says why, and does the waiting.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from procguard.adapters.process_group import Place
from procguard.adapters.torch_payload import Payload
from procguard.adapters.torch_quorum import first_line
from procguard.adapters.torch_watch import Ended, Operation, Watcher
from procguard.errors import CollectiveTimeout

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
)
"""That Gloo and NCCL can both sum."""
WATCHDOG_DELAY = timedelta(days=365)
"""Before torch's own watchdog finds that an operation takes too long; here a timeout ends a quorum."""


class GlooBackend:
    """Gloo among CPUs. Its ``abort`` frees nothing: an operation whose peer is silent ends at its timeout."""

    def __init__(self, store: dist.Store, place: Place, timeout_s: float, host: str) -> None:
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        options._devices = [_gloo_device(host)]
        self._place = place
        self._timeout_s = timeout_s
        self._gloo = dist.ProcessGroupGloo(store, place.rank, place.world_size, options)
        self._watcher = Watcher("procguard-gloo")

    def allreduce(self, payload: Payload, ended: Ended) -> None:
        works = [self._gloo.allreduce([flat], _options(payload.op)) for flat in payload.flats]
        futures = [work.get_future() for work in works]
        problem = partial(_gloo_problem, futures, self._place, self._timeout_s)
        has_ended = partial(_all_done, payload.flats, futures)
        self._watcher.add(Operation(has_ended, problem, ended))

    def close(self) -> None:
        self._watcher.close(self._abort)

    def _abort(self) -> None:
        """There is no way to end it; this method only holds the backend until it has ended."""


class NcclBackend:
    """NCCL among CUDA devices, each rank with the current one. ``abort`` ends kernels that are running."""

    def __init__(self, store: dist.Store, place: Place, timeout_s: float, device: torch.device) -> None:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # else its watchdog ends the process
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = WATCHDOG_DELAY
        self._place = place
        self._timeout_s = timeout_s
        self._device = device
        with torch.cuda.device(device):
            self._nccl = dist.ProcessGroupNCCL(store, place.rank, place.world_size, options)
            self._nccl.eager_connect_single_device(device)  # here, where nobody waits for a lock meanwhile
            self._stream = torch.cuda.Stream(device)
        self._watcher = Watcher("procguard-nccl")

    def allreduce(self, payload: Payload, ended: Ended) -> None:
        with torch.cuda.device(self._device):
            works = [self._nccl.allreduce([flat], _options(payload.op)) for flat in payload.flats]
            with torch.cuda.stream(self._stream):
                for work in works:
                    work.wait()  # queues a wait on our stream, does not block
                event = torch.cuda.Event()
                event.record()
        has_ended = partial(_has_run, payload.flats, event, time.monotonic() + self._timeout_s)
        self._watcher.add(
            Operation(has_ended, partial(_nccl_problem, event, self._place, self._timeout_s), ended)
        )

    def close(self) -> None:
        self._watcher.close(self._nccl.abort)


def _all_done(flats: Sequence[torch.Tensor], futures: Sequence[torch.futures.Future[Any]]) -> bool:
    """Keeps the tensors, too, until then: torch would otherwise free them on a thread of its own."""
    return all(future.done() for future in futures)


def _gloo_problem(
    futures: Sequence[torch.futures.Future[Any]], place: Place, timeout_s: float
) -> Exception | None:
    """What they failed with, if they did."""
    for future in futures:
        try:
            future.value()
        except Exception as error:  # noqa: BLE001  # Gloo's; the quorum ends with it
            if "Timed out" in str(error):
                return _too_long(place, timeout_s)
            return RuntimeError(first_line(error))
    return None


def _has_run(flats: Sequence[torch.Tensor], event: torch.cuda.Event, deadline: float) -> bool:
    """Whether the kernels have, or their time is over; keeps their tensors until then."""
    return bool(event.query()) or time.monotonic() > deadline


def _nccl_problem(event: torch.cuda.Event, place: Place, timeout_s: float) -> Exception | None:
    return None if event.query() else _too_long(place, timeout_s)


def _too_long(place: Place, timeout_s: float) -> CollectiveTimeout:
    return CollectiveTimeout(f"allreduce of {place} took longer than {timeout_s:g} s", place.quorum_id)


def _options(op: Any) -> dist.AllreduceOptions:
    options = dist.AllreduceOptions()
    options.reduceOp = op
    return options


def _gloo_device(host: str) -> Any:
    """The network card at which the peers reach this machine, unless GLOO_SOCKET_IFNAME names another."""
    if not os.environ.get("GLOO_SOCKET_IFNAME"):
        with suppress(RuntimeError):  # a name that only the others know, as behind NAT
            return dist.ProcessGroupGloo.create_device(hostname=host)
    return dist.ProcessGroupGloo.create_default_device()
