"""What must hold in every schedule, looked at after every step.

Each class below is one promise, and its docstring says under which premise it is owed. They know the truth
(which process lives, what the network did), which the lighthouse and the trainers do not. What they find is
reported, not raised: the code under test has ``except Exception`` of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from procguard.client import abort as abort_rules
from procguard.client import fence as fence_rules
from procguard.lighthouse import admission, notices, roster
from procguard.lighthouse.core import BEACON_INTERVAL_S, Core
from procguard.lighthouse.deadlines import STALE_MAX
from procguard.lighthouse.events import Effect, Event, Publish, Send, TimePassed
from procguard.lighthouse.job import Job
from procguard.lighthouse.members import Member
from procguard.lighthouse.roster import Timer
from procguard.messages import (
    CauseKind,
    Excluded,
    Incarnation,
    MemberState,
    Notice,
    NoticeBatch,
    Quorum,
    QuorumFormed,
    QuorumId,
    QuorumWaiting,
    Settings,
)
from procguard.sim.clock import VirtualClock
from procguard.sim.lighthouse import WatchedCore
from procguard.sim.member import TrainerProcess

RECOVERY_S = 1.5
"""After whatever befell it, a member needs so long to be heard again: a retransmission that had backed off, a
connection to be made, a Hello to be repeated."""
ANSWER_SLACK_S = 0.15
DEPARTURE_S = 0.35
OWN_ERRORS = "errors of the lighthouse itself"

Life = tuple[str, Incarnation]


class Violation(NamedTuple):
    at: float
    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.at:.4f} s: {self.invariant}: {self.text}"


class Findings:
    """What was found, and a digest of all that was seen: the same for the same run."""

    def __init__(self, clock: VirtualClock, trace: Callable[[str], None] | None = None) -> None:
        self.violations: list[Violation] = []
        self.lines = 0
        self._clock = clock
        self._trace = trace
        self._digest = hashlib.blake2b(digest_size=8)

    def report(self, invariant: str, text: str) -> None:
        violation = Violation(self._clock.now, invariant, text)
        self.violations.append(violation)
        self.line(f"VIOLATION {violation}")

    def line(self, text: str) -> None:
        """Something worth telling."""
        self.lines += 1
        said = f"{self._clock.now:9.4f}  {text}"
        self._digest.update(said.encode())
        if self._trace is not None:
            self._trace(said)

    def digest(self) -> str:
        return self._digest.hexdigest()


class OneMembership:
    """One ``(epoch, quorum_id)`` never names two memberships, and ids strictly grow across any restart.

    Owed as long as a lighthouse has its state *or* a wall clock that was not set back; without both, nothing
    on earth remembers before the first member is heard.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.members: dict[QuorumId, tuple[Life, ...]] = {}
        self.newest = QuorumId(0, 0)
        self.formed_at: dict[QuorumId, float] = {}

    def formed(self, quorum_id: QuorumId, members: tuple[Life, ...], now: float) -> bool:
        """Whether it is new."""
        known = self.members.get(quorum_id)
        if known is not None:
            if known != members:
                self._findings.report("one-membership", f"{quorum_id} names {known} and {members}")
            return False
        if quorum_id <= self.newest:
            self._findings.report("one-membership", f"{quorum_id} was formed after {self.newest}")
        self.members[quorum_id] = members
        self.newest = quorum_id
        self.formed_at[quorum_id] = now
        return True


