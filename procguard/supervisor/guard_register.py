"""The register of the guards that run for this user: how a verb finds its guard when nobody names one.

A small file for each guard, in a folder that only its user can write (``env.guard_folders`` says which). A
file is a hint and no more: it counts as long as somebody listens at the socket that it names. So a guard that
was killed leaves nothing behind that misleads, and what it leaves is removed by the next guard that starts.
A folder that somebody else could write is neither read nor written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from procguard.supervisor.control_socket import is_private, listener_pid, make_private, short_name

ENTRIES_READ_MAX = 200
ENTRY_BYTES_MAX = 64 << 10
SUFFIX = ".json"


class Entry(NamedTuple):
    """A guard, as it presents itself: ``started_at`` in Unix seconds, paths absolute."""

    pid: int
    socket: str
    state_file: str
    config: str | None
    started_at: float


def register(entry: Entry, folders: Sequence[Path]) -> Path | None:
    """Write the entry into the first folder that takes it; where it is now, or None."""
    for folder in folders:
        path = folder / (short_name(Path(entry.state_file)) + SUFFIX)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        if not make_private(folder):
            continue
        try:
            temporary.write_text(json.dumps(entry._asdict()), encoding="utf-8")
            temporary.replace(path)
        except OSError:  # full, or read-only
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            continue
        return path
    return None


def running(folders: Sequence[Path]) -> list[Entry]:
    """The guards that listen, each once, the longest running first."""
    found = {entry.socket: entry for _, entry in _entries(folders) if _listens(entry)}
    return sorted(found.values(), key=lambda entry: entry.started_at)


def forget_dead(folders: Sequence[Path]) -> None:
    """Remove the entries of guards that no longer run."""
    for path, entry in _entries(folders):
        if not _listens(entry):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _listens(entry: Entry) -> bool:
    try:
        return listener_pid(Path(entry.socket)) is not None
    except PermissionError:
        return True


def _entries(folders: Sequence[Path]) -> Iterator[tuple[Path, Entry]]:
    for folder in folders:
        if not is_private(folder):
            continue
        for path in sorted(folder.glob(f"guard-*{SUFFIX}"))[:ENTRIES_READ_MAX]:
            if entry := _read(path):
                yield path, entry


def _read(path: Path) -> Entry | None:
    """None for what is no entry: another version's, or one whose writer was cut off."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(ENTRY_BYTES_MAX))
        config = content["config"]
        return Entry(
            int(content["pid"]),
            str(content["socket"]),
            str(content["state_file"]),
            None if config is None else str(config),
            float(content["started_at"]),
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
