"""Keeps a session running for this trainer, and brings what it hears to the Manager: the failure thread.

With proactive recovery a listener process runs the session. Starting one takes 30 ms on an idle machine and
ten times as long on a crowded one, longer than the lighthouse waits for a lost connection; so until it says
that it is ready, and whenever it has gone, a thread of the trainer runs the same session under the same
token.
"""

from __future__ import annotations

import heapq
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol

from procguard.client.hosts import Host
from procguard.client.link_words import (
    Enrol,
    FromTrainer,
    Heard,
    InQuorum,
    LeftOut,
    LinkMessage,
    Over,
    Ready,
    Said,
)
from procguard.messages import Cause, Incarnation, Notice, QuorumId

_log = logging.getLogger(__name__)

RESPAWN_FIRST_S = 0.0
RESPAWN_NEXT_S = 1.0
RESPAWN_LAST_S = 30.0
STABLE_S = 60.0
"""A listener that has lived so long is started anew at once when it ends."""


class Hears(Protocol):
    """Who is told; called on the failure thread."""

    def hear(self, notices: tuple[Notice, ...]) -> None: ...

    def over(self, incarnation: Incarnation, cause: Cause) -> None: ...

    def left_out(self, quorum_id: QuorumId) -> None: ...


class Companion:
    """The sessions of one trainer.

    Args:
        start_thread: starts a session in a thread.
        start_process: starts one in a listener process; None: no listening process is wanted.
    """

    def __init__(
        self,
        start_thread: Callable[[], Host],
        start_process: Callable[[], Host] | None,
        hears: Hears,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start_thread = start_thread
        self._start_process = start_process
        self._hears = hears
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: list[Host] = []
        self._enrol: Enrol | None = None
        self._in_quorum: InQuorum | None = None
        self._closing = False
        self._respawn_at = 0.0
        self._respawn_s = RESPAWN_FIRST_S
        self._spawned_at = 0.0
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="procguard-failures", daemon=True)

    def start(self, enrol: Enrol) -> None:
        """Begin to beat for an incarnation; returns when a session runs."""
        self._enrol = enrol
        self._add(self._start_thread())
        self._thread.start()

    def enrol(self, enrol: Enrol) -> None:
        """Beat for a new incarnation from now on."""
        with self._lock:
            self._enrol = enrol
            self._in_quorum = None
        self.tell(enrol)

    def in_quorum(self, message: InQuorum) -> None:
        """Let the sessions know the quorum in use."""
        with self._lock:
            self._in_quorum = message
        self.tell(message)

    def tell(self, message: FromTrainer) -> None:
        """Say something to all sessions, from any thread."""
        with self._lock:
            hosts = list(self._hosts)
        for host in hosts:
            host.link.send(message)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have the failure thread call; from any thread."""
        with self._lock:
            heapq.heappush(self._later, (self._clock() + delay_s, next(self._order), call))
        self._wake()

    @property
    def listening_pids(self) -> list[int]:
        """Pids of the listener processes, for diagnosis."""
        with self._lock:
            return [host.pid for host in self._hosts if host.pid is not None]

    def close(self) -> None:
        """Send all sessions home and end the failure thread."""
        self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def disown(self) -> None:
        """In a forked child: drop the parent's links without a word."""
        for host in self._hosts:
            host.link.close()
        self._wake_read.close()
        self._wake_write.close()

    def _wake(self) -> None:
        self._wake_write.send(b"x")

    # --- the failure thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            self._ensure_process()
            for key, _ in self._selector.select(self._timeout_s()):
                if key.data is None:
                    self._wake_read.recv(4096)
                else:
                    self._hear(key.data)
            self._run_due()
        for host in list(self._hosts):
            self._remove(host)
            host.close()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _timeout_s(self) -> float | None:
        times = [self._later[0][0]] if self._later else []
        if self._start_process and not self._has(in_process=True):
            times.append(self._respawn_at)
        return max(0.0, min(times) - self._clock()) if times else None

    def _run_due(self) -> None:
        while True:
            with self._lock:
                if not self._later or self._later[0][0] > self._clock():
                    return
                _, _, call = heapq.heappop(self._later)
            call()

    def _ensure_process(self) -> None:
        if not self._start_process or self._has(in_process=True) or self._clock() < self._respawn_at:
            return
        self._spawned_at = self._clock()
        try:
            self._add(self._start_process())
        except OSError as error:  # no memory, too many processes: the thread beats meanwhile
            self._put_off()
            _log.warning("The listener process could not be started: %s", error)

    def _has(self, *, in_process: bool) -> bool:
        return any(host.in_process is in_process for host in self._hosts)

    def _add(self, host: Host) -> None:
        with self._lock:
            self._hosts.append(host)
            for message in (self._enrol, self._in_quorum):
                if message is not None:
                    host.link.send(message)
        self._selector.register(host.link.fileno(), selectors.EVENT_READ, host)

    def _remove(self, host: Host) -> None:
        with self._lock:
            self._hosts.remove(host)
        self._selector.unregister(host.link.fileno())

    def _hear(self, host: Host) -> None:
        if host not in self._hosts:
            return  # sent home a moment ago, by what another of these events has brought
        messages = host.link.receive()
        if messages is None:
            self._lost(host)
            return
        for message in messages:
            self._take(host, message)

    def _take(self, host: Host, message: LinkMessage) -> None:
        if isinstance(message, Heard):
            self._hears.hear(message.notices)
        elif isinstance(message, Over):
            self._hears.over(message.incarnation, message.cause)
        elif isinstance(message, LeftOut):
            self._hears.left_out(message.quorum_id)
        elif isinstance(message, Said):
            _log.log(message.level, "%s", message.text)
        elif isinstance(message, Ready) and host.in_process:
            self._take_over(host)

    def _take_over(self, process: Host) -> None:
        """The listener process is ready: the thread has done its part."""
        for host in [host for host in self._hosts if host is not process]:
            self._remove(host)
            host.close()

    def _lost(self, host: Host) -> None:
        self._remove(host)
        if not self._has(in_process=False):
            self._add(self._start_thread())
        host.link.close()
        if host.in_process:
            self._put_off()
            _log.warning(
                "The listener process has ended (%s): a thread beats until a new one is ready",
                host.ended_with(),
            )

    def _put_off(self) -> None:
        """At once the first time, then later and later, until one has been stable."""
        now = self._clock()
        if now - self._spawned_at > STABLE_S:
            self._respawn_s = RESPAWN_FIRST_S
        self._respawn_at = now + self._respawn_s
        self._respawn_s = min(max(RESPAWN_NEXT_S, 2 * self._respawn_s), RESPAWN_LAST_S)
