"""One membership: its lighthouse is a function of the test, and the test plays the listener's part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from procguard import codec
from procguard.adapters.zmq_ranks import ZmqRankServer
from procguard.client.link import Link, link_pair
from procguard.client.link_words import Enrol, Farewell, InQuorum, LastWords, LinkMessage, Ready
from procguard.client.membership import LAST_WORDS_MAX, Identity, Membership, this_process
from procguard.client.witness import Board, LifeLine
from procguard.errors import LighthouseRejected, ReplicaGroupLost
from procguard.messages import (
    KIND_OF,
    Ack,
    Cause,
    Hello,
    Incarnation,
    Leave,
    Notice,
    Phase,
    QuorumClaim,
    QuorumFormed,
    QuorumId,
    QuorumRequest,
    Rejected,
    Rejection,
    Rejoin,
)
from tests.client.fakes import (
    DEADLINE_S,
    EPOCH,
    STOPPED,
    TOKEN,
    Clock,
    FakeWire,
    life,
    no_rank,
    no_server,
    participant,
    quorum,
    welcome,
)

IDENTITY = Identity("train", "a", 1, 0.0)


class Deaf:
    """Hears of failures, and does nothing about them."""

    def hear(self, epoch: int, notices: tuple[Notice, ...]) -> None:
        pass

    def over(self, epoch: int, incarnation: Incarnation, cause: Cause) -> None:
        pass

    def left_out(self, quorum_id: QuorumId) -> None:
        pass


class FakeListener:
    """A listener process whose session is the test."""

    def __init__(self, life_line: LifeLine) -> None:
        ours, theirs = link_pair()
        theirs.settimeout(DEADLINE_S)
        self.link, self.session = Link(ours), Link(theirs, DEADLINE_S)
        self.pid = 77
        self._heard: list[LinkMessage] = []

    def close(self) -> None:
        self.link.send(Farewell())
        self.link.close()

    def ended_with(self) -> str:
        return "exit code 0"

    def hear(self, kind: type) -> Any:
        """The next message of this kind."""
        while True:
            for at, message in enumerate(self._heard):
                if type(message) is kind:
                    return self._heard.pop(at)
            messages = self.session.receive()
            assert messages, f"no {kind.__name__} within {DEADLINE_S} s, but {self._heard}"
            self._heard += messages


class Stage:
    def __init__(self, answer: Callable[[Any], Any] | None = None, identity: Identity = IDENTITY) -> None:
        self.answer = answer or self._kindly
        self.wires: list[FakeWire] = []
        self.listeners: list[FakeListener] = []
        self._started = threading.Event()
        self.membership = Membership(
            identity,
            where="127.0.0.1:1 (given as lighthouse_addr)",
            host="127.0.0.1",
            connect=self._connect,
            connect_rank=no_rank,
            open_server=no_server if identity.group_world_size == 1 else ZmqRankServer,
            start_process=self._start_process,
            hears=Deaf(),
            connect_timeout_s=5.0,
        )

    def _connect(self) -> FakeWire:
        """The trainer's own connection answers; those of sessions in threads lead nowhere."""
        wire = FakeWire(Clock(), codec.decode, codec.encode)
        wire.is_patient = bool(self.wires)
        wire.answers = lambda message: [self.answer(message)] if wire is self.wires[0] else []
        self.wires.append(wire)
        return wire

    def _start_process(self, life_line: LifeLine) -> FakeListener:
        self.listeners.append(FakeListener(life_line))
        self.listeners[-1].session.send(Ready())
        self._started.set()
        return self.listeners[-1]

    @property
    def listener(self) -> FakeListener:
        assert self._started.wait(DEADLINE_S)
        return self.listeners[0]

    def sent(self, kind: type) -> list[Any]:
        return [message for message in self.wires[0].sent if type(message) is kind]

    @staticmethod
    def _kindly(message: Any) -> Any:
        if isinstance(message, QuorumRequest):
            return QuorumFormed(EPOCH, quorum(1, message.participant, participant("b", 2)))
        return welcome() if isinstance(message, Hello) else Ack(KIND_OF[Leave], TOKEN)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.membership.leave(0)
    for listener in stage.listeners:
        listener.session.close()


def test_to_join_is_to_have_a_listener_that_beats_for_the_incarnation(stage: Stage) -> None:
    enrolled: Enrol = stage.listener.hear(Enrol)
    assert enrolled.hello.claim is not None
    assert enrolled.hello.claim.incarnation == stage.membership.incarnation == life(1)
    assert enrolled.hello.token == stage.sent(Hello)[0].token
    assert enrolled.hello.process == this_process()
    assert stage.membership.listening_pids == [77]


