"""A rank's calls to its group's server, over a wire and a clock of the test's; the server is a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from procguard.client.group import Answer, Effect, Group
from procguard.client.group_client import GroupClient
from procguard.client.group_words import GROUP, RankAsks, Verdict, Vote
from procguard.errors import QuorumTimeout, ReplicaGroupLost, UsageError
from procguard.messages import Participant, Quorum, QuorumFormed, QuorumId, QuorumWaiting, Rank, Reason
from tests.client.fakes import DEADLINE_S, EPOCH, TOKEN, Clock, FakeWire, life, participant

LIFE = life(1)


class Stage:
    """Rank 1 of 2, a server that it must look up, and a rank 0 that does as the test says.

    Attributes:
        where: what the lighthouse answers to a lookup.
        silent: the server at this address has gone.
        rank_0: what rank 0 has said to a server when rank 1 speaks to it.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.where: tuple[str, int] | None = ("node0", 1)
        self.silent: set[tuple[str, int]] = set()
        self.lookups = 0
        self.connected: list[tuple[str, int]] = []
        self.wires: list[FakeWire] = []
        self.servers: dict[tuple[str, int], Group] = {}
        self.rank_0: Callable[[Group], tuple[Effect, ...]] = lambda group: ()
        self.lighthouse: Any = None
        self.client = GroupClient("g", 1, self._lookup, self._connect, self.clock, self.clock.advance)

    def _lookup(self, timeout_s: float) -> tuple[str, int] | None:
        self.lookups += 1
        if self.where is None:
            self.clock.advance(timeout_s)
        return self.where

    def _connect(self, host: str, port: int) -> FakeWire:
        where = (host, port)
        self.connected.append(where)
        group = self.servers.setdefault(where, Group(TOKEN, LIFE, 2))
        wire = FakeWire(self.clock, GROUP.decode, GROUP.encode)
        wire.answers = lambda message: self._serve(where, group, message)
        self.wires.append(wire)
        return wire

    def _serve(self, where: tuple[str, int], group: Group, message: Any) -> Iterable[Any]:
        if where in self.silent:
            return []
        effects = group.hear(b"rank 1", message, self.clock.now)
        effects += self.rank_0(group)
        if self.lighthouse is not None:
            effects += group.from_lighthouse(self.lighthouse)
        return [e.message for e in effects if isinstance(e, Answer) and b"rank 1" in e.peers]

    def ask(self, timeout_s: float = 10.0) -> Quorum:
        return self.client.quorum(asks(1), EPOCH, timeout_s).quorum


def asks(round: int) -> Participant:
    return participant("g", round=round, ranks=(Rank("handle", "metadata"),))


def rank_0_votes(commits: bool, round: int = 1) -> Callable[[Group], tuple[Effect, ...]]:
    return lambda group: group.hear(b"rank 0", Vote(0, LIFE, round, commits), 0.0)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.client.close()


def test_it_finds_the_server_and_gets_the_quorum(stage: Stage) -> None:
    quorum = Quorum(QuorumId(EPOCH, 7), "train", (participant("g", round=1, world_size=2),))
    stage.lighthouse = QuorumFormed(EPOCH, quorum)
    assert stage.ask() == quorum
    assert stage.connected == [("node0", 1)]


@pytest.mark.parametrize("commits", [True, False])
def test_the_verdict_is_the_groups(stage: Stage, commits: bool) -> None:
    stage.rank_0 = rank_0_votes(commits)
    assert stage.client.vote(LIFE, 1, True, 10.0) is commits
    assert stage.client.vote(LIFE, 1, True, 10.0) is commits, "asked again, it says the same"


def test_a_verdict_heard_is_told_with_the_next_request(stage: Stage) -> None:
    stage.rank_0 = rank_0_votes(True)
    stage.client.vote(LIFE, 1, True, 10.0)
    with pytest.raises(QuorumTimeout):
        stage.client.quorum(asks(2), EPOCH, 0.1)
    assert stage.wires[-1].sent[-1].last == Verdict(LIFE, 1, True)


