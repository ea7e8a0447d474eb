"""Serves a replica group beside rank 0's session: the shell around ``Group``.

One loop runs both (``loop``), so the group's requests go out on the session's own connection. The place to
serve at is opened when the trainer says that it is rank 0 of several, not before: most groups have one rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf

from procguard.adapters.base import RankServer
from procguard.client.group import Answer, Effect, Group, Request
from procguard.client.group_words import GROUP, FromRank
from procguard.client.link_words import Enrol
from procguard.errors import ProtocolError
from procguard.messages import Message

_log = logging.getLogger(__name__)

DRAIN_MAX = 1_000


class GroupHost:
    """One place to serve at, from the first ``enrol`` of a rank 0 to ``close``.

    Args:
        open_server: opens the place, at an address of this machine.
    """

    def __init__(self, open_server: Callable[[str], RankServer]) -> None:
        self._open_server = open_server
        self._server: RankServer | None = None
        self._group: Group | None = None

    def enrol(self, enrol: Enrol) -> Enrol:
        """Serve the group of the one who enrols, if it wants that; its Hello then says where."""
        hello = enrol.hello
        if not enrol.serve_at:
            return enrol
        assert hello.claim is not None
        if self._server is None:
            self._server = self._open_server(enrol.serve_at)
        self._group = Group(hello.token, hello.claim.incarnation, hello.group_world_size)
        return enrol._replace(hello=hello._replace(group_address=self._server.address))

    def fds(self) -> tuple[int, ...]:
        """Readable when there may be something to take in; ask ``next_deadline`` after that too."""
        return (self._server.fileno(),) if self._server else ()

    def next_deadline(self) -> float:
        """When ``turn`` is due: at once (0) while something waits to be taken in."""
        if self._server is None or self._group is None:
            return inf
        return 0.0 if self._server.has_input() else self._group.next_deadline()

    def turn(self, now: float) -> list[Message]:
        """Take in what the ranks say; returns what is to be said to the lighthouse."""
        if self._server is None or self._group is None:
            return []
        effects: list[Effect] = []
        for peer, payload in self._server.drain(DRAIN_MAX):
            try:
                message = GROUP.decode(payload)
            except ProtocolError as error:
                _log.warning("A frame from a rank of this group was dropped: %s", error)
                continue
            if isinstance(message, FromRank):
                effects += self._group.hear(peer, message, now)
        effects += self._group.time_passed(now)
        return self._perform(effects)

    def from_lighthouse(self, message: Message) -> list[Message]:
        """Take in what was said on the session's connection."""
        return [] if self._group is None else self._perform(self._group.from_lighthouse(message))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _perform(self, effects: list[Effect] | tuple[Effect, ...]) -> list[Message]:
        requests: list[Message] = []
        for effect in effects:
            if isinstance(effect, Answer):
                assert self._server is not None
                frame = GROUP.encode(effect.message)
                for peer in effect.peers:
                    self._server.send(peer, frame)  # one that is gone asks again where it comes back
            elif isinstance(effect, Request):
                requests.append(effect.message)
        return requests