class RightMembers:
    """A quorum has at least ``min_replicas`` members, more than half of those who live and have asked lately,
    and none that is over; a live member of the quorum before is in it or is told that it was left out.

    Owed for what is decided (on ``TimePassed``), not for an old answer given again.
    """

    def __init__(self, findings: Findings, settings: Settings) -> None:
        self._findings = findings
        self._settings = settings

    def formed(
        self,
        job: Job,
        members: tuple[Life, ...],
        before: tuple[Life, ...],
        effects: tuple[Effect, ...],
        over: dict[str, Incarnation],
        now: float,
    ) -> None:
        report = self._findings.report
        if len(members) < job.min_replicas:
            report("right-members", f"{len(members)} replicas, though min_replicas is {job.min_replicas}")
        for replica_id, incarnation in members:
            member = job.members.get(replica_id)
            if member is None or member.incarnation != incarnation or member.state is not MemberState.ALIVE:
                report("right-members", f"{replica_id} {incarnation} is no live member, yet in a quorum")
            if replica_id in over and incarnation <= over[replica_id]:
                report("right-members", f"{replica_id} {incarnation} is over, yet in a quorum")
        chosen = dict(members)
        others = [m for m in job.members.values() if m.live and m.asked and m.replica_id not in chosen]
        counted = sum(not m.overdue(now, self._settings.join_timeout_s) for m in others)
        if len(members) <= counted and not self._shrinks(job, members):
            report("right-members", f"{len(members)} replicas of {len(members) + counted} are no majority")
        told = {e.message.token for e in effects if isinstance(e, Send) and isinstance(e.message, Excluded)}
        for replica_id, incarnation in before:
            member = job.members.get(replica_id)
            if member is None or not member.live or member.incarnation != incarnation or replica_id in chosen:
                continue
            reached = [slot for slot in member.slots.values() if slot.listener_peer]
            if not all(slot.token in told for slot in reached):
                report("right-members", f"{replica_id} {incarnation} was left out, and not told")

    def _shrinks(self, job: Job, members: tuple[Life, ...]) -> bool:
        """Then only members of the quorum before are counted."""
        answers = [job.members[name].answer for name, _ in members if name in job.members]
        return any(p.shrink_only for answer in answers if answer for p in answer.participants)


class OneQuorum:
    """No two live quorums of a job train at once.

    A quorum is over when a later one forms. A member of it that was in the middle of a step cannot know that
    at once, and finishes at most that one step: a replica commits at most once more in a quorum after a later
    one has formed.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._late: set[tuple[str, QuorumId]] = set()

    def committed(self, process: TrainerProcess, quorum_id: QuorumId, newest: QuorumId) -> None:
        if quorum_id >= newest:
            return
        key = process.label, quorum_id
        if key in self._late:
            text = f"{process.label} commits on in {quorum_id} though {newest} has formed"
            self._findings.report("one-quorum", text)
        self._late.add(key)


class FencedAborts:
    """No abort is applied outside the quorum that it names, none without a reason (a member of that quorum
    is over, or we are, or were left out, or a step failed), and none is missed, whichever of notice and
    quorum came first.

    Missed: a notice names a member of the quorum in use, or of one about to be, and comes from a lighthouse
    that is not older than it. One that left needs an abort only where its last step is not beyond ours, and
    after a grace.
    """

    def __init__(self, findings: Findings, clock: VirtualClock) -> None:
        self._findings = findings
        self._clock = clock
        self._heard: dict[TrainerProcess, dict[str, tuple[int, Incarnation]]] = {}
        self._failed: dict[TrainerProcess, dict[str, tuple[int, Incarnation]]] = {}
        """The same without those that left."""

    def aborts(self, process: TrainerProcess, quorum_id: int, over: dict[str, Incarnation]) -> None:
        current = process.fence_current
        named = QuorumId.of_packed(quorum_id)
        if current is None or current.quorum_id.packed != quorum_id:
            text = f"{process.label} aborts {named}, in use is {current and current.quorum_id}"
            self._findings.report("abort-inside", text)
            return
        replica = process.replica
        failed = replica is not None and replica._round is not None and replica._round.error is not None
        is_over = any(p.incarnation <= over.get(p.replica_id, p.incarnation._replace(epoch=-1))
                      for p in current.participants)  # fmt: skip
        if not (is_over or process.given_up or failed):
            self._findings.report("abort-inside", f"{process.label} aborts {named} for no reason")

    def heard(self, process: TrainerProcess, epoch: int, heard: tuple[Notice, ...]) -> None:
        current = process.fence_current
        for notice in heard:
            end = epoch, notice.incarnation
            for table in (self._heard,) if notice.left else (self._heard, self._failed):
                ends = table.setdefault(process, {})
                ends[notice.replica_id] = max(end, ends.get(notice.replica_id, end))
            if current is None or epoch < current.quorum_id.epoch:
                continue
            lives = {p.replica_id: p.incarnation for p in current.participants}
            if lives.get(notice.replica_id, notice.incarnation._replace(epoch=1 << 62)) > notice.incarnation:
                continue
            assert process.replica is not None
            if not notice.left:
                self._must_be_aborted(process, current.quorum_id, notice)
            elif notice.step <= process.replica.current_step():
                self._clock.after(DEPARTURE_S, self._must_be_aborted, process, current.quorum_id, notice)

    def _must_be_aborted(self, process: TrainerProcess, quorum_id: QuorumId, notice: Notice) -> None:
        current = process.fence_current
        in_use = current is not None and current.quorum_id == quorum_id
        scheduled = process.computer.running and process.machine.well_since < self._clock.now
        if in_use and process.pg.present == quorum_id.packed and quorum_id.packed not in process.pg.aborted:
            if notice.left and not scheduled:
                return
            text = f"{process.label} goes on in {quorum_id} though it heard that {notice.replica_id} is over"
            self._findings.report("abort-missed", text)

    def configures(self, process: TrainerProcess, quorum_id: int) -> None:
        current = process.fence_current
        named = QuorumId.of_packed(quorum_id)
        if current is None or current.quorum_id != named:
            self._findings.report("abort-missed", f"{process.label} configures {named} past the fence")
            return
        self._must_be_whole(process, current, self._heard.get(process, {}))

    def contributes(self, process: TrainerProcess) -> None:
        """No error has been told it so far: a collective of its quorum begins. That may be an old quorum,
        used again, which nobody configured. Of those that left it may not have been told."""
        if process.fence_current is not None:
            self._must_be_whole(process, process.fence_current, self._failed.get(process, {}))

    def _must_be_whole(
        self, process: TrainerProcess, quorum: Quorum, ends: dict[str, tuple[int, Incarnation]]
    ) -> None:
        for member in quorum.participants:
            epoch, incarnation = ends.get(member.replica_id, (0, Incarnation(0, 0)))
            if incarnation >= member.incarnation and epoch >= quorum.quorum_id.epoch:
                named = quorum.quorum_id
                text = f"{process.label} uses {named} though it heard that {member.replica_id} is over"
                self._findings.report("abort-missed", text)


class SameState:
    """Replicas that commit the same ``(step, committed_in)`` hold the same state, and those who contribute
    to one step of one quorum began it with the same."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._committed: dict[tuple[int, int], tuple[int, str]] = {}
        self._begun: dict[tuple[int, int], tuple[int, str]] = {}

    def committed(self, process: TrainerProcess, step: int, quorum_id: int) -> None:
        self._compare(self._committed, process, (step, quorum_id), "commits")

    def contributes(self, process: TrainerProcess, step: int, quorum_id: int) -> None:
        self._compare(self._begun, process, (step, quorum_id), "contributes to")

    def _compare(
        self,
        table: dict[tuple[int, int], tuple[int, str]],
        process: TrainerProcess,
        key: tuple[int, int],
        verb: str,
    ) -> None:
        weights, first = table.setdefault(key, (process.weights, process.label))
        if weights != process.weights:
            where = QuorumId.of_packed(key[1])
            text = f"{process.label} {verb} step {key[0]} in {where} with another state than {first}"
            self._findings.report("same-state", text)