def test_a_server_that_has_moved_is_found(stage: Stage) -> None:
    stage.rank_0 = rank_0_votes(True)
    stage.client.vote(LIFE, 1, True, 10.0)
    stage.silent.add(("node0", 1))
    stage.where = ("node0", 2)
    stage.rank_0 = rank_0_votes(True, round=2)
    began_at = stage.clock.now
    assert stage.client.vote(LIFE, 2, True, 10.0)
    assert stage.connected == [("node0", 1), ("node0", 2)]
    assert stage.clock.now < began_at + 0.5, "after two repetitions"


def test_a_server_that_stays_where_it_is_is_connected_to_afresh(stage: Stage) -> None:
    stage.silent.add(("node0", 1))
    with pytest.raises(ReplicaGroupLost, match=r"ranks of replica g did not all vote .* within 2 s"):
        stage.client.vote(LIFE, 1, True, 2.0)
    assert stage.wires[0].reconnects > 0
    assert len(stage.connected) == 1


def test_what_was_missing_is_said(stage: Stage) -> None:
    with pytest.raises(QuorumTimeout, match="no quorum within 1 s: rank 0 of replica g did not answer"):
        stage.ask(1.0)
    stage.rank_0 = lambda group: group.time_passed(stage.clock.now)
    with pytest.raises(QuorumTimeout, match="waiting for ranks 0 of replica g"):
        stage.ask(1.0)
    waiting = QuorumWaiting(Reason.TOO_FEW_REPLICAS, 1, 2, ())
    stage.lighthouse = waiting
    stage.rank_0 = lambda group: group.hear(
        b"rank 0", RankAsks(0, 9.0, EPOCH, asks(1), None), stage.clock.now
    )
    with pytest.raises(QuorumTimeout, match="too few replicas: 1 of 2 replicas"):
        stage.ask(1.0)


def test_a_rank_with_another_key_than_its_group_is_told_so(stage: Stage) -> None:
    stage.silent.add(("node0", 1))
    with pytest.raises(QuorumTimeout):
        stage.ask(1.0)
    stage.wires[0].explanation = "who serves there holds another key"
    with pytest.raises(
        QuorumTimeout, match=r"did not answer: who serves there .*; all ranks of a replica use"
    ):
        stage.ask(1.0)


def test_a_lighthouse_that_does_not_know_yet_is_asked_again(stage: Stage) -> None:
    stage.where = None
    with pytest.raises(QuorumTimeout, match="rank 0 of replica g did not answer"):
        stage.ask(5.0)
    assert stage.lookups >= 3
    assert not stage.connected


def test_the_loss_of_the_group_ends_a_call_in_progress_and_all_later_ones(stage: Stage) -> None:
    lost = ReplicaGroupLost("rank 0 has died")
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            stage.ask(600.0)
        except ReplicaGroupLost as error:
            caught.append(error)

    stage.where = ("node0", 1)
    wire_made = threading.Event()
    connect = stage._connect

    def patient(host: str, port: int) -> FakeWire:
        wire = connect(host, port)
        wire.is_patient = True
        wire_made.set()
        return wire

    stage.client._connect = patient
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert wire_made.wait(DEADLINE_S)
    assert stage.wires[0].is_waiting.wait(DEADLINE_S)
    stage.client.lost(lost)
    waiting.join(DEADLINE_S)
    assert caught == [lost]
    with pytest.raises(ReplicaGroupLost):
        stage.client.vote(LIFE, 1, True, 10.0)


def test_after_close_nothing_is_asked(stage: Stage) -> None:
    stage.rank_0 = rank_0_votes(True)
    stage.client.vote(LIFE, 1, True, 10.0)
    stage.client.close()
    assert stage.wires[0].is_closed
    with pytest.raises(UsageError, match="shut down"):
        stage.client.vote(LIFE, 2, True, 10.0)
