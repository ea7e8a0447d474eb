"""Frees whoever is blocked in a torchft process group when a notice names a member of its quorum.

Gloo's own abort does not: a ``wait()`` that is blocked in it ends at its timeout, and the process group's
destructor waits for that too. So a collective of ``ProcessGroupGloo`` is waited for here, in Python, on two
things at once: its future, or the break. What was abandoned goes on by itself to its end, therefore

- it works on tensors of its own, whose content reaches the caller's only when it has completed in time: a
  gradient is never written to behind the back of the next step;
- what it needs (above all the backend, whose destructor waits for it) is kept until then by a thread of its
own.

Connecting (``reconfigure``) can block likewise, in the store or in Gloo, and is freed likewise. ``send`` and
``recv`` have no future in Gloo; they end by its timeout.

A process group of another kind (NCCL, or one in a process of its own) frees its waiters when it is aborted,
which is all that is done to it here. Only process groups that belong to a Manager are touched, each by
itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from procguard.messages import QuorumId

_log = logging.getLogger(__name__)

T = TypeVar("T")

IN_PLACE = ("allreduce", "allreduce_coalesced", "broadcast")
INTO_OUTPUTS = (
    "allgather",
    "allgather_into_tensor_coalesced",
    "alltoall_base",
    "reduce_scatter",
    "reduce_scatter_tensor_coalesced",
)
"""Both kinds have the tensors that they write to as their first argument."""
WITHOUT_TENSORS = ("barrier",)
WRAPPERS_MAX = 10
_NONE = -1

_connecting = threading.local()
"""``breaker``: the one whose process group this thread is configuring."""


class QuorumBroken(RuntimeError):
    """A member of the quorum has failed, so this collective cannot complete."""


class Breaker:
    """Ends the collectives of one process group, by quorum.

    Args:
        pg: a torchft process group, or another one that a Manager uses; its methods are replaced.
    """

    def __init__(self, pg: Any, gloo: Any) -> None:
        self._pg = pg
        self._innermost: Any = _innermost(pg)
        self._lock = threading.RLock()
        self._current = _NONE
        self._ended = _NONE
        """The last quorum that is over; their ids only grow."""
        self._waits: dict[Future[Any], None] = {}
        self._works: dict[BreakableWork, None] = {}
        pg.reconfigure = partial(self._reconfigure, pg.reconfigure)
        if isinstance(self._innermost, gloo):
            self._innermost._create_pg = partial(self.interruptible, self._innermost._create_pg)
            for name in (*IN_PLACE, *INTO_OUTPUTS, *WITHOUT_TENSORS):
                setattr(pg, name, partial(self._run, name, getattr(pg, name)))

    def abort(self, quorum_id: int) -> None:
        """End the collectives of that quorum, now and in future. From any thread."""
        with self._lock:
            self._ended = max(self._ended, quorum_id)
            if self._current != quorum_id:
                return
            error = self._error()
            backend = getattr(self._innermost, "_pg", None)
            works, waits = list(self._works), list(self._waits)
            self._works.clear()
        for wait in waits:
            with suppress(InvalidStateError):  # it has just ended by itself
                wait.set_exception(error)
        _keep_until_done(backend, [work for work in works if work.abandon(error)])
        with self._lock:
            if self._current == quorum_id:
                self._innermost.abort()  # a wrapper would let go of what it wraps, for good

    def interruptible(self, call: Callable[..., T], *arguments: Any) -> T:
        """What the call returns, or ``QuorumBroken`` as soon as its quorum is; the call then ends alone."""
        done: Future[T] = Future()
        with self._lock:
            self._check()
            self._waits[done] = None
        threading.Thread(
            target=_complete, args=(done, call, *arguments), name="procguard-torchft-connect", daemon=True
        ).start()
        try:
            return done.result()
        finally:
            with self._lock:
                self._waits.pop(done, None)

    def _reconfigure(self, original: Callable[[Any], Any], opts: Any) -> Any:
        with self._lock:
            self._current = opts.uuid
            self._check()
        _connecting.breaker = self
        try:
            return original(opts)
        finally:
            _connecting.breaker = None

    def _check(self) -> None:
        if _NONE != self._current <= self._ended:
            raise self._error()

    def _error(self) -> QuorumBroken:
        return QuorumBroken(f"a member of quorum {QuorumId.of_packed(self._current)} has failed")

    def _run(self, name: str, original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Start a collective; its work can be broken."""
        tensors = () if name in WITHOUT_TENSORS else arguments[:1]
        if not _are_ours(tensors):
            return original(*arguments, **named)
        private = tree_map_only(torch.Tensor, _twin if name in IN_PLACE else torch.empty_like, tensors)
        work = BreakableWork(tensors, private, self._finished)
        with self._lock:
            self._check()
            self._works[work] = None
        try:
            work.follow(original(*private, *arguments[len(tensors) :], **named))
        except BaseException:
            self._finished(work)
            work.inner_done.set()  # there is nothing to wait for
            raise
        return work

    def _finished(self, work: BreakableWork) -> None:
        with self._lock:
            self._works.pop(work, None)


