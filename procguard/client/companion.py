"""Keeps a session running for this trainer, and brings what it hears to the Manager: the failure thread.

With proactive recovery a listener process runs the session. Starting one takes 30 ms on an idle machine and
ten times as long on a crowded one, longer than the lighthouse waits for a lost connection; so until it says
that it is ready, and whenever it has gone, a thread of the trainer runs the same session under the same
token.

Nothing but the failure thread takes hosts on or lets them go. Others only speak to those that are there.
"""

from __future__ import annotations

import heapq
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from math import inf
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
"""A host that has lived so long is started anew at once when it ends."""
CLOSE_TIMEOUT_S = 5.0
"""For the failure thread to end; a callback of the user's may hold it up."""
WAKES_MAX = 4096


class Hears(Protocol):
    """Who is told; called on the failure thread. ``epoch`` is of the lighthouse that says so."""

    def hear(self, epoch: int, notices: tuple[Notice, ...]) -> None: ...

    def over(self, epoch: int, incarnation: Incarnation, cause: Cause) -> None: ...

    def left_out(self, quorum_id: QuorumId) -> None: ...


class Post:
    """Where a host of one kind stands: who is there, and when the next may be started."""

    def __init__(self, what: str, start: Callable[[], Host]) -> None:
        self.what = what
        self._start = start
        self.host: Host | None = None
        self.is_ready = False
        self.due_at = -inf
        self._delay_s = RESPAWN_FIRST_S
        self._since = -inf

    def try_start(self, now: float) -> Host:
        self._since = now
        return self._start()

    def vacate(self) -> None:
        self.host, self.is_ready = None, False

    def put_off(self, now: float) -> None:
        """Start the next one at once the first time, then later and later, until one has been stable."""
        if now - self._since > STABLE_S:
            self._delay_s = RESPAWN_FIRST_S
        self.due_at = now + self._delay_s
        self._delay_s = min(max(RESPAWN_NEXT_S, 2 * self._delay_s), RESPAWN_LAST_S)


