"""The loop: the order of things within a turn, deadlines, and its end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from math import inf

import pytest

from procguard.supervisor.loop import Loop, answered
from tests.supervisor.processes import until

TURN_TIMEOUT_S = 10.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop("a loop", lambda: None)
    yield running
    running.close()


def on(loop: Loop, call: object = None) -> None:
    """Have a call made on the loop, and wait for that."""

    def run(future: Future[bool]) -> None:
        assert call is None or callable(call)
        future.set_result(call() is None if call else True)

    answered(loop, run).result(TURN_TIMEOUT_S)


def test_what_has_happened_goes_before_what_is_asked(loop: Loop) -> None:
    order: list[str] = []
    read, write = os.pipe()

    def happened() -> None:
        order.append("happened")
        loop.unwatch(read)

    def both() -> None:
        loop.watch(read, happened)
        os.write(write, b"x")
        loop.ask(lambda: order.append("asked"))
        loop.call_at("due", 0.0, lambda: order.append("due"))

    loop.ask(both)
    until(lambda: len(order) == 3, "all three")
    # The deadline was there in the turn in which it was set; of the rest, the descriptor comes first.
    assert order == ["due", "happened", "asked"]
    os.close(read)
    os.close(write)


def test_a_deadline_is_moved_and_taken_back(loop: Loop) -> None:
    called: list[str] = []

    def set_deadlines() -> None:
        now = time.monotonic()
        for key in ("moved", "dropped"):
            loop.call_at(key, now + 0.01, lambda: called.append("too early"))
        loop.call_at("dropped", inf, lambda: called.append("never"))
        loop.call_at("moved", now + 0.03, lambda: called.append("late"))

    loop.ask(set_deadlines)
    until(lambda: called, "the deadline")
    assert called == ["late"]


def test_a_call_that_fails_is_told_and_the_loop_goes_on(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def fail(future: Future[bool]) -> None:
        raise RuntimeError("a bug")

    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="a bug"):
        answered(loop, fail).result(TURN_TIMEOUT_S)
    on(loop)
    assert "please report it" in caplog.text


def test_what_was_asked_before_the_end_is_done() -> None:
    loop = Loop("a loop", lambda: None)
    done: list[int] = []
    for number in range(100):
        loop.ask(lambda number=number: done.append(number))  # type: ignore[misc]
    loop.close()
    loop.close()
    assert done == list(range(100))
    assert not loop.ask(lambda: None)
    assert answered(loop, lambda future: future.set_result(True)).result(TURN_TIMEOUT_S) is False


def test_it_knows_its_own_thread(loop: Loop) -> None:
    seen: list[bool] = []
    on(loop, lambda: seen.append(loop.is_mine))
    assert seen == [True]
    assert not loop.is_mine


def test_nothing_of_it_is_left() -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    Loop("a loop", lambda: None).close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