class BreakableWork(dist._Work):  # type: ignore[misc, name-defined]
    """A collective that can be abandoned.

    Args:
        outputs: the caller's tensors.
        private: those that the collective works on.
        finished: told once it is over, unless it was abandoned.
    """

    def __init__(self, outputs: Any, private: Any, finished: Callable[[BreakableWork], None]) -> None:
        super().__init__()
        self._outputs = outputs
        self._private = private
        self._finished = finished
        self._lock = threading.Lock()
        self._over = False
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._future: torch.futures.Future[Any] = torch.futures.Future()
        self.inner: Any = None
        self.inner_done = threading.Event()

    def follow(self, inner: Any) -> None:
        """This is the collective."""
        self.inner = inner
        inner.get_future().add_done_callback(self._inner_done)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return when it has completed. Raises what went wrong, or ``TimeoutError``."""
        limit_s = timeout.total_seconds() if timeout is not None else None
        if not self._ended.wait(limit_s or None):  # 0 is torch's way to say: as long as it takes
            raise TimeoutError(f"the collective did not complete within {timeout}")
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self) -> bool:
        return self._ended.is_set()

    def is_success(self) -> bool:
        return self._ended.is_set() and self._error is None

    def exception(self) -> Exception | None:
        return self._error

    def synchronize(self) -> None:
        self.wait()

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future

    def result(self) -> list[torch.Tensor]:
        return list(tree_leaves(self._outputs))

    def abandon(self, error: Exception) -> bool:
        """End it for those who wait; False if it has ended. From any thread."""
        return self._end(error)

    def _inner_done(self, future: Any) -> None:
        try:
            future.wait()
        except Exception as error:  # noqa: BLE001  # the backend's; whoever waits hears of it
            self._end(error)
        else:
            self._end(None)
        self._finished(self)
        self.inner_done.set()

    def _end(self, error: Exception | None) -> bool:
        with self._lock:
            if self._over:
                return False
            if error is None:
                error = self._deliver()
            self._over = True
            self._error = error
        if error is None:
            self._future.set_result(self.result())
        else:
            self._future.set_exception(error)  # type: ignore[arg-type]  # torch types it as a result
        self._ended.set()
        return True

    def _deliver(self) -> Exception | None:
        """Let the caller's tensors have what came out of it."""
        try:
            with torch.no_grad():
                tree_map(_copy, self._outputs, self._private)
        except Exception as error:  # noqa: BLE001  # say, the caller resized it; whoever waits hears of it
            return error
        return None


def create_store_client(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """torchft's function of that name, freed by a break while a process group is being configured."""
    breaker = getattr(_connecting, "breaker", None)
    call = partial(original, **named)
    return call(*arguments) if breaker is None else breaker.interruptible(call, *arguments)


def _innermost(pg: Any) -> Any:
    """What torchft's wrappers hold in the end: the one that makes a group of torch's for each quorum."""
    for _ in range(WRAPPERS_MAX):
        inner = getattr(pg, "_pg", None)
        if not hasattr(inner, "_create_pg"):
            return pg
        pg = inner
    return pg


def _are_ours(tensors: Any) -> bool:
    """Tensors on other devices have streams, which a copy at the end would have to keep in order."""
    return all(isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves(tensors))


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _copy(output: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
    return output.detach().copy_(private)


def _complete(done: Future[Any], call: Callable[..., Any], *arguments: Any) -> None:
    try:
        result = call(*arguments)
    except BaseException as error:  # noqa: BLE001  # for whoever waits, if there still is one
        with suppress(InvalidStateError):
            done.set_exception(error)
        return
    with suppress(InvalidStateError):  # abandoned: what was made is let go of, here
        done.set_result(result)


def _keep_until_done(backend: Any, works: list[BreakableWork]) -> None:
    """Hold a backend until the works in it are done, in a thread that has time for its destructor."""
    if not works:
        return

    def keep(kept: list[Any]) -> None:
        for work in works:
            work.inner_done.wait()
        kept.clear()

    _log.info("%d collectives were abandoned; they end by their own timeout, unseen", len(works))
    threading.Thread(target=keep, args=([backend],), name="procguard-torchft-abandoned", daemon=True).start()
