"""Ranks of a process group for tests, of whatever library: groups in this process, a thread for each."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, Generic, TypeVar

from procguard.adapters.process_group import FencedGroup

LONG = timedelta(seconds=60)  # never reached unless the test fails
DEADLINE_S = 60.0

G = TypeVar("G", bound=FencedGroup[Any])


class GroupRanks(ABC, Generic[G]):
    """Process groups of one test, each driven by a thread of its own."""

    def __init__(self) -> None:
        self.groups: list[G] = []
        self._threads = ThreadPoolExecutor(max_workers=16)

    def __enter__(self: R) -> R:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def make(self, timeout: timedelta) -> G: ...

    @abstractmethod
    def full(self, size: int, value: float) -> Any:
        """What the groups reduce, with this in each place."""

    def add(self, count: int, timeout: timedelta = LONG) -> list[G]:
        added = [self.make(timeout) for _ in range(count)]
        self.groups += added
        return added

    def start(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        return self._threads.submit(call, *args)

    def outcomes(self, call: Callable[[int, G], Any], groups: list[G]) -> list[Any]:
        """What ``call`` returned or raised on each rank, all ranks running at once."""
        futures = [self.start(call, rank, group) for rank, group in enumerate(groups)]
        assert not wait(futures, DEADLINE_S).not_done, "a rank is blocked"
        return [future.exception() or future.result() for future in futures]

    def configure(self, groups: list[G], quorum_id: int, timeout: timedelta = LONG) -> None:
        handles = [group.handle() for group in groups]
        outcomes = self.outcomes(
            lambda rank, group: group.configure(handles, rank, quorum_id, timeout), groups
        )
        assert outcomes == [None] * len(groups)

    def connected(self, count: int, quorum_id: int = 1, timeout: timedelta = LONG) -> list[G]:
        groups = self.add(count, timeout)
        self.configure(groups, quorum_id)
        return groups

    def reduce(self, groups: list[G], buffers: list[list[Any]], op: str = "sum") -> list[Any]:
        return self.outcomes(lambda rank, group: group.allreduce(buffers[rank], op).wait(), groups)

    def close(self) -> None:
        for group in self.groups:
            group.shutdown()
        self._threads.shutdown()


R = TypeVar("R", bound=GroupRanks[Any])


def assert_works(ranks: GroupRanks[G], groups: list[G]) -> None:
    buffers = [[ranks.full(3, rank + 1.0)] for rank in range(len(groups))]
    assert ranks.reduce(groups, buffers) == [True] * len(groups)
    total = sum(range(len(groups) + 1))
    assert all((own[0] == total).all() for own in buffers)


def until(condition: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.001)
