"""What a job's listeners have been told, so that one that missed something can be told again.

PUB is allowed to lose. Each batch therefore has a sequence number, and this log gives again all that came
after one; beyond its bound it gives the last failure of every replica id instead, which is all that matters:
a listener applies each ``(replica_id, incarnation)`` once, whatever it hears twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from procguard.messages import Notice, NoticeBatch

BATCHES_MAX = 256
FALLEN_MAX = 10_000


class NoticeLog:
    """One job's notices within one lighthouse's life."""

    def __init__(self) -> None:
        self.seq = 0
        self._pending: list[Notice] = []
        self._recent: deque[tuple[float, NoticeBatch]] = deque(maxlen=BATCHES_MAX)
        self._fallen: dict[str, Notice] = {}

    def add(self, notice: Notice) -> None:
        """Put a notice into the next batch."""
        self._pending.append(notice)
        self._fallen.pop(notice.replica_id, None)
        self._fallen[notice.replica_id] = notice
        if len(self._fallen) > FALLEN_MAX:
            del self._fallen[next(iter(self._fallen))]

    def flush(self, epoch: int, now: float) -> NoticeBatch | None:
        """The batch to publish now, if anything happened since the last one."""
        if not self._pending:
            return None
        self.seq += 1
        batch = NoticeBatch(epoch, self.seq, tuple(self._pending))
        self._pending.clear()
        self._recent.append((now, batch))
        return batch

    def since(self, seq: int, epoch: int, same_epoch: bool) -> NoticeBatch:
        """All published after batch ``seq`` as one batch that brings the reader up to date."""
        kept_from = self.seq - len(self._recent)
        if same_epoch and kept_from <= seq <= self.seq:
            missed = [batch for _, batch in self._recent if batch.seq > seq]
            notices: Sequence[Notice] = [notice for batch in missed for notice in batch.notices]
        else:
            notices = list(self._fallen.values())
        return NoticeBatch(epoch, self.seq, tuple(notices))

    def fallen(self, replica_id: str) -> Notice | None:
        """Of the greatest incarnation of ``replica_id`` known to be over."""
        return self._fallen.get(replica_id)

    def newest(self, count_max: int) -> list[tuple[float, Notice]]:
        """The last notices with the time each was published, newest first."""
        newest: list[tuple[float, Notice]] = []
        for when, batch in reversed(self._recent):
            newest += [(when, notice) for notice in reversed(batch.notices)]
            if len(newest) >= count_max:
                break
        return newest[:count_max]
