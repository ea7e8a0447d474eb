"""The workers as the recovery deals with them: seen, stopped and started together, each with its tasks.

A worker learns its tasks when it starts, from ``PROCGUARD_TASKS`` (a JSON list of task ids) and from the
file that ``PROCGUARD_TASKS_FILE`` names (a JSON list of objects with ``task_id`` and ``payload``); never
while it runs. That is why two workers cannot both believe that a task is theirs: a task moves only between
the death of one process and the start of another. For the same reason a stop is told by signals, which
reach one process, and not by a command of the adapter, which reaches a name, and could be delivered to the
process that comes next.

Nothing here decides anything, and nothing raises because of a worker: what cannot be done is said in words.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from procguard.supervisor.exits import StopReason
from procguard.supervisor.plan import LIVING, WorkerView, start_order
from procguard.supervisor.restarts import RestartPolicy
from procguard.supervisor.state import StateManager
from procguard.supervisor.state_file import Document, WorkerRecord
from procguard.worker_config import WorkerConfig

_log = logging.getLogger(__name__)

TASKS_VARIABLE = "PROCGUARD_TASKS"
TASKS_FILE_VARIABLE = "PROCGUARD_TASKS_FILE"
TASKS_VARIABLE_BYTES_MAX = 100_000
"""Linux takes 128 KiB for one variable; a worker with longer a list has the file alone."""
FOLDER_SUFFIX = ".d"
"""Of the guard's folder beside its state file."""
STOPS_AT_ONCE_MAX = 64
POLL_S = 0.02
"""How often a worker is looked at that another one waits for."""


class Workers(Protocol):
    """What is needed of a ``ProcessManager``. Thread-safe."""

    def statuses(self) -> Mapping[str, Any]:
        """Each worker's status: ``state``, ``pid``, ``last_exit`` are attributes of it."""

    def start_worker(
        self, worker_id: str, *, delay_s: float = 0.0, environment: Mapping[str, str] | None = None
    ) -> bool:
        """True too when it runs already."""

    def stop_worker(
        self, worker_id: str, force: bool = False, *, reason: StopReason = StopReason.OPERATOR
    ) -> bool:
        """True when nothing of it lives any longer."""

    def stop_all_workers(
        self, force: bool = False, *, reason: StopReason = StopReason.OPERATOR
    ) -> Mapping[str, bool]:
        """All in parallel."""


ConfigOf = Callable[[str], WorkerConfig | None]
EnvironmentOf = Callable[[str], Mapping[str, str]]


