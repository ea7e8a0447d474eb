"""The loop that runs a ``Session``: receive, step, perform. Alike in the listener process and in a thread.

No decision about the job is made here. What the session sees of its trainer comes from a ``Watch``: the
witness in a listener process, the trainer's own board in a thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

from procguard import codec
from procguard.adapters.base import MemberTransport
from procguard.client.group_host import GroupHost
from procguard.client.link import LinkEnd
from procguard.client.link_words import Enrol, FromTrainer
from procguard.client.session import (
    Died,
    Event,
    Listen,
    Published,
    Received,
    Reconnect,
    Send,
    Session,
    State,
    Tell,
    TimePassed,
    Told,
    Trainer,
)
from procguard.errors import ProtocolError
from procguard.messages import Cause, CauseKind, Message

_log = logging.getLogger(__name__)

DRAIN_MAX = 1_000
PROOF_WAIT_S = 0.2
"""After the link's end, how long the witness may take to say that the trainer is dead."""


class Watch(Protocol):
    """How the loop sees its trainer."""

    def fds(self) -> Sequence[int]:
        """Readable when the trainer may have died."""
        ...

    def look(self) -> tuple[Trainer, Cause | None]:
        """The trainer as it is now, and the cause if it is dead."""
        ...


class ListenerLoop:
    """Runs one session until it is done.

    Args:
        watch: None where nothing but the link's end can tell of the trainer's death.
        group_host: serves the trainer's replica group, should it be the rank 0 of several.
    """

    def __init__(
        self,
        session: Session,
        transport: MemberTransport,
        link: LinkEnd,
        watch: Watch | None,
        group_host: GroupHost,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._transport = transport
        self._link = link
        self._watch = watch
        self._group_host = group_host
        self._clock = clock
        self._link_open = True
        self._quit_at = inf

    def run(self) -> None:
        """Return when the trainer is buried, has left, or has no more use for this session."""
        while not self.is_over():
            self.turn()

    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self._session.state is State.DONE or self._clock() >= self._quit_at

    def next_deadline(self) -> float:
        """When a turn is due, should nothing happen before."""
        return min(self._session.next_deadline(), self._group_host.next_deadline(), self._quit_at)

    def turn(self) -> None:
        """Wait for the next thing to happen and deal with it."""
        watched = tuple(self._watch.fds()) if self._watch else ()
        fds = (*watched, *self._group_host.fds())
        if self._link_open:
            fds = (*fds, self._link.fileno())
        wait_s = self.next_deadline() - self._clock()
        ready = self._transport.wait(max(0.0, min(wait_s, 3600.0)), fds)
        now = self._clock()
        # What the trainer said, before that it is dead: who it was, and its last words.
        if self._link_open and self._link.fileno() in ready:
            self._hear_trainer(now)
        if any(fd in ready for fd in watched):
            self._look(now)
        self._say(self._group_host.turn(now))
        for frame in self._transport.receive(DRAIN_MAX):
            self._take(Received, frame, now)
        for frame in self._transport.notices(DRAIN_MAX):
            self._take(Published, frame[frame.find(b"\0") + 1 :], now)
        if now >= self._session.next_deadline():
            self._step(TimePassed(self._look(now)), now)

    def _look(self, now: float) -> Trainer:
        """See how the trainer is; its death goes to the session at once."""
        if self._watch is None:
            return Trainer()
        trainer, cause = self._watch.look()
        if cause is not None:
            self._watch = None
            self._quit_at = inf
            self._step(Died(cause, trainer.step), now)
        return trainer

    def _hear_trainer(self, now: float) -> None:
        messages = self._link.receive()
        if messages is None:
            self._link_ended(now)
            return
        for message in messages:
            if isinstance(message, Enrol):
                self._step(Told(self._group_host.enrol(message)), now)
            elif isinstance(message, FromTrainer):
                self._step(Told(message), now)

    def _link_ended(self, now: float) -> None:
        """The trainer is dead, or has dropped us for another listener: the witness knows which."""
        self._link_open = False
        if self._watch is None:
            self._step(Died(Cause(CauseKind.PROCESS_EXIT), 0), now)
            return
        self._look(now)
        if self._watch is not None:
            self._quit_at = now + PROOF_WAIT_S

    def _take(self, event: type[Received] | type[Published], frame: bytes, now: float) -> None:
        try:
            message = codec.decode(frame)
        except ProtocolError as error:
            _log.warning("A frame from the lighthouse was dropped: %s", error)
            return
        self._step(event(message), now)
        if event is Received:
            self._say(self._group_host.from_lighthouse(message))

    def _say(self, requests: list[Message]) -> None:
        """What the group asks of the lighthouse."""
        for request in requests:
            self._transport.send(codec.encode(request))

    def _step(self, event: Event, now: float) -> None:
        for effect in self._session.step(event, now):
            if isinstance(effect, Send):
                send = self._transport.send_aside if effect.aside else self._transport.send
                send(codec.encode(effect.message))
            elif isinstance(effect, Tell):
                self._link.send(effect.message)
            elif isinstance(effect, Listen):
                self._transport.listen(effect.notice_port, effect.topics)
            elif isinstance(effect, Reconnect):
                self._transport.reconnect()