class ToldOnce:
    """Each survivor applies each ``(replica_id, incarnation)`` failure exactly once, whatever PUB lost.

    At most once: always. At least once: owed by the lighthouse that is there at the end, for all that it
    published, to all who were members before that and live at the end; a lighthouse that dies takes with it
    what it had not yet told.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._told: dict[TrainerProcess, set[Life]] = {}
        self._published: list[tuple[float, Notice]] = []

    def started(self) -> None:
        """Another lighthouse."""
        self._published.clear()

    def published(self, notice: Notice, now: float) -> None:
        self._published.append((now, notice))

    def told(self, process: TrainerProcess, notice: Notice) -> None:
        told = self._told.setdefault(process, set())
        life = notice.replica_id, notice.incarnation
        if life in told:
            self._findings.report("told-once", f"{process.label} was told twice of {life[0]} {life[1]}")
        told.add(life)

    def at_end(self, processes: list[TrainerProcess]) -> None:
        for process in processes:
            told = self._told.get(process, set())
            for when, notice in self._published:
                life = notice.replica_id, notice.incarnation
                member_then = process.first_born_at < when
                if member_then and notice.replica_id != process.name and life not in told:
                    text = f"{process.label} was never told of {life[0]} {life[1]}, published at {when:.3f} s"
                    self._findings.report("told-once", text)


class NeverFailed:
    """A member that is alive, scheduled and connected within the declared delay bound is never failed.

    Scheduled: neither it nor its listener was stopped, nor held up for longer than 300 ms. Connected: no
    frame of its machine took longer than ``network.DELAY_BOUND_S``, no connection of it was cut, no partition
    lay between. All that since as long as the verdict looks back, and ``RECOVERY_S`` more. A lighthouse's
    death, restart or stall is no excuse; nor is the death of a listener, unless its trainer, which has to
    speak in its place, is held up at that very time. A life that an earlier lighthouse had ended is not
    failed when the next one learns of that.

    A lost connection must be replaced within ``disconnect_grace``. That is less than a handshake and a
    retransmission take on a slow network, so there a packet lost meanwhile is an excuse. A listener drops its
    connections by itself when it has heard nothing for 2 s.
    """

    def __init__(self, findings: Findings, settings: Settings) -> None:
        self._findings = findings
        self._window_s = {
            CauseKind.HEARTBEAT_TIMEOUT: settings.heartbeat_timeout_s,
            CauseKind.STOPPED: settings.heartbeat_timeout_s,
            CauseKind.CONNECTION_LOST: settings.disconnect_grace_s,
            CauseKind.SUPERSEDED: settings.disconnect_grace_s,
            CauseKind.LOST_IN_RESTART: roster.RETURN_TIMEOUTS * settings.heartbeat_timeout_s,
        }
        self.false = 0

    def published(self, notice: Notice, process: TrainerProcess | None, now: float) -> None:
        if process is None or not process.is_alive or process.lives[-1] != notice.incarnation:
            return
        kind = notice.cause.kind
        if notice.left:
            well = not process.wants_to_leave
        elif kind is CauseKind.STALLED:
            well = process.hangs_until < now - process.plan.progress_timeout_s and self._is_well(
                process, 1.0, now
            )
        else:
            well = kind not in self._window_s or self._is_well(process, self._window_s[kind], now)
            if kind is CauseKind.CONNECTION_LOST:
                well = well and process.machine.lossless_since < now - self._window_s[kind] - RECOVERY_S
        if well:
            self.false += 1
            text = f"{process.label} {notice.incarnation} was failed ({notice.cause}), and is well"
            self._findings.report("never-failed", text)

    def _is_well(self, process: TrainerProcess, window_s: float, now: float) -> bool:
        return process.machine.well_since <= now - window_s - RECOVERY_S


class Answered:
    """Every waiter is answered, or told why not, within one beacon of its conditions holding.

    Told why: something was sent to each waiting connection in the last beacon interval. Answered: when all
    live members ask (or all live ones of the quorum before, and they are most of those who ever asked), none
    is suspect, and they are enough, they form a quorum by the next beacon. A request that was taken in stays
    until it is answered, expires, or its member is over. Not owed while a lighthouse that
    has just been restarted waits for those of an earlier quorum, nor for time in which it was not scheduled.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._spoken: dict[bytes, float] = {}
        self._since: dict[tuple[str, bytes], float] = {}
        """By member and the connection on which it asks: one on a new connection has just begun to wait."""
        self._held_since: float | None = None
        self._asking: dict[str, tuple[Member, int]] = {}
        self.excused_until = 0.0

    def started(self) -> None:
        self._spoken.clear()
        self._since.clear()
        self._asking.clear()
        self._held_since = None

    def spoke(self, peers: tuple[bytes, ...], now: float) -> None:
        for peer in peers:
            self._spoken[peer] = now

    def look(self, core: WatchedCore, job: Job, now: float) -> None:
        live = [member for member in job.members.values() if member.live]
        waiting = {member.replica_id: member for member in live if member.request is not None}
        asks = [(name, member.asks_from) for name, member in waiting.items()]
        self._since = {each: self._since.get(each, now) for each in asks}
        for name, (member, round_) in self._asking.items():
            if member.live and member.request is None and member.answered_round < round_:
                self._findings.report("answered", f"the request of {name} vanished without an answer")
        self._asking = {
            name: (member, member.request.round) for name, member in waiting.items() if member.request
        }
        patience_s = BEACON_INTERVAL_S + ANSWER_SLACK_S
        for name, member in waiting.items():
            heard_at = self._spoken.get(member.asks_from, 0.0)
            since = self._since[name, member.asks_from]
            if now - max(heard_at, since, self.excused_until) > patience_s:
                self._findings.report("answered", f"{name} waits, and is not told why")
        if not self._should_form(core, job, live, len(waiting)):
            self._held_since = None
        elif self._held_since is None:
            self._held_since = now
        elif now - max(self._held_since, self.excused_until) > patience_s:
            names = ", ".join(sorted(waiting))
            self._findings.report("answered", f"{names} wait though nothing is missing for a quorum")
            self._held_since = now

    def _should_form(self, core: WatchedCore, job: Job, live: list[Member], asking: int) -> bool:
        if asking < max(job.min_replicas, 1) or any(m.state is not MemberState.ALIVE for m in live):
            return False
        was_in = set(job.previous.members) if job.previous else set()
        incumbents = [m for m in live if (m.replica_id, m.incarnation) in was_in]
        if not incumbents and (job.claimed or (Timer.SETTLE, None) in core.roster.timers):
            return False
        if asking == len(live):
            return True
        back = bool(incumbents) and all(m.request for m in incumbents)
        return back and 2 * asking > sum(m.asked for m in live)


