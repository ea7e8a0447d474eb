"""The serving side of healing: one published state, handed out over HTTP to those who hold a token.

``GET /checkpoint/<token>`` with the headers ``ProcGuard-Step`` and ``ProcGuard-Wait`` (seconds) is all it
understands. While nothing is published the request is held, so that a healing replica may ask before its
source is ready. Answers: 200 with a state stream; 400 not such a request; 403 unknown token; 409 another
step; 503 nothing published in time, or the source aborted.

A transfer reads the trainer's live arrays. ``withdraw`` therefore ends with none running: those that do
not finish in time are cut, and a cut stream is one that no receiver accepts.

One thread a connection, all of them daemons, and a bounded number of both connections and transfers. One
lock (``_changed``) around who may fetch what; it is never held while bytes move.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import socket
import struct
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from procguard.client.state_stream import Encoded
from procguard.errors import UsageError

PATH_PREFIX = "/checkpoint/"
STEP_HEADER = "ProcGuard-Step"
WAIT_HEADER = "ProcGuard-Wait"

CONNECTION_COUNT_MAX = 64  # one thread each; the next is answered 503
TRANSFER_COUNT_MAX = 4  # at a time; they share one network card, the others wait their turn
TOKEN_COUNT_MAX = 2  # the present round's, and the one before for a request that raced the new round
REQUEST_TIMEOUT_S = 10.0  # for a peer to say what it wants
WAIT_S_MAX = 3600.0  # the longest that a request is held
WRITE_BUFFER_BYTES = 64 << 10  # gathers small arrays; larger pieces go past it

_TIMEVAL = struct.Struct("@ll")  # of C: seconds, microseconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    step: int
    encoded: Encoded
    stall_timeout_s: float


@dataclass(frozen=True)
class Refusal:
    status: int
    reason: str


class CheckpointSource:
    """A port on which one state at a time can be fetched. All methods from any thread."""

    def __init__(self, port: int) -> None:
        self._changed = threading.Condition()
        self._tokens: deque[str] = deque(maxlen=TOKEN_COUNT_MAX)
        self._published: Publication | None = None
        self._sending: set[socket.socket] = set()
        self._aborted: tuple[str, ...] = ()
        """Tokens of rounds that are over: who comes with one waits for nothing, however late."""
        self._closed = False
        self._server = _Server(self, port)
        self._accepting = threading.Thread(
            target=self._server.serve_forever, name="procguard-checkpoint", daemon=True
        )
        self._accepting.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def mint_token(self) -> str:
        token = secrets.token_urlsafe(32)
        with self._changed:
            self._tokens.append(token)
            self._changed.notify_all()
        return token

    def publish(self, publication: Publication) -> None:
        with self._changed:
            self._published = publication
            self._changed.notify_all()

    def withdraw(self, timeout_s: float) -> None:
        """Refuse new transfers, wait for the running ones, cut those that take longer than that."""
        with self._changed:
            self._published = None
            if not self._changed.wait_for(lambda: not self._sending, timeout_s):
                _log.warning("cut %d checkpoint transfers not done in %g s", len(self._sending), timeout_s)
                self._cut()

    def abort(self) -> None:
        """Cut running transfers and answer waiting requests, now, and those yet to come of this round."""
        with self._changed:
            self._published = None
            self._aborted = tuple(self._tokens)
            self._cut()
            self._changed.notify_all()

    def close(self) -> None:
        """End everything and free the port."""
        self._closed = True
        self.abort()
        with suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread at once
        self._server.shutdown()
        self._accepting.join()
        self._server.server_close()

    def close_inherited(self) -> None:
        """In a forked child: give up the copies of the parent's sockets, and touch nothing else (the
        parent's threads do not exist here, and may have left the lock taken)."""
        self._changed = threading.Condition()
        self._sending = set()
        for sock in (self._server.socket, *self._server.connections):
            with suppress(OSError):
                os.close(sock.detach())

    def admit(self, token: str, step: int, wait_s: float, connection: socket.socket) -> Publication | Refusal:
        """Wait until the request can be decided. On a publication the transfer counts as running until
        ``release``."""
        with self._changed:
            self._changed.wait_for(lambda: self._verdict(token, step), wait_s)
            verdict = self._verdict(token, step)
            if isinstance(verdict, Publication):
                self._sending.add(connection)
            return verdict or Refusal(503, f"the source had no state to serve within {wait_s:g} s")

    def release(self, connection: socket.socket) -> None:
        with self._changed:
            self._sending.discard(connection)
            self._changed.notify_all()

    def _verdict(self, token: str, step: int) -> Publication | Refusal | None:
        published = self._published
        if not any(hmac.compare_digest(token.encode(), known.encode()) for known in self._tokens):
            return Refusal(403, "the token is not of this or the previous round of this source")
        if token in self._aborted or self._closed:
            return Refusal(503, "the source aborted")
        if published is not None and published.step != step:
            return Refusal(409, f"the source serves step {published.step}, not step {step}")
        return published if len(self._sending) < TRANSFER_COUNT_MAX else None

    def _cut(self) -> None:
        for sock in self._sending:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # frees a blocked send, unlike close


