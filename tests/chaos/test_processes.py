"""Real processes on a machine with too much to do, and an end that takes its time.

What trainer, listener and lighthouse may die of where there is room is in ``tests/test_bad_luck.py``: kills,
also of two at once, exits, exceptions, exec, signals, stops.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from procguard.messages import MemberState
from tests.job import Job, Trainer

CROWDING = 4
"""Busy processes for each core."""
CROWDED_STEPS = 10
DUMPED_BYTES = 64 << 20
CORE_BYTES = 1 << 30
REPLICAS = ("0", "1", "2")
STORM_BLOWS = 25
STORM_SEED = 1


@contextmanager
def crowd() -> Iterator[None]:
    """Four times as many busy processes as there are cores."""
    with ExitStack() as stack:
        for _ in range(CROWDING * len(os.sched_getaffinity(0))):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        yield


def committed(trainer: Trainer) -> int:
    return len(trainer.said("step", committed=True))


def test_on_a_crowded_machine_nobody_is_blamed_and_the_dead_are_told(tmp_path: Path) -> None:
    with Job(tmp_path) as job:
        *survivors, victim = trio = job.fill(*REPLICAS)
        before = [(trainer.incarnation, len(trainer.said("step", committed=False))) for trainer in trio]
        steps = [committed(trainer) for trainer in trio]
        with crowd():
            job.until(
                lambda: all(committed(t) > n + CROWDED_STEPS for t, n in zip(trio, steps, strict=True)),
                "all have trained in the crowd",
            )
            assert [(t.incarnation, len(t.said("step", committed=False))) for t in trio] == before
            job.kill_lighthouse()
            job.start_lighthouse()
            job.trains(*trio)
            assert [trainer.incarnation for trainer in trio] == [incarnation for incarnation, _ in before]
            victim.strike(signal.SIGKILL)
            assert job.told(victim, survivors) == {"killed by SIGKILL"}
            job.trains(*survivors)
        job.check()


@pytest.mark.skipif(
    0 <= resource.getrlimit(resource.RLIMIT_CORE)[1] < CORE_BYTES,
    reason="this machine lets nobody dump so large a core (ulimit -H -c)",
)
def test_a_trainer_that_dumps_core_is_told_before_the_dump_has_ended(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.mkdir()
    with Job(tmp_path) as job:
        survivor, victim = job.fill("0", "1")
        victim.end(
            f"os.chdir({str(dump)!r})\n"
            f"ballast = b'x' * {DUMPED_BYTES}\n"
            "resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
            "os.abort()"
        )
        assert job.told(victim, [survivor]) == {"killed by SIGABRT, core dumped"}
        job.trains(survivor)
        assert victim.exit_code() == -signal.SIGABRT
        job.check()


# --- longer ones: make chaos --------------------------------------------------------------------------


def kill(victim: Trainer) -> None:
    """And reap it: the survivors may be told before it counts as ended here."""
    victim.strike(signal.SIGKILL)
    victim.exit_code()


class Storm:
    """Blows in the order of a seed; after each the job must become whole again."""

    def __init__(self, job: Job, rng: random.Random) -> None:
        self.job = job
        self.rng = rng
        self.blows = (
            self.kill_a_trainer,
            self.kill_a_listener,
            self.kill_both,
            self.stop_a_trainer,
            self.kill_the_lighthouse,
            self.kill_all_but_one,
            self.kill_a_trainer_while_it_is_dark,
        )

    def strike(self) -> str:
        """One blow; its name."""
        blow = self.rng.choice(self.blows)
        blow(self.job.fill(*REPLICAS))
        self.job.fill(*REPLICAS)
        self.job.check()
        return blow.__name__

    def kill_a_trainer(self, trio: list[Trainer]) -> None:
        victim = self.rng.choice(trio)
        kill(victim)
        survivors = [trainer for trainer in trio if trainer is not victim]
        assert self.job.told(victim, survivors) == {"killed by SIGKILL"}

    def kill_a_listener(self, trio: list[Trainer]) -> None:
        victim = self.rng.choice(trio)
        (listener,) = victim.last["listeners"]
        os.kill(listener, signal.SIGKILL)
        self.job.until(lambda: victim.last["listeners"] not in ([], [listener]), "there is another listener")

    def kill_both(self, trio: list[Trainer]) -> None:
        victim = self.rng.choice(trio)
        (listener,) = victim.last["listeners"]
        os.kill(listener, signal.SIGKILL)
        kill(victim)
        self.job.told(victim, [trainer for trainer in trio if trainer is not victim])

    def stop_a_trainer(self, trio: list[Trainer]) -> None:
        victim = self.rng.choice(trio)
        victim.strike(signal.SIGSTOP)
        survivors = [trainer for trainer in trio if trainer is not victim]
        assert self.job.told(victim, survivors) == {"process stopped (SIGSTOP)"}
        os.killpg(victim.pid, signal.SIGCONT)

    def kill_the_lighthouse(self, trio: list[Trainer]) -> None:
        self.job.kill_lighthouse()
        self.job.start_lighthouse(empty=self.rng.random() < 0.3)
        self.job.trains(*trio)

    def kill_all_but_one(self, trio: list[Trainer]) -> None:
        survivor, *victims = self.rng.sample(trio, len(trio))
        for victim in victims:
            kill(victim)
        for victim in victims:
            self.job.told(victim, [survivor])

    def kill_a_trainer_while_it_is_dark(self, trio: list[Trainer]) -> None:
        victim = self.rng.choice(trio)
        self.job.kill_lighthouse()
        kill(victim)
        self.job.start_lighthouse()
        self.job.told(victim, [trainer for trainer in trio if trainer is not victim])


@pytest.mark.chaos
@pytest.mark.parametrize("crowded", [False, True], ids=["with room", "crowded"])
def test_blow_after_blow(tmp_path: Path, crowded: bool) -> None:
    seed = int(os.environ.get("CHAOS_SEED", STORM_SEED))
    struck: list[str] = []
    with ExitStack() as stack:
        if crowded:
            stack.enter_context(crowd())
        job = stack.enter_context(Job(tmp_path))
        storm = Storm(job, random.Random(seed))
        try:
            for _ in range(STORM_BLOWS):
                struck.append(storm.strike())
        except BaseException:
            print(f"CHAOS_SEED={seed} make chaos; after {struck}")
            raise
        assert {member.state for member in job.members().values()} == {MemberState.ALIVE}