class Bounded:
    """No queue, table or heap grows past its named limit; the dead are forgotten after theirs."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def look(self, core: Core) -> None:
        rooms = core.roster
        self._limit("jobs", len(rooms.jobs), admission.JOBS_MAX)
        self._limit("held topics", len(rooms._held), roster.TOPICS_MAX)
        self._limit("awaited topics", len(rooms._welcomes), roster.TOPICS_MAX)
        self._limit("buried tokens", len(rooms._buried), roster.BURIED_MAX)
        known = 0
        for job in rooms.jobs.values():
            known += sum(len(member.slots) for member in job.members.values())
            dead = sum(not member.live for member in job.members.values())
            self._limit("members", len(job.members), admission.MEMBERS_MAX)
            self._limit("dead members", dead, roster.DEAD_KEPT_MAX + notices.BATCHES_MAX)
            self._limit("notices kept", len(job.notices._recent), notices.BATCHES_MAX)
            self._limit("fallen kept", len(job.notices._fallen), notices.FALLEN_MAX)
        self._limit("tokens", len(rooms.by_token), known)
        self._limit("topics", len(rooms._by_topic), known)
        for name, deadlines in (("leases", rooms.leases), ("timers", rooms.timers)):
            self._limit(f"heap of {name}", len(deadlines._heap), 2 * len(deadlines._since) + STALE_MAX)
        self._limit("leases", len(rooms.leases._since), known)

    def look_at(self, process: TrainerProcess) -> None:
        replica = process.replica
        if replica is None:
            return
        fence = replica._abort._fence
        self._limit("lives told", len(fence._told), fence_rules.LIVES_MAX)
        self._limit("ends known", len(fence._ends), fence_rules.LIVES_MAX)
        self._limit("failures kept", len(replica.failures()), abort_rules.FAILURES_KEPT_MAX)

    def _limit(self, what: str, count: int, limit: int) -> None:
        if count > limit:
            self._findings.report("bounded", f"{count} {what}, more than {limit}")


class Watch:
    """All of them together, told of everything that happens."""

    def __init__(self, clock: VirtualClock, settings: Settings, findings: Findings) -> None:
        self.findings = findings
        self._clock = clock
        self.one_membership = OneMembership(findings)
        self.right_members = RightMembers(findings, settings)
        self.one_quorum = OneQuorum(findings)
        self.aborts_fenced = FencedAborts(findings, clock)
        self.same_state = SameState(findings)
        self.told_once = ToldOnce(findings)
        self.never_failed = NeverFailed(findings, settings)
        self.answered = Answered(findings)
        self.bounded = Bounded(findings)
        self.processes: dict[Life, TrainerProcess] = {}
        self._over: dict[str, Incarnation] = {}
        """By replica id, the greatest incarnation that any lighthouse has said is over."""
        self._over_here: dict[str, Incarnation] = {}
        """The same of the present lighthouse alone."""
        self._before: tuple[Life, ...] = ()
        self._core: WatchedCore | None = None
        self._looked_at = 0.0
        self._look_now = False

    # --- the lighthouse

    def stepped(self, core: WatchedCore, event: Event, effects: tuple[Effect, ...], now: float) -> None:
        """The core has decided something, and nothing of it has left yet."""
        if core is not self._core:
            self._core = core
            self._over_here, self._before = {}, ()
            self.told_once.started()
            self.answered.started()
        for effect in effects:
            if isinstance(effect, Publish) and isinstance(effect.message, NoticeBatch):
                for notice in effect.message.notices:
                    self._published(notice, now)
            elif isinstance(effect, Send):
                message = effect.message
                if isinstance(message, QuorumFormed):
                    self._formed(core, event, message, effects, now)
                    self.answered.spoke(effect.peers, now)
                elif isinstance(message, QuorumWaiting):
                    self.answered.spoke(effect.peers, now)

    def turned(self, core: WatchedCore) -> None:
        """The lighthouse's loop has done a turn."""
        now = self._clock.now
        if now - self._looked_at < BEACON_INTERVAL_S / 5 and not self._look_now:
            return
        self._looked_at, self._look_now = now, False
        for job in core.roster.jobs.values():
            self.answered.look(core, job, now)
            for member in job.members.values():
                is_over = member.incarnation <= self._over_here.get(member.replica_id, Incarnation(0, 0))
                if member.live and is_over:
                    text = f"{member.replica_id} {member.incarnation} is over, and lives again"
                    self.findings.report("right-members", text)
                elif not member.live and not is_over and job.job_id not in core.roster.undecided:
                    text = f"{member.replica_id} {member.incarnation} is over, and nobody was told"
                    self.findings.report("told-once", text)
        self.bounded.look(core)
        bugs = core.roster.counters[OWN_ERRORS] + core.roster.counters["invalid frames"]
        if bugs:
            self.findings.report("no-bug", f"{bugs} steps of the lighthouse failed")

    def _published(self, notice: Notice, now: float) -> None:
        life = notice.replica_id, notice.incarnation
        self._look_now = True
        self.findings.line(f"lighthouse: {life[0]} {life[1]} is over: {notice.cause}")
        if notice.incarnation <= self._over_here.get(notice.replica_id, Incarnation(0, 0)):
            known = self._over_here[notice.replica_id]
            if notice.incarnation == known:
                self.findings.report("told-once", f"{life[0]} {life[1]} was published twice")
        was_over = life[1] <= self._over.get(life[0], Incarnation(0, 0))
        for table in (self._over, self._over_here):
            table[life[0]] = max(life[1], table.get(life[0], life[1]))
        self.told_once.published(notice, now)
        if not was_over:
            self.never_failed.published(notice, self.processes.get(life), now)

    def _formed(
        self,
        core: WatchedCore,
        event: Event,
        formed: QuorumFormed,
        effects: tuple[Effect, ...],
        now: float,
    ) -> None:
        quorum = formed.quorum
        members = tuple([(p.replica_id, p.incarnation) for p in quorum.participants])
        if self.one_membership.formed(quorum.quorum_id, members, now):
            names = ", ".join(f"{p.replica_id}@{p.step}" for p in quorum.participants)
            self.findings.line(f"lighthouse: quorum {quorum.quorum_id} of {names}")
        if isinstance(event, TimePassed):
            job = core.roster.jobs[quorum.job_id]
            self.right_members.formed(job, members, self._before, effects, self._over_here, now)
            self._before = members

    # --- the trainers

    def born(self, process: TrainerProcess, incarnation: Incarnation) -> None:
        self.findings.line(f"{process.label}: joined as {incarnation}")
        life = process.name, incarnation
        known = self.processes.setdefault(life, process)
        if known is not process:
            text = f"{life[0]} {incarnation} was given to {known.label} and to {process.label}"
            self.findings.report("one-membership", text)

    def told(self, process: TrainerProcess, notice: Notice) -> None:
        self.told_once.told(process, notice)

    def heard(self, process: TrainerProcess, epoch: int, heard: tuple[Notice, ...]) -> None:
        self.aborts_fenced.heard(process, epoch, heard)

    def configures(self, process: TrainerProcess, quorum_id: int) -> None:
        self.findings.line(f"{process.label}: uses {QuorumId.of_packed(quorum_id)}")
        self.aborts_fenced.configures(process, quorum_id)

    def aborts(self, process: TrainerProcess, quorum_id: int) -> None:
        self.findings.line(f"{process.label}: aborts {QuorumId.of_packed(quorum_id)}")
        self.aborts_fenced.aborts(process, quorum_id, self._over)

    def contributes(self, process: TrainerProcess, quorum_id: int) -> None:
        assert process.replica is not None
        self.same_state.contributes(process, process.replica.current_step(), quorum_id)
        self.aborts_fenced.contributes(process)

    def commits(self, process: TrainerProcess, quorum_id: int) -> None:
        assert process.replica is not None
        step = process.replica.current_step()
        named = QuorumId.of_packed(quorum_id)
        self.findings.line(f"{process.label}: commits step {step} in {named}")
        self.same_state.committed(process, step, quorum_id)
        self.one_quorum.committed(process, named, self.one_membership.newest)

    def raised(self, process: TrainerProcess, error: Exception) -> None:
        self.findings.report("no-bug", f"{process.label} raised {error!r}")

    def line(self, text: str) -> None:
        self.findings.line(text)
