"""The trainer's own connection to the lighthouse: blocking calls around ``Requests``.

One call at a time (a lock sees to it), from any thread. What goes wrong is said with the address, the
variable it came from and the likely mistake.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from procguard import codec
from procguard.adapters.base import MemberTransport
from procguard.client.link_words import Over
from procguard.client.requests import (
    Effect,
    Goal,
    Reborn,
    Reconnect,
    Requests,
    Send,
    describe_refusal,
    describe_wait,
)
from procguard.errors import (
    LighthouseRejected,
    LighthouseUnreachable,
    ProtocolError,
    QuorumTimeout,
    UsageError,
)
from procguard.messages import Hello, Participant, Quorum, Welcome

_log = logging.getLogger(__name__)

RECEIVE_MAX = 100
WAKES_MAX = 4096
PROBE_TIMEOUT_S = 1.0


class LighthouseClient:
    """Join, ask for quorums, leave.

    Args:
        where: the address and where it was set, as error messages name them.
        on_reborn: called, from the calling thread, for each incarnation the lighthouse gives.
    """

    def __init__(
        self,
        transport: MemberTransport,
        hello: Hello,
        where: str,
        on_reborn: Callable[[Welcome], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._requests = Requests(hello)
        self._where = where
        self._on_reborn = on_reborn
        self._clock = clock
        self._lock = threading.Lock()
        self._leaving = False
        self._wake_read, self._wake_write = socket.socketpair()

    @property
    def welcome(self) -> Welcome:
        """The lighthouse's last Welcome; there is one once ``join`` has returned."""
        assert self._requests.welcome is not None
        return self._requests.welcome

    @property
    def epoch(self) -> int:
        """The highest epoch of a lighthouse seen so far."""
        return self._requests.epoch

    def join(self, timeout_s: float) -> Welcome:
        """Become a member.

        Raises:
            LighthouseUnreachable: nobody answered in time.
            LighthouseRejected: the lighthouse says no, or another process holds the id.
        """
        with self._lock:
            if not self._talk(self._requests.join(self._clock()), timeout_s):
                self._raise_if_refused()
                self._transport.reconnect()  # drops what nobody took: closing need not wait for it
                keys = self._transport.explain()
                raise LighthouseUnreachable(explain_unreachable(self._where, timeout_s, keys))
            return self.welcome

    def quorum(
        self, asks: Participant, timeout_s: float, over: Callable[[], Over | None] = lambda: None
    ) -> Quorum:
        """Ask to take part in the next quorum and wait for it.

        Args:
            over: what the listener has heard of an incarnation of ours that is over; asked again and again,
                for that may come while a lighthouse is being waited for.

        Raises:
            QuorumTimeout: there was none in time; says what was missing.
            LighthouseRejected: this process may not be a member any more.
            UsageError: ``leave`` was called, before or meanwhile.
        """
        with self._lock:
            requests = self._requests
            self._check_not_leaving()
            self._note_end(over)
            if not self._talk(requests.ask(asks, timeout_s, self._clock()), timeout_s, over):
                self._raise_if_refused()
                why = describe_wait(requests.waiting)
                raise QuorumTimeout(f"no quorum within {timeout_s:g} s at {self._where}: {why}")
            assert requests.quorum is not None
            return requests.quorum

    def lookup(self, timeout_s: float) -> str:
        """Where rank 0 of our replica group serves; empty when that was not to be found out in time."""
        with self._lock:
            self._check_not_leaving()
            if self._requests.life_over:
                return ""
            self._talk(self._requests.lookup(self._clock()), timeout_s)
            return self._requests.group_address

    def leave(self, step: int, timeout_s: float) -> bool:
        """Say that this member goes; False when nobody acknowledged it in time.

        From any thread: a call in progress ends, and only ``close`` may follow.
        """
        self._leaving = True
        self._wake_write.send(b"x")
        with self._lock:
            return self._talk(self._requests.leave(step, self._clock()), timeout_s)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._transport.close()
            self._wake_read.close()
            self._wake_write.close()

    def _talk(
        self, effects: tuple[Effect, ...], timeout_s: float, over: Callable[[], Over | None] = lambda: None
    ) -> bool:
        """Talk until the goal is reached (True), time is over, or the answer is a lasting no."""
        requests = self._requests
        give_up_at = self._clock() + timeout_s
        self._perform(effects)
        while not requests.done:
            if requests.goal is not Goal.LEAVE:
                self._check_not_leaving()
            now = self._clock()
            if now >= give_up_at or requests.refused:
                requests.give_up()
                return False
            wait_s = min(requests.next_deadline(), give_up_at) - now
            if self._transport.wait(max(0.0, wait_s), (self._wake_read.fileno(),)):
                self._wake_read.recv(WAKES_MAX)
            self._note_end(over)
            for frame in self._transport.receive(RECEIVE_MAX):
                self._receive(frame)
            self._perform(requests.time_passed(self._clock()))
        return True

    def _note_end(self, over: Callable[[], Over | None]) -> None:
        """Before anything is said: a life that is over is not claimed."""
        end = over()
        if end is not None:
            self._perform(self._requests.life_is_over(end.incarnation, end.epoch))

    def _receive(self, frame: bytes) -> None:
        try:
            message = codec.decode(frame)
        except ProtocolError:
            return  # a lighthouse of another version: the request times out and says so
        earlier = self._requests.refusal
        self._perform(self._requests.receive(message, self._clock()))
        refusal = self._requests.refusal
        if refusal is not None and earlier is None and not self._requests.refused:
            text = describe_refusal(refusal, self._requests.hello.replica_id)
            _log.warning("The lighthouse at %s refuses so far, asking on: %s", self._where, text)

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._transport.send(codec.encode(effect.message))
            elif isinstance(effect, Reborn):
                self._on_reborn(effect.welcome)
            elif isinstance(effect, Reconnect):
                if self._requests.welcome is None:
                    keys = self._transport.explain()
                    why = f": {keys}" if keys else ""
                    _log.warning("No lighthouse has answered at %s so far, trying on%s", self._where, why)
                self._transport.reconnect()

    def _check_not_leaving(self) -> None:
        if self._leaving:
            self._requests.give_up()
            raise UsageError("this Manager is shut down")

    def _raise_if_refused(self) -> None:
        refusal = self._requests.refusal
        if refusal is not None:
            text = describe_refusal(refusal, self._requests.hello.replica_id)
            raise LighthouseRejected(f"the lighthouse at {self._where} refused: {text}")


