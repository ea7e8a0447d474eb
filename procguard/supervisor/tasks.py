"""The tasks: which there are, whose they are, and who gets those of a worker that failed. Pure.

A task belongs to one worker or stands in the queue, never both and never neither, whatever is done here: each
change yields a whole new book, so that a file can hold the one or the other and nothing between.

A task that came into the queue because its worker failed remembers that worker: the next start of a worker
hands such tasks out again, to that one if it is among those that start. What a user has put into the queue
stays there until it is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from procguard.errors import UsageError

COMPLETED_COUNT_MAX = 10_000
"""Completed tasks that are remembered, so that a configuration which names one does not start it again."""


@dataclass(frozen=True, slots=True)
class Task:
    """A unit of work."""

    payload: Any = None
    """What its owner wants to know of it; JSON."""
    worker_id: str | None = None
    """Whose it is; None: it stands in the queue, or is completed."""
    orphan_of: str | None = None
    """It stands in the queue because this worker failed."""
    completed: bool = False


class TaskBook(NamedTuple):
    """All tasks. Never changed in place."""

    tasks: Mapping[str, Task] = {}
    queue: tuple[str, ...] = ()
    """Tasks of nobody, the first to be taken first."""


@dataclass(frozen=True, slots=True)
class Move:
    """A task changes hands."""

    task_id: str
    source: str
    target: str | None
    """None: into the queue."""


def tasks_of(book: TaskBook, worker_id: str) -> list[str]:
    """Its tasks, in the order in which they were added."""
    return [task_id for task_id, task in book.tasks.items() if task.worker_id == worker_id]


def loads(book: TaskBook) -> Counter[str]:
    """How many tasks each worker has."""
    return Counter([task.worker_id for task in book.tasks.values() if task.worker_id is not None])


def check(book: TaskBook) -> None:
    """Raise ``ValueError`` unless each task has a worker, stands once in the queue, or is completed."""
    queued = Counter(book.queue)
    for task_id, task in book.tasks.items():
        places = queued.pop(task_id, 0) + (task.worker_id is not None) + task.completed
        if places != 1:
            raise ValueError(f"task {task_id!r} stands in {places} places")
    if queued:
        raise ValueError(f"the queue holds {next(iter(queued))!r}, which is no task")


def added(book: TaskBook, task_id: str, payload: Any, worker_id: str | None) -> TaskBook:
    """With a new task, of a worker or at the end of the queue. Raises ``UsageError`` if the name is taken."""
    if task_id in book.tasks:
        raise UsageError(f"task {task_id!r} exists already; complete it first, or use another task_id")
    queue = book.queue if worker_id is not None else (*book.queue, task_id)
    return TaskBook({**book.tasks, task_id: Task(payload, worker_id)}, queue)


def assigned(book: TaskBook, task_id: str, worker_id: str) -> TaskBook:
    """With the task in that worker's hands. Raises ``UsageError`` for one that is unknown or completed."""
    task = _open_task(book, task_id)
    return _replaced(book, {task_id: Task(task.payload, worker_id)})


def completed(book: TaskBook, task_id: str) -> TaskBook:
    """With the task done; one that was done before stays so. Raises ``UsageError`` for an unknown one."""
    if task_id in book.tasks and book.tasks[task_id].completed:
        return book
    _open_task(book, task_id)
    others = {other: task for other, task in book.tasks.items() if other != task_id}
    done = [other for other, task in others.items() if task.completed]
    for forgotten in done[: max(0, len(done) + 1 - COMPLETED_COUNT_MAX)]:
        del others[forgotten]
    queue = tuple([other for other in book.queue if other != task_id])
    return TaskBook({**others, task_id: Task(completed=True)}, queue)


def taken(book: TaskBook, worker_id: str) -> tuple[TaskBook, str | None]:
    """With the first task of the queue in that worker's hands, and which it is; None if there is none."""
    if not book.queue:
        return book, None
    return assigned(book, book.queue[0], worker_id), book.queue[0]


def moves_of(book: TaskBook, failed: Collection[str], healthy: Iterable[str]) -> tuple[Move, ...]:
    """Who gets the tasks of those who failed: for each task the worker with the fewest by then.

    Of two with equally many it is the first by name, so that the same book always gives the same moves. With
    nobody healthy they go into the queue.
    """
    load = {worker_id: loads(book)[worker_id] for worker_id in sorted(set(healthy) - set(failed))}
    moves = []
    for task_id, task in book.tasks.items():
        if task.worker_id in failed and task.worker_id is not None:
            target = min(load, key=load.__getitem__, default=None)
            moves.append(Move(task_id, task.worker_id, target))
            if target is not None:
                load[target] += 1
    return tuple(moves)


def moved(book: TaskBook, moves: Iterable[Move]) -> TaskBook:
    """After these moves. One whose task has another owner by now is not made."""
    changed = {
        move.task_id: Task(task.payload, move.target, None if move.target else move.source)
        for move in moves
        if (task := book.tasks.get(move.task_id)) and task.worker_id == move.source
    }
    return _replaced(book, changed)


def orphans_given(book: TaskBook, starting: Collection[str], takers: Collection[str]) -> TaskBook:
    """With the orphans of the queue given to those who start: to their own worker, else to that of the
    ``takers`` among them who has the fewest tasks."""
    load = {worker_id: loads(book)[worker_id] for worker_id in sorted({*starting} & {*takers})}
    changed = {}
    for task_id in book.queue:
        task = book.tasks[task_id]
        if task.orphan_of is None:
            continue
        own = task.orphan_of if task.orphan_of in starting else None
        target = own or min(load, key=load.__getitem__, default=None)
        if target is not None:
            changed[task_id] = Task(task.payload, target)
            if target in load:
                load[target] += 1
    return _replaced(book, changed)


def _open_task(book: TaskBook, task_id: str) -> Task:
    if task_id not in book.tasks:
        raise UsageError(f"there is no task {task_id!r}; add_task makes one")
    task = book.tasks[task_id]
    if task.completed:
        raise UsageError(f"task {task_id!r} is completed; work that is to be done again needs a new task_id")
    return task


def _replaced(book: TaskBook, changed: Mapping[str, Task]) -> TaskBook:
    """With these tasks as they are now, and the queue to match."""
    if not changed:
        return book
    kept = [task_id for task_id in book.queue if task_id not in changed]
    fresh = [task_id for task_id, task in changed.items() if task.worker_id is None and not task.completed]
    return TaskBook({**book.tasks, **changed}, (*kept, *fresh))
