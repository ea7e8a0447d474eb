"""What can be seen of a worker's processes: CPU, memory, output, family; and of the machine they run on.

/proc is read here by hand, because every worker is sampled again and again: measured, 5 us for an open
``stat`` against 64 us for psutil's ``oneshot``, and 20 us for the family of a process against 1.8 ms for
psutil's ``children`` (which reads every process of the machine). psutil says what is asked rarely, the
machine's memory in a failure report, and stands in for /proc where there is none. Without it the guard
supervises all the same; ``blind_spots`` says in words what it cannot see.

Only looks: sends no signal, reaps nobody. What has gone or is forbidden is None, never an error. Linux
numbers are those of ``man 5 proc_pid_stat``.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from procguard.supervisor.health_words import Usage
from procguard.supervisor.procfs import tokens_of

try:
    import psutil as _psutil
except ImportError:  # the guard supervises without it
    _psutil = None  # type: ignore[assignment]  # a module, or none

FAMILY_COUNT_MAX = 1_000
"""Processes of one worker that are looked at."""
ANCESTORS_COUNT_MAX = 64
THREADS_COUNT_MAX = 64
"""Threads of one process that a report shows."""
_STAT_BYTES_MAX = 1024
_STATUS_BYTES_MAX = 1 << 16

_HAS_PROC = os.path.exists("/proc/self/stat")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
"""What this machine has."""

# Fields of /proc/PID/stat, counted from the first one after the command name.
_LETTER, _PPID, _SESSION, _RSS = 0, 1, 3, 21
_TIMES = slice(11, 15)  # its own user and system time, and those of its children that it has waited for
_FIELDS_WANTED = 22


def blind_spots() -> list[str]:
    """What cannot be seen here, a sentence each; empty when all can be."""
    missing: list[str] = []
    if not _HAS_PROC and _psutil is None:
        missing.append(
            "there is neither /proc nor psutil: CPU and memory of the workers cannot be seen, "
            "so an idle one is never taken for unresponsive; install psutil to change that"
        )
    if _psutil is None:
        missing.append(
            "psutil is not installed: failure reports do not show the machine's load and memory; "
            "install psutil to change that"
        )
    return missing


class Probe:
    """Looks at one worker's process, whose ``stat`` it holds open: so it never sees a later process of this
    pid."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            self._fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the process."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def usage(self) -> Usage | None:
        """What the process alone has used, with its children that have ended."""
        if self._fd is None:
            return None if _HAS_PROC else _psutil_usage(self.pid, whole_tree=False)
        try:
            fields = _fields(os.pread(self._fd, _STAT_BYTES_MAX, 0))
        except (OSError, ValueError):
            return None
        return Usage(_cpu_s(fields), _memory_bytes(fields))

    def tree_usage(self) -> Usage | None:
        """What the process and all its living descendants have used, and how far its output is."""
        if self._fd is None and not _HAS_PROC:
            return _psutil_usage(self.pid, whole_tree=True)
        usage = self.usage()
        if usage is None:
            return None
        cpu_s, memory_bytes = usage.cpu_s, usage.memory_bytes
        for pid in family(self.pid)[1:]:
            if (fields := _read_fields(pid)) is not None:
                cpu_s += _cpu_s(fields)
                memory_bytes += _memory_bytes(fields)
        return Usage(cpu_s, memory_bytes, _output(self.pid))


def family(pid: int) -> list[int]:
    """The process and its living descendants, parents first; bounded."""
    found = [pid]
    for parent in found:  # grows while it is read
        found += [child for child in _children(parent) if child not in found]
        if len(found) >= FAMILY_COUNT_MAX:
            break
    return found[:FAMILY_COUNT_MAX]


def owner_of(pid: int, workers: Mapping[int, str]) -> str | None:
    """The worker to whose process tree ``pid`` belongs: by its ancestors, its session or its start token.

    A descendant that left the tree (a daemon whose parent has gone) still has the session, which is the
    worker's own, or at least the token that its environment was born with.
    """
    for relative in lineage(pid):
        if relative in workers:
            return workers[relative]
    tokens = _tokens(pid)
    return next((name for root, name in workers.items() if tokens and _tokens(root) == tokens), None)


def lineage(pid: int) -> tuple[int, ...]:
    """The process, its ancestors and the leader of its session, as far as they can be seen."""
    fields = _read_fields(pid)
    return (*_ancestry(pid), *((int(fields[_SESSION]),) if fields is not None else ()))