class Companion:
    """The sessions of one trainer.

    Args:
        start_thread: starts a session in a thread.
        start_process: starts one in a listener process; None: no listening process is wanted.
        run_promptly: called by the failure thread at its start, to be run promptly when it wakes.
        selector: tells which links can be read.
    """

    def __init__(
        self,
        start_thread: Callable[[], Host],
        start_process: Callable[[], Host] | None,
        hears: Hears,
        clock: Callable[[], float] = time.monotonic,
        run_promptly: Callable[[], object] = lambda: None,
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self._run_promptly = run_promptly
        self._thread_post = Post("session in a thread", start_thread)
        self._process_post = Post("listener process", start_process) if start_process else None
        self._posts = [post for post in (self._thread_post, self._process_post) if post]
        self._hears = hears
        self._clock = clock
        self._lock = threading.Lock()
        self._enrol: Enrol | None = None
        self._in_quorum: InQuorum | None = None
        self._over: Over | None = None
        self._closing = False
        self._settled = threading.Event()
        """The listener process is ready, or it is known that there is none for now."""
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._selector = selector or selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="procguard-failures", daemon=True)

    def start(self, enrol: Enrol) -> None:
        """Begin to beat for an incarnation; the session in a thread runs when this returns."""
        self._enrol = enrol
        self._man(self._thread_post)
        self._thread.start()

    def enrol(self, enrol: Enrol) -> None:
        """Beat for a new incarnation from now on."""
        with self._lock:
            self._enrol, self._in_quorum, self._over = enrol, None, None
        self.tell(enrol)

    def in_quorum(self, message: InQuorum) -> None:
        """Let the sessions know the quorum in use; the same one again costs nothing."""
        with self._lock:
            if message == self._in_quorum:
                return
            self._in_quorum = message
        self.tell(message)

    def tell(self, message: FromTrainer) -> None:
        """Say something to all sessions, from any thread."""
        for host in self._hosts():
            host.link.send(message)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have the failure thread call; from any thread."""
        with self._lock:
            heapq.heappush(self._later, (self._clock() + delay_s, next(self._order), call))
        self._wake()

    def replace_listener(self) -> None:
        """Have another listener process started: this one lives and does nothing. From any thread."""
        self.call_later(0.0, self._replace)

    def await_listener(self, timeout_s: float) -> float:
        """Wait, once, for the first listener process to be ready; not for one that has ended or could not be
        started. Returns for how many seconds."""
        began = self._clock()
        if self._process_post is None or self._settled.wait(timeout_s):
            return self._clock() - began
        self._settled.set()
        _log.warning("The listener process is not ready after %g s: going on, a thread beats", timeout_s)
        return self._clock() - began

    @property
    def over(self) -> Over | None:
        """What a session said of an incarnation of ours that is over, since we enrolled last."""
        return self._over

    @property
    def listening_pids(self) -> list[int]:
        """Pids of the listener processes, for diagnosis."""
        return [host.pid for host in self._hosts() if host.pid is not None]

    def close(self) -> None:
        """Send all sessions home and end the failure thread."""
        self._closing = True
        self._settled.set()
        self._wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)

    def disown(self) -> None:
        """In a forked child: drop the parent's links without a word."""
        for post in self._posts:
            if post.host is not None:
                post.host.link.close()
        self._wake_read.close()
        self._wake_write.close()

    def _hosts(self) -> list[Host]:
        return [host for post in self._posts if (host := post.host) is not None]

    def _wake(self) -> None:
        with suppress(OSError):  # closed: there is nobody left to wake
            self._wake_write.send(b"x")

    # --- the failure thread -------------------------------------------------------------------------

    def _run(self) -> None:
        self._run_promptly()
        while not self._closing:
            self.turn()
        for post in self._posts:
            self._send_home(post)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def turn(self) -> None:
        """Wait for the next thing to happen and deal with it."""
        self._man_posts()
        for key, _ in self._selector.select(self._timeout_s()):
            if key.data is None:
                self._wake_read.recv(WAKES_MAX)
            elif key.data.host is not None:  # else it has been sent home in this very turn
                self._hear(key.data, key.data.host)
        self._run_due()

    def _wanted(self) -> list[Post]:
        """The posts that should be manned: the thread's only while no listener process is ready."""
        process_is_ready = self._process_post is not None and self._process_post.is_ready
        return [post for post in self._posts if post is self._process_post or not process_is_ready]

    def _man_posts(self) -> None:
        now = self._clock()
        for post in self._wanted():
            if post.host is None and post.due_at <= now:
                self._man(post)

    def _man(self, post: Post) -> None:
        try:
            host = post.try_start(self._clock())
        except Exception as error:  # noqa: BLE001  # no memory, too many processes or sockets, each in its own words
            self._put_off(post)
            _log.warning("The %s could not be started, trying again: %s", post.what, error)
            return
        with self._lock:
            post.host = host
            for message in (self._enrol, self._in_quorum):
                if message is not None:
                    host.link.send(message)
        self._selector.register(host.link.fileno(), selectors.EVENT_READ, post)

    def next_deadline(self) -> float:
        """When a turn is due, should nothing be heard before."""
        times = [post.due_at for post in self._wanted() if post.host is None]
        with self._lock:
            times += [when for when, _, _ in self._later[:1]]
        return min(times, default=inf)

    def _timeout_s(self) -> float | None:
        when = self.next_deadline()
        return None if when == inf else max(0.0, when - self._clock())

    def _run_due(self) -> None:
        while True:
            with self._lock:
                if not self._later or self._later[0][0] > self._clock():
                    return
                _, _, call = heapq.heappop(self._later)
            call()

    def _hear(self, post: Post, host: Host) -> None:
        messages = host.link.receive()
        if messages is None:
            self._lost(post)
            return
        for message in messages:
            self._take(post, message)

    def _take(self, post: Post, message: LinkMessage) -> None:
        if isinstance(message, Heard):
            self._hears.hear(message.epoch, message.notices)
        elif isinstance(message, Over):
            self._over = message
            self._hears.over(message.epoch, message.incarnation, message.cause)
        elif isinstance(message, LeftOut):
            self._hears.left_out(message.quorum_id)
        elif isinstance(message, Said):
            _log.log(message.level, "%s", message.text)
        elif isinstance(message, Ready):
            post.is_ready = True
            if post is self._process_post:
                self._settled.set()
                self._send_home(self._thread_post)  # it has done its part

    def _send_home(self, post: Post) -> None:
        host = self._release(post)
        if host is not None:
            host.close()

    def _lost(self, post: Post) -> None:
        host = self._release(post)
        assert host is not None
        self._put_off(post)
        self._man_posts()  # before anything that takes time: nobody beats
        host.link.close()
        _log.warning("The %s has ended (%s): starting another", post.what, host.ended_with())

    def _put_off(self, post: Post) -> None:
        post.put_off(self._clock())
        if post is self._process_post:
            self._settled.set()

    def _replace(self) -> None:
        post = self._process_post
        if post is None or post.host is None:
            return
        pid = post.host.pid
        self._send_home(post)
        self._put_off(post)
        self._man_posts()
        _log.warning("The listener process (pid %s) did not beat: starting another", pid)

    def _release(self, post: Post) -> Host | None:
        with self._lock:
            host = post.host
            post.vacate()
        if host is not None:
            self._selector.unregister(host.link.fileno())
        return host
