"""One job: a namespace with its own members, quorum and notices. Jobs on one lighthouse never meet."""

from __future__ import annotations

from procguard.lighthouse.members import Member
from procguard.lighthouse.notices import NoticeLog
from procguard.lighthouse.quorum import Conditions, Standing, Waiting
from procguard.messages import Incarnation, MemberState, QuorumClaim

_ALIVE = MemberState.ALIVE


class Job:
    """Mutable, owned by the core."""

    def __init__(self, job_id: str, min_replicas: int) -> None:
        self.job_id = job_id
        self.min_replicas = min_replicas
        self.members: dict[str, Member] = {}
        self.notices = NoticeLog()
        self.previous: QuorumClaim | None = None
        self.claimed = False
        """``previous`` is known from its members' claims, not formed by this lighthouse."""
        self.called_off = False
        """Members of the claimed quorum that did not ask have been told that it is over."""
        self.formed_at = 0.0
        """When ``previous`` was formed or, if claimed, learned."""
        self.waiting: Waiting | None = None
        self.asks_short = 0
        """So many more must ask before asking alone can change the last decision: an ask brings it one nearer
        at most. A thousand requests that come one by one cost three decisions, not a thousand."""
        self.join_over = False
        """``join_timeout`` has just passed: for the next decision only."""

    def live(self) -> list[Member]:
        """Alive and suspect members by replica id."""
        return sorted((m for m in self.members.values() if m.live), key=lambda m: m.replica_id)

    def standings(self, live: list[Member], now: float, join_timeout_s: float) -> list[Standing]:
        """What the quorum decision needs to know of them."""
        return [
            Standing(
                m.replica_id,
                m.incarnation,
                m.state is not _ALIVE,
                m.request,
                m.asked and not m.overdue(now, join_timeout_s),
            )
            for m in live
        ]

    def conditions(self, settling: bool) -> Conditions:
        return Conditions(self.min_replicas, settling, self.claimed, self.join_over)

    def is_over(self, replica_id: str, incarnation: Incarnation) -> bool:
        """Whether that life is known to have ended."""
        fallen = self.notices.fallen(replica_id)
        return fallen is not None and incarnation <= fallen.incarnation