def explain_unreachable(where: str, timeout_s: float, keys: str = "") -> str:
    """Name the likely mistake, after one look at the address; ``keys`` says so if it lies with those."""
    address = where.split(" ", 1)[0]
    host, _, port = address.rpartition(":")
    why = keys or _probe(host.strip("[]"), int(port))
    return f"no lighthouse answered at {where} within {timeout_s:g} s: {why}"


def _probe(host: str, port: int) -> str:
    start = f"start one with `procguard-lighthouse --port {port}`"
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S):
            return (
                f"something accepts connections there but does not speak ProcGuard's protocol; is {port} "
                "the lighthouse's --port? (the one after it is for notices only)"
            )
    except socket.gaierror as error:
        return f"the name {host!r} does not resolve ({error.strerror}); check PROCGUARD_LIGHTHOUSE"
    except ConnectionRefusedError:
        return f"nothing listens on port {port} of {host}; {start}, or set PROCGUARD_LIGHTHOUSE=HOST:PORT"
    except TimeoutError:
        return f"{host} does not answer on port {port}; is a firewall between, or the host down?"
    except OSError as error:
        return f"{os.strerror(error.errno or 0)}; check PROCGUARD_LIGHTHOUSE"


def local_address_toward(host: str, port: int) -> str:
    """The address of this machine from which ``host`` is reached; sends nothing.

    Falls back to loopback when there is no way there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            name: str = probe.getsockname()[0]
            return name
    except OSError:
        return "127.0.0.1"
