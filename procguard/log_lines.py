"""A server's log on stderr: a line an event, as text for people or as a JSON object for machines.

A thread of its own writes the lines. A terminal stopped with Ctrl-S, or a pipe that nobody reads, blocks
whoever writes to it, and a lighthouse that is blocked is no lighthouse. What does not fit the bounded queue
is lost, and the next line that fits says how many were.

Texts hold what peers chose, a replica's name for example: a line never breaks or steers the terminal because
of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from queue import Full, Queue

from procguard.errors import StateError

LINES_WAITING_MAX = 10_000
LAST_LINES_S = 1.0
"""How long the process stays for the lines that are not written yet."""


def printable(text: str) -> str:
    """The text with everything that would move a cursor or end a line shown as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class TextLines(logging.Formatter):
    """``2026-11-20 09:56:03.512 WARNING Replica 2 failed: killed by SIGKILL ...`` in local time."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        line = f"{when} {record.levelname:<7} {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One object a line: ``ts`` (UTC), ``level``, ``event``, and those of the event's fields that it has."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).replace(tzinfo=None)
        line: dict[str, object] = {
            "ts": when.isoformat("T", "milliseconds") + "Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields: dict[str, object] = getattr(record, "fields", {})
        line.update({key: value for key, value in fields.items() if value != ""})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class LineWriter(logging.Handler):
    """Queues lines without ever waiting; its thread writes them to a file descriptor."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lines: Queue[bytes | None] = Queue(LINES_WAITING_MAX)
        self._lost = 0
        self._thread = threading.Thread(target=self._write_all, name="procguard-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by ``logging``, under this object's lock."""
        if self._lost and self._put(self._gap()):
            self._lost = 0
        if not self._put(record):
            self._lost += 1

    def _gap(self) -> logging.LogRecord:
        text = f"{self._lost} lines of this log are lost: nobody was reading it"
        return logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": text})

    def _put(self, record: logging.LogRecord) -> bool:
        try:
            self._lines.put_nowait(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Full:
            return False
        return True

    def close(self) -> None:
        """Give the lines that wait a bounded time to get out."""
        with contextlib.suppress(Full):
            self._lines.put(None, timeout=LAST_LINES_S)
            self._thread.join(LAST_LINES_S)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError):  # the disk is full, the reader gone: the log ends, not we
                self._write(line)

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._fd, line) :]
            except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                select.select((), (self._fd,), ())


@contextlib.contextmanager
def written_log(style: str, level: str, fd: int = 2) -> Iterator[None]:
    """While it lasts, ProcGuard's log goes to ``fd``, from ``level`` upward.

    Args:
        style: ``text``, ``json``, or a format of Python's ``logging``.
    """
    writer = LineWriter(fd)
    own = {"text": TextLines, "json": JsonLines}
    writer.setFormatter(own[style]() if style in own else logging.Formatter(style))
    root = logging.getLogger("procguard")
    root.addHandler(writer)
    root.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(writer)
        writer.close()


@contextlib.contextmanager
def log_file(path: str | None) -> Iterator[int]:
    """A descriptor to write a log to: of that file, made if need be, or of stderr.

    Raises:
        StateError: it cannot be written.
    """
    if path is None:
        yield 2
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StateError(
            f"logging.file: {path} cannot be written ({error.strerror}); name another file"
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)
