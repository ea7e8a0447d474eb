"""Collectives as the train loop sees them: they end, and they never raise."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from enum import Enum
from typing import Any

import numpy as np
import pytest

from procguard.client.work import (
    CompletedWork,
    ManagedWork,
    WrappedFuture,
    changeable,
    op_name,
    scaled,
    zeroed,
)
from procguard.errors import CollectiveAborted, CollectiveTimeout, UsageError

ABORTED = CollectiveAborted("quorum 1 was aborted", 1)
NOTHING_S = timedelta(0)
MINUTE = timedelta(seconds=60)
TimeoutErrors = (TimeoutError, concurrent.futures.TimeoutError)  # two classes in Python 3.10


class PlainWork:
    """A backend's work; ``late`` is raised by a wait for what has not ended."""

    def __init__(self, late: Exception | None = None) -> None:
        self.future: Future[Any] = Future()
        self.timeouts: list[timedelta | None] = []
        self._late = late

    def wait(self, timeout: timedelta | None = None) -> bool:
        self.timeouts.append(timeout)
        if not self.future.done() and self._late is not None:
            raise self._late
        self.future.result(0)
        return True

    def get_future(self) -> Future[Any]:
        return self.future


class Stage:
    """Work under management; ``phase`` counts those who wait, ``finished`` the divisions."""

    def __init__(self, late: Exception | None = None, finish: Callable[[], None] | None = None) -> None:
        self.inner = PlainWork(late)
        self.errors: list[Exception] = []
        self.finished = 0
        self.waiting = 0
        self.waited = 0
        self.work = ManagedWork(
            self.inner,
            "buffers",
            timeout=MINUTE,
            finish=finish or self._finish,
            on_error=self.errors.append,
            waiting=self.wait,
        )

    def _finish(self) -> None:
        assert not self.work.get_future().done(), "nobody sees what is not finished"
        self.finished += 1

    def wait(self) -> AbstractContextManager[None]:
        @contextmanager
        def waiting() -> Iterator[None]:
            self.waiting += 1
            try:
                yield
            finally:
                self.waiting -= 1
                self.waited += 1

        return waiting()


def test_success_is_finished_before_anyone_sees_it() -> None:
    stage = Stage()
    stage.inner.future.set_result("reduced")
    assert stage.work.wait(timedelta(seconds=3))
    assert stage.inner.timeouts == [timedelta(seconds=3)]
    assert stage.work.get_future().result(0) == "buffers"
    assert (stage.finished, stage.waiting, stage.waited) == (1, 0, 1)
    assert stage.errors == []


def test_who_waits_for_the_future_waits_in_the_collective() -> None:
    stage = Stage()
    with pytest.raises(TimeoutErrors):
        stage.work.get_future().result(0)
    assert (stage.waiting, stage.waited) == (0, 1)
    stage.inner.future.set_result("reduced")
    stage.work.get_future().result()
    assert stage.waited == 1, "there is nothing to wait for"


def test_a_failure_is_reported_and_never_raised() -> None:
    stage = Stage()
    stage.inner.future.set_exception(ABORTED)
    assert stage.work.wait()
    assert set(stage.errors) == {ABORTED}
    assert stage.work.get_future().result(0) == "buffers", "as they were"
    assert stage.finished == 0
    assert stage.waiting == 0


@pytest.mark.parametrize("late", [CollectiveTimeout("too long", 1), RuntimeError("of the backend's own")])
def test_a_wait_that_takes_too_long_is_reported_while_the_work_is_still_in_flight(late: Exception) -> None:
    stage = Stage(late)
    assert stage.work.wait(NOTHING_S)
    assert stage.errors == [late]
    assert stage.work.get_future().result() == "buffers", "who waits for the future need not wait longer"
    stage.inner.future.set_exception(ABORTED)  # what the report brings about
    assert stage.work.get_future().result(0) == "buffers"


def test_no_wait_is_without_an_end() -> None:
    stage = Stage(late=CollectiveTimeout("too long", 1))
    assert stage.work.wait()
    assert stage.inner.timeouts == [MINUTE]
    stage = Stage(late=CollectiveTimeout("too long", 1))
    assert stage.work.get_future().result() == "buffers"
    assert stage.inner.timeouts == [MINUTE]


def test_seconds_without_a_unit_are_refused_before_anything_is_shared() -> None:
    stage = Stage()
    with pytest.raises(UsageError, match=r"timeout is 3\.0; give a timedelta"):
        stage.work.wait(3.0)  # type: ignore[arg-type]
    assert stage.errors == []


def test_a_wrapped_future_that_takes_too_long_is_the_default() -> None:
    stage, inner = Stage(), Future[str]()
    wrapped = WrappedFuture(
        inner, "default", timeout=NOTHING_S, on_error=stage.errors.append, waiting=stage.wait
    )
    assert wrapped.get_future().result() == "default"
    assert "no result after 0 s" in str(stage.errors)
    inner.set_result("late")
    assert wrapped.get_future().result() == "default"
    assert len(stage.errors) == 1


def test_buffers_that_cannot_be_divided_end_the_work_all_the_same() -> None:
    def broken() -> None:
        raise ValueError("output array is read-only")

    stage = Stage(finish=broken)
    stage.inner.future.set_result("reduced")
    assert stage.work.wait()
    assert "read-only" in str(stage.errors[0])


def test_work_that_was_cancelled_has_failed() -> None:
    stage = Stage()
    stage.inner.future.cancel()
    stage.inner.future.set_running_or_notify_cancel()
    assert stage.work.get_future().result(0) == "buffers"
    assert isinstance(stage.errors[0], CancelledError)


def test_what_need_not_be_done_is_done() -> None:
    work = CompletedWork("buffers")
    assert work.wait(NOTHING_S)
    assert work.get_future().result(0) == "buffers"


def test_averages_are_made_in_place() -> None:
    floats, integers = np.array([3.0, 5.0]), np.array([3, -5])
    scaled([floats, integers], 2)
    assert floats.tolist() == [1.5, 2.5]
    assert integers.tolist() == [1, -3], "rounded down"
    scaled([floats], 1)
    assert floats.tolist() == [1.5, 2.5]


def test_what_does_not_count_is_zero() -> None:
    buffers = [np.ones((2, 2)), np.ones(())]
    zeroed(buffers)
    assert not any(buffer.any() for buffer in buffers)


class Op(Enum):
    """As torch's ``ReduceOp`` has them."""

    AVG = 1


def test_ops_go_by_their_names() -> None:
    assert [op_name(op) for op in ("avg", "MAX", Op.AVG, None, 3)] == ["avg", "max", "avg", None, 3]


def test_a_tensor_that_autograd_watches_is_changed_as_its_detached_self() -> None:
    class Tensor:
        def detach(self) -> str:
            return "detached"

    array = np.zeros(1)
    assert changeable(array) is array
    assert changeable(Tensor()) == "detached"


def test_a_group_may_have_futures_of_its_own_kind() -> None:
    def show(future: Future[Any], value: Any) -> Any:
        return ("torch's", future.result(0), value)

    assert CompletedWork(3, show).get_future() == ("torch's", 3, 3)


def test_a_future_whose_result_is_called_value() -> None:
    class Inner:
        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            callback(self)

        def value(self) -> int:
            return 7

    wrapped = WrappedFuture(Inner(), 0, timeout=MINUTE, on_error=_unheard, waiting=nullcontext)
    assert wrapped.get_future().result(0) == 7


def _unheard(error: Exception) -> None:
    raise AssertionError(error)
