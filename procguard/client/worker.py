"""One daemon thread that does jobs in order.

``concurrent.futures`` joins its threads at interpreter exit, so a trainer that ends by an exception would
first wait for a quorum that nobody will form.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol


class RunsJobs(Protocol):
    """Runs callables one after another, beside the one who submits them."""

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """A future that completes, or fails as the job fails; never blocks."""
        ...

    def close(self, timeout_s: float) -> None:
        """End after the jobs already submitted; waits for at most ``timeout_s``."""
        ...


class Worker:
    """Runs callables one after another; ``submit`` never blocks."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """A future that completes, or fails as the job fails."""
        future: Future[None] = Future()
        self._jobs.put((job, future))
        return future

    def close(self, timeout_s: float) -> None:
        """End after the jobs already submitted; waits for at most ``timeout_s``."""
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, future = entry
            try:
                job()
            except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the one who waits for the future
                future.set_exception(error)
            else:
                future.set_result(None)
