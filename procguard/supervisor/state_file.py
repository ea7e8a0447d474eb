"""The state file: what a guard must not forget, as one JSON document that is whole at every moment.

Workers, tasks, the queue and the journal stand in one file on purpose: a write that moves tasks and ticks off
the journal's step is one rename, so nobody ever reads the one without the other. The content is on the disk
before the rename. The rename itself is on the disk only where the writer asks for it, because that costs
twenty times as much and is needed for what must outlive a power failure (whose a task is), not for the
progress of a chain, whose processes a power failure ends as well.

What cannot be understood is set aside under another name, never overwritten. What a newer version has written
is left alone: it may mean more than we can see. A lock file beside it admits one guard; it is not the state
file itself, because that one is replaced with every write.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from procguard.errors import StateError
from procguard.supervisor import tasks
from procguard.supervisor.plan import Journal, Step
from procguard.supervisor.restarts import Restarts
from procguard.supervisor.tasks import Task

VERSION = 1
FILE_BYTES_MAX = 256 << 20
LEFT_OUT_FINISHED = "it has finished"
"""In ``WorkerRecord.left_out``: it ended in good order, and the next guard does not start it either, should
this one be killed."""
REMEDY = "state_file must name a file in a directory that this user can write to, with space left"


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What is remembered of a worker. Never changed in place."""

    wanted: bool | None = None
    """True: it is to run; False: an operator has stopped it; None: nobody has said so."""
    left_out: str = ""
    """Why no chain starts it until an operator does; empty: it takes part."""
    exhausted: bool = False
    """It was left out because it failed too often."""
    start_due: float | None = None
    """A start that may not have happened yet; monotonic seconds of ``Document.boot_id``."""
    restarts: Restarts = field(default_factory=Restarts)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What ``update_worker_state`` has been told."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The recovery has come to its end."""

    reason: str
    exit_code: int
    at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Document:
    """Everything, as it stands in the file. Never changed in place."""

    version: int = VERSION
    boot_id: str = ""
    """The boot whose monotonic clock its times are of."""
    workers: Mapping[str, WorkerRecord] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    task_queue: tuple[str, ...] = ()
    recovery: Journal | None = None
    gave_up: GaveUp | None = None
    chains_count: int = 0
    """Chains that were begun, ever."""


_DOCUMENT = TypeAdapter(Document)
_VERSIONED = TypeAdapter(dict[str, Any])


def encoded(document: Document) -> bytes:
    """The document as the file holds it."""
    return _DOCUMENT.dump_json(document, indent=1) + b"\n"


def check(document: Document) -> None:
    """Raise ``ValueError`` if its parts do not fit together."""
    tasks.check(tasks.TaskBook(document.tasks, document.task_queue))
    for worker_id, record in document.workers.items():
        if not all(map(isfinite, [*record.restarts.due, record.start_due or 0.0])):
            raise ValueError(f"workers.{worker_id}: a time that is none")
    journal = document.recovery
    if journal is None:
        return
    if not (0 <= journal.at <= len(journal.steps) and {Step.STOP, Step.RESTART} <= set(journal.steps)):
        raise ValueError(
            f"recovery: step {journal.at} of {len(journal.steps)} is none that a chain can be at"
        )


class StateFile:
    """Reads and writes the document at ``path``. Not thread-safe: its one user has a lock."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.realpath(path))  # a rename would put the file in the place of a link to it
        self._lock: int | None = None
        with self._or_state_error("cannot be kept here"):
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def lock(self) -> None:
        """Keep all others out until ``close``; the kernel ends it however this process ends.

        Raises:
            StateError: another process holds it; says which.
        """
        if self._lock is not None:
            return
        path = self._beside("lock")
        with self._or_state_error("cannot be locked"):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise StateError(
                f"{self.path}: in use by another guard (pid {holder}); stop that one, or give this one a "
                "state.state_file of its own"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: we hold the lock, only our pid is not told
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def close(self) -> None:
        """Let another guard use the file."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, on_broken: Callable[[Path, str], None]) -> Document | None:
        """The document; None if there is none, or none that can be understood.

        Args:
            on_broken: told under which name such a file stands now, and what is wrong with it.

        Raises:
            StateError: it cannot be read, or a newer version has written it.
        """
        with self._or_state_error("cannot be read"):
            content = self._content()
        if content is None:
            return None
        try:
            return self._understood(content)
        except ValueError as error:
            with self._or_state_error("is broken, and cannot be set aside"):
                aside = self._set_aside()
            on_broken(aside, str(error))
            return None

    def write(self, content: bytes, durable: bool) -> None:
        """Replace the document as a whole.

        Args:
            durable: also a power failure right after this does not bring the old one back.

        Raises:
            StateError: it could not be written; the old one is still there.
        """
        unfinished = self._beside("tmp")
        with self._or_state_error("cannot be written"):
            with open(
                os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
            ) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self.path)
            if durable:
                self._sync_directory()

    def _sync_directory(self) -> None:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _content(self) -> bytes | None:
        try:
            # A FIFO of this name must not make us wait for a writer.
            opened = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise StateError(f"{self.path}: is not a file; {REMEDY}")
        with open(opened, "rb") as file:
            return file.read(FILE_BYTES_MAX + 1)

    def _understood(self, content: bytes) -> Document:
        """Raises ``ValueError`` that says what is wrong, or ``StateError`` for a newer version."""
        if len(content) > FILE_BYTES_MAX:
            raise ValueError(f"longer than {FILE_BYTES_MAX} bytes")
        try:
            version = _VERSIONED.validate_json(content).get("version")
            if type(version) is int and version > VERSION:
                raise StateError(
                    f"{self.path}: written by a newer ProcGuard (version {version} of the file, this one "
                    f"knows {VERSION}); start that one, or give this one another state.state_file"
                )
            if type(version) is not int or version != VERSION:
                raise ValueError(f"version {version!r} is none that was ever written")
            document = _DOCUMENT.validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise ValueError(f"{place}: {first['msg']}") from None
        check(document)
        return document

    def _set_aside(self) -> Path:
        free = next(name for n in count(1) if not os.path.lexists(name := self._beside(f"broken-{n}")))
        return self.path.rename(free)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    @contextlib.contextmanager
    def _or_state_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(f"{self.path}: {what} ({error.strerror}); {REMEDY}") from None
