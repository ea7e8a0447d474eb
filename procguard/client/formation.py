"""From the question to a configured process group: one round, on the quorum thread.

Ask, check the answer against the fence, configure the process group, then heal or let others heal. A quorum
that is broken before it is in use (a member known to be over, an abort during configure) is asked for again
at once: nothing has been computed in it, so no step is lost. The ranks of a larger group do not ask again
one by one: they vote the step down together, so that all keep to the same rounds.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from procguard.client.abort import FencedAbort
from procguard.client.checkpoint import CheckpointTransport
from procguard.client.membership import Membership
from procguard.client.phases import Phases
from procguard.client.process_group import ProcessGroup, Work
from procguard.client.recovery_plan import RecoveryPlan, recovery_plan
from procguard.client.train_state import TrainState
from procguard.errors import (
    CheckpointError,
    CollectiveAborted,
    CollectiveError,
    ProcGuardError,
    QuorumTimeout,
    UnsupportedState,
    UsageError,
)
from procguard.messages import Participant, Phase, Quorum, Rank

_log = logging.getLogger(__name__)

STALL_SHARE = 0.5
"""Of the timeout: so long one side of a transfer may be silent. Peers wait for who heals in a collective that
lasts one timeout, so the rest of it is theirs, to finish the step without the newcomer."""


@dataclass
class Round:
    """All that belongs to one step's quorum, from ``start_quorum`` to ``should_commit``."""

    allow_heal: bool
    shrink_only: bool
    timeout: timedelta
    formed: Future[None] = field(default_factory=Future)
    number: int = 0
    """Of the quorum request: the same on all ranks of a group."""
    quorum: Quorum | None = None
    plan: RecoveryPlan | None = None
    state: Any = None
    """Fetched and verified, not yet loaded."""
    behind: bool = False
    """This replica's state is not the others' yet."""
    pending: list[Work] = field(default_factory=list)
    error: Exception | None = None
    """What went wrong first in this step; it does not commit."""
    concluded: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fail(self, error: Exception) -> bool:
        """Note what went wrong; False when that changes nothing any more. From any thread."""
        with self._lock:
            if self.concluded or self.error is not None:
                return False
            self.error = error
            return True

    def conclude(self) -> Exception | None:
        """Close it: nothing can fail it from now on. Returns what did."""
        with self._lock:
            self.concluded = True
            return self.error


