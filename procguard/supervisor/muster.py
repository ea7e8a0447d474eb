"""Who is to run, and getting them to: what operators have asked for, remembered, and carried out.

What an operator wants is on the disk before it is done, so that a guard that dies meanwhile leaves it to
the next one. It counts from the moment it is asked for: a chain that is under way looks at it before each
start, and no start is under way while it is written down. So a stop needs not wait for a chain to end.

A worker's first tasks are those of its configuration; a task that exists already, wherever it is by now, is
not made again. What a chain has put into the queue, because nobody was left for it, goes to whoever starts
next.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from procguard.errors import StateError
from procguard.supervisor import plan, tasks
from procguard.supervisor.crew import Crew
from procguard.supervisor.exits import StopReason
from procguard.supervisor.restarts import Restarts
from procguard.supervisor.state import StateManager, book_of, with_book, with_workers
from procguard.supervisor.state_file import LEFT_OUT_FINISHED, Document, WorkerRecord

_log = logging.getLogger(__name__)


class Muster:
    """The workers that are to run.

    Args:
        clock: monotonic seconds.
        closing: the guard is about to end.
        patience_s: how long a start waits for workers that others depend on; then those start without.
    """

    def __init__(
        self,
        state: StateManager,
        crew: Crew,
        *,
        clock: Callable[[], float],
        closing: Callable[[], bool],
        patience_s: float,
    ) -> None:
        self._state = state
        self._crew = crew
        self._clock = clock
        self._closing = closing
        self._patience_s = patience_s
        self._starting = threading.RLock()
        """Held for each start, and while it is written down who is wanted, or has finished."""

    # --- what operators ask for

    def want(self, worker_ids: Collection[str]) -> None:
        """These are to run. Writes it down; ``start`` carries it out."""
        now = self._clock()
        self._change(
            worker_ids, lambda record: replace(record, wanted=True, start_due=record.start_due or now)
        )

    def stop(self, worker_ids: Collection[str], force: bool = False) -> set[str]:
        """These are not to run; who of them could not be stopped."""
        with self._starting:
            self._change(worker_ids, lambda record: replace(record, wanted=False, start_due=None))
        return self._crew.stop(worker_ids, StopReason.OPERATOR, force)

    def wants(self, worker_id: str) -> bool:
        """No operator has stopped it."""
        record = self._state.document.workers.get(worker_id)
        return record is None or record.wanted is not False

    def forgive(self, worker_ids: Collection[str]) -> None:
        """Nothing is held against these any more, and no delay; and whatever was given up is not."""
        now = self._clock()

        def fresh(record: WorkerRecord) -> WorkerRecord:
            due = now if record.wanted else None
            return replace(record, left_out="", exhausted=False, restarts=Restarts(), start_due=due)

        self._change(worker_ids, fresh)
        self._state.update_anyway(lambda document: replace(document, gave_up=None))

    def start(self, worker_ids: Iterable[str]) -> dict[str, str]:
        """Start those of these that are wanted, unless they run; who could not be started, and why."""
        asked = tuple(worker_ids)
        if not asked:
            return {}
        self._make_tasks(asked)
        states = self._crew.states()
        self._give_orphans([worker_id for worker_id in asked if states.get(worker_id) not in plan.LIVING])
        records, now = self._state.document.workers, self._clock()
        due = {w: records[w].start_due or now if w in records else now for w in asked}
        troubles = self.start_when_due(due, deadline=now + self._patience_s, interrupted=self._closing)
        self.forget_due([worker_id for worker_id in asked if due[worker_id] <= now])
        for worker_id, why in troubles.items():
            _log.error("Worker %s %s", worker_id, why)
        return troubles

    def start_when_due(
        self, due: dict[str, float], *, deadline: float, interrupted: Callable[[], bool]
    ) -> dict[str, str]:
        """``Crew.start`` for those who are wanted when it is their turn."""
        return self._crew.start(
            due, admits=self._admits, starting=self._starting, deadline=deadline, interrupted=interrupted
        )

    # --- what becomes of workers

    def forget_due(self, worker_ids: Collection[str]) -> None:
        """Their starts have happened, or failed for good."""
        self._change(worker_ids, lambda record: replace(record, start_due=None))

    def finished(self, worker_ids: Collection[str]) -> None:
        """They have ended in good order; who has been started again since is not concerned."""
        with self._starting:
            states = self._crew.states()
            still = [worker_id for worker_id in worker_ids if states.get(worker_id) == "finished"]
            self._change(still, lambda record: replace(record, left_out=LEFT_OUT_FINISHED, start_due=None))

    def close(self) -> None:
        """The guard ends in good order: when it starts again, so does what has finished."""
        records = self._state.document.workers
        done = [worker_id for worker_id, record in records.items() if record.left_out == LEFT_OUT_FINISHED]
        self._change(done, lambda record: replace(record, left_out=""))

    # --- after the guard was killed

    def reconcile(self) -> None:
        """Finish the stops that operators asked for; who lives takes part, whatever a full disk forgot."""
        views = self._crew.views()
        self._crew.stop(
            [w for w, view in views.items() if view.living and view.wanted is False], StopReason.OPERATOR
        )
        back = [w for w, view in views.items() if view.living and view.wanted is not False]
        self._change(back, lambda record: replace(record, left_out="", exhausted=False, start_due=None))

    def missing(self, also: Collection[str]) -> list[str]:
        """Who is to run, and does not; ``also`` are unless we know otherwise."""
        return [
            worker_id
            for worker_id, view in self._crew.views().items()
            if not view.living
            and view.state not in ("waiting", "finished")
            and not view.out
            and (view.wanted or (view.wanted is None and worker_id in also))
        ]

    def lost(self, missing: Iterable[str]) -> list[str]:
        """Who of them has died unseen beside others that live on; not those who die with their guard."""
        views = self._crew.views()
        if not any(view.living for view in views.values()):
            return []
        return [w for w in missing if views[w].wanted and views[w].start_due is None and not self._leaves(w)]

    # --- inside

    def _admits(self, worker_id: str) -> bool:
        """Whether it may start now; if so, that it has finished is no longer true."""
        if not self.wants(worker_id):
            return False
        record = self._state.document.workers.get(worker_id)
        if record is not None and record.left_out == LEFT_OUT_FINISHED:
            self._change([worker_id], lambda record: replace(record, left_out=""))
        return True

    def _leaves(self, worker_id: str) -> bool:
        config = self._crew.config_of(worker_id)
        return config is not None and config.on_supervisor_death == "kill"

    def _make_tasks(self, worker_ids: Iterable[str]) -> None:
        configured = {w: config.tasks for w in worker_ids if (config := self._crew.config_of(w))}

        def change(document: Document) -> Document:
            book = book_of(document)
            for worker_id, names in configured.items():
                for name in names:
                    book = book if name in book.tasks else tasks.added(book, name, None, worker_id)
            return document if book.tasks is document.tasks else with_book(document, book)

        self._state.update_anyway(change, durable=True)

    def _give_orphans(self, starting: Collection[str]) -> None:
        """Hand out what a chain has put into the queue; not while the disk is full, as no task moves then."""

        configs = {worker_id: self._crew.config_of(worker_id) for worker_id in starting}
        takers = [worker_id for worker_id, config in configs.items() if config is None or config.takes_tasks]

        def change(document: Document) -> Document:
            book = book_of(document)
            given = tasks.orphans_given(book, starting, takers)
            return document if given is book else with_book(document, given)

        if change(self._state.document) is not self._state.document:
            try:
                self._state.update_if_kept(change)
            except StateError as error:
                _log.error("Tasks stay in the queue, because their move could not be written: %s", error)

    def _change(self, worker_ids: Collection[str], change: Callable[[WorkerRecord], WorkerRecord]) -> None:
        """Change these records, in one write; none if that changes nothing."""

        def changed(document: Document) -> Document:
            records = {w: document.workers.get(w, WorkerRecord()) for w in worker_ids}
            after = {w: new for w, record in records.items() if (new := change(record)) != record}
            return with_workers(document, after) if after else document

        self._state.update_anyway(changed, durable=True)
