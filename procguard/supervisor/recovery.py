"""What happens when workers fail, and when an operator starts or stops some: one thing at a time, in order.

Whoever calls waits for its turn and gets the outcome. Failures that come together are one chain. One that
comes while a chain is under way joins it as long as workers are still being stopped, and also later where all
stop for one; otherwise the next chain is about it, unless the worker has been replaced since.

A stop by an operator is remembered the moment it is asked for, so that the chain in progress does not start
that worker again, and carried out without waiting for that chain.

After the guard has been killed the next one calls ``resume``, which ends the chain that was under way, starts
what should be running, and takes what died unseen for a failure.

All starts of workers should come through here: they hand out the tasks. Not to be called from the callback
of a ``ProcessManager``, whose thread must not wait; from a hook of the chain itself a failure may be
reported.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from procguard.errors import UsageError
from procguard.supervisor import plan
from procguard.supervisor.chain import EXIT_GAVE_UP, Chain, Checkpoints, OutcomeKind, RecoveryOutcome, in_hook
from procguard.supervisor.crew import ConfigOf, Crew, EnvironmentOf, Workers
from procguard.supervisor.exits import StopReason
from procguard.supervisor.muster import Muster
from procguard.supervisor.plan import Journal, Rules
from procguard.supervisor.recovery_settings import recovery_settings
from procguard.supervisor.state import StateManager, book_of, with_workers
from procguard.supervisor.state_file import Document, GaveUp, WorkerRecord

__all__ = ["EXIT_GAVE_UP", "FailureHandler", "OutcomeKind", "RecoveryOutcome"]

_log = logging.getLogger(__name__)

HISTORY_COUNT_MAX = 100
_NOTHING = RecoveryOutcome(OutcomeKind.NOTHING_TO_DO)


@dataclass(eq=False, slots=True)
class _Report:
    """Workers that have failed, as somebody has told us."""

    seen: Mapping[str, int | None]
    """The process of each that it is about; None: it was gone already."""
    ended: bool = False
    """They have ended in good order and are to run again: nobody else is stopped for that."""
    outcome: RecoveryOutcome | None = None


class FailureHandler:
    """Recovers from failures, by the rules of ``recovery_config``. Thread-safe.

    Args:
        recovery_config: keys of the YAML's ``recovery``; all optional.
        adapter: a ``CommunicationAdapter``: its ``wait_ready`` is waited for after a restart, and its
            ``environment`` goes to the workers.
        checkpoint: a ``CheckpointAdapter``, called before a stop and after a restart.
        worker_config: a worker's settings; None: asked of the process manager if it can tell.
        environment: variables for a worker's start besides all others.
        clock: monotonic seconds.
        wall_clock: Unix seconds.
        chance: from 0 to below 1, at random.
        pause: lets that many seconds pass; None: really, and no longer than until ``close``.

    Raises:
        UsageError: a key of the configuration that cannot be.
    """

    def __init__(
        self,
        state_manager: StateManager,
        process_manager: Workers,
        recovery_config: Mapping[str, Any] | None = None,
        *,
        adapter: Any = None,
        checkpoint: Checkpoints | None = None,
        worker_config: ConfigOf | None = None,
        environment: EnvironmentOf | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.settings = recovery_settings(recovery_config)
        self._state = state_manager
        self._adapter = adapter
        self._checkpoint = checkpoint
        self._environment = environment
        self._clock = clock
        self._wall_clock = wall_clock
        self._chance = chance
        self._closed = threading.Event()
        self._pause = pause or self._closed.wait
        config_of = worker_config or getattr(process_manager, "worker_config", None) or _no_config
        self._crew = Crew(process_manager, state_manager, config_of, self._environment_of, clock, self._pause)
        self._muster = Muster(
            state_manager,
            self._crew,
            clock=clock,
            closing=self._closed.is_set,
            patience_s=self.settings.recovery_timeout,
        )
        self._turn = threading.Lock()
        self._lock = threading.Lock()  # for the inbox, the history and the asides; held for moments only
        self._inbox: list[_Report] = []
        self._taken: list[_Report] = []
        self._asides: list[threading.Thread] = []
        self._history: deque[RecoveryOutcome] = deque(maxlen=HISTORY_COUNT_MAX)

    # --- what is going on

    @property
    def in_progress(self) -> bool:
        """A chain is under way, or was when the last guard ended."""
        return self._state.document.recovery is not None

    @property
    def history(self) -> list[RecoveryOutcome]:
        """The last outcomes, oldest first."""
        with self._lock:
            return list(self._history)

    @property
    def gave_up(self) -> GaveUp | None:
        """Why nothing is recovered any more; an operator's start ends it."""
        return self._state.document.gave_up

    # --- failures

    def handle_failure(
        self, failed_workers: Iterable[str], *, pids: Mapping[str, int] | None = None
    ) -> RecoveryOutcome:
        """Recover from the failure of these workers; returns when that is over.

        Args:
            pids: of which process each report is, where that is known: a worker that has another one by
                now is not restarted for it.

        Raises:
            UsageError: none of them is known.
        """
        return self._report(failed_workers, pids or {}, ended=False)

    def handle_end(self, ended_workers: Iterable[str]) -> RecoveryOutcome:
        """Start workers again that ended in good order (``restart: always``). Nobody else is stopped
        for it, but it counts, and is delayed, as after a failure.

        Raises:
            UsageError: none of them is known.
        """
        return self._report(ended_workers, {}, ended=True)

    def report_failure(
        self,
        failed_workers: Iterable[str],
        *,
        pids: Mapping[str, int] | None = None,
        then: Callable[[RecoveryOutcome], object] = lambda outcome: None,
    ) -> None:
        """``handle_failure`` for those who must not wait, such as a monitor that goes on looking.

        The failure is known when this returns; a thread does the rest and gives ``then`` the outcome.

        Raises:
            UsageError: none of them is known.
        """
        report = self._admitted(failed_workers, pids or {}, ended=False)

        def settle() -> None:
            try:
                then(self._settled(report))
            except Exception:  # noqa: BLE001 - a bug of ours, or of ``then``: nobody waits here who could hear of it
                _log.exception("A recovery ended badly")

        threading.Thread(target=settle, name="procguard-recovery", daemon=True).start()

    def _report(self, worker_ids: Iterable[str], pids: Mapping[str, int], ended: bool) -> RecoveryOutcome:
        return self._settled(self._admitted(worker_ids, pids, ended))

    def _admitted(self, worker_ids: Iterable[str], pids: Mapping[str, int], ended: bool) -> _Report:
        """A report that waits to be taken in, or is answered already."""
        now_pids = self._crew.pids()
        asked = _listed(worker_ids)
        known = [worker_id for worker_id in asked if worker_id in now_pids]
        if unknown := [worker_id for worker_id in asked if worker_id not in now_pids]:
            told = f"failed_workers: {', '.join(map(repr, unknown))}: not registered with the process manager"
            if not known:
                raise UsageError(f"{told}; register_worker_config makes a worker known")
            _log.error("%s", told)
        report = _Report({w: pids.get(w, now_pids[w]) for w in known}, ended)
        if self.gave_up or self._closed.is_set():
            report.outcome = self._refusal()
        elif not self.settings.enable_auto_recovery:
            what = "ended in good order" if ended else "failed"
            _log.warning("%s %s; enable_auto_recovery is off", ", ".join(known), what)
            report.outcome = RecoveryOutcome(OutcomeKind.DISABLED, tuple(known))
        else:
            with self._lock:
                self._inbox.append(report)
        return report

    def _settled(self, report: _Report) -> RecoveryOutcome:
        if report.outcome is None and in_hook():
            return RecoveryOutcome(OutcomeKind.JOINED, tuple(report.seen))
        if report.outcome is None:
            with self._in_turn():
                if report.outcome is None:
                    self._work()
        return _known_outcome(report.outcome)

    def _refusal(self) -> RecoveryOutcome:
        if (gave_up := self.gave_up) is not None:
            return RecoveryOutcome(OutcomeKind.GAVE_UP, reason=gave_up.reason, exit_code=gave_up.exit_code)
        return RecoveryOutcome(OutcomeKind.INTERRUPTED)

    # --- after the guard was killed

    def resume(self, also: Iterable[str] = ()) -> RecoveryOutcome:
        """Finish what an earlier guard began, and start what is to run. To be called once living workers are
        adopted; does nothing when there is nothing to do.

        Args:
            also: workers that run from the beginning, unless they were stopped by an operator or left out.
                One that cannot be started has failed, as if it had died.
        """
        also = set(also)
        with self._in_turn():
            if self.gave_up is not None:
                _log.warning("The guard before this one gave up: %s; beginning anew", self.gave_up.reason)
                self._muster.forgive(self._state.document.workers.keys())
            outcome = _known_outcome(self._work())
            if outcome.kind is not OutcomeKind.GAVE_UP:
                self._muster.reconcile()
                lost = self._muster.lost(self._muster.missing(also))
                if lost and self.settings.enable_auto_recovery:
                    outcome = self._recovered(lost)
            if outcome.kind is not OutcomeKind.GAVE_UP:
                missing = self._muster.missing(also)
                self._muster.want(missing)
                troubles = self._muster.start(missing)
                if troubles and self.settings.enable_auto_recovery:
                    outcome = self._recovered(troubles)
                elif troubles:
                    left_out = tuple(sorted(troubles.items()))
                    outcome = RecoveryOutcome(OutcomeKind.DISABLED, tuple(troubles), left_out=left_out)
        return outcome

    # --- operators; never refused as busy. Each answers by worker whether it is so now.

    def start(self, worker_ids: Iterable[str]) -> dict[str, bool]:
        """Have these workers run. Their failures so far are forgotten, and so is that they were left out.

        Raises:
            UsageError: one of them is not known.
        """
        asked = self._known(worker_ids)
        self._muster.want(asked)
        with self._in_turn():
            self._work()
            self._muster.forgive(asked)
            troubles = self._muster.start(asked)
        return {w: w not in troubles and self._muster.wants(w) for w in asked}

    def stop(self, worker_ids: Iterable[str], force: bool = False) -> dict[str, bool]:
        """Have these workers stopped until an operator starts them; does not wait for a chain to end.

        Raises:
            UsageError: one of them is not known.
        """
        asked = self._known(worker_ids)
        undying = self._muster.stop(asked, force)
        return {worker_id: worker_id not in undying for worker_id in asked}

    def restart(self, worker_ids: Iterable[str]) -> dict[str, bool]:
        """Stop these workers and start them again. Raises ``UsageError`` as ``start``."""
        asked = self._known(worker_ids)
        self._muster.want(asked)
        with self._in_turn():
            self._work()
            self._muster.forgive(asked)
            undying = self._crew.stop(asked, StopReason.OPERATOR)
            troubles = self._muster.start([w for w in asked if w not in undying])
        return {w: w not in undying and w not in troubles and self._muster.wants(w) for w in asked}

    # --- to be told by whoever hears the process manager's events; these return at once

    def worker_started(self, worker_id: str) -> None:
        """A process of this worker runs."""
        record = self._state.document.workers.get(worker_id)
        if record is not None and record.start_due is not None and record.start_due <= self._clock():
            self._aside(lambda: self._muster.forget_due([worker_id]))

    def worker_finished(self, worker_id: str) -> None:
        """It has ended in good order and is not to run again: should the guard be killed, the next one does
        not start it either. After an orderly ``close`` it does."""
        self._aside(lambda: self._muster.finished([worker_id]))

    def close(self) -> None:
        """The guard ends in good order: what is under way stops between two steps, and the next guard's
        ``resume`` goes on with it. To be called before the workers are stopped."""
        self._closed.set()
        with self._lock:
            asides = tuple(self._asides)
        for aside in asides:
            aside.join()
        with self._in_turn():
            self._muster.close()

    # --- inside

    def _recovered(self, failed: Iterable[str]) -> RecoveryOutcome:
        """Recover from the failure of these, of whom nothing lives. In turn."""
        with self._lock:
            self._inbox.append(_Report(dict.fromkeys(failed)))
        return _known_outcome(self._work())

    def _work(self) -> RecoveryOutcome | None:
        """Carry out chains until nobody waits for one; the last outcome. In turn."""
        last: RecoveryOutcome | None = None
        while not self._closed.is_set() and self.gave_up is None:
            if self._state.document.recovery is None and not self._begin():
                break
            last = self._chain().run()
            with self._lock:
                self._history.append(last)
            self._answer(last)
        if self._closed.is_set() or self.gave_up is not None:
            self._take_in()
            self._answer(self._refusal())
        return last

    def _begin(self) -> bool:
        """Write the journal of the next chain; False if nobody has failed."""
        failed = self._take_in()
        if not failed:
            self._answer(_NOTHING)
            return False
        ended_only = all(report.ended for report in self._taken)
        rules = Rules(self.settings.stop_all_on_failure, self.settings.task_reassignment)
        rules = Rules(stop_all=False) if ended_only else rules
        saves = self._checkpoint is not None and not ended_only
        _log.warning("Recovery of %s begins", ", ".join(failed))
        states, context = self._crew.states(), self._crew.context(failed)

        def change(document: Document) -> Document:
            views = self._crew.views(document, states)
            journal = plan.begun(
                document.chains_count + 1,
                failed,
                views,
                book_of(document),
                rules,
                started_at=self._wall_clock(),
                saves=saves,
                ready=self._wait_ready() is not None,
                context=context,
            )
            return _with_chain(document, journal, views)

        # A journal that says no more than that the dead are to be stopped may wait for the decision's write:
        # without it the next guard finds the same dead.
        concerned = states if rules.stop_all or rules.reassign else failed
        idle = not saves and not any(states[worker_id] in plan.LIVING for worker_id in concerned)
        self._state.update_anyway(change, later=idle)
        return True

    def _chain(self) -> Chain:
        return Chain(
            self._state,
            self._crew,
            self._muster,
            self.settings,
            checkpoint=self._checkpoint,
            wait_ready=self._wait_ready(),
            take_in=self._take_in,
            more=self._more,
            closing=self._closed.is_set,
            clock=self._clock,
            pause=self._pause,
            chance=self._chance,
        )

    def _wait_ready(self) -> Any:
        return getattr(self._adapter, "wait_ready", None)

    def _take_in(self) -> tuple[str, ...]:
        """Who has failed by all reports so far, which are answered when the chain is over."""
        with self._lock:
            reports, self._inbox = self._inbox, []
            self._taken += reports
        return self._fresh(reports)

    def _more(self) -> bool:
        with self._lock:
            reports = list(self._inbox)
        return bool(self._fresh(reports))

    def _fresh(self, reports: Iterable[_Report]) -> tuple[str, ...]:
        """Whose failure is not over yet: not stopped or replaced since."""
        if not reports:
            return ()
        views, pids = self._crew.views(), self._crew.pids()
        failed = []
        for report in reports:
            for worker_id, seen in report.seen.items():
                view = views.get(worker_id)
                if view is None or view.wanted is False or view.out or view.state == "waiting":
                    continue
                if not view.living or pids.get(worker_id) == seen:
                    failed.append(worker_id)
        return tuple(dict.fromkeys(failed))

    def _answer(self, outcome: RecoveryOutcome) -> None:
        with self._lock:
            taken, self._taken = self._taken, []
        for report in taken:
            report.outcome = outcome

    def _known(self, worker_ids: Iterable[str]) -> list[str]:
        asked = _listed(worker_ids)
        known = self._crew.states()
        for worker_id in asked:
            if worker_id not in known:
                names = ", ".join(known) or "none"
                raise UsageError(f"there is no worker {worker_id!r}; these are known: {names}")
        return asked

    def _environment_of(self, worker_id: str) -> Mapping[str, str]:
        of_adapter = getattr(self._adapter, "environment", None)
        environment = dict(of_adapter(worker_id)) if of_adapter else {}
        return {**environment, **(self._environment(worker_id) if self._environment else {})}

    def _aside(self, call: Callable[[], None]) -> None:
        """Do this on a thread of its own, which ``close`` waits for; nothing is done once closed."""
        thread = threading.Thread(target=call, name="procguard-noted")
        with self._lock:
            if not self._closed.is_set():
                self._asides = [aside for aside in self._asides if aside.is_alive()]
                self._asides.append(thread)
                thread.start()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if in_hook():
            raise UsageError("a hook of the recovery cannot wait for its end; ask from another thread")
        with self._turn:
            yield


def _known_outcome(outcome: RecoveryOutcome | None) -> RecoveryOutcome:
    return _NOTHING if outcome is None else outcome


def _listed(worker_ids: Iterable[str]) -> list[str]:
    """Each once; a single name is meant as that, not as its letters."""
    return list(dict.fromkeys([worker_ids] if isinstance(worker_ids, str) else worker_ids))


def _no_config(worker_id: str) -> None:
    return None


def _with_chain(document: Document, journal: Journal, views: Mapping[str, plan.WorkerView]) -> Document:
    """The document with a chain begun, and with all written down that run, or should."""
    changed = {}
    for worker_id, view in views.items():
        if view.to_run or (worker_id in journal.failed and view.wanted is None):
            record = document.workers.get(worker_id, WorkerRecord())
            changed[worker_id] = replace(record, wanted=True)
    return replace(with_workers(document, changed), recovery=journal, chains_count=journal.number)
