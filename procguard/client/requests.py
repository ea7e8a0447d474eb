"""The trainer's part of a member's conversation: join, ask for a quorum, leave. Pure.

Every request is repeated until it is answered, with a back-off: a reply can die in a connection that was cut
though it had been sent. Repeating is safe, because a round asked again gets the same answer. A lighthouse
that says nothing at all is asked on a new connection. What it needs first (a Hello because it restarted, or
because our incarnation is over) is done on the way, unasked.
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf
from typing import Any, NamedTuple

from procguard.messages import (
    KIND_OF,
    Ack,
    CauseKind,
    Claim,
    Hello,
    HelloWanted,
    Incarnation,
    Leave,
    LookedUp,
    Lookup,
    Message,
    Participant,
    Quorum,
    QuorumClaim,
    QuorumFormed,
    QuorumRequest,
    QuorumWaiting,
    Rejected,
    Rejection,
    Rejoin,
    Welcome,
)

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 0.25
SILENCE_FIRST_S = 2.0
"""A request in progress hears something twice a second, if only why it waits. Without a word for so long the
connection is dead, though nothing has said so: connect afresh."""
SILENCE_LAST_S = 10.0


class Goal(Enum):
    NONE = auto()
    JOIN = auto()
    QUORUM = auto()
    LOOKUP = auto()
    LEAVE = auto()


class Reborn(NamedTuple):
    """The lighthouse gave a new incarnation: the listener must beat for it."""

    welcome: Welcome


class Unheard(NamedTuple):
    """Nobody beat for us for too long, and our listener, which is there for that, has not told us."""


class Send(NamedTuple):
    """To the lighthouse."""

    message: Message


class Reconnect(NamedTuple):
    """The connection seems dead."""


Effect = Send | Reborn | Unheard | Reconnect


class Requests:
    """One trainer's requests, one at a time.

    Args:
        hello: who we are, without a claim.
    """

    def __init__(self, hello: Hello) -> None:
        assert hello.claim is None and not hello.topic
        self.goal = Goal.NONE
        self.hello = hello
        self.welcome: Welcome | None = None
        self.epoch = 0
        """The highest seen. A lighthouse of a lower one is not believed; our Hello raises it first."""
        self.quorum: Quorum | None = None
        self.waiting: QuorumWaiting | None = None
        self.group_address = ""
        """Where our replica group's rank 0 serves; found by ``lookup``."""
        self.refusal: Rejected | None = None
        """The last answer to Hello that was a no; for good unless it is ID_IN_USE."""
        self._first = 0, 0
        """Epoch and last notice of the first Welcome: what came before is not for us."""
        self._claim: QuorumClaim | None = None
        self._over = False
        self._over_since = 0
        """The epoch of the lighthouse by whose word the present life is over."""
        self._asks: Participant | None = None
        self._expires_at = inf
        self._leave: Leave | None = None
        self._retry_at = inf
        self._retry_s = RETRY_FIRST_S
        self._silent_at = inf
        self._silence_s = SILENCE_FIRST_S
        self._effects: list[Effect] = []

    @property
    def done(self) -> bool:
        """The goal is reached."""
        return self.goal is Goal.NONE

    @property
    def refused(self) -> bool:
        """The lighthouse said no, and asking again will not help."""
        return self.refusal is not None and self.refusal.reason is not Rejection.ID_IN_USE

    @property
    def life_over(self) -> bool:
        """The present incarnation has ended; the next request would join anew."""
        return self._over

    def join(self, now: float) -> tuple[Effect, ...]:
        """Say Hello until there is a Welcome; a member that is one already renews its lease by it."""
        self.goal = Goal.JOIN
        return self._start(now)

    def ask(self, asks: Participant, ttl_s: float, now: float) -> tuple[Effect, ...]:
        """Ask for a quorum; ``self.quorum`` holds it once ``done``. The incarnation is filled in here."""
        self.goal = Goal.QUORUM
        self.quorum = self.waiting = None
        self._asks = asks
        self._expires_at = now + ttl_s
        return self._start(now)

    def lookup(self, now: float) -> tuple[Effect, ...]:
        """Ask where rank 0 of our replica group serves, until that is known."""
        self.goal = Goal.LOOKUP
        self.group_address = ""
        return self._start(now)

    def leave(self, step: int, now: float) -> tuple[Effect, ...]:
        """Say that we go, until it is acknowledged."""
        if self.welcome is None or self._over:
            self.give_up()
            return ()
        self.goal = Goal.LEAVE
        self._leave = Leave(self.hello.token, self.welcome.incarnation, step)
        return self._start(now)

    def give_up(self) -> None:
        """Drop the goal: nothing is repeated any more."""
        self.goal = Goal.NONE
        self._retry_at = self._silent_at = inf

    def life_is_over(self, incarnation: Incarnation, epoch: int) -> tuple[Effect, ...]:
        """Known from the listener, by the lighthouse of ``epoch``: do not claim this incarnation any more.

        A later lighthouse that has taken us at our word meanwhile is not bound by it (see ``fence``); then
        the listener, which has fallen silent, must beat again.
        """
        welcome = self.welcome
        if welcome is not None and welcome.incarnation == incarnation:
            if welcome.epoch > epoch:
                self._effects.append(Reborn(welcome))
            elif not self._over:
                self._over = True
                self._over_since = epoch
        return self._flush()

    def receive(self, message: Message, now: float) -> tuple[Effect, ...]:
        """Take in an answer."""
        self._heard(now)
        if isinstance(message, Welcome):
            self._welcome(message, now)
        elif isinstance(message, QuorumFormed):
            self._formed(message, now)
        elif isinstance(message, QuorumWaiting):
            self.waiting = message
        elif isinstance(message, LookedUp):
            self._looked_up(message)
        elif isinstance(message, Rejoin):
            self._rejoin(message, now)
        elif isinstance(message, HelloWanted):
            self._hello(now)
        elif isinstance(message, Rejected):
            self.refusal = message
        elif isinstance(message, Ack) and message.kind == KIND_OF[Leave] and self.goal is Goal.LEAVE:
            self.give_up()
        return self._flush()

    def time_passed(self, now: float) -> tuple[Effect, ...]:
        """Repeat what is not answered."""
        if now >= self._silent_at:
            self._effects.append(Reconnect())
            self._silence_s = min(2 * self._silence_s, SILENCE_LAST_S)
            self._silent_at = now + self._silence_s
            self._request(now)
        elif now >= self._retry_at:
            self._request(now)
        return self._flush()

    def next_deadline(self) -> float:
        """When ``time_passed`` is due."""
        return min(self._retry_at, self._silent_at)

    def _start(self, now: float) -> tuple[Effect, ...]:
        self._retry_s = RETRY_FIRST_S
        self.refusal = None
        self._heard(now)
        self._request(now)
        return self._flush()

    def _heard(self, now: float) -> None:
        if self.goal is not Goal.NONE:
            self._silence_s = SILENCE_FIRST_S
            self._silent_at = now + SILENCE_FIRST_S

    def _request(self, now: float) -> None:
        """Send what the goal needs at this point, and again later."""
        if self.welcome is None or self._over or self.goal is Goal.JOIN:
            self._hello(now)
        elif self.goal is Goal.QUORUM:
            assert self._asks is not None
            asks = self._asks._replace(incarnation=self.welcome.incarnation)
            ttl_s = max(0.0, self._expires_at - now)
            self._effects.append(Send(QuorumRequest(self.hello.token, ttl_s, asks)))
        elif self.goal is Goal.LOOKUP:
            self._effects.append(Send(Lookup(self.hello.token)))
        elif self.goal is Goal.LEAVE:
            assert self._leave is not None
            self._effects.append(Send(self._leave))
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_LAST_S)

    def _hello(self, now: float) -> None:
        """Join, or go on with a claim where a restarted lighthouse has forgotten us."""
        self._say_hello(claims=not self._over)

    def _say_hello(self, *, claims: bool) -> None:
        hello = self.hello._replace(epoch=self.epoch)
        if self.welcome is not None and claims:
            hello = hello._replace(claim=Claim(self.welcome.incarnation, self._claim))
        self._effects.append(Send(hello))

    def _welcome(self, welcome: Welcome, now: float) -> None:
        known = self.welcome
        if welcome.epoch < self.epoch:
            return
        if known is not None and welcome.incarnation < known.incarnation:
            if welcome.epoch > max(known.epoch, self._over_since):
                self._say_hello(claims=True)  # it adopted an earlier life, named in a Hello that was delayed
            return
        returns = self._over and known is not None and welcome.incarnation == known.incarnation
        if returns and welcome.epoch <= self._over_since:
            return  # an answer to what we said before it was over
        self.epoch = welcome.epoch
        if known is not None:  # who goes on living wants to hear what was published meanwhile, too
            welcome = welcome._replace(seq=self._first[1] if welcome.epoch == self._first[0] else 0)
        else:
            self._first = welcome.epoch, welcome.seq
        self.welcome = welcome
        self.refusal = None
        self._over = False
        if known is None or welcome.incarnation != known.incarnation or returns:
            self._claim = None
            self._effects.append(Reborn(welcome))
        if self.goal is Goal.JOIN:
            self.give_up()
        elif self.goal is not Goal.NONE:
            self._request(now)

    def _rejoin(self, rejoin: Rejoin, now: float) -> None:
        if self.welcome is None or rejoin.incarnation != self.welcome.incarnation or self._over:
            return
        self._over = True
        self._over_since = self.epoch
        if rejoin.cause.kind is CauseKind.HEARTBEAT_TIMEOUT:
            self._effects.append(Unheard())
        if self.goal is Goal.LEAVE or self.hello.group_world_size > 1:
            self.give_up()  # a rank never joins anew by itself: its whole group is started again
        elif self.goal is not Goal.NONE:
            self._request(now)

    def _looked_up(self, found: LookedUp) -> None:
        mine = self.welcome is not None and found.incarnation == self.welcome.incarnation
        if self.goal is Goal.LOOKUP and mine and found.group_address:
            self.group_address = found.group_address
            self.give_up()

    def _formed(self, formed: QuorumFormed, now: float) -> None:
        if self.goal is not Goal.QUORUM or self.welcome is None:
            return
        if formed.epoch < self.epoch:
            self._hello(now)  # it knows us from our listener, which has not seen what we have
            return
        assert self._asks is not None
        me = (self.hello.replica_id, self.welcome.incarnation, self._asks.round)
        members = formed.quorum.participants
        if any((p.replica_id, p.incarnation, p.round) == me for p in members):
            names = tuple([(p.replica_id, p.incarnation) for p in members])
            self.quorum = formed.quorum
            self.epoch = formed.epoch
            self._claim = QuorumClaim(formed.quorum.quorum_id, names)
            self.give_up()

    def _flush(self) -> tuple[Effect, ...]:
        effects = tuple(self._effects)
        self._effects.clear()
        return effects


def describe_wait(waiting: QuorumWaiting | None) -> str:
    """Why there was no quorum, for an error message."""
    if waiting is None:
        return "the lighthouse did not answer"
    missing = f"; waiting for {', '.join(waiting.missing)}" if waiting.missing else ""
    reason = waiting.reason.name.lower().replace("_", " ")
    return f"{reason}: {waiting.have} of {waiting.need} replicas{missing}"


def describe_refusal(refused: Rejected, replica_id: str) -> str:
    """What the lighthouse refused, and what to do about it."""
    remedies: dict[Any, str] = {
        Rejection.ID_IN_USE: (
            f" (pid {refused.pid} on {refused.host}); end that process or give this one another replica_id "
            f"than {replica_id!r}"
        ),
        Rejection.BURIED: "; start the trainer anew",
    }
    return refused.text + remedies.get(refused.reason, "")
