"""What one replica does in a quorum: derived from the quorum and a name, alike on every replica. Pure.

Up to date is the greatest ``(step, committed_in)``, not the greatest step: a replica that committed a step
which its peers aborted holds other weights than they would have after repeating it, so either all follow it
or it follows them, and nobody trains on beside another state.

Those who heal are spread over the sources. One whose steps keep failing moves on to the next source, because
the way to the last one may be what is broken.
"""

from __future__ import annotations

from typing import NamedTuple

from procguard.messages import Participant, Quorum


class RecoveryPlan(NamedTuple):
    """One replica's part in a quorum. Ranks are replica ranks: indices into the participants."""

    replica_rank: int
    replica_world_size: int
    step: int
    """The step that all are at once those who heal have healed."""
    up_to_date: tuple[int, ...]
    source: int | None
    """From whom to heal; None: nothing to heal."""
    healers: tuple[int, ...]
    """Who heals from this replica."""
    contributors: tuple[int, ...]
    """Those whose state is right before healing is over: their gradients count while others heal."""
    initial: bool
    """Nobody has committed a step yet, and all start from one replica's state."""

    @property
    def heals(self) -> bool:
        return self.source is not None


def recovery_plan(quorum: Quorum, replica_id: str, group_rank: int, init_sync: bool) -> RecoveryPlan:
    """The plan of ``replica_id``.

    Args:
        group_rank: spreads the ranks of one group over different sources.
        init_sync: before the first commit, all take over the state of one replica.

    Raises:
        KeyError: ``replica_id`` is not in the quorum.
    """
    participants = quorum.participants
    ranks = {participant.replica_id: rank for rank, participant in enumerate(participants)}
    newest = max(_state_of(participant) for participant in participants)
    up_to_date = tuple([rank for rank, p in enumerate(participants) if _state_of(p) == newest])
    initial = newest[0] == 0 and init_sync
    contributors = (up_to_date[group_rank % len(up_to_date)],) if initial else up_to_date
    behind = [rank for rank in range(len(participants)) if rank not in contributors]
    source_of = {
        rank: contributors[(nth + group_rank + participants[rank].commit_failures) % len(contributors)]
        for nth, rank in enumerate(behind)
    }
    me = ranks[replica_id]
    return RecoveryPlan(
        replica_rank=me,
        replica_world_size=len(participants),
        step=newest[0],
        up_to_date=up_to_date,
        source=source_of.get(me),
        healers=tuple([rank for rank, source in source_of.items() if source == me]),
        contributors=contributors,
        initial=initial,
    )


def _state_of(participant: Participant) -> tuple[int, int]:
    return participant.step, participant.committed_in
