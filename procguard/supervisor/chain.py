"""One recovery chain, carried out: its journal says which step is next, this does it and ticks it off.

All that the chain knows stands in the journal, so it makes no difference whether the guard that does a step
is the one that began the chain. What goes wrong makes an **attempt** fail; the next one goes on where that
is of use, up to ``max_recovery_attempts``, each within ``recovery_timeout``. After the last one it depends
on what was asked: where all stop for one (``stop_all_on_failure``) all stay stopped, because one job cannot
run in part; otherwise the worker that cannot be helped stays out and the others go on.

A full disk does not end a chain: it goes on in memory. Only tasks do not move then, because a move that a
killed guard forgets would put a task on two workers; the failed worker restarts with its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, NamedTuple, Protocol

from procguard.errors import StateError
from procguard.guard_config import RecoveryConfig
from procguard.supervisor import plan, tasks
from procguard.supervisor.crew import Crew
from procguard.supervisor.exits import StopReason
from procguard.supervisor.muster import Muster
from procguard.supervisor.plan import Decision, Journal, Step
from procguard.supervisor.restarts import delay_after
from procguard.supervisor.state import StateManager, book_of, with_book, with_workers
from procguard.supervisor.state_file import Document, GaveUp, WorkerRecord
from procguard.supervisor.tasks import Move

_log = logging.getLogger(__name__)

EXIT_GAVE_UP = 1
"""The exit code of a guard whose recovery has given up."""
ATTEMPT_DELAY_S = 1.0
"""Before the second attempt; doubles with each."""
ATTEMPT_DELAY_MAX_S = 30.0
HOOK_PART = 0.5
"""A hook may take this part of what is left of ``recovery_timeout``."""
READY_SLICE_S = 1.0
"""While it is waited for readiness, how often a further failure is looked for."""
READY_GRACE_S = 5.0
"""How much later than asked an adapter may answer before it is called hung."""
READY_POLL_S = 0.05


class Checkpoints(Protocol):
    """A ``CheckpointAdapter``."""

    def before_stop(self, worker_ids: Sequence[str], /) -> object:
        """These are about to be stopped."""

    def after_restart(self, worker_ids: Sequence[str], /) -> object:
        """These run again."""


WaitReady = Callable[[Sequence[str], float], bool]
"""Waits until these workers have found together, at most so many seconds; whether they have."""


class OutcomeKind(str, Enum):
    """How a recovery ended."""

    RECOVERED = "recovered"
    """All who were to run do."""
    DEGRADED = "degraded"
    """It is over, and somebody stays out."""
    GAVE_UP = "gave_up"
    """All are stopped."""
    NOTHING_TO_DO = "nothing_to_do"
    JOINED = "joined"
    """Asked for from within a chain, which takes it in."""
    INTERRUPTED = "interrupted"
    """The guard is about to end; the next one finishes it."""
    DISABLED = "disabled"
    """``enable_auto_recovery`` is off."""


class RecoveryOutcome(NamedTuple):
    """What became of a failure. True where those who were to run again do."""

    kind: OutcomeKind
    failed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    """Who was started; some perhaps after a delay that is not over."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Who stays out, and why."""
    moves: tuple[Move, ...] = ()
    attempts: int = 0
    started_at: float = 0.0
    """Unix seconds."""
    duration_s: float = 0.0
    reason: str = ""
    """Why it was given up."""
    exit_code: int = 0

    def __bool__(self) -> bool:
        return self.kind not in (OutcomeKind.GAVE_UP, OutcomeKind.DISABLED, OutcomeKind.INTERRUPTED)


