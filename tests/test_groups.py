"""Replica groups of two ranks, as real processes: the ranks live and die as one, and the other groups go on.

The tests strike one job of two groups in turn, and leave it whole.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.messages import MemberState
from tests.job import Job, Trainer

RANKS = 2
Groups = dict[str, list[Trainer]]


class Agent:
    """Starts groups anew, as torchrun does: all ranks at once, each time as another run."""

    def __init__(self, job: Job, **environ: str) -> None:
        self.job = job
        self.groups: Groups = {}
        self._environ = environ
        self._runs = 0

    def start(self, *names: str) -> None:
        for name in names:
            self._runs += 1
            self.groups[name] = [self._start(name, rank) for rank in range(RANKS)]

    def _start(self, name: str, rank: int) -> Trainer:
        run = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": str(self._runs)}
        place = {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        return self.job.start(name, **(run | place | self._environ))

    def trains(self, *names: str) -> None:
        """These groups train together, each rank with the same rank of the others."""
        for rank in range(RANKS):
            self.job.trains(*[self.groups[name][rank] for name in names])

    def is_watched(self) -> None:
        trainers = [trainer for group in self.groups.values() for trainer in group]
        self.job.until(lambda: all(trainer.is_watched for trainer in trainers), "listeners watch all of them")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with Job(tmp_path_factory.mktemp("groups")) as job:
        agent = Agent(job)
        agent.start("0", "1")
        agent.trains("0", "1")
        agent.is_watched()
        yield agent


@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_is_killed_and_its_group_started_anew(agent: Agent, rank: int) -> None:
    job, survivors, group = agent.job, agent.groups["0"], agent.groups["1"]
    victim, other = group[rank], group[1 - rank]
    victim.hang()
    victim.strike(signal.SIGKILL)
    assert job.told(victim, survivors) == {f"killed by SIGKILL (rank {rank})"}
    assert other.exit_code() == 1
    assert f"ReplicaGroupLost: replica group 1 is over (killed by SIGKILL (rank {rank}))" in other.log
    agent.trains("0")
    agent.start("1")
    agent.trains("0", "1")
    agent.is_watched()
    assert agent.groups["1"][0].incarnation == agent.groups["1"][1].incarnation != victim.struck[0]
    job.check()


def test_the_host_of_the_groups_server_is_killed(agent: Agent) -> None:
    lives = [trainer.incarnation for group in agent.groups.values() for trainer in group]
    for name in ("0", "1"):
        rank_0 = agent.groups[name][0]
        (listener,) = rank_0.last["listeners"]
        os.kill(listener, signal.SIGKILL)
        agent.job.until(
            lambda rank_0=rank_0, gone=listener: rank_0.is_watched and gone not in rank_0.last["listeners"],
            "another listener has taken over",
        )
        agent.trains("0", "1")
    assert [trainer.incarnation for group in agent.groups.values() for trainer in group] == lives
    agent.job.check()


def test_the_lighthouse_is_killed_and_started_again(agent: Agent) -> None:
    lives = [trainer.incarnation for group in agent.groups.values() for trainer in group]
    agent.job.kill_lighthouse()
    agent.job.start_lighthouse()
    agent.trains("0", "1")
    assert [trainer.incarnation for group in agent.groups.values() for trainer in group] == lives
    states = [(member.state, len(member.ranks)) for member in agent.job.members().values()]
    assert states == [(MemberState.ALIVE, RANKS)] * 2
    agent.job.check()


def test_a_rank_that_is_stopped_takes_its_group_with_it(agent: Agent) -> None:
    job, survivors, (rank_0, rank_1) = agent.job, agent.groups["0"], agent.groups["1"]
    rank_1.strike(signal.SIGSTOP)
    assert job.told(rank_1, survivors) == {"process stopped (SIGSTOP) (rank 1)"}
    assert rank_0.exit_code() == 1
    agent.trains("0")
    rank_1.process.send_signal(signal.SIGCONT)
    assert rank_1.exit_code() == 1
    assert "ReplicaGroupLost" in rank_1.log
    agent.start("1")
    agent.trains("0", "1")
    agent.is_watched()
    job.check()


def test_without_proactive_recovery_a_group_is_served_by_a_thread(tmp_path: Path) -> None:
    with Job(tmp_path) as job:
        agent = Agent(job, PROCGUARD_PROACTIVE_RECOVERY="0")
        agent.start("0", "1")
        agent.trains("0", "1")
        agent.groups["1"][1].strike(signal.SIGKILL)
        assert agent.groups["1"][0].exit_code() == 1
        agent.trains("0")
