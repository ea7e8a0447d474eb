"""What the guard knows and must not forget: who is to run, whose the tasks are, how far a recovery got.

Thread-safe. Memory is changed under one lock, briefly; the file is written under another one, so that
nobody who only reads waits for a disk. Changes that come while a write is under way are written together by
the next one. Each call returns when its change is in the file (unless ``auto_save`` is off). A full disk is
told once, by ``StateError``; from then on the memory goes on alone, and each change tries to write again.

Where a change is worth nothing unless it is kept (tasks that move), it is written first and holds afterwards.

Nothing is called back from here while a lock is held.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from procguard import kernel
from procguard.errors import StateError, UsageError
from procguard.supervisor import tasks
from procguard.supervisor.restarts import Restarts
from procguard.supervisor.state_file import Document, StateFile, WorkerRecord, encoded
from procguard.supervisor.tasks import TaskBook

_log = logging.getLogger(__name__)

OWN_FIELDS = frozenset({"wanted", "left_out", "exhausted", "start_due", "restarts", "tasks", "worker_id"})
"""What ``get_worker_state`` tells besides the fields that ``update_worker_state`` was given."""
NESTING = 16
"""Levels that a value has around it in the file, at most."""


class StateManager:
    """The state of one guard.

    Args:
        state_file: read now if it exists; its directory is made. None: nothing is kept.
        auto_save: write each change at once; otherwise only ``save`` and ``close`` write, and a guard that is
            killed forgets what came after.
        boot_id: of this boot; None: asked of the kernel.

    Raises:
        StateError: the file cannot be used, or a newer version has written it.
    """

    def __init__(
        self, state_file: str | Path | None = None, auto_save: bool = True, *, boot_id: str | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # always taken before _lock, never while holding it
        self._boot_id = kernel.boot_id() if boot_id is None else boot_id
        self._document = Document(boot_id=self._boot_id)
        self._changes_count = 0
        self._saved_count = 0
        self._durable_due = False
        self._write_fails = False
        self._auto_save = auto_save
        self._file = StateFile(state_file) if state_file is not None else None
        self.load()

    # --- the file

    @property
    def path(self) -> Path | None:
        """Where the state is kept."""
        return self._file.path if self._file else None

    @property
    def unsaved(self) -> bool:
        """Something is in memory only."""
        with self._lock:
            return self._saved_count < self._changes_count

    def lock(self) -> None:
        """Keep other guards out until ``close``, and read what the last one left. Raises ``StateError``."""
        if self._file:
            self._file.lock()
            if not self.unsaved:
                self.load()

    def load(self) -> bool:
        """Take over what the file holds, in place of what is in memory; False if it holds nothing.

        Raises:
            StateError: it cannot be read, or a newer version has written it.
        """
        if self._file is None:
            return False
        with self._writing:
            found = self._file.read(self._broken)
            if found is None:
                return False
            with self._lock:
                self._document = self._of_this_boot(found)
                self._saved_count = self._changes_count
        return True

    def save(self) -> None:
        """Write now. Raises ``StateError``."""
        with self._lock:
            self._changes_count += 1
            self._durable_due = True
            mine = self._changes_count
        self._write_up_to(mine, told=True)

    def close(self) -> None:
        """Let another guard use the file. Without ``auto_save``, what has changed is written first."""
        if self._file:
            if not self._auto_save and self.unsaved:
                try:
                    self.save()
                except StateError as error:
                    _log.error("%s; what has changed since it was last written is lost", error)
            with self._writing:
                self._file.close()

    # --- all of it

    @property
    def document(self) -> Document:
        """Everything, as of now; it does not change any more."""
        with self._lock:
            return self._document

    def update(
        self, change: Callable[[Document], Document], *, durable: bool = True, later: bool = False
    ) -> Document:
        """Change several things in one write; all or none of them are ever read.

        Args:
            change: makes the new document of the present one; pure, and may raise to change nothing.
            durable: a power failure must not undo it either.
            later: the next change's write is soon enough.

        Raises:
            StateError: it is in memory, but could not be written. Said once, until a write succeeds again.
        """
        with self._lock:
            changed = change(self._document)
            if changed is self._document:
                return changed
            self._document = changed
            self._changes_count += 1
            self._durable_due |= durable
            mine = self._changes_count
        if self._auto_save and not later:
            self._write_up_to(mine, told=False)
        return changed

    def update_anyway(
        self, change: Callable[[Document], Document], *, durable: bool = False, later: bool = False
    ) -> None:
        """As ``update``, for those who go on in memory while the disk is full; that is logged, once.

        ``durable`` is off: of a recovery's progress nothing is left after a power failure but dead processes.
        """
        with contextlib.suppress(StateError):
            self.update(change, durable=durable, later=later)

    def update_if_kept(self, change: Callable[[Document], Document]) -> Document:
        """As ``update``, but what cannot be written does not happen.

        Raises:
            StateError: it could not be written; nothing has changed.
        """
        if self._file is None or not self._auto_save:
            return self.update(change)
        with self._writing, self._lock:
            changed = change(self._document)
            self._write(encoded(changed), durable=True)
            self._document = changed
            self._changes_count += 1
            self._written(self._changes_count)
        return changed

    def update_worker(self, worker_id: str, *, durable: bool = True, **changes: Any) -> None:
        """Change fields of a worker's record."""

        def change(document: Document) -> Document:
            record = document.workers.get(worker_id, WorkerRecord())
            changed = replace(record, **changes)
            same = changed == record and worker_id in document.workers
            return document if same else with_workers(document, {worker_id: changed})

        self.update(change, durable=durable)

    # --- workers

    def get_worker_state(self, worker_id: str) -> dict[str, Any]:
        """What is known of a worker: the fields of ``update_worker_state``, ``tasks`` and what the recovery
        keeps.

        Empty for a worker that nobody has mentioned.
        """
        document = self.document
        mentioned = worker_id in document.workers or tasks.tasks_of(book_of(document), worker_id)
        return _state_of(document, worker_id) if mentioned else {}

    def worker_states(self) -> dict[str, dict[str, Any]]:
        """``get_worker_state`` of each worker."""
        document = self.document
        return {worker_id: _state_of(document, worker_id) for worker_id in document.workers}

    def update_worker_state(self, worker_id: str, **fields: Any) -> None:
        """Remember something of a worker; JSON values.

        Raises:
            UsageError: a value is no JSON, or the recovery keeps a field of that name itself.
            StateError: as in ``update``.
        """
        if taken := sorted(OWN_FIELDS & fields.keys()):
            raise UsageError(f"worker {worker_id}: {taken[0]!r} is kept by the recovery; choose another name")
        kept = {name: _json(value, f"worker {worker_id}: {name}") for name, value in fields.items()}

        def change(document: Document) -> Document:
            record = document.workers.get(_name(worker_id, "worker_id"), WorkerRecord())
            return with_workers(document, {worker_id: replace(record, fields={**record.fields, **kept})})

        self.update(change)

    def forget_worker(self, worker_id: str) -> None:
        """It is no longer there; its tasks go to the queue, for the next one that starts."""

        def change(document: Document) -> Document:
            moved = tasks.moved(book_of(document), tasks.moves_of(book_of(document), {worker_id}, ()))
            others = {other: record for other, record in document.workers.items() if other != worker_id}
            return with_book(replace(document, workers=others), moved)

        self.update(change)

    # --- tasks; all of these raise StateError as ``update`` does, and UsageError where the name does not fit

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Each task's ``worker_id``, ``payload`` and ``state``: assigned, queued or completed."""
        return {
            task_id: {
                "worker_id": task.worker_id,
                "payload": task.payload,
                "state": "completed" if task.completed else "assigned" if task.worker_id else "queued",
            }
            for task_id, task in self.document.tasks.items()
        }

    def task_queue(self) -> list[str]:
        """Tasks of nobody, the first to be taken first."""
        return list(self.document.task_queue)

    def tasks_of(self, worker_id: str) -> list[str]:
        """The tasks of a worker, in the order in which they were added."""
        return tasks.tasks_of(book_of(self.document), worker_id)

    def add_task(self, task_id: str, payload: Any = None, worker_id: str | None = None) -> None:
        """Make a task of a worker, which it reaches at its next start; without one it goes to the queue."""
        payload = _json(payload, f"task {task_id}: its payload")
        _name(task_id, "task_id")
        if worker_id is not None:
            _name(worker_id, "worker_id")
        self._update_book(lambda book: tasks.added(book, task_id, payload, worker_id))

    def assign_task(self, task_id: str, worker_id: str) -> None:
        """Give a task to a worker, from another one or from the queue."""
        _name(worker_id, "worker_id")
        self._update_book(lambda book: tasks.assigned(book, task_id, worker_id))

    def enqueue_task(self, task_id: str, payload: Any = None) -> None:
        """Make a task of nobody."""
        self.add_task(task_id, payload)

    def next_task(self, worker_id: str) -> str | None:
        """Give a worker the first task of the queue; None if there is none."""
        _name(worker_id, "worker_id")
        given: list[str | None] = []

        def change(book: TaskBook) -> TaskBook:
            book, task_id = tasks.taken(book, worker_id)
            given.append(task_id)
            return book

        self._update_book(change)
        return given[-1]

    def complete_task(self, task_id: str) -> None:
        """The task is done; nobody gets it any more."""
        self._update_book(lambda book: tasks.completed(book, task_id))

    def reassign_tasks(self, failed: str | Iterable[str], target: str) -> list[str]:
        """Give all tasks of those who failed to ``target``; which they were.

        The caller knows that the failed are dead: of two living workers with one task, both would work on it.
        """
        sources = {failed} if isinstance(failed, str) else set(failed)
        _name(target, "target")
        if target in sources:
            raise UsageError(f"target: {target!r} is one of those who failed; name another worker")
        given: list[str] = []

        def change(book: TaskBook) -> TaskBook:
            moves = tasks.moves_of(book, sources, [target])
            given[:] = [move.task_id for move in moves]
            return tasks.moved(book, moves)

        self._update_book(change)
        return given

    # --- inside

    def _update_book(self, change: Callable[[TaskBook], TaskBook]) -> None:
        def changed(document: Document) -> Document:
            book = book_of(document)
            after = change(book)
            return document if after is book else with_book(document, after)

        self.update(changed)

    def _write_up_to(self, change: int, told: bool) -> None:
        """Have that change in the file, with all others by then. ``told``: raise whenever it fails."""
        if self._file is None:
            return
        with self._writing:
            with self._lock:
                if self._saved_count >= change:
                    return  # somebody's write took ours along
                document, number, durable = self._document, self._changes_count, self._durable_due
            first = not self._write_fails
            try:
                self._write(encoded(document), durable)
            except StateError as error:
                self._write_fails = True
                if first:
                    _log.error("%s; ProcGuard goes on, and tries again with each change", error)
                if first or told:
                    raise
                return
            with self._lock:
                self._written(number)

    def _written(self, number: int) -> None:
        self._saved_count = number
        if number == self._changes_count:
            self._durable_due = False
        if self._write_fails:
            self._write_fails = False
            _log.info("%s: can be written again", self.path)

    def _write(self, content: bytes, durable: bool) -> None:
        assert self._file is not None
        self._file.write(content, durable)

    def _broken(self, aside: Path, wrong: str) -> None:
        _log.warning("%s: cannot be understood (%s); kept as %s, and begun anew", self.path, wrong, aside)

    def _of_this_boot(self, found: Document) -> Document:
        if found.boot_id == self._boot_id:
            return found
        workers = {
            worker_id: replace(record, start_due=None, restarts=Restarts())
            for worker_id, record in found.workers.items()
        }
        return replace(found, boot_id=self._boot_id, workers=workers)