class Chain:
    """Carries the journal in ``state`` to its end.

    Args:
        take_in: the further failures that are known of by now, each once.
        more: whether there are any.
        closing: the guard is about to end; the journal is left for the next one.
        chance: from 0 to below 1, at random.
    """

    def __init__(
        self,
        state: StateManager,
        crew: Crew,
        muster: Muster,
        settings: RecoveryConfig,
        *,
        checkpoint: Checkpoints | None,
        wait_ready: WaitReady | None,
        take_in: Callable[[], tuple[str, ...]],
        more: Callable[[], bool],
        closing: Callable[[], bool],
        clock: Callable[[], float],
        pause: Callable[[float], object],
        chance: Callable[[], float],
    ) -> None:
        self._state = state
        self._crew = crew
        self._muster = muster
        self._settings = settings
        self._checkpoint = checkpoint
        self._wait_ready = wait_ready
        self._take_in = take_in
        self._more = more
        self._closing = closing
        self._clock = clock
        self._pause = pause
        self._chance = chance
        self._began = clock()
        self._deadline = self._began + settings.recovery_timeout
        self._perform = {
            Step.CHECKPOINT: self._save,
            Step.STOP: self._stop,
            Step.RESTART: self._restart,
            Step.READY: self._await_ready,
            Step.RESUME: self._resume,
        }

    def run(self) -> RecoveryOutcome:
        """Do what is left of the chain."""
        while True:
            journal = self._journal()
            if journal.hopeless:
                return self._give_up(journal, journal.hopeless)
            if journal.step is None:
                return self._finish(journal)
            if self._closing():
                return self._outcome(OutcomeKind.INTERRUPTED, journal)
            if self._overtaken(journal):
                self._rejoin(journal)
                continue
            if trouble := self._perform[journal.step](journal):
                # Those who did not find together are stopped first; what else failed is tried once more.
                self._another_attempt(trouble, from_the_stop=journal.step is Step.READY)
            elif self._clock() > self._deadline:
                self._another_attempt(self._too_long("took longer than"), from_the_stop=False)

    # --- the steps: each says what went wrong, or ticks itself off

    def _save(self, journal: Journal) -> str:
        if self._checkpoint is not None:
            self._hook("before_stop", self._checkpoint.before_stop, journal.stop)
        self._advance()
        return ""

    def _stop(self, journal: Journal) -> str:
        undying: set[str] = set()
        to_stop = journal.stop
        while to_stop:
            undying = self._crew.stop(to_stop)
            to_stop = self._join()
        journal = self._journal()
        if undying and (journal.stop_all or not self._last_attempt(journal)):
            return f"{', '.join(sorted(undying))} could not be stopped"
        self._decide(undying)
        return ""

    def _restart(self, journal: Journal) -> str:
        records = self._state.document.workers
        # A worker may be gone from the configuration since the journal was written.
        known = self._crew.states()
        due = {w: records[w].start_due or 0.0 for w in journal.start if w in records and w in known}
        troubles = self._muster.start_when_due(
            due, deadline=self._deadline, interrupted=lambda: self._closing() or self._overtaken(journal)
        )
        if troubles and (journal.stop_all or not self._last_attempt(journal)):
            return "; ".join(f"{worker_id} {why}" for worker_id, why in sorted(troubles.items()))
        if not self._closing() and not self._overtaken(journal):
            self._started(troubles)
        return ""

    def _await_ready(self, journal: Journal) -> str:
        while (awaited := self._wanted(journal)) and not self._ready(awaited):
            if self._closing() or self._overtaken(journal):
                return ""
            if self._clock() >= self._deadline:
                return self._too_long("the workers were not ready within")
        self._advance()
        return ""

    def _resume(self, journal: Journal) -> str:
        if self._checkpoint is not None:
            self._hook("after_restart", self._checkpoint.after_restart, self._wanted(journal))
        self._advance()
        return ""

    # --- what the steps are made of

    def _decide(self, undying: set[str]) -> None:
        states = self._crew.states()

        def change(document: Document, reassign: bool) -> Document:
            journal = document.recovery
            assert journal is not None
            decision = plan.decided(
                journal if reassign else replace(journal, reassign=False),
                self._crew.views(document, states),
                book_of(document),
                self._clock(),
                self._chance,
                undying,
            )
            return _after(document, decision)

        journal = self._journal()
        if journal.reassign:
            try:
                self._told(self._state.update_if_kept(lambda document: change(document, True)))
                return
            except StateError as error:
                _log.error("No task is reassigned, because that could not be written: %s", error)
        self._state.update_anyway(lambda document: change(document, False))
        self._told(self._state.document)

    def _told(self, document: Document) -> None:
        journal = document.recovery
        assert journal is not None
        for worker_id, why in journal.left_out:
            _log.warning("Worker %s stays out: %s", worker_id, why)

    def _started(self, troubles: dict[str, str]) -> None:
        """Tick off the restart; in the last attempt, those who could not be started stay out."""
        now = self._clock()

        def change(document: Document) -> Document:
            journal = document.recovery
            assert journal is not None
            records = document.workers
            changed = {
                worker_id: replace(records[worker_id], start_due=None)
                for worker_id in journal.start
                if worker_id in records and (records[worker_id].start_due or now) <= now
            }
            for worker_id, why in troubles.items():
                changed[worker_id] = replace(records[worker_id], start_due=None, left_out=why)
            left_out = {**dict(journal.left_out), **troubles}
            start = tuple([worker_id for worker_id in journal.start if worker_id not in troubles])
            journal = replace(plan.advanced(journal), start=start, left_out=tuple(sorted(left_out.items())))
            return replace(with_workers(document, changed), recovery=journal)

        last = self._journal().steps[-1] is Step.RESTART
        self._state.update_anyway(change, later=last)  # then the end of the chain is written right after it

    def _join(self) -> tuple[str, ...]:
        """Take in who failed meanwhile; whom that stops, empty if nobody did."""
        failed = self._take_in()
        if not failed:
            return ()
        journal = self._journal()
        journal = plan.joined(journal, failed, self._crew.views(), book_of(self._state.document))
        self._set_journal(journal)
        return journal.stop

    def _rejoin(self, journal: Journal) -> None:
        """Somebody failed while it was waited for the others: stop all again."""
        if failed := self._take_in():
            views, book = self._crew.views(), book_of(self._state.document)
            self._set_journal(plan.rejoined(journal, failed, views, book))

    def _overtaken(self, journal: Journal) -> bool:
        """Somebody failed after it was decided who goes on, and all are to stop for it."""
        return journal.decided and journal.stop_all and self._more()

    def _ready(self, awaited: Sequence[str]) -> bool:
        """Ask the adapter once. One that raises or hangs cannot tell, and holds nobody up."""
        if self._wait_ready is None:
            return True
        wait_ready = self._wait_ready
        asked_at = self._clock()
        slice_s = min(READY_SLICE_S, max(0.0, self._deadline - asked_at))
        try:
            ready = bounded(lambda: wait_ready(awaited, slice_s), slice_s + READY_GRACE_S)
        except Exception:  # noqa: BLE001 - what somebody else's adapter raises; told here
            _log.exception("wait_ready failed: the recovery does not wait for it")
            return True
        if not ready and self._clock() - asked_at < READY_POLL_S:
            self._pause(READY_POLL_S)
        return bool(ready)

    def _hook(self, name: str, call: Callable[[Sequence[str]], object], worker_ids: Sequence[str]) -> None:
        timeout_s = HOOK_PART * max(0.0, self._deadline - self._clock())
        try:
            bounded(lambda: call(worker_ids), timeout_s)
        except Overdue:
            _log.error("%s of the checkpoint adapter takes longer than %.0f s: going on", name, timeout_s)
        except Exception:  # noqa: BLE001 - what somebody else's adapter raises; told here
            _log.exception("%s of the checkpoint adapter failed: going on", name)

    def _another_attempt(self, trouble: str, *, from_the_stop: bool) -> None:
        journal = self._journal()
        if journal.step is None:
            return
        if not self._last_attempt(journal):
            _log.warning("Recovery attempt %d failed: %s", journal.attempt, trouble)
            self._set_journal(plan.again(journal, trouble, from_the_stop=from_the_stop))
            self._pause(delay_after(journal.attempt, ATTEMPT_DELAY_S, ATTEMPT_DELAY_MAX_S, self._chance()))
        elif journal.stop_all:
            why = f"{trouble}; given up after attempt {journal.attempt}"
            self._set_journal(replace(journal, hopeless=why))
        else:
            _log.error("Recovery attempt %d, the last, failed: %s", journal.attempt, trouble)
            if journal.step is Step.READY:
                self._advance()
        self._deadline = self._clock() + self._settings.recovery_timeout

    def _give_up(self, journal: Journal, reason: str) -> RecoveryOutcome:
        """The end is written first: a guard that dies while it stops the others leaves no half of a chain."""
        outcome = self._outcome(OutcomeKind.GAVE_UP, journal, reason, EXIT_GAVE_UP)
        _log.error("Recovery gives up: %s", reason)
        gave_up = GaveUp(reason, EXIT_GAVE_UP, journal.started_at)
        self._state.update_anyway(
            lambda document: replace(document, recovery=None, gave_up=gave_up), durable=True
        )
        if alive := self._crew.stop(self._crew.states(), StopReason.RECOVERY):
            _log.error("%s could not be stopped", ", ".join(sorted(alive)))
        return outcome

    def _finish(self, journal: Journal) -> RecoveryOutcome:
        self._set_journal(None)
        kind = OutcomeKind.DEGRADED if journal.left_out else OutcomeKind.RECOVERED
        outcome = self._outcome(kind, journal)
        _log.info("Recovery %d is over: %s restarted", journal.number, ", ".join(journal.start) or "nobody")
        return outcome

    def _outcome(
        self, kind: OutcomeKind, journal: Journal, reason: str = "", exit_code: int = 0
    ) -> RecoveryOutcome:
        return RecoveryOutcome(
            kind=kind,
            failed=journal.failed,
            restarted=() if kind is OutcomeKind.GAVE_UP else journal.start,
            left_out=journal.left_out,
            moves=journal.moves,
            attempts=journal.attempt,
            started_at=journal.started_at,
            duration_s=self._clock() - self._began,
            reason=reason,
            exit_code=exit_code,
        )

    def _too_long(self, what: str) -> str:
        return f"{what} recovery_timeout ({self._settings.recovery_timeout:g} s)"

    def _last_attempt(self, journal: Journal) -> bool:
        return journal.attempt >= self._settings.max_recovery_attempts

    def _wanted(self, journal: Journal) -> tuple[str, ...]:
        """Who was started and has not been stopped by an operator since."""
        return tuple([worker_id for worker_id in journal.start if self._muster.wants(worker_id)])

    def _journal(self) -> Journal:
        journal = self._state.document.recovery
        assert journal is not None, "a chain without a journal"
        return journal

    def _advance(self) -> None:
        self._set_journal(plan.advanced(self._journal()))

    def _set_journal(self, journal: Journal | None) -> None:
        self._state.update_anyway(lambda document: replace(document, recovery=journal))


def _after(document: Document, decision: Decision) -> Document:
    """The document with all that was decided."""
    changed = {}
    for worker_id in {*decision.due, *decision.restarts, *decision.left_out}:
        record = document.workers.get(worker_id, WorkerRecord())
        changed[worker_id] = replace(
            record,
            start_due=decision.due.get(worker_id),
            restarts=decision.restarts.get(worker_id, record.restarts),
            left_out=decision.left_out.get(worker_id, ""),
            exhausted=worker_id in decision.exhausted,
        )
    book = tasks.moved(book_of(document), decision.moves)
    return replace(with_book(with_workers(document, changed), book), recovery=decision.journal)


_hook = threading.local()


def in_hook() -> bool:
    """Whether this is the thread of a hook, which a chain waits for."""
    return getattr(_hook, "running", False)


class Overdue(Exception):
    """A call to somebody else's code has not returned in time."""


def bounded(call: Callable[[], Any], timeout_s: float) -> Any:
    """The result of a call to somebody else's code, which may hang; then its thread is left behind.

    Raises:
        Overdue: it has not returned in time. What the call itself raises is raised here.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        _hook.running = True
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits here
            errors.append(error)

    thread = threading.Thread(target=run, name="procguard-hook", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise Overdue
    return results[0]
