"""Anything that valid messages, lost connections, stalls and time can do to the core, in any order.

Nobody here behaves like a client: hellos with and without claims, true and false ones, beats of lives long
over, obituaries of the living. Whatever they do, the promises checked below hold after every step.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from procguard.codec import decode, encode
from procguard.lighthouse import admission, roster
from procguard.lighthouse.core import BEACON_INTERVAL_S
from procguard.lighthouse.deadlines import Deadlines
from procguard.lighthouse.events import Effect, LoopStalled, Publish, Received, Send, TopicHeld, TopicLost
from procguard.lighthouse.job import Job
from procguard.lighthouse.members import Member
from procguard.lighthouse.roster import Timer
from procguard.messages import (
    Beacon,
    Cause,
    CauseKind,
    Claim,
    Incarnation,
    Kill,
    Leave,
    MemberState,
    NoticeBatch,
    Obituary,
    Phase,
    QuorumClaim,
    QuorumFormed,
    QuorumId,
    QuorumRequest,
    QuorumWaiting,
    Resync,
    SnapshotRequest,
)
from tests.lighthouse.person import Person, participant
from tests.lighthouse.story import EPOCH, Story

LIMITS = {
    (admission, "JOBS_MAX"): 2,
    (admission, "MEMBERS_MAX"): 4,
    (roster, "TOPICS_MAX"): 6,
    (roster, "BURIED_MAX"): 3,
    (roster, "DEAD_KEPT_MAX"): 2,
}
PEOPLE_MAX = 8

GROUP = "d"
"""A replica group of two ranks; the others have one."""

names = st.sampled_from([*"aabbccde", "a", "b", "c", "d", "d/1", "d/1", "other:a", "other:b", "third:a"])
who = st.integers(0, PEOPLE_MAX - 1)
epochs = st.sampled_from([EPOCH - 1, EPOCH - 1, EPOCH, EPOCH + 1])
incarnations = st.builds(Incarnation, epochs, st.integers(1, 4))
quorums = st.builds(
    QuorumClaim,
    st.builds(QuorumId, epochs, st.integers(1, 9)),
    st.lists(st.tuples(st.sampled_from("abcd"), incarnations), max_size=4).map(tuple),
)
sometimes = st.sampled_from([False, False, False, True])
seldom = st.sampled_from([False] * 9 + [True])


class Checked(Story):
    """A story in which the promises about what is sent are checked as it is sent."""

    def __init__(self, **options: Any) -> None:
        self.memberships: dict[QuorumId, tuple[Any, ...]] = {}
        super().__init__(**options)

    def start_lighthouse(self, epoch: int, **options: Any) -> None:
        super().start_lighthouse(epoch, **options)
        self.noticed: set[tuple[str, str, Incarnation]] = set()
        self.seqs: dict[str, int] = {}
        self.beacon_since = self.now

    def _perform(self, effect: Effect) -> None:
        super()._perform(effect)
        if isinstance(effect, Send | Publish):
            assert decode(encode(effect.message)) == effect.message
        if isinstance(effect, Send) and isinstance(effect.message, QuorumFormed):
            self._check_quorum(effect.message)
        if isinstance(effect, Publish) and isinstance(effect.message, NoticeBatch):
            self._check_notices(effect.job_id, effect.message)

    def _check_quorum(self, formed: QuorumFormed) -> None:
        quorum_id, job_id, participants = formed.quorum
        ids = [p.replica_id for p in participants]
        assert ids == sorted(set(ids))
        membership = (job_id, *((p.replica_id, p.incarnation) for p in participants))
        assert self.memberships.setdefault(quorum_id, membership) == membership

    def _check_notices(self, job_id: str, batch: NoticeBatch) -> None:
        assert batch.seq == self.seqs.get(job_id, 0) + 1
        self.seqs[job_id] = batch.seq
        for notice in batch.notices:
            life = (job_id, notice.replica_id, notice.incarnation)
            assert life not in self.noticed, "told twice"
            self.noticed.add(life)

    def errands(self) -> list[Person]:
        """Who was told to say Hello, and has not yet."""
        people = list(dict.fromkeys(self._errands))
        self._errands.clear()
        return people

    def turn(self) -> None:
        """Let time pass; whoever waits is told why, within a beacon's interval of time not slept through."""
        effects = self.time_passes()
        heard = {effect.job_id for effect in effects if isinstance(effect, Publish)}
        told = {
            peer
            for effect in effects
            if isinstance(effect, Send) and isinstance(effect.message, QuorumWaiting)
            for peer in effect.peers
        }
        beacon = any(isinstance(effect, Publish) and isinstance(effect.message, Beacon) for effect in effects)
        if not beacon and self.now < self.beacon_since + BEACON_INTERVAL_S:
            return
        self.beacon_since = self.now
        for job in self.core.roster.jobs.values():
            assert job.job_id in heard
            assert {m.asks_from for m in job.live() if m.request} <= told


