"""The loop around a session: what reaches it, in which order, and what is done for it. Nothing waits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest

from procguard import codec
from procguard.client.group_host import GroupHost
from procguard.client.link import Link, link_pair
from procguard.client.link_words import Farewell, Heard, LastWords, LinkMessage, Ready
from procguard.client.loop import PROOF_WAIT_S, ListenerLoop
from procguard.client.session import Session, State, Trainer
from procguard.messages import (
    KIND_OF,
    Ack,
    Cause,
    CauseKind,
    Heartbeat,
    Hello,
    Leave,
    NoticeBatch,
    Obituary,
    Phase,
    notice_topic,
)
from tests.client.fakes import EPOCH, JOB, KILLED, TOKEN, Clock, FakeWire, enrol, no_server, notice, welcome


class FakeWatch:
    """Sees the trainer that the test has put there."""

    def __init__(self) -> None:
        self._read, self.bell = os.pipe()
        self.trainer = Trainer(Phase.COMPUTE, 1, 3)
        self.cause: Cause | None = None
        self.looks = 0

    def fds(self) -> Sequence[int]:
        return (self._read,)

    def look(self) -> tuple[Trainer, Cause | None]:
        self.looks += 1
        return self.trainer, self.cause

    def close(self) -> None:
        os.close(self._read)
        os.close(self.bell)


class Stage:
    """A loop in virtual time, with the trainer's end of its link in the test's hand."""

    def __init__(self, watch: FakeWatch | None) -> None:
        ours, theirs = link_pair()
        self.trainer, self._inner = Link(ours), Link(theirs)
        self.clock = Clock()
        self.wire = FakeWire(self.clock, codec.decode, codec.encode)
        self.session = Session(threaded=False, topic=b"\0own topic")
        self.watch = watch
        self.loop = ListenerLoop(
            self.session, self.wire, self._inner, watch, GroupHost(no_server), self.clock
        )

    def say(self, *messages: LinkMessage) -> None:
        for message in messages:
            self.trainer.send(message)
        self.turn("link")

    def turn(self, *ready: str) -> None:
        """One turn in which these descriptors are readable."""
        fds = {"link": self._inner.fileno()}
        if self.watch:
            fds["watch"] = self.watch.fds()[0]
        self.wire.ready = [fds[name] for name in ready]
        self.loop.turn()

    def heard(self) -> list[LinkMessage] | None:
        return self.trainer.receive()

    def sent(self, kind: type) -> list[object]:
        return [message for message in self.wire.sent if type(message) is kind]

    def beating(self) -> Stage:
        self.say(enrol())
        self.wire.deliver(welcome())
        self.turn()
        assert self.heard() == [Ready()]
        return self

    def close(self) -> None:
        self.trainer.close()
        self._inner.close()


@pytest.fixture
def watch() -> Iterator[FakeWatch]:
    watch = FakeWatch()
    yield watch
    watch.close()


@pytest.fixture
def stage(watch: FakeWatch) -> Iterator[Stage]:
    stage = Stage(watch)
    yield stage
    stage.close()


@pytest.fixture
def blind() -> Iterator[Stage]:
    """Nothing but the link tells of the trainer's end."""
    stage = Stage(None)
    yield stage
    stage.close()


def test_enrolled_it_subscribes_says_hello_and_beats_in_the_same_turn(stage: Stage) -> None:
    stage.say(enrol())
    assert stage.wire.listening == (29511, (notice_topic(JOB), b"\0own topic"))
    assert len(stage.sent(Hello)) == 1
    (beat,) = stage.sent(Heartbeat)
    assert isinstance(beat, Heartbeat)
    assert (beat.phase, beat.progress, beat.step) == (Phase.COMPUTE, 1, 3)


def test_time_passes_by_the_sessions_own_deadlines(stage: Stage) -> None:
    stage.beating()
    for _ in range(10):
        stage.turn()
    assert len(stage.sent(Heartbeat)) == 11
    assert round(stage.clock.now - 100.0, 3) == 1.0


def test_notices_and_answers_reach_the_session(stage: Stage) -> None:
    stage.beating()
    stage.wire.published.append(notice_topic(JOB) + codec.encode(NoticeBatch(EPOCH, 1, (notice("b"),))))
    stage.turn()
    assert stage.heard() == [Heard(EPOCH, (notice("b"),))]
    stage.wire.deliver(NoticeBatch(EPOCH, 2, (notice("c"),)))
    stage.turn()
    assert stage.heard() == [Heard(EPOCH, (notice("c"),))]


