"""Collectives as the train loop sees them: they end in time, and they never raise.

An error inside a step is the Manager's to know (``should_commit`` says False), not something that each train
loop has to catch around each gradient. A failed operation leaves the buffers as they were.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from typing import Any

from procguard.client.process_group import Work
from procguard.client.timeouts import a_timedelta

ShowFuture = Callable[[Future[Any], Any], Any]
"""The same as a future of the kind that the users of a process group know; of what it holds, an example."""


def as_it_is(future: Future[Any], value: Any) -> Any:
    """Of a process group that has no futures of its own."""
    return future


class CompletedWork:
    """A collective that need not be done, or cannot be."""

    def __init__(self, value: Any, show: ShowFuture = as_it_is) -> None:
        self._value = value
        self._show = show

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def get_future(self) -> Any:
        future: Future[Any] = Future()
        future.set_result(self._value)
        return self._show(future, self._value)


class AwaitedFuture(Future[Any]):
    """A future of which it shows that somebody waits for it, and whose wait has an end.

    Args:
        waiting: entered by each thread for as long as it waits here.
        settled: returns once it is settled, however; for a wait that names no timeout.
    """

    def __init__(
        self, waiting: Callable[[], AbstractContextManager[None]], settled: Callable[[], object]
    ) -> None:
        super().__init__()
        self._waiting = waiting
        self._settled = settled

    def result(self, timeout: float | None = None) -> Any:
        if not self.done() and timeout is None:
            self._settled()
        if self.done():
            return super().result()
        with self._waiting():
            return super().result(timeout)


class WrappedFuture:
    """Something of the user's own that a step waits for: a future that never fails.

    Args:
        inner: the user's, of ``concurrent.futures`` or of ``torch.futures``.
        default: stands for its result where it fails, or takes too long.
        timeout: of a wait that names none.
        on_error: told of the failure.
        waiting: entered by each thread for as long as it waits here.
    """

    def __init__(
        self,
        inner: Any,
        default: Any,
        *,
        timeout: timedelta,
        on_error: Callable[[Exception], None],
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._default = default
        self._timeout = timeout
        self._on_error = on_error
        self._waiting = waiting
        self._future = AwaitedFuture(waiting, self.wait)
        inner.add_done_callback(self._completed)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return when the future is settled: True, whatever became of it."""
        limit = self._timeout if timeout is None else a_timedelta("timeout", timeout)
        with self._waiting():
            try:
                Future.result(self._future, limit.total_seconds())
            except concurrent.futures.TimeoutError:  # of Python 3.10 not the built-in one
                self._give_up(
                    TimeoutError(f"a wrapped future has no result after {limit.total_seconds():g} s")
                )
        return True

    def get_future(self) -> Future[Any]:
        """Of the user's result, or the default."""
        return self._future

    def _completed(self, inner: Any) -> None:
        try:
            result = inner.result() if hasattr(inner, "result") else inner.value()  # torch's word for it
        except Exception as error:  # noqa: BLE001  # whatever the user's work raises; the step hears of it
            self._give_up(error)
        else:
            _settle(self._future, result)

    def _give_up(self, error: Exception) -> None:
        if not self._future.done():
            self._on_error(error)
            _settle(self._future, self._default)


class ManagedWork:
    """A collective in flight, on whose failure the Manager is told and the buffers are left alone.

    Args:
        timeout: of a wait that names none.
        finish: applied to the buffers after success, before anyone sees them: the division of an average.
        on_error: told of the failure.
        waiting: entered by each thread for as long as it waits here.
        show: gives out the future.
    """

    def __init__(
        self,
        work: Work,
        value: Any,
        *,
        timeout: timedelta,
        finish: Callable[[], None],
        on_error: Callable[[Exception], None],
        waiting: Callable[[], AbstractContextManager[None]],
        show: ShowFuture = as_it_is,
    ) -> None:
        self._work = work
        self._show = show
        self._value = value
        self._timeout = timeout
        self._finish = finish
        self._on_error = on_error
        self._waiting = waiting
        self._future = AwaitedFuture(waiting, self.wait)
        work.get_future().add_done_callback(self._completed)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return when the operation has ended: True, whatever became of it, as torchft has it."""
        limit = self._timeout if timeout is None else a_timedelta("timeout", timeout)
        with self._waiting():
            try:
                self._work.wait(limit)
                Future.result(self._future)
            except Exception as error:  # noqa: BLE001  # the backend's; the step fails, and the Manager says why
                self._on_error(error)
                _settle(self._future, self._value)
        return True

    def get_future(self) -> Any:
        """A future of the buffers, reduced or, after a failure, as they were. Who waits for its ``result``
        waits in the collective, and is not taken for a trainer that computes."""
        return self._show(self._future, self._value)

    def _completed(self, inner: Future[Any]) -> None:
        try:
            inner.result()
            self._finish()
        except Exception as error:  # noqa: BLE001  # the operation's, or of buffers that cannot be divided
            self._on_error(error)
        _settle(self._future, self._value)


def _settle(future: Future[Any], value: Any) -> None:
    """Give it its result, unless it has one: a late completion and a timeout may meet."""
    with suppress(InvalidStateError):
        future.set_result(value)


def scaled(buffers: Sequence[Any], divisor: int) -> None:
    """Divide in place, integers rounded down; works for arrays and tensors alike."""
    if divisor == 1:
        return
    for buffer in buffers:
        try:
            buffer /= divisor  # noqa: PLW2901  # in place
        except (TypeError, RuntimeError):  # integers: in numpy's words, and in torch's
            buffer //= divisor  # noqa: PLW2901


def changeable(buffer: Any) -> Any:
    """The same memory; of a tensor that autograd watches, as one that may be changed in place."""
    return buffer.detach() if hasattr(buffer, "detach") else buffer


def op_name(op: Any) -> Any:
    """``avg`` of ``"avg"`` and of torch's ``ReduceOp.AVG``; what is neither, as it is."""
    name = op if isinstance(op, str) else getattr(op, "name", None)
    return name.lower() if isinstance(name, str) else op


def zeroed(buffers: Sequence[Any]) -> None:
    """Set to zero in place: what a replica contributes whose state is not right yet."""
    for buffer in buffers:
        buffer[...] = 0
