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
RANKS_MAX = 1_024
"""Of one replica group: what its request tells of them must fit into a frame."""


class Admission(Enum):
    """What to do with the one who says Hello."""

    JOIN = auto()
    """A fresh incarnation."""
    GO_ON = auto()
    """The same process, the same incarnation."""
    TAKE_SLOT = auto()
    """A further rank of a member that is there already."""
    ADOPT = auto()
    """An incarnation that an earlier lighthouse gave, with the member as it says it is."""
    SUPERSEDE_AND_JOIN = auto()
    """The holder is suspect and another process takes the name: the holder has failed."""
    SUPERSEDE_AND_ADOPT = auto()
    """The holder is an earlier life of the one who claims: known from others' claims, or from a Hello of its
    own that was said before and delayed."""
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
    if live is not None and _is_in_its_slot(hello, live) and claimed <= live.incarnation:
        return Admission.GO_ON if claimed == live.incarnation else Admission.REJOIN
    given_here = claimed.epoch >= epoch  # then we would know it, were it not over
    if given_here or (fallen is not None and claimed <= fallen.incarnation):
        return Admission.REJOIN
    if live is None:
        return Admission.ADOPT
    if claimed > live.incarnation:
        return Admission.SUPERSEDE_AND_ADOPT
    vacant = claimed == live.incarnation and hello.group_rank not in live.slots
    if not vacant:
        return Admission.REJOIN
    return Admission.TAKE_SLOT if live.slots else Admission.ADOPT


def _judge_newcomer(hello: Hello, live: Member | None) -> Admission:
    if live is None:
        return Admission.JOIN
    if _is_in_its_slot(hello, live):
        return Admission.GO_ON
    gathering = bool(live.slots) and not live.asked  # a group that has trained was complete once
    if gathering and live.group_run == hello.group_run and hello.group_rank not in live.slots:
        return Admission.TAKE_SLOT
    return Admission.SUPERSEDE_AND_JOIN if live.state is MemberState.SUSPECT else Admission.ID_IN_USE


def _is_in_its_slot(hello: Hello, live: Member) -> bool:
    slot = live.slots.get(hello.group_rank)
    return slot is not None and slot.token == hello.token


def refusal(verdict: Admission, hello: Hello, holder: Member | None) -> Rejected | None:
    """What the newcomer is told when it may not come in as things are."""
    if verdict is Admission.ID_IN_USE:
        assert holder is not None
        return id_in_use(hello, holder)
    if verdict is Admission.TAKE_SLOT:
        assert holder is not None
        same = hello.group_world_size == holder.group_world_size
        return None if same else other_size(hello, holder)
    return None


def id_in_use(hello: Hello, holder: Member) -> Rejected:
    """Another process holds the name; of its ranks, the one that the newcomer says it is."""
    slot = holder.slots.get(hello.group_rank) or next(iter(holder.slots.values()))
    which = f"rank {slot.group_rank} of " if holder.group_world_size > 1 else ""
    text = f"{which}replica_id {holder.replica_id!r} is in use by a living process"
    return Rejected(Rejection.ID_IN_USE, text, slot.process.host, slot.process.pid)


def other_size(hello: Hello, holder: Member) -> Rejected:
    """The ranks of a group must agree on how many they are."""
    return _rejected(
        Rejection.UNSUPPORTED,
        f"group_world_size {hello.group_world_size}, but other ranks of replica_id {holder.replica_id!r} say "
        f"{holder.group_world_size}; give all the same WORLD_SIZE",
    )


def unsupported(hello: Hello) -> Rejected | None:
    """What a Hello may not ask for, whoever says it."""
    if "\0" in hello.job_id:
        return _rejected(Rejection.UNSUPPORTED, "job_id holds a NUL character")
    if not hello.group_rank < hello.group_world_size <= RANKS_MAX:
        return _rejected(
            Rejection.UNSUPPORTED,
            f"group_rank {hello.group_rank} of group_world_size {hello.group_world_size}: a group has 1 to "
            f"{RANKS_MAX} ranks, counted from 0",
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