def test_a_frame_that_is_no_message_is_dropped(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.beating()
    stage.wire.incoming.append(b"garbage")
    stage.wire.published.append(notice_topic(JOB) + b"garbage")
    stage.turn()
    assert caplog.text.count("A frame from the lighthouse was dropped") == 2
    assert stage.session.state is State.BEATING


def test_a_connection_that_seems_dead_is_made_anew(stage: Stage) -> None:
    stage.beating()
    while not stage.wire.reconnects:
        stage.turn()
    assert round(stage.clock.now - 100.0, 3) == 2.0


# --- the trainer's end --------------------------------------------------------------------------------


def test_the_witness_is_asked_when_it_rings_and_at_each_beat(stage: Stage, watch: FakeWatch) -> None:
    stage.beating()
    looks = watch.looks
    stage.turn("watch")
    assert watch.looks > looks
    assert stage.sent(Obituary) == [], "it rang, but there was no death"
    looks = watch.looks
    stage.turn()
    assert watch.looks == looks + 1


def test_a_death_goes_out_in_the_turn_in_which_it_is_seen(stage: Stage, watch: FakeWatch) -> None:
    stage.beating()
    watch.cause = KILLED
    stage.turn("watch")
    (obituary,) = stage.sent(Obituary)
    assert isinstance(obituary, Obituary)
    assert obituary.cause == KILLED
    beats = len(stage.sent(Heartbeat))
    stage.turn()
    assert len(stage.sent(Heartbeat)) == beats
    stage.wire.deliver(Ack(KIND_OF[Obituary], TOKEN))
    stage.loop.run()
    assert stage.session.state is State.DONE


def test_last_words_are_heard_before_the_death_that_comes_with_them(stage: Stage, watch: FakeWatch) -> None:
    stage.beating()
    stage.trainer.send(LastWords("ValueError: bad"))
    stage.trainer.close()
    watch.cause = KILLED
    stage.turn("watch", "link")
    (obituary,) = stage.sent(Obituary)
    assert isinstance(obituary, Obituary)
    assert obituary.cause.text == "ValueError: bad"


def test_a_farewell_goes_before_the_death_that_comes_with_it(stage: Stage, watch: FakeWatch) -> None:
    stage.beating()
    stage.trainer.send(Farewell())
    watch.cause = Cause(CauseKind.PROCESS_EXIT, exit_code=0)
    stage.turn("watch", "link")
    assert stage.session.state is State.DONE
    assert stage.sent(Leave) == []
    assert stage.sent(Obituary) == []


def test_the_links_end_makes_it_look_for_a_death(stage: Stage, watch: FakeWatch) -> None:
    stage.beating()
    stage.trainer.close()
    watch.cause = Cause(CauseKind.PROCESS_EXIT, exit_code=0)
    watch.trainer = Trainer(Phase.COMPUTE, 2, 9)
    stage.turn("link")
    (leave,) = stage.sent(Leave)
    assert isinstance(leave, Leave)
    assert leave.step == 9


def test_a_proof_that_comes_a_little_late_is_waited_for(stage: Stage, watch: FakeWatch) -> None:
    stage.beating()
    stage.trainer.close()
    stage.turn("link")
    assert stage.sent(Obituary) == []
    watch.cause = KILLED
    stage.turn("watch")
    stage.wire.deliver(Ack(KIND_OF[Obituary], TOKEN))
    stage.loop.run()
    assert len(stage.sent(Obituary)) == 1


def test_dropped_by_a_trainer_that_lives_it_goes_without_a_word(stage: Stage) -> None:
    stage.beating()
    stage.trainer.close()
    stage.turn("link")
    ended_at = stage.clock.now
    stage.loop.run()
    assert stage.clock.now - ended_at >= PROOF_WAIT_S
    assert stage.sent(Obituary) == []


def test_without_a_witness_the_links_end_is_the_death(blind: Stage) -> None:
    blind.beating()
    (beat,) = blind.sent(Heartbeat)
    assert isinstance(beat, Heartbeat)
    assert beat.phase is Phase.STARTING, "nobody sees what it does"
    blind.trainer.close()
    blind.turn("link")
    (obituary,) = blind.sent(Obituary)
    assert isinstance(obituary, Obituary)
    assert obituary.cause == Cause(CauseKind.PROCESS_EXIT)


def test_what_cannot_be_told_any_more_changes_nothing(stage: Stage) -> None:
    stage.beating()
    stage.trainer.close()
    stage.wire.deliver(NoticeBatch(EPOCH, 1, (notice("b"),)))
    stage.turn()
    assert stage.session.state is State.BEATING
    stage.turn("link")
    stage.loop.run()
    assert stage.sent(Obituary) == [], "the trainer lives: it has a better listener by now"
