"""Who may come in: answers libzmq's question about each key, in the loop that drains the sockets.

ZAP (http://rfc.zeromq.org/spec/27): libzmq asks at each CURVE handshake, over an inproc socket, and holds the
connection until it is answered. A thread for that would be one more thing that can hang and must be
forked around; the loop that serves the sockets is there anyway.

Nothing is kept of those who are refused. Libzmq asks once a connection; a key that is taken off the list
later is found out by the one who drains, from the name that a frame carries.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import zmq

from procguard.adapters.zmq_keys import Allowed, Listed, fingerprint
from procguard.adapters.zmq_sockets import Context, Socket

ENDPOINT = "inproc://zeromq.zap.01"
_REQUEST_PARTS = 7
_NOBLOCK = int(zmq.NOBLOCK)


class Turned(NamedTuple):
    """Somebody who was not let in."""

    key: str
    """What is shown of its public key."""
    address: str


class Doorkeeper:
    """Must be there before a socket of its context is bound."""

    def __init__(self, context: Context, allowed: Allowed) -> None:
        self._allowed = allowed
        self.socket: Socket = context.socket(zmq.REP)
        self.socket.set(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)
        self.news = ""
        """What became of the list when it was last looked at; who reads it empties it."""

    def serve(self, count_max: int) -> list[Turned]:
        """Answer those who wait, and say whom it turned away. Never blocks."""
        turned: list[Turned] = []
        with suppress(zmq.Again):
            for _ in range(count_max):
                request = self.socket.recv_multipart(_NOBLOCK)
                version, request_id = (*request, b"", b"")[:2]
                asked = len(request) == _REQUEST_PARTS and request[5] == b"CURVE"
                public = request[6].hex() if asked else ""
                listed = self._judge(public)
                status, text = (b"200", b"") if listed else (b"400", b"key not listed")
                user = public.encode() if listed else b""
                self.socket.send_multipart([version, request_id, status, text, user, b""], _NOBLOCK)
                if not listed:
                    address = request[3].decode("ascii", "replace") if len(request) > 3 else "?"
                    turned.append(Turned(fingerprint(public), address))
        return turned

    def find(self, public: str) -> Listed | None:
        """Whose key this is now."""
        return self._allowed.find(public)

    def look(self) -> bool:
        """Look whether the list has changed; True if it has, and then ``news`` says how."""
        news = self._allowed.refresh()
        self.news = news or self.news
        return bool(news)

    def _judge(self, public: str) -> Listed | None:
        """One that is not listed may have been added just now."""
        listed = self._allowed.find(public)
        if listed is None and self.look():
            listed = self._allowed.find(public)
        return listed

    def close(self) -> None:
        self.socket.close(linger=0)
