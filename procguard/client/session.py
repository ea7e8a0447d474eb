"""The listener's part of a member's conversation with the lighthouse. Pure: ``step(event, now) -> effects``.

It beats, hears notices, closes the gaps that PUB may leave, introduces itself again to a lighthouse that has
forgotten it, and at the end says what became of the trainer. It runs in the listener process, or in a thread
of the trainer while there is no such process. All its timers are inside, so that every host needs only
``next_deadline``.

It never asks to join: an incarnation that is over stays over until the trainer itself enrols anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from math import inf
from typing import Any, NamedTuple

from procguard.client.link_words import (
    Enrol,
    Farewell,
    FromTrainer,
    Heard,
    InQuorum,
    LastWords,
    LeftOut,
    LinkMessage,
    Over,
    Ready,
    Said,
)
from procguard.messages import (
    KIND_OF,
    Ack,
    Beacon,
    Cause,
    CauseKind,
    Claim,
    Excluded,
    Heartbeat,
    Hello,
    HelloWanted,
    Incarnation,
    Leave,
    Message,
    NoticeBatch,
    Obituary,
    Phase,
    QuorumClaim,
    Rejected,
    Rejoin,
    Resync,
    Welcome,
    notice_topic,
)

RETRY_FIRST_S = 0.1
BURIAL_S = 10.0
"""How long the obituary is repeated before the listener gives up: no lighthouse is there to hear it."""
SILENCE_FIRST_S = 2.0
"""Without a word from the lighthouse, which sends a beacon every 0.5 s, for so long: connect afresh."""
SILENCE_LAST_S = 10.0
BEACON_PATIENCE_S = 1.0
"""Without a beacon for so long: ask for what may have been missed. The answer tells that the connection on
which we talk is well, and then it is not given up because the other one loses what is published."""
DEAFNESS_S = 10.0
"""... but when nothing that is published comes for so long, both are made anew all the same."""
EVER_SINCE = Incarnation(0, 0)


class Trainer(NamedTuple):
    """What is seen of the trainer from outside, at the time of a beat."""

    phase: Phase = Phase.STARTING
    progress: int = 0
    step: int = 0
    stopped: bool = False


class Received(NamedTuple):
    """From the lighthouse, on the listener's own connection."""

    message: Message


class Published(NamedTuple):
    """From the lighthouse, to all listeners of the job."""

    message: Message


class Told(NamedTuple):
    """From the trainer."""

    message: FromTrainer


class TimePassed(NamedTuple):
    """Something may be due."""

    trainer: Trainer


class Died(NamedTuple):
    """The trainer's process has ended, or has become another program, at this step."""

    cause: Cause
    step: int


Event = Received | Published | Told | TimePassed | Died


class Send(NamedTuple):
    """To the lighthouse."""

    message: Message
    aside: bool = False
    """On the connection on which notices are heard."""


class Listen(NamedTuple):
    """Subscribe."""

    notice_port: int
    topics: tuple[bytes, ...]


class Reconnect(NamedTuple):
    """The connection seems dead though nothing has said so."""


class Tell(NamedTuple):
    """To the trainer."""

    message: LinkMessage


Effect = Send | Listen | Reconnect | Tell


class State(Enum):
    NEW = auto()
    INTRODUCING = auto()
    BEATING = auto()
    SILENT = auto()
    BURYING = auto()
    DONE = auto()


