"""The roster: who is a member, since when, by which right, and until when.

Shared by the decisions in ``core``: every way into membership (Hello, claims) and every way out of it
(``end``) is here, so that a life begins once and ends once, with one notice. Pure: effects are collected
in ``effects`` and handed out by the core.
"""

from __future__ import annotations

import logging
from collections import Counter as Tally
from enum import Enum, auto
from typing import Any, NamedTuple

from procguard.lighthouse import admission
from procguard.lighthouse.admission import Admission
from procguard.lighthouse.deadlines import Deadlines
from procguard.lighthouse.events import Effect, Log, PersistEpoch, Send
from procguard.lighthouse.job import Job
from procguard.lighthouse.members import Member, Slot, Trigger
from procguard.messages import (
    EPOCH_MAX,
    QUORUM_NUMBER_BITS,
    Cause,
    CauseKind,
    Hello,
    Incarnation,
    MemberState,
    Notice,
    QuorumClaim,
    QuorumId,
    Rejected,
    Rejoin,
    Settings,
    Welcome,
)

RETURN_TIMEOUTS = 2
"""Members of a quorum that the lighthouse forgot have this many heartbeat timeouts to come back."""
DEAD_KEPT_MAX = 1_000
DEAD_KEPT_S = 3600.0
BURIED_MAX = 1_000
TOPICS_MAX = 20_000
EPOCHS_RESERVED = 1 << 32
"""No member's claim raises the epoch so far that these could not follow."""
TEXT_MAX = 4096
NUMBER_MAX = (1 << QUORUM_NUMBER_BITS) - 1


class Options(NamedTuple):
    """How this lighthouse is set up."""

    settings: Settings
    min_replicas: int
    notice_port: int
    restarted: bool
    """An earlier lighthouse used this state: its members may be about to come back."""


class Timer(Enum):
    """Deadlines other than leases."""

    GRACE = auto()
    RETURN = auto()
    STOPPED = auto()
    STALLED = auto()
    REQUEST = auto()
    JOIN = auto()
    CALL_OFF = auto()
    SETTLE = auto()
    BEACON = auto()


_MEMBER_TIMERS = (Timer.RETURN, Timer.REQUEST)
_SLOT_TIMERS = (Timer.GRACE, Timer.STOPPED, Timer.STALLED)


