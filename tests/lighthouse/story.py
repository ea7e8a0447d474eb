"""Tells the lighthouse's core a story in virtual time, and says what came of it.

A ``Story`` plays the trainers with their listeners, the transport and the clock; what it leaves to the test
is the plot::

    story = Story()
    story.join("a", "b")
    story.ask("a", "b")
    story.expect_quorum("a", "b")
    story.kill("b")
    story.expect_notice("b", CauseKind.PROCESS_EXIT)

While time advances, everyone beats who has not been silenced, and comes back by itself to a lighthouse
that has forgotten it. A name is a replica id, ``"other:a"`` one of another job, ``"a/1"`` a further rank
of a group; where a name has had several processes it means the last that was let in. Each verb is one
batch of the lighthouse's inbox, unless it is said within ``with story.one_batch():``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

from procguard.lighthouse.core import Core
from procguard.lighthouse.events import (
    Effect,
    Event,
    Log,
    LoopStalled,
    PersistEpoch,
    Publish,
    Received,
    Send,
    TimePassed,
    TopicHeld,
    TopicLost,
)
from procguard.lighthouse.roster import Options
from procguard.messages import (
    Beacon,
    Cause,
    CauseKind,
    HelloWanted,
    JobView,
    Leave,
    MemberState,
    MemberView,
    Message,
    Notice,
    NoticeBatch,
    Obituary,
    Quorum,
    QuorumFormed,
    QuorumRequest,
    QuorumWaiting,
    Reason,
    Settings,
    Welcome,
)
from tests.lighthouse.person import JOB, Person, participant

SETTINGS = Settings(
    heartbeat_interval_s=0.1,
    heartbeat_timeout_s=1.0,
    thread_heartbeat_timeout_s=5.0,
    disconnect_grace_s=0.3,
    join_timeout_s=60.0,
)
EPOCH = 1_000
KILLED = Cause(CauseKind.PROCESS_EXIT, signal=9)
M = TypeVar("M")


class Story:
    """One lighthouse with all that happens to it.

    Attributes:
        effects: all that the core has asked for, oldest first.
        notices: published and not yet expected by the test.
    """

    def __init__(
        self,
        *,
        min_replicas: int = 1,
        epoch: int = EPOCH,
        restarted: bool = False,
        settings: Settings = SETTINGS,
    ) -> None:
        self.now = 0.0
        self.settings = settings
        self.people: dict[str, Person] = {}
        self.effects: list[Effect] = []
        self.notices: list[Notice] = []
        self._by_peer: dict[bytes, Person] = {}
        self._errands: list[Person] = []
        self._numbers = count(1)
        self._tick = 1
        self._batches_open = 0
        self.start_lighthouse(epoch, min_replicas=min_replicas, restarted=restarted)

    def start_lighthouse(self, epoch: int, *, min_replicas: int = 1, restarted: bool = False) -> None:
        options = Options(self.settings, min_replicas, 29511, restarted)
        self.core = Core(options, epoch, self.now)

    def restart(self, epoch: int | None = None) -> None:
        """The lighthouse dies and is started again: it knows nobody, and holds no topic."""
        self.start_lighthouse(epoch or self.core.epoch + 1, restarted=True)

    # --- the transport

    def tell(self, event: Event) -> list[Effect]:
        """One event, and what the core made of it."""
        effects = list(self.core.step(event, self.now))
        for effect in effects:
            self._perform(effect)
        return effects

    def say(self, peer: bytes, message: Message) -> list[Effect]:
        """One message in a batch of its own."""
        effects = self.tell(Received(peer, message))
        self._end_batch()
        return effects

    @contextmanager
    def one_batch(self) -> Iterator[None]:
        """All that is told within is one batch."""
        self._batches_open += 1
        yield
        self._batches_open -= 1
        self._end_batch()

    def time_passes(self) -> list[Effect]:
        effects = self.tell(TimePassed())
        assert self.core.next_deadline() > self.now, "a deadline that has passed was left undone"
        return effects

    def _end_batch(self) -> None:
        if self._batches_open:
            return
        self.time_passes()
        while self._errands:
            person = self._errands.pop(0)
            self.come_back(person)
            if person.asks:
                self.say(person.trainer, person.asks)

    def _perform(self, effect: Effect) -> None:
        self.effects.append(effect)
        if isinstance(effect, Send):
            for peer in effect.peers:
                assert peer, "nobody has an empty address"
                person = self._by_peer.get(peer)
                if person is None:
                    continue
                person.hear(effect.message)
                if isinstance(effect.message, HelloWanted) and person.incarnation:
                    self._errands.append(person)
        elif isinstance(effect, Publish) and isinstance(effect.message, NoticeBatch):
            self.notices += effect.message.notices
        else:
            assert isinstance(effect, Publish | PersistEpoch | Log)

    # --- what the people do

    def person(self, who: str | Person) -> Person:
        return self.people[who] if isinstance(who, str) else who

    def new_person(self, name: str, **traits: Any) -> Person:
        """A process that has not yet said a word."""
        person = Person(name, next(self._numbers))
        for trait, value in traits.items():
            assert hasattr(person, trait)
            setattr(person, trait, value)
        self._by_peer[person.trainer] = self._by_peer[person.listener] = person
        return person

    def join(self, *names: str, **traits: Any) -> Person:
        """New processes say Hello; those who are welcome get a listener and beat. The last one."""
        for name in names:
            person = self.new_person(name, **traits)
            self.rejoin(person)
            if person.incarnation:
                self.people[name] = person
        return person

    def rejoin(self, who: str | Person) -> None:
        """The trainer asks to join, anew or for the first time."""
        person = self.person(who)
        person.incarnation = None
        self.say(person.trainer, person.hello())
        if person.incarnation:
            self.come_back(person)

    def come_back(self, *people: str | Person) -> None:
        """The listener connects and says Hello with its trainer's claim."""
        for who in people:
            person = self.person(who)
            self.tell(TopicHeld(person.topic))
            heard = len(person.inbox)
            self.say(person.listener, person.hello(claim=True, topic=True))
            person.beating = any(isinstance(message, Welcome) for message in person.inbox[heard:])
            if person.beating:
                self.beat(person)

    def beat(self, *people: str | Person) -> None:
        for who in people:
            person = self.person(who)
            self.say(person.listener, person.heartbeat())

    def silence(self, *people: str | Person) -> None:
        for who in people:
            self.person(who).beating = False

    def cut(self, who: str | Person) -> None:
        """The listener's connection is lost, and nothing more comes over it."""
        self.silence(who)
        self.tell(TopicLost(self.person(who).topic))
        self.time_passes()

    def ask(self, *people: str | Person, step: int | None = None, ttl_s: float = 600.0, **asks: Any) -> None:
        """Ask for the quorum of the next round."""
        for who in people:
            person = self.person(who)
            person.round += 1
            person.step = person.step if step is None else step
            person.asks = QuorumRequest(person.token, ttl_s, participant(person, **asks))
            self.say(person.trainer, person.asks)

    def ask_again(self, who: str | Person) -> None:
        """The same round once more: the answer has not come."""
        person = self.person(who)
        self.say(person.trainer, QuorumRequest(person.token, 600.0, participant(person)))

    def leave(self, who: str | Person, step: int = 0) -> None:
        person = self.person(who)
        person.beating = False
        assert person.incarnation is not None
        self.say(person.trainer, Leave(person.token, person.incarnation, step))

    def kill(self, *people: str | Person, cause: Cause = KILLED) -> None:
        """The processes die and their witnesses say so; all in one batch."""
        with self.one_batch():
            for who in people:
                person = self.person(who)
                person.beating = False
                self.say(person.listener, Obituary(person.job_id, person.token, person.process, cause))

    # --- the clock

    def advance(self, seconds: float) -> None:
        """Let time pass: everyone beats at the interval, the core wakes when it asked to."""
        end = self.now + seconds
        while self.now < end:
            beat_at = self._tick * self.settings.heartbeat_interval_s
            self.now = max(self.now, min(self.core.next_deadline(), beat_at, end))
            if self.now >= beat_at:
                self._tick += 1
                self._everyone_beats()
            self._end_batch()

    def _everyone_beats(self) -> None:
        for person in list(self.people.values()):
            if person.beating:
                self.tell(Received(person.listener, person.heartbeat()))

    def stall(self, seconds: float) -> None:
        """The lighthouse's own loop is held up; what was sent meanwhile is not yet read."""
        self.now += seconds
        self.tell(LoopStalled(seconds))
        while self._tick * self.settings.heartbeat_interval_s <= self.now:
            self._tick += 1

    # --- what is expected

    def expect(self, who: str | Person, kind: type[M]) -> M:
        """The first message of that kind that this process has got and no one has asked for yet."""
        inbox = self.person(who).inbox
        for message in inbox:
            if isinstance(message, kind):
                inbox.remove(message)
                return message
        raise AssertionError(f"no {kind.__name__} for {who}; its inbox: {inbox}")

    def expect_nothing(self, who: str | Person, kind: type) -> None:
        found = [message for message in self.person(who).inbox if isinstance(message, kind)]
        assert not found, f"{who} got {found}"

    def expect_quorum(self, *names: str) -> Quorum:
        """Exactly these got the same quorum of exactly these."""
        quorums = [self.expect(name, QuorumFormed).quorum for name in names]
        assert all(quorum == quorums[0] for quorum in quorums)
        members = [self.person(name) for name in sorted(names)]
        assert [(p.replica_id, p.incarnation) for p in quorums[0].participants] == [
            (person.replica_id, person.incarnation) for person in members
        ]
        return quorums[0]

    def expect_no_quorum(self) -> None:
        for name in self.people:
            self.expect_nothing(name, QuorumFormed)

    def expect_waiting(self, who: str, reason: Reason, have: int, need: int) -> None:
        """Within a beacon's interval the waiter is told why, and that is still true at the end of it."""
        self.expect_nothing(who, QuorumFormed)
        self.person(who).inbox.clear()
        self.advance(0.5)
        assert self.expect(who, QuorumWaiting)[:3] == (reason, have, need)

    def expect_notice(self, name: str, kind: CauseKind) -> Notice:
        replica_id = name.rpartition(":")[2].partition("/")[0]
        for notice in self.notices:
            if notice.replica_id == replica_id:
                assert notice.cause.kind is kind, notice
                self.notices.remove(notice)
                return notice
        raise AssertionError(f"no notice of {name} within {self.notices}")

    def expect_no_notice(self) -> None:
        assert self.notices == []

    # --- what can be seen

    def job(self, job_id: str = JOB) -> JobView:
        (view,) = self.core.snapshot(job_id, self.now).jobs
        return view

    def member(self, name: str) -> MemberView:
        job_id, _, replica = name.rpartition(":")
        replica_id = replica.partition("/")[0]
        (view,) = [m for m in self.job(job_id or JOB).members if m.replica_id == replica_id]
        return view

    def state(self, name: str) -> MemberState:
        return self.member(name).state

    def count(self, counter: str) -> int:
        return dict(self.core.snapshot("", self.now).counters).get(counter, 0)

    def beacons(self, job_id: str = JOB) -> list[Beacon]:
        return [
            effect.message
            for effect in self.effects
            if isinstance(effect, Publish) and effect.job_id == job_id and isinstance(effect.message, Beacon)
        ]

    def batches(self, job_id: str = JOB) -> list[NoticeBatch]:
        return [
            effect.message
            for effect in self.effects
            if isinstance(effect, Publish)
            and effect.job_id == job_id
            and isinstance(effect.message, NoticeBatch)
        ]
