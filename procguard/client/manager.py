"""``Manager``: fault tolerance in the train loop. One quorum, one collective, one decision a step.

::

    manager = Manager(pg=RingProcessGroup(), load_state_dict=load, state_dict=save, min_replica_size=2)
    while manager.current_step() < STEPS:
        manager.start_quorum()                   # overlaps with the forward pass
        gradients = compute()
        manager.allreduce(gradients).wait()      # never raises, ends at once when a peer dies
        if manager.should_commit():
            optimizer_step(gradients)
    manager.shutdown()

Names, order and defaults are torchft's. What it decides rests on three pure rooms: ``requests`` (talk with
the lighthouse), ``fence`` (what a failure ends) and ``recovery_plan`` (who heals from whom). Here they meet
threads: the train loop, the quorum thread (``start_quorum`` hands it the round), the failure thread
(``Companion``), which may abort the collective at any time, and the process group's own. One lock guards what
they share.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from procguard.adapters.zmq import ZmqMemberTransport
from procguard.client import listener, process_hooks
from procguard.client.abort import FencedAbort
from procguard.client.checkpoint import CheckpointTransport, HTTPTransport
from procguard.client.formation import Formation, Round
from procguard.client.hosts import Host, ListenerProcess
from procguard.client.lighthouse_client import local_address_toward
from procguard.client.membership import Identity, Membership
from procguard.client.options import ManagerOptions
from procguard.client.process_group import ProcessGroup, Work
from procguard.client.recovery_plan import RecoveryPlan
from procguard.client.train_state import DEFAULT_PART, TrainState
from procguard.client.witness import LifeLine
from procguard.client.work import CompletedWork, ManagedWork, scaled, zeroed
from procguard.client.worker import Worker
from procguard.errors import CollectiveAborted, CollectiveError, ProcGuardError, UsageError
from procguard.messages import Notice, Phase

_log = logging.getLogger(__name__)

T = TypeVar("T")
MINUTE = timedelta(seconds=60)
CLOSE_TIMEOUT_S = 5.0


class WorldSizeMode(Enum):
    """What a change in the number of replicas does to the batch, as in torchft."""

    DYNAMIC = 0
    """The batch grows and shrinks with the quorum."""
    FIXED_WITH_SPARES = 1
    """``min_replica_size`` replicas contribute; further ones are spares and contribute zeros."""


class Manager:
    """One replica's fault tolerance.

    Construction joins the lighthouse. Make it in the main thread: the kernel then tells of this process's
    death within a millisecond, whatever its size.

    Args:
        pg: the process group that reduces across replicas; configured anew for each quorum.
        load_state_dict, state_dict: take over and give out the train loop's state. Allowed in it: None, bool,
            int, float, str, bytes, list, tuple, dict with str or int keys, arrays and tensors.
        min_replica_size: fewer replicas than this commit no step.
        use_async_quorum: let the quorum form while the forward pass runs; a healing replica then contributes
            nothing to the step in which it heals.
        timeout: for collectives, configuration and healing.
        quorum_timeout: for a quorum to form.
        connect_timeout: for the lighthouse to answer at first.
        rank, world_size: of this process in its replica group; only 0 of 1 so far.
        init_sync: before the first step all take over the state of one replica.
        max_retries: how many steps in a row may fail to commit before ``should_commit`` raises; None: any.
        quorum_retries: how often a quorum that timed out is asked for again.
        store_addr, store_port, port: of torchft's signature; a group of one rank needs none of them.
        hostname: the address peers reach this machine at; None: the one it reaches the lighthouse from.
        heartbeat_interval: accepted for torchft's sake; the lighthouse gives the interval to all.
        checkpoint_transport: None: ``HTTPTransport``.
        job_id: jobs on one lighthouse never see each other.
        proactive_recovery: None: PROCGUARD_PROACTIVE_RECOVERY, or True. False spawns no listening process,
            and no notice aborts anything: a survivor waits for its collective's own error or timeout.
        progress_timeout: declare this replica failed when it computes for longer without a sign of progress.

    Raises:
        UsageError: an argument or a variable cannot work.
        LighthouseUnreachable, LighthouseRejected: it could not join within ``connect_timeout``.
    """

    def __init__(
        self,
        pg: ProcessGroup,
        load_state_dict: Callable[[Any], None] | None,
        state_dict: Callable[[], Any] | None,
        min_replica_size: int,
        use_async_quorum: bool = True,
        timeout: timedelta = MINUTE,
        quorum_timeout: timedelta = MINUTE,
        connect_timeout: timedelta = MINUTE,
        rank: int | None = None,
        world_size: int | None = None,
        world_size_mode: WorldSizeMode = WorldSizeMode.DYNAMIC,
        store_addr: str | None = None,
        store_port: int | None = None,
        lighthouse_addr: str | None = None,
        replica_id: str | None = None,
        port: int | None = None,
        hostname: str | None = None,
        heartbeat_interval: timedelta | None = None,
        checkpoint_transport: CheckpointTransport | None = None,
        init_sync: bool = True,
        max_retries: int | None = None,
        quorum_retries: int = 0,
        *,
        job_id: str | None = None,
        proactive_recovery: bool | None = None,
        progress_timeout: timedelta | None = None,
    ) -> None:
        options = ManagerOptions.resolve(
            lighthouse_addr=lighthouse_addr,
            job_id=job_id,
            replica_id=replica_id,
            min_replica_size=min_replica_size,
            group_rank=rank,
            group_world_size=world_size,
            timeout=timeout,
            quorum_timeout=quorum_timeout,
            connect_timeout=connect_timeout,
            quorum_retries=quorum_retries,
            max_retries=max_retries,
            progress_timeout=progress_timeout,
            proactive_recovery=proactive_recovery,
            hostname=hostname,
        )
        self._options = options
        self._pid = os.getpid()
        self._pg = pg
        self._use_async_quorum = use_async_quorum
        self._world_size_mode = world_size_mode
        self._lock = threading.Lock()
        self._state = TrainState()
        self.set_state_dict_fns(load_state_dict, state_dict)
        self._signs_of_progress = 0
        self._paused = False
        self._round: Round | None = None
        self._closed = False
        self._transport = checkpoint_transport or HTTPTransport(options.timeout)
        self._abort = FencedAbort(pg, self._transport, self.current_step, self._call_later)
        host = hostname or local_address_toward(options.lighthouse.host, options.lighthouse.port)
        pg.advertise(host)
        self._transport.advertise(host)
        self._membership = self._join(options)
        self._formation = Formation(
            self._membership,
            pg,
            self._transport,
            self._abort,
            host=host,
            init_sync=init_sync,
            timeout=options.timeout,
            quorum_retries=options.quorum_retries,
            state=self._state,
        )
        self._quorum_thread = Worker("procguard-quorum")
        process_hooks.watch_over(self._membership)

    def _join(self, options: ManagerOptions) -> Membership:
        host, port = options.lighthouse.host, options.lighthouse.port
        progress_timeout = options.progress_timeout or timedelta(0)
        identity = Identity(
            options.job_id, options.replica_id, options.min_replica_size, progress_timeout.total_seconds()
        )

        def start_process(life_line: LifeLine) -> Host:
            return ListenerProcess(partial(listener.command, host, port, life_line), life_line)

        try:
            return Membership(
                identity,
                where=options.where,
                connect=lambda: ZmqMemberTransport(host, port),
                start_process=start_process if options.proactive else None,
                hears=self._abort,
                connect_timeout_s=options.connect_timeout.total_seconds(),
            )
        except BaseException:
            self._transport.shutdown(wait=False)
            raise

    # --- the step -----------------------------------------------------------------------------------

    def start_quorum(
        self, allow_heal: bool = True, shrink_only: bool = False, timeout: timedelta | None = None
    ) -> None:
        """Begin a step: ask for a quorum of those who are alive.

        With ``use_async_quorum`` it returns at once, and the first collective waits for the quorum; else it
        returns when the quorum stands and this replica has healed, if it had to.

        Args:
            allow_heal: fetch the state from others, or let them fetch it, where one is behind.
            shrink_only: let no newcomer in.
            timeout: for this quorum; None: the Manager's ``quorum_timeout``.
        """
        self._check_owner()
        last = self._round
        if last is not None:
            self._settle(last)
        self._abort.begin_round()
        this = Round(allow_heal, shrink_only, timeout or self._options.quorum_timeout)
        self._round = this
        self._show(Phase.COMPUTE if self._use_async_quorum else Phase.QUORUM)
        this.formed = self._quorum_thread.submit(partial(self._formation.run, this))
        if not self._use_async_quorum:
            self.wait_quorum()
            if this.state is not None:
                self._load(this)
            self._show(Phase.COMPUTE)

    def wait_quorum(self) -> None:
        """Return when this step's quorum stands.

        Raises:
            QuorumTimeout: there was none in time; the message says what it waited for.
            LighthouseRejected: another process took this replica's id.
        """
        this = self._last_round("wait_quorum")
        if not this.formed.done():
            with self._during(Phase.QUORUM):
                this.formed.result()
        this.formed.result()

    def allreduce(self, buffers: Any, op: str = "avg") -> Work:
        """Reduce an array, or a sequence of them, in place over all that contribute to this step.

        ``avg`` divides by the number of contributors; a replica that is healing, or a spare, contributes
        zeros. From any thread. The work it returns never raises: after a failure the buffers are as they
        were, and ``should_commit`` says False.
        """
        this = self._this_round("allreduce")
        if this.error is not None:
            return CompletedWork(buffers)
        self.wait_quorum()
        many: Sequence[Any] = buffers if isinstance(buffers, (list, tuple)) else [buffers]
        contributors = self._contributors()
        if not self.is_participating():
            zeroed(many)
        if this.error is not None:
            return CompletedWork(buffers)
        try:
            work = self._pg.allreduce(many, "sum" if op == "avg" else op)
        except CollectiveError as error:
            self.report_error(error)
            return CompletedWork(buffers)
        managed = ManagedWork(
            work,
            buffers,
            finish=partial(scaled, many, len(contributors) if op == "avg" else 1),
            on_error=self.report_error,
            on_wait=self._waiting_for_peers,
        )
        this.pending.append(managed)
        return managed

    def should_commit(self, timeout: timedelta | None = None) -> bool:
        """Whether this step counts: its collectives are complete and enough replicas took part.

        True: apply the optimizer. False: throw the gradients away; the next step asks for a new quorum.
        A healing replica loads the fetched state here.

        Args:
            timeout: for collectives that are still in flight; None: their own.

        Raises:
            what ``wait_quorum`` raises, and ProcGuardError after more than ``max_retries`` failures in a row.
        """
        this = self._this_round("should_commit")
        for work in this.pending:
            work.wait(timeout)
        self.wait_quorum()
        plan, quorum = this.plan, this.quorum
        assert plan is not None and quorum is not None
        if this.state is not None:
            self._load(this)
        self._transport.disallow_checkpoint()
        contributors = self._contributors()
        enough = len(contributors) >= self._options.min_replica_size
        if plan.initial and not enough:
            enough = plan.replica_world_size >= self._options.min_replica_size
        commits = enough and this.error is None and not this.behind
        this.concluded = True
        if commits:
            self._state.commit(quorum.quorum_id.packed, len(contributors))
        else:
            self._state.fail()
        self._show(Phase.COMPUTE)
        self._check_retries()
        return commits

    # --- what one may ask ---------------------------------------------------------------------------

    def current_step(self) -> int:
        """Steps committed so far, healed ones included."""
        return self._state.progress.step

    def batches_committed(self) -> int:
        """Batches that went into the committed steps, over all replicas."""
        return self._state.progress.batches

    def num_participants(self) -> int:
        """Replicas that contribute to this step. Waits for the quorum."""
        self.wait_quorum()
        return len(self._contributors())

    def participating_rank(self) -> int | None:
        """This replica's rank among those; None when it contributes nothing. Waits for the quorum."""
        self.wait_quorum()
        this, me = self._last_round("participating_rank"), self._plan().replica_rank
        contributors = self._contributors()
        return None if this.behind or me not in contributors else contributors.index(me)

    def is_participating(self) -> bool:
        """Whether this replica's gradients count in this step. Waits for the quorum."""
        return self.participating_rank() is not None

    def replica_id(self) -> str:
        """The name of this replica."""
        return self._options.replica_id

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

        What it raises is logged. It must be quick: the next notice waits for it.
        """
        self._abort.on_failure(callback)

    def report_error(self, error: Exception) -> None:
        """Say, from any thread, that this step cannot commit here.

        Peers that wait for this replica in a collective are freed by the abort. A ``CollectiveError`` of an
        earlier quorum changes nothing.
        """
        this = self._round
        if this is None or this.concluded:
            return
        quorum_id = this.quorum.quorum_id if this.quorum else None
        if isinstance(error, CollectiveError) and quorum_id and error.quorum_id != quorum_id.packed:
            return
        with self._lock:
            if this.error is not None:
                return
            this.error = error
        _log.warning("Step %d will not commit: %s", self.current_step(), error)
        if quorum_id and not isinstance(error, CollectiveAborted):
            self._abort.end(quorum_id, f"error in step {self.current_step()}")

    def wrap_future(self, future: Future[T], default: T) -> Future[T]:
        """A future that never fails: an error is reported and gives ``default``."""
        wrapped: Future[T] = Future()

        def done(inner: Future[T]) -> None:
            error = inner.exception()
            if isinstance(error, Exception):
                self.report_error(error)
                wrapped.set_result(default)
            else:
                wrapped.set_result(inner.result())

        future.add_done_callback(done)
        return wrapped

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
            self.register_state_dict_fn(DEFAULT_PART, load_state_dict, state_dict)

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
        self._membership.show(step=self.current_step())

    # --- progress -----------------------------------------------------------------------------------

    def report_progress(self) -> None:
        """A sign of life from inside a long step: restarts ``progress_timeout``."""
        self._signs_of_progress += 1
        self._membership.show(progress=self._signs_of_progress)

    @contextmanager
    def pause_progress(self, why: str) -> Iterator[None]:
        """Within it ``progress_timeout`` does not run: a checkpoint, an evaluation."""
        _log.debug("Progress paused: %s", why)
        self._paused = True
        try:
            with self._during(Phase.PAUSED):
                yield
        finally:
            self._paused = False

    def shutdown(self, wait: bool = True) -> None:
        """Leave the job in good order: the others go on without waiting for this replica.

        Args:
            wait: let transfers that heal others finish first.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        process_hooks.forget(self._membership)
        self._membership.leave(self.current_step())
        self._quorum_thread.close(CLOSE_TIMEOUT_S)
        self._transport.shutdown(wait=wait)
        self._pg.shutdown()

    # --- inside -------------------------------------------------------------------------------------

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

    def _check_owner(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"this Manager belongs to process {self._pid}; a forked child, such as a data loader, "
                "cannot use it"
            )
        if self._closed:
            raise UsageError("this Manager is shut down")

    def _plan(self) -> RecoveryPlan:
        assert self._round is not None and self._round.plan is not None
        return self._round.plan

    def _contributors(self) -> tuple[int, ...]:
        """Replica ranks whose gradients count in this step."""
        plan = self._plan()
        contributors = plan.contributors
        if not self._use_async_quorum:
            contributors = tuple(range(plan.replica_world_size))
        if self._world_size_mode is WorldSizeMode.FIXED_WITH_SPARES:
            contributors = contributors[: self._options.min_replica_size]
        return contributors

    def _settle(self, last: Round) -> None:
        """The train loop went on without asking whether the step counts: it does not."""
        if last.concluded:
            return
        last.concluded = True
        if last.formed.exception() is None:
            self._transport.disallow_checkpoint()
        self._state.fail()

    def _check_retries(self) -> None:
        failures, allowed = self._state.progress.commit_failures, self._options.max_retries
        if allowed is not None and failures > allowed:
            raise ProcGuardError(
                f"{failures} steps in a row did not commit, more than max_retries={allowed} allows; the last "
                f"error was: {self.errored()}"
            )

    def _load(self, this: Round) -> None:
        """Take over the state that was fetched."""
        state, this.state = this.state, None
        self._state.load(state)
        this.behind = False
        _log.info("Healed: this replica is at step %d", self.current_step())

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._membership.call_later(delay_s, call)

    def _waiting_for_peers(self, waiting: bool) -> None:
        self._show(Phase.COLLECTIVE if waiting else Phase.COMPUTE)

    @contextmanager
    def _during(self, phase: Phase) -> Iterator[None]:
        self._show(phase)
        try:
            yield
        finally:
            self._show(Phase.COMPUTE)

    def _show(self, phase: Phase) -> None:
        if self._paused and phase is not Phase.PAUSED:
            return
        self._signs_of_progress += 1
        self._membership.show(phase=phase, progress=self._signs_of_progress, step=self.current_step())
