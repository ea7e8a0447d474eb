"""How the ranks of a quorum find each other: each calls its successor and is called by its predecessor.

The answer to a call is what makes this safe. A peer still busy with an older quorum keeps the call and
answers when it gets there; one already past it refuses at once; a stranger on a reused port is told apart
from a slow peer. A call that ends without an answer is made again.

The listening port is open to anything: HTTP clients, port scans, connections that never say a word. None
of them may block or break a rendezvous: no socket blocks, whoever does not greet in time is dropped, the
callers are bounded. There is no authentication: as with Gloo and NCCL, the network is trusted.

All of it belongs to one I/O thread, which waits in ``Rendezvous.poll`` only (and in the resolver, if a
handle holds a name). Deadlines are the caller's: it ends a rendezvous with ``Rendezvous.end``.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from procguard.adapters.collective_links import (
    VERSION,
    Ear,
    Greeting,
    Kind,
    Links,
    RingPlace,
    close_link,
    drain,
    greet,
    own,
    split_handle,
)
from procguard.errors import CollectiveError, ProtocolError

ACCEPT_COUNT_MAX = 32  # in one turn, so that a flood of callers cannot starve the rest
CALLER_COUNT_MAX = 64  # a ring needs one a quorum; the rest is room for strangers
GREETING_TIMEOUT_S = 5.0
EARLY_TIMEOUT_S = 60.0  # a caller from a later quorum is kept so long, then it has to call again
ACCEPT_PAUSE_S = 0.1  # out of file descriptors: look again then, instead of spinning
RETRY_INTERVAL_S = 0.05
REFUSED_GRACE_S = 2.0  # a peer listens before it gives out its handle: refusing longer, it is gone


def _forget(selector: selectors.BaseSelector, sock: socket.socket) -> None:
    if sock in selector.get_map():
        selector.unregister(sock)


class _Call:
    """The outgoing side: one call to the successor, repeated until it is answered."""

    def __init__(self, place: RingPlace, selector: selectors.BaseSelector) -> None:
        self.place = place
        self._selector = selector
        self._name = place.name(place.successor)
        self._addresses: list[tuple[Any, ...]] = []
        self._attempts = 0
        self._ear = Ear()
        self._refused_since: float | None = None
        self.sock: socket.socket | None = None
        self.is_answered = False
        self.last_error: OSError | None = None
        self.retry_at = 0.0

    def attempt(self) -> None:
        self.retry_at = math.inf
        try:
            if not self._addresses:
                host, port = split_handle(self.place.handles[self.place.successor])
                self._addresses = list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            family, kind, protocol, _, address = self._addresses[self._attempts % len(self._addresses)]
            self._attempts += 1
            self.sock = own(socket.socket(family, kind, protocol))
            code = self.sock.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            self._selector.register(self.sock, selectors.EVENT_WRITE, partial(self._connected, self.sock))
        except OSError as error:
            self._try_again(error)

    def _connected(self, sock: socket.socket) -> None:
        try:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            self._ear = Ear()
            greet(sock, Kind.HELLO, self.place)
            self._selector.modify(sock, selectors.EVENT_READ, partial(self._heard, sock))
        except OSError as error:
            self._try_again(error)

    def _heard(self, sock: socket.socket) -> None:
        try:
            greeting = self._ear.listen(sock)
        except OSError as error:
            return self._try_again(error)
        except ProtocolError as error:
            raise self._failed(f"{self._name} is {error}: the port belongs to another program now") from error
        if greeting is not None:
            self._judge(greeting, sock)

    def _judge(self, answer: Greeting, sock: socket.socket) -> None:
        place = self.place
        if answer.version != VERSION:
            raise self._failed(f"{self._name} speaks ring version {answer.version}, this rank {VERSION}")
        if answer.kind == Kind.HELLO:  # TCP connected this port to itself: nobody listens there
            return self._try_again(ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens"))
        if answer != (VERSION, Kind.WELCOME, place.quorum_id, place.successor, place.world_size):
            raise self._failed(f"{self._name} refused: that quorum is over there, or has other ranks")
        self.is_answered = True
        self._selector.modify(sock, selectors.EVENT_READ, self._lost)

    def _lost(self) -> None:
        # The successor never sends anything after its answer: it can only be the end.
        raise self._failed(f"{self._name} left while the ring was being formed")

    def _try_again(self, error: OSError) -> None:
        self.close()
        now = time.monotonic()
        self.last_error = error
        self.retry_at = now + RETRY_INTERVAL_S
        if not isinstance(error, ConnectionRefusedError):
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since > REFUSED_GRACE_S:
            raise self._failed(f"{self._name} refuses connections: its process has ended or shut down")

    def _failed(self, reason: str) -> CollectiveError:
        return CollectiveError(f"{self.place}: {reason}", self.place.quorum_id)

    def close(self) -> None:
        if self.sock is not None:
            _forget(self._selector, self.sock)
            close_link(self.sock)
            self.sock = None


@dataclass(eq=False)
class _Caller:
    """An accepted connection that is not part of a ring yet, and may never be."""

    sock: socket.socket
    expires_at: float
    ear: Ear = field(default_factory=Ear)
    greeting: Greeting | None = None


class _Reception:
    """The incoming side: finds the predecessor among those who call."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        self._listener = listener
        self._selector = selector
        self._callers: list[_Caller] = []  # in order of arrival
        self._place: RingPlace | None = None  # of the latest quorum, whether it goes on or not
        self._accept_at = math.inf
        self._is_open = False
        self.predecessor: socket.socket | None = None
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def expect(self, place: RingPlace) -> None:
        """From now on look for the predecessor in ``place``, first among those who came early."""
        self._place = place
        self._is_open = place.world_size > 1
        for caller in [caller for caller in self._callers if caller.greeting is not None]:
            self._settle(caller)

    def dismiss(self) -> None:
        """Refuse from now on whoever asks for the latest quorum."""
        self._is_open = False

    def close(self) -> None:
        self.dismiss()
        if self.predecessor is not None:
            _forget(self._selector, self.predecessor)
            close_link(self.predecessor)
            self.predecessor = None

    def close_all(self) -> None:
        self.close()
        for caller in list(self._callers):
            self._drop(caller)
        _forget(self._selector, self._listener)
        self._listener.close()

    def next_timer(self) -> float:
        return min([self._accept_at, *(caller.expires_at for caller in self._callers)])

    def expire(self, now: float) -> None:
        for caller in [caller for caller in self._callers if caller.expires_at <= now]:
            self._drop(caller)
        if self._accept_at <= now:
            self._accept_at = math.inf
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_COUNT_MAX):
            try:
                sock = own(self._listener.accept()[0])
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # out of file descriptors or memory; the listener stays readable meanwhile
                self._selector.unregister(self._listener)
                self._accept_at = time.monotonic() + ACCEPT_PAUSE_S
                return
            if len(self._callers) >= CALLER_COUNT_MAX:
                silent = (caller for caller in self._callers if caller.greeting is None)
                self._drop(next(silent, self._callers[0]))
            caller = _Caller(sock, time.monotonic() + GREETING_TIMEOUT_S)
            self._callers.append(caller)
            self._selector.register(sock, selectors.EVENT_READ, partial(self._hear, caller))

    def _hear(self, caller: _Caller) -> None:
        if caller not in self._callers:
            return  # dropped for a newer one in this very turn
        if caller.greeting is not None:
            return self._drop(caller)  # it left, or talks before it was answered
        try:
            caller.greeting = caller.ear.listen(caller.sock)
        except (OSError, ProtocolError):
            return self._drop(caller)
        if caller.greeting is not None:
            self._settle(caller)

    def _settle(self, caller: _Caller) -> None:
        """Keep, welcome or refuse a caller that has said who it is."""
        place, greeting = self._place, caller.greeting
        assert greeting is not None
        if place is None or (greeting.version == VERSION and greeting.quorum_id > place.quorum_id):
            caller.expires_at = time.monotonic() + EARLY_TIMEOUT_S
            return
        awaited = (VERSION, Kind.HELLO, place.quorum_id, place.predecessor, place.world_size)
        is_predecessor = self._is_open and self.predecessor is None and greeting == awaited
        try:
            greet(caller.sock, Kind.WELCOME if is_predecessor else Kind.REFUSE, place)
        except OSError:
            is_predecessor = False
        if not is_predecessor:
            return self._drop(caller)
        self._callers.remove(caller)
        self.predecessor = caller.sock
        self._selector.modify(caller.sock, selectors.EVENT_READ, partial(self._watch, caller.sock, place))

    def _watch(self, sock: socket.socket, place: RingPlace) -> None:
        """The predecessor is readable before the ring is complete: its first operation, or its end."""
        try:
            is_alive = bool(sock.recv(1, socket.MSG_PEEK))
        except OSError:
            is_alive = False
        if not is_alive:
            name = place.name(place.predecessor)
            message = f"{place}: {name} left while the ring was being formed"
            raise CollectiveError(message, place.quorum_id)
        self._selector.unregister(sock)

    def _drop(self, caller: _Caller) -> None:
        self._callers.remove(caller)
        _forget(self._selector, caller.sock)
        close_link(caller.sock)


