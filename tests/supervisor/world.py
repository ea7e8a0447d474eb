"""A machine for the recovery's tests: workers that outlive guards, a clock that is moved, a hand that cuts.

``World`` is what a killed guard leaves behind: living processes, and what each was told at its start. A
``FakeManager`` is one guard's view of it, with the promises of ``ProcessManager`` that the recovery relies
on; ``Guard`` is one life of a guard.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from procguard.errors import StateError
from procguard.supervisor.exits import StopReason
from procguard.supervisor.recovery import FailureHandler
from procguard.supervisor.state import StateManager
from procguard.worker_config import WorkerConfig


class Killed(BaseException):
    """The guard was killed here: no ``except Exception`` sees it."""


class Scissors:
    """Counts the places at which a guard may be killed, and kills it at those that it is told."""

    def __init__(self, *cuts: int) -> None:
        self.cuts = set(cuts)
        self.places: list[str] = []

    def __call__(self, place: str) -> None:
        self.places.append(place)
        if len(self.places) - 1 in self.cuts:
            raise Killed(place)


class Life:
    """One guard's way to the scissors: a dead one does nothing more, on none of its threads."""

    def __init__(self, scissors: Callable[[str], None]) -> None:
        self.scissors = scissors
        self.dead = False

    def __call__(self, place: str) -> None:
        if self.dead:
            raise Killed(place)
        try:
            self.scissors(place)
        except Killed:
            self.dead = True
            raise


class Process(NamedTuple):
    pid: int
    tasks: tuple[str, ...]
    environment: Mapping[str, str]


class Status(NamedTuple):
    state: str
    pid: int | None = None
    last_exit: Any = None


class World:
    """Processes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.living: dict[str, Process] = {}
        self.ended: dict[str, str] = {}
        self.pids = 100
        self.starts: Counter[str] = Counter()
        self.stops: Counter[str] = Counter()
        self.doubles: list[str] = []
        """Tasks that were on two living workers at once. There must never be any."""

    def spawn(self, worker_id: str, environment: Mapping[str, str]) -> None:
        assert worker_id not in self.living, "started twice"
        tasks = tuple(json.loads(environment.get("PROCGUARD_TASKS", "[]")))
        for other in self.living.values():
            self.doubles += set(other.tasks) & set(tasks)
        self.pids += 1
        self.living[worker_id] = Process(self.pids, tasks, dict(environment))
        self.starts[worker_id] += 1
        self.ended.pop(worker_id, None)

    def end(self, worker_id: str, state: str = "failed") -> None:
        """It dies by itself."""
        if self.living.pop(worker_id, None) is not None:
            self.ended[worker_id] = state

    def holders(self) -> dict[str, list[str]]:
        """Which living workers each task is on."""
        holders: dict[str, list[str]] = {}
        for worker_id, process in self.living.items():
            for task in process.tasks:
                holders.setdefault(task, []).append(worker_id)
        return holders


class FakeManager:
    """One guard's ``ProcessManager``; what lives is adopted."""

    def __init__(self, world: World, configs: Mapping[str, WorkerConfig], cut: Callable[[str], None]) -> None:
        self.world = world
        self.configs = configs
        self.cut = cut
        self.waiting: dict[str, tuple[float, Mapping[str, str]]] = {}
        self.undying: set[str] = set()
        self.unstartable: set[str] = set()
        self.asked: list[str] = []
        self.on_start: Callable[[str], None] = lambda worker_id: None
        self.on_stop: Callable[[str], None] = lambda worker_id: None

    def worker_config(self, worker_id: str) -> WorkerConfig:
        return self.configs[worker_id]

    def statuses(self) -> dict[str, Status]:
        return {worker_id: self.get_worker_status(worker_id) for worker_id in self.configs}

    def get_worker_status(self, worker_id: str) -> Status:
        if worker_id in self.world.living:
            return Status("running", self.world.living[worker_id].pid)
        if worker_id in self.waiting:
            return Status("waiting")
        return Status(self.world.ended.get(worker_id, "stopped"))

    def start_worker(
        self, worker_id: str, *, delay_s: float = 0.0, environment: Mapping[str, str] | None = None
    ) -> bool:
        self.cut(f"before start {worker_id}")
        self.asked.append(f"start {worker_id}")
        if worker_id in self.unstartable:
            return False
        if worker_id not in self.world.living:
            if delay_s > 0:
                self.waiting[worker_id] = (self.world.now + delay_s, environment or {})
            else:
                self.waiting.pop(worker_id, None)
                self.world.spawn(worker_id, environment or {})
                self.on_start(worker_id)
        self.cut(f"after start {worker_id}")
        return True

    def stop_worker(
        self, worker_id: str, force: bool = False, *, reason: StopReason = StopReason.OPERATOR
    ) -> bool:
        self.cut(f"before stop {worker_id}")
        self.asked.append(f"stop {worker_id}")
        self.waiting.pop(worker_id, None)
        self.on_stop(worker_id)
        if worker_id in self.undying and worker_id in self.world.living:
            return False
        if worker_id in self.world.living:
            self.world.stops[worker_id] += 1
            self.world.end(worker_id, "stopped")
        self.cut(f"after stop {worker_id}")
        return True

    def stop_all_workers(
        self, force: bool = False, *, reason: StopReason = StopReason.OPERATOR
    ) -> dict[str, bool]:
        return {worker_id: self.stop_worker(worker_id, force, reason=reason) for worker_id in self.configs}

    def tick(self) -> None:
        """Start whose time has come."""
        for worker_id, (due, environment) in list(self.waiting.items()):
            if due <= self.world.now:
                del self.waiting[worker_id]
                self.world.spawn(worker_id, environment)
                self.on_start(worker_id)


class CutState(StateManager):
    """A state whose guard may be killed before and after each write."""

    def __init__(self, path: Path | None, cut: Callable[[str], None]) -> None:
        self.cut = cut
        self.full = False
        super().__init__(path, boot_id="this boot")

    def _write(self, content: bytes, durable: bool) -> None:
        self.cut("before write")
        if self.full:
            raise StateError(f"{self.path}: cannot be written (No space left on device)")
        super()._write(content, durable)
        self.cut("after write")


class Guard:
    """One life of a guard."""

    def __init__(
        self,
        world: World,
        path: Path | None,
        configs: Mapping[str, WorkerConfig],
        cut: Callable[[str], None],
        settings: Mapping[str, Any],
        **more: Any,
    ) -> None:
        cut = Life(cut)
        self.world = world
        self.state = CutState(path, cut)
        self.manager = FakeManager(world, configs, cut)
        self.failures = FailureHandler(
            self.state,
            self.manager,
            settings,
            clock=lambda: world.now,
            wall_clock=lambda: world.now,
            chance=lambda: 0.0,
            pause=self.advance,
            **more,
        )

    def advance(self, seconds: float) -> None:
        """Let that many seconds pass."""
        self.world.now += seconds
        self.manager.tick()


def worker(worker_id: str, **keys: Any) -> WorkerConfig:
    return WorkerConfig(worker_id=worker_id, command="train", **keys)


def crew(*workers: WorkerConfig) -> dict[str, WorkerConfig]:
    return {config.worker_id: config for config in workers}


def named(names: Iterable[str], **keys: Any) -> dict[str, WorkerConfig]:
    """Workers alike, each with a task of its own: a has ta."""
    return crew(*(worker(name, tasks=[f"t{name}"], **keys) for name in names))
