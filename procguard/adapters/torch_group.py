"""``ProcessGroupGloo`` and ``ProcessGroupNCCL``: all-reduce of torch tensors that any thread can abort.

They satisfy ``procguard.client.process_group.ProcessGroup`` without importing it: configured anew for each
quorum, an ``abort`` that frees a blocked ``configure`` or ``TorchWork.wait`` at once, tensors that an
operation which was given up never touches.

This file is what callers see, ``process_group`` what it shares with the ring. ``torch_quorum`` holds the rule
that makes the above true, ``torch_store`` brings the ranks together, ``torch_backends`` speaks with Gloo and
NCCL, ``torch_watch`` hears of their operations' end, ``torch_payload`` holds what is reduced.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from procguard.adapters.process_group import FencedGroup, GroupWork, Place, Task, check_place, seconds
from procguard.adapters.torch_backends import DTYPES, GlooBackend, NcclBackend
from procguard.adapters.torch_futures import torch_future
from procguard.adapters.torch_payload import Payload
from procguard.adapters.torch_quorum import Backend, Quorum, first_line
from procguard.adapters.torch_store import Endpoint, gather, read_handle
from procguard.adapters.torch_watch import exit_of_interpreter
from procguard.errors import CollectiveError, UsageError

GATHER_SHARE = 0.95  # of the timeout, for the ranks to come together: who is missing is then said in time

TorchWork = GroupWork[Quorum]
"""An all-reduce in flight."""


class TorchProcessGroup(FencedGroup[Quorum]):
    """What Gloo and NCCL have in common.

    ``timeout`` bounds each collective, None: as ``configure`` is bounded, so that a Manager's own ``timeout``
    holds for both; ``host`` is the name or address at which the peers reach this machine (see ``advertise``).
    Quorum ids grow, and each is configured once. In a forked child the group is inert.
    """

    def __init__(self, timeout: timedelta | None = None, host: str | None = None) -> None:
        super().__init__(timeout, host)
        self._endpoint = Endpoint()
        self._at_exit = partial(_shut_down, weakref.ref(self))
        exit_of_interpreter.call(self._at_exit)

    # --- what Gloo and NCCL do each in its way ------------------------------------------------------

    @abstractmethod
    def _backend(self, store: dist.Store, place: Place, timeout_s: float) -> Backend:
        """Connect the ranks, all of which have come to the store. Blocks."""

    @abstractmethod
    def _payload(self, buffers: Sequence[Any], op: str, ranks: int) -> Payload: ...

    # --- the protocol -------------------------------------------------------------------------------

    def handle(self) -> str:
        """``host:port/token``, for the peers' ``configure``."""
        return self._endpoint.handle(self._host)

    def configure(self, handles: Sequence[str], rank: int, quorum_id: int, timeout: timedelta) -> None:
        """Connect to the peers of a new quorum, ending what is left of the old one.

        Raises ``CollectiveAborted`` if this quorum is aborted, before or meanwhile, or a later one is
        configured; ``CollectiveTimeout`` if a peer does not come in ``timeout``; ``CollectiveError`` if the
        peers cannot be reached.
        """
        check_place(handles, rank, quorum_id, read_handle)
        place, timeout_s = Place(quorum_id, rank, tuple(handles)), seconds(timeout)
        quorum = self._install(place, timeout_s)
        if rank == 0:
            self._endpoint.lead(quorum_id)
        if place.world_size == 1:
            quorum.finish(quorum.forming)
        else:
            form = partial(self._form, quorum, timeout_s * GATHER_SHARE)
            threading.Thread(target=form, name="procguard-torch-configure", daemon=True).start()
        self._await(quorum.forming.future, quorum, "configure", timeout_s)

    def allreduce(self, buffers: Sequence[Any], op: str = "sum") -> TorchWork:
        """Reduce ``buffers`` elementwise over all ranks (sum, avg, max, min), in place on success.

        Returns at once. All ranks make these calls in the same order, with the same shapes and dtypes. The
        tensors are read here and written only on success. Sums are made in the tensors' own dtype, also
        those of ``avg``, which rounds integers down. ``UsageError`` for what cannot be reduced; all else is
        told by the work.
        """
        self._check_not_inherited()
        quorum = self._quorum
        if quorum is None or not quorum.forming.future.done():
            raise UsageError("allreduce before configure(): there is nobody to reduce with yet")
        task = Task(self._payload(buffers, op, quorum.place.world_size))
        quorum.submit(task)
        return TorchWork(self, quorum, task.future)

    def foreign_future(self, future: Future[Any], value: Any) -> torch.futures.Future[Any]:
        """The same as torch's users know it; see ``procguard.client.process_group``."""
        return torch_future(future, value)

    # --- inside -------------------------------------------------------------------------------------

    def _new_quorum(self, place: Place, timeout_s: float) -> Quorum:
        return Quorum(place, timeout_s)

    def _close(self) -> None:
        self._endpoint.close()
        exit_of_interpreter.forget(self._at_exit)

    def _form(self, quorum: Quorum, timeout_s: float) -> None:
        """Connect the ranks of a quorum, on a thread that nobody has to wait for."""
        place = quorum.place
        with exit_of_interpreter.before_it():
            try:
                store = gather(place, timeout_s, lambda: quorum.error is not None)
                quorum.adopt(self._backend(store, place, quorum.timeout_s))
            except CollectiveError as error:
                quorum.end(error)
            except Exception as error:  # noqa: BLE001  # torch's own; the caller of configure is told
                reason = f"the ranks of {place} cannot connect: {first_line(error)}"
                quorum.end(CollectiveError(reason, place.quorum_id))


class ProcessGroupGloo(TorchProcessGroup):
    """All-reduce of tensors in host memory, with Gloo over TCP."""

    def _backend(self, store: dist.Store, place: Place, timeout_s: float) -> Backend:
        return GlooBackend(store, place, timeout_s, self._host)

    def _payload(self, buffers: Sequence[Any], op: str, ranks: int) -> Payload:
        return Payload(buffers, op, device_type="cpu", dtypes=DTYPES, ranks=ranks)


class ProcessGroupNCCL(TorchProcessGroup):
    """All-reduce of tensors on CUDA devices, with NCCL. Each rank uses the device that is current when the
    group is made.

    Raises:
        UsageError: this PyTorch has no NCCL, or there is no CUDA device.
    """

    def __init__(self, timeout: timedelta | None = None, host: str | None = None) -> None:
        if not dist.is_nccl_available() or not torch.cuda.is_available():
            raise UsageError(
                f"ProcessGroupNCCL needs a PyTorch built with NCCL and a CUDA device, and PyTorch "
                f"{torch.__version__} here lacks one; use ProcessGroupGloo on CPUs"
            )
        super().__init__(timeout, host)
        self._device = torch.device("cuda", torch.cuda.current_device())

    def _backend(self, store: dist.Store, place: Place, timeout_s: float) -> Backend:
        return NcclBackend(store, place, timeout_s, self._device)

    def _payload(self, buffers: Sequence[Any], op: str, ranks: int) -> Payload:
        return Payload(buffers, op, device_type="cuda", dtypes=DTYPES, ranks=ranks)


def _shut_down(group: weakref.ref[TorchProcessGroup]) -> None:
    """At the interpreter's end, of a group that nobody has shut down."""
    if (present := group()) is not None:
        present.shutdown()
