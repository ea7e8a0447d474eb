"""One replica's steps: the rules by which a step counts, whatever the parts are made of.

What it decides rests on three pure rooms: ``requests`` (talk with the lighthouse), ``fence`` (what a failure
ends) and ``recovery_plan`` (who heals from whom). Here they meet threads: the train loop, the quorum thread
(``start_quorum`` hands it the round), the failure thread (``Companion``), which may abort the collective at
any time, and the process group's own. What they share is a ``Round``: any of them may fail it, only the train
loop concludes it.

``Manager`` puts the parts together; nothing here knows how the lighthouse is reached.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

from procguard.client import process_hooks
from procguard.client.abort import FencedAbort
from procguard.client.checkpoint import CheckpointTransport
from procguard.client.companion import Hears
from procguard.client.formation import Formation, Round
from procguard.client.membership import Membership
from procguard.client.phases import Phases
from procguard.client.process_group import ProcessGroup, Work
from procguard.client.recovery_plan import RecoveryPlan
from procguard.client.timeouts import positive_or
from procguard.client.train_state import DEFAULT_PART, TrainState
from procguard.client.work import (
    CompletedWork,
    ManagedWork,
    ShowFuture,
    WrappedFuture,
    as_it_is,
    changeable,
    op_name,
    scaled,
    zeroed,
)
from procguard.client.worker import RunsJobs, Worker
from procguard.errors import (
    CheckpointError,
    CollectiveAborted,
    CollectiveError,
    ProcGuardError,
    UsageError,
)
from procguard.messages import Notice, Phase

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
LOADS_MAX = 3
"""So often in a row the user's ``load_state_dict`` may fail before it is called a mistake, not bad luck."""


class WorldSizeMode(Enum):
    """What a change in the number of replicas does to the batch, as in torchft."""

    DYNAMIC = 0
    """The batch grows and shrinks with the quorum."""
    FIXED_WITH_SPARES = 1
    """``min_replica_size`` replicas contribute; further ones are spares and contribute zeros."""


class Rules(NamedTuple):
    """What the user asked for, as the Manager's arguments say it."""

    min_replica_size: int
    use_async_quorum: bool
    world_size_mode: WorldSizeMode
    init_sync: bool
    timeout: timedelta
    quorum_timeout: timedelta
    quorum_retries: int
    max_retries: int | None


