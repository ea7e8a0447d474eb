"""Which failure ends which collective: the fence between one quorum and the next. Pure.

A notice and the quorum it concerns reach a trainer on two connections, in either order. So both are
remembered: ``failed`` (the greatest failed incarnation of each replica) and ``current`` (the quorum in use;
None from the start of a round until its quorum is installed). A notice that names a member of ``current``
ends that quorum; a quorum that names a failed member is not installed. Nothing else is touched, whatever
comes late.
"""

from __future__ import annotations

from typing import NamedTuple

from procguard.messages import Incarnation, Notice, Quorum, QuorumId

DEPARTURE_GRACE_S = 0.3
"""How long collectives may take to finish after a peer has left in good order."""
FAILED_MAX = 10_000


class Outcome(NamedTuple):
    """What a notice means here."""

    news: bool
    """Heard for the first time."""
    abort: QuorumId | None = None
    after_s: float = 0.0


class Fence:
    """One replica's view of who is over. Not thread-safe: the Manager holds its lock."""

    def __init__(self) -> None:
        self.current: Quorum | None = None
        self._failed: dict[str, Incarnation] = {}

    def hear(self, notice: Notice, own_step: int) -> Outcome:
        """Take in a notice.

        Args:
            own_step: steps this replica has committed. One that left with more has finished the step
                in progress here, so its going ends nothing.
        """
        if self._is_over(notice.replica_id, notice.incarnation):
            return Outcome(news=False)
        self._failed.pop(notice.replica_id, None)
        self._failed[notice.replica_id] = notice.incarnation
        if len(self._failed) > FAILED_MAX:
            del self._failed[next(iter(self._failed))]
        if self.current is None or not self._names(self.current, notice):
            return Outcome(news=True)
        if notice.left and notice.step > own_step:
            return Outcome(news=True)
        after_s = DEPARTURE_GRACE_S if notice.left else 0.0
        return Outcome(True, self.current.quorum_id, after_s)

    def begin_round(self) -> None:
        """The step that used the current quorum is over."""
        self.current = None

    def install(self, quorum: Quorum) -> bool:
        """Make it the current quorum; False when one of its members is known to be over."""
        if any(self._is_over(p.replica_id, p.incarnation) for p in quorum.participants):
            return False
        self.current = quorum
        return True

    def _is_over(self, replica_id: str, incarnation: Incarnation) -> bool:
        failed = self._failed.get(replica_id)
        return failed is not None and incarnation <= failed

    @staticmethod
    def _names(quorum: Quorum, notice: Notice) -> bool:
        return any(
            p.replica_id == notice.replica_id and p.incarnation <= notice.incarnation
            for p in quorum.participants
        )
