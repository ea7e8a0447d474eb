"""Collectives as the train loop sees them: they end, and they never raise.

An error inside a step is the Manager's to know (``should_commit`` says False), not something that each train
loop has to catch around each gradient. A failed operation leaves the buffers as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from procguard.client.process_group import Work


class CompletedWork:
    """A collective that need not be done, or cannot be."""

    def __init__(self, value: Any) -> None:
        self._future: Future[Any] = Future()
        self._future.set_result(value)

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def get_future(self) -> Future[Any]:
        return self._future


class AwaitedFuture(Future[Any]):
    """A future of which it shows that somebody waits for it.

    Args:
        waiting: entered by each thread for as long as it waits here.
    """

    def __init__(self, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._waiting = waiting

    def result(self, timeout: float | None = None) -> Any:
        if self.done():
            return super().result()
        with self._waiting():
            return super().result(timeout)


class ManagedWork:
    """A collective in flight, on whose failure the Manager is told and the buffers are left alone.

    Args:
        finish: applied to the buffers after success, before anyone sees them: the division of an average.
        on_error: told of the failure.
        waiting: entered by each thread for as long as it waits here.
    """

    def __init__(
        self,
        work: Work,
        value: Any,
        *,
        finish: Callable[[], None],
        on_error: Callable[[Exception], None],
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._work = work
        self._value = value
        self._finish = finish
        self._on_error = on_error
        self._waiting = waiting
        self._future = AwaitedFuture(waiting)
        work.get_future().add_done_callback(self._completed)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return when the operation has ended: True, whatever became of it, as torchft has it."""
        with self._waiting():
            try:
                self._work.wait(timeout)
                self._future.result()
            except Exception as error:  # noqa: BLE001  # the backend's; the step fails, and the Manager says why
                self._on_error(error)
        return True

    def get_future(self) -> Future[Any]:
        """A future of the buffers, reduced or, after a failure, as they were. Who waits for its ``result``
        waits in the collective, and is not taken for a trainer that computes."""
        return self._future

    def _completed(self, inner: Future[Any]) -> None:
        try:
            inner.result()
            self._finish()
        except Exception as error:  # noqa: BLE001  # the operation's, or of buffers that cannot be divided
            self._on_error(error)
        self._future.set_result(self._value)


def scaled(buffers: Sequence[Any], divisor: int) -> None:
    """Divide in place, integers rounded down; works for arrays and tensors alike."""
    if divisor == 1:
        return
    for buffer in buffers:
        try:
            buffer /= divisor  # noqa: PLW2901  # in place
        except (TypeError, RuntimeError):  # integers: in numpy's words, and in torch's
            buffer //= divisor  # noqa: PLW2901


def zeroed(buffers: Sequence[Any]) -> None:
    """Set to zero in place: what a replica contributes whose state is not right yet."""
    for buffer in buffers:
        buffer[...] = 0