class Session:
    """One listener's conversation.

    Args:
        threaded: it runs in a thread of the trainer, so the longer lease applies.
        topic: the topic that only this listener subscribes.
        hear_notices: False: keep the peers' ends to oneself (proactive recovery is off). They are subscribed
            all the same, because the beacon among them is how a dead connection is told from a quiet one.
    """

    def __init__(self, *, threaded: bool, topic: bytes, hear_notices: bool = True) -> None:
        self.state = State.NEW
        self._threaded = threaded
        self._topic = topic
        self._hear_notices = hear_notices
        self._hello: Hello | None = None
        """As the trainer gave it: what has changed since is put in when it is said."""
        self._incarnation = EVER_SINCE
        self._quorum: QuorumClaim | None = None
        self._interval_s = 0.1
        self._epoch = 0
        self._seq = 0
        self._beat_at = inf
        self._beats_aside = False
        self._retry_at = inf
        self._retry_s = RETRY_FIRST_S
        self._retry_max_s = RETRY_FIRST_S
        self._heard_at = 0.0
        self._published_at = 0.0
        self._ask_at = inf
        self._silence_s = SILENCE_FIRST_S
        self._bury_until = inf
        self._last_words = ""
        self._refusal = ""
        self._end: Obituary | Leave | None = None
        self._trainer = Trainer()
        self._effects: list[Effect] = []
        self._take: dict[type, Callable[[Any, float], None]] = {
            Enrol: self._enrol,
            InQuorum: self._in_quorum,
            LastWords: self._hear_last_words,
            Farewell: self._farewell,
            Welcome: self._welcome,
            HelloWanted: self._hello_wanted,
            Rejoin: self._rejoin,
            Rejected: self._rejected,
            Excluded: self._excluded,
            Ack: self._ack,
        }

    def step(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Take in one event; ``now`` is monotonic seconds."""
        if self.state is not State.DONE:
            self._dispatch(event, now)
        effects = tuple(self._effects)
        self._effects.clear()
        return effects

    def next_deadline(self) -> float:
        """When ``TimePassed`` is due."""
        if self.state in (State.NEW, State.DONE):
            return inf
        silent_at = min(self._heard_at + self._silence_s, self._published_at + DEAFNESS_S)
        return min(self._beat_at, self._retry_at, self._ask_at, self._bury_until, silent_at)

    def _dispatch(self, event: Event, now: float) -> None:
        if isinstance(event, TimePassed):
            self._trainer = event.trainer
            self._time_passed(now)
        elif isinstance(event, Died):
            self._died(event.cause, event.step, now)
        elif isinstance(event, Published):
            self._heard_something(now)
            self._published_at = now
            self._ask_at = now + BEACON_PATIENCE_S
            self._published(event.message, now)
        elif isinstance(event, Received):
            self._heard_something(now)
            if isinstance(event.message, NoticeBatch):
                self._resynced(event.message)
            else:
                self._take.get(type(event.message), _ignore)(event.message, now)
        else:
            self._take.get(type(event.message), _ignore)(event.message, now)

    # --- time ---------------------------------------------------------------------------------------

    def _time_passed(self, now: float) -> None:
        if self.state in (State.NEW, State.DONE):
            return
        if now >= self._bury_until:
            self.state = State.DONE
            return
        if now >= min(self._heard_at + self._silence_s, self._published_at + DEAFNESS_S):
            self._lighthouse_is_silent(now)
        if now >= self._ask_at:
            self._ask_for_notices(now)
        if now >= self._retry_at:
            self._retry(now)
        if now >= self._beat_at:
            self._beat(now)

    def _beat(self, now: float) -> None:
        hello = self._hello
        assert hello is not None
        seen = self._trainer
        self._beat_at = max(self._beat_at + self._interval_s, now + self._interval_s / 2)
        beat = Heartbeat(
            hello.token,
            self._incarnation,
            self._threaded,
            seen.stopped,
            seen.phase,
            seen.progress,
            seen.step,
        )
        self._effects.append(Send(beat, self._beats_aside))
        # Each way in turn, so that a lost packet in one of them does not silence us; an answer can only
        # come by the first.
        self._beats_aside = not self._beats_aside

    def _retry(self, now: float) -> None:
        if self._end is not None:
            self._effects.append(Send(self._end))
        else:
            self._say_hello()
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, self._retry_max_s)

    def _ask_for_notices(self, now: float) -> None:
        self._ask_at = now + BEACON_PATIENCE_S
        if self.state is State.BEATING and self._hello is not None:
            self._effects.append(Send(Resync(self._hello.token, self._epoch, self._seq)))

    def _lighthouse_is_silent(self, now: float) -> None:
        silent_s = self._silence_s
        self._effects.append(Reconnect())
        if now >= self._heard_at + silent_s:
            text = f"No word from the lighthouse for {silent_s:g} s: connecting afresh; training waits for it"
        else:
            text = f"No beacon of the lighthouse for {DEAFNESS_S:g} s, though it answers: connecting afresh"
        self._say(logging.WARNING, text)
        self._heard_at = self._published_at = now
        self._ask_at = now + BEACON_PATIENCE_S
        self._silence_s = min(2 * silent_s, SILENCE_LAST_S)
        if self.state is State.BEATING or self.state is State.INTRODUCING:
            self._introduce(now)

    def _heard_something(self, now: float) -> None:
        if self._silence_s > SILENCE_FIRST_S:
            self._say(logging.INFO, "The lighthouse is back")
            self._silence_s = SILENCE_FIRST_S
        self._heard_at = now

    # --- what the trainer says ----------------------------------------------------------------------

    def _enrol(self, enrol: Enrol, now: float) -> None:
        """Beat for a (new) incarnation."""
        if self.state is State.BURYING:
            return
        assert enrol.hello.claim is not None
        self._incarnation, self._quorum = enrol.hello.claim
        self._hello = enrol.hello._replace(topic=self._topic)
        self._interval_s = enrol.settings.heartbeat_interval_s
        self._retry_max_s = max(RETRY_FIRST_S, enrol.settings.heartbeat_timeout_s / 4)
        if self.state is State.NEW:
            self._epoch, self._seq = enrol.hello.epoch, enrol.seq
            topics = (notice_topic(enrol.hello.job_id), self._topic)
            self._effects.append(Listen(enrol.notice_port, topics))
            self._heard_at = self._published_at = now
            self._ask_at = now + BEACON_PATIENCE_S
        self._see_epoch(enrol.hello.epoch)
        self._beat_at = now
        self._introduce(now)

    def _in_quorum(self, told: InQuorum, now: float) -> None:
        self._quorum = told.quorum
        self._see_epoch(told.epoch)

    def _hear_last_words(self, words: LastWords, now: float) -> None:
        self._last_words = words.text

    def _farewell(self, farewell: Farewell, now: float) -> None:
        self.state = State.DONE

    def _died(self, cause: Cause, step: int, now: float) -> None:
        """Bury the trainer: a message sent just before an exit is lost, so it is repeated until acked."""
        hello = self._hello
        if hello is None or self.state is State.BURYING:
            self.state = State.DONE if hello is None else self.state
            return
        if cause.exit_code == 0 and cause.kind is CauseKind.PROCESS_EXIT:
            self._end = Leave(hello.token, self._incarnation, step)
        else:
            cause = cause._replace(text=cause.text or self._last_words)
            self._end = Obituary(hello.job_id, hello.token, hello.process, cause)
        self.state = State.BURYING
        self._beat_at = inf
        self._retry_s = RETRY_FIRST_S
        self._bury_until = now + BURIAL_S
        self._retry(now)

    # --- what the lighthouse says -------------------------------------------------------------------

    def _introduce(self, now: float) -> None:
        """Say Hello with the claim until it is answered. Beats go on meanwhile."""
        self.state = State.INTRODUCING
        self._retry_s = RETRY_FIRST_S
        self._retry(now)

    def _say_hello(self) -> None:
        assert self._hello is not None
        claim = Claim(self._incarnation, self._quorum)
        self._effects.append(Send(self._hello._replace(claim=claim, epoch=self._epoch)))

    def _welcome(self, welcome: Welcome, now: float) -> None:
        if welcome.incarnation != self._incarnation or welcome.epoch < self._epoch:
            return
        if self.state is State.INTRODUCING:
            self.state = State.BEATING
            self._retry_at = inf
            self._effects.append(Tell(Ready()))
            self._compare(welcome.epoch, welcome.seq)

    def _hello_wanted(self, wanted: HelloWanted, now: float) -> None:
        """A lighthouse that does not know us: it restarted. Our Hello raises its epoch if it is behind."""
        if self.state is State.BEATING:
            self._say(logging.INFO, f"The lighthouse was started anew (epoch {wanted.epoch}): Hello again")
            self._introduce(now)
        elif self.state is State.BURYING and self._end is not None:
            self._say_hello()  # it cannot miss whom it does not know
            self._effects.append(Send(self._end))

    def _rejoin(self, rejoin: Rejoin, now: float) -> None:
        if rejoin.incarnation == self._incarnation:
            self._over(rejoin.cause)

    def _over(self, cause: Cause) -> None:
        """Fall silent. A trainer that has left knows that itself."""
        if self.state in (State.SILENT, State.BURYING):
            return
        self.state = State.SILENT
        self._beat_at = self._retry_at = inf
        if cause.kind is not CauseKind.LEFT:
            self._effects.append(Tell(Over(self._epoch, self._incarnation, cause)))

    def _rejected(self, rejected: Rejected, now: float) -> None:
        if rejected.text != self._refusal:
            self._refusal = rejected.text
            self._say(logging.WARNING, f"The lighthouse refuses this listener: {rejected.text}")

    def _excluded(self, excluded: Excluded, now: float) -> None:
        self._effects.append(Tell(LeftOut(excluded.quorum_id)))

    def _ack(self, ack: Ack, now: float) -> None:
        if self._end is not None and ack.kind == KIND_OF[type(self._end)]:
            self.state = State.DONE

    # --- notices ------------------------------------------------------------------------------------

    def _published(self, message: Message, now: float) -> None:
        if not isinstance(message, Beacon | NoticeBatch):
            return
        if message.epoch < self._epoch:
            if self.state is State.BEATING:  # it knows us from our trainer, which has not seen what we have
                self._introduce(now)
            return
        self._see_epoch(message.epoch)
        if isinstance(message, NoticeBatch):
            if message.seq == self._seq + 1:
                self._seq = message.seq
            self._hear(message)
        self._compare(message.epoch, message.seq)

    def _resynced(self, batch: NoticeBatch) -> None:
        if batch.epoch >= self._epoch:
            self._see_epoch(batch.epoch)
            self._seq = max(self._seq, batch.seq)
            self._hear(batch)

    def _see_epoch(self, epoch: int) -> None:
        """A later lighthouse counts its notices anew."""
        if epoch > self._epoch:
            self._epoch, self._seq = epoch, 0

    def _compare(self, epoch: int, seq: int) -> None:
        """Ask for what was missed, if anything was. The beacon makes us ask again if that is lost."""
        self._see_epoch(epoch)
        if epoch == self._epoch and seq > self._seq and self._hello is not None:
            self._effects.append(Send(Resync(self._hello.token, self._epoch, self._seq)))

    def _hear(self, batch: NoticeBatch) -> None:
        """Pass notices on. Hearing one twice does no harm: the trainer's fence applies each once.

        A life of our own name is no peer's: the present one is over, or it is an earlier one's old story.
        """
        if self._hello is None:
            return
        own = self._hello.replica_id
        peers = tuple([notice for notice in batch.notices if notice.replica_id != own])
        if peers and self._hear_notices:
            self._effects.append(Tell(Heard(batch.epoch, peers)))
        for notice in batch.notices:
            if (notice.replica_id, notice.incarnation) == (own, self._incarnation):
                self._over(notice.cause)

    def _say(self, level: int, text: str) -> None:
        self._effects.append(Tell(Said(level, text)))


def _ignore(message: object, now: float) -> None:
    """A message that is none of a listener's business."""