def test_the_quorum_is_known_to_the_listener_before_it_is_used(stage: Stage) -> None:
    stage.membership.quorum(participant("a", 1), 5.0)
    claim = QuorumClaim(QuorumId(EPOCH, 1), (("a", life(1)), ("b", life(2))))
    assert stage.listener.hear(InQuorum) == InQuorum(EPOCH, claim)


def test_a_new_life_is_beaten_for_before_its_quorum_is_asked_for(stage: Stage) -> None:
    stage.answer = lambda message: (
        Rejoin(message.token, life(1), STOPPED)
        if isinstance(message, QuorumRequest) and message.participant.incarnation == life(1)
        else welcome(6)
        if isinstance(message, Hello)
        else Stage._kindly(message)
    )
    stage.listener.hear(Enrol)
    assert stage.membership.quorum(participant("a", 1), 5.0).participants[0].incarnation == life(6)
    assert stage.membership.incarnation == life(6)
    assert stage.listener.hear(Enrol).hello.claim.incarnation == life(6)


def test_an_exception_is_announced_in_one_line_of_words_that_can_be_sent(stage: Stage) -> None:
    stage.listener.hear(Enrol)
    stage.membership.say_last_words(ValueError("first line\nsecond"))
    assert stage.listener.hear(LastWords).text == "ValueError: first line"
    stage.membership.say_last_words(FileNotFoundError("no file \udcff.bin"))
    assert stage.listener.hear(LastWords).text == "FileNotFoundError: no file ?.bin"
    stage.membership.say_last_words(RuntimeError("x" * 10_000))
    assert len(stage.listener.hear(LastWords).text) == LAST_WORDS_MAX


def test_leaving_says_so_to_the_lighthouse_and_sends_the_listener_home() -> None:
    stage = Stage()
    stage.listener.hear(Enrol)
    stage.membership.leave(9)
    assert [message.step for message in stage.sent(Leave)] == [9]
    stage.listener.hear(Farewell)
    assert stage.wires[0].is_closed
    stage.listener.session.close()


def test_a_forked_child_does_not_write_on_its_parents_board(stage: Stage) -> None:
    stage.membership.show(phase=Phase.COMPUTE, progress=1, step=2)
    stage.membership._disowned = True
    stage.membership.show(phase=Phase.PAUSED, progress=9, step=9)
    assert stage.membership.board.read() == Board(Phase.COMPUTE, 1, 2)


@pytest.mark.parametrize(("rank", "serves_at"), [(0, "127.0.0.1"), (1, "")])
def test_rank_0_of_several_serves_its_group_and_a_lost_group_stays_lost(rank: int, serves_at: str) -> None:
    stage = Stage(identity=IDENTITY._replace(group_rank=rank, group_world_size=2, group_run="run"))
    enrolled: Enrol = stage.listener.hear(Enrol)
    assert enrolled.serve_at == serves_at
    assert enrolled.hello[4:7] == (rank, 2, "run")
    stage.membership.over(EPOCH, life(9), STOPPED)
    stage.membership.check_group()
    stage.membership.over(EPOCH, life(1), STOPPED)
    with pytest.raises(ReplicaGroupLost, match=r"replica group a is over \(process stopped"):
        stage.membership.check_group()
    with pytest.raises(ReplicaGroupLost):
        stage.membership.vote(1, True, 5.0)
    with pytest.raises(ReplicaGroupLost):
        stage.membership.quorum(participant("a", 1), 5.0)
    stage.membership.leave(0)
    stage.listeners[0].session.close()


def test_the_only_rank_of_a_replica_has_no_group_to_lose(stage: Stage) -> None:
    stage.membership.over(EPOCH, life(1), STOPPED)
    stage.membership.check_group()
    assert stage.membership.vote(1, True, 5.0)


def test_one_that_may_not_join_leaves_nothing_open() -> None:
    wires: list[FakeWire] = []

    def connect() -> FakeWire:
        wire = FakeWire(Clock(), codec.decode, codec.encode)
        wire.answers = lambda message: [Rejected(Rejection.FULL, "full", "", 0)]
        wires.append(wire)
        return wire

    with pytest.raises(LighthouseRejected):
        Membership(
            IDENTITY,
            where="127.0.0.1:1 (x)",
            host="127.0.0.1",
            connect=connect,
            connect_rank=no_rank,
            open_server=no_server,
            start_process=None,
            hears=Deaf(),
            connect_timeout_s=5.0,
        )
    assert [wire.is_closed for wire in wires] == [True]
