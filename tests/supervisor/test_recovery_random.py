"""Anything that workers, operators, disks and the guard's own death can do to a recovery, in any order.

Workers fail alone and together, hang, refuse to die, refuse to start, and fail while a chain is about
others. Operators stop, start and restart them. The disk is full for a while. Hooks raise. The guard is
killed at random places, and the next one goes on. Whatever they do, the promises below hold whenever the
guard is at rest.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from procguard.supervisor import crew as crew_module
from procguard.supervisor.chain import bounded
from tests.supervisor.world import Guard, Killed, Scissors, World, crew, worker

NAMES = "abcd"
WORKERS = crew(
    worker("a", tasks=["a1", "a2"], depends_on=["b"], max_restarts=2),
    worker("b", tasks=["b1"], max_restarts=3, restart_window=60.0),
    worker("c", tasks=["c1", "c2"], restart_delay=0.0),
    worker("d", tasks=["d1"], restart="never"),
)

one = st.sampled_from(NAMES)
some = st.lists(one, min_size=1, max_size=3, unique=True)
EVENTS = st.one_of(
    st.tuples(st.just("die"), some),
    st.tuples(st.just("die apart"), some),
    st.tuples(st.just("hang"), some),
    st.tuples(st.just("finish"), one),
    st.tuples(st.just("stop"), some),
    st.tuples(st.just("start"), some),
    st.tuples(st.just("restart"), some),
    st.tuples(st.just("undying"), st.frozensets(one, max_size=1)),
    st.tuples(st.just("unstartable"), st.frozensets(one, max_size=1)),
    st.tuples(st.just("full disk"), st.booleans()),
    st.tuples(st.just("die while others start"), st.dictionaries(one, one, max_size=2)),
    st.tuples(st.just("die while others stop"), st.dictionaries(one, one, max_size=2)),
    st.tuples(st.just("wait"), st.floats(0.0, 100.0)),
    st.tuples(st.just("kill the guard"), st.none()),
)


class RudeHooks:
    """Adapters that raise, and say that nobody is ready, now and then."""

    def __init__(self) -> None:
        self.count = 0
        self.patience = 0

    def before_stop(self, worker_ids: Sequence[str]) -> None:
        self._perhaps()

    def after_restart(self, worker_ids: Sequence[str]) -> None:
        self._perhaps()

    def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
        self._perhaps()
        return self.count % 2 == 0

    def _perhaps(self) -> None:
        self.count += 1
        if self.count % 5 == 0:
            raise RuntimeError("somebody else's bug")


class Drama:
    """The events, one after the other, with guards as they are needed."""

    def __init__(self, path: Path, recovery: dict[str, Any], hooks: bool, cuts: Sequence[int]) -> None:
        self.path = path
        self.recovery = recovery
        self.hooks = RudeHooks() if hooks else None
        self.world = World()
        self.cut = Scissors(*cuts)
        self.start_victims: dict[str, str] = {}
        self.stop_victims: dict[str, str] = {}
        self.full = False
        self.undying: frozenset[str] = frozenset()
        self.once_undying: frozenset[str] = frozenset()
        self.unstartable: frozenset[str] = frozenset()
        self.guard = self.new_guard()

    def new_guard(self) -> Guard:
        """A guard, killed as often as the scissors say before one of them is at rest."""
        while True:
            try:
                self.guard = Guard(
                    self.world,
                    self.path,
                    WORKERS,
                    self.cut,
                    self.recovery,
                    adapter=self.hooks,
                    checkpoint=self.hooks,
                )
                self.guard.manager.on_start = lambda w: self.strike(self.start_victims.pop(w, None))
                self.guard.manager.on_stop = lambda w: self.strike(self.stop_victims.pop(w, None))
                self.obey()
                self.guard.failures.resume(NAMES)
                return self.guard
            except Killed:
                self.guard.state.close()

    def obey(self) -> None:
        self.once_undying |= self.undying
        self.guard.state.full = self.full
        self.guard.manager.undying = set(self.undying)
        self.guard.manager.unstartable = set(self.unstartable)

    def strike(self, victim: str | None) -> None:
        """A worker dies in the middle of a chain, and the monitor tells of it."""
        if victim is not None and victim in self.world.living:
            self.world.end(victim)
            failures = self.guard.failures
            bounded(lambda: failures.handle_failure([victim]), 10.0)  # as from another thread: does not wait

    def play(self, kind: str, what: Any) -> None:
        try:
            self.perform(kind, what)
        except Killed:
            self.guard.state.close()
            self.new_guard()

    def perform(self, kind: str, what: Any) -> None:
        failures = self.guard.failures
        if kind == "die":
            died = [worker_id for worker_id in what if worker_id in self.world.living]
            for worker_id in died:
                self.world.end(worker_id)
            failures.handle_failure(died)
        elif kind == "die apart":
            for worker_id in what:
                if worker_id in self.world.living:
                    self.world.end(worker_id)
                    failures.handle_failure([worker_id])
        elif kind == "hang":
            failures.handle_failure([worker_id for worker_id in what if worker_id in self.world.living])
        elif kind == "finish":
            self.world.end(what, "finished")
        elif kind in ("stop", "start", "restart"):
            getattr(failures, kind)(what)
        elif kind == "wait":
            self.guard.advance(what)
        elif kind == "kill the guard":
            raise Killed
        else:
            attribute = {
                "undying": "undying",
                "unstartable": "unstartable",
                "full disk": "full",
                "die while others start": "start_victims",
                "die while others stop": "stop_victims",
            }[kind]
            setattr(self, attribute, what)
            self.obey()

    def check_at_rest(self) -> None:
        """Nothing is under way."""
        state = self.guard.state
        assert state.document.recovery is None
        assert self.world.doubles == []
        for worker_id, process in self.world.living.items():
            assert sorted(process.tasks) == sorted(state.tasks_of(worker_id))
        if state.document.gave_up:
            assert set(self.world.living) <= self.once_undying

    def check_at_last(self) -> None:
        """All obstacles are gone, and some time has passed: who is to run does."""
        self.perform("undying", frozenset())
        self.perform("unstartable", frozenset())
        self.perform("full disk", False)
        self.perform("die while others start", {})
        self.perform("die while others stop", {})
        self.cut.cuts.clear()
        self.new_guard()
        self.guard.advance(100.0)
        self.check_at_rest()
        document = self.guard.state.document
        if document.gave_up:
            return
        for worker_id in NAMES:
            record = document.workers[worker_id]
            finished = self.world.ended.get(worker_id) == "finished"
            runs = worker_id in self.world.living
            assert runs == (record.wanted is not False and not record.left_out and not finished)
        assert set(document.tasks) == {task for config in WORKERS.values() for task in config.tasks}
        for name, task in document.tasks.items():
            assert (task.worker_id is None) == (name in document.task_queue)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """In memory, and without fsync: a killed guard needs no disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as made, mock.patch.object(os, "fsync", lambda fd: None):
        yield Path(made)


@settings(max_examples=250)
@given(
    events=st.lists(EVENTS, max_size=12),
    recovery=st.fixed_dictionaries(
        {"stop_all_on_failure": st.booleans(), "task_reassignment": st.booleans()}
    ),
    hooks=st.booleans(),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_whatever_happens(
    events: list[tuple[str, Any]], recovery: dict[str, Any], hooks: bool, cuts: list[int]
) -> None:
    with memory_folder() as folder, mock.patch.object(crew_module, "STOPS_AT_ONCE_MAX", 1):
        drama = Drama(folder / "state.json", recovery, hooks, cuts)
        for kind, what in events:
            drama.play(kind, what)
            drama.check_at_rest()
        drama.check_at_last()
