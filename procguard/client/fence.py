"""Which failure ends which collective: the fence between one quorum and the next. Pure.

A notice and the quorum it concerns reach a trainer on two connections, in either order. So both are
remembered: for each replica the end of its last life, and ``current`` (the quorum in use; None from the start
of a round until its quorum is installed). A notice that names a member of ``current`` ends that quorum; a
quorum that names a member known to be over is not installed. Nothing else is touched, whatever comes late.

A life can come back: a lighthouse that was restarted knows nothing of the notices of the one before, and
takes a member that claims its incarnation at its word. So a notice binds the quorums up to its own epoch and
none of a later one; else this replica would refuse for ever what the others accept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from procguard.messages import Incarnation, Notice, Quorum, QuorumId

DEPARTURE_GRACE_S = 0.3
"""How long collectives may take to finish after a peer has left in good order."""
LIVES_MAX = 10_000


class End(NamedTuple):
    """The end of a replica's last known life, and the epoch of the lighthouse that said so."""

    epoch: int
    incarnation: Incarnation


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
        self._ends: dict[str, End] = {}
        self._told: dict[tuple[str, Incarnation], None] = {}
        """Each life once: a notice is heard again after every resync."""

    def hear(self, notice: Notice, epoch: int, own_step: int) -> Outcome:
        """Take in a notice.

        Args:
            epoch: of the lighthouse that gave it.
            own_step: steps this replica has committed. One that left with more has finished the step
                in progress here, so its going ends nothing.
        """
        news = (notice.replica_id, notice.incarnation) not in self._told
        _put_last(self._told, (notice.replica_id, notice.incarnation), None)
        end = End(epoch, notice.incarnation)
        _put_last(self._ends, notice.replica_id, max(end, self._ends.get(notice.replica_id, end)))
        if self.current is None or not _ends_quorum(notice, epoch, self.current):
            return Outcome(news)
        if notice.left and notice.step > own_step:
            return Outcome(news)
        return Outcome(news, self.current.quorum_id, DEPARTURE_GRACE_S if notice.left else 0.0)

    def begin_round(self) -> None:
        """The step that used the current quorum is over."""
        self.current = None

    def install(self, quorum: Quorum) -> bool:
        """Make it the current quorum; False when one of its members is known to be over."""
        for member in quorum.participants:
            end = self._ends.get(member.replica_id)
            if end and end.incarnation >= member.incarnation and end.epoch >= quorum.quorum_id.epoch:
                return False
        self.current = quorum
        return True


def _ends_quorum(notice: Notice, epoch: int, quorum: Quorum) -> bool:
    """Whether it names this or a later life of a member, and is not from before the quorum."""
    return epoch >= quorum.quorum_id.epoch and any(
        p.replica_id == notice.replica_id and p.incarnation <= notice.incarnation for p in quorum.participants
    )


def _put_last(table: dict[Any, Any], key: Any, value: Any) -> None:
    """Set the newest entry of a table; let its oldest go when there is one too many."""
    table.pop(key, None)
    table[key] = value
    if len(table) > LIVES_MAX:
        del table[next(iter(table))]
