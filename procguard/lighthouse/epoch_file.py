"""The state directory: it remembers the epoch, so that each start of a lighthouse has a greater one.

``epoch = max(stored + 1, wall clock in ms)``: the file is right even if the clock was set back, the clock is
right even if the file was lost. It is on the disk before the ports are bound, so no message ever carries an
epoch that a crash could make us forget.

A lock on the directory is held for as long as the lighthouse runs; the kernel drops it however the process
ends. Two lighthouses on one directory would give the same incarnations to different processes.

A file that cannot be understood is set aside under another name, never overwritten, and the start counts as a
restart. A file of a newer version is left alone: it may mean more than its epoch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

from procguard.errors import StateError
from procguard.messages import EPOCH_MAX

VERSION = 1
FILE_NAME = "epoch.json"
LOCK_NAME = "lock"
FILE_BYTES_MAX = 4096


def default_directory(port: int, environ: Mapping[str, str]) -> Path | None:
    """Where a lighthouse on ``port`` keeps its epoch if it is not told; None if this user has no home."""
    base = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: a relative one is to be ignored
        base = os.path.expanduser("~/.local/state")
    return Path(base, "procguard", f"lighthouse-{port}") if os.path.isabs(base) else None


class EpochFile:
    """A locked state directory, and the epoch of this start in it, already on the disk.

    Args:
        directory: made if it does not exist.
        wall_clock_ms: milliseconds since 1970.

    Raises:
        StateError: the directory cannot be used; says why, and what to do.
    """

    epoch: int
    restarted: bool
    """An earlier lighthouse kept its epoch here."""
    set_aside: Path | None = None
    """What a file that could not be understood is called now."""

    def __init__(self, directory: Path, wall_clock_ms: int) -> None:
        self._directory = directory
        self.path = directory / FILE_NAME
        with self._or_state_error():
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        try:
            stored = self._read(wall_clock_ms)
            self.restarted = stored is not None or self.set_aside is not None
            self.epoch = first_epoch(wall_clock_ms, stored)
            self.persist(self.epoch)
        except BaseException:
            self.close()
            raise

    def persist(self, epoch: int) -> None:
        """Make ``epoch`` the stored one, durably. Raises ``StateError``."""
        content = json.dumps({"version": VERSION, "epoch": epoch}).encode() + b"\n"
        unfinished = self.path.with_suffix(".tmp")
        with self._or_state_error():
            with open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self.path)
            with _descriptor(self._directory, os.O_RDONLY | os.O_DIRECTORY) as directory:
                os.fsync(directory)  # or a power cut may undo the rename

    def close(self) -> None:
        """Let another lighthouse use the directory."""
        os.close(self._lock)

    def _locked(self) -> int:
        path = self._directory / LOCK_NAME
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode(errors="replace") or "unknown"
            os.close(lock)
            raise StateError(
                f"{self._directory}: in use by another lighthouse (pid {holder}); stop that one, "
                "or give this one a --state-dir of its own"
            ) from None
        except OSError:
            os.close(lock)
            raise
        return lock

    def _read(self, wall_clock_ms: int) -> int | None:
        """The stored epoch; None if there is none, or none that can be understood."""
        with self._or_state_error():
            try:
                # A FIFO of this name must not make us wait for a writer.
                with _descriptor(self.path, os.O_RDONLY | os.O_NONBLOCK) as file:
                    content = os.read(file, FILE_BYTES_MAX + 1)
            except FileNotFoundError:
                return None
        epoch = self._understood(content)
        if epoch is None:
            with self._or_state_error():
                self.set_aside = self._renamed(wall_clock_ms)
        return epoch

    def _understood(self, content: bytes) -> int | None:
        try:
            stored = json.loads(content) if len(content) <= FILE_BYTES_MAX else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(stored, dict) or type(version := stored.get("version")) is not int:
            return None
        if version > VERSION:
            raise StateError(
                f"{self.path}: written by a newer ProcGuard (version {version} of the file, this one knows "
                f"{VERSION}); start that one, or give this one another --state-dir"
            )
        epoch = stored.get("epoch") if version == VERSION else None
        # The greatest epoch has no next one: only a damaged file, or a lying peer, brings us there.
        return epoch if type(epoch) is int and 0 < epoch < EPOCH_MAX else None

    def _renamed(self, wall_clock_ms: int) -> Path:
        names = (self.path.with_name(f"{FILE_NAME}.broken-{number}") for number in count(wall_clock_ms))
        free = next(name for name in names if not os.path.lexists(name))
        return self.path.rename(free)

    @contextlib.contextmanager
    def _or_state_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"{self._directory}: the lighthouse cannot keep its epoch here ({error.strerror}); "
                "--state-dir must name a directory that this user can write to, with space left"
            ) from None


def first_epoch(wall_clock_ms: int, stored: int | None = None) -> int:
    """The epoch of a start, given the last one that is known of."""
    clock = wall_clock_ms if wall_clock_ms < EPOCH_MAX else 0  # a clock beyond the year 2109 says nothing
    return max((stored or 0) + 1, clock)


@contextlib.contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
