"""The loop behind a guard's socket: lines in, commands done in threads beside it, a line out for each.

Whoever may connect is the guard's own user, or root; but a script gone wild is that user too, and nothing
that it does may stop the guard or keep a person out for long:

- Each connection has one request in work at most, and nothing more is read from it until its answer is
  gone. So what one can make us hold is one request and one answer.
- Half a line, or an answer that nobody takes, is held for ``PATIENCE_S``.
- Beyond ``CLIENTS_COUNT_MAX`` connections, the one that has been idle longest makes room for the next.
  One that has asked is never sent away for that, so in a storm of connections who asks is heard.
- Requests in the long run, and turns of the loop, have a budget: a flood costs a bounded share of the
  guard's interpreter, which the watching of workers needs more. A person does not notice: what was saved
  up is enough.
- Commands that change something (a worker may take its time to stop) and those that only look have
  threads of their own: `procguard status` is answered while a stop takes a minute.

A failure of our own while a request is done is logged with its traceback and answered with one sentence.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from procguard.errors import ProcGuardError, ProtocolError, UsageError
from procguard.supervisor.budget import Budget
from procguard.supervisor.control_socket import peer_of
from procguard.supervisor.control_verbs import CHANGING, Commands, perform
from procguard.supervisor.control_words import (
    REQUEST_BYTES_MAX,
    Lines,
    Request,
    read_request,
    refusal_line,
    result_line,
)
from procguard.supervisor.lane import Lane

CLIENTS_COUNT_MAX = 64
ACCEPTS_PER_TURN_MAX = 64
PIECE_BYTES = 64 << 10
PATIENCE_S = 30.0
LOOK_S = 1.0
"""Between two looks for those whose patience is over, and the longest wait."""
ACCEPT_PAUSE_S = 0.5
"""After the kernel would not give us a connection (no file descriptors left, for one)."""
REQUESTS_PER_S, REQUESTS_AT_ONCE = 100.0, 200.0
TURNS_PER_S, TURNS_AT_ONCE = 500.0, 100.0
READING_THREADS_MAX = 2
CHANGING_THREADS_MAX = 8

logger = logging.getLogger(__name__)


class _Phase(enum.Enum):
    READING = enum.auto()
    QUEUED = enum.auto()
    """A whole request is here."""
    WORKING = enum.auto()
    ANSWERING = enum.auto()


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.connection = connection
        self.lines = Lines(REQUEST_BYTES_MAX)
        self.line = b""
        self.outgoing = memoryview(b"")
        self.phase = _Phase.READING
        self.since = now
        """When it last got on: answered, connected, began a line, took some of its answer."""
        self.watched_for = 0
        self.last_answer = False
        self.gone = False


class ControlLoop:
    """Serves one listening socket until it is told to stop.

    Args:
        listener: non-blocking; the loop closes it.
        commands: what the verbs do; called from other threads.
        clock: monotonic seconds.
        pause: sleeps for so many seconds.
    """

    def __init__(
        self,
        listener: socket.socket,
        commands: Commands,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._listener = listener
        self._commands = commands
        self._clock = clock
        self._pause = pause
        self._clients: set[_Client] = set()
        self._queue: deque[_Client] = deque()
        self._answers: deque[tuple[_Client, bytes]] = deque()
        self._reading = Lane("procguard-look", READING_THREADS_MAX)
        self._changing = Lane("procguard-command", CHANGING_THREADS_MAX)
        now = clock()
        self._requests = Budget(REQUESTS_PER_S, REQUESTS_AT_ONCE, now)
        self._turns = Budget(TURNS_PER_S, TURNS_AT_ONCE, now)
        self._look_at = now + LOOK_S
        self._accept_at = 0.0
        self._accepting = True
        self._stopping = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._awake, self._waker = socket.socketpair()
        self._awake.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._awake, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    # --- for others

    def run(self, every_second: Callable[[], None] = lambda: None) -> None:
        """Turn after turn until ``stop``; ``every_second`` is called now and then."""
        while not self._stopping.is_set():
            try:
                self.turn(every_second)
            except Exception:  # a bug of ours, or a broken kernel object: said, and the guard goes on
                logger.exception("The guard's socket had a bad moment")
                self._pause(LOOK_S)
        for client in list(self._clients):
            self._drop(client)
        for thing in (self._selector, self._listener, self._awake, self._waker):
            thing.close()

    def stop(self) -> None:
        """From any thread."""
        self._stopping.set()
        self._wake()

    def listen_to(self, listener: socket.socket) -> None:
        """Use another listening socket from now on. Only from ``every_second``."""
        if self._accepting:
            self._selector.unregister(self._listener)
        self._listener.close()
        self._listener, self._accepting = listener, True
        self._selector.register(listener, selectors.EVENT_READ)

    # --- one turn

    def turn(self, every_second: Callable[[], None] = lambda: None) -> None:
        """Wait for something to do, and do it. Those who are here go before those who come."""
        ready = self._selector.select(self._wait_s(self._clock()))
        now = self._clock()
        knocking = False
        for key, _ in ready:
            if isinstance(key.data, _Client):
                self._serve(key.data, now)
            elif key.fileobj is self._listener:
                knocking = True
            else:
                with contextlib.suppress(BlockingIOError):
                    self._awake.recv(PIECE_BYTES)
        self._take_answers(now)
        self._begin_queued(now)
        if knocking:
            self._accept(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look_around(now)
            every_second()
        if (pause_s := self._turns.spend(1.0, now)) > 0:
            self._pause(pause_s)

    def _wait_s(self, now: float) -> float:
        if self._answers:
            return 0.0
        until_look_s = max(0.0, self._look_at - now)
        return min(until_look_s, self._requests.wait_s(1.0, now)) if self._queue else until_look_s

    def _accept(self, now: float) -> None:
        for _ in range(ACCEPTS_PER_TURN_MAX):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("Cannot take a connection to the guard's socket: %s", error)
                self._selector.unregister(self._listener)
                self._accepting, self._accept_at = False, now + ACCEPT_PAUSE_S
                return
            self._welcome(connection, now)

    def _welcome(self, connection: socket.socket, now: float) -> None:
        connection.setblocking(False)
        refusal = self._refusal(connection)
        if refusal:
            with contextlib.suppress(OSError):
                connection.send(refusal)
            connection.close()
            return
        client = _Client(connection, now)
        self._clients.add(client)
        self._watch(client, selectors.EVENT_READ)

    def _refusal(self, connection: socket.socket) -> bytes:
        """Why this one cannot stay, if it cannot. Makes room if need be."""
        try:
            uid = peer_of(connection).uid
        except OSError:
            return refusal_line("the guard cannot see who you are", False)
        if uid not in (0, os.geteuid()):
            return refusal_line(f"this guard belongs to uid {os.geteuid()}, and you are uid {uid}", False)
        if len(self._clients) < CLIENTS_COUNT_MAX:
            return b""
        idle = [c for c in self._clients if c.phase in (_Phase.READING, _Phase.ANSWERING)]
        if not idle:
            return refusal_line(
                f"the guard is busy with {len(self._clients)} requests; ask again later", False
            )
        self._drop(min(idle, key=lambda client: client.since))
        return b""

    # --- one connection

    def _serve(self, client: _Client, now: float) -> None:
        if client.gone:
            return
        try:
            if client.phase is _Phase.ANSWERING:
                self._send(client, now)
            elif client.phase is _Phase.READING:
                self._receive(client, now)
        except OSError:  # it went away, on whatever path
            self._drop(client)

    def _receive(self, client: _Client, now: float) -> None:
        try:
            piece = client.connection.recv(PIECE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        if not piece:
            self._drop(client)
            return
        if not client.lines.in_the_middle:
            client.since = now
        client.lines.add(piece)
        self._next_request(client, now)

    def _next_request(self, client: _Client, now: float) -> None:
        """Queue what has been read whole; what cannot become a line is the last thing heard from it."""
        try:
            line = client.lines.next()
        except ProtocolError as error:
            client.last_answer = True
            self._answer(client, refusal_line(f"{error}: not a request", True), now)
            return
        if line is None:
            client.phase = _Phase.READING
            self._watch(client, selectors.EVENT_READ)
            return
        client.line, client.phase = line, _Phase.QUEUED
        self._watch(client, 0)
        self._queue.append(client)

    def _answer(self, client: _Client, line: bytes, now: float) -> None:
        client.outgoing, client.phase, client.since = memoryview(line), _Phase.ANSWERING, now
        self._send(client, now)

    def _send(self, client: _Client, now: float) -> None:
        try:
            sent = client.connection.send(client.outgoing)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent:
            client.outgoing, client.since = client.outgoing[sent:], now
        if client.outgoing:
            self._watch(client, selectors.EVENT_WRITE)
        elif client.last_answer:
            self._drop(client)
        else:
            self._next_request(client, now)

    def _watch(self, client: _Client, events: int) -> None:
        if events == client.watched_for:
            return
        if not client.watched_for:
            self._selector.register(client.connection, events, client)
        elif events:
            self._selector.modify(client.connection, events, client)
        else:
            self._selector.unregister(client.connection)
        client.watched_for = events

    def _drop(self, client: _Client) -> None:
        if client.gone:
            return
        client.gone = True
        self._clients.discard(client)
        self._watch(client, 0)
        client.connection.close()

    def _look_around(self, now: float) -> None:
        for client in list(self._clients):
            half_a_line = client.phase is _Phase.READING and client.lines.in_the_middle
            if (half_a_line or client.phase is _Phase.ANSWERING) and now - client.since > PATIENCE_S:
                self._drop(client)
        if not self._accepting and now >= self._accept_at:
            self._accepting = True
            self._selector.register(self._listener, selectors.EVENT_READ)

    # --- requests

    def _begin_queued(self, now: float) -> None:
        while self._queue and self._requests.take(1.0, now):
            client = self._queue.popleft()
            client.phase = _Phase.WORKING
            try:
                request = read_request(client.line)
                lane = self._changing if request.verb in CHANGING else self._reading
                lane.do(partial(self._work, client, request))
            except UsageError as error:
                self._answers.append((client, refusal_line(str(error), True)))
            except RuntimeError as error:
                self._answers.append((client, refusal_line(f"the guard cannot do it now: {error}", False)))

    def _work(self, client: _Client, request: Request) -> None:
        """In a thread of a lane."""
        try:
            line = result_line(perform(self._commands, request))
        except ProcGuardError as error:
            line = refusal_line(str(error), isinstance(error, UsageError))
        except Exception as error:  # a bug of ours: its traceback goes to the log, a sentence to who asked
            logger.exception("The guard could not %s", request.verb)
            line = refusal_line(
                f"the guard could not {request.verb}: {type(error).__name__}: {error}; its log has more",
                False,
            )
        self._answers.append((client, line))
        self._wake()

    def _take_answers(self, now: float) -> None:
        while self._answers:
            client, line = self._answers.popleft()
            try:
                self._answer(client, line, now)
            except OSError:
                self._drop(client)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is awake already, or has ended
            self._waker.send(b".")