def book_of(document: Document) -> TaskBook:
    """The tasks of a document."""
    return TaskBook(document.tasks, document.task_queue)


def with_book(document: Document, book: TaskBook) -> Document:
    """The document with these tasks."""
    return replace(document, tasks=book.tasks, task_queue=book.queue)


def with_workers(document: Document, changed: Mapping[str, WorkerRecord]) -> Document:
    """The document with these records as they are now."""
    return replace(document, workers={**document.workers, **changed})


def _state_of(document: Document, worker_id: str) -> dict[str, Any]:
    record = document.workers.get(worker_id, WorkerRecord())
    return {
        **deepcopy(dict(record.fields)),
        "worker_id": worker_id,
        "wanted": record.wanted,
        "left_out": record.left_out,
        "exhausted": record.exhausted,
        "start_due": record.start_due,
        "restarts": len(record.restarts.due),
        "tasks": tasks.tasks_of(book_of(document), worker_id),
    }


def _json(value: Any, what: str) -> Any:
    """A copy of the value as it will be read again. Raises ``UsageError``."""
    try:
        text = json.dumps(value, allow_nan=False)
        from_json("[" * NESTING + text + "]" * NESTING)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{what}: {_short(value)} is no JSON value ({error})") from None
    return from_json(text)


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise UsageError(f"{what}: {_short(value)} is not a name; write printable text")
    return value


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "what was given"
    return text if len(text) <= 60 else text[:60] + "..."
