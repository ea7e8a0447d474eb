"""The trainer's blocking calls, over a wire and a clock of the test's; and what errors say."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from procguard import codec
from procguard.client.lighthouse_client import LighthouseClient, explain_unreachable, local_address_toward
from procguard.client.link_words import Over
from procguard.errors import LighthouseRejected, LighthouseUnreachable, QuorumTimeout, UsageError
from procguard.messages import (
    KIND_OF,
    Ack,
    Hello,
    HelloWanted,
    Leave,
    Quorum,
    QuorumFormed,
    QuorumRequest,
    QuorumWaiting,
    Reason,
    Rejected,
    Rejection,
    Rejoin,
    Welcome,
)
from tests.client.fakes import (
    DEADLINE_S,
    EPOCH,
    STOPPED,
    TOKEN,
    Clock,
    FakeWire,
    hello,
    life,
    participant,
    quorum,
    welcome,
)

WHERE = "127.0.0.1:1 (given as lighthouse_addr)"


class Stage:
    """A client and the lighthouse it talks to, which does as ``replies`` says for each kind of message."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.wire = FakeWire(self.clock, codec.decode, codec.encode)
        self.wire.answers = self._answer
        self.births: list[Welcome] = []
        self.client = LighthouseClient(self.wire, hello(), WHERE, self.births.append, self.clock)
        self.replies: dict[type, Callable[[Any], Iterable[Any]]] = {
            Hello: lambda message: [welcome()],
            QuorumRequest: lambda message: [formed(message)],
            Leave: lambda message: [Ack(KIND_OF[Leave], TOKEN)],
        }

    def _answer(self, message: Any) -> Iterable[Any]:
        return self.replies.get(type(message), lambda message: [])(message)

    def silent(self, kind: type) -> None:
        self.replies[kind] = lambda message: []

    def joined(self) -> Stage:
        self.client.join(5.0)
        return self

    def ask(self, timeout_s: float = 10.0, asked: int = 1, **also: Any) -> Quorum:
        return self.client.quorum(participant("a", 0, round=asked), timeout_s, **also)

    def sent(self, kind: type) -> list[Any]:
        return [message for message in self.wire.sent if type(message) is kind]


def formed(request: QuorumRequest) -> QuorumFormed:
    return QuorumFormed(EPOCH, quorum(1, request.participant, participant("b", 2)))


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.client.close()
    assert stage.wire.is_closed


def test_joining_gives_an_incarnation(stage: Stage) -> None:
    assert stage.client.join(5.0) == welcome()
    assert stage.births == [welcome()]
    assert stage.client.welcome == welcome()
    assert stage.client.epoch == EPOCH


def test_a_lighthouse_that_does_not_answer_is_unreachable(stage: Stage) -> None:
    stage.silent(Hello)
    with pytest.raises(LighthouseUnreachable, match=r"no lighthouse answered at 127\.0\.0\.1:1 \(given as"):
        stage.client.join(5.0)
    assert stage.clock.now == 105.0
    assert stage.wire.reconnects == 2, "it tried on a new connection, and dropped what nobody took"


