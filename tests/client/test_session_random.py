"""Anything that trainers, lighthouses, networks and time can do to a listener's session, in any order.

Nobody here behaves: lighthouses of any epoch, answers to what was never asked, notices that come twice, late
or not at all, a trainer that enrols after its death. Whatever they do, the promises checked below hold after
every step.
"""

from __future__ import annotations

from math import inf
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from procguard import codec
from procguard.client.link_words import (
    LINK,
    Farewell,
    FromListener,
    Heard,
    InQuorum,
    LastWords,
    Over,
)
from procguard.client.session import (
    BURIAL_S,
    Died,
    Event,
    Listen,
    Published,
    Received,
    Send,
    Session,
    State,
    Tell,
    TimePassed,
    Told,
    Trainer,
)
from procguard.messages import (
    KIND_OF,
    KINDS,
    Ack,
    Beacon,
    Cause,
    CauseKind,
    Excluded,
    FromMember,
    Heartbeat,
    Hello,
    HelloWanted,
    Incarnation,
    Leave,
    Message,
    Notice,
    NoticeBatch,
    Obituary,
    Phase,
    QuorumClaim,
    QuorumId,
    Rejected,
    Rejection,
    Rejoin,
    Resync,
    notice_topic,
)
from tests.client.fakes import EPOCH, JOB, KILLED, LEFT, STOPPED, TOKEN, enrol, life, welcome
from tests.test_codec import built

OWN = "a"
TOPIC = b"\0own topic"
LIVES_MAX = 3
EFFECTS_MAX = 8
"""Of one step: one event never makes a session talk without end."""

epochs = st.integers(EPOCH - 1, EPOCH + 2)
numbers = st.integers(1, LIVES_MAX)
seqs = st.integers(0, 5)
causes = st.sampled_from([KILLED, LEFT, STOPPED, Cause(CauseKind.PROCESS_EXIT, exit_code=0)])
notices = st.lists(
    st.builds(Notice, st.sampled_from([OWN, "b", "c"]), st.builds(life, numbers), causes, st.integers(0, 9)),
    max_size=3,
).map(tuple)
batches = st.builds(NoticeBatch, epochs, seqs, notices)
answers = st.one_of(
    st.builds(welcome, numbers, epochs, seqs),
    st.builds(HelloWanted, epochs),
    st.builds(Rejoin, st.just(TOKEN), st.builds(life, numbers), causes),
    st.builds(
        Rejected, st.sampled_from(Rejection), st.sampled_from(["no", "never"]), st.just(""), st.just(0)
    ),
    st.builds(Excluded, st.just(TOKEN), st.builds(QuorumId, epochs, numbers)),
    st.builds(Ack, st.sampled_from([KIND_OF[Leave], KIND_OF[Obituary], 99]), st.just(TOKEN)),
    batches,
)
published = st.one_of(batches, batches, st.builds(Beacon, epochs, seqs))
anything = st.one_of([built(kind) for kind in KINDS.values()])
trainers = st.builds(Trainer, st.sampled_from(Phase), st.integers(0, 9), st.integers(0, 9), st.booleans())


