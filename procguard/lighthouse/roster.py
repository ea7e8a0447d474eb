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
from procguard.lighthouse.members import Member, Trigger
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


_MEMBER_TIMERS = (Timer.GRACE, Timer.RETURN, Timer.STOPPED, Timer.STALLED, Timer.REQUEST)


class Roster:
    """Members of all jobs, by name, by token and by topic."""

    def __init__(self, options: Options, epoch: int) -> None:
        assert 0 < epoch <= EPOCH_MAX
        self.options = options
        self.epoch = epoch
        self.jobs: dict[str, Job] = {}
        self.by_token: dict[bytes, Member] = {}
        self.leases: Deadlines[Member] = Deadlines()
        self.timers: Deadlines[tuple[Timer, Any]] = Deadlines()
        self.undecided: dict[str, None] = {}
        """Jobs about which something was learned, in that order: their notices and quorum are due."""
        self.effects: list[Effect] = []
        self.counters: Tally[str] = Tally()
        self._numbers = 0
        self._by_topic: dict[bytes, Member] = {}
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
        if known is not None and (known.job_id, known.replica_id) != (hello.job_id, hello.replica_id):
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
        if verdict is Admission.ID_IN_USE:
            assert holder is not None
            self.send(peer, admission.id_in_use(holder))
            return
        if verdict is Admission.REJOIN:
            assert hello.claim is not None
            self.send_rejoin(peer, hello.token, hello.claim.incarnation, job, hello.replica_id)
            return
        if verdict in (Admission.SUPERSEDE_AND_JOIN, Admission.SUPERSEDE_AND_ADOPT):
            assert holder is not None
            self.end(holder, Trigger.SUPERSEDED, Cause(CauseKind.SUPERSEDED), now)
        if verdict is Admission.GO_ON:
            assert holder is not None
            member = holder
            self.revive(member, Trigger.HELLO, now)
        else:
            member = self._new_member(job, hello, verdict, now)
        if hello.min_replicas:
            job.min_replicas = self._min_replicas(hello)
        self._introduce(member, hello, peer)
        self.lease(member, now)
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
        member = Member(job.job_id, hello.replica_id, incarnation, MemberState.ALIVE, now)
        job.members[hello.replica_id] = member
        verb = "came back as" if adopt else "joined as"
        self._log(logging.INFO, f"Replica {member.replica_id} {verb} incarnation {incarnation}", member)
        return member

    def _introduce(self, member: Member, hello: Hello, peer: bytes) -> None:
        """Note who speaks for the member; a new listener takes the place of the one before."""
        if hello.topic:
            self._drop_topic(member)
            self._by_topic[hello.topic] = member
        member.introduce(hello, peer)
        self.by_token[hello.token] = member

    def _drop_topic(self, member: Member) -> None:
        if self._by_topic.get(member.topic) is member:
            del self._by_topic[member.topic]

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
        member = self._by_topic.get(topic)
        if peer and member is not None and member.live:
            self.send(peer, self._welcome_to(member))

    def topic_lost(self, topic: bytes, now: float) -> None:
        self._held.pop(topic, None)
        member = self._by_topic.get(topic)
        if member is None or not member.live:
            return
        if member.state is MemberState.ALIVE:
            self.timers.arm((Timer.GRACE, member), now, self.options.settings.disconnect_grace_s)
        member.apply(Trigger.CONNECTION_LOST, now)
        self.undecided[member.job_id] = None

    def end(self, member: Member, trigger: Trigger, cause: Cause, now: float) -> None:
        """A life is over: say so once, to all who may be waiting for it."""
        member.apply(trigger, now)
        member.cause = cause
        member.request = None
        self._quieten(member)
        notice = Notice(member.replica_id, member.incarnation, cause, member.step)
        self.jobs[member.job_id].notices.add(notice)
        self.undecided[member.job_id] = None
        self.counters["members that left" if notice.left else "members that failed"] += 1
        self._log_end(member, cause)

    def _quieten(self, member: Member) -> None:
        self.leases.disarm(member)
        for timer in _MEMBER_TIMERS:
            self.timers.disarm((timer, member))

    def _log_end(self, member: Member, cause: Cause) -> None:
        name = f"Replica {member.replica_id}"
        if cause.kind is CauseKind.LEFT:
            self._log(logging.INFO, f"{name} left at step {member.step}, telling the others", member)
            return
        verb = "timed out" if cause.kind is CauseKind.HEARTBEAT_TIMEOUT else "failed"
        process = member.process
        where = f" (pid {process.pid} on {process.host}, step {member.step})" if member.token else ""
        self._log(logging.WARNING, f"{name} {verb}: {cause}{where}, sending failure notification", member)

    def revive(self, member: Member, trigger: Trigger, now: float) -> None:
        if member.state is MemberState.SUSPECT:
            self.timers.disarm((Timer.GRACE, member))
            self.undecided[member.job_id] = None
        member.apply(trigger, now)

    def lease(self, member: Member, now: float) -> None:
        settings = self.options.settings
        threaded = member.threaded
        length = settings.thread_heartbeat_timeout_s if threaded else settings.heartbeat_timeout_s
        self.leases.arm(member, now, length)

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
        if self.by_token.get(member.token) is member:
            del self.by_token[member.token]
        self._drop_topic(member)

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


def _bound(table: dict[bytes, Any], count_max: int) -> None:
    """Let the oldest entry of a table go when there is one too many."""
    if len(table) > count_max:
        del table[next(iter(table))]
