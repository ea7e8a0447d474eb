"""The lighthouse's decisions: ``step(event, now) -> effects``. No clock, socket, file or randomness.

Messages change what is known about members; conclusions are drawn when time passes (``TimePassed`` closes
every batch of the inbox): deadlines are judged, all failures of the batch leave in one notice a job, and a
quorum is decided once, however many asked in the batch. So a member whose heartbeat was in the inbox is
never called dead, and a thousand requests cost one decision. While an inbox has no end, all but the deadlines
is concluded after each batch (``MoreToCome``): a flood must not hold up what is known for certain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from procguard.lighthouse import views
from procguard.lighthouse.events import (
    Effect,
    Event,
    Log,
    LoopStalled,
    MoreToCome,
    Publish,
    Received,
    Send,
    TimePassed,
    TopicHeld,
    TopicLost,
)
from procguard.lighthouse.job import Job
from procguard.lighthouse.members import Member, Slot, Trigger
from procguard.lighthouse.quorum import Formed, Waiting, decide
from procguard.lighthouse.roster import Options, Roster, Timer
from procguard.messages import (
    KIND_OF,
    Ack,
    AnswerWanted,
    Beacon,
    Cause,
    CauseKind,
    Excluded,
    Heartbeat,
    Hello,
    HelloWanted,
    Incarnation,
    Kill,
    Killed,
    KillResult,
    Leave,
    LookedUp,
    Lookup,
    MemberState,
    Obituary,
    Phase,
    Quorum,
    QuorumClaim,
    QuorumFormed,
    QuorumId,
    QuorumRequest,
    Resync,
    Snapshot,
    SnapshotRequest,
)

BEACON_INTERVAL_S = 0.5


class Core:
    """All jobs of one lighthouse.

    Args:
        epoch: number of this start, greater than that of any earlier one.
        now: seconds on the monotonic clock that every later ``now`` is of.
    """

    def __init__(self, options: Options, epoch: int, now: float) -> None:
        self.roster = Roster(options, epoch)
        self._settings = options.settings
        self._started_at = now
        self._acks: list[Send] = []
        self.roster.timers.arm((Timer.BEACON, None), now, BEACON_INTERVAL_S)
        if options.restarted:
            self.roster.timers.arm((Timer.SETTLE, None), now, self.roster.return_s)
        self._receive: dict[type, Callable[[bytes, Any, float], None]] = {
            Hello: self.roster.hello,
            QuorumRequest: self._quorum_request,
            Leave: self._leave,
            Obituary: self._obituary,
            Resync: self._resync,
            SnapshotRequest: self._snapshot_request,
            Lookup: self._lookup,
            AnswerWanted: self._answer_wanted,
        }

    @property
    def epoch(self) -> int:
        """Number of this lighthouse's start."""
        return self.roster.epoch

    def step(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Take in one event; ``now`` is monotonic seconds and never goes back."""
        if type(event) is Received:
            if type(event.message) is Heartbeat:
                self._heartbeat(event.peer, event.message, now)
            elif type(event.message) is Kill:
                self._kill(event.peer, event.message, event.operator, now)
            else:
                self._message(event.peer, event.message, now)
        elif type(event) is TimePassed:
            self._time_passed(now)
        elif type(event) is MoreToCome:
            self._conclude(now)
        elif type(event) is TopicHeld:
            self.roster.topic_held(event.topic)
        elif type(event) is TopicLost:
            self.roster.topic_lost(event.topic, now)
        elif type(event) is LoopStalled:
            self._loop_stalled(event.gap_s, now)
        if not self.roster.effects:
            return ()
        effects = tuple(self.roster.effects)
        self.roster.effects.clear()
        return effects

    def next_deadline(self) -> float:
        """When ``TimePassed`` is due next, at the latest; it may turn out that nothing was."""
        return min(self.roster.leases.next(), self.roster.timers.next())

    def snapshot(self, job_id: str, now: float) -> Snapshot:
        """The state of one job, or of all when ``job_id`` is empty."""
        jobs = [job for job in self.roster.jobs.values() if job_id in ("", job.job_id)]
        counters = self.roster.counters
        uptime_s = now - self._started_at
        return views.snapshot(self.epoch, uptime_s, self._settings, jobs=jobs, counters=counters, now=now)

    # --- what members say

    def _message(self, peer: bytes, message: Any, now: float) -> None:
        receive = self._receive.get(type(message))
        if receive is None:
            self.roster.counters["messages that only a lighthouse sends"] += 1
            return
        receive(peer, message, now)

    def _heartbeat(self, peer: bytes, beat: Heartbeat, now: float) -> None:
        slot = self.roster.by_token.get(beat.token)
        if slot is None:
            self.roster.send(peer, HelloWanted(self.roster.epoch))
            return
        member = slot.member
        if member.incarnation != beat.incarnation or member.state > MemberState.SUSPECT:
            self._rejoin(peer, slot, beat.incarnation)
            return
        slot.beat_at = now
        slot.step = beat.step
        if slot.group_rank == 0:
            member.step = beat.step
        if peer:
            slot.listener_peer = peer
        if member.state is MemberState.SUSPECT:
            self.roster.revive(slot, Trigger.BEAT, now)
        if beat.threaded is slot.threaded:
            self.roster.leases.renew(slot, now)
        else:
            slot.threaded = beat.threaded
            self.roster.lease(slot, now)
        if beat.stopped is not slot.stopped:
            self._note_stopped(slot, beat.stopped, now)
        if beat.progress != slot.progress or beat.phase is not slot.phase:
            self._note_progress(slot, beat, now)

    def _note_stopped(self, slot: Slot, stopped: bool, now: float) -> None:
        slot.stopped = stopped
        key = (Timer.STOPPED, slot)
        if stopped:
            self.roster.timers.arm(key, now, self._settings.heartbeat_timeout_s)
        else:
            self.roster.timers.disarm(key)

    def _note_progress(self, slot: Slot, beat: Heartbeat, now: float) -> None:
        slot.progress = beat.progress
        slot.phase = beat.phase
        key = (Timer.STALLED, slot)
        if beat.phase is Phase.COMPUTE and slot.progress_timeout_s > 0:
            self.roster.timers.arm(key, now, slot.progress_timeout_s)
        else:
            self.roster.timers.disarm(key)

    def _quorum_request(self, peer: bytes, request: QuorumRequest, now: float) -> None:
        slot = self.roster.by_token.get(request.token)
        asks = request.participant
        if slot is None:
            self.roster.send(peer, HelloWanted(self.roster.epoch))
            return
        member = slot.member
        if not member.live or asks.incarnation != member.incarnation or asks.replica_id != member.replica_id:
            self._rejoin(peer, slot, asks.incarnation)
            return
        if not member.complete or len(asks.ranks) != member.group_world_size:
            self.roster.counters["quorum requests that do not speak for every rank"] += 1
            return
        member.asks_from = peer
        if asks.round == member.answered_round and member.answer is not None:
            self.roster.send(peer, QuorumFormed(self.roster.epoch, member.answer))
            return
        if asks.round < (member.request.round if member.request else member.answered_round):
            self.roster.counters["quorum requests of an older round"] += 1
            return
        job = self.roster.jobs[member.job_id]
        if member.request is None:
            member.longest_step_s = max(member.longest_step_s, now - member.idle_since)
            job.asks_short -= 1
        member.asked = True
        member.request = asks
        member.step = asks.step
        self.roster.timers.arm((Timer.REQUEST, member), now, request.ttl_s)
        if job.asks_short <= 0 or asks.shrink_only:
            self.roster.undecided[member.job_id] = None

    def _answer_wanted(self, peer: bytes, wanted: AnswerWanted, now: float) -> None:
        slot = self.roster.by_token.get(wanted.token)
        if slot is None or slot.member.answer is None or slot.member.incarnation != wanted.incarnation:
            return
        if slot.member.answered_round == wanted.round:
            self.roster.send(peer, QuorumFormed(self.roster.epoch, slot.member.answer))

    def _lookup(self, peer: bytes, lookup: Lookup, now: float) -> None:
        slot = self.roster.by_token.get(lookup.token)
        if slot is None:
            self.roster.send(peer, HelloWanted(self.roster.epoch))
            return
        member = slot.member
        if member.live:
            self.roster.send(peer, LookedUp(member.incarnation, member.group_address))
        else:
            self._rejoin(peer, slot, member.incarnation)

    def _rejoin(self, peer: bytes, slot: Slot, claimed: Incarnation) -> None:
        member = slot.member
        job = self.roster.jobs[member.job_id]
        self.roster.send_rejoin(peer, slot.token, claimed, job, member.replica_id)

    def _leave(self, peer: bytes, leave: Leave, now: float) -> None:
        slot = self.roster.by_token.get(leave.token)
        if slot is None and leave.incarnation.epoch < self.epoch:  # of before a restart: who was that?
            self.roster.send(peer, HelloWanted(self.epoch))
            return
        if slot is not None and slot.member.live and slot.member.incarnation == leave.incarnation:
            slot.member.step = leave.step
            self.roster.end_rank(slot, Trigger.LEAVE, Cause(CauseKind.LEFT), now)
        self._acknowledge(peer, Ack(KIND_OF[Leave], leave.token))

    def _obituary(self, peer: bytes, obituary: Obituary, now: float) -> None:
        if obituary.cause.kind is CauseKind.OPERATOR:
            self.roster.counters["obituaries in an operator's name"] += 1
            return
        left = obituary.cause.kind is CauseKind.LEFT
        for slot in self._named_by(obituary):
            if slot.member.live:
                trigger = Trigger.LEAVE if left else Trigger.OBITUARY
                self.roster.end_rank(slot, trigger, obituary.cause, now)
        if obituary.token:
            self.roster.bury(obituary.token, obituary.cause)
        self._acknowledge(peer, Ack(KIND_OF[Obituary], obituary.token))

    def _acknowledge(self, peer: bytes, ack: Ack) -> None:
        """Once it is published: those who live hear of it first."""
        self._acks.append(Send((peer,), ack))

    def _kill(self, peer: bytes, kill: Kill, operator: str, now: float) -> None:
        """End the incarnation that is named, and no later one: the operator may have to say it twice."""
        if not operator:
            self.roster.counters["kills asked for without an operator's key"] += 1
            self._tell_of_kill(peer, kill, KillResult.NOT_ALLOWED)
            return
        job = self.roster.jobs.get(kill.job_id)
        member = job.members.get(kill.replica_id) if job else None
        if member is None or member.incarnation < kill.incarnation:
            self._tell_of_kill(peer, kill, KillResult.UNKNOWN)
            return
        if member.live and member.incarnation == kill.incarnation:
            self.roster.end(member, Trigger.OPERATOR, Cause(CauseKind.OPERATOR, text=operator), now)
        self._tell_of_kill(peer, kill, KillResult.DONE)

    def _tell_of_kill(self, peer: bytes, kill: Kill, result: KillResult) -> None:
        self._acks.append(Send((peer,), Killed(kill.replica_id, kill.incarnation, result)))

    def _named_by(self, obituary: Obituary) -> list[Slot]:
        """By token, or else by process: after an exec, the same process may be another member."""
        if obituary.token:
            slot = self.roster.by_token.get(obituary.token)
            return [slot] if slot else []
        job = self.roster.jobs.get(obituary.job_id)
        dead = obituary.process
        if job is None or not dead.boot_id or not dead.start_time:
            return []
        slots = [slot for member in job.members.values() for slot in member.slots.values()]
        return [slot for slot in slots if slot.process[1:] == dead[1:]]

    def _resync(self, peer: bytes, resync: Resync, now: float) -> None:
        slot = self.roster.by_token.get(resync.token)
        if slot is None:
            self.roster.send(peer, HelloWanted(self.roster.epoch))
            return
        notices = self.roster.jobs[slot.member.job_id].notices
        self.roster.send(
            peer, notices.since(resync.seq, self.roster.epoch, resync.epoch == self.roster.epoch)
        )

    def _snapshot_request(self, peer: bytes, request: SnapshotRequest, now: float) -> None:
        self.roster.send(peer, self.snapshot(request.job_id, now))

    # --- time

    def _loop_stalled(self, gap_s: float, now: float) -> None:
        self.roster.leases.excuse(now)
        self.roster.timers.excuse(now)
        self.roster.counters["stalls of the lighthouse's own loop"] += 1
        text = f"The lighthouse itself was held up for {gap_s:.3f} s: no member is blamed for that time"
        self.roster.effects.append(Log(logging.WARNING, text))

    def _time_passed(self, now: float) -> None:
        beacon_due = False
        for timer, subject in self.roster.timers.due(now):
            if timer is Timer.BEACON:
                beacon_due = True
                self.roster.timers.arm((Timer.BEACON, None), now, BEACON_INTERVAL_S)
            else:
                self._timer_over(timer, subject, now)
        for slot in self.roster.leases.due(now):
            cause = Cause(CauseKind.HEARTBEAT_TIMEOUT, text=f"none for {now - slot.beat_at:.3f} s")
            self.roster.end_rank(slot, Trigger.LEASE_OVER, cause, now)
        self._conclude(now)
        if beacon_due:
            self._beacon(now)

    def _conclude(self, now: float) -> None:
        """Tell what has ended and form what can be formed, of each job of which something was learned."""
        for job_id in tuple(self.roster.undecided):
            del self.roster.undecided[job_id]
            job = self.roster.jobs[job_id]
            batch = job.notices.flush(self.roster.epoch, now)
            if batch:
                self.roster.effects.append(Publish(job.job_id, batch))
            self._decide(job, now)
        self.roster.effects += self._acks
        self._acks.clear()

    def _timer_over(self, timer: Timer, subject: Any, now: float) -> None:
        if timer is Timer.SETTLE:
            self.roster.undecided.update(dict.fromkeys(self.roster.jobs))
        elif timer is Timer.JOIN:
            subject.join_over = True
            self.roster.undecided[subject.job_id] = None
        elif timer is Timer.CALL_OFF:
            self._call_off(subject)
        elif timer is Timer.REQUEST:
            subject.request = None
            subject.idle_since = now
            self.roster.undecided[subject.job_id] = None
        elif timer is Timer.RETURN:
            self.roster.end(subject, Trigger.NOT_RETURNED, Cause(CauseKind.LOST_IN_RESTART), now)
        elif timer is Timer.GRACE:
            self.roster.end_rank(subject, Trigger.GRACE_OVER, Cause(CauseKind.CONNECTION_LOST), now)
        elif timer is Timer.STOPPED:
            self.roster.end_rank(subject, Trigger.STOPPED, Cause(CauseKind.STOPPED), now)
        elif timer is Timer.STALLED:
            self._end_stalled(subject, now)

    def _end_stalled(self, slot: Slot, now: float) -> None:
        if slot.stopped:  # the reason why it gets nowhere, and the shorter patience was for progress
            self.roster.end_rank(slot, Trigger.STOPPED, Cause(CauseKind.STOPPED), now)
            return
        text = f"none for {slot.progress_timeout_s:g} s in {slot.phase.name.lower()}"
        self.roster.end_rank(slot, Trigger.STALLED, Cause(CauseKind.STALLED, text=text), now)

    def _beacon(self, now: float) -> None:
        """Tell listeners what they should have heard, and waiters why they wait."""
        for job in list(self.roster.jobs.values()):
            self.roster.forget_long_dead(job, now)
            if not job.members:
                del self.roster.jobs[job.job_id]
                continue
            self.roster.effects.append(Publish(job.job_id, Beacon(self.roster.epoch, job.notices.seq)))
            waiters = tuple([m.asks_from for m in job.live() if m.request])
            if waiters:
                self._decide(job, now)
                if job.waiting:
                    self.roster.effects.append(Send(waiters, job.waiting.message()))

    # --- quorum

    def _decide(self, job: Job, now: float) -> None:
        settings = self._settings
        live = job.live()
        settling = (Timer.SETTLE, None) in self.roster.timers
        standings = job.standings(live, now, settings.join_timeout_s)
        outcome = decide(standings, job.previous, job.conditions(settling))
        job.join_over = False
        waiting = outcome if isinstance(outcome, Waiting) else None
        stragglers = waiting is not None and waiting.numbers_hold
        unanswered = waiting is not None and waiting.have > 0 and job.claimed and not job.called_off
        self._run_while(stragglers, (Timer.JOIN, job), settings.join_timeout_s, now)
        self._run_while(unanswered, (Timer.CALL_OFF, job), self.roster.return_s, now)
        job.waiting = waiting
        job.asks_short = waiting.need - waiting.have if waiting else 0
        if isinstance(outcome, Formed):
            self._form(job, outcome, now)

    def _run_while(self, wanted: bool, key: tuple[Timer, Job], length_s: float, now: float) -> None:
        """Let a timer run for as long as there is reason to; it does not start anew meanwhile."""
        if not wanted:
            self.roster.timers.disarm(key)
        elif key not in self.roster.timers:
            self.roster.timers.arm(key, now, length_s)

    def _call_off(self, job: Job) -> None:
        """Free members of a quorum that the lighthouse before us gave to some and not, as it died, to all.

        They wait in a collective for the others, who ask here and in turn wait for them. Whoever is merely
        between two steps loses nothing by it.
        """
        assert job.previous is not None
        members = [m for m in job.live() if (m.replica_id, m.incarnation) in job.previous.members]
        if not job.claimed or not any(m.request for m in members):
            return
        job.called_off = True
        absent = [m for m in members if not m.request]
        for member in absent:
            self._exclude(member, QuorumId(self.roster.epoch, 0))
        names = ", ".join(m.replica_id for m in absent)
        text = f"Quorum {job.previous.quorum_id}, of before the restart, is called off: {names} did not ask"
        self.roster.effects.append(Log(logging.INFO, text, job.job_id))

    def _form(self, job: Job, formed: Formed, now: float) -> None:
        members = tuple([(p.replica_id, p.incarnation) for p in formed.participants])
        known = job.previous
        grown = known is None or known.quorum_id.epoch != self.roster.epoch or known.members != members
        if grown or any(p.commit_failures for p in formed.participants):
            known = QuorumClaim(QuorumId(*self.roster.unique()), members)
            job.claimed = False
            job.formed_at = now
        assert known is not None
        quorum = Quorum(known.quorum_id, job.job_id, formed.participants)
        peers = []
        for replica_id, _ in members:
            member = job.members[replica_id]
            peers.append(member.asks_from)
            self._answer(member, quorum, now)
        self.roster.effects.append(Send(tuple(peers), QuorumFormed(self.roster.epoch, quorum)))
        for replica_id in formed.excluded:
            self._exclude(job.members[replica_id], known.quorum_id)
        if grown:
            names = ", ".join(p.replica_id for p in formed.participants)
            text = f"Quorum {known.quorum_id} of job {job.job_id}: {len(members)} replicas ({names})"
            self.roster.effects.append(Log(logging.INFO, text, job.job_id))
        job.previous = known

    def _exclude(self, member: Member, quorum_id: QuorumId) -> None:
        for slot in member.slots.values():
            self.roster.send(slot.listener_peer, Excluded(slot.token, quorum_id))

    def _answer(self, member: Member, quorum: Quorum, now: float) -> None:
        assert member.request is not None
        member.answered_round = member.request.round
        member.answer = quorum
        member.request = None
        member.idle_since = now
        self.roster.timers.disarm((Timer.REQUEST, member))