class _Server(ThreadingTCPServer):
    """Not http.server's own: that one asks the DNS for its name when it starts."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = CONNECTION_COUNT_MAX

    def __init__(self, source: CheckpointSource, port: int) -> None:
        dual_stack = socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if dual_stack else socket.AF_INET
        self.source = source
        self.connections: set[socket.socket] = set()
        try:
            super().__init__(("::" if dual_stack else "0.0.0.0", port), _Exchange)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"cannot serve checkpoints on port {port}: {error}; give another port, or 0 for any free one"
            ) from error

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self.connections) >= CONNECTION_COUNT_MAX:
            with suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        level = logging.INFO if isinstance(error, OSError) else logging.WARNING
        _log.log(level, "checkpoint connection from %s ended: %r", client_address[0], error)


class _Exchange(BaseHTTPRequestHandler):
    """One connection, one request, one answer."""

    server: _Server
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # so that garbage without a version gets a status line too
    server_version = "ProcGuard"
    sys_version = ""
    timeout = REQUEST_TIMEOUT_S
    wbufsize = WRITE_BUFFER_BYTES

    def do_GET(self) -> None:
        if not self.path.startswith(PATH_PREFIX):
            return self._answer(404, "ProcGuard serves checkpoints on this port, and nothing else")
        try:
            step, wait_s = int(self.headers[STEP_HEADER]), float(self.headers[WAIT_HEADER])
        except (TypeError, ValueError):
            return self._answer(400, f"{STEP_HEADER} and {WAIT_HEADER} must be numbers")
        token = self.path[len(PATH_PREFIX) :]
        verdict = self.server.source.admit(token, step, max(0.0, min(WAIT_S_MAX, wait_s)), self.connection)
        if isinstance(verdict, Refusal):
            return self._answer(verdict.status, verdict.reason)
        try:
            self._stream(verdict)
        finally:
            self.server.source.release(self.connection)

    def _stream(self, publication: Publication) -> None:
        # A blocking socket with the kernel's timeout, not settimeout: a chunk is then one system call. Each
        # call is a turn at the GIL, and beside a trainer that holds it a turn costs 5 ms (measured beside
        # a thread that spins: 0.5 GB/s, not 0.2).
        self.connection.settimeout(None)
        # Half the time: a call that has sent a part ends without an error, and the next one waits anew.
        stall_us = int(publication.stall_timeout_s / 2 * 1e6)
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*divmod(stall_us, 10**6))
        )
        self._begin(200, "application/octet-stream", publication.encoded.length_bytes)
        try:
            for part in publication.encoded.parts():
                self.wfile.write(part)
            self.wfile.flush()
        except OSError:
            self.connection.shutdown(socket.SHUT_RDWR)  # what is still buffered is not worth another wait
            raise

    def _answer(self, status: int, reason: str) -> None:
        text = reason.encode()
        self._begin(status, "text/plain; charset=utf-8", len(text))
        self.wfile.write(text)

    def _begin(self, status: int, content_type: str, length_bytes: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length_bytes))
        self.send_header("Connection", "close")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server says of garbage; never a 5xx, for it is the peer's mistake."""
        self._answer(code if code < 500 else 400, "this is no request that a checkpoint port understands")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: these lines would hold the token."""