class Replica:
    """One replica's fault tolerance.

    Args:
        host: the address peers reach this machine at.
        join: becomes a member, and has the given one told of failures.
        start_worker: starts the quorum thread, given its name.
    """

    def __init__(
        self,
        rules: Rules,
        replica_id: str,
        host: str,
        pg: ProcessGroup,
        transport: CheckpointTransport,
        load_state_dict: Callable[[Any], None] | None,
        state_dict: Callable[[], Any] | None,
        join: Callable[[Hears], Membership],
        start_worker: Callable[[str], RunsJobs] = Worker,
    ) -> None:
        self._rules = rules
        self._replica_id = replica_id
        self._pid = os.getpid()
        self._pg = pg
        self._show_future: ShowFuture = getattr(pg, "foreign_future", as_it_is)
        self._transport = transport
        self._state = TrainState()
        self.set_state_dict_fns(load_state_dict, state_dict)
        self._failed_loads = 0
        self._round: Round | None = None
        self._closed = False
        pg.advertise(host)
        transport.advertise(host)
        self._abort = FencedAbort(replica_id, pg, transport, self.current_step, self._call_later)
        self._membership = join(self._abort)
        self._phases = Phases(self._show)
        self._formation = Formation(
            self._membership,
            pg,
            transport,
            self._abort,
            self._phases,
            host=host,
            init_sync=rules.init_sync,
            timeout=rules.timeout,
            quorum_retries=rules.quorum_retries,
            state=self._state,
        )
        self._quorum_thread = start_worker("procguard-quorum")
        process_hooks.watch_over(self._membership)

    # --- the step -----------------------------------------------------------------------------------

    def start_quorum(
        self, allow_heal: bool = True, shrink_only: bool = False, timeout: timedelta | None = None
    ) -> None:
        """Begin a step: ask for a quorum of those who are alive.

        With ``use_async_quorum`` it returns at once, and the first collective waits for the quorum; else it
        returns when the quorum stands and this replica has healed, if it had to. A step that was begun and
        never came to ``should_commit`` does not count; its quorum is waited for first.

        Args:
            allow_heal: fetch the state from others, or let them fetch it, where one is behind.
            shrink_only: let no newcomer in.
            timeout: for this quorum; None: the Manager's ``quorum_timeout``.
        """
        self._check_owner()
        limit = positive_or(self._rules.quorum_timeout, "timeout", timeout)
        if self._round is not None:
            self._settle(self._round)
        self._abort.begin_round()
        this = Round(allow_heal, shrink_only, limit)
        this.formed = self._quorum_thread.submit(partial(self._formation.run, this))
        self._round = this
        self._phases.sign()
        if not self._rules.use_async_quorum:
            self.wait_quorum()
            self._load(this)

    def wait_quorum(self) -> None:
        """Return when this step's quorum stands.

        Raises:
            QuorumTimeout: there was none in time; the message says what it waited for.
            LighthouseRejected: another process took this replica's id.
            UsageError: another thread shut this Manager down meanwhile.
        """
        this = self._last_round("wait_quorum")
        if not this.formed.done():
            with self._phases.during(Phase.QUORUM):
                this.formed.result()
        this.formed.result()

    def allreduce(self, buffers: Any, op: Any = "avg") -> Work:
        """Reduce an array or a tensor, or a sequence of them, in place over all that contribute to this step.

        ``op`` is sum, avg, max or min, or torch's ``ReduceOp`` of that name. ``avg`` divides by the number of
        contributors; a replica that is healing, or a spare, contributes zeros. From any thread. The work it
        returns never raises: after a failure, or the Manager's ``timeout``, the buffers are as they were, and
        ``should_commit`` says False.

        Raises:
            UsageError: these buffers, or this ``op``, cannot be reduced. The step does not commit.
        """
        this = self._this_round("allreduce")
        if this.error is not None:
            return CompletedWork(buffers, self._show_future)
        self.wait_quorum()
        if this.error is not None:
            return CompletedWork(buffers, self._show_future)
        many: Sequence[Any] = buffers if isinstance(buffers, (list, tuple)) else [buffers]
        many, op = [changeable(buffer) for buffer in many], op_name(op)
        try:
            if not self.is_participating():
                zeroed(many)
            work = self._pg.allreduce(many, "sum" if op == "avg" else op)
        except UsageError as error:
            self._fail(this, error)  # or the step would count without what it could not reduce
            raise
        except Exception as error:  # noqa: BLE001  # the backend's own, or of buffers that cannot be set
            self._fail(this, error)
            return CompletedWork(buffers, self._show_future)
        managed = ManagedWork(
            work,
            buffers,
            timeout=self._rules.timeout,
            finish=partial(scaled, many, len(self._contributors()) if op == "avg" else 1),
            on_error=partial(self._fail, this),
            waiting=partial(self._phases.during, Phase.COLLECTIVE),
            show=self._show_future,
        )
        this.pending.append(managed)
        return managed

    def should_commit(self, timeout: timedelta | None = None) -> bool:
        """Whether this step counts: its collectives are complete and enough replicas took part.

        True: apply the optimizer. False: throw the gradients away; the next step asks for a new quorum.
        A healing replica loads the fetched state here. If that fails its state is void: it counts as one
        that has never trained, until it has healed from another source.

        Args:
            timeout: for each collective that is still in flight; None: the Manager's.

        Raises:
            what ``wait_quorum`` raises, CheckpointError when loading has failed again and again, and
            ProcGuardError after more than ``max_retries`` failures in a row.
            ReplicaGroupLost: another rank of this group has ended, or did not vote: end this process too.
        """
        this = self._this_round("should_commit")
        limit = positive_or(self._rules.timeout, "timeout", timeout)
        for work in tuple(this.pending):
            work.wait(timeout)
        self.wait_quorum()
        self._load(this)
        with self._phases.during(Phase.HEAL):
            self._transport.disallow_checkpoint()
        assert this.quorum is not None
        contributors = self._contributors()
        error = this.conclude()
        commits = error is None and not this.behind and self._are_enough(contributors)
        with self._phases.during(Phase.COLLECTIVE):
            commits = self._membership.vote(this.number, commits, limit.total_seconds())
        if commits:
            self._state.commit(this.quorum.quorum_id.packed, len(contributors))
        else:
            self._state.fail()
        self._phases.sign()
        self._check_retries(error)
        return commits

    # --- what one may ask ---------------------------------------------------------------------------

    def current_step(self) -> int:
        """Steps committed so far, healed ones included."""
        return self._state.progress.step

    def batches_committed(self) -> int:
        """Batches that went into the committed steps, over all replicas."""
        return self._state.progress.batches

    def num_participants(self) -> int:
        """Replicas that contribute to this step; 0 before the first one. Waits for the quorum."""
        if self._round is None:
            return 0
        self.wait_quorum()
        return len(self._contributors())

    def participating_rank(self) -> int | None:
        """This replica's rank among those; None when it contributes nothing. Waits for the quorum."""
        if self._round is None:
            return None
        self.wait_quorum()
        this, me = self._last_round("participating_rank"), self._plan().replica_rank
        contributors = self._contributors()
        return None if this.behind or me not in contributors else contributors.index(me)

    def is_participating(self) -> bool:
        """Whether this replica's gradients count in this step. Waits for the quorum."""
        return self.participating_rank() is not None

    def replica_id(self) -> str:
        """The name of this replica."""
        return self._replica_id

    def listening_pids(self) -> list[int]:
        """Pids of this replica's listener processes: one, as a rule; none with proactive recovery off."""
        return self._membership.listening_pids

    def errored(self) -> Exception | None:
        """What went wrong in this step, if anything did."""
        return self._round.error if self._round else None

    def failures(self) -> list[Notice]:
        """Failures and departures of peers heard of so far, oldest first."""
        return self._abort.failures()

    def on_failure(self, callback: Callable[[Notice], None]) -> None:
        """Call ``callback`` for each failure or departure of a peer, on the failure thread, at once.

        What it raises is logged. It must be quick: the abort of the collective waits for it.
        """
        self._abort.on_failure(callback)

    def report_error(self, error: Exception) -> None:
        """Say, from any thread, that this step cannot commit here.

        Peers that wait for this replica in a collective are freed by the abort. A ``CollectiveError`` of an
        earlier quorum changes nothing.
        """
        this = self._round
        if this is None:
            return
        present = this.quorum.quorum_id.packed if this.quorum else None
        if isinstance(error, CollectiveError) and error.quorum_id != present:
            return
        self._fail(this, error)

    def wrap_future(self, future: Any, default: Any, timeout: timedelta | None = None) -> Any:
        """A future that never fails: an error fails the step of this call, and gives ``default``.

        ``should_commit`` waits for it, as for a collective.

        Args:
            future: of ``concurrent.futures`` or, with a process group of torch, of ``torch.futures``; the
                result is of the same kind.
            timeout: longer than this is an error too; None: the Manager's.
        """
        this = self._round
        wrapped = WrappedFuture(
            future,
            default,
            timeout=positive_or(self._rules.timeout, "timeout", timeout),
            on_error=partial(self._fail, this) if this else lambda error: None,
            waiting=partial(self._phases.during, Phase.COLLECTIVE),
        )
        if this is not None:
            this.pending.append(wrapped)
        plain = wrapped.get_future()
        return plain if isinstance(future, Future) else self._show_future(plain, default)

    # --- state --------------------------------------------------------------------------------------

    def register_state_dict_fn(
        self, key: str, load_state_dict: Callable[[Any], None], state_dict: Callable[[], Any]
    ) -> None:
        """Add a part of the state that healing carries over."""
        self._state.register(key, load_state_dict, state_dict)

    def set_state_dict_fns(
        self, load_state_dict: Callable[[Any], None] | None, state_dict: Callable[[], Any] | None
    ) -> None:
        """Set the main part; both None where the parts are registered one by one."""
        if (load_state_dict is None) != (state_dict is None):
            raise UsageError("load_state_dict and state_dict go together: give both or neither")
        if load_state_dict is not None and state_dict is not None:
            self._state.register(DEFAULT_PART, load_state_dict, state_dict)

    def disallow_state_dict_read(self) -> None:
        """Keep the quorum thread from reading the state while the train loop changes it."""
        self._state.disallow_read()

    def allow_state_dict_read(self) -> None:
        """Let it be read again."""
        self._state.allow_read()

    def state_dict(self) -> dict[str, int]:
        """The Manager's own state, to be saved in the user's checkpoints beside the model's."""
        return self._state.save_progress()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from a state of ``state_dict``."""
        self._state.load_progress(state_dict)
        self._phases.sign()

    # --- progress -----------------------------------------------------------------------------------

    def report_progress(self) -> None:
        """A sign of life from inside a long step: restarts ``progress_timeout``."""
        if not self._is_inherited():
            self._phases.sign()

    @contextmanager
    def pause_progress(self, why: str) -> Iterator[None]:
        """Within it ``progress_timeout`` does not run: a checkpoint, an evaluation."""
        if self._is_inherited():
            yield
            return
        _log.debug("Progress paused: %s", why)
        with self._phases.during(Phase.PAUSED):
            yield

    def shutdown(self, wait: bool = True) -> None:
        """Leave the job in good order: the others go on without waiting for this replica.

        Args:
            wait: let transfers that heal others finish first.
        """
        if self._closed or self._is_inherited():
            return
        self._closed = True
        process_hooks.forget(self._membership)
        self._membership.leave(self.current_step())
        self._pg.shutdown()  # frees the quorum thread, should it be configuring
        self._transport.shutdown(wait=wait)
        self._quorum_thread.close(CLOSE_TIMEOUT_S)

    # --- inside -------------------------------------------------------------------------------------

    def _is_inherited(self) -> bool:
        """In a forked child, where locks may be taken for ever and the board is still the parent's."""
        return os.getpid() != self._pid

    def _check_owner(self) -> None:
        if self._is_inherited():
            raise UsageError(
                f"this Manager belongs to process {self._pid}; a forked child, such as a data loader, "
                "cannot use it"
            )
        if self._closed:
            raise UsageError("this Manager is shut down")
        self._membership.check_group()

    def _last_round(self, what: str) -> Round:
        """The step in progress, or the last one: asked for facts, not for work."""
        self._check_owner()
        if self._round is None:
            raise UsageError(f"{what} needs a quorum: call start_quorum first")
        return self._round

    def _this_round(self, what: str) -> Round:
        this = self._last_round(what)
        if this.concluded:
            raise UsageError(f"{what} belongs to a step, and the last one is over: call start_quorum first")
        return this

    def _fail(self, this: Round, error: Exception) -> None:
        """This step does not commit here; whoever waits for us in it need not wait any longer."""
        if self._is_inherited() or not this.fail(error):
            return
        _log.warning("Step %d will not commit: %s", self.current_step(), str(error) or repr(error))
        if this.quorum is not None and not isinstance(error, CollectiveAborted):
            self._abort.end(this.quorum.quorum_id, f"error in step {self.current_step()}")

    def _settle(self, last: Round) -> None:
        """The train loop went on without asking whether the step counts: it does not."""
        if last.concluded:
            return
        with self._phases.during(Phase.QUORUM):
            error = last.formed.exception()
        if last.quorum is not None:  # peers may wait for us in its collectives
            self._abort.end(last.quorum.quorum_id, "the train loop began another step")
        if error is None:
            self._transport.disallow_checkpoint()
        last.conclude()
        self._state.fail()

    def _plan(self) -> RecoveryPlan:
        assert self._round is not None and self._round.plan is not None
        return self._round.plan

    def _contributors(self) -> tuple[int, ...]:
        """Replica ranks whose gradients count in this step."""
        this, plan = self._round, self._plan()
        contributors = plan.contributors
        if this and this.allow_heal and not self._rules.use_async_quorum:  # all have healed before the step
            contributors = tuple(range(plan.replica_world_size))
        if self._rules.world_size_mode is WorldSizeMode.FIXED_WITH_SPARES:
            contributors = contributors[: self._rules.min_replica_size]
        return contributors

    def _are_enough(self, contributors: tuple[int, ...]) -> bool:
        plan = self._plan()  # in the first step of all, one contributes and the others only take over
        present = plan.replica_world_size if plan.initial else len(contributors)
        return present >= self._rules.min_replica_size

    def _check_retries(self, error: Exception | None) -> None:
        failures, allowed = self._state.progress.commit_failures, self._rules.max_retries
        if allowed is not None and failures > allowed:
            raise ProcGuardError(
                f"{failures} steps in a row did not commit, more than max_retries={allowed} allows; the last "
                f"error was: {error}"
            )

    def _load(self, this: Round) -> None:
        """Take over the state that was fetched, if one was."""
        state, this.state = this.state, None
        if state is None:
            return
        try:
            with self._phases.during(Phase.HEAL):
                self._state.load(state)
        except CheckpointError as error:
            self._failed_loads += 1
            if self._failed_loads >= LOADS_MAX:
                raise
            _log.warning("%s; trying again, from another source if there is one", error, exc_info=True)
            return  # still behind: contributes zeros, and its peers' step goes on
        self._failed_loads = 0
        this.behind = False
        _log.info("Healed: this replica is at step %d", self.current_step())

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._membership.call_later(delay_s, call)

    def _show(self, phase: Phase, signs: int) -> None:
        self._membership.show(phase=phase, progress=signs, step=self.current_step())
