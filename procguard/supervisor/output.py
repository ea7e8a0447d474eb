"""What workers print: straight into files, which begin anew before they grow too large.

A worker writes into its file by itself (O_APPEND), never through a pipe of ours: it costs us nothing, it
cannot stall on us, and it goes on when the guard is killed. So a file cannot be *renamed* away from under its
writer; its oldest part is copied to ``x.log.1`` and then cut off in place. Where the file system can take a
range out of the front of a file (ext4, xfs), not a byte is lost; elsewhere the file is truncated, and what is
written between the last copied byte and that is lost: microseconds' worth.

A thread of its own looks at the sizes, at least once a second and earlier when a file grows fast; copying
tens of megabytes must not delay the news of a death. A full disk is reported: then old files give way, and
what is cut off is not kept. No worker is stopped for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import stat as stat_bits
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from procguard.errors import UsageError

_log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
LOOK_INTERVAL_S_MIN = 0.05
COPY_BYTES = 8 << 20
CATCH_UP_ROUNDS_MAX = 100
REPORT_INTERVAL_S = 60.0
JOIN_TIMEOUT_S = 10.0

_FALLOC_FL_COLLAPSE_RANGE = 0x08


@dataclass
class OutputFile:
    """One file that a worker writes into.

    ``begin`` is where the present run's output begins, from the file's start; negative when that much of it
    is in the first backup already.
    """

    path: Path
    bytes_max: int
    backups: int
    begin: int = 0
    size_seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the file is cut, so that nobody reads it meanwhile."""


