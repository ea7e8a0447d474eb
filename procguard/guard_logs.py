"""What a worker wrote: the last lines of its files, and what is added to them, across rotation.

The files are the guard's, written by the worker itself; they are read here, by whoever wants to see them,
and cost the guard nothing. A file grows too large and begins anew in one of three ways: its front is
copied to ``x.log.1`` and cut off, or all of it is, or it is renamed and another one takes its name. The
last shows in the inode. For the others, the copies (``x.log.2`` is the older one) and the file are
together what the file was: so when the last bytes that were read no longer stand where they stood, they
are looked for at the same place in all of them together. Where they are not found either, because more
was cut between two looks than is kept, what the file still has is shown.

Reads regular files only; never writes, never waits.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

BLOCK_BYTES = 64 << 10
TAIL_BYTES_MAX = 16 << 20
READ_BYTES_MAX = 4 << 20
"""At one look; what is more comes with the next."""
LOST_LOOKS_MAX = 10
"""For how many looks a place that is in neither of the two may come up yet: the copy gets its name last."""
CUTS_DURING_TAIL_MAX = 3
COPIES_COUNT_MAX = 100
"""Between two looks."""
REMEMBERED_BYTES = 256
"""Of what was read last: enough to know the place again."""


def rotated(path: Path, number: int = 1) -> Path:
    """Where the part before the last rotation is, or the one before that (2), and so on."""
    return path.with_name(f"{path.name}.{number}")


def _count_lines(content: bytes) -> int:
    """The last one may not have ended."""
    return content.count(b"\n") + (bool(content) and not content.endswith(b"\n"))


def _tail_of(fd: int, end: int, count: int) -> bytes:
    if count <= 0:
        return b""
    held = b""
    at = end
    while at > 0 and len(held) < TAIL_BYTES_MAX and _count_lines(held) <= count:
        size = min(BLOCK_BYTES, at)
        at -= size
        held = os.pread(fd, size, at) + held
    lines = held.splitlines(keepends=True) if b"\r" not in held else _split(held)
    return b"".join(lines[-count:])


def _split(content: bytes) -> list[bytes]:
    """At line ends only: a progress bar's carriage returns are within a line."""
    parts = content.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor, or None where there is no regular file that we may read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        yield fd if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _identity(path: Path) -> object:
    """Another one for each file that has had this name, and for each change of it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_across(parts: Sequence[int], size: int, at: int) -> bytes:
    """From files that are seen as one, one after the other."""
    found = b""
    for fd in parts:
        if len(found) < size:
            found += os.pread(fd, size - len(found), at)
        at = max(0, at - os.fstat(fd).st_size)
    return found


class Following:
    """What is added to a file, look by look.

    Args:
        path: need not exist yet. What is in it counts as new, unless ``tail`` is called first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._at = 0
        """The place up to which this file has been read."""
        self._last = b""
        """What stands in this file before our place, its end at least."""
        self._copy: object = None
        """Which copy there was when all before our place in this file had been read."""
        self._lost_looks = 0
        self._open()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None

    def tail(self, count: int) -> bytes:
        """The last ``count`` lines, ``TAIL_BYTES_MAX`` at most; what comes after them is new.

        Where the file has fewer, because it has just begun anew, those before come from its predecessor.
        """
        lines = b""
        for _ in range(CUTS_DURING_TAIL_MAX):
            if self._fd is None:
                break
            end = os.fstat(self._fd).st_size
            lines = _tail_of(self._fd, end, count)
            missing = count - _count_lines(lines)
            if missing > 0 and len(lines) == end:
                with _opened(rotated(self.path)) as copy:
                    if copy is not None:
                        lines = _tail_of(copy, os.fstat(copy).st_size, missing) + lines
            self._stand_at(end)
            if self._copy == _identity(rotated(self.path)):
                break
            self._copy = _identity(rotated(self.path))
        return lines

    def read(self) -> bytes:
        """What is new, in order, nothing twice; empty if nothing is."""
        if self._fd is None and not self._open():
            return b""
        if self._renamed():
            new = self._forward()
            if new:
                return new
            self.close()
            return self._forward() if self._open() else b""
        if _identity(rotated(self.path)) != self._copy or not self._still_there():
            return self._after_a_cut()
        self._lost_looks = 0
        return self._forward()

    def _open(self) -> bool:
        with _opened(self.path) as fd:
            self._fd = None if fd is None else os.dup(fd)
        self._at, self._last, self._copy = 0, b"", _identity(rotated(self.path))
        return self._fd is not None

    def _stand_at(self, at: int) -> None:
        assert self._fd is not None
        known = min(at, REMEMBERED_BYTES)
        self._at, self._last = at, os.pread(self._fd, known, at - known)

    def _forward(self) -> bytes:
        assert self._fd is not None
        new = os.pread(self._fd, READ_BYTES_MAX, self._at)
        self._at += len(new)
        self._last = (self._last + new)[-REMEMBERED_BYTES:]
        return new

    def _still_there(self) -> bool:
        """Whether what was read last stands where it stood."""
        assert self._fd is not None
        return os.pread(self._fd, len(self._last), self._at - len(self._last)) == self._last

    def _after_a_cut(self) -> bytes:
        """Go on in the new copies and the file that is left, seen as one. A copy gets its name last."""
        assert self._fd is not None
        latest = _identity(rotated(self.path))
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(_opened(path)) for path in self._copies_since()]
            copies = [fd for fd in opened if fd is not None]
            before = self._at - len(self._last)
            if copies and _read_across([*copies, self._fd], len(self._last), before) == self._last:
                rest = _read_across(copies, TAIL_BYTES_MAX, self._at)
                self._at = max(0, self._at - sum(os.fstat(fd).st_size for fd in copies))
                self._last = self._last[-self._at :] if self._at else b""
                self._copy, self._lost_looks = latest, 0
                return rest + self._forward()
        if self._still_there():  # another copy, but nothing was cut
            self._copy = latest
            return self._forward()
        self._lost_looks += 1
        if self._lost_looks < LOST_LOOKS_MAX:
            return b""
        self._at, self._last, self._copy, self._lost_looks = 0, b"", latest, 0
        return self._forward()

    def _copies_since(self) -> list[Path]:
        """Those made after the one that we know, the oldest first."""
        found: list[Path] = []
        for number in range(1, COPIES_COUNT_MAX + 1):
            path = rotated(self.path, number)
            identity = _identity(path)
            if identity is None or identity == self._copy:
                break
            found.insert(0, path)
        return found

    def _renamed(self) -> bool:
        assert self._fd is not None
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        here = os.fstat(self._fd)
        return (now.st_dev, now.st_ino) != (here.st_dev, here.st_ino)


class WholeLines:
    """Bytes as they come, whole lines as they go: for two files that share a terminal."""

    def __init__(self) -> None:
        self._begun = b""

    def add(self, content: bytes) -> list[bytes]:
        """Those that have ended, without their ends."""
        *whole, self._begun = (self._begun + content).split(b"\n")
        if len(self._begun) > READ_BYTES_MAX:  # something without lines: in pieces
            whole.append(self._begun)
            self._begun = b""
        return whole

    def rest(self) -> bytes:
        """What has begun and not ended; it is given once."""
        begun, self._begun = self._begun, b""
        return begun
