"""One configured quorum of a torch process group: who owns each collective, and what ended it.

The rule is the one of ``collective_worker``: whoever takes a task out of its quorum, under the quorum's lock,
settles its future. That is either the backend that finished it, or the one who ends the quorum (abort,
timeout, a dead peer, the next configure). Only the winner touches the caller's tensors, so what a backend
does with an operation that was given up, and when, is nobody's concern.
"""

from __future__ import annotations

import re
import threading
from functools import partial
from typing import Protocol

from procguard.adapters.process_group import Place, Task, check_room, fresh
from procguard.adapters.torch_payload import Payload
from procguard.adapters.torch_watch import Ended
from procguard.errors import CollectiveError


class Backend(Protocol):
    """The connections of one quorum."""

    def allreduce(self, payload: Payload, ended: Ended) -> None:
        """Begin to reduce the payload's flat tensors in place; say how that ended, on another thread."""
        ...

    def close(self) -> None:
        """End what is in flight, if that is possible, without waiting for it."""
        ...


class Quorum:
    """One configured quorum: its unfinished tasks, and the error that ended it."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        self.place = place
        self.timeout_s = timeout_s
        """Bounds each collective."""
        self.forming = Task()
        self.error: CollectiveError | None = None  # once it is set there are no tasks any more
        self._backend: Backend | None = None
        self._tasks: dict[Task, None] = {self.forming: None}  # a set that keeps its order
        self._lock = threading.Lock()

    def adopt(self, backend: Backend) -> None:
        """Use these connections from now on, unless the quorum is over."""
        with self._lock:
            is_wanted = self.error is None
            if is_wanted:
                self._backend = backend
        if is_wanted:
            self.finish(self.forming)
        else:
            backend.close()

    def submit(self, task: Task) -> None:
        """Begin a collective; its future fails at once if the quorum is over. One replica alone has no peers
        and no backend."""
        assert task.payload is not None
        problem: Exception | None = None
        with self._lock:
            error, backend = self.error, self._backend
            if error is None:
                check_room(len(self._tasks))
                self._tasks[task] = None
                if backend is not None:  # under the lock: the order of the calls is the order on all ranks
                    try:
                        backend.allreduce(task.payload, partial(self._ended, task))
                    except Exception as refused:  # noqa: BLE001  # torch's; whoever waits for the task is told
                        problem = refused
        if error is not None:
            task.future.set_exception(fresh(error))
        elif backend is None or problem is not None:
            self._ended(task, problem)

    def _ended(self, task: Task, problem: Exception | None) -> None:
        """The backend has finished with a task. If it failed so did the quorum: this rank is out of step."""
        if problem is None:
            self.finish(task)
        elif isinstance(problem, CollectiveError):
            self.end(problem)
        else:
            reason = f"allreduce of {self.place} failed: {first_line(problem)}"
            self.end(CollectiveError(reason, self.place.quorum_id))

    def finish(self, task: Task) -> None:
        """Give the result to the caller, unless the task has been failed meanwhile."""
        with self._lock:
            if task not in self._tasks:
                return
            del self._tasks[task]
        if task.payload is None:
            task.future.set_result(None)
            return
        try:
            task.future.set_result(task.payload.deliver())
        except Exception as problem:  # noqa: BLE001  # the caller's tensors cannot be written; it hears of it
            failure = CollectiveError(f"cannot write the result: {problem}", self.place.quorum_id)
            task.future.set_exception(failure)
            self.end(failure)

    def end(self, error: CollectiveError) -> None:
        """Fail every task with ``error``, now and from now on. The first error stays. Returns at once."""
        with self._lock:
            if self.error is not None:
                return
            self.error = fresh(error)
            doomed, self._tasks = list(self._tasks), {}
            backend, self._backend = self._backend, None
        for task in doomed:
            task.payload = None  # the backend may know the task for a while yet; the gradients are free
            task.future.set_exception(fresh(error))
        if backend is not None:
            backend.close()


def first_line(error: BaseException) -> str:
    """What went wrong, without torch's stack, the paths of its sources, and its advice."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" This is typically ")[0]
    return re.sub(r"^\[[^\]]*\.(cpp|cc|h|hpp):[0-9]+\] *", "", text)