class Rendezvous:
    """Forms the links of one quorum after the other; between them it answers the door."""

    def __init__(self, listener: socket.socket, wake: socket.socket) -> None:
        self._selector = selectors.PollSelector()  # no file descriptor of its own that a fork could share
        self._selector.register(wake, selectors.EVENT_READ, partial(drain, wake))
        self._reception = _Reception(listener, self._selector)
        self._call: _Call | None = None

    def begin(self, place: RingPlace) -> None:
        """Start to form the ring of ``place``; ``poll`` goes on with it."""
        self.end()
        self._reception.expect(place)
        if place.world_size > 1:
            self._call = _Call(place, self._selector)

    def poll(self) -> None:
        """Wait until something happens and deal with it; ``CollectiveError`` if the ring cannot be formed."""
        now = time.monotonic()
        self._reception.expire(now)
        if self._call is not None and self._call.retry_at <= now:
            self._call.attempt()
        timer = min(self._reception.next_timer(), math.inf if self._call is None else self._call.retry_at)
        for key, _ in self._selector.select(None if timer == math.inf else max(timer - now, 0)):
            respond: Callable[[], None] = key.data
            respond()

    def links(self) -> Links | None:
        """The links, handed over once both are there."""
        call, predecessor = self._call, self._reception.predecessor
        if call is None or call.sock is None or not call.is_answered or predecessor is None:
            return None
        links = Links(predecessor, call.sock)
        for sock in links:
            _forget(self._selector, sock)
        self._call = self._reception.predecessor = None
        self._reception.dismiss()
        return links

    def missing(self) -> str:
        """What a rendezvous that takes too long is waiting for. From any thread."""
        call, reasons = self._call, []
        if call is not None and not call.is_answered:
            error = f" (last: {call.last_error})" if call.last_error else ""
            reasons.append(f"{call.place.name(call.place.successor)} to answer{error}")
        if call is not None and self._reception.predecessor is None:
            reasons.append(f"{call.place.name(call.place.predecessor)} to connect")
        return " and ".join(reasons) or "this rank's own I/O thread"

    def end(self) -> None:
        """Give up what is being formed, if anything, and refuse the latest quorum to whoever asks."""
        self._reception.close()
        if self._call is not None:
            self._call.close()
            self._call = None

    def close(self) -> None:
        self.end()
        self._reception.close_all()
        self._selector.close()
