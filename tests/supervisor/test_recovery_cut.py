"""A guard that is killed at any point of a recovery: the next one finishes it, each step once.

The chain is cut at every place where it touches the world: before and after each write of the state file,
each call of the process manager and each hook. What the killed guard leaves is the file and the living
workers.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from procguard.worker_config import WorkerConfig
from tests.supervisor.world import Guard, Killed, Scissors, World, crew, named, worker


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In memory, and without fsync: a killed guard needs no disk, what it has written is with the kernel."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


class Hooks:
    """A checkpoint adapter and a communication adapter, of which every guard has one."""

    def __init__(self, cut: Scissors) -> None:
        self.cut = cut
        self.calls: Counter[str] = Counter()

    def before_stop(self, worker_ids: Sequence[str]) -> None:
        self._called("before_stop")

    def after_restart(self, worker_ids: Sequence[str]) -> None:
        self._called("after_restart")

    def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
        self.cut("before wait_ready")
        return True

    def _called(self, name: str) -> None:
        self.cut(f"before {name}")
        self.calls[name] += 1
        self.cut(f"after {name}")


class Case(NamedTuple):
    workers: dict[str, WorkerConfig]
    failed: tuple[str, ...]
    settings: dict[str, Any]
    stopped: str
    """Who is stopped and started again for it."""
    out: str = ""
    """Who stays out."""
    hooks: bool = False
    extra_tasks: int = 0


ABC = named("abc")
CHAIN = crew(
    worker("a", tasks=["ta"], depends_on=["b"]), worker("b", tasks=["tb"]), worker("c", tasks=["tc"])
)
MOVES = {"task_reassignment": True}
ALONE = {"stop_all_on_failure": False}
CASES = {
    "all stop": Case(ABC, ("a",), {}, "bc"),
    "all stop, with hooks": Case(ABC, ("b",), {}, "ac", hooks=True),
    "all stop, all but one failed": Case(ABC, ("a", "c"), {}, "b"),
    "all stop, in order": Case(CHAIN, ("b",), {}, "ac"),
    "only the failed": Case(ABC, ("a",), ALONE, ""),
    "all stop, tasks move": Case(ABC, ("a",), MOVES, "bc", out="a", extra_tasks=3),
    "all stop, tasks of two move, with hooks": Case(
        ABC, ("a", "b"), MOVES, "c", out="ab", hooks=True, extra_tasks=2
    ),
    "tasks move to who runs": Case(ABC, ("a",), MOVES | ALONE, "bc", out="a", extra_tasks=3),
    "a task moves to one who runs": Case(ABC, ("a",), MOVES | ALONE, "b", out="a"),
    "everybody failed, tasks may move": Case(ABC, ("a", "b", "c"), MOVES, ""),
}


class Story:
    """One guard after the other, on one file and one world."""

    def __init__(self, case: Case, path: Path, *cuts: int) -> None:
        self.case = case
        self.path = path
        self.world = World()
        self.cut = Scissors(*cuts)
        self.hooks = Hooks(self.cut)
        begin = self.guard(cut=Scissors())
        begin.failures.start(case.workers)
        for number in range(case.extra_tasks):
            begin.state.add_task(f"extra{number}", worker_id=case.failed[0])
        begin.failures.restart(case.failed[:1])
        begin.state.close()
        self.world.starts.clear()
        self.world.stops.clear()

    def guard(self, cut: Scissors | None = None) -> Guard:
        hooks = {"adapter": self.hooks, "checkpoint": self.hooks} if self.case.hooks else {}
        return Guard(self.world, self.path, self.case.workers, cut or self.cut, self.case.settings, **hooks)

    def fail(self) -> None:
        for worker_id in self.case.failed:
            self.world.end(worker_id)
        self.guard().failures.handle_failure(self.case.failed)

    def resume(self) -> Guard:
        guard = self.guard()
        guard.failures.resume()
        return guard

    def check_the_end(self, *, lives: int) -> None:
        """What must hold when all is over, ``lives`` guards later."""
        guard = self.guard(cut=Scissors())
        document = guard.state.document
        assert document.recovery is None
        assert self.world.doubles == []
        case, world = self.case, self.world
        assert {worker_id for worker_id, record in document.workers.items() if record.left_out} == set(
            case.out
        )
        assert set(world.living) == set(case.workers) - set(case.out)
        owners = {name: task.worker_id for name, task in document.tasks.items()}
        assert {name: [owner] for name, owner in owners.items()} == world.holders()
        started = set(case.stopped) | set(case.failed) - set(case.out)
        assert +world.starts == dict.fromkeys(started, 1)
        assert +world.stops == dict.fromkeys(case.stopped, 1)
        if self.case.hooks:
            assert all(1 <= self.hooks.calls[name] <= lives for name in ("before_stop", "after_restart"))


def places(case: Case, path: Path) -> int:
    """At how many places the chain of this case can be cut."""
    story = Story(case, path)
    story.fail()
    story.check_the_end(lives=1)
    return len(story.cut.places)


@pytest.mark.parametrize("name", CASES)
def test_killed_anywhere_it_is_finished(name: str, folder: Path) -> None:
    case = CASES[name]
    count = places(case, folder / "whole.json")
    assert count >= 8
    for at in range(count):
        story = Story(case, folder / f"{at}.json", at)
        with pytest.raises(Killed):
            story.fail()
        story.resume()
        story.check_the_end(lives=2)


@pytest.mark.parametrize(
    "name", ["all stop", "only the failed", "all stop, tasks move", "tasks move to who runs"]
)
def test_killed_anywhere_while_the_disk_is_full(name: str, folder: Path) -> None:
    """Nothing is on the disk of what this chain has done; tasks are where the disk says, and never twice."""
    case = CASES[name]
    count = places(case, folder / "whole.json")
    for at in range(count):
        story = Story(case, folder / f"{at}.json", at)
        guard = story.guard()
        guard.state.full = True
        for worker_id in case.failed:
            story.world.end(worker_id)
        with contextlib.suppress(Killed):  # without a disk there are fewer places
            guard.failures.handle_failure(case.failed)
        story.resume()
        assert story.world.doubles == []
        assert sorted(story.world.holders()) == sorted(story.resume().state.document.tasks)


def test_killed_again_and_again_it_is_finished_at_last(folder: Path) -> None:
    case = CASES["all stop, tasks of two move, with hooks"]
    for first in range(0, 40, 3):
        story = Story(case, folder / f"{first}.json", *range(first, 300, first % 7 + 4))
        with contextlib.suppress(Killed):
            story.fail()
        lives = 1
        while True:
            lives += 1
            try:
                story.resume()
                break
            except Killed:
                assert lives < 100
        story.check_the_end(lives=lives)
