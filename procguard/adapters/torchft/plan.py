"""One rank's part in a quorum, by torchft's rules. Pure.

They are not quite those of ``client.recovery_plan``: before the first commit torchft counts every replica as
up to date although all but one take over a state, and a train script's learning rate is tuned to that. Up to
date is the greatest ``(step, committed_in)`` here too, because two replicas at one step need not have the
same weights.
"""

from __future__ import annotations

from procguard.adapters.torchft.results import QuorumResult, store_of
from procguard.errors import ProtocolError
from procguard.messages import Participant, Quorum


def result_of(quorum: Quorum, replica_id: str, group_rank: int, init_sync: bool) -> QuorumResult:
    """The part of this rank of ``replica_id``.

    Args:
        init_sync: before the first commit all take over one replica's state.

    Raises:
        ProtocolError: a member has no such rank, so no collective could be formed with it.
    """
    members = quorum.participants
    newest = max(state_of(member) for member in members)
    up_to_date = [rank for rank, member in enumerate(members) if state_of(member) == newest]
    primary = up_to_date[group_rank % len(up_to_date)]
    sources = [primary] if init_sync and newest[0] == 0 else up_to_date
    behind = [rank for rank in range(len(members)) if rank not in sources]
    source_of = {rank: sources[(nth + group_rank) % len(sources)] for nth, rank in enumerate(behind)}
    me = next(rank for rank, member in enumerate(members) if member.replica_id == replica_id)
    source = source_of.get(me)
    return QuorumResult(
        quorum_id=quorum.quorum_id.packed,
        replica_rank=me,
        replica_world_size=len(members),
        recover_src_manager_address=members[source].address if source is not None else "",
        recover_src_replica_rank=source,
        recover_dst_replica_ranks=[rank for rank, from_whom in source_of.items() if from_whom == me],
        store_address=store_of(members[primary]),
        max_step=newest[0],
        max_replica_rank=up_to_date.index(me) if me in up_to_date else None,
        max_world_size=len(up_to_date),
        heal=source is not None,
        commit_failures=max(member.commit_failures for member in members),
        replica_ids=[member.replica_id for member in members],
        reconfigure_handles=[_handle(member, group_rank) for member in members],
    )


def state_of(member: Participant) -> tuple[int, int]:
    """What tells two weights apart, and which are the newer."""
    return member.step, member.committed_in


def _handle(member: Participant, group_rank: int) -> str:
    if group_rank >= len(member.ranks):
        raise ProtocolError(
            f"replica {member.replica_id} has {len(member.ranks)} ranks, and this is rank {group_rank} of "
            "its own: give all replica groups of a job the same world size"
        )
    return member.ranks[group_rank].handle
