"""Whether the kernel has killed somebody for memory: what tells such a SIGKILL from one that a person sent.

The kernel counts its kills, in the control group that workers share with us where it is there to be read, for
the whole machine otherwise; the log that names the victim is for root alone. So the question that can be
answered is: has the count risen since we last looked? Asked after each SIGKILL that was not ours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_COUNTER = b"\noom_kill "
COUNTERS_BYTES_MAX = 64 << 10


class OomWatch:
    """Reads the first of ``files`` that counts kills for memory; never risen where none does.

    The question stands between a death and its news, so the file stays open (measured: 4 us).
    """

    def __init__(self, files: Sequence[Path] | None = None) -> None:
        self._descriptor = next(filter(None, map(_opened, counter_files() if files is None else files)), None)
        self._seen = self._now()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def has_risen(self) -> bool:
        """Since the last time this was asked."""
        before, self._seen = self._seen, self._now()
        return self._seen > before

    def _now(self) -> int:
        return 0 if self._descriptor is None else _count(self._descriptor) or 0


def counter_files(cgroups: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Where the kernel may count, the narrowest first: control groups of version 2, of version 1, the
    machine."""
    files = []
    try:
        lines = cgroups.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            files.append(Path(f"/sys/fs/cgroup{path}/memory.events"))
        elif "memory" in controllers.split(","):
            files.append(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    return [*files, Path("/proc/vmstat")]


def _opened(file: Path) -> int | None:
    """A descriptor of a file that counts."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if _count(descriptor) is None:
        os.close(descriptor)
        return None
    return descriptor


def _count(descriptor: int) -> int | None:
    try:
        content = b"\n" + os.pread(descriptor, COUNTERS_BYTES_MAX, 0)
        begin = content.index(_COUNTER) + len(_COUNTER)
        return int(content[begin:].split(b"\n", 1)[0])
    except (OSError, ValueError):  # it is none of those files, or the control group is gone
        return None
