"""Who trains together: decided from who is alive and who is asking. Pure, and free of time.

Members are compared by ``(replica_id, incarnation)``: a process that died and came back is another one. A
suspect (its connection is lost, the grace runs) still counts as alive, so that nobody forms a quorum behind
its back, but it is no candidate either. It is so for at most ``disconnect_grace``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from procguard.messages import Incarnation, Name, Participant, QuorumClaim, QuorumWaiting, Reason

MISSING_NAMED_MAX = 8


class Standing(NamedTuple):
    """What the decision needs to know of one live member."""

    replica_id: str
    incarnation: Incarnation
    suspect: bool
    request: Participant | None
    counted: bool
    """Has ever asked and is not past its progress bound: part of the whole that a majority is of."""


class Conditions(NamedTuple):
    min_replicas: int
    settling: bool
    """A lighthouse just restarted: members of a quorum it has forgotten may still come back."""
    claimed: bool
    """The previous quorum is known from its members' claims, not formed by this lighthouse."""
    join_over: bool
    """The rules on numbers have held unbroken for ``join_timeout``."""


class Formed(NamedTuple):
    participants: tuple[Participant, ...]
    excluded: tuple[str, ...]
    """Live members of the previous quorum that were not asking."""


class Waiting(NamedTuple):
    reason: Reason
    have: int
    need: int
    missing: tuple[Name, ...] = ()

    @property
    def numbers_hold(self) -> bool:
        """Enough are there; only stragglers are being waited for."""
        return self.reason in (Reason.PREVIOUS_MEMBERS_MISSING, Reason.MEMBERS_MISSING)

    def message(self) -> QuorumWaiting:
        return QuorumWaiting(*self)


def decide(
    live: Sequence[Standing], previous: QuorumClaim | None, conditions: Conditions
) -> Formed | Waiting:
    """The quorum that forms now, or what it waits for.

    Args:
        live: all alive or suspect members, sorted by ``replica_id``.
        previous: the last quorum of this job.
    """
    was_in = frozenset(previous.members) if previous else frozenset()
    incumbents = [m for m in live if (m.replica_id, m.incarnation) in was_in]
    candidates = [m for m in live if m.request and not m.suspect]
    if incumbents and any(m.request.shrink_only for m in candidates if m.request):
        live = incumbents  # the others have no part in this decision, nor in the whole that is counted
        candidates = [m for m in candidates if (m.replica_id, m.incarnation) in was_in]

    short = _numbers(live, candidates, conditions.min_replicas)
    if short:
        return short
    away = _not_among(incumbents, candidates)
    if incumbents and not away:
        return _formed(candidates, ())
    if not incumbents and conditions.settling:
        return Waiting(Reason.SETTLING, 0, 1)
    missing = _not_among(live, candidates)
    if conditions.join_over:
        return _formed(candidates, away)
    if away:
        return _short_of(Reason.PREVIOUS_MEMBERS_MISSING, len(incumbents), away)
    if conditions.claimed:  # and nobody of it is back, or one would be away
        return Waiting(Reason.PREVIOUS_MEMBERS_MISSING, 0, 1)
    if missing:
        return _short_of(Reason.MEMBERS_MISSING, len(live), missing)
    return _formed(candidates, ())


def _numbers(live: Sequence[Standing], candidates: Sequence[Standing], min_replicas: int) -> Waiting | None:
    """The rules on how many: at least ``min_replicas``, and more than half of those who count."""
    have = len(candidates)
    if not have:
        return Waiting(Reason.NOBODY_ASKED, 0, min_replicas)
    if have < min_replicas:
        return Waiting(Reason.TOO_FEW_REPLICAS, have, min_replicas, _named(live, candidates))
    counted = sum(m.counted for m in live)
    mine = sum(m.counted for m in candidates)
    if 2 * mine <= counted:
        return Waiting(Reason.NO_MAJORITY, mine, counted // 2 + 1, _named(live, candidates))
    return None


def _short_of(reason: Reason, need: int, missing: tuple[str, ...]) -> Waiting:
    return Waiting(reason, need - len(missing), need, missing[:MISSING_NAMED_MAX])


def _not_among(members: Sequence[Standing], candidates: Sequence[Standing]) -> tuple[str, ...]:
    asking = {m.replica_id for m in candidates}
    return tuple([m.replica_id for m in members if m.replica_id not in asking])


def _named(members: Sequence[Standing], candidates: Sequence[Standing]) -> tuple[str, ...]:
    return _not_among(members, candidates)[:MISSING_NAMED_MAX]


def _formed(candidates: Sequence[Standing], excluded: tuple[str, ...]) -> Formed:
    return Formed(tuple([m.request for m in candidates if m.request]), excluded)
