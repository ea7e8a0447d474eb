"""Applying the fence: the one place where a collective is aborted, whoever asks for it.

Called on the failure thread (notices), the quorum thread (a new round), the process group's thread (an error
of its own) and the train loop's; one lock orders them. ``abort`` itself names the quorum, so the process
group cannot be hit by a blow meant for an earlier one.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from procguard.client.checkpoint import CheckpointTransport
from procguard.client.fence import Fence, Outcome
from procguard.client.process_group import ProcessGroup
from procguard.messages import Cause, Incarnation, Notice, Quorum, QuorumId

_log = logging.getLogger(__name__)

FAILURES_KEPT_MAX = 1_000


class FencedAbort:
    """Ends what a failure ends, and tells those who want to know.

    Args:
        replica_id: our own.
        own_step: steps committed by this replica.
        call_later: has the failure thread call something after a delay in seconds.
    """

    def __init__(
        self,
        replica_id: str,
        pg: ProcessGroup,
        transport: CheckpointTransport,
        own_step: Callable[[], int],
        call_later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._replica_id = replica_id
        self._pg = pg
        self._transport = transport
        self._own_step = own_step
        self._call_later = call_later
        self._lock = threading.Lock()
        self._fence = Fence()
        self._callbacks: list[Callable[[Notice], None]] = []
        self._failures: deque[Notice] = deque(maxlen=FAILURES_KEPT_MAX)

    def on_failure(self, callback: Callable[[Notice], None]) -> None:
        """Call back, on the failure thread, once for each failure or departure."""
        self._callbacks.append(callback)

    def failures(self) -> list[Notice]:
        """What was heard so far, oldest first."""
        with self._lock:
            return list(self._failures)

    def begin_round(self) -> None:
        """The quorum in use is done with: nothing aborts it any more."""
        with self._lock:
            self._fence.begin_round()

    def install(self, quorum: Quorum) -> bool:
        """Make a quorum the one in use; False when a member of it is known to be over."""
        with self._lock:
            return self._fence.install(quorum)

    def end(self, quorum_id: QuorumId, why: str) -> None:
        """Abort that quorum's collectives and transfers, if it is still the one in use."""
        with self._lock:
            current = self._fence.current
            if current is None or current.quorum_id != quorum_id:
                return
            self._transport.abort()
        # Outside the lock: it names its quorum, so it cannot hit another, and what it ends calls back here.
        try:
            self._pg.abort(quorum_id.packed)
        except Exception:  # noqa: BLE001  # the backend's own trouble; the failure thread must live to tell the next
            _log.exception("The process group could not abort quorum %s", quorum_id)
        _log.info("Quorum %s aborted: %s", quorum_id, why)

    # --- what the failure thread hears --------------------------------------------------------------

    def hear(self, epoch: int, notices: tuple[Notice, ...]) -> None:
        """Peers are over. Tell first: what the abort sets free would compete with the telling."""
        for notice in notices:
            verb = "Peer departure" if notice.left else "Peer failure"
            why = f"replica {notice.replica_id}, {notice.cause}"
            outcome = self._judge(notice, epoch)
            if outcome.news:
                self._tell(notice)
            self._carry_out(outcome, why)
            if outcome.news:
                _log.warning("%s received: %s (incarnation %s)", verb, why, notice.incarnation)

    def over(self, epoch: int, incarnation: Incarnation, cause: Cause) -> None:
        """Our own incarnation is over: whoever goes on, goes on without it."""
        why = f"our incarnation {incarnation} is over: {cause}"
        outcome = self._judge(Notice(self._replica_id, incarnation, cause, self._own_step()), epoch)
        self._carry_out(outcome, why)
        if outcome.news:
            _log.warning("This replica was given up: %s", cause)

    def left_out(self, quorum_id: QuorumId) -> None:
        """The others did not wait for us any longer."""
        _log.warning("The others did not wait for this replica, which was not asking for a quorum")
        with self._lock:
            current = self._fence.current
        if current is not None and current.quorum_id < quorum_id:
            self.end(current.quorum_id, "the others did not wait for us")

    def _judge(self, notice: Notice, epoch: int) -> Outcome:
        with self._lock:
            return self._fence.hear(notice, epoch, self._own_step())

    def _carry_out(self, outcome: Outcome, why: str) -> None:
        if outcome.abort is not None and outcome.after_s:
            self._call_later(outcome.after_s, partial(self.end, outcome.abort, why))
        elif outcome.abort is not None:
            self.end(outcome.abort, why)

    def _tell(self, notice: Notice) -> None:
        with self._lock:
            self._failures.append(notice)
        for callback in tuple(self._callbacks):
            try:
                callback(notice)
            except BaseException:  # noqa: BLE001  # the user's code, sys.exit() too; the next notice must be told
                _log.exception("An on_failure callback raised; to end the process, signal its main thread")