class Outputs:
    """The output files of all workers, and the thread that keeps them short (from the first file on).

    Thread-safe; nothing but ``tail`` and ``close`` waits for a rotation.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._files: dict[Path, OutputFile] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._silent_until: dict[str, float] = {}

    def open(self, path: Path, *, bytes_max: int, backups: int) -> int:
        """Open a file for a new run to append to, and keep it short from now on; the caller closes it.

        Raises:
            UsageError: it cannot be written; names the path and the remedy.
        """
        try:
            descriptor = _open_for_appending(path)
        except OSError as error:
            if error.errno in _NO_SPACE:
                self._report(str(path), f"{path}: no space for a worker's output; it is thrown away")
                return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            raise UsageError(
                f"log_file: {str(path)!r} cannot be written ({error.strerror}); "
                "name one that this user can write"
            ) from None
        status = os.fstat(descriptor)
        if stat_bits.S_ISREG(status.st_mode):
            self.keep(path, bytes_max=bytes_max, backups=backups, descriptor=descriptor)
        return descriptor

    def keep(self, path: Path, *, bytes_max: int, backups: int, descriptor: int | None = None) -> None:
        """Keep this file short; with its ``descriptor``, what is in it by now is an earlier run's."""
        with self._lock:
            begin = 0 if descriptor is None else os.fstat(descriptor).st_size
            before = self._files.get(path)
            file = before or OutputFile(path, bytes_max, backups)
            file.bytes_max, file.backups, file.begin = bytes_max, backups, begin
            self._files[path] = file
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="procguard-output", daemon=True)
                self._thread.start()

    def forget(self, path: Path) -> None:
        """Nobody writes into it any more."""
        with self._lock:
            self._files.pop(path, None)

    def tail(self, path: Path, bytes_max: int) -> bytes:
        """The last bytes of the present run's output, as far as they are kept."""
        with self._lock:
            file = self._files.get(path) or OutputFile(path, 0, 0)
        with file.lock:
            size = _size(path)
            wanted = max(0, min(bytes_max, size - file.begin))
            last = _last_bytes(path, min(wanted, size))
            return _last_bytes(_backup(path, 1), wanted - len(last)) + last if wanted > size else last

    def close(self) -> None:
        """End the thread."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(JOIN_TIMEOUT_S)

    def look(self, elapsed_s: float) -> float:
        """Cut what has grown too large; in how many seconds to look again. ``elapsed_s``: since the last
        look."""
        with self._lock:
            files = list(self._files.values())
        pause_s = LOOK_INTERVAL_S
        for file in files:
            size = _size(file.path)
            grown = size - file.size_seen
            if size > file.bytes_max:
                self._cut(file)
                size = _size(file.path)
            pause_s = min(pause_s, next_look_s(size, grown, elapsed_s, file.bytes_max))
            file.size_seen = size
        self._look_at_space({file.path.parent for file in files})
        return pause_s

    def _run(self) -> None:
        pause_s, looked_at = LOOK_INTERVAL_S, self._clock()
        while not self._ending.wait(pause_s):
            now = self._clock()
            try:
                pause_s = self.look(now - looked_at)
            except Exception:  # noqa: BLE001 - a bug of ours: told, and the loop goes on
                _log.exception("A bug in ProcGuard: looking after output files failed; please report it")
                pause_s = LOOK_INTERVAL_S
            looked_at = now

    def _cut(self, file: OutputFile) -> None:
        try:
            with file.lock, _opened(file.path, os.O_RDWR) as source:
                try:
                    self._rotate(file, source)
                except OSError as error:
                    self._report(
                        str(file.path),
                        f"{file.path}: could not be rotated ({error.strerror}); its oldest part is given up",
                    )
                    with contextlib.suppress(OSError):
                        _unfinished(file.path).unlink()
                    if error.errno in _NO_SPACE:
                        _drop_oldest_backup(file)
                    self._take_off(file, source, os.fstat(source).st_size)
        except OSError as error:
            self._report(str(file.path), f"{file.path}: cannot be kept short: {error.strerror}")

    def _rotate(self, file: OutputFile, source: int) -> None:
        status = os.fstat(source)
        block = max(status.st_blksize, 4096)
        whole = (status.st_size - 1) // block * block
        if not file.backups:
            self._take_off(file, source, whole)
            return
        unfinished = _unfinished(file.path)
        with _opened(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as target:
            _copy(source, target, 0, whole)
            if not self._collapse(file, source, whole):
                self._truncate(file, source, target, whole)
        _shift_backups(file.path, file.backups)
        unfinished.rename(_backup(file.path, 1))

    def _take_off(self, file: OutputFile, source: int, size: int) -> None:
        """Cut so many bytes off the front, or all there is."""
        if not self._collapse(file, source, size // 4096 * 4096):
            with self._lock:
                file.begin -= os.fstat(source).st_size
                os.ftruncate(source, 0)
        file.begin = max(0, file.begin)  # what was cut off is in no backup

    def _collapse(self, file: OutputFile, source: int, size: int) -> bool:
        with self._lock:
            if not _collapse_front(source, size):
                return False
            file.begin -= size
            return True

    def _truncate(self, file: OutputFile, source: int, target: int, copied: int) -> None:
        for _ in range(CATCH_UP_ROUNDS_MAX):
            size = os.fstat(source).st_size
            if size <= copied:
                break
            _copy(source, target, copied, size - copied)
            copied = size
        with self._lock:
            os.ftruncate(source, 0)
            file.begin -= copied

    def _look_at_space(self, folders: set[Path]) -> None:
        for folder in folders:
            with contextlib.suppress(OSError):
                if os.statvfs(folder).f_bavail == 0:
                    self._report(f"space {folder}", f"{folder}: the disk is full; what workers print is lost")

    def _report(self, about: str, text: str) -> None:
        """Say it at most once a minute."""
        now = self._clock()
        if now >= self._silent_until.get(about, now):
            self._silent_until[about] = now + REPORT_INTERVAL_S
            _log.error("%s", text)


def next_look_s(size: int, grown: int, elapsed_s: float, bytes_max: int) -> float:
    """When to look again at a file that grew by so much in ``elapsed_s``: before it is too large."""
    if grown <= 0 or elapsed_s <= 0:
        return LOOK_INTERVAL_S
    room_s = max(0, bytes_max - size) / (grown / elapsed_s)
    return min(LOOK_INTERVAL_S, max(LOOK_INTERVAL_S_MIN, room_s))


_NO_SPACE = {28, 122}  # ENOSPC, EDQUOT


def _open_for_appending(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A FIFO without a reader must not make us wait for one.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags, 0o644)
    os.set_blocking(descriptor, True)
    return descriptor


def _copy(source: int, target: int, begin: int, size: int) -> None:
    os.lseek(target, begin, os.SEEK_SET)
    end = begin + size
    while begin < end:
        sent = os.sendfile(target, source, begin, min(COPY_BYTES, end - begin))
        if not sent:  # somebody else has truncated it
            return
        begin += sent


def _collapse_front(descriptor: int, size: int) -> bool:
    """Take whole blocks out of the front of a file; False where that cannot be done."""
    if not 0 < size < os.fstat(descriptor).st_size:
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fallocate = libc.fallocate
    except (OSError, AttributeError):  # another libc
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(descriptor, _FALLOC_FL_COLLAPSE_RANGE, 0, size) == 0)


def _shift_backups(path: Path, backups: int) -> None:
    for number in range(backups - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            _backup(path, number).rename(_backup(path, number + 1))


def _drop_oldest_backup(file: OutputFile) -> None:
    for number in range(file.backups, 0, -1):
        with contextlib.suppress(OSError):
            _backup(file.path, number).unlink()
            return


def _backup(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # somebody has removed it
        return 0


def _last_bytes(path: Path, count: int) -> bytes:
    if count <= 0:
        return b""
    try:
        with _opened(path, os.O_RDONLY) as descriptor:
            return os.pread(descriptor, count, max(0, os.fstat(descriptor).st_size - count))
    except OSError:
        return b""


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