class Chaos(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.story = Checked()
        self.people: list[Person] = []
        self.undo = pytest.MonkeyPatch()
        for (module, limit), value in LIMITS.items():
            self.undo.setattr(module, limit, value)

    def teardown(self) -> None:
        self.undo.undo()

    def person(self, index: int) -> Person:
        return self.people[index % len(self.people)]

    def tell(self, peer: bytes, message: Any) -> None:
        assert decode(encode(message)) == message, "only valid messages reach the core"
        self.story.tell(Received(peer, message))

    @initialize(
        names=st.lists(names, min_size=1, max_size=5, unique=True),
        restarted=st.booleans(),
        in_quorum=st.booleans(),
    )
    def begin(self, names: list[str], restarted: bool, in_quorum: bool) -> None:
        if restarted:
            self.story.restart()
        for name in names:
            self.start(name, 0, 1.0, False)
        for index in range(len(names)):
            self.come_back(index)
        if in_quorum:
            self.everyone_asks(set(), rounds=0)

    @rule(
        name=names,
        min_replicas=st.sampled_from([0, 0, 0, 1, 2]),
        progress_timeout_s=st.sampled_from([0.0, 1.0]),
        threaded=sometimes,
    )
    def start(self, name: str, min_replicas: int, progress_timeout_s: float, threaded: bool) -> None:
        person = self.story.new_person(name)
        if person.replica_id == GROUP:
            person.group_world_size = 2
        person.min_replicas, person.threaded = min_replicas, threaded
        person.progress_timeout_s = progress_timeout_s
        self.people = [*self.people, person][-PEOPLE_MAX:]
        self.tell(person.trainer, person.hello())
        person.incarnation = person.incarnation or Incarnation(EPOCH, 1)

    @rule(index=who)
    def come_back(self, index: int) -> None:
        """As a client does that was cut off, or whose lighthouse has restarted."""
        self.hello(index, claim=True, listener=True, held=True)
        self.beat(index, Phase.QUORUM, False, 0)

    @rule(spared=st.sets(who, max_size=3), rounds=st.sampled_from([0, 0, 7]))
    def everyone_asks(self, spared: set[int], rounds: int) -> None:
        for index, person in enumerate(self.people):
            if index in spared:
                continue
            if person.over:
                self.hello(index, claim=False, listener=False, held=False)
                self.come_back(index)
            self.ask(index, rounds=1, ttl_s=60.0, shrink_only=False, failed=False)
        self.story.turn()
        self.beats(rounds, set())

    @rule(index=who, claim=st.booleans(), listener=st.booleans(), held=st.booleans())
    def hello(self, index: int, claim: bool, listener: bool, held: bool) -> None:
        person = self.person(index)
        if held:
            self.story.tell(TopicHeld(person.topic))
        peer = person.listener if listener else person.trainer
        self.tell(peer, person.hello(claim=claim, topic=listener))

    @rule(
        index=who,
        incarnation=st.none() | incarnations,
        quorum=quorums,
        epoch=st.sampled_from([0, 0, EPOCH, EPOCH + 2]),
    )
    def lie(self, index: int, incarnation: Incarnation | None, quorum: QuorumClaim, epoch: int) -> None:
        """Claim to have been in that quorum, as whom one is or as somebody else."""
        person = self.person(index)
        claim = Claim(incarnation or person.incarnation, quorum)
        self.tell(person.trainer, person.hello()._replace(claim=claim, epoch=epoch))

    @rule(
        index=who,
        phase=st.sampled_from([Phase.COMPUTE, Phase.COMPUTE, *Phase]),
        stopped=sometimes,
        progress=st.integers(0, 2),
    )
    def beat(self, index: int, phase: Phase, stopped: bool, progress: int) -> None:
        person = self.person(index)
        person.phase, person.stopped, person.progress = phase, stopped, person.progress + progress
        self.tell(person.listener, person.heartbeat())

    @rule(
        index=who,
        rounds=st.sampled_from([1, 1, 1, 1, 0, -1]),
        ttl_s=st.sampled_from([0.0, 0.3, 60.0, 60.0]),
        shrink_only=seldom,
        failed=sometimes,
    )
    def ask(self, index: int, rounds: int, ttl_s: float, shrink_only: bool, failed: bool) -> None:
        person = self.person(index)
        person.round = max(0, person.round + rounds)
        asks = participant(person, shrink_only=shrink_only, commit_failures=int(failed))
        self.tell(person.trainer, QuorumRequest(person.token, ttl_s, asks))

    @rule(index=who)
    def leave(self, index: int) -> None:
        person = self.person(index)
        self.tell(person.trainer, Leave(person.token, person.incarnation, person.step))

    @rule(index=who, by_token=st.booleans(), kind=st.sampled_from(CauseKind))
    def bury(self, index: int, by_token: bool, kind: CauseKind) -> None:
        person = self.person(index)
        token = person.token if by_token else b""
        self.tell(b"guard", Obituary(person.job_id, token, person.process, Cause(kind)))

    @rule(index=who, operator=st.sampled_from(["", "ann", "ann"]))
    def kill(self, index: int, operator: str) -> None:
        person = self.person(index)
        life = person.incarnation or Incarnation(EPOCH, 1)
        self.story.tell(Received(b"keyboard", Kill(person.job_id, person.replica_id, life), operator))

    @rule(index=who, held=st.booleans())
    def connection(self, index: int, held: bool) -> None:
        topic = self.person(index).topic
        self.story.tell(TopicHeld(topic) if held else TopicLost(topic))

    @rule(index=who, seconds=st.sampled_from([0.2, 0.5, 2.0]))
    def freeze(self, index: int, seconds: float) -> None:
        """Everything about it goes wrong at once."""
        self.beat(index, Phase.COMPUTE, True, 1)
        self.connection(index, held=False)
        self.silence(seconds)

    @rule(index=who, epoch=st.integers(EPOCH, EPOCH + 1), seq=st.integers(0, 5))
    def look(self, index: int, epoch: int, seq: int) -> None:
        person = self.person(index)
        self.tell(person.listener, Resync(person.token, epoch, seq))
        self.tell(b"viewer", SnapshotRequest(""))

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.3, 0.3, 0.5, 1.0, 2.0, 5.0, 60.0]))
    def silence(self, seconds: float) -> None:
        self.story.now += seconds
        self.story.turn()

    @rule(rounds=st.sampled_from([1, 4, 12]), spared=st.sets(who, max_size=2))
    def beats(self, rounds: int, spared: set[int]) -> None:
        for _ in range(rounds):
            self.story.now += 0.1
            for index, person in enumerate(self.people):
                if index not in spared:
                    self.tell(person.listener, person.heartbeat())
            for person in self.story.errands():
                self.tell(person.listener, person.hello(claim=True, topic=True))
                self.story.tell(TopicHeld(person.topic))
            self.story.turn()

    @rule(seconds=st.sampled_from([0.2, 1.0, 70.0]))
    def stall(self, seconds: float) -> None:
        live = self.live()
        self.story.now += seconds
        self.story.beacon_since = self.story.now
        self.story.tell(LoopStalled(seconds))
        self.story.turn()
        assert set(live) <= set(self.live()), "our own stall killed somebody"

    @rule(really=seldom)
    def restart(self, really: bool) -> None:
        if really:
            self.story.restart()

    def live(self) -> list[Member]:
        return [m for job in self.jobs() for m in job.live()]

    def jobs(self) -> list[Job]:
        return list(self.story.core.roster.jobs.values())

    @invariant()
    def tables_are_bounded(self) -> None:
        rooms = self.story.core.roster
        assert len(rooms.jobs) <= admission.JOBS_MAX
        assert all(len(job.members) <= admission.MEMBERS_MAX for job in self.jobs())
        known = [*rooms.by_token.values(), *rooms._by_topic.values()]
        members = [slot.member for slot in known]
        assert all(rooms.jobs[m.job_id].members[m.replica_id] is m for m in members)
        assert all(slot.member.slots[slot.group_rank] is slot for slot in known)
        assert max(len(rooms._held), len(rooms._welcomes)) <= roster.TOPICS_MAX
        assert len(rooms._buried) <= roster.BURIED_MAX

    @invariant()
    def who_lives_can_be_found_and_will_be_missed(self) -> None:
        rooms = self.story.core.roster
        for member in self.live():
            if not member.slots or (Timer.RETURN, member) in rooms.timers:
                self.check_deadline(rooms.timers, (Timer.RETURN, member))
                assert member.state is MemberState.SUSPECT and not member.complete
            elif member.state is MemberState.SUSPECT:
                assert any(slot.suspect for slot in member.slots.values())
            for slot in member.slots.values():
                assert rooms.by_token[slot.token] is slot
                self.check_deadline(rooms.leases, slot)
                if slot.suspect:
                    self.check_deadline(rooms.timers, (Timer.GRACE, slot))
                    assert member.state is MemberState.SUSPECT
                assert slot.stopped == ((Timer.STOPPED, slot) in rooms.timers)
            if member.request:
                self.check_deadline(rooms.timers, (Timer.REQUEST, member))
            assert (member.request is not None) == ((Timer.REQUEST, member) in rooms.timers)

    def check_deadline(self, deadlines: Deadlines[Any], key: Any) -> None:
        """It runs, and the core asks to be woken for it in time."""
        ends_at = max(deadlines._since[key], deadlines._excused) + deadlines._length[key]
        assert self.story.core.next_deadline() <= ends_at

    @invariant()
    def who_is_over_is_over(self) -> None:
        rooms = self.story.core.roster
        for job in self.jobs():
            for member in job.members.values():
                life = (job.job_id, member.replica_id, member.incarnation)
                if member.live:
                    assert life not in self.story.noticed
                    continue
                assert member.request is None
                assert not [slot for slot in member.slots.values() if slot in rooms.leases]
                subjects = [member, *member.slots.values()]
                assert not [timer for timer in Timer for one in subjects if (timer, one) in rooms.timers]
                assert life in self.story.noticed or job.job_id in rooms.undecided
                assert (member.state is MemberState.LEFT) == (member.cause.kind is CauseKind.LEFT)


Chaos.TestCase.settings = settings(
    derandomize=True,
    max_examples=100,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
TestChaos = Chaos.TestCase
