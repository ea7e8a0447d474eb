"""The receiving side of healing: one state, fetched from one source over HTTP.

Every wait is bounded by time without progress, not by the whole: how long a state takes depends on its
size, how long a source may be silent does not. Another thread can end the fetch at any moment: it shuts
the socket down, which also frees a blocked connect or receive (closing it would not). Only a look-up of
a host's name runs to its end; sources name themselves by address.

One attempt, no retries: whether to ask again, and whom, is the Manager's to say.
"""

from __future__ import annotations

import errno
import http.client
import os
import select
import socket
import threading
import time
import urllib.parse
from contextlib import closing, suppress
from typing import Any

from procguard.client.checkpoint_source import PATH_PREFIX, STEP_HEADER, WAIT_HEADER
from procguard.client.pages_ahead import PagesAhead
from procguard.client.state_stream import decode
from procguard.errors import CheckpointError

WAIT_SHARE = 0.9  # of the timeout, told to the source: it answers why, just before we would give up
REASON_BYTES_MAX = 1024  # of a refusal's text


class CheckpointFetch:
    """Fetches once. ``abort`` from any thread, before or during ``run``."""

    def __init__(self, src_rank: int, metadata: str, step: int, timeout_s: float) -> None:
        self._host, self._port, self._path = _parse(metadata)
        self._what = (
            f"step {step} from replica rank {src_rank} at http://{_bracketed(self._host)}:{self._port}"
        )
        self._step = step
        self._timeout_s = timeout_s
        self._tried: list[str] = []
        self._received_bytes = 0
        self._lock = threading.Lock()  # between abort and the close of the socket
        self._socket: socket.socket | None = None
        self._aborted = False

    def run(self) -> Any:
        try:
            sock = self._connect()
            try:
                return self._get(sock)
            finally:
                self._let_go(sock)
        except (OSError, http.client.HTTPException, UnicodeError, CheckpointError) as error:
            raise self._failure(error) from error

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                with suppress(OSError):  # the source has ended the connection already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close_inherited(self) -> None:
        """In a forked child: give up the copy of the socket; the connection is the parent's."""
        if self._socket is not None:
            with suppress(OSError):
                os.close(self._socket.detach())

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + self._timeout_s
        failure: OSError = TimeoutError()
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM
        ):
            self._tried.append(str(address[0]))
            sock = socket.socket(family, kind, protocol)
            try:
                self._begin_connecting(sock, address)
                _finish_connecting(sock, deadline - time.monotonic())
                return sock
            except OSError as error:
                failure = error
                self._let_go(sock)
        raise failure

    def _begin_connecting(self, sock: socket.socket, address: Any) -> None:
        # Under the lock, so that abort finds either no attempt yet or one that it can end.
        with self._lock:
            if self._aborted:
                raise ConnectionAbortedError
            self._socket = sock
            sock.setblocking(False)
            _raise_if(sock.connect_ex(address), but=errno.EINPROGRESS)

    def _let_go(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = None
            sock.close()

    def _get(self, sock: socket.socket) -> Any:
        sock.settimeout(self._timeout_s)
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = sock
        wait_s = self._timeout_s * WAIT_SHARE
        headers = {STEP_HEADER: str(self._step), WAIT_HEADER: f"{wait_s:.3f}", "Connection": "close"}
        connection.request("GET", self._path, headers=headers)
        with connection.getresponse() as response:
            if response.status != 200:
                reason = response.read(REASON_BYTES_MAX).decode(errors="replace")
                raise CheckpointError(f"{response.status}: {reason}")
            if response.length is None:
                raise CheckpointError("the answer does not say how long it is")

            def read_into(view: memoryview) -> None:
                received = response.readinto(view)
                self._received_bytes += received
                if received < len(view):
                    raise CheckpointError("the connection ended in the middle of the state")

            with closing(PagesAhead()) as prepare:
                return decode(read_into, response.length, _memory_bytes(), prepare)

    def _failure(self, error: Exception) -> CheckpointError:
        progress = f"tried {', '.join(self._tried) or 'no address'}; received {self._received_bytes} bytes"
        if self._aborted:
            return CheckpointError(f"aborted: fetching {self._what} ({progress})")
        if isinstance(error, TimeoutError):
            reason = f"no progress for {self._timeout_s:g} s"
        else:
            reason = str(error) or type(error).__name__
        return CheckpointError(f"cannot fetch {self._what}: {reason} ({progress})")


def _parse(metadata: str) -> tuple[str, int, str]:
    """Host, port and path of a source's URL; the errors do not show it, for it holds the token."""
    try:
        url = urllib.parse.urlsplit(metadata)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise CheckpointError(f"the source's checkpoint metadata is no URL: {error}") from None
    if url.scheme != "http" or not host or not port or not url.path.startswith(PATH_PREFIX):
        raise CheckpointError(
            f"the source's checkpoint metadata is not http://host:port{PATH_PREFIX}<token>; "
            "do all replicas use the same checkpoint transport?"
        )
    return host, port, url.path


def _finish_connecting(sock: socket.socket, timeout_s: float) -> None:
    waiting = select.poll()
    waiting.register(sock, select.POLLOUT)
    if not waiting.poll(max(0.0, timeout_s) * 1000):
        raise TimeoutError
    _raise_if(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def _raise_if(error_number: int, but: int = 0) -> None:
    if error_number not in (0, but):
        raise OSError(error_number, os.strerror(error_number))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _memory_bytes() -> int:
    """Of this machine: a state that is larger cannot be meant for it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
