"""A lane: so many at the same time, the others in turn, and no thread that has nothing to do."""

from __future__ import annotations

import threading

import pytest

from procguard.supervisor.lane import Lane

DEADLINE_S = 30.0


def test_so_many_at_once_and_the_rest_in_turn() -> None:
    lane = Lane("lane-under-test", 2)
    go_on, lock = threading.Event(), threading.Lock()
    at_work, most = 0, 0
    done: list[int] = []
    all_done = threading.Event()

    def work(number: int) -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        assert go_on.wait(DEADLINE_S)
        with lock:
            at_work -= 1
            done.append(number)
            if len(done) == 10:
                all_done.set()

    for number in range(10):
        lane.do(lambda number=number: work(number))  # type: ignore[misc]
    assert sum(thread.name == "lane-under-test" for thread in threading.enumerate()) == 2
    go_on.set()
    assert all_done.wait(DEADLINE_S)
    assert most <= 2
    assert sorted(done) == list(range(10))
    for thread in threading.enumerate():
        if thread.name == "lane-under-test":
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane("lane-under-test", 1)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            lane.do(lambda: None)
    ran = threading.Event()
    lane.do(ran.set)
    assert ran.wait(DEADLINE_S)
