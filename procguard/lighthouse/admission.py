"""What a Hello amounts to, judged from who says it and who holds the name already. Pure.

A Hello *without* a claim asks to join and may get a fresh incarnation. One *with* a claim says "I am this
incarnation already" and is never reborn by it: a listener repeats its trainer's claim after a reconnect or a
restart of the lighthouse, and a wedged trainer must not come back to life because its listener is well.
"""

from __future__ import annotations

from enum import Enum, auto

from procguard.lighthouse.members import Member
from procguard.messages import (
    Cause,
    CauseKind,
    Hello,
    Incarnation,
    MemberState,
    Notice,
    Rejected,
    Rejection,
)

JOBS_MAX = 1_000
MEMBERS_MAX = 10_000


class Admission(Enum):
    """What to do with the one who says Hello."""

    JOIN = auto()
    """A fresh incarnation."""
    GO_ON = auto()
    """The same process, the same incarnation."""
    ADOPT = auto()
    """An incarnation that an earlier lighthouse gave, with the member as it says it is."""
    SUPERSEDE_AND_JOIN = auto()
    """The holder is suspect and another process takes the name: the holder has failed."""
    SUPERSEDE_AND_ADOPT = auto()
    """The holder, known from claims alone, is an earlier life of the one who claims."""
    REJOIN = auto()
    """The life it claims is over."""
    ID_IN_USE = auto()


def judge(hello: Hello, holder: Member | None, fallen: Notice | None, epoch: int) -> Admission:
    """Decide.

    Args:
        holder: the member of that replica id, if the lighthouse knows one.
        fallen: of the greatest incarnation of that replica id known to be over.
        epoch: the lighthouse's own.
    """
    live = holder if holder is not None and holder.live else None
    if hello.claim is None:
        return _judge_newcomer(hello, live)
    claimed = hello.claim.incarnation
    if live is not None and live.token == hello.token:
        return Admission.GO_ON if claimed == live.incarnation else Admission.REJOIN
    given_here = claimed.epoch >= epoch  # then we would know it, were it not over
    if given_here or (fallen is not None and claimed <= fallen.incarnation):
        return Admission.REJOIN
    if live is None:
        return Admission.ADOPT
    if claimed > live.incarnation:
        return Admission.SUPERSEDE_AND_ADOPT
    awaited = not live.token
    return Admission.ADOPT if awaited and claimed == live.incarnation else Admission.REJOIN


def _judge_newcomer(hello: Hello, live: Member | None) -> Admission:
    if live is None:
        return Admission.JOIN
    if live.token == hello.token:
        return Admission.GO_ON
    return Admission.SUPERSEDE_AND_JOIN if live.state is MemberState.SUSPECT else Admission.ID_IN_USE


def id_in_use(holder: Member) -> Rejected:
    process = holder.process
    text = f"replica_id {holder.replica_id!r} is in use by a living process"
    return Rejected(Rejection.ID_IN_USE, text, process.host, process.pid)


def unsupported(hello: Hello) -> Rejected | None:
    """What a Hello may not ask for, whoever says it."""
    if "\0" in hello.job_id:
        return _rejected(Rejection.UNSUPPORTED, "job_id holds a NUL character")
    if hello.group_world_size != 1 or hello.group_rank != 0:
        return _rejected(
            Rejection.UNSUPPORTED,
            f"group_rank {hello.group_rank} of group_world_size {hello.group_world_size}: this lighthouse "
            "serves replica groups of one rank",
        )
    return None


def buried(cause: Cause) -> Rejected:
    return _rejected(Rejection.BURIED, f"this process was reported dead: {cause}")


def full(what: str, limit: int) -> Rejected:
    return _rejected(Rejection.FULL, f"the lighthouse already serves {limit} {what}")


def min_replicas_conflict(job_id: str, asked: int, holds: int) -> Rejected:
    return _rejected(
        Rejection.MIN_REPLICAS_CONFLICT,
        f"min_replicas {asked} asked, but job {job_id!r} runs with {holds}; give all its members the same",
    )


def rejoin_cause(claimed: Incarnation, fallen: Notice | None) -> Cause:
    """Why the claimed life is over, as far as it is remembered."""
    if fallen is not None and fallen.incarnation == claimed:
        return fallen.cause
    return Cause(CauseKind.SUPERSEDED)


def _rejected(reason: Rejection, text: str) -> Rejected:
    return Rejected(reason, text, "", 0)