def state_letter(pid: int) -> str | None:
    """The scheduler's letter for a process; None when there is no such process."""
    fields = _read_fields(pid)
    return fields[_LETTER].decode() if fields is not None else None


def threads(pid: int) -> list[dict[str, Any]]:
    """Where the kernel says each thread is: its name, state and the function it sleeps in; for a report."""
    found = []
    for thread in sorted(_numbers(_listed(f"/proc/{pid}/task")))[:THREADS_COUNT_MAX]:
        entry = f"/proc/{pid}/task/{thread}"
        fields = _fields_of(f"{entry}/stat")
        found.append(
            {
                "thread": thread,
                "name": _text(f"{entry}/comm"),
                "state": fields[_LETTER].decode() if fields else "?",
                "sleeps_in": _text(f"{entry}/wchan"),
            }
        )
    return found


def machine() -> dict[str, Any] | None:
    """Load, memory and disk of this machine, for a report; None without psutil."""
    if _psutil is None:
        return None
    memory, swap = _psutil.virtual_memory(), _psutil.swap_memory()
    return {
        "load": list(os.getloadavg()),
        "cpus": os.cpu_count(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "swap_used_bytes": swap.used,
    }


def catches(pid: int, signal_number: int) -> bool:
    """Whether the process has something of its own for this signal (``SigCgt``), so that it will not die of
    it."""
    for line in _content(f"/proc/{pid}/status", _STATUS_BYTES_MAX).splitlines():
        name, _, value = line.partition(b":")
        if name == b"SigCgt":
            return bool(int(value, 16) >> (signal_number - 1) & 1)
    return False


def _output(pid: int) -> tuple[int, ...]:
    """Numbers that change when the process, or one that shares its output, writes.

    The sizes of the files that are its stdout and stderr; where neither is a file, the bytes that the
    process itself has written to anything.
    """
    numbers: tuple[int, ...] = ()
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{pid}/fd/{fd}")
            if stat.S_ISREG(status.st_mode):
                numbers += (status.st_ino, status.st_size)
    if numbers:
        return numbers
    for line in _content(f"/proc/{pid}/io", _STAT_BYTES_MAX).splitlines():
        if line.startswith(b"wchar:"):
            return (int(line[6:]),)
    return ()


def _psutil_usage(pid: int, *, whole_tree: bool) -> Usage | None:
    if _psutil is None:
        return None
    try:
        process = _psutil.Process(pid)
        processes = [process, *(process.children(recursive=True) if whole_tree else ())]
        times = [each.cpu_times() for each in processes]
        memory_bytes = sum(each.memory_info().rss for each in processes)
    except _psutil.Error:
        return None
    return Usage(sum(each.user + each.system for each in times), memory_bytes)


def _ancestry(pid: int) -> Iterator[int]:
    for _ in range(ANCESTORS_COUNT_MAX):
        if pid <= 1:
            return
        yield pid
        fields = _read_fields(pid)
        if fields is None:
            return
        pid = int(fields[_PPID])


def _children(pid: int) -> list[int]:
    """Each thread has a list of its own of the children that it has made."""
    found: list[int] = []
    for thread in _listed(f"/proc/{pid}/task"):
        found += _numbers(_content(f"/proc/{pid}/task/{thread}/children", 1 << 16).split())
    return found


def _tokens(pid: int) -> tuple[str, ...]:
    with contextlib.suppress(OSError):  # no descriptor is left: then it is not known whose it is
        return tokens_of(pid) or ()
    return ()


def _cpu_s(fields: list[bytes]) -> float:
    return sum(map(int, fields[_TIMES])) / _TICKS_PER_S


def _memory_bytes(fields: list[bytes]) -> int:
    return int(fields[_RSS]) * _PAGE_BYTES


def _read_fields(pid: int) -> list[bytes] | None:
    return _fields_of(f"/proc/{pid}/stat")


def _fields_of(path: str) -> list[bytes] | None:
    try:
        return _fields(_content(path, _STAT_BYTES_MAX))
    except ValueError:
        return None


def _fields(content: bytes) -> list[bytes]:
    """The command name may itself hold blanks and brackets; nothing after it does. ``ValueError`` if
    empty."""
    return content[content.rindex(b")") + 2 :].split(b" ", _FIELDS_WANTED)


def _content(path: str, bytes_max: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(bytes_max) or b""
    except OSError:
        return b""


def _text(path: str) -> str:
    return _content(path, _STAT_BYTES_MAX).decode(errors="replace").strip()


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _numbers(words: list[str] | list[bytes]) -> list[int]:
    return [int(word) for word in words]
