"""Collectives as the train loop sees them: they end, and they never raise.

An error inside a step is the Manager's to know (``should_commit`` says False), not something that each train
loop has to catch around each gradient. A failed operation leaves the buffers as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

from procguard.client.process_group import Work
from procguard.errors import CollectiveError


class CompletedWork:
    """A collective that need not be done, or cannot be."""

    def __init__(self, value: Any) -> None:
        self._future: Future[Any] = Future()
        self._future.set_result(value)

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def get_future(self) -> Future[Any]:
        return self._future


class ManagedWork:
    """A collective in flight, on whose failure the Manager is told and the buffers are left alone.

    Args:
        finish: applied to the buffers after success, before anyone sees them: the division of an average.
        on_error: told of the failure.
        on_wait: called when a thread begins (True) and ends (False) waiting here.
    """

    def __init__(
        self,
        work: Work,
        value: Any,
        *,
        finish: Callable[[], None],
        on_error: Callable[[Exception], None],
        on_wait: Callable[[bool], None],
    ) -> None:
        self._work = work
        self._value = value
        self._finish = finish
        self._on_error = on_error
        self._on_wait = on_wait
        self._future: Future[Any] = Future()
        work.get_future().add_done_callback(self._completed)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return when the operation has ended: True, whatever became of it, as torchft has it."""
        self._on_wait(True)
        try:
            self._work.wait(timeout)
            self._future.result()
        except CollectiveError as error:
            self._on_error(error)
        finally:
            self._on_wait(False)
        return True

    def get_future(self) -> Future[Any]:
        """A future of the buffers, reduced or, after a failure, as they were."""
        return self._future

    def _completed(self, inner: Future[Any]) -> None:
        error = inner.exception()
        if isinstance(error, Exception):
            self._on_error(error)
        else:
            self._finish()
        self._future.set_result(self._value)


def scaled(buffers: Sequence[Any], divisor: int) -> None:
    """Divide in place; works for arrays and tensors alike."""
    if divisor > 1:
        for buffer in buffers:
            buffer /= divisor  # noqa: PLW2901  # in place


def zeroed(buffers: Sequence[Any]) -> None:
    """Set to zero in place: what a replica contributes whose state is not right yet."""
    for buffer in buffers:
        buffer[...] = 0