class Chaos(RuleBasedStateMachine):
    @initialize(threaded=st.booleans(), hear_notices=st.sampled_from([True, True, False]))
    def begin(self, threaded: bool, hear_notices: bool) -> None:
        self.session = Session(threaded=threaded, topic=TOPIC, hear_notices=hear_notices)
        self.threaded, self.hear_notices = threaded, hear_notices
        self.now = 100.0
        self.incarnation: Incarnation | None = None
        self.over: set[Incarnation] = set()
        self.claimed_epoch = 0
        self.died_at: float | None = None
        self.listens = 0

    # --- what happens -------------------------------------------------------------------------------

    @rule(number=numbers, epoch=epochs, seq=seqs)
    def enrols(self, number: int, epoch: int, seq: int) -> None:
        """A new life, or once more the one it has."""
        if self.session.state not in (State.DONE, State.BURYING):
            self.incarnation = life(number)
            self.over.discard(self.incarnation)  # the trainer's word; it knows what it does
        self.step(Told(enrol(number, epoch, seq, OWN)))

    @rule(number=numbers, epoch=epochs)
    def is_in_a_quorum(self, number: int, epoch: int) -> None:
        claim = QuorumClaim(QuorumId(epoch, number), ((OWN, life(number)),))
        self.step(Told(InQuorum(epoch, claim)))

    @rule(text=st.sampled_from(["", "ValueError: no"]))
    def says_last_words(self, text: str) -> None:
        self.step(Told(LastWords(text)))

    @rule(really=st.sampled_from([False] * 9 + [True]))
    def says_farewell(self, really: bool) -> None:
        if really:
            self.step(Told(Farewell()))
            assert self.session.state is State.DONE

    @rule(cause=causes, step=st.integers(0, 9), really=st.sampled_from([False] * 3 + [True]))
    def dies(self, cause: Cause, step: int, really: bool) -> None:
        if really:
            self.died_at = self.now if self.died_at is None else self.died_at
            self.step(Died(cause, step))
            assert self.session.state in (State.DONE, State.BURYING)

    @rule(message=answers)
    def is_answered(self, message: Message) -> None:
        self.step(Received(message))

    @rule(message=published)
    def hears(self, message: Beacon | NoticeBatch) -> None:
        enrolled = self.session.state not in (State.NEW, State.DONE)
        before = self.session._epoch, self.session._seq
        effects = self.step(Published(message))
        if enrolled and message.epoch > before[0]:
            before = message.epoch, 0
        missed = message.seq > before[1] + isinstance(message, NoticeBatch)
        if enrolled and message.epoch == before[0] and missed:
            assert any(isinstance(e, Send) and isinstance(e.message, Resync) for e in effects), "a gap"

    @rule(message=anything, published=st.booleans())
    def gets_anything(self, message: Message, published: bool) -> None:
        """Any message that the codec lets through, also one that no lighthouse sends."""
        self.step(Published(message) if published else Received(message))

    @rule(trainer=trainers)
    def looks_too_early(self, trainer: Trainer) -> None:
        self.step(TimePassed(trainer))

    @rule(seconds=st.sampled_from([0.05, 0.1, 0.3, 1.0, 3.0, BURIAL_S]), trainer=trainers)
    def time_passes(self, seconds: float, trainer: Trainer) -> None:
        """As a host lets it: whenever something is due."""
        end = self.now + seconds
        while (due := self.session.next_deadline()) <= end:
            self.now = max(self.now, due)
            self.step(TimePassed(trainer))
            assert self.session.next_deadline() > self.now, "a deadline that has passed is dealt with"
        self.now = end

    @rule(seconds=st.sampled_from([0.5, 5.0, 60.0]))
    def is_held_up(self, seconds: float) -> None:
        """Nothing is done for a while, and then all that is due."""
        self.now += seconds
        self.time_passes(0.0, Trainer())

    # --- what must hold -----------------------------------------------------------------------------

    def step(self, event: Event) -> tuple[Any, ...]:
        was = self.session.state
        effects = self.session.step(event, self.now)
        assert was is not State.DONE or not effects, "who is done says no more"
        assert len(effects) <= EFFECTS_MAX
        for effect in effects:
            if isinstance(effect, Send):
                self.check_said(effect.message, was)
            elif isinstance(effect, Tell):
                self.check_told(effect.message)
            elif isinstance(effect, Listen):
                self.listens += 1
                assert effect.topics == (notice_topic(JOB), TOPIC)
        return effects

    def check_said(self, message: Message, was: State) -> None:
        assert codec.decode(codec.encode(message)) == message
        assert isinstance(message, FromMember)
        assert self.incarnation is not None, "before it is enrolled it is nobody"
        if isinstance(message, Heartbeat):
            assert message.incarnation == self.incarnation not in self.over, "no beat for a life that is over"
            assert message.threaded is self.threaded
            assert was is not State.BURYING, "nor for the dead"
        elif isinstance(message, Hello):
            assert message.claim is not None, "it never asks to join"
            assert message.claim.incarnation == self.incarnation
            assert message.topic == TOPIC
            assert message.epoch >= self.claimed_epoch, "what was seen once is not forgotten"
            self.claimed_epoch = message.epoch
        elif isinstance(message, Leave | Obituary):
            assert self.died_at is not None, "nobody is buried alive"

    def check_told(self, message: Any) -> None:
        assert LINK.decode(LINK.encode(message)) == message
        assert isinstance(message, FromListener)
        if isinstance(message, Heard):
            assert self.hear_notices
            assert message.notices
            assert all(notice.replica_id != OWN for notice in message.notices)
        elif isinstance(message, Over):
            assert message.incarnation == self.incarnation not in self.over, "told once"
            self.over.add(message.incarnation)

    @invariant()
    def the_dead_are_buried_in_time(self) -> None:
        if self.died_at is not None and self.now > self.died_at + BURIAL_S:
            assert self.session.state is State.DONE

    @invariant()
    def it_listens_once_and_wakes_when_it_has_something_to_do(self) -> None:
        assert self.listens == (self.session._hello is not None)
        assert self.session.next_deadline() < inf or self.session.state in (State.NEW, State.DONE)


Chaos.TestCase.settings = settings(
    derandomize=True,
    max_examples=120,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
TestChaos = Chaos.TestCase
