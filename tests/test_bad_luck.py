"""Bad input and bad luck, on real processes: whatever happens to one, the others go on, and nobody is blamed wrongly.

Most tests strike one and the same job, three trainers on one lighthouse, and leave it as they found it: whole, all
weights equal, no process too many. Each begins by making the job whole, so that one failure does not spoil the rest.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from procguard.messages import MemberState
from tests.job import Job, Trainer

REPLICAS = ("0", "1", "2")
THREADED = {"PROCGUARD_PROACTIVE_RECOVERY": "0", "PROCGUARD_JOB_ID": "threaded"}


class Stage:
    """The job that the tests share, or a new one after a failure that it did not get over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._jobs = 0
        self.job: Job | None = None

    def whole_job(self) -> Job:
        if self.job is not None:
            try:
                self.job.fill(*REPLICAS)
                return self.job
            except AssertionError:
                self.close()
        self._jobs += 1
        folder = self._folder / f"job-{self._jobs}"
        folder.mkdir()
        self.job = self._stack.enter_context(Job(folder))
        self.job.fill(*REPLICAS)
        return self.job

    def close(self) -> None:
        self.job = None
        self._stack.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("bad-luck"))
    yield stage
    stage.close()


@pytest.fixture
def job(stage: Stage) -> Iterator[Job]:
    job = stage.whole_job()
    yield job
    job.fill(*REPLICAS)
    job.check()


@pytest.fixture
def trio(job: Job) -> list[Trainer]:
    return job.fill(*REPLICAS)


# --- a trainer ends -----------------------------------------------------------------------------------


def test_a_trainer_killed_in_mid_step_and_its_replacement(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    victim.hang()
    victim.strike(signal.SIGKILL)
    assert job.told(victim, survivors) == {"killed by SIGKILL"}
    job.trains(*survivors)
    replacement = job.start(victim.replica_id)
    job.trains(*survivors, replacement)
    assert replacement.incarnation not in victim.struck
    assert replacement.said("healed")
    assert all(trainer.lives for trainer in survivors)


ENDINGS = {
    "sys.exit(3)": "exited with code 3",
    "raise ValueError('the disk is on fire')": "exited with code 1 (ValueError: the disk is on fire)",
    "raise KeyError": "exited with code 1 (KeyError)",
    "os._exit(0)": "left",
    "sys.exit()": "left",
    "os.kill(os.getpid(), signal.SIGTERM)": "killed by SIGTERM",
    "os.kill(os.getpid(), signal.SIGSEGV)": "killed by SIGSEGV",
    "os.execv('/bin/sleep', ['sleep', '1000'])": "process replaced itself (exec)",
}


def test_each_way_to_end(job: Job, trio: list[Trainer]) -> None:
    doomed = [f"doomed-{number}" for number in range(len(ENDINGS))]
    victims = job.fill(*REPLICAS, *doomed)[len(trio) :]
    for victim, (words, cause) in zip(victims, ENDINGS.items(), strict=True):
        victim.end(words)
        assert job.told(victim, trio) == {cause}, words
    job.trains(*trio)
    victims[-1].close()  # lives on, as another program


def test_ctrl_c_in_the_trainers_terminal(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    (listener,) = victim.last["listeners"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(listener, number)
    victim.struck.append(victim.incarnation)
    os.killpg(victim.pid, signal.SIGINT)
    assert job.told(victim, survivors) == {"killed by SIGINT (KeyboardInterrupt)"}
    job.trains(*survivors)


# --- the lighthouse ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [False, True], ids=["same state", "empty state"])
def test_the_lighthouse_is_killed_and_starts_again(job: Job, trio: list[Trainer], empty: bool) -> None:
    before = [trainer.incarnation for trainer in trio]
    job.kill_lighthouse()
    job.start_lighthouse(empty=empty)
    job.trains(*trio)
    assert [trainer.incarnation for trainer in trio] == before


def test_a_trainer_is_killed_while_the_lighthouse_is_down(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    job.kill_lighthouse()
    victim.strike(signal.SIGKILL)
    victim.exit_code()
    job.start_lighthouse()
    assert job.told(victim, survivors) == {"did not come back after the lighthouse restarted"}
    job.trains(*survivors)


def test_a_trainer_is_replaced_while_the_lighthouse_is_down(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    job.kill_lighthouse()
    victim.strike(signal.SIGKILL)
    replacement = job.start(victim.replica_id)
    job.start_lighthouse()
    job.told(victim, survivors)
    job.trains(*survivors, replacement)


# --- the listener ends --------------------------------------------------------------------------------


def test_a_listener_is_killed_and_its_successor_witnesses(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    incarnation, (listener,) = victim.incarnation, victim.last["listeners"]
    os.kill(listener, signal.SIGKILL)
    job.until(lambda: victim.last["listeners"] not in ([], [listener]), "there is a new listener")
    job.trains(*trio)
    assert victim.incarnation == incarnation
    victim.strike(signal.SIGKILL)
    assert job.told(victim, survivors) == {"killed by SIGKILL"}
    job.trains(*survivors)


def test_a_listener_and_at_once_its_trainer_are_killed(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    (listener,) = victim.last["listeners"]
    os.kill(listener, signal.SIGKILL)
    victim.strike(signal.SIGKILL)
    assert job.told(victim, survivors) <= {"connection lost", "killed by SIGKILL"}
    job.trains(*survivors)


# --- a trainer is stopped -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP], ids=["SIGSTOP", "Ctrl-Z"])
def test_a_trainer_is_stopped_and_continued(job: Job, trio: list[Trainer], number: signal.Signals) -> None:
    *survivors, victim = trio
    victim.strike(number)
    assert job.told(victim, survivors) == {"process stopped (SIGSTOP)"}
    job.trains(*survivors)
    healed = len(victim.said("healed"))
    os.killpg(victim.pid, signal.SIGCONT)
    job.trains(*trio)
    assert victim.incarnation not in victim.struck
    assert len(victim.said("healed")) > healed
