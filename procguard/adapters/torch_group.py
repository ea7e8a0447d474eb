"""``ProcessGroupGloo`` and ``ProcessGroupNCCL``: all-reduce of torch tensors that any thread can abort.

They satisfy ``procguard.client.process_group.ProcessGroup`` without importing it: configured anew for each
quorum, an ``abort`` that frees a blocked ``configure`` or ``TorchWork.wait`` at once, tensors that an
operation which was given up never touches.

This file is what callers see. ``torch_quorum`` holds the rule that makes the above true, ``torch_store``
brings the ranks together, ``torch_backends`` speaks with Gloo and NCCL, ``torch_watch`` hears of their
operations' end, ``torch_payload`` holds what is reduced.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from procguard.adapters.torch_backends import DTYPES, GlooBackend, NcclBackend
from procguard.adapters.torch_futures import torch_future
from procguard.adapters.torch_payload import Payload
from procguard.adapters.torch_quorum import Backend, Place, Quorum, Task, first_line
from procguard.adapters.torch_store import Endpoint, gather, read_handle
from procguard.adapters.torch_watch import exit_of_interpreter
from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout, UsageError

ABORTED_COUNT_MAX = 256  # quorums aborted before they were configured
GATHER_SHARE = 0.95  # of the timeout, for the ranks to come together: who is missing is then said in time
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class TorchWork:
    """An all-reduce in flight."""

    def __init__(self, group: TorchProcessGroup, quorum: Quorum, future: Future[Any]) -> None:
        self._group = group
        self._quorum = quorum
        self._future = future  # and not the task, whose copy of the tensors is free once it is done

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Block until the result is in the tensors, and return True; else raise what ended it.

        Longer than ``timeout`` (None: as long as any collective may take) is a ``CollectiveTimeout`` that
        ends the quorum: a rank that has given up one collective is out of step with its peers.
        """
        timeout_s = self._quorum.timeout_s if timeout is None else max(timeout.total_seconds(), 0)
        self._group._await(self._future, self._quorum, "allreduce", timeout_s)
        return True

    def get_future(self) -> Future[list[torch.Tensor]]:
        """A future of the reduced tensors; it fails with the ``CollectiveError``. Its callbacks run on a
        thread of the backend, or on the one that ended the quorum: they must not block."""
        return self._future