class Roster:
    """Members of all jobs by name, their ranks by token and by topic."""

    def __init__(self, options: Options, epoch: int) -> None:
        assert 0 < epoch <= EPOCH_MAX
        self.options = options
        self.epoch = epoch
        self.jobs: dict[str, Job] = {}
        self.by_token: dict[bytes, Slot] = {}
        self.leases: Deadlines[Slot] = Deadlines()
        self.timers: Deadlines[tuple[Timer, Any]] = Deadlines()
        self.undecided: dict[str, None] = {}
        """Jobs about which something was learned, in that order: their notices and quorum are due."""
        self.effects: list[Effect] = []
        self.counters: Tally[str] = Tally()
        self._numbers = 0
        self._by_topic: dict[bytes, Slot] = {}
        self._held: dict[bytes, None] = {}
        """Topics that somebody subscribes to."""
        self._welcomes: dict[bytes, bytes] = {}
        """Listeners whose subscription has not been seen yet, by topic."""
        self._buried: dict[bytes, Cause] = {}

    def hello(self, peer: bytes, hello: Hello, now: float) -> None:
        if hello.epoch > self.epoch:
            self._see_epoch(hello)
        refusal = admission.unsupported(hello)
        if hello.token in self._buried:
            refusal = admission.buried(self._buried[hello.token])
        known = self.by_token.get(hello.token)
        if known is not None and _names(known) != (hello.job_id, hello.replica_id, hello.group_rank):
            self.counters["hellos of a token under a second name"] += 1
            return
        job = self.jobs.get(hello.job_id)
        refusal = refusal or self._no_room(hello, job)
        if refusal:
            self.send(peer, refusal)
            return
        job = job or self._new_job(hello)
        self._admit(peer, hello, job, now)

    def _no_room(self, hello: Hello, job: Job | None) -> Rejected | None:
        if job is None:
            full = len(self.jobs) >= admission.JOBS_MAX
            return admission.full("jobs", admission.JOBS_MAX) if full else None
        asked = self._min_replicas(hello)
        others = any(m.live and m.replica_id != hello.replica_id for m in job.members.values())
        if others and hello.min_replicas and asked != job.min_replicas:
            return admission.min_replicas_conflict(job.job_id, asked, job.min_replicas)
        if hello.replica_id not in job.members and len(job.members) >= admission.MEMBERS_MAX:
            return admission.full("members of this job", admission.MEMBERS_MAX)
        return None

    def _new_job(self, hello: Hello) -> Job:
        job = Job(hello.job_id, self._min_replicas(hello))
        self.jobs[hello.job_id] = job
        return job

    def _min_replicas(self, hello: Hello) -> int:
        return max(hello.min_replicas, self.options.min_replicas)

    def _admit(self, peer: bytes, hello: Hello, job: Job, now: float) -> None:
        holder = job.members.get(hello.replica_id)
        verdict = admission.judge(hello, holder, job.notices.fallen(hello.replica_id), self.epoch)
        refusal = admission.refusal(verdict, hello, holder)
        if refusal:
            self.send(peer, refusal)
            return
        if verdict is Admission.REJOIN:
            assert hello.claim is not None
            self.send_rejoin(peer, hello.token, hello.claim.incarnation, job, hello.replica_id)
            return
        if verdict in (Admission.SUPERSEDE_AND_JOIN, Admission.SUPERSEDE_AND_ADOPT):
            assert holder is not None
            self.end(holder, Trigger.SUPERSEDED, Cause(CauseKind.SUPERSEDED), now)
        if verdict in (Admission.GO_ON, Admission.TAKE_SLOT):
            assert holder is not None
            member = holder
        else:
            member = self._new_member(job, hello, verdict, now)
        slot = self._slot(member, hello, now)
        self._introduce(slot, hello, peer)
        self.revive(slot, Trigger.HELLO, now)
        if hello.min_replicas:
            job.min_replicas = self._min_replicas(hello)
        self.lease(slot, now)
        if hello.claim and hello.claim.quorum:
            self._consider_claim(job, hello.claim.quorum, member, now)
        self.undecided[job.job_id] = None
        self._welcome(peer, hello.topic, member)

    def _new_member(self, job: Job, hello: Hello, verdict: Admission, now: float) -> Member:
        adopt = verdict in (Admission.ADOPT, Admission.SUPERSEDE_AND_ADOPT)
        if adopt:
            assert hello.claim is not None
            incarnation = hello.claim.incarnation
        else:
            incarnation = Incarnation(*self.unique())
        self._forget(job.members.get(hello.replica_id))
        awaited = adopt and hello.group_world_size > 1  # its other ranks must come back too
        state = MemberState.SUSPECT if awaited else MemberState.ALIVE
        member = Member(job.job_id, hello.replica_id, incarnation, state, now)
        member.group_run, member.group_world_size = hello.group_run, hello.group_world_size
        job.members[hello.replica_id] = member
        return member

    def _slot(self, member: Member, hello: Hello, now: float) -> Slot:
        """Of the one who says Hello. The member is whole, and said to be there, once all its ranks are."""
        slot = member.slots.get(hello.group_rank)
        if slot is not None:
            return slot
        slot = member.slots[hello.group_rank] = Slot(member, hello, now)
        self.by_token[hello.token] = slot
        adopted = hello.claim is not None
        if member.complete:
            self.timers.disarm((Timer.RETURN, member))
            verb = "came back as" if adopted else "joined as"
            size = f", {member.group_world_size} ranks" if member.group_world_size > 1 else ""
            text = f"Replica {member.replica_id} {verb} incarnation {member.incarnation}{size}"
            self._log(logging.INFO, text, member)
        elif adopted and (Timer.RETURN, member) not in self.timers:
            self.timers.arm((Timer.RETURN, member), now, self.return_s)
        return slot

    def _introduce(self, slot: Slot, hello: Hello, peer: bytes) -> None:
        """Note who speaks for the rank; a new listener takes the place of the one before.

        For good: a Hello of the one before may have been under way meanwhile, on a connection of its own.
        Were it believed, the group would be looked for where nobody serves it any more.
        """
        if hello.topic and hello.topic in slot.earlier_topics:
            return
        if hello.topic:
            self._drop_topic(slot)
            self._by_topic[hello.topic] = slot
        if hello.group_address:
            slot.member.group_address = hello.group_address
        slot.introduce(hello, peer)

    def _drop_topic(self, slot: Slot) -> None:
        if self._by_topic.get(slot.topic) is slot:
            del self._by_topic[slot.topic]

    def _consider_claim(self, job: Job, quorum: QuorumClaim, claimant: Member, now: float) -> None:
        """Learn the previous quorum, which this lighthouse has forgotten, from one that was in it."""
        claimant.asked = True
        known = job.previous.quorum_id if job.previous else QuorumId(0, 0)
        if quorum.quorum_id <= known or quorum.quorum_id.epoch >= self.epoch:
            return
        job.previous = quorum
        job.claimed = True
        job.called_off = False
        job.formed_at = now
        for replica_id, incarnation in quorum.members:
            given_here = incarnation.epoch >= self.epoch
            if not given_here and not job.is_over(replica_id, incarnation):
                self._consider_claimed(job, replica_id, incarnation, claimant, now)

    def _consider_claimed(
        self, job: Job, replica_id: str, incarnation: Incarnation, claimant: Member, now: float
    ) -> None:
        """Learn that a life had begun; which may be over by now, or wanting to go on."""
        holder = job.members.get(replica_id)
        if holder is None or not holder.live:
            self._await_return(job, replica_id, incarnation, now)
        elif holder.incarnation > incarnation:
            job.notices.add(Notice(replica_id, incarnation, Cause(CauseKind.SUPERSEDED), 0))
        elif holder.incarnation < incarnation and holder is not claimant:
            self.end(holder, Trigger.SUPERSEDED, Cause(CauseKind.SUPERSEDED), now)
            self._await_return(job, replica_id, incarnation, now)

    def _await_return(self, job: Job, replica_id: str, incarnation: Incarnation, now: float) -> None:
        if replica_id not in job.members and len(job.members) >= admission.MEMBERS_MAX:
            return
        self._forget(job.members.get(replica_id))
        absent = Member(job.job_id, replica_id, incarnation, MemberState.SUSPECT, now)
        absent.asked = True
        job.members[replica_id] = absent
        self.timers.arm((Timer.RETURN, absent), now, self.return_s)

    def _welcome(self, peer: bytes, topic: bytes, member: Member) -> None:
        """Answer a Hello; a listener's only once its subscription stands, so that it misses nothing."""
        if topic and topic not in self._held:
            self._welcomes[topic] = peer
            _bound(self._welcomes, TOPICS_MAX)
        else:
            self.send(peer, self._welcome_to(member))

    def _welcome_to(self, member: Member) -> Welcome:
        seq = self.jobs[member.job_id].notices.seq
        options = self.options
        return Welcome(self.epoch, member.incarnation, options.notice_port, seq, options.settings)

    def topic_held(self, topic: bytes) -> None:
        self._held[topic] = None
        _bound(self._held, TOPICS_MAX)
        peer = self._welcomes.pop(topic, None)
        slot = self._by_topic.get(topic)
        if peer and slot is not None and slot.member.live:
            self.send(peer, self._welcome_to(slot.member))

    def topic_lost(self, topic: bytes, now: float) -> None:
        self._held.pop(topic, None)
        slot = self._by_topic.get(topic)
        if slot is None or not slot.member.live:
            return
        if not slot.suspect:
            slot.suspect = True
            self.timers.arm((Timer.GRACE, slot), now, self.options.settings.disconnect_grace_s)
        slot.member.apply(Trigger.CONNECTION_LOST, now)
        self.undecided[slot.member.job_id] = None

    def end_rank(self, slot: Slot, trigger: Trigger, cause: Cause, now: float) -> None:
        """The end of one rank is the end of its group."""
        member = slot.member
        if member.group_world_size > 1:
            text = f"rank {slot.group_rank}" + (f": {cause.text}" if cause.text else "")
            cause = cause._replace(text=text[:TEXT_MAX])
        self.end(member, trigger, cause, now, slot)

    def end(
        self, member: Member, trigger: Trigger, cause: Cause, now: float, slot: Slot | None = None
    ) -> None:
        """A life is over: say so once, to all who may be waiting for it. ``slot``: of the rank that ended."""
        member.apply(trigger, now)
        member.cause = cause
        member.request = None
        self._quieten(member)
        notice = Notice(member.replica_id, member.incarnation, cause, member.step)
        self.jobs[member.job_id].notices.add(notice)
        self.undecided[member.job_id] = None
        self.counters["members that left" if notice.left else "members that failed"] += 1
        self._log_end(member, cause, slot or next(iter(member.slots.values()), None))

    def _quieten(self, member: Member) -> None:
        for timer in _MEMBER_TIMERS:
            self.timers.disarm((timer, member))
        for slot in member.slots.values():
            self.leases.disarm(slot)
            for timer in _SLOT_TIMERS:
                self.timers.disarm((timer, slot))

    def _log_end(self, member: Member, cause: Cause, slot: Slot | None) -> None:
        name = f"Replica {member.replica_id}"
        if cause.kind is CauseKind.LEFT:
            self._log(logging.INFO, f"{name} left at step {member.step}, telling the others", member)
            return
        verb = "timed out" if cause.kind is CauseKind.HEARTBEAT_TIMEOUT else "failed"
        where = ""
        if slot is not None:
            where = f" (pid {slot.process.pid} on {slot.process.host}, step {member.step})"
        self._log(logging.WARNING, f"{name} {verb}: {cause}{where}, sending failure notification", member)

    def revive(self, slot: Slot, trigger: Trigger, now: float) -> None:
        """A rank is heard; its member is no suspect any more once none of its ranks is, or is awaited."""
        member = slot.member
        if slot.suspect:
            slot.suspect = False
            self.timers.disarm((Timer.GRACE, slot))
        if any(other.suspect for other in member.slots.values()) or (Timer.RETURN, member) in self.timers:
            return
        if member.state is MemberState.SUSPECT:
            self.undecided[member.job_id] = None
        member.apply(trigger, now)

    def lease(self, slot: Slot, now: float) -> None:
        settings = self.options.settings
        length = settings.thread_heartbeat_timeout_s if slot.threaded else settings.heartbeat_timeout_s
        self.leases.arm(slot, now, length)

    def _see_epoch(self, hello: Hello) -> None:
        """A lighthouse of a later epoch has been at work: whatever it gave, we must not give again."""
        if hello.epoch > EPOCH_MAX - EPOCHS_RESERVED:
            self.counters["absurd epochs claimed"] += 1
            return
        self._raise_epoch(hello.epoch + 1, f"{hello.replica_id} has seen epoch {hello.epoch}")

    def _raise_epoch(self, epoch: int, why: str) -> None:
        self.epoch = epoch
        self.effects.append(PersistEpoch(epoch))
        self.effects.append(Log(logging.WARNING, f"Epoch raised to {epoch}: {why}"))

    def unique(self) -> tuple[int, int]:
        """``(epoch, number)``, never given before."""
        if self._numbers >= NUMBER_MAX:
            self._raise_epoch(self.epoch + 1, "its numbers are used up")
            self._numbers = 0
        self._numbers += 1
        return self.epoch, self._numbers

    def _forget(self, member: Member | None) -> None:
        """Drop a record that another takes the place of: nothing may come of it any more."""
        if member is None:
            return
        self._quieten(member)
        for slot in member.slots.values():
            if self.by_token.get(slot.token) is slot:
                del self.by_token[slot.token]
            self._drop_topic(slot)

    def forget_long_dead(self, job: Job, now: float) -> None:
        dead = [m for m in job.members.values() if not m.live]
        if not dead or (len(dead) <= DEAD_KEPT_MAX and now - min(m.since for m in dead) <= DEAD_KEPT_S):
            return
        dead.sort(key=lambda m: m.since)
        surplus = len(dead) - DEAD_KEPT_MAX
        for index, member in enumerate(dead):
            if index < surplus or now - member.since > DEAD_KEPT_S:
                self._forget(member)
                del job.members[member.replica_id]

    @property
    def return_s(self) -> float:
        return RETURN_TIMEOUTS * self.options.settings.heartbeat_timeout_s

    def send(self, peer: bytes, message: Any) -> None:
        if peer:
            self.effects.append(Send((peer,), message))

    def send_rejoin(self, peer: bytes, token: bytes, claimed: Incarnation, job: Job, replica_id: str) -> None:
        cause = admission.rejoin_cause(claimed, job.notices.fallen(replica_id))
        self.send(peer, Rejoin(token, claimed, cause))

    def _log(self, level: int, text: str, member: Member) -> None:
        self.effects.append(Log(level, text, member.job_id, member.replica_id))

    def bury(self, token: bytes, cause: Cause) -> None:
        """Remember that the process with this token is dead, whoever it says it is later."""
        self._buried[token] = cause
        _bound(self._buried, BURIED_MAX)


def _names(slot: Slot) -> tuple[str, str, int]:
    return slot.member.job_id, slot.member.replica_id, slot.group_rank


def _bound(table: dict[bytes, Any], count_max: int) -> None:
    """Let the oldest entry of a table go when there is one too many."""
    if len(table) > count_max:
        del table[next(iter(table))]
