"""Asks health URLs, each in a thread of a small pool, for as long as it is given and not a moment longer.

Only the status line of the answer matters: 200 to 399 is good, as Kubernetes has it; redirections are not
followed, and a proxy from the environment is not asked, because a health check is about this very process.
The time that ``urllib`` takes for a timeout is that of one read, so a server that sends a byte a second
would hold its thread for hours; here every step gets what is left of the whole. What nobody can bound is
the name server: therefore the threads are daemons, their number has a limit, and it is the rules
(``health``) that end the waiting.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from procguard.errors import UsageError
from procguard.supervisor.health_words import UrlAnswered, UrlBegun

_log = logging.getLogger(__name__)

THREADS_MAX = 32
STATUS_LINE_BYTES_MAX = 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r?\n)")
_GOOD = range(200, 400)
_PORTS = {"http": 80, "https": 443}

Tell: TypeAlias = Callable[[str, "UrlBegun | UrlAnswered"], None]


def checked_url(url: str) -> SplitResult:
    """The parts of a URL that can be asked; raises ``UsageError``."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, an address with a bracket too many
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(
            f"health_check_url: {url!r} cannot be asked; write one such as http://127.0.0.1:8080/health"
        )
    return parts


def ask(url: str, timeout_s: float) -> tuple[bool, str]:
    """Whether the answer is good, and what it was, for people. Takes ``timeout_s`` at most, name service
    apart."""
    deadline = time.monotonic() + timeout_s
    try:
        parts = checked_url(url)
        with _connected(parts, deadline) as connection:
            connection.settimeout(_left(deadline))
            connection.sendall(_request(parts))
            status = _status(connection, deadline)
    except UsageError as error:
        return False, str(error)
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    except OSError as error:
        return False, f"{error.strerror or error}"
    except ValueError as error:
        return False, str(error)
    return status in _GOOD, f"HTTP status {status}"


def _connected(parts: SplitResult, deadline: float) -> socket.socket:
    assert parts.hostname is not None
    port = parts.port or _PORTS[parts.scheme]
    connection = socket.create_connection((parts.hostname, port), _left(deadline))
    if parts.scheme == "http":
        return connection
    import ssl  # 3 MiB that a guard without https can do without

    try:
        connection.settimeout(_left(deadline))
        return ssl.create_default_context().wrap_socket(connection, server_hostname=parts.hostname)
    except BaseException:
        connection.close()
        raise


def _request(parts: SplitResult) -> bytes:
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    host = parts.netloc.rpartition("@")[2]
    lines = (f"GET {path if path.startswith('/') else '/' + path} HTTP/1.1", f"Host: {host}")
    return "\r\n".join([*lines, "User-Agent: procguard", "Accept: */*", "Connection: close", "", ""]).encode(
        "ascii"
    )


def _status(connection: socket.socket, deadline: float) -> int:
    """From the status line; raises ``ValueError`` for what is none."""
    received = b""
    while b"\n" not in received and len(received) < STATUS_LINE_BYTES_MAX:
        connection.settimeout(_left(deadline))
        more = connection.recv(STATUS_LINE_BYTES_MAX)
        if not more:
            break
        received += more
    match = _STATUS_LINE.match(received)
    if match is None:
        raise ValueError(
            "the connection was closed without an answer" if not received else "its answer is not HTTP"
        )
    return int(match[1])


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@dataclass(frozen=True, slots=True)
class _Question:
    worker_id: str
    number: int
    url: str
    timeout_s: float


class UrlChecks:
    """The pool. ``tell(worker_id, event)`` is called on its threads when a question begins and when it
    ends."""

    def __init__(self, tell: Tell, threads_max: int = THREADS_MAX) -> None:
        self._tell = tell
        self._threads_max = threads_max
        self._questions: deque[_Question] = deque()  # one of each worker at most
        self._changed = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def ask(self, worker_id: str, number: int, url: str, timeout_s: float) -> None:
        """Have it asked as soon as a thread is free; returns at once.

        Where no thread can be had at all it is answered here, without having begun: that counts neither for
        the worker nor against it, and the next question is asked when it is due.
        """
        with self._changed:
            if self._questions:  # what its former life wanted to know interests nobody any more
                self._questions = deque(each for each in self._questions if each.worker_id != worker_id)
            self._questions.append(_Question(worker_id, number, url, timeout_s))
            if self._idle >= len(self._questions) or self._threads >= self._threads_max:
                self._changed.notify()
                return
            try:
                threading.Thread(target=self._work, name="procguard-url", daemon=True).start()
                self._threads += 1
                return
            except RuntimeError:  # the limit on threads
                _log.warning("No thread could be started to ask %s", url)
            if self._threads:
                return  # the question waits for one that comes back
            self._questions.pop()
        self._tell(worker_id, UrlAnswered(number, False, "no thread could be started to ask"))

    def close(self) -> None:
        """Let the threads end when they are back; does not wait for them."""
        with self._changed:
            self._closed = True
            self._questions.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (question := self._next()) is not None:
            self._tell(question.worker_id, UrlBegun(question.number))
            good, text = ask(question.url, question.timeout_s)
            self._tell(question.worker_id, UrlAnswered(question.number, good, text))

    def _next(self) -> _Question | None:
        with self._changed:
            self._idle += 1
            while not self._questions and not self._closed:
                self._changed.wait()
            self._idle -= 1
            return None if self._closed else self._questions.popleft()
