"""Whether the kernel has killed somebody for memory: what tells such a SIGKILL from one that a person sent.

The kernel counts its kills, in the control group that workers share with us where it is there to be read, for
the whole machine otherwise; the log that names the victim is for root alone. So the question that can be
answered is: has the count risen since we last looked? Asked after each SIGKILL that was not ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_COUNTER = "oom_kill"
COUNTERS_BYTES_MAX = 64 << 10


class OomWatch:
    """Reads the first of ``files`` that counts kills for memory; never risen where none does."""

    def __init__(self, files: Sequence[Path] | None = None) -> None:
        candidates = counter_files() if files is None else files
        self._file = next((file for file in candidates if _count(file) is not None), None)
        self._seen = self._now()

    def has_risen(self) -> bool:
        """Since the last time this was asked."""
        before, self._seen = self._seen, self._now()
        return self._seen > before

    def _now(self) -> int:
        return (_count(self._file) or 0) if self._file else 0


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


def _count(file: Path) -> int | None:
    try:
        with open(file, encoding="ascii") as counters:
            for line in counters.read(COUNTERS_BYTES_MAX).splitlines():
                name, _, value = line.partition(" ")
                if name == _COUNTER:
                    return int(value)
    except (OSError, ValueError):
        pass
    return None