class Crew:
    """All workers of a guard.

    Args:
        config_of: a worker's settings; None for one without any, which gets the defaults.
        environment_of: variables for a start besides those of the settings and the tasks.
        clock: monotonic seconds.
        pause: lets that many seconds pass.
    """

    def __init__(
        self,
        workers: Workers,
        state: StateManager,
        config_of: ConfigOf,
        environment_of: EnvironmentOf,
        clock: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        self._workers = workers
        self._state = state
        self.config_of = config_of
        self._environment_of = environment_of
        self._clock = clock
        self._pause = pause

    # --- seeing

    def pids(self) -> dict[str, int | None]:
        """The process of each worker, None where nothing lives."""
        return {w: s.pid if _word(s.state) in LIVING else None for w, s in self._workers.statuses().items()}

    def states(self) -> dict[str, str]:
        """The state of each worker."""
        return {w: _word(status.state) for w, status in self._workers.statuses().items()}

    def views(
        self, document: Document | None = None, states: Mapping[str, str] | None = None
    ) -> dict[str, WorkerView]:
        """Each worker, as the plan looks at it; as of now, or of that document and those states."""
        document = document or self._state.document
        states = self.states() if states is None else states
        return {worker_id: self._view(worker_id, state, document) for worker_id, state in states.items()}

    def _view(self, worker_id: str, state: str, document: Document) -> WorkerView:
        record = document.workers.get(worker_id, WorkerRecord())
        config = self.config_of(worker_id)
        return WorkerView(
            state=state,
            wanted=record.wanted,
            out=bool(record.left_out),
            takes_tasks=config is None or config.takes_tasks,
            may_restart=config is None or config.restart != "never",
            policy=_policy(config),
            restarts=record.restarts,
            start_due=record.start_due,
        )

    def context(self, failed: Iterable[str]) -> dict[str, Any]:
        """How it is now, for people."""
        statuses = self._workers.statuses()
        document = self._state.document
        living = sorted(w for w, status in statuses.items() if _word(status.state) in LIVING)
        told = {}
        for worker_id in failed:
            status = statuses[worker_id]
            exit_ = getattr(status.last_exit, "text", None)
            tasks = [name for name, task in document.tasks.items() if task.worker_id == worker_id]
            told[worker_id] = {"pid": status.pid, "last_exit": exit_, "tasks": tasks}
        return {"failed": told, "living": living}

    # --- stopping

    def stop(
        self, worker_ids: Iterable[str], reason: StopReason = StopReason.RECOVERY, force: bool = False
    ) -> set[str]:
        """Stop them all at once; who of them could not be stopped."""
        statuses = self._workers.statuses()
        asked = [worker_id for worker_id in worker_ids if worker_id in statuses]
        others = statuses.keys() - set(asked)
        if len(asked) > 1 and not any(_holds_something(statuses[other].state) for other in others):
            return self._stop_all(asked, reason, force)
        if len(asked) < 2:
            return {worker_id for worker_id in asked if not self._stop_one(worker_id, reason, force)}
        with ThreadPoolExecutor(min(len(asked), STOPS_AT_ONCE_MAX), "procguard-stop") as pool:
            stopped = pool.map(lambda worker_id: self._stop_one(worker_id, reason, force), asked)
            return {worker_id for worker_id, dead in zip(asked, stopped, strict=True) if not dead}

    def _stop_all(self, asked: Iterable[str], reason: StopReason, force: bool) -> set[str]:
        try:
            stopped = self._workers.stop_all_workers(force, reason=reason)
        except Exception:  # noqa: BLE001 - a bug of ours must not end the recovery; told here
            _log.exception("Workers could not be stopped")
            return set(asked)
        return {worker_id for worker_id in asked if not stopped.get(worker_id, True)}

    def _stop_one(self, worker_id: str, reason: StopReason, force: bool) -> bool:
        try:
            return self._workers.stop_worker(worker_id, force, reason=reason)
        except Exception:  # noqa: BLE001 - a bug of ours must not end the recovery; told here
            _log.exception("Worker %s could not be stopped", worker_id)
            return False

    # --- starting

    def start(
        self,
        due: Mapping[str, float],
        *,
        admits: Callable[[str], bool],
        starting: AbstractContextManager[object],
        deadline: float,
        interrupted: Callable[[], bool],
    ) -> dict[str, str]:
        """Start these workers, those first that others depend on; who could not be started, and why.

        Args:
            due: when each of them starts, at the earliest; monotonic seconds.
            admits: asked right before each start; False leaves it out.
            starting: held for each start, with the question before it.
            deadline: until then a worker waits for those it depends on; then it starts without.
            interrupted: asked while waiting; True ends it all, with the rest not started.
        """
        troubles: dict[str, str] = {}
        depends_on = {w: config.depends_on for w in self._known() if (config := self.config_of(w))}
        began: set[str] = set()
        for group in start_order(due, depends_on):
            needed = {n for w in group for n in depends_on.get(w, ()) if n in began or n not in due}
            if not self._await(needed, due, deadline, interrupted):
                return troubles
            for worker_id in group:
                with starting:
                    if admits(worker_id) and (why := self._start(worker_id, due[worker_id])):
                        troubles[worker_id] = why
            began |= set(group) - troubles.keys()
        return troubles

    def _known(self) -> list[str]:
        return list(self._workers.statuses())

    def _await(
        self,
        needed: Collection[str],
        due: Mapping[str, float],
        deadline: float,
        interrupted: Callable[[], bool],
    ) -> bool:
        """Until these run, or will not; False: interrupted."""
        until = {
            n: min(deadline, max(due.get(n, 0.0), self._clock()) + self._start_period(n)) for n in needed
        }
        while True:
            statuses = self._workers.statuses()
            coming = [n for n in needed if n in statuses and statuses[n].state in ("starting", "waiting")]
            now = self._clock()
            late = [n for n in coming if until[n] <= now]
            if len(late) == len(coming):
                if late:
                    names = ", ".join(sorted(late))
                    _log.warning("Starting what depends on %s, which does not run yet", names)
                return True
            if interrupted():
                return False
            self._pause(POLL_S)

    def _start_period(self, worker_id: str) -> float:
        config = self.config_of(worker_id)
        return config.start_period if config else 0.0

    def _start(self, worker_id: str, due: float) -> str:
        """Why it could not be started; empty if it could."""
        try:
            environment = {**self._environment_of(worker_id), **self._tasks_environment(worker_id)}
            delay_s = max(0.0, due - self._clock())
            started = self._workers.start_worker(worker_id, delay_s=delay_s, environment=environment)
        except Exception as error:  # noqa: BLE001 - a command that is gone, an adapter's bug: the chain tells it
            return f"could not be started: {error}"
        return "" if started else "could not be started"

    def _tasks_environment(self, worker_id: str) -> dict[str, str]:
        document = self._state.document
        tasks = {name: task for name, task in document.tasks.items() if task.worker_id == worker_id}
        line = json.dumps(list(tasks))
        environment = {TASKS_VARIABLE: line} if len(line) <= TASKS_VARIABLE_BYTES_MAX else {}
        if self._state.path is not None:
            content = [{"task_id": name, "payload": task.payload} for name, task in tasks.items()]
            path = tasks_path(self._state.path, worker_id)
            if _written(path, json.dumps(content, indent=1)):
                environment[TASKS_FILE_VARIABLE] = str(path)
        if not environment:
            _log.error(
                "%s starts without its tasks: too many for a variable, and no file for them", worker_id
            )
        return environment


def tasks_path(state_path: Path, worker_id: str) -> Path:
    """Where a worker reads its tasks: in the guard's folder, for other guards may have state files beside."""
    folder = state_path.with_name(state_path.name + FOLDER_SUFFIX)
    return folder / "tasks" / f"{quote(worker_id, safe='')}.json"


def _written(path: Path, text: str) -> bool:
    """Have that text in the file, as a whole; False if that cannot be, and then nobody reads an old one.

    A file that holds it already stays: to replace one costs a millisecond, between a death and a new life.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with suppress(FileNotFoundError, ValueError):
            if path.read_text(encoding="utf-8") == text:
                return True
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(opened, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(unfinished, path)
    except OSError as error:
        _log.error("%s: cannot be written (%s); its worker has its tasks from the variable", path, error)
        return False
    return True


def _policy(config: WorkerConfig | None) -> RestartPolicy:
    if config is None:
        return RestartPolicy()
    return RestartPolicy(
        config.max_restarts, config.restart_window, config.restart_delay, config.restart_delay_max
    )


def _holds_something(state: str) -> bool:
    """A stop would have something to do."""
    return _word(state) in LIVING or state == "waiting"


def _word(state: str) -> str:
    """``running`` of ``WorkerState.RUNNING``, which equals it but has another hash."""
    return str(getattr(state, "value", state))