class Formation:
    """Forms quorums for one replica.

    Args:
        host: the address peers reach this machine at.
        state: how far this replica is, and what others heal from.
    """

    def __init__(
        self,
        membership: Membership,
        pg: ProcessGroup,
        transport: CheckpointTransport,
        abort: FencedAbort,
        phases: Phases,
        *,
        host: str,
        init_sync: bool,
        timeout: timedelta,
        quorum_retries: int,
        state: TrainState,
    ) -> None:
        self._membership = membership
        self._pg = pg
        self._transport = transport
        self._abort = abort
        self._phases = phases
        self._host = host
        self._init_sync = init_sync
        self._timeout = timeout
        self._quorum_retries = quorum_retries
        self._state = state
        self._rounds = 0
        self._configured = 0
        self._rank = membership.group_rank
        self._is_grouped = membership.group_world_size > 1

    def run(self, this: Round) -> None:
        """Form the quorum of this round. Raises what only the caller can mend, such as QuorumTimeout."""
        broken = 0
        while True:
            quorum = self._ask(this, broken)
            if self._abort.install(quorum) and self._configure(this, quorum):
                break
            self._abort.begin_round()
            if self._is_grouped:
                self._void(this, quorum)
                return
            broken += 1
        if this.error is not None:  # reported before there was a quorum to end, or by configure
            self._abort.end(quorum.quorum_id, str(this.error))
        elif this.allow_heal:
            self._exchange_state(this)

    def _exchange_state(self, this: Round) -> None:
        """Let others heal, or heal. Raises what the user's state is at fault for."""
        assert this.quorum is not None
        try:
            self._let_heal(this)
            self._heal(this)
        except Exception as error:
            # The train loop hears of it; the others would wait for a state, and for collectives, in vain.
            self._abort.end(this.quorum.quorum_id, f"its state cannot be shared: {error}")
            raise

    def _ask(self, this: Round, broken: int) -> Quorum:
        timeout_s = this.timeout.total_seconds()
        self._rounds += 1
        this.number = self._rounds
        for attempt in range(self._quorum_retries + 1):
            try:
                return self._membership.quorum(self._participant(this, broken), timeout_s)
            except QuorumTimeout as error:
                if attempt == self._quorum_retries:
                    raise
                _log.warning("%s; asking again", error)
        raise AssertionError("quorum_retries is not negative")

    def _participant(self, this: Round, broken: int) -> Participant:
        progress = self._state.progress
        return Participant(
            replica_id=self._membership.replica_id,
            incarnation=self._membership.incarnation,
            round=this.number,
            step=progress.step,
            committed_in=progress.committed_in,
            world_size=self._membership.group_world_size,
            address=self._host,
            shrink_only=this.shrink_only,
            commit_failures=progress.commit_failures + broken,
            data=b"",
            ranks=(Rank(self._pg.handle(), self._transport.metadata()),),
        )

    def _configure(self, this: Round, quorum: Quorum) -> bool:
        """Connect to the others; False when the quorum was aborted meanwhile."""
        plan = self._plan(this, quorum)
        quorum_id = quorum.quorum_id.packed
        if quorum_id != self._configured:
            handles = [participant.ranks[self._rank].handle for participant in quorum.participants]
            try:
                self._pg.configure(handles, plan.replica_rank, quorum_id, self._timeout)
            except CollectiveAborted as error:
                _log.info("%s; asking for a quorum again", error)
                return False
            except CollectiveError as error:
                this.fail(error)
            else:
                self._configured = quorum_id
        this.plan, this.behind = plan, plan.heals
        this.quorum = quorum  # before ``error`` is read: who reports one reads this after writing that
        return True

    def _plan(self, this: Round, quorum: Quorum) -> RecoveryPlan:
        """Our part in it, as the rank of our group that we are."""
        me, size = self._membership.replica_id, self._membership.group_world_size
        for participant in quorum.participants:
            if len(participant.ranks) != size:
                raise UsageError(
                    f"replica {participant.replica_id} has {len(participant.ranks)} ranks, replica {me} has "
                    f"{size}: give all replica groups the same WORLD_SIZE"
                )
        init_sync = self._init_sync and this.allow_heal  # else each would wait for a state that nobody serves
        plan = recovery_plan(quorum, me, self._rank, init_sync)
        ours = quorum.participants[plan.replica_rank]
        progress = self._state.progress
        apart = (ours.step, ours.committed_in) != (progress.step, progress.committed_in)
        if self._is_grouped and apart and not plan.heals:
            raise ProcGuardError(
                f"rank {self._rank} of replica {me} is at step {progress.step}, another rank of it at step "
                f"{ours.step}, and no other replica has a newer state to heal from: start all ranks from one "
                "checkpoint"
            )
        return plan

    def _void(self, this: Round, quorum: Quorum) -> None:
        """Take part in a broken quorum to no effect: the ranks of a group go through the same rounds."""
        plan = self._plan(this, quorum)
        this.fail(CollectiveAborted("the quorum was broken before its use", quorum.quorum_id.packed))
        this.plan, this.behind = plan, plan.heals
        this.quorum = quorum

    def _let_heal(self, this: Round) -> None:
        plan = this.plan
        assert plan is not None
        if not plan.healers:
            return
        stall = self._timeout * STALL_SHARE
        try:
            state = self._state.save(stall.total_seconds())
            self._transport.send_checkpoint(list(plan.healers), plan.step, state, stall)
        except UnsupportedState:
            raise
        except CheckpointError as error:  # the quorum was aborted, or the train loop holds its state
            _log.warning("No state was served: %s", error)

    def _heal(self, this: Round) -> None:
        plan, quorum = this.plan, this.quorum
        assert plan is not None and quorum is not None
        if plan.source is None:
            return
        source = quorum.participants[plan.source]
        where = source.ranks[self._rank].checkpoint_metadata
        try:
            with self._phases.during(Phase.HEAL):
                this.state = self._transport.recv_checkpoint(
                    plan.source, where, plan.step, self._timeout * STALL_SHARE
                )
        except CheckpointError as error:
            _log.warning("Healing from %s failed, the next step tries again: %s", source.replica_id, error)
        else:
            _log.info("Fetched the state of step %d from %s", plan.step, source.replica_id)