class TorchProcessGroup:
    """What Gloo and NCCL have in common.

    ``timeout`` bounds each collective, None: as ``configure`` is bounded, so that a Manager's own ``timeout``
    holds for both; ``host`` is the name or address at which the peers reach this machine (see ``advertise``).
    Quorum ids grow, and each is configured once. In a forked child the group is inert.
    """

    def __init__(self, timeout: timedelta | None = None, host: str | None = None) -> None:
        self._timeout_s = None if timeout is None else _seconds(timeout)
        self.advertise("127.0.0.1" if host is None else host)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._endpoint = Endpoint()
        self._quorum: Quorum | None = None
        self._aborted: set[int] = set()  # only ids above the present quorum's
        self._aborted_up_to = _INT64_MIN - 1
        self._is_shut_down = False
        self._at_exit = partial(_shut_down, weakref.ref(self))
        exit_of_interpreter.call(self._at_exit)

    # --- what Gloo and NCCL do each in its way ------------------------------------------------------

    def _backend(self, store: dist.Store, place: Place, timeout_s: float) -> Backend:
        """Connect the ranks, all of which have come to the store. Blocks."""
        raise NotImplementedError

    def _payload(self, buffers: Sequence[Any], op: str, ranks: int) -> Payload:
        raise NotImplementedError

    # --- the protocol -------------------------------------------------------------------------------

    def handle(self) -> str:
        """``host:port/token``, for the peers' ``configure``."""
        return self._endpoint.handle(self._host)

    def advertise(self, host: str) -> None:
        """Set the host that ``handle()`` names; the first one, 127.0.0.1, reaches this machine only."""
        if not host:
            raise UsageError("the host to advertise is empty; pass a name or address the peers can reach")
        self._host = host.removeprefix("[").removesuffix("]")

    def configure(self, handles: Sequence[str], rank: int, quorum_id: int, timeout: timedelta) -> None:
        """Connect to the peers of a new quorum, ending what is left of the old one.

        Raises ``CollectiveAborted`` if this quorum is aborted, before or meanwhile, or a later one is
        configured; ``CollectiveTimeout`` if a peer does not come in ``timeout``; ``CollectiveError`` if the
        peers cannot be reached.
        """
        place, timeout_s = _place(handles, rank, quorum_id), _seconds(timeout)
        self._check_not_inherited()
        quorum = self._install(place, timeout_s if self._timeout_s is None else self._timeout_s)
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

    def abort(self, quorum_id: int) -> None:
        """End everything of that quorum, now or yet to come, and nothing of any other. From any thread."""
        if self._is_inherited():
            return
        with self._lock:
            quorum = self._quorum
            if quorum is None or quorum_id > quorum.place.quorum_id:
                self._aborted.add(quorum_id)
                if len(self._aborted) > ABORTED_COUNT_MAX:
                    self._aborted_up_to = min(self._aborted)  # whatever is older is over as well
                    self._aborted.remove(self._aborted_up_to)
        if quorum is not None and quorum_id == quorum.place.quorum_id:
            quorum.end(CollectiveAborted(f"{quorum.place} was aborted", quorum_id))

    def errored(self) -> Exception | None:
        """What ended the present quorum, if anything did; None again after the next ``configure``."""
        quorum = self._quorum
        return None if quorum is None else quorum.error

    def shutdown(self) -> None:
        """Abort what is in flight and close the store. Once is enough."""
        if self._is_inherited():
            return
        with self._lock:
            self._is_shut_down = True
            quorum = self._quorum
        if quorum is not None:
            reason = f"{quorum.place} ended: the process group was shut down"
            quorum.end(CollectiveAborted(reason, quorum.place.quorum_id))
        self._endpoint.close()
        exit_of_interpreter.forget(self._at_exit)

    def foreign_future(self, future: Future[Any], value: Any) -> torch.futures.Future[Any]:
        """The same as torch's users know it; see ``procguard.client.process_group``."""
        return torch_future(future, value)

    # --- inside -------------------------------------------------------------------------------------

    def _install(self, place: Place, timeout_s: float) -> Quorum:
        """Make this the present quorum, and end the one before."""
        quorum_id = place.quorum_id
        with self._lock:
            if self._is_shut_down:
                raise UsageError("this process group was shut down; make a new one")
            previous = self._quorum
            if previous is not None and quorum_id <= previous.place.quorum_id:
                raise _not_later(previous, place)
            quorum = self._quorum = Quorum(place, timeout_s)
            is_aborted = quorum_id in self._aborted or quorum_id <= self._aborted_up_to
            self._aborted = {aborted for aborted in self._aborted if aborted > quorum_id}
        if previous is not None:
            reason = f"{previous.place} ended: {place} took its place"
            previous.end(CollectiveAborted(reason, previous.place.quorum_id))
        if is_aborted:
            quorum.end(CollectiveAborted(f"{place} was aborted", quorum_id))
        if place.rank == 0:
            self._endpoint.lead(quorum_id)
        return quorum

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

    def _await(self, future: Future[Any], quorum: Quorum, what: str, timeout_s: float) -> None:
        """Wait for ``future``; when it takes too long, end the quorum."""
        try:
            future.result(timeout_s)
        except (TimeoutError, concurrent.futures.TimeoutError):  # two classes in Python 3.10
            if not future.done():
                reason = f"{what} of {quorum.place} took longer than {timeout_s:g} s"
                quorum.end(CollectiveTimeout(reason, quorum.place.quorum_id))
        future.result()  # the task's own error, or a result that won the race

    def _is_inherited(self) -> bool:
        return os.getpid() != self._pid

    def _check_not_inherited(self) -> None:
        if self._is_inherited():
            raise UsageError("this process group belongs to the parent process; make one after the fork")


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


def _not_later(previous: Quorum, place: Place) -> Exception:
    """Why an id that is not greater than the present one cannot be configured."""
    if place.quorum_id < previous.place.quorum_id:
        return CollectiveAborted(f"{place} is over: {previous.place} took its place", place.quorum_id)
    if previous.error is not None:
        return type(previous.error)(f"{place} has ended: {previous.error}", place.quorum_id)
    return UsageError(f"{place} is configured already; each quorum needs an id of its own")


def _place(handles: Sequence[str], rank: int, quorum_id: int) -> Place:
    if not 0 <= rank < len(handles):
        raise UsageError(f"rank {rank} is not one of {len(handles)} handles; ranks count from 0")
    if not _INT64_MIN <= quorum_id <= _INT64_MAX:
        raise UsageError(f"quorum_id {quorum_id} does not fit into 64 bits; pass the packed quorum id")
    for handle in handles:
        read_handle(handle)
    return Place(quorum_id, rank, tuple(handles))


def _seconds(timeout: timedelta) -> float:
    if timeout <= timedelta(0):
        raise UsageError(f"timeout {timeout} is not positive; use for example timedelta(seconds=60)")
    return timeout.total_seconds()
