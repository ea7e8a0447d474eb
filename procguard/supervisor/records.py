"""What a guard leaves in writing of each start, for the guard after it to adopt what still lives.

One file a worker. It is written twice: as an *intent* before the process exists, and again with the process's
identity (pid, start time, boot) once it does. A guard killed between the two has a worker that no record
names, but it carries the token of the intent in its environment. The first half of that token is the worker's
own for this directory, so even with the files lost (a full disk, a hand too quick) its process is found.

Each file is replaced as a whole, without fsync: a power failure ends the processes too, and the boot id
tells. A file that cannot be understood counts as lost. Writing is not what a worker's life depends on: a full
disk is reported, and the start goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

VERSION = 1
FOLDER = "processes"
KEY_LENGTH = 16
"""Of the first half of a token, in hexadecimal digits; the second half is as long."""
RECORD_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Record:
    """One start; ``pid`` and ``start_ticks`` are None as long as it is an intent. ``started_at``: Unix
    seconds."""

    worker_id: str
    token: str
    boot_id: str
    config_hash: str
    started_at: float
    pid: int | None = None
    start_ticks: int | None = None


_FIELDS = [field.name for field in fields(Record)]


class RecordBook:
    """The records in ``directory``/processes.

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._folder = directory / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._owner = os.path.realpath(directory)

    def key_of(self, worker_id: str) -> str:
        """With what each token of this worker begins, in this directory."""
        return hashlib.sha256(f"{self._owner}\0{worker_id}".encode()).hexdigest()[:KEY_LENGTH]

    def new_token(self, worker_id: str) -> str:
        """For one start."""
        return self.key_of(worker_id) + secrets.token_hex(KEY_LENGTH // 2)

    def write(self, record: Record) -> None:
        """Replace the worker's record; a disk that does not take it is reported."""
        path = f"{self._folder}/{record.worker_id}"
        content = json.dumps({"version": VERSION, **{name: getattr(record, name) for name in _FIELDS}})
        try:
            descriptor = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, content.encode())
            finally:
                os.close(descriptor)
            os.rename(f"{path}.tmp", f"{path}.json")
        except OSError as error:
            _log.error(
                "%s: no record of this start could be written to %s (%s); after a crash of the guard it "
                "will be looked for in /proc",
                record.worker_id, path, error.strerror,
            )  # fmt: skip

    def remove(self, worker_id: str) -> None:
        """Nothing of the worker lives any longer."""
        with contextlib.suppress(OSError):
            self._path(worker_id).unlink()

    def read_all(self) -> dict[str, Record]:
        """By worker, what can be understood."""
        found = (self._read(path) for path in sorted(self._folder.glob("*.json")))
        return {record.worker_id: record for record in found if record is not None}

    def _path(self, worker_id: str) -> Path:
        return self._folder / f"{worker_id}.json"

    def _read(self, path: Path) -> Record | None:
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                return parse(json.loads(file.read(RECORD_BYTES_MAX)))
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("%s: is no record of a process (%s); it counts as lost", path, error)
            return None


def parse(content: Any) -> Record:
    """A record from its JSON. Raises ``ValueError``."""
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"no record of version {VERSION}")
    texts = [content.get(name) for name in ("worker_id", "token", "boot_id", "config_hash")]
    numbers = [content.get(name) for name in ("pid", "start_ticks")]
    started_at = content.get("started_at")
    if not all(isinstance(text, str) for text in texts) or len(str(texts[1])) != 2 * KEY_LENGTH:
        raise ValueError("a field is missing or no text")
    if not all(number is None or (type(number) is int and number >= 0) for number in numbers):
        raise ValueError("pid or start_ticks is no number")
    if type(started_at) not in (int, float):
        raise ValueError("started_at is no number")
    worker_id, token, boot_id, config_hash = map(str, texts)
    return Record(worker_id, token, boot_id, config_hash, float(str(started_at)), *numbers)


def config_hash(config: Mapping[str, Any]) -> str:
    """Alike for configurations that are equal."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
