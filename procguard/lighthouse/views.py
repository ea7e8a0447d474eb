"""The lighthouse's state as a ``Snapshot``: what a person or a script may see, and nothing secret.

No token (it is the right to speak for a process) and no checkpoint address (it holds a password).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from procguard.lighthouse.job import Job
from procguard.lighthouse.members import Member, Slot
from procguard.messages import (
    Counter,
    JobView,
    MemberView,
    NoticeView,
    QuorumView,
    RankView,
    Settings,
    Snapshot,
)

NOTICES_SHOWN_MAX = 20


def snapshot(
    epoch: int,
    uptime_s: float,
    settings: Settings,
    *,
    jobs: Iterable[Job],
    counters: Mapping[str, int],
    now: float,
) -> Snapshot:
    """The state at ``now`` (monotonic seconds), as ages rather than times."""
    return Snapshot(
        epoch,
        uptime_s,
        settings,
        tuple([_job(job, now) for job in sorted(jobs, key=lambda job: job.job_id)]),
        tuple([Counter(name, value) for name, value in sorted(counters.items())]),
    )


def _job(job: Job, now: float) -> JobView:
    members = sorted(job.members.values(), key=lambda member: member.replica_id)
    quorum = None
    if job.previous:
        names = tuple([replica_id for replica_id, _ in job.previous.members])
        quorum = QuorumView(job.previous.quorum_id, now - job.formed_at, names)
    return JobView(
        job.job_id,
        job.min_replicas,
        job.notices.seq,
        tuple([_member(member, now) for member in members]),
        quorum,
        job.waiting.message() if job.waiting else None,
        tuple([NoticeView(now - when, notice) for when, notice in job.notices.newest(NOTICES_SHOWN_MAX)]),
    )


def _member(member: Member, now: float) -> MemberView:
    return MemberView(
        member.replica_id,
        member.state,
        now - member.since,
        member.step,
        member.incarnation,
        member.group_world_size,
        tuple([_rank(slot, now) for _, slot in sorted(member.slots.items())]),
        member.request is not None,
        member.cause,
    )


def _rank(slot: Slot, now: float) -> RankView:
    age_s = now - slot.beat_at
    return RankView(slot.group_rank, slot.suspect, age_s, slot.step, slot.phase, slot.process)
