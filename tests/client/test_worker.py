"""The thread that does jobs in order."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from procguard.client.worker import Worker
from tests.client.fakes import DEADLINE_S


@pytest.fixture
def worker() -> Worker:
    return Worker("test")


def test_jobs_are_done_in_order_on_one_thread(worker: Worker) -> None:
    done: list[tuple[int, str]] = []
    futures = [
        worker.submit(lambda number=number: done.append((number, threading.current_thread().name)))  # type: ignore[misc]
        for number in range(5)
    ]
    for future in futures:
        future.result(DEADLINE_S)
    assert done == [(number, "test") for number in range(5)]
    worker.close(DEADLINE_S)


def test_what_a_job_raises_belongs_to_the_one_who_waits(worker: Worker) -> None:
    def broken() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        worker.submit(broken).result(DEADLINE_S)
    assert worker.submit(lambda: None).result(DEADLINE_S) is None, "and the next job is done"
    worker.close(DEADLINE_S)


def test_it_ends_after_what_was_submitted(worker: Worker) -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go.wait(DEADLINE_S)

    worker.submit(wait)
    last = worker.submit(done.set)
    assert begun.wait(DEADLINE_S)
    worker.close(0)  # it does not wait for longer than it was told
    assert not last.done()
    go.set()
    last.result(DEADLINE_S)
    worker.close(DEADLINE_S)
    assert done.is_set()


def test_a_job_without_end_does_not_keep_the_process_from_ending() -> None:
    program = (
        "import threading; from procguard.client.worker import Worker;"
        "begun = threading.Event(); worker = Worker('test');"
        "worker.submit(lambda: (begun.set(), threading.Event().wait())); begun.wait()"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=DEADLINE_S, check=False)
    assert ended.returncode == 0