def test_one_that_asks_for_another_key_is_told_of_early_and_at_the_end(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.silent(Hello)
    stage.wire.explanation = "a key is asked for there"
    with pytest.raises(LighthouseUnreachable, match=r"within 5 s: a key is asked for there$"):
        stage.client.join(5.0)
    assert "trying on: a key is asked for there" in caplog.text


def test_one_that_refuses_for_good_is_believed_at_once(stage: Stage) -> None:
    stage.replies[Hello] = lambda message: [
        Rejected(Rejection.MIN_REPLICAS_CONFLICT, "asked 2, has 3", "", 0)
    ]
    with pytest.raises(LighthouseRejected, match="refused: asked 2, has 3"):
        stage.client.join(5.0)
    assert stage.clock.now == 100.0


def test_a_name_in_use_is_waited_for_as_long_as_one_may(stage: Stage) -> None:
    stage.replies[Hello] = lambda message: [Rejected(Rejection.ID_IN_USE, "in use", "host", 17)]
    with pytest.raises(LighthouseRejected, match="pid 17 on host"):
        stage.client.join(5.0)
    assert stage.clock.now == 105.0


def test_what_is_no_message_is_dropped(stage: Stage) -> None:
    stage.wire.incoming.append(b"HTTP/1.1 400 Bad Request")
    assert stage.client.join(5.0) == welcome()


def test_a_quorum_is_asked_for_until_it_comes(stage: Stage) -> None:
    stage.joined()
    stage.replies[QuorumRequest] = lambda message: (
        [formed(message)] if len(stage.sent(QuorumRequest)) == 3 else []
    )
    assert [p.replica_id for p in stage.ask().participants] == ["a", "b"]
    assert stage.clock.now < 101.0


def test_a_quorum_that_does_not_come_says_what_it_waited_for(stage: Stage) -> None:
    stage.joined()
    stage.replies[QuorumRequest] = lambda message: [QuorumWaiting(Reason.TOO_FEW_REPLICAS, 1, 2, ())]
    with pytest.raises(QuorumTimeout, match=r"no quorum within 10 s at .*: too few replicas: 1 of 2"):
        stage.ask()
    stage.replies[QuorumRequest] = lambda message: [formed(message)]
    assert stage.ask(asked=2), "the next one may come"


def test_an_answer_that_was_lost_with_its_connection_is_asked_for_again(stage: Stage) -> None:
    """The connection is dead and nothing says so: only silence tells."""
    stage.joined()
    stage.replies[QuorumRequest] = lambda message: [formed(message)] if stage.wire.reconnects else []
    assert stage.ask()
    assert 102.0 <= stage.clock.now < 103.0


def test_a_life_that_is_over_is_begun_anew_on_the_way(stage: Stage) -> None:
    stage.joined()
    stage.replies[Hello] = lambda message: [welcome(5)]
    stage.replies[QuorumRequest] = lambda message: [
        formed(message)
        if message.participant.incarnation == life(5)
        else Rejoin(TOKEN, message.participant.incarnation, STOPPED)
    ]
    assert stage.ask().participants[0].incarnation == life(5)
    assert stage.births == [welcome(1), welcome(5)]


def test_a_life_that_the_listener_knows_to_be_over_is_not_claimed_from_a_lighthouse_that_forgot(
    stage: Stage,
) -> None:
    """It would be adopted, while its own listener has fallen silent."""
    stage.joined()
    stage.replies[Hello] = lambda message: [welcome(5, EPOCH + 1)]
    stage.replies[QuorumRequest] = lambda message: [
        QuorumFormed(EPOCH + 1, quorum(1, message.participant, epoch=EPOCH + 1))
    ]
    assert stage.ask(over=lambda: Over(EPOCH, life(1), STOPPED)).participants[0].incarnation == life(5)
    assert [message.claim for message in stage.sent(Hello)] == [None, None]


def test_a_life_that_ends_while_a_lighthouse_is_waited_for_is_not_claimed_from_the_next(stage: Stage) -> None:
    stage.joined()
    heard: list[Over] = []
    stage.replies[QuorumRequest] = lambda message: (
        heard.append(Over(EPOCH, life(1), STOPPED)) or [HelloWanted(EPOCH + 1)]
        if message.participant.incarnation == life(1)
        else [QuorumFormed(EPOCH + 1, quorum(1, message.participant, epoch=EPOCH + 1))]
    )
    stage.replies[Hello] = lambda message: [welcome(5, EPOCH + 1)]
    formed = stage.ask(over=lambda: heard[-1] if heard else None)
    assert formed.participants[0].incarnation == life(5)
    assert {message.claim for message in stage.sent(Hello)} == {None}


def test_a_lighthouse_that_was_restarted_is_told_of_the_quorum(stage: Stage) -> None:
    stage.joined()
    stage.ask()
    stage.replies[QuorumRequest] = lambda message: [HelloWanted(EPOCH + 1)]
    stage.replies[Hello] = lambda message: [stage.replies.pop(QuorumRequest) and welcome(1, EPOCH + 1)]
    with pytest.raises(QuorumTimeout):
        stage.ask(asked=2)
    claim = stage.sent(Hello)[-1].claim
    assert claim.incarnation == life(1)
    assert [name for name, _ in claim.quorum.members] == ["a", "b"]


# --- leaving ------------------------------------------------------------------------------------------


def test_leaving_waits_for_the_acknowledgement(stage: Stage) -> None:
    stage.joined()
    assert stage.client.leave(7, 2.0)
    assert stage.sent(Leave) == [Leave(TOKEN, life(1), 7)]


def test_leaving_does_not_wait_for_ever(stage: Stage) -> None:
    stage.joined()
    stage.silent(Leave)
    assert not stage.client.leave(7, 2.0)
    assert stage.clock.now == 102.0


def test_after_leaving_nobody_joins_again(stage: Stage) -> None:
    stage.joined()
    stage.client.leave(7, 2.0)
    hellos = len(stage.sent(Hello))
    with pytest.raises(UsageError, match="shut down"):
        stage.ask()
    assert len(stage.sent(Hello)) == hellos
    assert stage.sent(QuorumRequest) == []


def test_leaving_ends_a_call_in_progress_in_another_thread(stage: Stage) -> None:
    stage.joined()
    stage.silent(QuorumRequest)
    stage.wire.is_patient = True
    errors: list[Exception] = []

    def ask() -> None:
        try:
            stage.ask()
        except UsageError as error:
            stage.wire.is_patient = False
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert stage.wire.is_waiting.wait(DEADLINE_S)
    assert stage.client.leave(7, 2.0)
    asking.join(DEADLINE_S)
    assert "shut down" in str(errors[0])
    assert stage.sent(Leave) == [Leave(TOKEN, life(1), 7)]


# --- what is likely wrong -----------------------------------------------------------------------------


def test_the_likely_mistake_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = explain_unreachable(f"127.0.0.1:{port} (from PROCGUARD_LIGHTHOUSE)", 3.0)
        assert said.startswith(
            f"no lighthouse answered at 127.0.0.1:{port} (from PROCGUARD_LIGHTHOUSE) within 3 s"
        )
        assert f"is {port} the lighthouse's --port?" in said
    said = explain_unreachable(f"127.0.0.1:{port} (from PROCGUARD_LIGHTHOUSE)", 3.0)
    assert (
        f"nothing listens on port {port} of 127.0.0.1; start one with `procguard-lighthouse --port {port}`"
        in said
    )


def test_a_name_that_is_none_is_said_to_be_none() -> None:
    assert "'no-such-host.invalid' does not resolve" in explain_unreachable(
        "no-such-host.invalid:29510 (x)", 1
    )


def test_the_way_to_a_host_begins_at_an_address_of_ours() -> None:
    assert local_address_toward("127.0.0.1", 29510) == "127.0.0.1"
    assert local_address_toward("no-such-host.invalid", 29510) == "127.0.0.1"
